"""Parses the command line and the recipe (`--config`) of a verb (a subcommand of `trl-rec`) into dataclasses.

The parser is TRL's. A key on the command line overrides the same key of the recipe. An unknown key is an error.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from argparse import ArgumentTypeError
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, overload

from accelerate import PartialState
from trl import TrlParser

from trl_rec.compat import read_mappings
from trl_rec.ranges import check_ranges
from trl_rec.scripts.options.help_pages import print_help, wants_help
from trl_rec.scripts.options.recipe_files import checked_values, find_recipe, read_recipe
from trl_rec.scripts.verbs import LAUNCH, LAUNCH_KEYS, METHODS, TRAINING, VERBS
from trl_rec.trainer.base.config import RecConfig
from trl_rec.trainer.base.saving.output import default_output
from trl_rec.trainer.base.saving.recipe import given_values


T = TypeVar("T")
# Matches names of environment variables with secrets, but not TOKENIZERS_PARALLELISM.
SECRET = re.compile("token(?!izer)|key|secret|password", re.IGNORECASE)


@dataclass
class DataArguments:
    """Arguments for the data and for how items are written."""

    dataset: str = field(metadata={"help": "dataset folder, made by trl-rec prepare"})
    surface: str = field(
        default="item_token", metadata={"help": "how items are written: title, item_token or semantic_id"}
    )


@overload
def parse(kinds: type[T], argv: list[str], verb: str) -> T:
    """Returns an instance of the dataclass."""


@overload
def parse(kinds: tuple[type, ...], argv: list[str], verb: str) -> tuple[Any, ...]:
    """Returns a tuple with an instance of each dataclass."""


def parse(kinds: type | tuple[type, ...], argv: list[str], verb: str) -> Any:
    """Parses the arguments of a verb.

    Args:
        kinds: The dataclass to fill, or several that share the command line.
        argv: The words of the command line after the verb.
        verb: Name of the verb, used in messages.

    Returns:
        An instance of the dataclass, or a tuple with an instance of each.
    """
    # 1. Print the help if the words ask for it. This happens only in a script that was started directly, because
    # `trl-rec` prints the help without starting a script. Separate the recipe from the other words.
    if wants_help(argv):
        print_help(verb, argv)
        sys.exit()
    recipe, words = _split_config(argv)

    # 2. Parse. As in TRL, the values of the recipe become the parser's defaults. mypy would reject the
    # argument `all_kinds`, because TRL annotates the parser's parameter with a NewType, which no class matches.
    all_kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    parser = _Parser(
        all_kinds,  # type: ignore[arg-type]
        prog=f"trl-rec {verb}",
        description=VERBS.get(verb),
        allow_abbrev=False,
    )
    read_mappings(parser, json_mapping)
    if recipe is not None:
        _use_recipe(parser, all_kinds, recipe, launched=verb in TRAINING)
    parsed = parser.parse_args_into_dataclasses(args=words)

    # 3. Check that numbers are in their ranges.
    for arguments in parsed:
        check_ranges(arguments)

    # 4. In `resume_from_checkpoint`, "true" means the newest checkpoint, and "false" means none. The parser returns
    # strings, which the trainer would take for names of folders.
    for arguments in parsed:
        value = getattr(arguments, "resume_from_checkpoint", None)
        if value in ("true", "True", "false", "False"):
            arguments.resume_from_checkpoint = value in ("true", "True") or None

    # 5. Choose the name of the output folder if neither the recipe nor the command line sets it.
    if verb in METHODS:
        _name_output(parsed, METHODS[verb])
    return parsed if isinstance(kinds, tuple) else parsed[0]


def _name_output(parsed: tuple[Any, ...], method: str) -> None:
    """Sets `output_dir` to a name made of the model and the method, if it is not set."""
    models = [one.model_name_or_path for one in parsed if hasattr(one, "model_name_or_path")]
    for arguments in parsed:
        if isinstance(arguments, RecConfig) and "output_dir" not in arguments.given:
            vars(arguments)["output_dir"] = default_output(models[0] if models else None, method)


class _Parser(TrlParser):
    """TRL's parser, except that an invalid command line raises `ValueError` and does not print all options."""

    def error(self, message: str) -> NoReturn:
        """Raises `ValueError` with the message that argparse would print before exiting."""
        raise ValueError(message)


