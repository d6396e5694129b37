"""Checks the documentation. Its programs and commands run. Commands that are not run name only verbs and options that
exist. Its links lead to files and headings that exist. The questions in `docs/tasks.md` are answered at most two
links away from the start page, `docs/index.md`.
"""

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest

from tests.pages import DOCS, ROOT, Block, blocks, commands, make_log, make_world, pages
from trl_rec import cli
from trl_rec.scripts.options import parsing
from trl_rec.scripts.verbs import SCRIPTS, TRAINING, VERBS


NUMBERS = (".safetensors", ".pt", ".pth", ".bin", ".arrow")  # files of weights, optimizer states and token ids
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
INLINE = re.compile(r"`(trl-rec [^`]+)`")
PROGRAMS = [block for page in [ROOT / "CONTRIBUTING.md", *pages()] for block in blocks(page, "python")]
COMMANDS = [block for page in pages() for block in blocks(page, "bash")]
WRITTEN = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "recipes/README.md")), *pages()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_world(folder)
    return folder


@pytest.mark.parametrize("block", [pytest.param(block, id=block.name) for block in PROGRAMS if block.reason is None])
def test_programs_run(block: Block, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    # A checkpoint contains the pickled configuration. Pickle looks in `__main__` for the classes that the
    # program defines.
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(block.text, block.name, "exec"), vars(module))


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Without this change, `trl-rec serve` would wait for requests.
    monkeypatch.setattr("trl_rec.serving.server._Server.run", lambda self, sockets: None)
    monkeypatch.setattr(cli, "launch", train_here)
    make_log(tmp_path)
    done: list[list[str]] = []
    for block in COMMANDS:
        for command in commands(block) if block.reason is None else ():
            if command not in done:
                run_command(block, command)
                done.append(command)
    assert len(done) >= 20

    # docs/privacy.md says which files contain user ids.
    assert names_users(tmp_path / "data/my-log/users.parquet")
    assert names_users(tmp_path / "recs.parquet")
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert len(kept) > 30
    assert [path for path in kept if names_users(path)] == []


def train_here(verb: str, argv: list[str]) -> None:
    """Runs a training verb for four steps in this process, instead of under `accelerate launch`."""
    import_module(f"trl_rec.scripts.{verb}").main([*argv, "--max_steps", "4"])


def run_command(block: Block, command: list[str]) -> None:
    """Runs a command. If it fails, the error names the page of the command."""
    try:
        cli.main(command)
    except BaseException as error:
        error.add_note(f"{block.name}: trl-rec {' '.join(command)}")
        raise


def names_users(path: Path) -> bool:
    """Returns whether a file contains the id of a user as a value of a table, or as text."""
    if path.suffix == ".parquet":
        columns = pq.read_table(path).to_pydict().values()
        return any(re.fullmatch(r"u\d+", value) for values in columns for value in values if isinstance(value, str))
    if path.suffix in NUMBERS:  # such a file may contain the bytes of a user id by chance
        return False
    return re.search(rb"\bu\d+\b", path.read_bytes()) is not None


class Found(Exception):
    """Raised to pass the parser of a verb to `options_of`."""


def options_of(verb: str) -> set[str]:
    """Returns the options of a verb."""

    def stop(parser: parsing._Parser, *arguments: object, **options: object) -> None:
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("argparse.ArgumentParser.parse_args", stop)
        patch.setattr(parsing._Parser, "parse_args_into_dataclasses", stop)
        with pytest.raises(Found) as found:
            import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}").main([])
    options = set(found.value.args[0]._option_string_actions) | {"--config"}
    return options | {f"--{key}" for key in parsing.LAUNCH_KEYS} if verb in TRAINING else options


def test_commands_name_verbs_recipes_and_options_that_exist() -> None:
    given = [(block.name, command) for block in COMMANDS for command in commands(block)]
    for page in WRITTEN:
        for line in INLINE.findall(page.read_text(encoding="utf-8")):
            given.append((str(page), line.split()[1:]))
    known = {verb: options_of(verb) for verb in VERBS}
    assert len(given) > 100
    for name, (verb, *words) in given:
        if verb in ("VERB", "--help"):
            continue
        assert verb in VERBS, f"{name}: there is no verb {verb}"
        unknown = {word for word in words if word.startswith("--")} - known[verb] - {"--help"}
        assert not unknown, f"{name}: trl-rec {verb} has no option {unknown}"
        recipes = [value for word, value in zip(words, words[1:], strict=False) if word == "--config"]
        for recipe in recipes:
            if "/" in recipe and not recipe.startswith(("runs/", "FOLDER/", "study/NAME")):
                parsing.find_recipe(recipe)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in WRITTEN])
def test_links_lead_to_existing_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for match in LINK.finditer(text):
        target, _, anchor = unquote(match["target"]).partition("#")
        if target.startswith(("http://", "https://")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub and MyST give to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_fifteen_questions_are_answered_within_two_links_of_the_start_page() -> None:
    start = (DOCS / "index.md").read_text(encoding="utf-8")
    tasks = (DOCS / "tasks.md").read_text(encoding="utf-8")
    assert "](tasks.md)" in start
    rows = re.findall(r"^\| (\d+)\. (.+?) \| (.+) \|$", tasks, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 16))
    assert all(LINK.search(answer) for _, _, answer in rows)


def test_the_start_page_lists_every_page() -> None:
    listed = {match["target"].partition("#")[0] for match in LINK.finditer((DOCS / "index.md").read_text("utf-8"))}
    assert {path.name for path in DOCS.glob("*.md")} - listed == {"index.md"}
    methods = (DOCS / "methods.md").read_text("utf-8")
    assert all(f"](methods/{path.name})" in methods for path in (DOCS / "methods").glob("*.md"))
