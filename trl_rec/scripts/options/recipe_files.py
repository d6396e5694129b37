"""Finds and reads recipes: YAML files whose keys are the options of a verb, such as `trl-rec bear`.

A malformed recipe raises an error with a message of one sentence, before any value of the recipe is used.
"""

from __future__ import annotations

import json
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


# Maximum number of values in a recipe after its aliases are expanded. A few lines of aliases can expand to 10^9
# values.
MOST_VALUES = 10_000
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", NoneType: "empty"}


def find_recipe(name: str) -> Path:
    """Returns the file of a recipe: `name` if this file exists, or else the shipped recipe of that name.

    The name of a shipped recipe is its path below `recipes/`, without the suffix, such as `prepare/ml-100k`.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = recipes_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    raise ValueError(
        f"{name!r} is neither a file nor a shipped recipe; the shipped recipes are {', '.join(recipe_names())}"
    )


def recipe_names() -> list[str]:
    """Returns the names of shipped recipes, without the files in `accelerate/`, which are not recipes of a verb."""
    folder = recipes_folder()
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    return sorted(name for name in names if not name.startswith("accelerate/"))


def recipes_folder() -> Path:
    """Returns the folder of the shipped recipes, which is in the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[2]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Reads a recipe. Raises `ValueError` if the file is not a YAML mapping from strings to plain values."""
    # 1. Read the file. Each kind of error gets a message that says what to correct.
    try:
        with Path(path).open(encoding="utf-8") as file:
            loader = yaml.SafeLoader(file)
            try:
                node = loader.get_single_node()
                _check_node(path, node)
                content = None if node is None else loader.construct_document(node)
            finally:
                loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{path}{place}: {error.problem or error.context}; correct the YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {_one_line(error)}; give a YAML file") from error
    except RecursionError as error:
        raise ValueError(
            f"{path} is nested too deeply; write options and their values, without deep nesting"
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path} contains a value that YAML cannot read: {_one_line(error)}; write the value in quotes"
        ) from error

    # 2. Check that the file contains a mapping.
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is not a recipe, because it does not contain a mapping such as 'seed: 1'; give a recipe"
        )
    return content


def _check_node(path: str | Path, node: yaml.Node | None) -> None:
    """Raises `ValueError` if the recipe is too large or endless after its aliases are expanded.

    Also raises `ValueError` if a key at the top level is repeated or not a string.
    """
    # 1. Check the size.
    if node is None:
        return
    if _size(node, {}, set()) > MOST_VALUES:
        raise ValueError(
            f"{path} contains more than {MOST_VALUES} values, or an alias (*name) that contains itself; write a "
            "shorter recipe without aliases"
        )

    # 2. Check the keys. A recipe that is not a mapping is refused later.
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, _ in node.value:
        place = f"{path}, line {key.start_mark.line + 1}"
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            raise ValueError(f"{place}: a key must be the name of an option; correct the key")
        if key.value in seen:
            raise ValueError(f"{place}: the key {key.value!r} occurs twice; remove one of the two")
        seen.add(key.value)


def _size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """Returns the number of values in a node with its aliases expanded.

    A node that contains itself has infinitely many values, so it counts as more than `MOST_VALUES`.

    Args:
        node: The node.
        known: Maps the `id` of a node to its size, for sizes that have been computed already. New sizes are added.
        above: The `id` of every node that contains `node`.
    """
    if id(node) in above:
        return MOST_VALUES + 1
    if id(node) not in known:
        above.add(id(node))
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        known[id(node)] = 1 + sum(_size(child, known, above) for child in children)
        above.remove(id(node))
    return known[id(node)]


def checked_values(
    kinds: tuple[type, ...], values: dict[str, Any], place: str | Path, *, optional: bool = False
) -> dict[str, Any]:
    """Checks the values of a recipe against the types of dataclass fields, and returns the values by key.

    Raises `ValueError` if a value has the wrong type. The following values are allowed or converted:

    - A string is accepted for a number, a flag or a mapping, because the parser converts it, as on the command line.
      In a list of numbers or flags, strings are not accepted.
    - A number is converted to a string if the field is a string.
    - A single string is converted to a list if the field is a list of strings.
    - The value of an unknown key is returned unchanged, because the parser reports unknown keys later.

    Args:
        kinds: The dataclasses.
        values: The keys and values of the recipe.
        place: The file or section, used in messages.
        optional: Whether every key may be left empty, even if its field does not allow `None`.
    """
    # 1. Collect the types of the fields.
    hints: dict[str, Any] = {}
    for kind in kinds:
        known = get_type_hints(kind)
        hints |= {field.name: known[field.name] for field in fields(kind)}
    if "resume_from_checkpoint" in hints:
        hints["resume_from_checkpoint"] = str | bool | None  # transformers declares a string, but also documents true

    # 2. Convert and check the values.
    checked = {}
    for key, value in values.items():
        hint = hints.get(key, Any)
        if not _fits(value, hint):
            value = _as_text(value, hint)
        if not _fits(value, hint) and not (optional and value is None):
            raise ValueError(f"{place}: {key} must be {_words(hint)}, not {_shown(value)}")
        checked[key] = value
    return checked


def _as_text(value: object, hint: Any) -> object:
    """Converts a number to a string, or a string to a list of one string, if the result matches the hint.

    Any other value is returned unchanged.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and _fits(str(value), hint, may_be_text=False):
        return str(value)
    if isinstance(value, str) and _fits([value], hint):
        return [value]
    return value


def _fits(value: object, hint: Any, *, may_be_text: bool = True) -> bool:
    """Returns whether a value matches a type hint. A hint of a kind that is not handled here matches any value.

    If `may_be_text` is True, the hints `int`, `float` and `bool` also match a string.
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part, may_be_text=may_be_text) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0], may_be_text=False) for one in value)
    if origin is dict or hint is dict:
        # The parser reads a string as JSON.
        return (isinstance(value, dict) and all(isinstance(key, str) for key in value)) or isinstance(value, str)

    if hint in (int, float, bool) and isinstance(value, str):
        return may_be_text
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, NoneType):
        return isinstance(value, hint)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return isinstance(value, str)
    return True


def _words(hint: Any) -> str:
    """Describes in words which values a type hint allows."""
    origin = get_origin(hint)
    parts = get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, parts)))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is list:
        return f"a list (each entry {_words(parts[0])})"
    if origin is dict or hint is dict:
        return "a mapping"
    return WORDS.get(hint, "a string")


def _shown(value: object) -> str:
    """Returns a value as it is shown in a message: on one line, with at most 60 characters."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = str(type(value).__name__)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    """Returns the message of an error without line breaks."""
    return " ".join(str(error).split())
