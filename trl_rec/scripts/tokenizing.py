"""`trl-rec tokenize`: the items of a dataset folder get semantic IDs."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field

from trl_rec.data import load
from trl_rec.scripts.parsing import parse
from trl_rec.semantic_ids import describe_ids, make_semantic_ids, read_ids_card


@dataclass
class TokenizeArguments:
    """Keys of a `tokenize` recipe; see [`make_semantic_ids`] for what each does."""

    dataset: str = field(metadata={"help": "dataset folder; the IDs go into its catalogue"})
    levels: int = field(default=3, metadata={"help": "codes of an ID"})
    codes: int = field(default=256, metadata={"help": "different codes of a level"})
    width: int = field(default=64, metadata={"help": "width of the item vectors"})
    window: int = field(default=5, metadata={"help": "largest distance of two items that count as near each other"})
    iterations: int = field(default=25, metadata={"help": "most rounds of k-means a level"})
    collisions: str = field(default="share", metadata={"help": "items that stay alike share an ID, or extend it by a token"})
    seed: int = field(default=0, metadata={"help": "seed of vectors and centroids"})
    overwrite: bool = field(default=False, metadata={"help": "replace IDs that were made otherwise"})


def main(argv: list[str]) -> None:
    """Makes the IDs, and prints their card."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = asdict(parse(TokenizeArguments, argv, "tokenize"))
    dataset = make_semantic_ids(load(options.pop("dataset")), **options)
    print(describe_ids(read_ids_card(dataset.path)))
