"""Arguments of a verb: a dataclass filled from `--config`, a YAML file or a shipped recipe's name, and from the
command line.

This is TRL's own parser, so unknown keys are errors and any key of a recipe can be overridden.
"""

from __future__ import annotations

import json
import logging
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from trl import TrlParser

import trl_rec
from trl_rec.compat import read_mappings


def parse(kinds: type | tuple[type, ...], argv: list[str], verb: str) -> Any:
    """The verb's arguments: an instance of the dataclass, or of each of several."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" in argv[:-1]:
        place = argv.index("--config") + 1
        argv[place] = str(find_recipe(argv[place]))
    several = kinds if isinstance(kinds, tuple) else (kinds,)
    # TRL types its parameter as a NewType that no class is an instance of
    parser = TrlParser(several, prog=f"trl-rec {verb}", allow_abbrev=False)  # type: ignore[arg-type]
    read_mappings(parser, json_mapping)
    parsed = parser.parse_args_and_config(argv)
    for one in parsed:
        if getattr(one, "resume_from_checkpoint", None) in (
            "true",
            "True",
        ):  # text to the parser, a folder to the trainer
            one.resume_from_checkpoint = True
    return parsed if isinstance(kinds, tuple) else parsed[0]


def json_mapping(text: str) -> dict[str, Any] | None:
    """What a recipe writes as a mapping, as JSON on the command line."""
    if text.lower() in ("none", "null"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text} is no mapping; write it as JSON, such as '{{\"codes\": 32}}'")
    return value


def parse_section(kind: type, section: dict[str, Any], name: str) -> Any:
    """A dataclass from a section of a recipe, as `parse` makes one of the whole: unknown keys are errors, and numbers
    that YAML took for text (`1e-3`) are numbers. A key without a value has its default, but for `max_length`, which is
    then unbounded."""
    argv = []
    for key, value in section.items():
        if isinstance(value, list):
            argv += [f"--{key}", *map(str, value)] if value else []
        elif value is not None:
            argv += [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
    made = parse(kind, argv, name)
    if section.get("max_length", 0) is None:
        made.max_length = None
    return made


def run(verb: str, main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a verb's `main`; what the user got wrong becomes one sentence and exit status 2."""
    try:
        main(argv)
    except (ValueError, OSError) as error:
        print(f"trl-rec {verb}: {error}", file=sys.stderr)
        sys.exit(2)


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside the installed package, or beside it in a checkout."""
    package = Path(trl_rec.__file__).parent
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def tell_progress() -> None:
    """From here on one process says which part of a verb runs. Comes after `parse`, which decides what processes
    compute on."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("trl_rec").setLevel(logging.INFO if PartialState().is_main_process else logging.WARNING)


def find_recipe(name: str) -> Path:
    """The file itself where `name` is one, else the shipped recipe of that name (`prepare/ml-100k`)."""
    if Path(name).is_file():
        return Path(name)
    shipped = recipes_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    raise ValueError(f"there is no file and no recipe {name!r}; the shipped recipes are {', '.join(recipe_names())}")


def recipe_names() -> list[str]:
    """The names that `--config` takes; those under `accelerate/` are for `--accelerate_config`."""
    names = (
        path.relative_to(recipes_folder()).with_suffix("").as_posix() for path in recipes_folder().rglob("*.yaml")
    )
    return sorted(name for name in names if not name.startswith("accelerate/"))
