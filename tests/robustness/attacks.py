"""Runs verbs of `trl-rec` on malformed inputs, called attacks. An attack defines the damage to the files, words for
the command line, and a part of the message that the user must see.

Each test module has tables of attacks on one kind of input, such as logs, recipes or run folders. `assert_refused`
checks that the verb prints one clear sentence instead of a traceback, exits with status 2, and leaves every file as it
was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from trl_rec.scripts.running import run
from trl_rec.scripts.verbs import SCRIPTS


@dataclass(frozen=True)
class Attack:
    """One malformed input.

    Args:
        name: The test's id.
        says: A part of the sentence that must be printed, such as the file or key and the remedy.
        damage: Changes files in the folder before the verb runs.
        words: Additional words on the command line of the verb.
    """

    name: str
    says: str
    damage: Callable[[Path], object] = lambda folder: None
    words: Sequence[str] = ()


def each(attacks: Sequence[Attack]) -> pytest.MarkDecorator:
    """Runs a test once per attack."""
    names = [attack.name for attack in attacks]
    assert len(set(names)) == len(names), "two attacks have the same name"
    return pytest.mark.parametrize("attack", attacks, ids=names)


def assert_refused(
    attack: Attack, verb: str, words: Sequence[str], folder: Path, capsys: pytest.CaptureFixture
) -> None:
    """Damages the folder, runs the verb in it, and checks that the verb refuses the input in one sentence.

    Args:
        attack: The attack.
        verb: The verb of `trl-rec`.
        words: The command line of the verb, to which the words of the attack are added.
        folder: The current directory while the verb runs.
        capsys: The fixture that captures what is printed.
    """
    attack.damage(folder)
    before = contents(folder)
    capsys.readouterr()

    # Run the script in this process, without `accelerate launch`. The message and the exit status are the same as in a
    # launched process.
    main = import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}").main
    with chdir(folder), pytest.raises(SystemExit) as ended:
        run(verb, main, [*words, *attack.words])

    printed = capsys.readouterr().err
    assert ended.value.code == 2, printed
    assert "Traceback" not in printed
    sentences = [line for line in printed.splitlines() if line.startswith(f"trl-rec {verb}:")]
    assert len(sentences) == 1 and printed.rstrip().endswith(sentences[0]), printed
    assert attack.says in sentences[0], sentences[0]
    assert contents(folder) == before, "the call wrote or removed files"


def contents(folder: Path) -> dict[str, str]:
    """Returns a hash of each file under a folder, including hidden files. Subfolders have an empty hash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file()
        found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else ""
    return found
