"""Files and folders that are complete or absent: written under a temporary name, then renamed.

A process may be killed, or the power may fail, at any moment. A reader, or the next call, then finds the old content
or the new content, never a part of it. When a function here returns, content and name are on the disk, so a mark that
is written last is never found without what it vouches for.

Temporary files and folders are hidden, and lie beside what they become: `.NAME.<32 hex digits>.tmp`. A folder that is
being replaced is called `.NAME.<32 hex digits>.old` for a moment. Only a process that is killed leaves such names
behind, and [`clean_up`] removes them.

[`exclusive`] keeps two processes from writing to one folder.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{32}\.(tmp|old)")
_held: set[tuple[int, Path]] = set()  # folders that this process has locked; with its id, since a fork copies the set


@contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Inside the block, no other process can enter `exclusive` for the same folder; it raises instead.

    The lock is that of a hidden file beside the folder. It ends with the process, however the process ends. The same
    process may enter again, for a part of its work. Among processes that work together, only the main process may
    enter. On Windows, and on file systems without locks, nothing is locked.

    Args:
        folder: The folder. It need not exist.
    """
    folder = resolved(folder)
    key = (os.getpid(), folder)
    if key in _held or sys.platform == "win32":
        yield
        return

    with _new_parents(folder):
        file = _lock_file(folder)
        descriptor = _lock(file, folder)
        _held.add(key)
        try:
            yield
        finally:
            _held.remove(key)
            file.unlink(missing_ok=True)
            os.close(descriptor)  # last, so that nobody locks a file that is about to be removed


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to; the file becomes `path` at the end, and is removed on failure.

    Folders that are missing are made. A file called `path` is replaced.
    """
    path = Path(path)
    _make_folder(path.parent)
    temporary = _temporary_name(path)
    try:
        with explained(path):
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, **options: Any) -> None:
    """Writes a JSON file, indented and with a newline at its end, atomically.

    Args:
        path: The file.
        content: What `json.dumps` accepts.
        options: Passed to `json.dumps`; `indent` is 2 by default.
    """
    write_text(path, json.dumps(content, **{"indent": 2, **options}) + "\n")


@contextmanager
def atomic_folder(path: str | Path, *, check_old: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yields a new folder to fill, which becomes `path` at the end.

    On failure `path` is as it was, and parents that were made for it are gone.

    Args:
        path: The folder. If it exists, it has to be empty, unless `check_old` is given.
        check_old (*optional*): Called with the old folder when its path no longer leads to it, so that its contents
            cannot change any more. Raises if they must not be deleted; the old folder is then put back.
    """
    path = resolved(path)
    with _new_parents(path), temporary_folder(path) as new:
        yield new
        sync_folder(new)
        if path.is_dir():
            shutil.copymode(path, new)
        with _follow(path):
            if check_old is not None and path.exists():
                _replace_folder(path, new, check_old)
            else:
                _place_folder(path, new)


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, removed at the end with all that is still in it."""
    temporary = _temporary_name(Path(path))
    try:
        with explained(path):
            temporary.mkdir(parents=True)
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """If the disk is full while `path` is written, raises an `OSError` that says so, whichever library was writing."""
    try:
        yield
    except Exception as error:
        # pyarrow and safetensors give the number of the error in their texts alone.
        in_text = re.search(r"\b(?:os error|errno) (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(in_text[1]) if in_text else None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        problem = os.strerror(number)
        raise OSError(
            f"{_final(Path(path))} cannot be written ({problem}); make room, or choose another disk"
        ) from error


def sync_folder(folder: str | Path) -> None:
    """Waits until everything in a folder is on the disk, names included."""
    for path in Path(folder).rglob("*"):
        if path.is_file() or path.is_dir():
            _sync(path)
    _sync(Path(folder))


def leftovers(folder: str | Path) -> list[Path]:
    """What killed processes have left in a folder, and beside it on the way to becoming the folder."""
    folder = resolved(folder)
    beside = [path for path in _entries(folder.parent) if is_temporary(path, folder.name)]
    return [*beside, *filter(is_temporary, folder.rglob("*"))]


def clean_up(folder: str | Path) -> None:
    """Removes the leftovers of killed processes. Call it inside [`exclusive`].

    If a process was replacing the folder, and the folder is missing, the old folder is put back.
    """
    folder = resolved(folder)
    found = leftovers(folder)
    for path in found:
        if path.suffix == ".old" and path.parent == folder.parent:
            _settle_old(path, folder)
    for path in found:
        if path.suffix == ".tmp":
            _remove(path)


def tidy(folder: str | Path) -> None:
    """Calls [`clean_up`] if there are leftovers, unless another process is writing to the folder or nobody may."""
    if leftovers(folder):
        with suppress(ValueError, OSError), exclusive(folder):
            clean_up(folder)


def resolved(path: str | Path) -> Path:
    """The absolute path without symbolic links and without `..`; of `missing/../folder`, that is `folder`."""
    try:
        return Path(path).resolve()
    except RuntimeError as error:
        raise ValueError(f"{path} is a symbolic link that leads back to itself; remove the link") from error


def is_temporary(path: Path, name: str | None = None) -> bool:
    """Whether a path has a name that only this module gives, on the way to the final `name` (by default, to any)."""
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and (name is None or match["name"] == _short(name))


def _temporary_name(path: Path) -> Path:
    """A name that no other process uses, even on another machine that shares the folder."""
    return path.with_name(f".{_short(path.name)}.{uuid.uuid4().hex}.tmp")


def _short(name: str) -> str:
    """The beginning of a long name: a file system takes 255 bytes, of which a temporary name needs 38 more."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="ignore")


