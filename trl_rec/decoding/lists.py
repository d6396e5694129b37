"""A model draws whole lists: several a prompt, of distinct items, token by token among the legal ones.

All lists of all prompts advance together; those of a prompt share its cache, and no prefix is read twice. What a list
holds already, and what is excluded, leaves before the softmax (`list_constraint.py`), so a log-probability is that of
the very distribution that was drawn from. Noise belongs to (seed, row, list, place in the list, depth), never to a
place in a batch or a process: what a prompt gets depends neither on the prompts beside it nor on how many processes
share them.

Legend: B prompts, G lists a prompt, K items a list, D tokens of the longest path, T tokens of the longest list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_rec.decoding.beam import RankedItems
from trl_rec.decoding.list_constraint import list_tokens
from trl_rec.decoding.list_prompts import open_lists
from trl_rec.decoding.list_sampler import NOISE_BITS, ListSampler
from trl_rec.items.trie import TokenTrie


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SampledLists(NamedTuple):
    """Lists of distinct items, and the tokens they were drawn as. The EOS that ends a list is forced, and not among
    them.

    Args:
        items (`torch.Tensor` of shape `(B, G, K)`): Item indices, in the order drawn.
        token_ids (`torch.Tensor` of shape `(B, G, T)`): The lists' tokens, filled up with 0 on the right.
        mask (`torch.Tensor` of shape `(B, G, T)`): Which of them count.
        logps (`torch.Tensor` of shape `(B, G, T)`): The log-probability of each token in the distribution it was drawn
            from; 0 where it was the only legal one, and where masked.
    """

    items: Tensor
    token_ids: Tensor
    mask: Tensor
    logps: Tensor


@torch.no_grad()
def sample_item_lists(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    num_lists: int,
    list_length: int,
    temperature: float = 1.0,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    seed: int | Sequence[int] = 0,
    rows: Tensor | Sequence[int] | None = None,
    greedy: bool = False,
) -> SampledLists:
    """Draws lists of distinct items for each prompt. The model's own `generation_config` plays no part.

    Items that share a path are drawn in the order of their indices: a leaf stands for its first item that is neither
    excluded nor in the list, and stays until all have been drawn.

    Args:
        model: A decoder-only causal language model with a key-value cache. One in training mode is put into evaluation
            mode and back; one in evaluation mode is left as it is.
        prompts: `input_ids` and `attention_mask` of shape `(B, P)`, padded on the left.
        trie: The catalogue's list paths, `TokenTrie.from_catalog(..., lists=True)`.
        num_lists: G.
        list_length: K. Prompts with fewer items to choose from are refused.
        temperature: Divides the logits before the softmax.
        exclude (*optional*): Items that no list may hold, one list a prompt, or `(B, E)` padded with -1.
        seed: One number or several, as in `(seed, step)`; none is negative.
        rows (*optional*, defaults to `0 .. B - 1`): The number that each prompt is known by in the whole batch, or in
            the data. Its lists depend on it and on the seed; not on the prompts beside it, and a list not on
            `num_lists` either.
        greedy: Takes the likeliest token each time, the lower item among equals; seed and rows play no part, then, and
            all lists of a prompt are the same one. Log-probabilities are still those at `temperature`.
    """
    if num_lists < 1 or list_length < 1 or not 0 < temperature < float("inf"):
        raise ValueError(
            f"num_lists and list_length must be at least 1 and temperature positive, not {num_lists}, {list_length} and "
            f"{temperature}"
        )
    with open_lists(model, prompts, trie, num_lists=num_lists, list_length=list_length, exclude=exclude) as steps:
        trie, shape = steps.trie, (*steps.shape, steps.most)
        noise = _noise(seed, rows, shape).to(trie.items.device)
        items, logps = ListSampler(steps, temperature=temperature, noise=noise, greedy=greedy).draw()
    if bool(logps.isnan().any()):
        raise ValueError("the model's logits contain NaN; its weights are broken or its number format is too small")
    lists = list_tokens(trie, items)
    place = lists.ranks * trie.max_depth + trie.depths(lists.nodes.clamp(min=0))
    return SampledLists(items, lists.token_ids, lists.mask, logps.gather(-1, place).masked_fill(~lists.mask, 0.0))


def greedy_list(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    list_length: int,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
) -> RankedItems:
    """One list a prompt, the likeliest token taken each time, as a ranking `(B, K)`. The score of a rank is the
    log-probability of the list up to there, so scores descend."""
    lists = sample_item_lists(model, prompts, trie, num_lists=1, list_length=list_length, exclude=exclude, greedy=True)
    ranks = list_tokens(trie.to(lists.items.device), lists.items).ranks
    scores = lists.logps.new_zeros(lists.items.shape).scatter_add_(-1, ranks, lists.logps).cumsum(-1)
    return RankedItems(lists.items.squeeze(1), scores.squeeze(1))


def _noise(seed: int | Sequence[int], rows: Tensor | Sequence[int] | None, shape: tuple[int, int, int]) -> Tensor:
    """`(B, G, K * D)` integers of `NOISE_BITS` bits, each row's from a generator of its own, on every device alike."""
    rows = range(shape[0]) if rows is None else rows.tolist() if isinstance(rows, Tensor) else rows
    if len(rows) != shape[0]:
        raise ValueError(f"rows holds {len(rows)} numbers for {shape[0]} prompts; give one a prompt")
    seeds = [seed] if isinstance(seed, int) else [*seed]
    drawn = [np.random.default_rng([*seeds, int(row)]).integers(0, 2**NOISE_BITS, shape[1:]) for row in rows]
    return torch.from_numpy(np.stack(drawn))
