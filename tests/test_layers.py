"""Tests that each layer of the package (see `LAYERS`) imports only from itself and from lower layers, and that light
modules load no heavy libraries."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import trl_rec


PACKAGE = Path(trl_rec.__file__).parent
# The layers are listed from the bottom to the top. A module may import from its own layer and from the layers that
# come earlier in this list.
LAYERS = [
    ("_lazy", "files", "printing", "ragged", "ranges", "threads", "version"),
    ("parts",),
    ("compat",),
    ("losses",),
    ("items.trie", "evaluation.metrics"),
    ("items", "data"),
    ("models", "decoding", "semantic_ids"),
    ("trainer", "evaluation"),
    ("schedule", "serving"),
    ("scripts", "cli"),
]


def loaded_by(statement: str, names: tuple[str, ...]) -> list[str]:
    code = f"import sys; {statement}; print(*[name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def layer(module: str) -> int | None:
    matches = [
        (len(name), index)
        for index, names in enumerate(LAYERS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    return max(matches)[1] if matches else None


def imports(path: Path) -> set[str]:
    """Returns the modules of this package that a file imports, including imports inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        found |= {name.removeprefix("trl_rec.") for name in names if name.startswith("trl_rec.")}
    return found


@pytest.mark.parametrize(
    "names", ["trl_rec", "trl_rec.cli", "trl_rec.items, trl_rec.data, trl_rec.decoding, trl_rec.evaluation"]
)
def test_importing_the_package_loads_nothing_heavy(names: str) -> None:
    assert loaded_by(f"import {names}", ("torch", "transformers", "trl", "datasets", "pyarrow", "numpy")) == []


@pytest.mark.parametrize(
    ("module", "refused"),
    [
        ("trl_rec.files", ("numpy", "torch", "transformers", "trl", "datasets", "pyarrow")),
        ("trl_rec.items.trie", ("transformers", "trl", "datasets", "pyarrow")),
        ("trl_rec.evaluation.metrics", ("torch", "transformers", "trl", "datasets", "pyarrow")),
        ("trl_rec.items.catalog", ("torch", "transformers", "trl", "datasets")),
        ("trl_rec.data.readers", ("torch", "transformers", "trl")),
    ],
)
def test_lower_layers_load_no_more_than_they_need(module: str, refused: tuple[str, ...]) -> None:
    assert loaded_by(f"import {module}", refused) == []


def test_no_module_imports_from_a_higher_layer() -> None:
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        mine = layer(module)
        assert mine is not None or module == "__init__", f"add {module} to LAYERS"
        for name in imports(path):
            theirs = layer(name)
            assert mine is None or theirs is None or theirs <= mine, f"{module} imports {name} from a higher layer"


@pytest.mark.parametrize(
    "line", ["import trl_rec.scripts", "from trl_rec import scripts", "from trl_rec.scripts import verbs"]
)
def test_every_form_of_importing_a_module_is_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(f"def f():\n    {line}\n")
    assert "scripts" in imports(tmp_path / "module.py")


def test_a_trainer_imports_no_trainer_of_another_method() -> None:
    """The trainer of a method imports nothing from the trainers of other methods. The exception is ALRO's rating
    stage, which is plain fine-tuning and therefore uses BEAR's trainer."""
    methods = {"bear", "alro", "blade", "softmax_dpo"}
    found = set()
    for path in (PACKAGE / "trainer").rglob("*.py"):
        folder = path.parent.name
        for name in imports(path):
            parts = name.split(".")
            if folder != "trainer" and parts[0] == "trainer" and set(parts[1:2]) & (methods - {folder}):
                found.add((folder, path.stem, parts[1]))
    assert found == {("alro", "rating", "bear")}


def test_each_package_is_in_setup_cfg() -> None:
    """If `setup.cfg` does not list a folder of the package, the wheel does not contain it."""
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    packages = set(setup["options"]["packages"].split())
    folders = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py")}
    assert packages - {"trl_rec.recipes"} == {".".join(folder.parts) for folder in folders}


def test_every_public_name_resolves() -> None:
    for name in dir(trl_rec):
        assert getattr(trl_rec, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        trl_rec.nothing  # noqa: B018


LOADING = """
import runpy, sys, trl
for path in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("trl_rec")]:
        del sys.modules[name]
    runpy.run_path(path)
"""


@pytest.mark.slow
def test_each_script_loads_what_it_needs(tmp_path: Path) -> None:
    """The package is imported afresh for each script, so a script fails if it relies on a module that only another
    script loads."""
    scripts = sorted([*(PACKAGE / "scripts").glob("*.py"), *(PACKAGE.parent / "examples").glob("*.py")])
    assert len(scripts) > 10
    subprocess.run([sys.executable, "-c", LOADING, *scripts], cwd=tmp_path, check=True)
