"""The rated lists that a run learns from and is measured by, as its configuration asks for them; a list that does not
fit the prompt is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datasets import Dataset

from trl_rec.data.dataset import RecDataset, at_most, split_rows
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.trainer.alro.rows import build_rated_rows, held_out_rows


if TYPE_CHECKING:
    from trl_rec.trainer.alro.config import AlroConfig


def training_lists(split: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """The lists of a training split."""
    rows = build_rated_rows(
        split, num_candidates=args.num_candidates, stride=args.stride, max_history=args.max_history
    )
    return _that_fit(rows, prompt_format, args)


def ranked_lists(split: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    """The lists of a validation or test split; a user whose candidates are all rated alike has none."""
    rows = held_out_rows(split, num_candidates=args.num_candidates, max_history=args.max_history)
    return _that_fit(rows, prompt_format, args)


def check_rankable(dataset: RecDataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> None:
    """Raises now what would end a run after hours: a split that cannot be learned from, or that cannot be ranked."""
    training_lists(dataset.train, prompt_format, args)
    ranked_lists(at_most(args.max_users, dataset.validation), prompt_format, args)
    ranked_lists(dataset.test, prompt_format, args)


def _that_fit(rows: Dataset, prompt_format: RatedPromptFormat, args: AlroConfig) -> Dataset:
    prompt_format.check_lengths(
        split_rows(rows, "candidates"), args.max_length, f"list {{row}} of the {rows.split} split"
    )
    return rows
