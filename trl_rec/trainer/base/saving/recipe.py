"""Writes `recipe.yaml`, which contains the options that differ from their defaults, so that a run can be repeated.

`trl-rec VERB --config RUN/recipe.yaml --output_dir OTHER` trains the same weights on the same machine, with the same
package versions and the same numbers of processes and threads. The recipe contains neither secrets nor options for
files of earlier runs, such as `overwrite`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trl_rec.files import write_text


if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RECIPE = "recipe.yaml"
# Keys that are left out, because they are secret or are about files of earlier runs.
NOT_REPEATED = ("overwrite", "overwrite_ids", "resume_from_checkpoint", "hub_token", "push_to_hub_token")


def given_values(*configs: DataclassInstance) -> dict[str, Any]:
    """Returns the fields of dataclass instances that differ from their defaults, as values that YAML can store.

    Fields without a default are returned as well. Values that YAML cannot store, such as objects, are left out.
    """
    given = {}
    for config in configs:
        for option in fields(config):
            default = option.default if option.default_factory is MISSING else option.default_factory()
            value = getattr(config, option.name)
            is_default = default is not MISSING and value in (default, _as_parsed(default))
            if option.init and not is_default and _is_plain(plain := _plain(value)):
                given[option.name] = plain
    return given


def write_recipe(folder: str | Path, verb: str, recipe: Mapping[str, Any]) -> None:
    """Writes `recipe.yaml` into a run folder.

    Args:
        folder: The run folder.
        verb: The subcommand of `trl-rec` that takes the recipe.
        recipe: The keys of the recipe, with values as returned by [`given_values`].
    """
    kept = {name: value for name, value in recipe.items() if name not in NOT_REPEATED}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=119)
    head = f"# Repeats this run: trl-rec {verb} --config {RECIPE} --output_dir ANOTHER_FOLDER\n"
    write_text(Path(folder) / RECIPE, head + text)


def _as_parsed(default: object) -> object:
    """Returns the value that the command line's parser turns a default into: None for "", and False for "no"."""
    return {"": None, "no": False}.get(default, default) if isinstance(default, str) else default


def _plain(value: object) -> object:
    """Converts enumerations, paths and tuples to values that YAML can store, also inside lists and mappings."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value


def _is_plain(value: object) -> bool:
    """Returns whether YAML can store a value."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    return value is None or type(value) in (str, int, float, bool)