def _use_recipe(parser: TrlParser, kinds: tuple[type, ...], recipe: Path, *, launched: bool) -> None:
    """Sets the parser's defaults from a recipe, and the environment variables from the recipe's key `env`.

    `launched` is True for a verb that runs under `accelerate launch`. For such a verb, the keys in `LAUNCH_KEYS` are
    ignored, because `trl-rec` has already used them for the launch.
    """
    # 1. Read the recipe, and take out `env` and `LAUNCH_KEYS`, which are not options of the verb.
    values = read_recipe(recipe)
    if launched:
        values = {name: value for name, value in values.items() if name not in LAUNCH_KEYS}
    variables = values.pop("env", {})
    if not isinstance(variables, dict):
        raise ValueError(
            f"{recipe}: env must be a mapping from names of environment variables to values, not {variables!r}"
        )

    # 2. Check the values, and pass them to the parser.
    values = checked_values(kinds, values, recipe)
    unknown = parser.set_defaults_with_config(**values)[::2]  # the result alternates between unknown keys and values
    if unknown:
        raise ValueError(
            f"{recipe}: there is no key {unknown[0].removeprefix('--')!r}; {parser.prog} --help lists the keys"
        )
    os.environ.update({str(name): str(value) for name, value in variables.items()})


def parse_section(kind: type[T], section: dict[str, Any], name: str) -> T:
    """Fills a dataclass from a section of a recipe, under the same rules as [`parse`].

    Unknown keys are errors, and numbers that YAML reads as strings (`1e-3`) become numbers. A key without a value gets
    its default. The only exception is `max_length`: without a value, it becomes None, which means no limit.

    Args:
        kind: The dataclass.
        section: The keys and values of the section.
        name: Name of the section, for messages.
    """
    # 1. Check the keys.
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    unknown = [key for key in section if key not in known]
    if unknown:
        raise ValueError(f"{name}: there is no key {unknown[0]!r}; correct the key, or remove it")

    # 2. Write the section as a command line, and parse it.
    argv = []
    for key, value in checked_values((kind,), section, name, optional=True).items():
        if isinstance(value, list):
            argv += [f"--{key}", *map(str, value)] if value else []
        elif value is not None:
            argv += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    arguments = parse(kind, argv, name)

    # 3. Step 2 leaves out keys without a value. If `max_length` is one of these keys, set it to None.
    if "max_length" in section and section["max_length"] is None:
        vars(arguments)["max_length"] = None  # via vars(), because the type T does not declare the field
    return arguments


def given(argv: list[str], *arguments: Any) -> dict[str, Any]:
    """Returns what the file `recipe.yaml` of a run folder records in addition to the trainer's configuration.

    Args:
        argv: The words of the command line after the verb.
        arguments: The dataclasses that [`parse`] returned for these words, except the trainer's configuration.

    Returns:
        The fields that differ from their defaults, the environment variables of the recipe except secrets, and how
        `trl-rec` launched the verb.
    """
    launch = json.loads(os.environ.get(LAUNCH, "{}"))
    recipe, _ = _split_config(argv)
    variables = {} if recipe is None else read_recipe(recipe).get("env", {})
    shown = {name: value for name, value in variables.items() if not SECRET.search(str(name))}
    return {**given_values(*arguments), **launch, **({"env": shown} if shown else {})}


def _split_config(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Returns the recipe that `--config NAME` or `--config=NAME` names, if any, and the other words."""
    words = []
    for word in argv:
        words += word.split("=", 1) if word.startswith("--config=") else [word]
    if "--config" not in words:
        return None, words
    place = words.index("--config")
    if place == len(words) - 1:
        raise ValueError("--config needs a value; give a YAML file or the name of a shipped recipe")
    return find_recipe(words[place + 1]), words[:place] + words[place + 2 :]


def json_mapping(text: str) -> dict[str, Any] | None:
    """Parses a mapping written as JSON. On the command line, the nested keys of a recipe are written in this form.

    Returns None if the text is `none` or `null`.
    """
    if text.lower() in ("none", "null"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"'{text[:60]}' is not a mapping; write it as JSON, such as '{{\"codes\": 32}}'")
    return value


def show_progress() -> None:
    """Makes the main process log which part of a verb is running.

    Call this function after [`parse`], which chooses the device. This function creates a `PartialState`, whose device
    cannot be changed later.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("trl_rec").setLevel(logging.INFO if PartialState().is_main_process else logging.WARNING)
