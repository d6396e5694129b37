"""Writes one list of recommended items per user. A test launches several processes that run this together."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import PartialState

from trl_rec import Recommender, load
from trl_rec.decoding import ItemFilter
from trl_rec.serving import UserHistories, write_lists


def write_all(data: Path, run: Path, output: Path) -> None:
    """Writes one list per user, in parts of 8 users, with at most two items per genre. Processes that are launched
    together share the work."""
    PartialState(cpu=True)
    torch.set_num_threads(1)
    output.mkdir(exist_ok=True)
    recommender = Recommender.from_pretrained(run, device="cpu")
    given = UserHistories.of_dataset(load(data))
    write_lists(
        recommender, given, output / "lists.parquet", 5, one_filter=ItemFilter(max_per={"genres": 2}), part_size=8
    )
