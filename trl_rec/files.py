"""Writes files and folders atomically: each is written under a temporary name, and renamed when it is complete.

If the process is killed or the power fails, a reader finds either the old content or the new content, never a mixture
or a part. There is one exception: while a new folder replaces an old one, neither has the final name for a moment. If
the process is killed at that moment, [`clean_up`] restores the old folder. When a write has ended without an error,
both the content and the name have reached the disk. A caller can therefore write one file last, as a mark that all
others are complete: if the mark exists, so do the other files.

Temporary files and folders are hidden, and are in the same folder as the final ones. They are called
`.NAME.<32 hex digits>.tmp`. A folder that is being replaced is briefly called `.NAME.<32 hex digits>.old`. Files and
folders with such names remain only if a process is killed, and [`clean_up`] removes or restores them.

[`exclusive`] prevents two processes from writing to the same folder.
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
_held: set[tuple[int, Path]] = set()  # (process id, locked folder); the id is needed because a fork copies the set


@contextmanager
def exclusive(folder: str | Path) -> Iterator[None]:
    """Locks a folder until the end of the block. Raises `ValueError` if another process holds the lock.

    The lock is on a hidden file beside the folder, or in the folder if its parent cannot be written to. The lock is
    released at the end of the block, or when the process ends, even if the process is killed. A process may nest
    blocks for the same folder. In a distributed run, only the main process may enter the block. On Windows, and on
    file systems without locks, nothing is locked.

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
            if os.getpid() == key[0]:  # a forked process that leaves the block must not remove its parent's lock
                file.unlink(missing_ok=True)
            os.close(descriptor)  # last, so that no other process locks a file that is about to be removed


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path for a new file. At the end, this file is renamed to `path`; on failure, it is removed.

    Missing parent folders are created. An existing file at `path` is replaced.
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
    """Atomically writes a JSON file, indented and with a newline at the end.

    Args:
        path: The file.
        content: Any value that `json.dumps` accepts.
        options: Passed to `json.dumps`. `indent` defaults to 2.
    """
    write_text(path, json_text(content, **options))


def json_text(content: Any, **options: Any) -> str:
    """Returns the text that [`write_json`] writes."""
    return json.dumps(content, **{"indent": 2, **options}) + "\n"


