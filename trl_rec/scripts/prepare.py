"""`trl-rec prepare`: makes a dataset folder from an interaction log and a catalogue."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Annotated

import datasets

from trl_rec.data import prepare
from trl_rec.data.card import describe
from trl_rec.printing import printable_lines
from trl_rec.ranges import COUNT, COUNT_FROM_0, FINITE, SEED
from trl_rec.scripts.options.parsing import parse


@dataclass
class PrepareArguments:
    """Keys of a recipe for `trl-rec prepare`. The docstring of the function [`prepare`] explains them."""

    source: str = field(
        metadata={"help": "source folder, the name of a built-in source (toy or ml-100k), or hf://datasets/owner/name"}
    )
    output_dir: str = field(metadata={"help": "dataset folder to create"})
    format: str | None = field(
        default=None,
        metadata={"help": "table, recbole, bigrec, lcrec, ml-100k or toy; detected from the files if unset"},
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "leave_one_out (if unset), leave_last or time; refused for sources that contain a split, such as "
            "bigrec"
        },
    )
    num_held_out: Annotated[int | None, COUNT] = field(
        default=None,
        metadata={
            "help": "with split=leave_last: number of test items and of validation items per user; 10 if unset",
        },
    )
    min_user_interactions: Annotated[int, COUNT_FROM_0] = field(
        default=0,
        metadata={
            "help": "k-core: drop users with fewer interactions than this number, repeatedly, until all users and "
            "items have enough",
        },
    )
    min_item_interactions: Annotated[int, COUNT_FROM_0] = field(
        default=0,
        metadata={
            "help": "k-core: drop items with fewer interactions than this number, repeatedly, until all users and "
            "items have enough",
        },
    )
    columns: dict[str, str] | None = field(
        default=None,
        metadata={
            "help": "with format=table: JSON that maps the column names of trl-rec to yours, such as "
            '\'{"user_id": "customer"}\''
        },
    )
    title_column: str | None = field(
        default=None,
        metadata={"help": "with format=recbole: item column with the titles; if unset, found by its usual names"},
    )
    group_column: str | None = field(
        default=None, metadata={"help": "item column with groups, such as genres, to measure fairness and diversity"}
    )
    group_separator: str = field(default="|", metadata={"help": "separator between the groups of one item"})
    timestamp_format: str | None = field(
        default=None,
        metadata={"help": "format of the timestamps, such as %%d/%%m/%%Y; not needed for numbers and ISO 8601"},
    )
    event_column: str | None = field(
        default=None, metadata={"help": "column with events, such as view or purchase; requires event_ratings"}
    )
    event_ratings: Annotated[dict[str, float | None] | None, FINITE] = field(
        default=None,
        metadata={
            "help": 'rating of each event, as JSON: \'{"view": 2, "purchase": 5}\'; null drops the rows of an event'
        },
    )
    empty_ratings: str = field(
        default="refuse", metadata={"help": "interactions without a rating: refuse (an error) or drop"}
    )
    unknown_items: str = field(
        default="refuse",
        metadata={
            "help": "interactions with items that are not in the item table: refuse (an error), drop, or keep (only "
            "in histories, for models that still know the items)"
        },
    )
    repeats: str | None = field(
        default=None,
        metadata={
            "help": "repeated interactions of a user with an item: keep (all), first or last. If unset, all are kept, "
            "but it is an error if all targets of a split occur in the histories of their rows"
        },
    )
    license: str | None = field(
        default=None,
        metadata={
            "help": "licence of the data, such as cc-by-4.0; it decides whether the catalogue is pushed to the hub "
            "beside a model"
        },
    )
    seed: Annotated[int, SEED] = field(default=0, metadata={"help": "seed of the toy log"})
    toy_users: Annotated[int, COUNT] = field(default=300, metadata={"help": "number of users in the toy log"})
    toy_items: Annotated[int, COUNT] = field(default=200, metadata={"help": "number of items in the toy log"})
    overwrite: bool = field(
        default=False, metadata={"help": "make the dataset again, and replace an existing dataset folder"}
    )


KINDS = (PrepareArguments,)


def main(argv: list[str]) -> None:
    """Prepares the dataset, and prints what its folder contains."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    datasets.disable_progress_bars()  # there would be one per split, visible only for an instant

    arguments = parse(PrepareArguments, argv, "prepare")
    dataset = prepare(**asdict(arguments))
    print(printable_lines(describe(dataset.card)))
