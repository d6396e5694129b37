"""Tests the locks of folders. Only one process at a time may write to a folder, and a lock must not outlive its
process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trl_rec.files import exclusive


# A program that locks a folder until the standard input of the program is closed. `meanwhile` is code that runs under
# the lock.
HOLD = """
import sys, os
from trl_rec.files import exclusive
with exclusive(sys.argv[1]):
    {meanwhile}
    print("locked", flush=True)
    sys.stdin.read()
"""
# A program that adds 1 to the number in a file, `rounds` times, each time under the lock.
COUNT = """
import sys
from pathlib import Path
from trl_rec.files import exclusive
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
while rounds:
    try:
        with exclusive(folder):
            number = int((folder / "number").read_text())
            (folder / "number").write_text(str(number + 1))
            rounds -= 1
    except ValueError as error:
        assert "is writing to" in str(error), error
"""


def python(code: str, *words: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


@contextmanager
def held(folder: Path, meanwhile: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """Starts another process that locks a folder, and kills the process at the end of the block."""
    with python(HOLD.format(meanwhile=meanwhile), folder) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_the_error_names_the_first_one(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder) as process:
        message = (
            rf"another process \({process.pid} on .+\) is writing to {re.escape(str(folder))}; wait until it ends"
        )
        with pytest.raises(ValueError, match=message), exclusive(folder):
            pass
        with exclusive(tmp_path / "another"):
            pass
        process.communicate()  # closes the input of the process, so that it releases the lock
    with exclusive(folder):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_holds_no_lock_and_the_next_process_removes_the_lock_file(tmp_path: Path) -> None:
    with held(tmp_path / "run") as process:
        process.kill()
        process.wait()
        assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]
        with exclusive(tmp_path / "run"):
            assert str(os.getpid()) in (tmp_path / ".run.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_outlives_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    fork = "child = os.fork(); child or (signal.pause(), os._exit(0)); print(child, flush=True)"
    with python("import signal\n" + HOLD.format(meanwhile=fork), tmp_path / "run") as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.stdout.readline()
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)  # the child is still running
            with exclusive(tmp_path / "run"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_forked_child_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    fork = "child = os.fork()\n    if not child:\n        exclusive(sys.argv[1]).__enter__(); os._exit(7)\n"
    fork += "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1"
    with python(HOLD.format(meanwhile=fork), tmp_path / "run", stderr=subprocess.PIPE) as process:
        output, errors = process.communicate()
    assert process.returncode == 0 and output.endswith("locked\n"), errors
    assert "is writing to" in errors


def test_a_forked_child_that_leaves_the_block_does_not_release_the_lock(tmp_path: Path) -> None:
    fork = "child = os.fork()\n    if not child:\n        sys.exit(7)\n    os.waitpid(child, 0)"
    with held(tmp_path / "run", fork), pytest.raises(ValueError, match="is writing to"), exclusive(tmp_path / "run"):
        pass


def test_the_same_process_may_lock_a_folder_twice(tmp_path: Path) -> None:
    with exclusive(tmp_path / "run"):
        with exclusive(tmp_path / "run"):
            pass
        refused = python(HOLD.format(meanwhile="pass"), tmp_path / "run", stderr=subprocess.PIPE)
        assert "is writing to" in refused.communicate()[1]


def test_an_exception_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "made" / "for" / "run"):
        raise KeyboardInterrupt
    with held(tmp_path / "made" / "for" / "run") as process:
        process.communicate()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run/.", "x/../run", "run/missing/..", "link"])
def test_all_names_of_a_folder_have_the_same_lock(tmp_path: Path, name: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with held(tmp_path / name), pytest.raises(ValueError, match="is writing to"), exclusive(tmp_path / "run"):
        pass


def test_the_lock_is_inside_the_folder_if_its_parent_is_not_writable(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with exclusive(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").is_file() and len(list(tmp_path.iterdir())) == 1
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path: Path, monkeypatch, caplog) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", fail)
    with exclusive(tmp_path / "run"):
        pass
    assert "run cannot be locked" in caplog.text


def test_no_two_processes_hold_a_lock_at_once(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    processes = [python(COUNT, tmp_path, 200) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "600"