def _final(path: Path) -> Path:
    """The path with final names in place of temporary ones."""
    matches = [TEMPORARY.fullmatch(part) for part in path.parts]
    return Path(*(part if match is None else match["name"] for part, match in zip(path.parts, matches, strict=True)))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until a file's content is on the disk; for a folder, until the names in it are."""
    is_folder = path.is_dir()
    if sys.platform == "win32" and is_folder:
        return  # Windows cannot open a folder, and syncs a file only if it may be written to
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def _make_folder(path: Path) -> None:
    """Makes a folder and its parents, unless it exists."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path} is no folder, so nothing can be written into it; choose another folder") from error


@contextmanager
def _new_parents(path: Path) -> Iterator[None]:
    """Makes the parents of a path, and at the end removes those that were made and are empty."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        _make_folder(path.parent)
        yield
        for parent in missing:
            _sync(parent.parent)
    finally:
        for parent in missing:  # the innermost first
            with suppress(OSError):  # it is not empty
                parent.rmdir()


@contextmanager
def _follow(path: Path) -> Iterator[None]:
    """If a folder is replaced inside the block, and the process is in it, the process enters the new one."""
    try:
        is_inside = Path.cwd().is_relative_to(path)
    except FileNotFoundError:  # the current directory has been removed
        is_inside = False
    yield
    if is_inside:
        os.chdir(path)


def _place_folder(path: Path, new: Path) -> None:
    """Renames `new` to `path`. Raises if there is anything, looking and renaming in one step."""
    try:
        new.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise ValueError(
            f"{path} was empty at first, but something else has written to it; nothing was changed, choose another "
            "folder"
        ) from error
    _sync(path.parent)


def _replace_folder(path: Path, new: Path, check_old: Callable[[Path], object]) -> None:
    """Replaces `path` by `new` in two renames. After a kill between them, `clean_up` puts the old folder back."""
    # 1. Move the old folder away, and look at it.
    old = new.with_suffix(".old")
    try:
        path.rename(old)
        check_old(old)
        new.rename(path)
    except BaseException:
        if old.exists() and new.exists():  # an interrupt may come before the first rename, or after the second
            _put_back(old, path)
        raise

    # 2. Delete it once the disk knows the new one.
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _settle_old(old: Path, path: Path) -> None:
    """Decides about an old folder that was moved away from `path` by a process that was killed."""
    was_replaced = not old.with_suffix(".tmp").exists()  # the new folder has become `path`
    if was_replaced and _entries(path):
        _remove(old)
    else:
        _put_back(old, path)


def _put_back(old: Path, path: Path) -> None:
    """Renames an old folder to `path` again; if another program has written there, to a name that is not hidden."""
    try:
        old.rename(path)
    except OSError:
        kept = path.with_name(f"{path.name}-{old.stem[-32:]}")
        old.rename(kept)
        logger.warning("what was in %s is in %s now, because another program has written to %s", path, kept, path)


def _lock_file(folder: Path) -> Path:
    """The file whose lock stands for the folder. It is beside the folder, which may not exist yet; or in it, if files
    can be made only there."""
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        return folder / ".lock"
    return folder.with_name(f".{_short(folder.name)}.lock")


def _lock(file: Path, folder: Path) -> int:
    """Makes and locks the file. Returns the descriptor that holds the lock.

    The lock belongs to the process, not to the descriptor (as with `flock`), so a child that outlives the process does
    not keep it.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise ValueError(
                f"another process{holder} is writing to {folder}; wait until it ends, or choose another folder"
            ) from error
        except OSError as error:
            logger.warning("%s is not protected against a second process: %s", folder, error)
            return descriptor

        # The holder before may have removed the file after we opened it; others would then lock another file.
        if _is_open_at(descriptor, file):
            break
        os.close(descriptor)

    # For the message above. A full disk must not matter.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f" ({os.getpid()} on {platform.node()})".encode())
    return descriptor


def _is_open_at(descriptor: int, file: Path) -> bool:
    """Whether the path still leads to the file that is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
