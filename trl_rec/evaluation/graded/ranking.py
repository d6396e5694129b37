"""A model puts the candidates of rated rows in order: prompts in batches of like length, divided evenly over the
processes.

Every process returns the places in all rows, in the rows' order. In which slots a list is shown depends on the seed
and on its row alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm

from trl_rec.data.dataset import split_rows
from trl_rec.decoding.candidates.orders import draw_slots
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.decoding.candidates.ranking import rank_candidates
from trl_rec.evaluation.rank import left_padded
from trl_rec.ragged import Ragged, join, within


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RankedLists(NamedTuple):
    """What came of N lists of up to m candidates, each shown in S orders; -1 where a list has no candidate.

    Args:
        places (`np.ndarray` of shape `(N, S, m)`): The place of each candidate, from 0.
        slots (`np.ndarray` of shape `(N, S, m)`): Where it stood in the prompt.
    """

    places: np.ndarray
    slots: np.ndarray


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
) -> RankedLists:
    """The order that a model gives each list, once for every order that it is shown in.

    Args:
        model: A causal language model.
        rows: Rows of [`held_out_rows`].
        prompt_format: How they are written.
        pad_token_id: What prompts are padded with.
        num_orders: S. Several tell how far the model's order depends on the one it is shown, and [`borda`] makes one
            of them.
        single_pass: As in [`rank_candidates`].
        batch_size: Prompts a forward pass.
        max_length (*optional*): Most tokens of prompt and answer; the oldest history goes first.
        seed: Chooses the slots.
    """
    candidates, numbers = split_rows(rows, "candidates"), rows.with_format("numpy")[:]["row"]
    shown_in = [
        draw_slots(count, num_orders, (seed, row)) for count, row in zip(candidates.lengths, numbers, strict=True)
    ]
    slots = Ragged.from_lists([order for several in shown_in for order in several])
    source = np.repeat(np.arange(len(candidates)), num_orders)
    shown, names = prompt_format.show(candidates.take(source), slots)
    histories, ratings = (split_rows(rows, name).take(source) for name in ("history", "history_ratings"))
    room = None if max_length is None else max_length - shown.lengths - slots.lengths
    prompts, state = join(prompt_format.encode_histories(histories, ratings, room), shown), PartialState()
    mine = np.argsort(-prompts.lengths, kind="stable")[state.process_index :: state.num_processes]
    width = int(candidates.lengths.max())
    places = np.full((len(mine), width), -1, np.int64)
    starts = range(0, len(mine), batch_size)
    for start in tqdm(starts, desc="ranking", unit="batch", leave=False, disable=not state.is_local_main_process):
        batch = mine[start : start + batch_size]
        tokens = torch.from_numpy(names.take(batch).padded(width=width))
        inputs = left_padded(prompts.take(batch), pad_token_id)
        order = (
            rank_candidates(model, inputs, tokens.clamp(min=0), tokens >= 0, single_pass=single_pass)
            .order.cpu()
            .numpy()
        )
        row, rank = np.nonzero(order >= 0)
        places[start + row, order[row, rank]] = rank
    whole = np.empty((len(prompts), width), np.int64)
    for rows_, found in gather_object([(mine, places)]):
        whole[rows_] = found
    stood = np.full_like(whole, -1)
    stood[slots.row_ids, slots.values] = within(slots.lengths)
    split = (len(candidates), num_orders, width)
    return RankedLists(whole.reshape(split), stood.reshape(split))
