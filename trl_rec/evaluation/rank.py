"""A model ranks a split's users: prompts in batches of like length, the work divided evenly over the processes.

Every process returns the whole ranking, in the split's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from trl_rec.data.dataset import split_rows
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.beam import rank_items
from trl_rec.evaluation.results import held_out
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trl_rec.data.dataset import RecDataset


def rank_split(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: RecDataset,
    *,
    split: str = "test",
    prompt_format: PromptFormat | None = None,
    **options: Any,
) -> np.ndarray:
    """The model's ranking `(num_rows, top_k)` of the catalogue for every row of a split, -1 where a rank is missing.

    Args:
        model: A causal language model that knows the tokens of the catalogue's surface.
        tokenizer: Its tokenizer.
        dataset: The dataset; its catalogue's surface says how items are written.
        split: `"validation"` or `"test"`.
        prompt_format (*optional*): How histories are written; the surface's default otherwise.
        options: As in [`rank_histories`].
    """
    prompt_format = prompt_format or PromptFormat.for_catalog(dataset.catalog, tokenizer)
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer)
    histories = split_rows(held_out(dataset, split), "history")
    return rank_histories(model, histories, prompt_format, trie, pad_token_id=tokenizer.pad_token_id, **options)


def rank_histories(
    model: PreTrainedModel,
    histories: Ragged,
    prompt_format: PromptFormat,
    trie: TokenTrie,
    *,
    pad_token_id: int,
    top_k: int = 10,
    num_beams: int | None = None,
    exclude_history: bool = True,
    renormalize: bool = True,
    length_penalty: float = 0.0,
    batch_size: int = 16,
    max_length: int | None = None,
) -> np.ndarray:
    """The model's ranking `(num_histories, top_k)` after each history, -1 where a rank is missing.

    Args:
        model: A causal language model.
        histories: Item indices, oldest first.
        prompt_format: How they are written.
        trie: The catalogue.
        pad_token_id: What prompts are padded with.
        top_k: Ranks to return.
        num_beams (*optional*, defaults to `top_k`): Width of the beam search; never below `top_k`.
        exclude_history: Whether items of the whole history are never recommended.
        renormalize, length_penalty: As in [`rank_items`].
        batch_size: Prompts a forward pass.
        max_length (*optional*): Most tokens of prompt and item together; the oldest history goes first.
    """
    prompts, trie, state = prompt_format.encode(histories, max_length=max_length), trie.to(model.device), PartialState()
    mine = np.argsort(-prompts.lengths, kind="stable")[state.process_index :: state.num_processes]
    ranked = np.full((len(mine), top_k), -1, np.int64)
    starts = range(0, len(mine), batch_size)
    for start in tqdm(starts, desc="ranking", unit="batch", leave=False, disable=not state.is_local_main_process):
        rows = mine[start : start + batch_size]
        ranked[start : start + batch_size] = rank_items(
            model,
            left_padded(prompts.take(rows), pad_token_id),
            trie,
            num_beams=max(num_beams or 0, top_k),
            top_k=top_k,
            exclude=torch.from_numpy(histories.take(rows).padded()) if exclude_history else None,
            renormalize=renormalize,
            length_penalty=length_penalty,
        ).items.cpu()
    whole = np.empty((len(histories), top_k), np.int64)
    for rows, items in gather_object([(mine, ranked)]):
        whole[rows] = items
    return whole


def left_padded(prompts: Ragged, pad_token_id: int) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of the prompts, padded on the left."""
    lengths = torch.from_numpy(prompts.lengths)
    input_ids = torch.from_numpy(prompts.padded(fill=pad_token_id, left=True))
    column = torch.arange(input_ids.shape[1])
    return {"input_ids": input_ids, "attention_mask": (column >= input_ids.shape[1] - lengths.unsqueeze(1)).long()}
