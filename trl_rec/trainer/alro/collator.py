"""Collates rated lists (lists of candidates with a user's ratings of them) into batches.

Each list is presented with its candidates in one or more orders. It is followed by its answer, which names the
candidates from best to worst. The orders are random by default. They depend only on the seed, the epoch and the index
of the row. Therefore every epoch has new orders, and a resumed run has the same orders as an uninterrupted run.

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
from trl_rec.trainer.alro.given_order import GivenOrder
from trl_rec.trainer.base.sampling import EpochCounter


@dataclass
class RatedListCollator(EpochCounter):
    """Converts rows of [`build_rated_rows`] to tokenized histories, lists and answers.

    Args:
        prompt_format (`RatedPromptFormat`): Format of the prompts and answers.
        pad_token_id (`int`): Token id used for padding.
        num_orders (`int`, *optional*, defaults to `2`): Number of orders in which each list is presented.
        ends (`bool`, *optional*, defaults to `False`): Whether answers end with EOS.
        max_length (`int`, *optional*): Maximum number of tokens of history, list and answer together. If they do not
            fit, the oldest items of the history are dropped.
        seed (`int`, *optional*, defaults to `0`): Seed of the orders.
        given_order ([`GivenOrder`], *optional*): Determines the first order of each list. By default, the first order
            is random, like the others.
    """

    prompt_format: RatedPromptFormat
    pad_token_id: int
    num_orders: int = 2
    ends: bool = False
    max_length: int | None = None
    seed: int = 0
    given_order: GivenOrder | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns the tensors of a batch.

        Returns:
            - `prompt_ids` and `prompt_mask`, `(B, P)`: The histories, each after the head of the prompt.
            - `completion_ids`, `completion_mask` and `answer_mask`, `(B, S, C)`: The lists, each followed by its
              answer. `answer_mask` is True for the tokens of the answer.
            - `names`, `(B, S, m)`: The token that names each candidate, for each order of a list. Entry `i` belongs to
              the same candidate in every order.
            - `ratings` and `gold_rank`, `(B, m)`: The labels. They are the rating of each candidate, and the position
              of the candidate in the answer, counted from 0.
            - `candidate_mask`, `(B, m)`: False for padding.
        """
        # 1. Randomly draw the order of equally rated candidates in the answer, and the orders in which the list shows
        # all candidates.
        candidates = _column(rows, "candidates", np.int64)
        ratings = _column(rows, "ratings", np.float32)
        keys = [(self.seed, int(self.epoch), row["row"]) for row in rows]
        gold_rank: list[Any] = [draw_gold_rank(ratings[number], key) for number, key in enumerate(keys)]
        slots: list[Any] = []
        for number, key in enumerate(keys):
            slots.extend(self._orders(candidates[number], ratings[number], key))

        # 2. Tokenize each list in each order, followed by its answer. All orders of a list share one history.
        repeated = np.repeat(np.arange(len(rows)), self.num_orders)
        shown, names = self.prompt_format.encode_candidates(candidates.take(repeated), Ragged.from_lists(slots))
        answers = self._answers(names, gold_rank)
        prompts = self._histories(rows, shown.lengths + answers.lengths)
        completions = join(shown, answers)
        is_answer = join(_filled(shown, 0), _filled(answers, 1))

        # 3. Pad the rows of each tensor to the same length.
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

    def _orders(self, candidates: np.ndarray, ratings: np.ndarray, key: tuple[int, ...]) -> np.ndarray:
        """Returns, for each order, the index of the candidate at each position of the list that is shown, `(S, m)`."""
        if self.given_order is None:
            return draw_slots(len(candidates), self.num_orders, key)

        # Each order from `draw_slots` differs from the one before it, so at least half of the orders differ from the
        # given order.
        given = self.given_order.slots(candidates, ratings)
        others = [order for order in draw_slots(len(candidates), 2 * self.num_orders, key) if (order != given).any()]
        return np.stack([given, *others[: self.num_orders - 1]])

    def _answers(self, names: Ragged, gold_rank: list[Any]) -> Ragged:
        """Returns the answer for each order of each list: the names of its candidates from best to worst."""
        best_first = [np.argsort(rank) for rank in gold_rank for _ in range(self.num_orders)]
        place = np.concatenate(best_first) + np.repeat(names.offsets[:-1], names.lengths)
        answers = Ragged(names.values[place], names.offsets)
        if not self.ends:
            return answers
        return join(answers, Ragged.repeated(np.array([self.prompt_format.eos]), len(answers)))

    def _histories(self, rows: list[dict[str, Any]], taken: np.ndarray) -> Ragged:
        """Tokenizes the rated histories. They are truncated so that they fit in `max_length` together with the list
        and its answer, which have `taken` tokens."""
        histories = _column(rows, "history", np.int64)
        ratings = _column(rows, "history_ratings", np.float64)
        # All orders of a list have the same number of tokens, so the first order of each list suffices.
        room = None if self.max_length is None else self.max_length - taken.reshape(len(rows), -1)[:, 0]
        return self.prompt_format.encode_histories(histories, ratings, room)


def _column(rows: list[dict[str, Any]], name: str, dtype: DTypeLike) -> Ragged:
    return Ragged.from_lists([row[name] for row in rows], dtype)


def _filled(rows: Ragged, value: int) -> Ragged:
    return Ragged(np.full(len(rows.values), value), rows.offsets)


def _tensor(rows: Ragged, fill: float, left: bool = False) -> Tensor:
    return torch.from_numpy(rows.padded(fill=fill, left=left))
