"""Samples lists of distinct items, several per prompt, or writes one greedy list per prompt.

All lists of all prompts advance together. The model reads each prompt, and each token of a list, only once. Excluded
items and items that are already in the list are removed before the softmax (see `constraint.py`), so the
log-probabilities are those of the distribution that was sampled from. The random number for a token depends on the
seed, the number that identifies the prompt (the argument `rows`), the index of the list, the rank of the item in the
list and the depth of the token in the item's path. If `rows` is given, the random number does not depend on the
prompt's position in the batch or on the process. In this case, the lists of a prompt depend neither on the other
prompts of its batch nor on the number of processes.

Legend: B: prompts, G: lists per prompt, K: items per list, D: tokens of the longest path, T: tokens of the longest
list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_rec.decoding.beam import RankedItems
from trl_rec.decoding.checks import check_no_nan
from trl_rec.decoding.lists.constraint import list_tokens
from trl_rec.decoding.lists.prompts import open_lists
from trl_rec.decoding.lists.sampler import NOISE_BITS, ListSampler
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.trie import TokenTrie
from trl_rec.ranges import COUNT, POSITIVE, SEED


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SampledLists(NamedTuple):
    """Lists of distinct items, and their tokens without the final EOS, which is forced.

    Args:
        items (`torch.Tensor` of shape `(B, G, K)`): Item indices, in the order in which they were sampled.
        token_ids (`torch.Tensor` of shape `(B, G, T)`): The tokens, padded on the right with 0.
        mask (`torch.Tensor` of shape `(B, G, T)`): True for real tokens.
        logps (`torch.Tensor` of shape `(B, G, T)`): The log-probability of each token under the distribution that it
            was sampled from; 0 for forced tokens and for padding.
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
    """Samples lists of distinct items for each prompt. The model's `generation_config` is ignored.

    Samples come from the policy itself. Item weights are therefore not accepted here, unlike in [`greedy_list`] and
    [`beam_list`].

    If several items share a path, choosing their leaf gives the item with the lowest index that is neither excluded
    nor in the list.

    Args:
        model (`PreTrainedModel`): A decoder-only causal language model with a key-value cache. A model in training
            mode is switched to evaluation mode and back.
        prompts (`Mapping[str, torch.Tensor]`): `input_ids` and `attention_mask` of shape `(B, P)`, padded on the left.
        trie (`TokenTrie`): The items' paths as they are written in lists, from
            `TokenTrie.from_catalog(..., lists=True)`.
        num_lists (`int`): G.
        list_length (`int`): K. Every prompt needs at least K items that are not excluded.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits before the softmax.
        exclude (`torch.Tensor` or lists of `int`, *optional*): Items that no list may contain: one list per prompt, or
            a tensor of shape `(B, E)` padded with -1.
        seed (`int` or list of `int`, *optional*, defaults to `0`): One or several non-negative numbers, such as
            `(seed, step)`.
        rows (`torch.Tensor` or list of `int`, *optional*, defaults to `0 .. B - 1`): The number that identifies each
            prompt in the global batch or in the data. A prompt's lists depend on this number and the seed, not on the
            other prompts. Increasing `num_lists` appends lists and leaves the first ones unchanged.
        greedy (`bool`, *optional*, defaults to `False`): Whether to always choose the most likely token. Of equally
            likely tokens, the one whose subtree contains the lowest item index is chosen. With `greedy=True`, `seed`
            and `rows` have no effect, and all lists of a prompt are the same. `temperature` still affects the
            log-probabilities.

    Returns:
        [`SampledLists`]: The lists, their tokens, and the tokens' log-probabilities.
    """
    # 1. Check the numbers.
    COUNT.check("num_lists", num_lists)
    COUNT.check("list_length", list_length)
    POSITIVE.check("temperature", temperature)
    for number in [seed] if isinstance(seed, int) else seed:
        SEED.check("seed", number)

    # 2. Sample.
    with open_lists(model, prompts, trie, num_lists=num_lists, list_length=list_length, exclude=exclude) as decoder:
        trie = decoder.trie
        noise = None
        if not greedy:
            noise = _noise(seed, rows, (*decoder.shape, decoder.max_steps))
            noise = noise.to(trie.items.device, non_blocking=True)
        items, logps = ListSampler(decoder, temperature=temperature, noise=noise).draw()
    check_no_nan(logps)

    # 3. Convert the lists to tokens. `logps` has one column for each depth of each rank; pick each token's column.
    lists = list_tokens(trie, items)
    place = lists.ranks * trie.max_depth + trie.depths(lists.nodes.clamp(min=0))
    return SampledLists(items, lists.token_ids, lists.mask, logps.gather(-1, place).masked_fill(~lists.mask, 0.0))


@torch.no_grad()
def greedy_list(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    list_length: int,
    exclude: Tensor | Sequence[Sequence[int]] | None = None,
    weights: ItemWeights | None = None,
) -> RankedItems:
    """Returns the list that a model writes if it always chooses the best token, as a ranking.

    Args:
        model, prompts, trie, list_length, exclude: As in [`sample_item_lists`].
        weights ([`ItemWeights`], *optional*): Weights of the items. For each item of a list,
            `weights.strength * log(w / W)` is added to the list's score, where `w` is the weight of the item and `W`
            the sum of the weights of all items. The best token is the one with the largest
            `p * b ** weights.strength`, where `p` is the probability of the token and `b` the largest weight in its
            subtree. Excluded items do not count for `b`, but items that are already in the list do. Like excluded
            items, items with weight 0 are removed before the softmax.

    Returns:
        [`RankedItems`]: `(B, K)`. The score at each rank is the joint log-probability of the items up to that rank,
        plus `weights.strength * log(w / W)` for each of these items if `weights` are given. Both terms are at most 0
        for every item, so the scores descend.
    """
    COUNT.check("list_length", list_length)
    with open_lists(
        model, prompts, trie, num_lists=1, list_length=list_length, exclude=exclude, weights=weights
    ) as decoder:
        items, logps = ListSampler(decoder, temperature=1.0, noise=None).draw()
        items = items.squeeze(1)
        scores = logps.view(*items.shape, -1).sum(-1) + decoder.item_bonus(items)
    check_no_nan(scores)
    return RankedItems(items, decoder.normalized(scores.cumsum(-1)))


def _noise(seed: int | Sequence[int], rows: Tensor | Sequence[int] | None, shape: tuple[int, int, int]) -> Tensor:
    """Returns random integers of `NOISE_BITS` bits, `(B, G, K * D)`. Each row number has its own generator on the CPU,
    so its noise is the same on every device and in every batch."""
    rows = range(shape[0]) if rows is None else rows.tolist() if isinstance(rows, Tensor) else rows
    if len(rows) != shape[0]:
        raise ValueError(f"rows has {len(rows)} entries for {shape[0]} prompts; pass one row number per prompt")
    seeds = [seed] if isinstance(seed, int) else [*seed]
    noise = [np.random.default_rng([*seeds, int(row)]).integers(0, 2**NOISE_BITS, shape[1:]) for row in rows]
    return torch.from_numpy(np.stack(noise))
