"""Batches of rated lists, each shown in one or two orders of its candidates.

The orders are drawn here, by (seed, epoch, row): a new epoch shows new orders, and a resumed run the same ones as an
uninterrupted run.

Legend: B lists, S orders of the same candidates, m candidates of the longest list, P tokens of the longest history, C
tokens of the longest list with its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from trl_rec.decoding.candidates.orders import draw_gold_rank, draw_slots
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.ragged import Ragged, join
from trl_rec.trainer.base.sampling import EpochCounter


@dataclass
class RatedListCollator(EpochCounter):
    """Writes rows of [`build_rated_rows`] as prompts and answers.

    Args:
        prompt_format (`RatedPromptFormat`): How prompts and answers are written.
        pad_token_id (`int`): Fills padded places.
        num_orders (`int`, *optional*, defaults to `2`): Orders in which each list is shown.
        ends (`bool`, *optional*, defaults to `False`): Whether the answer ends in EOS.
        max_length (`int`, *optional*): Most tokens of history, list and answer. The oldest history is dropped first.
        seed (`int`, *optional*, defaults to `0`): Seed of the orders.
    """

    prompt_format: RatedPromptFormat
    pad_token_id: int
    num_orders: int = 2
    ends: bool = False
    max_length: int | None = None
    seed: int = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Tensors of a batch.

        Returns:
            `prompt_ids prompt_mask (B, P)`: the histories; `completion_ids completion_mask answer_mask (B, S, C)`:
            lists and answers; `names (B, S, m)`: the token that names each candidate in each order; `ratings gold_rank
            candidate_mask (B, m)`.
        """
        # 1. Draw which of equal ratings comes first in the answer, and the slots of the candidates.
        candidates = _column(rows, "candidates", np.int64)
        ratings = _column(rows, "ratings", np.float32)
        keys = [(self.seed, int(self.epoch), row["row"]) for row in rows]
        gold_rank: list[Any] = [draw_gold_rank(ratings[number], key) for number, key in enumerate(keys)]
        slots: list[Any] = []
        for count, key in zip(candidates.lengths, keys, strict=True):
            slots.extend(draw_slots(count, self.num_orders, key))

        # 2. Write each list in each order, followed by its answer; the history before them is shared.
        repeated = np.repeat(np.arange(len(rows)), self.num_orders)
        shown, names = self.prompt_format.encode_candidates(candidates.take(repeated), Ragged.from_lists(slots))
        answers = self._answers(names, gold_rank)
        prompts = self._histories(rows, shown.lengths + answers.lengths)
        completions = join(shown, answers)
        is_answer = join(_filled(shown, 0), _filled(answers, 1))

        # 3. Pad.
        per_order = (len(rows), self.num_orders, -1)
        return {
            "prompt_ids": _tensor(prompts, self.pad_token_id, left=True),
            "prompt_mask": _tensor(_filled(prompts, 1), 0, left=True).bool(),
            "completion_ids": _tensor(completions, self.pad_token_id).view(per_order),
            "completion_mask": _tensor(_filled(completions, 1), 0).bool().view(per_order),
            "answer_mask": _tensor(is_answer, 0).bool().view(per_order),
            "names": _tensor(names, self.pad_token_id).view(per_order),
            "ratings": _tensor(ratings, 0),
            "gold_rank": _tensor(Ragged.from_lists(gold_rank), 0),
            "candidate_mask": _tensor(_filled(candidates, 1), 0).bool(),
        }

    def _answers(self, names: Ragged, gold_rank: list[Any]) -> Ragged:
        """The names of each list's candidates from best to worst, once per order in which the list is shown."""
        best_first = [np.argsort(rank) for rank in gold_rank for _ in range(self.num_orders)]
        place = np.concatenate(best_first) + np.repeat(names.offsets[:-1], names.lengths)
        answers = Ragged(names.values[place], names.offsets)
        if not self.ends:
            return answers
        return join(answers, Ragged.repeated(np.array([self.prompt_format.eos]), len(answers)))

    def _histories(self, rows: list[dict[str, Any]], taken: np.ndarray) -> Ragged:
        """The rated histories, cut to what fits beside the `taken` tokens of list and answer."""
        histories = _column(rows, "history", np.int64)
        ratings = _column(rows, "history_ratings", np.float64)
        # All orders of a list take equally many tokens.
        room = None if self.max_length is None else self.max_length - taken.reshape(len(rows), -1)[:, 0]
        return self.prompt_format.encode_histories(histories, ratings, room)


def _column(rows: list[dict[str, Any]], name: str, dtype: DTypeLike) -> Ragged:
    return Ragged.from_lists([row[name] for row in rows], dtype)


def _filled(rows: Ragged, value: int) -> Ragged:
    return Ragged(np.full(len(rows.values), value), rows.offsets)


def _tensor(rows: Ragged, fill: float, left: bool = False) -> Tensor:
    return torch.from_numpy(rows.padded(fill=fill, left=left))
