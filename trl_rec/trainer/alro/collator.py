"""Batches of rated lists, each shown in one or two orders of its candidates.

The orders are drawn here, by (seed, epoch, row): a new epoch shows new ones, and a resumed run the same as one that
was left alone.

Legend: B lists, S orders of the same candidates, m candidates of the longest list, P tokens of the longest history, C
of the longest list with its answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from trl_rec.decoding.candidates.orders import draw_gold_rank, draw_slots
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.ragged import Ragged, join


@dataclass
class RatedListCollator(TrainerCallback):
    """Writes rows of [`build_rated_rows`] as prompts and answers. As a callback it learns which epoch begins.

    Args:
        prompt_format (`RatedPromptFormat`): How they are written.
        pad_token_id (`int`): Fills what is padded.
        num_orders (`int`, *optional*, defaults to `2`): Orders in which each list is shown.
        ends (`bool`, *optional*, defaults to `False`): Whether EOS is learned after the last candidate.
        max_length (`int`, *optional*): Most tokens of history, list and answer; the oldest history goes first.
        seed (`int`, *optional*, defaults to `0`): Chooses the orders.
    """

    prompt_format: RatedPromptFormat
    pad_token_id: int
    num_orders: int = 2
    ends: bool = False
    max_length: int | None = None
    seed: int = 0
    # Shared with the workers of a data loader, which may outlive an epoch.
    epoch: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Comes before the epoch's first batch is made; a run that is resumed begins within an epoch."""
        self.epoch.fill_(int(state.epoch))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`prompt_ids prompt_mask (B, P)`: histories; `completion_ids completion_mask answer_mask (B, S, C)`: lists
        and answers; `names (B, S, m)`: the token that each candidate has in each order; `ratings gold_rank
        candidate_mask (B, m)`."""
        candidates, ratings = _column(rows, "candidates", np.int64), _column(rows, "ratings", np.float32)
        keys = [(self.seed, int(self.epoch), row["row"]) for row in rows]
        gold_rank: list[Any] = [draw_gold_rank(ratings[list_], key) for list_, key in enumerate(keys)]
        slots: list[Any] = []
        for count, key in zip(candidates.lengths, keys, strict=True):
            slots += [*draw_slots(count, self.num_orders, key)]
        several = np.repeat(np.arange(len(rows)), self.num_orders)
        shown, names = self.prompt_format.show(candidates.take(several), Ragged.from_lists(slots))
        answers = self._answers(names, gold_rank)
        prompts = self._histories(rows, shown.lengths + answers.lengths)
        completions, is_answer = join(shown, answers), join(_full(shown, 0), _full(answers, 1))
        split = (len(rows), self.num_orders, -1)
        return {
            "prompt_ids": _tensor(prompts, self.pad_token_id, left=True),
            "prompt_mask": _tensor(_full(prompts, 1), 0, left=True).bool(),
            "completion_ids": _tensor(completions, self.pad_token_id).view(split),
            "completion_mask": _tensor(_full(completions, 1), 0).bool().view(split),
            "answer_mask": _tensor(is_answer, 0).bool().view(split),
            "names": _tensor(names, self.pad_token_id).view(split),
            "ratings": _tensor(ratings, 0),
            "gold_rank": _tensor(Ragged.from_lists(gold_rank), 0),
            "candidate_mask": _tensor(_full(candidates, 1), 0).bool(),
        }

    def _answers(self, names: Ragged, gold_rank: list[Any]) -> Ragged:
        first = [np.argsort(rank) for rank in gold_rank for _ in range(self.num_orders)]
        place = np.concatenate(first) + np.repeat(names.offsets[:-1], names.lengths)
        answers = Ragged(names.values[place], names.offsets)
        return (
            join(answers, Ragged.repeated(np.array([self.prompt_format.eos]), len(answers))) if self.ends else answers
        )

    def _histories(self, rows: list[dict[str, Any]], taken: np.ndarray) -> Ragged:
        histories, ratings = _column(rows, "history", np.int64), _column(rows, "history_ratings", np.float64)
        # any order takes as many tokens
        room = None if self.max_length is None else self.max_length - taken.reshape(len(rows), -1)[:, 0]
        return self.prompt_format.encode_histories(histories, ratings, room)


def _column(rows: list[dict[str, Any]], name: str, dtype: Any) -> Ragged:
    return Ragged.from_lists([row[name] for row in rows], dtype)


def _full(rows: Ragged, value: int) -> Ragged:
    return Ragged(np.full(len(rows.values), value), rows.offsets)


def _tensor(rows: Ragged, fill: float, left: bool = False) -> Tensor:
    return torch.from_numpy(rows.padded(fill=fill, left=left))
