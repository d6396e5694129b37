"""Checks prompts, lets the model read them, and opens a decoder that writes lists after them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.decoding.checks import checked_prompts, evaluating
from trl_rec.decoding.excluded import Excluded
from trl_rec.decoding.lists.decoder import ListDecoder
from trl_rec.decoding.prompt_cache import open_cache
from trl_rec.decoding.trie_weights import Filtered, TrieWeights, look_up
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items.trie import TokenTrie


if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def open_lists(
    model: PreTrainedModel,
    prompts: Mapping[str, Tensor],
    trie: TokenTrie,
    *,
    num_lists: int,
    list_length: int,
    exclude: Tensor | Sequence[Sequence[int]] | None,
    weights: ItemWeights | None = None,
) -> Iterator[ListDecoder]:
    """Opens a decoder that writes `num_lists` lists of `list_length` items per prompt.

    The decoder's tensors are on the model's device.
    """
    # 1. Check the prompts. Check that there are enough items for a list, and that the longest possible list fits into
    # the model's positions.
    input_ids, attention_mask = checked_prompts(model, prompts, trie)
    trie = trie.to(input_ids.device)
    barred = Excluded(trie, exclude, len(input_ids))
    weighted = look_up(trie, weights, barred)
    excluded = barred.places.long()
    if isinstance(weighted, TrieWeights | Filtered):
        excluded = _with_removed(excluded, weighted.removed())
    _check_enough_items(trie, excluded, list_length)
    longest = trie.longest_list(list_length)  # tokens of the longest possible list
    _check_length(model, input_ids.shape[1], longest)

    # 2. Read the prompts.
    with evaluating(model) if model.training else nullcontext():
        cache = open_cache(model, input_ids, attention_mask, longest, trie.tokens)
        yield ListDecoder(cache, trie, excluded, weighted, list_length=list_length, num_lists=num_lists)


def _with_removed(excluded: Tensor, removed: Tensor) -> Tensor:
    """Adds the items of weight 0, given by a mask `(B, I)` over `trie.items`, to the excluded items.

    `excluded`, `(B, E)`, and the result contain indices into `trie.items`. When lists are written, both excluded
    items and items of weight 0 are removed before the softmax.
    """
    removed = F.pad(removed, (0, 1)).scatter(1, excluded, True)  # the last column is for padding
    width = int(removed[:, :-1].sum(1).max())
    places = torch.arange(removed.shape[1], device=removed.device)
    return torch.where(removed, places, removed.shape[1] - 1).sort(1).values[:, :width]


def _check_enough_items(trie: TokenTrie, excluded: Tensor, list_length: int) -> None:
    """Raises ValueError if a prompt has fewer than `list_length` items that are not excluded."""
    if trie.num_items - excluded.shape[1] >= list_length:
        return  # enough in any case; to look at the excluded items, the host would have to wait for the device
    left = trie.num_items - (excluded < trie.num_items).sum(1)
    if bool((left < list_length).any()):
        row = int((left < list_length).nonzero()[0])
        raise ValueError(
            f"prompt {row} has {int(left[row])} items to choose from, too few for a list of {list_length}; "
            "exclude fewer items, or reduce list_length"
        )


def _check_length(model: PreTrainedModel, prompt: int, longest: int) -> None:
    """Raises ValueError if the prompt and the longest possible list together exceed the model's maximum length."""
    room = model.config.get_text_config().to_dict().get("max_position_embeddings")
    if room is not None and prompt + longest > room:
        raise ValueError(
            f"prompt and longest list take {prompt + longest} tokens, but the model has {room} positions; create "
            f"the PromptFormat with list_length, and encode prompts with max_length={room}"
        )
