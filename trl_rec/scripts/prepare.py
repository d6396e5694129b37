"""`trl-rec prepare`: a log and a catalogue become a dataset folder."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field

import datasets

from trl_rec.data import prepare
from trl_rec.data.card import describe
from trl_rec.scripts.parsing import parse


@dataclass
class PrepareArguments:
    """Keys of a `prepare` recipe; see [`prepare`] for what each does."""

    source: str = field(metadata={"help": "folder of the source's files, or toy, or ml-100k"})
    output_dir: str = field(metadata={"help": "dataset folder to make"})
    format: str | None = field(
        default=None, metadata={"help": "table, recbole, bigrec, lcrec, ml-100k or toy; else found out"}
    )
    split: str | None = field(default=None, metadata={"help": "leave_one_out (default), leave_last or time"})
    num_held_out: int | None = field(
        default=None,
        metadata={"help": "split leave_last: items held out as test, and as many as validation; 10 by default"},
    )
    min_user_interactions: int = field(default=0, metadata={"help": "k-core: fewest interactions of a user"})
    min_item_interactions: int = field(default=0, metadata={"help": "k-core: fewest interactions of an item"})
    columns: dict | None = field(
        default=None, metadata={"help": "format table, in a recipe: our column names to yours"}
    )
    title_column: str | None = field(default=None, metadata={"help": "format recbole: the item column with titles"})
    group_column: str | None = field(default=None, metadata={"help": "item column with groups, such as genres"})
    group_separator: str = field(default="|", metadata={"help": "format table: what separates the groups of an item"})
    seed: int = field(default=0, metadata={"help": "seed of the toy log"})
    toy_users: int = field(default=300, metadata={"help": "users of the toy log"})
    toy_items: int = field(default=200, metadata={"help": "items of the toy log"})
    overwrite: bool = field(default=False, metadata={"help": "replace a dataset folder made otherwise"})


def main(argv: list[str]) -> None:
    """Prepares, and prints what the folder holds."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    datasets.disable_progress_bars()  # one a split and an instant long; the log tells the phases
    arguments = parse(PrepareArguments, argv, "prepare")
    dataset = prepare(**asdict(arguments))
    print(describe(dataset.card))
