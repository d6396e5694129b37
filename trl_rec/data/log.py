"""What a reader is asked for and what it gives back: one shape for every format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa


SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Options:
    """What the user may tell a reader; each reader names those it takes in its `OPTIONS`.

    Args:
        columns (`Mapping[str, str]`, *optional*): Our column names to the source's, for all of its tables.
        title_column (`str`, *optional*): The item column that is the title.
        group_column (`str`, *optional*): The item column that puts items in groups.
        group_separator (`str`, *optional*, defaults to `"|"`): What stands between the groups of one item, where they
            are text.
        seed (`int`, *optional*, defaults to `0`): Seed of made data.
        toy_users (`int`, *optional*, defaults to `300`): Users to make.
        toy_items (`int`, *optional*, defaults to `200`): Items to make.
    """

    columns: Mapping[str, str] | None = None
    title_column: str | None = None
    group_column: str | None = None
    group_separator: str = "|"
    seed: int = 0
    toy_users: int = 300
    toy_items: int = 200


@dataclass(frozen=True, eq=False)
class Log:
    """A source as it was read: checked row by row, not yet filtered, sorted or split.

    Args:
        names (`Mapping[str, str]`): File name of each table, for messages.
        interactions (`pa.Table`, *optional*):
            `user_id: string, item_id: string, timestamp: double` and perhaps `rating: float`.
        windows (`dict[str, pa.Table]`, *optional*): Instead of interactions, the rows of the splits "train", "test"
            and perhaps "validation", as the source made them: `user_id: string, item_ids: list<string>, timestamp:
            double, row: int64` (the row's number in its file, from 1).
        items (`pa.Table`, *optional*): `item_id: string, title: string`, further columns, perhaps `semantic_id:
            list<string>`. Without it titles are ids.
        users (`pa.Table`, *optional*): `user_id: string` and further columns.
        group_column (`str`, *optional*): Column of `items` that puts items in groups.
        timed (`bool`, *optional*, defaults to `True`): False where the timestamps are mere positions.
        notes (`tuple[str, ...]`): Sentences for the dataset's card.
    """

    names: Mapping[str, str]
    interactions: pa.Table | None = None
    windows: dict[str, pa.Table] | None = None
    items: pa.Table | None = None
    users: pa.Table | None = None
    group_column: str | None = None
    timed: bool = True
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """A module of `trl_rec.data.readers`."""

    OPTIONS: frozenset[str]

    def find(self, folder: Path) -> dict[str, Path]:
        """The format's files in the folder; empty where the folder holds something else."""

    def read(self, files: dict[str, Path], options: Options) -> Log:
        """The log in those files."""
