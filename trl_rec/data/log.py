"""What every reader has in common: the options it is given, the `Log` it returns, and the base class `Reader`.

To support a new format, write a subclass of `Reader` in a file of its own and add it to `READERS` in
`trl_rec/data/readers/__init__.py`. Nothing else asks for a format by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa


SPLITS = ("train", "validation", "test")  # in time order


@dataclass(frozen=True)
class Options:
    """Options of a reader. Each reader lists the ones it uses in [`Reader.options`].

    Args:
        columns (`Mapping[str, str]`, *optional*): Our column names to the source's, for all of its tables.
        title_column (`str`, *optional*): The item column that contains the title.
        group_column (`str`, *optional*): The item column that puts items into groups.
        group_separator (`str`, *optional*, defaults to `"|"`): Separates the groups of one item where they are text.
        timestamp_format (`str`, *optional*): How timestamps are written, in the notation of `datetime.strptime`.
        empty_ratings (`str`, *optional*, defaults to `"refuse"`): `"drop"` leaves interactions without a rating out.
        event_column (`str`, *optional*): The column of the interactions that contains events, such as `purchase`.
        event_ratings (`Mapping[str, float | None]`, *optional*): The rating of each event. Interactions with an event
            whose rating is None are left out.
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
    """The tables of a source, checked row by row, but not yet filtered, sorted or split.

    Args:
        names (`Mapping[str, str]`): File name of each table, for messages.
        interactions (`pa.Table`, *optional*):
            `user_id: string, item_id: string, timestamp: double`, `row: int64` (the row's number in its file, from 1),
            `rating: float` if there are ratings, and `exact_time: int64` if float64 merges some timestamps.
        windows (`dict[str, pa.Table]`, *optional*): Given instead of interactions by readers that are `windowed`: the
            rows of the splits "train", "validation" and "test", with `user_id: string, item_ids: list<string>,
            timestamp: double, row: int64` (the row's number in its file, from 1).
        items (`pa.Table`, *optional*): `item_id: string, title: string`, any further columns, and `semantic_id:
            list<string>` if the source has semantic IDs. Without this table the ids serve as titles.
        users (`pa.Table`, *optional*): `user_id: string` and any further columns.
        group_column (`str`, *optional*): The column of `items` that puts items into groups.
        notes (`tuple[str, ...]`): Sentences for the dataset's card.
        left_out (`Mapping[str, int]`): Number of interactions that were left out on request, by reason.
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
    """Reads one format. The attributes describe the format; a subclass sets those that differ.

    Attributes:
        options (`frozenset[str]`): The fields of [`Options`] that the reader uses. Setting any other is an error.
        windowed (`bool`): Whether the source has already cut its log into windows and split them, so that it can be
            neither filtered nor split again.
        has_timestamps (`bool`): Whether a split by time makes sense.
        needs_folder (`bool`): Whether the user has to name a folder. If not, the format's name is a source by itself.
    """

    options: frozenset[str] = frozenset()
    windowed: bool = False
    has_timestamps: bool = True
    needs_folder: bool = True

    @abstractmethod
    def find(self, folder: Path) -> dict[str, Path]:
        """The format's files in a folder, by table; empty if the folder is not in this format."""

    @abstractmethod
    def read(self, files: dict[str, Path], options: Options) -> Log:
        """The log in the files that `find` or `fetch` returned."""

    def fetch(self) -> dict[str, Path]:
        """The files of a source that needs no folder, downloaded if necessary; empty if it needs no files either."""
        return {}
