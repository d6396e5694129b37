"""Every public name can be imported and is typed. README, documentation and examples import only public names of
packages that the map in CONTRIBUTING.md lists."""

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import trl_rec


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "trl_rec"
MAP = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

# Maps the dotted name of every package with public names to its `__init__.py`.
PACKAGES = {
    ".".join(file.relative_to(ROOT).parts[:-1]): file
    for file in sorted(PACKAGE.rglob("__init__.py"))
    if "__all__" in file.read_text(encoding="utf-8")
}
# The packages that the map in CONTRIBUTING.md lists, and the packages that contain them.
FOLDERS = [path.split("/") for path in re.findall(r"^(trl_rec/[\w/]+)/ ", MAP, re.MULTILINE)]
DOCUMENTED = {".".join(folder[:depth]) for folder in FOLDERS for depth in range(1, len(folder) + 1)}

# These names are for people who write their own trainer. `trl_rec` itself does not export them.
BASE_CLASSES = {"RecConfig"}


def public_names(package: str) -> list[str]:
    return import_module(package).__all__


@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in PACKAGES for name in public_names(package)]
)
def test_public_names_can_be_imported(package: str, name: str) -> None:
    assert getattr(import_module(package), name) is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_the_lists_of_names_in_a_package_agree(package: str) -> None:
    """`__all__`, the imports for type checkers and the table of names that are loaded on first use contain the same
    names. The imports and the table agree on the module of each name."""
    names = public_names(package)
    assert len(set(names)) == len(names)
    assert set(names) <= {*dir(import_module(package)), "__version__"}

    # A package that loads no heavy libraries may import its names directly.
    tree = ast.parse(PACKAGES[package].read_text(encoding="utf-8"))
    branches = [node for node in tree.body if isinstance(node, ast.If)]
    if not branches:
        assert set(names) == {name for _, name in imports(tree.body)}
        return

    (branch,) = branches
    assert ast.unparse(branch.test) == "TYPE_CHECKING"
    typed = {name: module for module, name in imports(branch.body)}
    (call,) = (node for node in ast.walk(branch.orelse[0]) if isinstance(node, ast.Call))
    modules = ast.literal_eval(call.args[1])
    lazy = {name: f"{package}.{module}" for module, found in modules.items() for name in found}
    assert typed == lazy
    assert set(names) - {"__version__"} == set(lazy)


def test_the_top_level_has_what_a_first_program_needs() -> None:
    """`trl_rec` exports all losses, and all trainers and configs except the base classes. It also exports the
    functions that evaluate, build trainers, make or load models and tokenizers, or make semantic IDs."""
    patterns = {
        "trl_rec.losses": ".*",
        "trl_rec.evaluation": "evaluate_.*",
        "trl_rec.models": "make_.*|load_model|load_tokenizer",
        "trl_rec.semantic_ids": "make_.*",
        "trl_rec.trainer": "build_.*_trainer|.*(Trainer|Config)",
    }
    names = {
        name for package, pattern in patterns.items() for name in public_names(package) if re.fullmatch(pattern, name)
    }
    assert names - {*trl_rec.__all__} == BASE_CLASSES


def imports(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Yields the module and the name of each import from trl_rec."""
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trl_rec":
                yield from ((node.module, alias.name) for alias in node.names)


def programs() -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each example, and of each Python block in the documentation."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for number, block in enumerate(
            re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
        ):
            yield f"{path.relative_to(ROOT)}, block {number}", block


@pytest.mark.parametrize("program", [pytest.param(text, id=name) for name, text in programs()])
def test_examples_and_documentation_import_public_names_of_documented_packages(program: str) -> None:
    for module, name in imports(ast.parse(program).body):
        assert module in DOCUMENTED, f"{module} is not in CONTRIBUTING's map"
        assert name in public_names(module), f"{module}.{name} is not public"
