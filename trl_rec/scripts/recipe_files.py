"""Reads recipes: YAML files whose keys are the options of a verb.

A recipe may be malformed in any way. It is then refused in one sentence, before any of it is used.
"""

from __future__ import annotations

import json
from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml


MOST_VALUES = 10_000  # of a recipe, when every alias is written out; a few lines of aliases can stand for 10^9 values
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "empty"}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Reads a recipe. Raises `ValueError` where the file is not a YAML mapping from texts to plain values."""
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
        raise ValueError(f"{path} is not a text in UTF-8: {_one_line(error)}; name a YAML file") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply; a recipe has keys, and lists or mappings as values") from error
    except (ValueError, TypeError, OverflowError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path} has a value that YAML cannot read: {_one_line(error)}; write it in quotes"
        ) from error

    if not isinstance(content, dict):
        raise ValueError(f"{path} is no recipe: it must contain a mapping, such as 'seed: 1'; name a recipe")
    return content


def _check_node(path: str | Path, node: yaml.Node | None) -> None:
    """Raises where aliases make a recipe too large or endless, where a key is no text, or where it is given twice."""
    if node is None:
        return
    if _size(node, {}, set()) > MOST_VALUES:
        raise ValueError(
            f"{path} has more than {MOST_VALUES} values, or an alias (*name) that contains itself; write a shorter "
            "recipe, without aliases"
        )
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
            raise ValueError(f"{place}: the key {key.value} is given twice; leave one of the two out")
        seen.add(key.value)


def _size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """The number of values below a node when every alias is written out. A node below itself has `MOST_VALUES`."""
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
    """The values of a recipe for the fields of some dataclasses. Raises `ValueError` where a value has a wrong type.

    A text may stand for a number or a flag, since the parser reads both from the command line too. A number for a
    field of text becomes a text, and a single text for a list of texts becomes a list. Unknown keys are left to the
    parser.

    Args:
        kinds: The dataclasses.
        values: The keys and values of the recipe.
        place: The file or section, for messages.
        optional: Whether a key may have no value, whatever its type.
    """
    hints: dict[str, Any] = {}
    for kind in kinds:
        known = get_type_hints(kind)
        hints |= {field.name: known[field.name] for field in fields(kind)}
    if "resume_from_checkpoint" in hints:
        hints["resume_from_checkpoint"] = str | bool | None  # transformers declares a text, and documents true as well

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
    """A number as a text, or a text as a list of one text, where the hint is for these; anything else as it is."""
    if isinstance(value, int | float) and not isinstance(value, bool) and _fits(str(value), hint, may_be_text=False):
        return str(value)
    if isinstance(value, str) and _fits([value], hint):
        return [value]
    return value


def _fits(value: object, hint: Any, *, may_be_text: bool = True) -> bool:
    """Whether a value has the type of a hint. Hints that are not known here fit anything."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part, may_be_text=may_be_text) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(one, get_args(hint)[0], may_be_text=False) for one in value)
    if origin is dict or hint is dict:
        # The parser reads a text as JSON.
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
    """What a hint allows, in words."""
    origin = get_origin(hint)
    parts = get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, parts)))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is list:
        return f"a list, each entry {_words(parts[0])}"
    if origin is dict or hint is dict:
        return "a mapping"
    return WORDS.get(hint, "a word")


def _shown(value: object) -> str:
    """A value for a message, on one line and not too long."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        text = str(type(value).__name__)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
