"""Ranks the catalogue for many users with a model. Prompts are batched by length and divided among the processes.

Every process returns the complete ranking, with one row per history, in the given order. If a [`FinishedRows`] is
given, it stores the finished rows from time to time. Rows that an interrupted evaluation has stored are not ranked
again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm.auto import tqdm

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.beam import RankedItems, rank_items
from trl_rec.decoding.lists.beams import rank_list
from trl_rec.decoding.padding import left_padded
from trl_rec.decoding.priors import Prior
from trl_rec.evaluation.cost import say
from trl_rec.evaluation.kept.finished_rows import FinishedRows
from trl_rec.evaluation.rankings import INDEX, RANK, Rankings
from trl_rec.evaluation.results import held_out
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, FINITE


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
) -> Rankings:
    """Ranks the catalogue for every row of a split: items and scores `(num_rows, top_k)`.

    Args:
        model: A causal language model whose vocabulary contains the tokens of the catalogue's surface.
        tokenizer: The tokenizer of the model.
        dataset: The dataset. The surface of its catalogue determines how items are written.
        split (*optional*, defaults to `"test"`): `"validation"` or `"test"`.
        prompt_format (*optional*): Encodes histories as prompts. Defaults to the surface's format for single items. If
            it has a `list_length`, the model writes lists.
        options: Passed to [`rank_histories`].
    """
    prompt_format = prompt_format or PromptFormat.for_catalog(dataset.catalog, tokenizer)
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=prompt_format.list_length is not None)
    rows = held_out(dataset, split)
    return rank_histories(
        model,
        split_rows(rows, "history"),
        prompt_format,
        trie,
        pad_token_id=tokenizer.pad_token_id,
        users=split_users(rows),
        **options,
    )


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
    prior: Prior | None = None,
    finished: FinishedRows | None = None,
) -> Rankings:
    """Ranks the catalogue for each history: items and scores `(num_histories, top_k)`.

    By default, single items are ranked by score. If the prompt format has a `list_length`, the ranking is the first
    `top_k` items of the list that the model writes. The score of a rank is then the score of the list up to that rank.
    Without a prior, this is the log-probability of that part of the list.

    Args:
        model: A causal language model.
        histories: Item indices, oldest first.
        prompt_format: Encodes histories as prompts.
        trie: Trie of the catalogue, built with `lists=True` if the model writes lists.
        pad_token_id: Id of the padding token.
        users (*optional*): The user of each history, as a row number of `RecDataset.users`. Required if the prompts
            contain users.
        top_k (*optional*, defaults to `10`): Number of ranks to return.
        num_beams (*optional*, defaults to `top_k`, and for lists to `1`): Number of beams. For single items, a value
            below `top_k` is raised to `top_k`. For lists, 1 means greedy decoding.
        exclude_history (*optional*, defaults to `True`): Whether to exclude the items of the history, including items
            that are cut from the prompt. If items are written as titles, all items with the title of a history item
            are excluded.
        renormalize, length_penalty (*optional*): As in [`rank_items`]. They have no effect on lists, which always use
            the softmax over legal tokens.
        batch_size (*optional*, defaults to `16`): Prompts per forward pass.
        max_length (*optional*): Maximum number of tokens of the prompt and the completion together. If there are more
            tokens, the oldest items of the history are dropped.
        prior (*optional*): Gives the items their weights, as in [`rank_items`]. The prior receives the complete
            histories, even if histories are cut in the prompts.
        finished (*optional*): Stores the finished rankings, so that an interrupted call can be resumed.
    """
    # Check the numeric arguments first, because writing the prompts can take long.
    COUNT.check("batch_size", batch_size)
    COUNT.check("top_k", top_k)
    FINITE.check("length_penalty", length_penalty)
    if num_beams is not None:
        COUNT.check("num_beams", num_beams)

    trie = trie.to(model.device)
    rank: Callable[..., RankedItems]
    if prompt_format.list_length is not None:
        rank = partial(rank_list, list_length=prompt_format.list_length, num_beams=num_beams or 1)
    else:
        num_beams = max(num_beams or 0, top_k)
        rank = partial(rank_items, num_beams=num_beams, renormalize=renormalize, length_penalty=length_penalty)

    if finished is not None:
        finished = finished.of(trie, prior, num_beams, renormalize, length_penalty, prompt_format.list_length)

    def _rank(prompts: dict[str, Tensor], rows: np.ndarray, exclude: Tensor | None) -> np.ndarray:
        weights = None if prior is None else prior.weights(histories.take(rows))
        return as_ranks(rank(model, prompts, trie, top_k=top_k, exclude=exclude, weights=weights))

    ranks = map_histories(
        _rank,
        histories,
        prompt_format,
        width=top_k,
        dtype=RANK,
        desc="ranking",
        pad_token_id=pad_token_id,
        users=users,
        exclude_history=exclude_history,
        batch_size=batch_size,
        max_length=max_length,
        finished=finished,
    )
    return Rankings.from_ranks(ranks)


def as_ranks(ranked: RankedItems) -> np.ndarray:
    """Converts ranked items to an array of type `RANK`."""
    ranks = np.empty(ranked.items.shape, RANK)
    ranks["item"] = ranked.items.cpu().numpy()
    ranks["score"] = ranked.scores.float().cpu().numpy()  # numpy has no bfloat16
    return ranks


def map_histories(
    compute: Callable[[dict[str, Tensor], np.ndarray, Tensor | None], np.ndarray],
    histories: Ragged,
    prompt_format: PromptFormat,
    *,
    width: int,
    dtype: np.dtype[Any] = INDEX,
    desc: str,
    pad_token_id: int,
    users: np.ndarray | None = None,
    exclude_history: bool = True,
    batch_size: int = 16,
    max_length: int | None = None,
    finished: FinishedRows | None = None,
) -> np.ndarray:
    """Applies a function to the prompts of histories in batches. Returns `(num_histories, width)` on every process.

    Args:
        compute: Maps a batch to values `(B, width)`. Its arguments are the padded prompts, the row numbers of their
            histories `(B,)`, and the items to exclude `(B, E)`, padded with -1, or None if nothing is excluded.
        histories, prompt_format, pad_token_id, users, exclude_history, batch_size, max_length: As in
            [`rank_histories`].
        width: Number of values per row.
        dtype (*optional*, defaults to `int64`): Type of the values.
        desc: Label of the progress bar.
        finished (*optional*): Stores the values of the finished histories, under a hash of everything that they depend
            on. This function adds `desc`, the prompts, the histories and the excluded items to the hash. The caller
            must have added everything else, with [`FinishedRows.of`].
    """
    prompts = prompt_format.encode(histories, users, max_length=max_length)
    if finished is not None:
        finished = finished.of(prompts, histories, exclude_history, prompt_format.twins)

    def _compute_batch(rows: np.ndarray) -> np.ndarray:
        exclude = None
        if exclude_history:
            exclude = torch.from_numpy(prompt_format.exclusions(histories.take(rows)).padded())
        return compute(left_padded(prompts.take(rows), pad_token_id), rows, exclude)

    return map_rows(
        _compute_batch,
        prompts.lengths,
        width=width,
        dtype=dtype,
        desc=desc,
        batch_size=batch_size,
        finished=finished,
    )


def map_rows(
    compute: Callable[[np.ndarray], np.ndarray],
    lengths: np.ndarray,
    *,
    width: int,
    dtype: np.dtype[Any] = INDEX,
    desc: str,
    batch_size: int,
    finished: FinishedRows | None = None,
) -> np.ndarray:
    """Applies a function to rows in batches. Returns `(num_rows, width)` on every process.

    Args:
        compute: Maps row numbers `(B,)` to values `(B, width)`.
        lengths: The length of each row, `(num_rows,)`, in any unit. Rows of similar length share a batch.
        width: Number of values per row.
        dtype (*optional*, defaults to `int64`): Type of the values.
        desc: Label of the progress bar.
        batch_size: Rows per batch.
        finished (*optional*): Stores the values of the finished rows, under a hash of everything that they depend on.
            This function adds `desc`, `width`, `dtype` and the number of rows to the hash. The caller must have added
            everything else, with [`FinishedRows.of`].
    """
    COUNT.check("batch_size", batch_size)
    if finished is not None:
        finished = finished.of(desc, len(lengths), width, str(dtype))

    # 1. Read the rows that an interrupted call has finished.
    kept_rows, kept_values = _read_finished(finished, width, dtype, desc, len(lengths))

    # 2. Sort the other rows from longest to shortest and assign them to the processes round-robin. Then the rows of
    #    a batch have similar lengths, and all processes have about the same amount of work.
    state = PartialState()
    order = np.argsort(-lengths, kind="stable")
    order = order[~np.isin(order, kept_rows)]
    own_rows = order[state.process_index :: state.num_processes]

    # 3. Compute the rows of this process.
    own_values = np.empty((len(own_rows), width), dtype)
    starts = range(0, len(own_rows), batch_size)
    with nullcontext(_forget) if finished is None else finished.keeping() as keep:
        for start in tqdm(starts, desc=desc, unit="batch", leave=False, disable=not state.is_local_main_process):
            rows = own_rows[start : start + batch_size]
            own_values[start : start + batch_size] = compute(rows)
            keep(rows, own_values[start : start + batch_size])

    # 4. Gather the rows of all processes on every process. The main process adds the rows that it has read.
    gathered = np.empty((len(lengths), width), dtype)
    parts = [(own_rows, own_values)]
    if state.is_main_process:
        parts.append((kept_rows, kept_values))
    for rows, values in gather_object(parts):
        gathered[rows] = values
    return gathered


def _read_finished(
    finished: FinishedRows | None, width: int, dtype: np.dtype[Any], desc: str, num_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers and the values of the finished rows. Only the main process gets the values."""
    if finished is None:
        return np.empty(0, np.int64), np.empty((0, width), dtype)
    state = PartialState()
    rows = np.empty(0, np.int64)
    values = np.empty((0, width), dtype)
    if state.is_main_process:
        rows, values = finished.read(width, dtype)
    if state.num_processes > 1:
        rows = broadcast_object_list([rows])[0]
    if len(rows):
        say(f"{desc}: {len(rows):,} of {num_rows:,} rows were already finished by an interrupted evaluation")
    return rows, values


def _forget(rows: np.ndarray, values: np.ndarray) -> None:
    """Does nothing. Used as `keep` if finished rows are not stored."""
