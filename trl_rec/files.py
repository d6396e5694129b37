"""Files and folders that are complete or absent: written under a temporary name, then renamed.

A process may be killed at any moment. A reader, or the call that resumes, then sees the old content or the new one,
never a part of it. Contents reach the disk before the rename, so that this holds after a power cut too. The rename
itself is not forced to disk: after a power cut the old content may be back.

Names of temporary files and folders are hidden, random, and in the same folder, since a rename between file systems
is not atomic. They are removed on failure; only a process that is killed leaves one behind.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path to write to; it becomes `path` at the end, and is removed on failure.

    Folders that are missing are made. A file called `path` is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
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
def atomic_folder(path: str | Path, *, mark: str | None = None) -> Iterator[Path]:
    """Yields a new folder to fill; its contents become those of `path` at the end.

    On failure `path` is as it was, and parents that were made for it are gone. A folder that exists is emptied and
    filled by one rename per entry. A process that is killed between these renames leaves the old entries in a hidden
    folder beside `path`.

    Args:
        path: The folder. If it exists, all that it contains is deleted.
        mark (*optional*): Name of the file by which readers recognise a complete folder. It is the first to leave and
            the last to arrive.
    """
    path = Path(path)
    new_parents = [parent for parent in path.parents if not parent.exists()]
    try:
        with temporary_folder(path) as temporary:
            yield temporary

            # The contents are on the disk before any rename.
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                _exchange(path, temporary, mark)
            else:
                temporary.rename(path)
    finally:
        for parent in new_parents:  # the innermost first
            with suppress(OSError):  # it is not empty
                parent.rmdir()


@contextmanager
def temporary_folder(path: str | Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, removed at the end with all that is still in it."""
    temporary = _temporary_name(Path(path))
    try:
        temporary.mkdir(parents=True)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    """A name that no other process uses, even on another machine that shares the folder."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _sync(file: Path) -> None:
    """Waits until a file's content is on the disk."""
    with file.open("rb+") as opened:  # writable, as fsync requires on Windows
        os.fsync(opened.fileno())


def _exchange(folder: Path, new: Path, mark: str | None) -> None:
    """Replaces everything in `folder` by everything in `new`; a failure leaves `folder` as it was.

    The folder itself stays, since it may be the current directory of a process.
    """
    old = _temporary_name(folder)
    old.mkdir()
    leaving = sorted(folder.iterdir(), key=lambda path: path.name != mark)
    arriving = sorted(new.iterdir(), key=lambda path: path.name == mark)
    moves = [(path, old / path.name) for path in leaving] + [(path, folder / path.name) for path in arriving]

    # Move the entries one by one, and all of them back should one of them fail.
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        old.rmdir()  # raises rather than delete anything, should an entry not have come back
        raise
    shutil.rmtree(old, ignore_errors=True)
