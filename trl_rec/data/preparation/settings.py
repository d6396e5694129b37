"""Collects the settings of `prepare` that affect the contents of a dataset. The dataset's card lists them.

A setting is refused if it would have no effect with the format of the source or with the split rule.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from trl_rec.data.log import Options
from trl_rec.data.readers import READERS
from trl_rec.ranges import COUNT


# Options that a card lists even if they are not set, provided that the reader uses them.
FIRST_OPTIONS = {"columns", "title_column", "group_column", "group_separator", "seed", "toy_users", "toy_items"}
LAYOUT = 1  # increased when existing dataset folders have to be prepared again


def split_settings(format: str, split: str | None, num_held_out: int | None) -> dict[str, Any]:
    """Returns the settings of the split: its rule, and `num_held_out` if the rule uses it."""
    reader = READERS[format]
    if reader.windowed:
        if split not in (None, "windows"):
            raise ValueError(_is_windowed(format))
        split = "windows"
    elif split not in (None, "leave_one_out", "leave_last", "time"):
        raise ValueError(f"unknown split {split!r}; choose leave_one_out, leave_last or time")
    split = split or "leave_one_out"
    if split == "time" and not reader.has_timestamps:
        raise ValueError("the source has no timestamps to split by; set split to leave_one_out or leave_last")

    if split == "leave_last":
        num_held_out = 10 if num_held_out is None else num_held_out
        COUNT.check("num_held_out", num_held_out)
        return {"split": split, "num_held_out": num_held_out}
    if num_held_out is not None:
        remedy = "leave it out" if reader.windowed else "leave it out, or set split to leave_last"
        raise ValueError(f"num_held_out has no effect with the split {split!r}; {remedy}")
    return {"split": split}


def source_settings(format: str, split: dict[str, Any], minima: dict[str, int], options: Options) -> dict[str, Any]:
    """Returns all settings that affect the contents of the dataset, except those of [`row_settings`].

    Raises ValueError if an option would have no effect.
    """
    reader = READERS[format]
    values = asdict(options)
    for name, default in asdict(Options()).items():
        # A seed is always allowed, because recipes pass the same seed to all commands.
        if name not in reader.options | {"seed"} and values[name] != default:
            raise ValueError(f"{name} has no effect with the format {format!r}; leave it out")
    if reader.windowed and max(minima.values()) > 0:
        raise ValueError(_is_windowed(format))
    # List newer options (those not in FIRST_OPTIONS) only if they are set. The settings in an older folder's card lack
    # these options, and must still be equal to the settings of a new call.
    used = {name: values[name] for name in sorted(reader.options) if name in FIRST_OPTIONS or values[name] is not None}
    used = {name: value for name, value in used.items() if name in FIRST_OPTIONS or value != "refuse"}
    return {"layout": LAYOUT, "format": format, **split, **minima, **used}


def row_settings(format: str, unknown_items: str, repeats: str | None) -> dict[str, Any]:
    """Returns the settings that determine which interactions are kept, except settings with their default value."""
    settings = {"unknown_items": unknown_items, "repeats": repeats}
    settings = {name: value for name, value in settings.items() if value not in (None, "refuse")}
    if settings and READERS[format].windowed:
        raise ValueError(
            f"{format} data is already split by its source, so its rows are used as they are; leave out "
            f"{' and '.join(settings)}"
        )
    return settings


def _is_windowed(format: str) -> str:
    """Returns the error message for settings that have no effect on a source that is already filtered and split."""
    return (
        f"{format} data is already filtered and split by its source; leave out split, min_user_interactions and "
        "min_item_interactions"
    )
