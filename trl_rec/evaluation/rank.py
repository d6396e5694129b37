"""A model ranks a split's users: prompts in batches of like length, the work divided evenly over the processes.

Every process returns the whole ranking, in the split's order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm.auto import tqdm

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.beam import RankedItems, rank_items
from trl_rec.decoding.list_beams import rank_list
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
        prompt_format (*optional*): How histories, and lists where it has a `list_length`, are written; single items in
            the surface's default otherwise.
        options: As in [`rank_histories`].
    """
    prompt_format = prompt_format or PromptFormat.for_catalog(dataset.catalog, tokenizer)
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=prompt_format.list_length is not None)
    rows, padding = held_out(dataset, split), tokenizer.pad_token_id
    histories, users = split_rows(rows, "history"), split_users(rows)
    return rank_histories(model, histories, prompt_format, trie, users=users, pad_token_id=padding, **options)


def rank_histories(
    model: PreTrainedModel,
    histories: Ragged,
    prompt_format: PromptFormat,
    trie: TokenTrie,
    *,
    pad_token_id: int,
    users: np.ndarray | None = None,
    top_k: int = 10,
    num_beams: int | None = None,
    exclude_history: bool = True,
    renormalize: bool = True,
    length_penalty: float = 0.0,
    batch_size: int = 16,
    max_length: int | None = None,
) -> np.ndarray:
    """The model's ranking `(num_histories, top_k)` after each history, -1 where a rank is missing: single items by
    their scores or, where the prompt format has a `list_length`, the first items of the list that the model writes.

    Args:
        model: A causal language model.
        histories: Item indices, oldest first.
        prompt_format: How they are written.
        trie: The catalogue, made with `lists=True` for lists.
        pad_token_id: What prompts are padded with.
        users (*optional*): Whose histories they are, rows of `RecDataset.users`; needed where prompts name users.
        top_k: Ranks to return.
        num_beams (*optional*, defaults to `top_k`): Width of the beam search; never below `top_k`. For lists the
            default is 1, the likeliest token each time.
        exclude_history: Whether items of the whole history are never recommended.
        renormalize, length_penalty: As in [`rank_items`]; without effect on lists, which are among legal tokens
            always.
        batch_size: Prompts a forward pass.
        max_length (*optional*): Most tokens of prompt and completion together; the oldest history goes first.
    """
    trie = trie.to(model.device)
    rank: Callable[..., RankedItems]
    if prompt_format.list_length is not None:
        rank = partial(rank_list, list_length=prompt_format.list_length, num_beams=num_beams or 1)
    else:
        scoring: dict[str, Any] = {"renormalize": renormalize, "length_penalty": length_penalty}
        rank = partial(rank_items, num_beams=max(num_beams or 0, top_k), **scoring)
    return over_histories(
        lambda prompts, _, exclude: rank(model, prompts, trie, top_k=top_k, exclude=exclude).items,
        histories,
        prompt_format,
        width=top_k,
        desc="ranking",
        pad_token_id=pad_token_id,
        users=users,
        exclude_history=exclude_history,
        batch_size=batch_size,
        max_length=max_length,
    )


def over_histories(
    items: Callable[[dict[str, Tensor], np.ndarray, Tensor | None], Tensor],
    histories: Ragged,
    prompt_format: PromptFormat,
    *,
    width: int,
    desc: str,
    pad_token_id: int,
    users: np.ndarray | None = None,
    exclude_history: bool = True,
    batch_size: int = 16,
    max_length: int | None = None,
) -> np.ndarray:
    """What a function gives for all histories, `(num_histories, width)`, on every process.

    Args:
        items: Gives items `(B, width)` from the prompts, the numbers of their rows, and the items to exclude `(B, E)`.
        histories, prompt_format, pad_token_id, users, exclude_history, batch_size, max_length: As in
            [`rank_histories`].
        width: Items a row.
        desc: What the progress bar says.
    """
    prompts, state = prompt_format.encode(histories, users, max_length=max_length), PartialState()
    mine = np.argsort(-prompts.lengths, kind="stable")[state.process_index :: state.num_processes]
    found = np.full((len(mine), width), -1, np.int64)
    starts = range(0, len(mine), batch_size)
    for start in tqdm(starts, desc=desc, unit="batch", leave=False, disable=not state.is_local_main_process):
        rows = mine[start : start + batch_size]
        exclude = torch.from_numpy(histories.take(rows).padded()) if exclude_history else None
        found[start : start + batch_size] = items(left_padded(prompts.take(rows), pad_token_id), rows, exclude).cpu()
    whole = np.empty((len(histories), width), np.int64)
    for rows, some in gather_object([(mine, found)]):
        whole[rows] = some
    return whole


def left_padded(prompts: Ragged, pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of the prompts, padded on the left."""
    lengths = torch.from_numpy(prompts.lengths)
    input_ids = torch.from_numpy(prompts.padded(fill=pad_token_id, left=True))
    column = torch.arange(input_ids.shape[1])
    return {"input_ids": input_ids, "attention_mask": (column >= input_ids.shape[1] - lengths.unsqueeze(1)).long()}