@contextmanager
def atomic_folder(path: str | Path, *, check_old: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yields a new folder to fill. At the end, the folder is renamed to `path`.

    On failure, `path` is unchanged, and parent folders that were created for it are removed.

    Args:
        path: The final path. If a folder exists there, it must be empty unless `check_old` is given.
        check_old (*optional*): Function that raises an error if the content of the old folder must not be deleted. The
            old folder is first moved to a temporary path, so that other programs no longer write to it. The function
            is called with this temporary path. If it raises an error, the old folder is moved back to `path`.
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
    """Yields a new folder beside `path`. The folder and everything left in it are removed at the end."""
    temporary = _temporary_name(Path(path))
    try:
        with explained(path):
            temporary.mkdir(parents=True)
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """If the block fails because the disk is full, raises an `OSError` that says so and suggests a remedy.

    The same applies if the block exceeds a disk quota or the maximum size of a file.

    Args:
        path: The file or folder that is being written, for the message.
    """
    try:
        yield
    except Exception as error:
        # Errors of pyarrow and safetensors contain the error number only in their message.
        in_text = re.search(r"\b(?:os error|errno) (\d+)", str(error))
        number = getattr(error, "errno", None) or (int(in_text[1]) if in_text else None)
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        problem = os.strerror(number)
        raise OSError(
            f"{_final(Path(path))} cannot be written ({problem}); free some space, or choose another disk"
        ) from error


def sync_folder(folder: str | Path) -> None:
    """Waits until everything in a folder has reached the disk, including the file names."""
    for path in Path(folder).rglob("*"):
        if path.is_file() or path.is_dir():
            _sync(path)
    _sync(Path(folder))


def leftovers(folder: str | Path) -> list[Path]:
    """Returns the temporary files and folders that killed processes have left beside and inside a folder.

    Leftovers beside the folder are returned only if they belong to this folder. Leftovers inside the folder are always
    returned.
    """
    folder = resolved(folder)
    beside = [path for path in _entries(folder.parent) if is_temporary(path, folder.name)]
    return [*beside, *filter(is_temporary, folder.rglob("*"))]


def clean_up(folder: str | Path) -> None:
    """Removes the leftovers of killed processes. Call this function inside [`exclusive`].

    If a process was killed after it had moved the old folder away and before the new folder had the final name, the
    old folder is put back. `.old` folders inside the folder are kept, because they may be the only copies of their
    contents.
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
    """Calls [`clean_up`] if a folder has leftovers. Does nothing if the folder is locked or cannot be written to."""
    if leftovers(folder):
        with suppress(ValueError, OSError), exclusive(folder):
            clean_up(folder)


def resolved(path: str | Path) -> Path:
    """Returns the absolute path without symbolic links and without `..`, even if a part before `..` does not exist."""
    try:
        return Path(path).resolve()
    except RuntimeError as error:
        raise ValueError(f"{path} is a symbolic link that leads back to itself; remove the link") from error


def is_temporary(path: Path, name: str | None = None) -> bool:
    """Returns whether a path has a temporary name of this module.

    Args:
        path: The path.
        name (*optional*): The final name that the temporary name must belong to. By default, any final name counts.
    """
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and (name is None or match["name"] == _short(name))


def _temporary_name(path: Path) -> Path:
    """Returns a path with a name that no other process uses, even on another machine that shares the folder."""
    return path.with_name(f".{_short(path.name)}.{uuid.uuid4().hex}.tmp")


def _short(name: str) -> str:
    """Truncates a name to 200 bytes, because a temporary name is 38 bytes longer and file systems allow 255 bytes."""
    return name.encode(errors="surrogateescape")[:200].decode(errors="ignore")


def _final(path: Path) -> Path:
    """Returns the path with every temporary name replaced by the final name."""
    matches = [TEMPORARY.fullmatch(part) for part in path.parts]
    return Path(*(part if match is None else match["name"] for part, match in zip(path.parts, matches, strict=True)))


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(path: Path) -> None:
    """Removes a file, or as much of a folder as possible."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, have reached the disk."""
    is_folder = path.is_dir()
    if sys.platform == "win32" and is_folder:
        return  # Windows cannot open a folder
    # Windows can sync a file only if the file is open for writing.
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _make_folder(path: Path) -> None:
    """Creates a folder and its parents, unless the folder exists."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{path} is not a folder, so nothing can be written into it; choose another folder"
        ) from error


@contextmanager
def _new_parents(path: Path) -> Iterator[None]:
    """Creates the missing parents of a path. At the end of the block, removes the created parents that are empty."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        _make_folder(path.parent)
        yield
        for parent in missing:
            _sync(parent.parent)
    finally:
        for parent in missing:  # from the innermost to the outermost
            with suppress(OSError):  # raised if the folder is not empty
                parent.rmdir()


@contextmanager
def _follow(path: Path) -> Iterator[None]:
    """Keeps the current directory valid when the block replaces the folder `path` by a new folder.

    If the current directory is `path` or a folder in it, the current directory is set to the new folder after the
    block.
    """
    try:
        is_inside = Path.cwd().is_relative_to(path)
    except FileNotFoundError:  # the current directory has been removed
        is_inside = False
    yield
    if is_inside:
        os.chdir(path)


def _place_folder(path: Path, new: Path) -> None:
    """Renames `new` to `path`. Raises `ValueError` if `path` is a file, or a folder that is not empty.

    The operating system checks this as part of the renaming, so no other process can write to `path` in between.
    """
    try:
        new.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        problem = "is not a folder" if error.errno == errno.ENOTDIR else "is not empty"
        raise ValueError(
            f"{path} {problem}, perhaps because another program has written to it; choose another folder (nothing was "
            "changed)"
        ) from error
    _sync(path.parent)


def _replace_folder(path: Path, new: Path, check_old: Callable[[Path], object]) -> None:
    """Replaces `path` by `new` in two renames. If the process is killed between them, `clean_up` undoes the first."""
    # 1. Move the old folder away, check it, and move the new folder to `path`.
    old = new.with_suffix(".old")
    try:
        path.rename(old)
        check_old(old)
        new.rename(path)
    except BaseException:
        if old.exists() and new.exists():  # not the case before the first rename or after the second one
            _put_back(old, path)
        raise

    # 2. Delete the old folder once the name of the new folder has reached the disk.
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _settle_old(old: Path, path: Path) -> None:
    """Removes or puts back an old folder that a killed process had moved away from `path`."""
    was_replaced = not old.with_suffix(".tmp").exists()  # the new folder has become `path`
    if was_replaced and _entries(path):
        _remove(old)
    else:
        _put_back(old, path)


def _put_back(old: Path, path: Path) -> None:
    """Renames an old folder back to `path`, or to a visible name if another program has written to `path`."""
    try:
        old.rename(path)
    except OSError:
        kept = path.with_name(f"{path.name}-{old.stem[-32:]}")
        old.rename(kept)
        logger.warning(
            "the previous contents of %s were moved to %s, because another program has written to %s", path, kept, path
        )


def _lock_file(folder: Path) -> Path:
    """Returns the path of the file to lock in place of the folder.

    The file is normally beside the folder, because the folder may not exist yet. If the folder exists and its parent
    cannot be written to, the file is inside the folder.
    """
    if folder.is_dir() and not os.access(folder.parent, os.W_OK):
        return folder / ".lock"
    return folder.with_name(f".{_short(folder.name)}.lock")


def _lock(file: Path, folder: Path) -> int:
    """Creates and locks the file. Returns its descriptor; closing the descriptor releases the lock.

    Child processes do not inherit a lock of `lockf`, unlike a lock of `flock`. A child process that outlives this
    process therefore does not keep the folder locked. On a file system without locks, the file is created, and a
    warning is logged.
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
            logger.warning("%s cannot be locked, so do not let two processes write to it: %s", folder, error)
            return descriptor

        # The previous holder may have removed the file after this process opened it. Other processes would then lock a
        # new file of the same name.
        if _is_open_at(descriptor, file):
            break
        os.close(descriptor)

    # Write the process id and the machine into the file, for the message that other processes raise above. Errors are
    # ignored, because a full disk must not prevent locking.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f" ({os.getpid()} on {platform.node()})".encode())
    return descriptor


def _is_open_at(descriptor: int, file: Path) -> bool:
    """Returns whether the path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
