"""`trl-rec study`: trains and compares the arms of a study, and measures each arm on the test split once per seed."""

from __future__ import annotations

import shlex
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from trl_rec.printing import printable_lines
from trl_rec.schedule.studies import Study, StudyConfig
from trl_rec.scripts.options.parsing import parse
from trl_rec.scripts.options.recipe_files import find_recipe, read_recipe
from trl_rec.scripts.verbs import SCRIPTS


KINDS = (StudyConfig,)


def main(argv: list[str]) -> None:
    """Runs the study, or continues it if it was interrupted."""
    config = parse(StudyConfig, argv, "study")
    study = Study(config, read_recipe=read_named, say=_say, command=shlex.join(["trl-rec", "study", *argv]))
    for title, verb, keys in study.recipes():
        check_keys(title, verb, keys)
    study.run()


def check_keys(title: str, verb: str, keys: dict[str, Any]) -> None:
    """Raises `ValueError` if a verb would not accept these keys.

    Args:
        title: Name of the run that has these keys, used in the message.
        verb: The verb.
        keys: All keys of the run.
    """
    kinds = import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}").KINDS
    with TemporaryDirectory() as folder:
        recipe = Path(folder) / f"{verb}.yaml"
        recipe.write_text(yaml.safe_dump(keys), encoding="utf-8")
        try:
            parse(kinds, ["--config", str(recipe)], verb)
        except ValueError as error:
            raise ValueError(f"{title}: {str(error).removeprefix(f'{recipe}: ')}") from error


def read_named(name: str) -> dict[str, Any]:
    """Returns the keys and values of a recipe. `name` is the path of its file, or the name of a shipped recipe."""
    return read_recipe(find_recipe(name))


def _say(line: str) -> None:
    """Prints a line without buffering, even if the output is a file."""
    print(printable_lines(line), flush=True)
