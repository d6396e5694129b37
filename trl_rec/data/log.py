"""Defines the interface of readers: their `Options`, the `Log` that they return, and the base class `Reader`.

A reader reads the source files of one format. To support a new format, write a subclass of `Reader` in a file of its
own and add it to `READERS` in `trl_rec/data/readers/__init__.py`. No other code depends on the name of a format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa


SPLITS = ("train", "validation", "test")  # in chronological order


@dataclass(frozen=True)
class Options:
    """Options of all readers. [`Reader.options`] lists the options that a reader uses.

    Args:
        columns (`Mapping[str, str]`, *optional*): Maps our column names, such as `user_id`, to the column names of the
            source, in all tables.
        title_column (`str`, *optional*): The item column that contains the title.
        group_column (`str`, *optional*): The item column that contains the groups (genres, brands) of an item.
        group_separator (`str`, *optional*, defaults to `"|"`): Separates the groups of an item if they are given
            as text.
        timestamp_format (`str`, *optional*): Format of the timestamps, as in `datetime.strptime`.
        empty_ratings (`str`, *optional*, defaults to `"refuse"`): `"drop"` drops interactions without a rating;
            `"refuse"` raises a ValueError.
        event_column (`str`, *optional*): The column of the interactions that contains events, such as `purchase`.
        event_ratings (`Mapping[str, float | None]`, *optional*): Maps each event to a rating. Interactions whose
            event maps to None are dropped.
        seed (`int`, *optional*, defaults to `0`): Seed of generated data.
        toy_users (`int`, *optional*, defaults to `300`): Number of users to generate.
        toy_items (`int`, *optional*, defaults to `200`): Number of items to generate.
    """

    columns: Mapping[str, str] | None = None
    title_column: str | None = None
    group_column: str | None = None
    group_separator: str = "|"
    timestamp_format: str | None = None
    empty_ratings: str = "refuse"
    event_column: str | None = None
    event_ratings: Mapping[str, float | None] | None = None
    seed: int = 0
    toy_users: int = 300
    toy_items: int = 200


@dataclass(frozen=True, eq=False)
class Log:
    """The tables of a source. Their rows are checked.

    Interactions are not yet sorted or split. The reader has dropped only those that its options exclude (`left_out`).
    A source may consist of windows (rows with a history and one target) instead. Windows are already divided into
    splits.

    Args:
        names (`Mapping[str, str]`): File name of each table, for error messages.
        interactions (`pa.Table`, *optional*):
            `user_id` and `item_id` (strings, dictionary-encoded), `timestamp: double`, `row: int64` (the row number in
            the file, from 1), `rating: float` if there are ratings, and `exact_time: int64` (the unrounded timestamp,
            for sorting) if different timestamps may become equal when they are rounded to float64.
        windows (`dict[str, pa.Table]`, *optional*): One table for each of the splits "train", "validation" and "test".
            Each row is a window: its `item_ids` are a history, followed by the target. A reader that is `windowed`
            returns windows instead of `interactions`. The columns are `user_id: string, item_ids: list<string>,
            timestamp: double, row: int64` (the row number in the file, from 1).
        items (`pa.Table`, *optional*): `item_id: string, title: string`, any further columns, and `semantic_id:
            list<string>` if the source has semantic IDs. Without this table the item ids are used as titles.
        users (`pa.Table`, *optional*): `user_id: string` and any further columns.
        group_column (`str`, *optional*): The column of `items` that contains the groups of an item.
        notes (`tuple[str, ...]`): Remarks on the source, for the card of the dataset.
        left_out (`Mapping[str, int]`): Number of dropped interactions for each reason (such as `empty_ratings`).
    """

    names: Mapping[str, str]
    interactions: pa.Table | None = None
    windows: dict[str, pa.Table] | None = None
    items: pa.Table | None = None
    users: pa.Table | None = None
    group_column: str | None = None
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


class Reader(ABC):
    """Base class of the readers, one per format. A subclass overrides the attributes that differ from the defaults.

    Attributes:
        options (`frozenset[str]`): Names of the fields of [`Options`] that the reader uses. Setting any other
            field except `seed` is an error.
        windowed (`bool`): Whether the source contains windows that it has already assigned to the three splits. Such a
            source can be neither filtered nor split again.
        has_timestamps (`bool`): Whether the source has timestamps, which a split by time requires.
        license (`str`, *optional*): The licence of the data, if it is the same for every source of this format.
        needs_folder (`bool`): Whether the source must be a folder. If False, the name of the format can also be given
            as the source.
    """

    options: frozenset[str] = frozenset()
    windowed: bool = False
    has_timestamps: bool = True
    license: str | None = None
    needs_folder: bool = True

    @abstractmethod
    def find(self, folder: Path) -> dict[str, Path]:
        """Returns a dict that maps table names to the files in a folder.

        The dict is empty if the folder is not in this format.
        """

    @abstractmethod
    def read(self, files: dict[str, Path], options: Options) -> Log:
        """Reads the files returned by `find` or `fetch`."""

    def fetch(self) -> dict[str, Path]:
        """Returns a dict that maps table names to files, for a source given as the name of the format.

        Downloads missing files.

        The dict is empty if the reader needs no files.
        """
        return {}
