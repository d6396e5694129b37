"""Ranks the rated candidates of each row with a model. Prompts are batched by length and divided among the processes.

Every process returns the results of all rows, in the order of the rows. The place of a candidate is its position in
the model's ranking, and its slot is its position in the prompt. Slots are drawn randomly and depend only on the seed
and the row number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from datasets import Dataset

from trl_rec.data.dataset import split_rows
from trl_rec.decoding.candidates.orders import draw_slots
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.decoding.candidates.ranking import rank_candidates
from trl_rec.decoding.padding import left_padded
from trl_rec.evaluation.graded.measures import borda
from trl_rec.evaluation.kept.finished_rows import FinishedRows
from trl_rec.evaluation.rank import map_rows
from trl_rec.ragged import Ragged, join, within
from trl_rec.ranges import COUNT


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RankedLists(NamedTuple):
    """A model's rankings of N lists of up to m candidates. The model ranks each list S times, with the candidates in
    different orders in the prompt. -1 is padding.

    Args:
        places (`np.ndarray` of shape `(N, S, m)`): The place that the model gives each candidate, from 0 for the best.
        slots (`np.ndarray` of shape `(N, S, m)`, *optional*): The position of each candidate in the prompt, from 0.
            None if each ranking combines several prompts.
    """

    places: np.ndarray
    slots: np.ndarray | None


def combine_orders(lists: RankedLists, count: int) -> RankedLists:
    """Combines every `count` consecutive rankings of a list into one, by [`borda`].

    Args:
        lists: `S * count` rankings per list.
        count: Number of rankings to combine into one.
    """
    num_lists, num_orders, width = lists.places.shape
    groups = lists.places.reshape(num_lists * num_orders // count, count, width)
    return RankedLists(borda(groups).reshape(num_lists, num_orders // count, width), None)


def rank_rated_rows(
    model: PreTrainedModel,
    rows: Dataset,
    prompt_format: RatedPromptFormat,
    *,
    pad_token_id: int,
    num_orders: int = 1,
    single_pass: bool = False,
    batch_size: int = 16,
    max_length: int | None = None,
    seed: int = 0,
    finished: FinishedRows | None = None,
) -> RankedLists:
    """Ranks the candidates of each list with a model, once for every order in which the list is shown.

    Args:
        model: A causal language model.
        rows: Rows from [`held_out_rows`].
        prompt_format: Encodes histories and candidates as prompts.
        pad_token_id: Id of the padding token.
        num_orders (*optional*, defaults to `1`): S, the number of random orders in which each list is shown. With
            several orders, [`order_consistency`] measures how much the ranking depends on the order in the prompt, and
            [`borda`] combines the rankings into one.
        single_pass (*optional*, defaults to `False`): As in [`rank_candidates`].
        batch_size (*optional*, defaults to `16`): Prompts per forward pass.
        max_length (*optional*): Maximum number of tokens of the prompt and the answer together. If there are more
            tokens, the oldest items of the history are dropped.
        seed (*optional*, defaults to `0`): Seed of the slots.
        finished (*optional*): Stores the finished rankings, so that an interrupted call can be resumed.
    """
    COUNT.check("num_orders", num_orders)
    COUNT.check("batch_size", batch_size)

    # 1. Draw the slots. A list that is shown in S orders gives S consecutive prompts.
    candidates = split_rows(rows, "candidates")
    row_numbers = rows.with_format("numpy")[:]["row"]
    slots = Ragged.from_lists(
        order
        for count, row in zip(candidates.lengths, row_numbers, strict=True)
        for order in draw_slots(count, num_orders, (seed, row))
    )
    source = np.repeat(np.arange(len(candidates)), num_orders)  # the list of each prompt

    # 2. Build the prompts. The history is cut so that the prompt and the answer together fit into `max_length`.
    shown, names = prompt_format.encode_candidates(candidates.take(source), slots)
    histories = split_rows(rows, "history").take(source)
    ratings = split_rows(rows, "history_ratings").take(source)
    room = None if max_length is None else max_length - shown.lengths - slots.lengths
    prompts = join(prompt_format.encode_histories(histories, ratings, room), shown)
    width = int(candidates.lengths.max())

    # 3. Rank the candidates, and invert each ranking to get the place of each candidate.
    def _places_of_batch(batch: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(names.take(batch).padded(width=width))  # (B, m), -1 where there is no candidate
        inputs = left_padded(prompts.take(batch), pad_token_id)
        ranked = rank_candidates(model, inputs, tokens.clamp(min=0), tokens >= 0, single_pass=single_pass)
        order = ranked.order.cpu().numpy()  # (B, m)
        row, rank = np.nonzero(order >= 0)
        places = np.full((len(batch), width), -1, np.int64)
        places[row, order[row, rank]] = rank
        return places

    if finished is not None:
        finished = finished.of(prompts, names, single_pass)
    places = map_rows(
        _places_of_batch, prompts.lengths, width=width, desc="ranking", batch_size=batch_size, finished=finished
    )

    # 4. `slots` contains the candidate in each slot. Invert it, so that `slot_of` contains the slot of each candidate.
    slot_of = np.full_like(places, -1)
    slot_of[slots.row_ids, slots.values] = within(slots.lengths)
    shape = (len(candidates), num_orders, width)
    return RankedLists(places.reshape(shape), slot_of.reshape(shape))
