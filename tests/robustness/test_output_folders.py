"""Tests the verbs that write a folder. They must not lose data after a kill, on a full disk, or because of a second
writer, and must never delete the user's files."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import Work, run_alone
from tests.robustness import folder_runs
from tests.robustness.attacks import Attack, assert_refused, contents, each
from tests.robustness.kills import count_steps, draw_steps, kill_at
from tests.robustness.test_locks import held
from trl_rec.data import load, prepare
from trl_rec.data.preparation import preparing
from trl_rec.files import clean_up, exclusive
from trl_rec.scripts.running import run


VERBS = [folder_runs.prepare_again, folder_runs.tokenize_kmeans, folder_runs.tokenize_dual]


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a dataset with semantic IDs."""
    folder = tmp_path_factory.mktemp("start") / "data"
    folder_runs.make_start(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_killed_verb_ends_with_the_same_bytes(
    verb: Work, num_kills: int, start_folder: Path, tmp_path: Path
) -> None:
    # 1. Run the verb once without a kill, and count its steps (system calls that change files).
    whole = tmp_path / "whole" / "data"
    shutil.copytree(start_folder, whole)
    num_steps = count_steps(verb, whole)
    expected = contents(whole)

    # 2. Kill it, and run it again. The kill must lose no data, and the second run must leave no temporary files.
    for step in draw_steps(num_steps, num_kills):
        data = tmp_path / f"killed-{step}" / "data"
        shutil.copytree(start_folder, data)
        kill_at(verb, data, step)
        assert_one_version(data)
        run_alone(verb, data)
        assert contents(data) == expected, f"killed at step {step} of {num_steps}"
        left = {path.name for path in data.parent.iterdir()}
        assert left == {"data", "data.log"}, f"killed at step {step} of {num_steps}"


def assert_one_version(data: Path) -> None:
    """Checks that the old or the new version is complete. A folder is replaced in two renames. Between them, the old
    version has a hidden name."""
    hidden = list(data.parent.glob(".data.*.old"))
    load(data if data.exists() else hidden[0])


@pytest.mark.slow
def test_a_verb_that_is_killed_repeatedly_leaves_no_temporary_files(start_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(start_folder, data)
    count_steps(folder_runs.prepare_again, data)  # the first call takes more steps: it also removes semantic IDs
    num_steps = count_steps(folder_runs.prepare_again, data)
    expected = contents(data)
    for step in range(num_steps, num_steps - 8, -2):  # steps near the exchange of the folders
        kill_at(folder_runs.prepare_again, data, step)
        assert_one_version(data)
    run_alone(folder_runs.prepare_again, data)
    assert contents(data) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"data", "data.log", "data.steps"}


def write(name: str) -> Callable[[Path], object]:
    """Returns a function that writes a file of the user into a folder."""

    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")

    return damage


def link(name: str, target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).symlink_to(target)


NOT_A_DATASET = "mine exists and is not a dataset folder; choose another output_dir"
MINE = ["--output_dir", "mine"]
REPLACE = ["--overwrite", "true"]
FOLDERS = [
    Attack("a folder of the user's", NOT_A_DATASET, write("mine/thesis.tex"), MINE),
    Attack("a folder of the user's, overwrite", NOT_A_DATASET, write("mine/thesis.tex"), [*MINE, *REPLACE]),
    Attack("a hidden file", NOT_A_DATASET, write("mine/.thesis"), [*MINE, *REPLACE]),
    Attack("a path with a missing folder", NOT_A_DATASET, write("v/mine/x"), ["--output_dir", "v/typo/../mine"]),
    Attack(
        "a path with a missing folder, overwrite",
        NOT_A_DATASET,
        write("v/mine/x"),
        ["--output_dir", "v/typo/../mine", *REPLACE],
    ),
    Attack("a link to another folder", "exists and is not a dataset folder", link("mine", "."), MINE),
    Attack("a file", NOT_A_DATASET, write("mine"), MINE),
    Attack(
        "below a file", "mine is not a folder, so nothing can be written", write("mine"), ["--output_dir", "mine/data"]
    ),
    Attack("a link to itself", "leads back to itself; remove the link", link("mine", "mine"), MINE),
    Attack("a name of 300 letters", "File name too long", words=["--output_dir", "x" * 300]),
    Attack("no name", "output_dir is empty", words=["--output_dir", ""]),
    Attack("nowhere", "No such file or directory: '/proc", words=["--output_dir", "/proc/nowhere/data"]),
    Attack("another dataset", "set overwrite=True to replace it (in a shell: trl-rec prepare --overwrite true)"),
    Attack("a file in a dataset", "data also contains thesis.tex", write("data/thesis.tex"), REPLACE),
    Attack("a hidden file in a dataset", "data also contains .thesis", write("data/.thesis"), REPLACE),
    Attack("a file in a part of a dataset", "contains catalog/x.md", write("data/catalog/x.md"), REPLACE),
    Attack("a file beside vectors", "contains vectors/x.pt", write("data/vectors/x.pt"), REPLACE),
    Attack("a folder in a dataset", "contains mine", lambda folder: (folder / "data" / "mine").mkdir(), REPLACE),
    Attack("a link in a dataset", "data also contains mine", link("data/mine", "/"), REPLACE),
    Attack("a card of something else", "mine is damaged", write("mine/card.json"), [*MINE, *REPLACE]),
]


@each(FOLDERS)
def test_files_that_we_did_not_write_are_never_touched(
    attack: Attack, start_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(start_folder, tmp_path / "data")
    words = "--source toy --toy_users 31 --toy_items 50 --output_dir data".split()
    assert_refused(attack, "prepare", words, tmp_path, capsys)


def test_a_mounted_disk_is_no_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: True)
    with pytest.raises(ValueError, match="is a mount point, which cannot be replaced; choose a folder in it"):
        prepare("toy", tmp_path / "data")


@pytest.mark.parametrize("name", ["x" * 240, "\N{SNOWMAN}" * 80])
def test_a_long_name_is_accepted(name: str, tmp_path: Path) -> None:
    prepare("toy", tmp_path / name, toy_users=30, toy_items=50)
    prepare("toy", tmp_path / name, toy_users=31, toy_items=50, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["thesis.tex", "catalog/thesis.tex"])
def test_a_file_that_is_written_while_prepare_runs_is_kept(
    overwrite: bool, place: str, start_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    if overwrite:
        shutil.copytree(start_folder, data)
    before = contents(tmp_path)
    save = preparing.save

    def save_meanwhile(*given: object) -> None:
        save(*given)
        write(place)(data)

    monkeypatch.setattr(preparing, "save", save_meanwhile)
    message = "also contains .*thesis.tex, which would be deleted" if overwrite else "another program has written"
    with pytest.raises(ValueError, match=message):
        prepare("toy", data, toy_users=31, toy_items=50, overwrite=overwrite)
    assert (data / place).read_text() == "years of work"
    (data / place).unlink()
    if not overwrite:
        shutil.rmtree(data)
    assert contents(tmp_path) == before


def test_an_old_version_does_not_replace_a_new_folder(start_folder: Path, tmp_path: Path, caplog) -> None:
    """A verb was killed between the two renames that replace a folder. Then the user made a folder of that name."""
    data = tmp_path / "data"
    number = "0123456789abcdef" * 2
    shutil.copytree(start_folder, tmp_path / f".data.{number}.old")
    (tmp_path / f".data.{number}.tmp").mkdir()
    write("data/thesis.tex")(tmp_path)
    with exclusive(data):
        clean_up(data)
    assert (data / "thesis.tex").read_text() == "years of work"
    assert load(tmp_path / f"data-{number}").card and f"data were moved to {tmp_path}/data-{number}" in caplog.text
    assert len(list(tmp_path.iterdir())) == 2


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limits the size of files inside the block, as `ulimit -f` does, to simulate a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1000, 2000, 4000])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_no_data_are_lost_on_a_full_disk(
    verb: Work, size: int, start_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(start_folder, data)
    with largest_file(size), pytest.raises(SystemExit) as ended:
        run("verb", lambda argv: verb(data), [])
    printed = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and printed.startswith("trl-rec verb: ") and ".tmp" not in printed
    assert printed.endswith("cannot be written (File too large); free some space, or choose another disk")

    (data / "vectors").rmdir() if (data / "vectors").exists() else None
    assert contents(data) == contents(start_folder)
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_a_second_writer_is_refused(verb: Work, start_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(start_folder, data)
    before = contents(data)
    with held(data) as process:
        with pytest.raises(ValueError, match=rf"another process \({process.pid} on .*\) is writing to .*data; wait"):
            verb(data)
    assert contents(data) == before


def test_a_complete_folder_is_read_while_another_process_writes(start_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare("toy", data, toy_users=30, toy_items=50)
    with held(data):
        assert prepare("toy", data, toy_users=30, toy_items=50).users.num_rows == 30
