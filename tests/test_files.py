"""After a write, a file or folder is either complete or unchanged, even if the write has failed."""

from pathlib import Path

import pytest

from trl_rec import files
from trl_rec.files import atomic_file, atomic_folder, clean_up, temporary_folder, write_json, write_text


def entries(folder: Path) -> list[str]:
    """Returns all files and folders below a folder, including hidden ones."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_texts_and_json_are_written_in_utf_8_and_replace_what_was_there(tmp_path: Path) -> None:
    for text in ("old", "café\n"):
        write_text(tmp_path / "new" / "folder" / "text", text)
        assert (tmp_path / "new" / "folder" / "text").read_bytes() == text.encode()
    write_json(tmp_path / "a.json", {"name": "café", "ks": [5]})
    assert (tmp_path / "a.json").read_text() == '{\n  "name": "caf\\u00e9",\n  "ks": [\n    5\n  ]\n}\n'
    write_json(tmp_path / "a.json", {"name": "café"}, indent=None, ensure_ascii=False)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{"name": "café"}\n'
    assert entries(tmp_path) == ["a.json", "new", "new/folder", "new/folder/text"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("old", ["old", None])
def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, old: str | None, error: type) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half of the n")
        assert (path.read_text() if path.exists() else None) == old
        assert temporary.parent == tmp_path and temporary.name.startswith(".file.")
        raise error
    assert contents(tmp_path) == ({} if old is None else {"file": old})


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    fill(tmp_path, file="old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file"):
        pass
    assert contents(tmp_path) == {"file": "old"}


def test_two_writers_of_one_file_do_not_interfere(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file") as one, atomic_file(tmp_path / "file") as two:
        one.write_text("one")
        two.write_text("two")
    assert contents(tmp_path) == {"file": "one"}  # the outer block ends last


@pytest.mark.parametrize("there", [None, "empty", "full"])
def test_a_folder_gets_all_of_its_new_contents_and_keeps_no_old_contents(tmp_path: Path, there: str | None) -> None:
    path = tmp_path / "there" / "folder"
    if there:
        path.mkdir(parents=True)
        path.chmod(0o750)
    if there == "full":
        fill(path, old="1", both="1")
        (path / "inner").mkdir()

    with atomic_folder(path, check_old=lambda old: None) as folder:
        fill(folder, both="2", new="2")
        (folder / "inner").mkdir()
        fill(folder / "inner", deep="2")
        assert path.exists() == bool(there)

    assert entries(path) == ["both", "inner", "inner/deep", "new"] and (path / "both").read_text() == "2"
    assert [child.name for child in path.parent.iterdir()] == ["folder"]
    assert not there or path.stat().st_mode & 0o777 == 0o750


def test_without_a_check_only_an_empty_folder_is_filled(tmp_path: Path) -> None:
    fill(tmp_path / "folder", old="1")
    (tmp_path / "file").write_text("1")
    for name, problem in (("folder", "is not empty"), ("file", "is not a folder")):
        with pytest.raises(ValueError, match=f"{name} {problem}, perhaps because .* choose another folder"):
            with atomic_folder(tmp_path / name) as folder:
                fill(folder, new="2")
    assert entries(tmp_path) == ["file", "folder", "folder/old"] and (tmp_path / "file").read_text() == "1"


def test_a_failure_while_filling_leaves_the_old_folder_and_no_new_parents(tmp_path: Path) -> None:
    fill(tmp_path / "folder", old="1")
    for path in (tmp_path / "folder", tmp_path / "made" / "for" / "it"):
        with pytest.raises(OSError, match="no space left"), atomic_folder(path) as folder:
            fill(folder, new="2")
            raise OSError("no space left")
    assert entries(tmp_path) == ["folder", "folder/old"]


def test_the_old_folder_is_checked_where_nobody_can_write_to_it(tmp_path: Path) -> None:
    fill(tmp_path / "folder", old="1")

    def check(old: Path) -> None:
        assert contents(old) == {"old": "1"} and not (tmp_path / "folder").exists()
        raise ValueError("precious")

    with pytest.raises(ValueError, match="precious"), atomic_folder(tmp_path / "folder", check_old=check) as folder:
        fill(folder, new="2")
    assert entries(tmp_path) == ["folder", "folder/old"]


@pytest.mark.parametrize("renames", range(2))
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("after", [False, True])
def test_a_failure_while_exchanging_leaves_one_folder(
    tmp_path: Path, renames: int, error: type, after: bool, monkeypatch
) -> None:
    fill(tmp_path / "folder", a="1")
    rename, count = Path.rename, iter(range(99))

    def fail(path: Path, target: Path) -> Path:
        is_failing = next(count) == renames
        if not is_failing or after:
            rename(path, target)
        if is_failing:
            raise error("no luck")
        return target

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(error), atomic_folder(tmp_path / "folder", check_old=lambda old: None) as folder:
        fill(folder, a="2")
    monkeypatch.undo()
    assert contents(tmp_path / "folder") == {"a": "2" if after and renames else "1"}
    clean_up(tmp_path / "folder")
    assert entries(tmp_path) == ["folder", "folder/a"]


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_temporary_folder_is_removed_with_its_contents(tmp_path: Path, error: type | None) -> None:
    try:
        with temporary_folder(tmp_path / "work") as folder:
            fill(folder, taken="1", left="1")
            (folder / "taken").replace(tmp_path / "taken")
            if error:
                raise error
    except KeyError:
        pass
    assert entries(tmp_path) == ["taken"]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list of events in order: the name of each file or folder that is synced ("temporary" if the name is
    temporary), and "rename" for each renaming."""
    events: list[str] = []
    sync, rename, replace = files._sync, Path.rename, Path.replace

    def watch(path: Path) -> None:
        events.append("temporary" if files.is_temporary(path) else path.name)
        sync(path)

    def watch_rename(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    def watch_replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(files, "_sync", watch)
    monkeypatch.setattr(Path, "rename", watch_rename)
    monkeypatch.setattr(Path, "replace", watch_replace)
    return events


def test_a_file_reaches_the_disk_before_its_name(tmp_path: Path, synced: list[str]) -> None:
    write_text(tmp_path / "a.txt", "text")
    assert synced == ["temporary", "rename", tmp_path.name]


def test_the_contents_of_a_folder_reach_the_disk_before_its_name(tmp_path: Path, synced: list[str]) -> None:
    with atomic_folder(tmp_path / "new") as folder:
        fill(folder, a="1", b="2")
        fill(folder / "inner", c="3")
    place = synced.index("rename")
    assert sorted(synced[:place]) == ["a", "b", "c", "inner", "temporary"]
    assert synced[place:] == ["rename", tmp_path.name]
