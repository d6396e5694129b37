"""Prints `trl-rec VERB --help`, which lists the keys (options) of a verb by group, with their defaults.

The keys are read from `keys.json`, which `keys.py` writes, so only the standard library and the list of verbs are
imported. With `--help_all`, the help also describes the keys of TRL and Transformers that are usually left out. This
takes longer, because TRL is imported.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import TypeAlias, TypedDict

from trl_rec.scripts.verbs import LAUNCH_KEYS, TRAINING, VERBS


class Key(TypedDict):
    """Describes a key for the help.

    Args:
        value (`str`): Placeholder for the value, such as `N`.
        default (`str` or `None`): The default value. "" if the key is optional and there is no value to show; None if
            the key is required.
        help (`str`): What the key does.
    """

    value: str
    default: str | None
    help: str


Groups: TypeAlias = dict[str, dict[str, Key]]  # the keys of a verb, by group and name

KEYS = Path(__file__).parent / "keys.json"
HELP = ("-h", "--help")
HELP_ALL = "--help_all"
COLUMN = 30  # the column in which the descriptions of the keys begin
WIDEST = 120  # maximum width of the help
ARGUMENTS = {"compare": "RUN [RUN ...]"}  # words that the usage line of a verb shows before the keys
LAUNCHER: dict[str, Key] = dict(
    zip(
        LAUNCH_KEYS,
        (
            Key(value="N", default="", help="number of processes; one per device by default"),
            Key(
                value="NAME",
                default="",
                help="configuration of accelerate: a file, or one of cpu, ddp, zero2, zero3 and fsdp2",
            ),
        ),
        strict=True,
    )
)


def wants_help(words: list[str]) -> bool:
    """Returns whether the words of a command line ask for help."""
    return any(word in (*HELP, HELP_ALL) for word in words)


def print_help(verb: str, words: list[str]) -> None:
    """Prints the help of a verb.

    Args:
        verb: A verb with keys in `keys.json`.
        words: The words after the verb. With `--help_all`, all keys are printed.
    """
    everything = HELP_ALL in words
    if everything:
        from trl_rec.scripts.options.keys import describe_verb

        groups = describe_verb(verb, everything=True)
    else:
        groups = json.loads(KEYS.read_text(encoding="utf-8"))[verb]
    width = min(shutil.get_terminal_size().columns, WIDEST)
    print(help_text(verb, groups, width, everything=everything))


def help_text(verb: str, groups: Groups, width: int, *, everything: bool = False) -> str:
    """Returns the help of a verb.

    Args:
        verb: The verb.
        groups: The keys to describe.
        width: Number of columns.
        everything: Whether `groups` contains the keys of TRL and Transformers that are usually left out.
    """
    # 1. Show how to call the verb.
    usage = " ".join(
        filter(None, ["usage: trl-rec", verb, ARGUMENTS.get(verb), "[--config RECIPE] [--KEY VALUE ...]"])
    )
    text = (
        "RECIPE is a YAML file, or the name of a shipped recipe ('trl-rec recipe' lists the names). In a recipe, keys "
        "are written without the dashes, and the key 'env' is a mapping of environment variables to set. Keys on the "
        "command line override the recipe. On the command line, mappings are written as JSON."
    )
    lines = [usage, "", *_wrapped(f"{VERBS[verb][0].upper()}{VERBS[verb][1:]}.", width), "", *_wrapped(text, width)]

    # 2. Describe the keys.
    for title, keys in groups.items():
        lines += ["", f"{title}:"]
        for name, key in keys.items():
            lines += _key_lines(name, key, width)

    # 3. Describe the keys of the launcher, and name the option that describes all other keys.
    if verb in TRAINING:
        lines += ["", "launcher (the verb runs under accelerate launch):"]
        for name, key in LAUNCHER.items():
            lines += _key_lines(name, key, width)
        if not everything:
            more = f"All other keys of TRL and Transformers work too; trl-rec {verb} {HELP_ALL} describes them."
            lines += ["", *_wrapped(more, width)]
    return "\n".join(lines)


def _key_lines(name: str, key: Key, width: int) -> list[str]:
    """Returns the lines that describe a key: its name in the left column, and the text in the right column."""
    value = key["value"] if len(key["value"]) <= COLUMN else "NAME"
    head = f"  --{name} {value}"
    default = key["default"]
    end = "(required)" if default is None else f"(default: {default})" if default else ""
    lines = textwrap.wrap(f"{key['help']} {end}".strip(), width - COLUMN, break_on_hyphens=False) or [""]
    indented = [f"{'':{COLUMN}}{line}".rstrip() for line in lines]
    if len(head) < COLUMN - 1:
        return [f"{head:<{COLUMN}}{lines[0]}".rstrip(), *indented[1:]]
    return [head, *indented]


def _wrapped(text: str, width: int) -> list[str]:
    """Returns a paragraph as lines."""
    return textwrap.wrap(text, width, break_on_hyphens=False)
