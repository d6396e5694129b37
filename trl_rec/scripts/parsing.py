"""The arguments of a verb: dataclasses filled from a recipe (`--config`) and from the command line.

TRL's own parser fills them, so the command line overrides any key of a recipe, and an unknown key is an error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

from accelerate import PartialState
from trl import TrlParser

import trl_rec
from trl_rec.compat import read_mappings
from trl_rec.printing import printable_lines
from trl_rec.ranges import check_ranges
from trl_rec.scripts.interrupts import Interrupts, end, handling, say_once
from trl_rec.scripts.recipe_files import checked_values, read_recipe
from trl_rec.scripts.verbs import TRAINING, VERBS


T = TypeVar("T")


@dataclass
class DataArguments:
    """The data, and how items are written."""

    dataset: str = field(metadata={"help": "dataset folder, made by trl-rec prepare"})
    surface: str = field(
        default="item_token", metadata={"help": "how items are written: title, item_token or semantic_id"}
    )


@overload
def parse(kinds: type[T], argv: list[str], verb: str) -> T:
    """One dataclass."""


@overload
def parse(kinds: tuple[type, ...], argv: list[str], verb: str) -> tuple[Any, ...]:
    """One dataclass of each kind."""


def parse(kinds: type | tuple[type, ...], argv: list[str], verb: str) -> Any:
    """Parses the arguments of a verb.

    Args:
        kinds: The dataclass to fill, or several that share the command line.
        argv: The words of the command line after the verb.
        verb: The verb, for messages.

    Returns:
        An instance of the dataclass, or a tuple with one of each.
    """
    # 1. Split the words into the recipe and the rest. "--config=NAME" is accepted too.
    words = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--config=") else [word]
    recipe: Path | None = None
    if "--config" in words:
        place = words.index("--config")
        if place == len(words) - 1:
            raise ValueError("--config needs a recipe: give a YAML file or the name of a shipped recipe after it")
        recipe = find_recipe(words[place + 1])
        del words[place : place + 2]

    # 2. Parse. The values of the recipe become the defaults, as TRL does it. TRL types its parameter as a NewType that
    # no class is an instance of.
    all_kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    parser = _Parser(
        all_kinds,  # type: ignore[arg-type]
        prog=f"trl-rec {verb}",
        description=VERBS.get(verb),
        allow_abbrev=False,
    )
    read_mappings(parser, json_mapping)
    if recipe is not None:
        _use_recipe(parser, all_kinds, recipe)
    parsed = parser.parse_args_into_dataclasses(args=words)

    # 3. Check the numbers.
    for arguments in parsed:
        check_ranges(arguments)

    # 4. "true" means the newest checkpoint. The parser reads it as text, and the trainer would look for such a folder.
    for arguments in parsed:
        if getattr(arguments, "resume_from_checkpoint", None) in ("true", "True"):
            arguments.resume_from_checkpoint = True
    return parsed if isinstance(kinds, tuple) else parsed[0]


class _Parser(TrlParser):
    """TRL's parser. A wrong command line is a `ValueError`, without the list of all options before it."""

    def error(self, message: str) -> NoReturn:
        """Raises the error that argparse would print before it exits."""
        raise ValueError(message)


def _use_recipe(parser: TrlParser, kinds: tuple[type, ...], recipe: Path) -> None:
    """Makes the values of a recipe the parser's defaults, and sets the environment variables in its `env`."""
    values = read_recipe(recipe)
    variables = values.pop("env", {})
    if not isinstance(variables, dict):
        raise ValueError(f"{recipe}: env must map names of environment variables to values, not {variables!r}")
    values = checked_values(kinds, values, recipe)

    unknown = parser.set_defaults_with_config(**values)[::2]
    if unknown:
        raise ValueError(
            f"{recipe}: there is no key {unknown[0].removeprefix('--')!r}; {parser.prog} --help lists the keys"
        )
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def parse_section(kind: type[T], section: dict[str, Any], name: str) -> T:
    """Fills a dataclass from a section of a recipe, by the rules of [`parse`].

    Unknown keys are errors, and numbers that YAML reads as text (`1e-3`) become numbers. A key without a value takes
    its default, except `max_length`, which is then unlimited.
    """
    argv = []
    for key, value in checked_values((kind,), section, name, optional=True).items():
        if isinstance(value, list):
            argv += [f"--{key}", *map(str, value)] if value else []
        elif value is not None:
            argv += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]

    arguments = parse(kind, argv, name)
    if "max_length" in section and section["max_length"] is None:
        vars(arguments)["max_length"] = None  # only some of these dataclasses have it
    return arguments


def json_mapping(text: str) -> dict[str, Any] | None:
    """Reads a mapping written as JSON. The command line takes it in place of a recipe's nested keys."""
    if text.lower() in ("none", "null"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text[:60]} is not a mapping; write it as JSON, such as '{{\"codes\": 32}}'")
    return value


def run(verb: str, main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs the `main` of a verb. A user's mistake becomes one sentence and exit status 2, an interrupt one line."""
    interrupts = Interrupts()
    try:
        with handling(interrupts):
            main(argv)
    except (Exception, KeyboardInterrupt) as error:
        is_interrupt = isinstance(error, KeyboardInterrupt)
        if is_interrupt or interrupts.number is not None:
            # Other errors may follow a signal, such as those of a process whose peers are gone.
            number = getattr(error, "number", None) or interrupts.number or signal.SIGINT
            end(verb, number, str(error) if is_interrupt else "", training=verb in TRAINING)
        if not isinstance(error, ValueError | OSError):
            raise
        say_once(printable_lines(f"trl-rec {verb}: {error}"))
        sys.exit(2)


def show_progress() -> None:
    """Lets the main process print which part of a verb runs.

    Call it after [`parse`], which chooses the device of the processes. `PartialState` cannot change it later.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("trl_rec").setLevel(logging.INFO if PartialState().is_main_process else logging.WARNING)


def find_recipe(name: str) -> Path:
    """The file of a recipe: `name` itself if there is such a file, else the shipped recipe (`prepare/ml-100k`)."""
    if Path(name).is_file():
        return Path(name)
    shipped = recipes_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    raise ValueError(f"there is no file and no recipe {name!r}; the shipped recipes are {', '.join(recipe_names())}")


def recipe_names() -> list[str]:
    """The names that `--config` accepts. Those under `accelerate/` are for `--accelerate_config` instead."""
    folder = recipes_folder()
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    return sorted(name for name in names if not name.startswith("accelerate/"))


def recipes_folder() -> Path:
    """The folder of the shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(trl_rec.__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"
