"""Uses a model that runs in vLLM to rank the catalogue for requests.

A request is a history with its own filter, limits (such as at most two items per brand) and number of items, see
[`RequestRanker`]. To rank items for one request, the ranker may have to send many prompts to vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.beam import RankedItems, search_items
from trl_rec.decoding.checks import check_no_nan
from trl_rec.decoding.item_filter import Mask
from trl_rec.decoding.lists.constraint import list_tokens
from trl_rec.decoding.requests import RequestRanker
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.ragged import Ragged
from trl_rec.serving.vllm.arguments import packed
from trl_rec.serving.vllm.beam_cache import Ask, VllmPrompts, ask
from trl_rec.serving.vllm.rows import CatalogRows, Row


if TYPE_CHECKING:
    from vllm import LLM


class VllmRanker(RequestRanker):
    """A [`RequestRanker`] whose model runs in vLLM.

    Args:
        llm (`LLM`): The vLLM engine. It must use a [`CatalogProcessor`], which allows only tokens of the items.
        prompt_format, trie, catalog, pad_token_id, settings: As in [`RequestRanker`]. The trie is on the CPU.
    """

    def __init__(
        self,
        llm: LLM,
        prompt_format: PromptFormat,
        trie: TokenTrie,
        catalog: ItemCatalog,
        *,
        pad_token_id: int,
        settings: dict[str, Any],
    ) -> None:
        super().__init__(llm, prompt_format, trie, catalog, pad_token_id=pad_token_id, settings=settings, prior=None)
        self._llm = llm

    @property
    def _trie(self) -> TokenTrie:
        return self._given_trie

    def _ranked_items(
        self, prompts: dict[str, Tensor], num_beams: int, top_k: int, exclude: Tensor, weights: ItemWeights | None
    ) -> RankedItems:
        """Returns the best `top_k` items after each prompt."""
        cache = VllmPrompts(self._llm, _unpadded(prompts), _arguments(exclude, weights), self._trie, num_beams)
        return search_items(
            cache,
            self._trie,
            num_beams,
            top_k,
            exclude,
            self._settings["renormalize"],
            self._settings["length_penalty"],
            weights,
        )

    def _ranked_list(
        self, prompts: dict[str, Tensor], list_length: int, top_k: int, exclude: Tensor, weights: ItemWeights | None
    ) -> RankedItems:
        """Returns the first `top_k` items of the list that the model writes after each prompt."""
        # 1. Let vLLM write the lists.
        num_tokens = self._trie.longest_list(top_k)
        arguments = [{**one, "items": top_k} for one in _arguments(exclude, weights)]
        asks = [Ask(tokens, one) for tokens, one in zip(_unpadded(prompts), arguments, strict=True)]
        written = ask(self._llm, asks, num_tokens, logprobs=0)

        # 2. Read the items from the tokens. The score of a rank is the sum of the log-probabilities of all tokens up
        # to the end of its item.
        rows = CatalogRows(self._trie, self._pad_token_id, are_lists=True)
        masks = _masks(weights, len(asks))
        items = torch.full((len(asks), top_k), -1)
        scores = torch.full((len(asks), top_k), -torch.inf)
        for index, one in enumerate(written):
            rows.add(index, Row(top_k, one.tokens, exclude=exclude[index].tolist(), mask=masks[index]))
        for index, one in enumerate(written):
            found = torch.tensor(rows.items(index))
            if len(found) < top_k:
                raise ValueError(
                    f"vLLM wrote {len(found)} of {top_k} items; check the model's weights for NaN, or raise "
                    "max_model_len"
                )
            ends = self._trie.depths(self._trie.leaves[self._trie.item_positions[found]]).cumsum(0)
            logps = torch.tensor([values[0] for _, values in one.best])
            items[index] = found
            scores[index] = logps.cumsum(0)[ends - 1]
        check_no_nan(scores)
        return RankedItems(items, scores)

    def _scores_of(self, prompts: Ragged, histories: Ragged, target: int) -> np.ndarray:
        """Returns the score of one item after each prompt, `(B,)`."""
        # 1. Find the item's tokens that contribute to the score. With a softmax over legal tokens, a forced token (the
        # only legal one) contributes nothing, because its log-probability is 0.
        path = list_tokens(self._trie, torch.tensor([target]))
        path_tokens = path.token_ids.tolist()
        is_list = self._format.list_length is not None
        renormalize = is_list or self._settings["renormalize"]
        places = path.branches.nonzero().flatten().tolist() if renormalize else range(len(path_tokens))

        # 2. Request the log-probability of each of these tokens after the tokens before it.
        asks = [
            Ask([*prompts[row].tolist(), *path_tokens[:place]], {"items": 1, "prefix": path_tokens[:place]})
            for row in range(len(prompts))
            for place in places
        ]
        wanted = [[path_tokens[place]] for _ in range(len(prompts)) for place in places]
        written = ask(self._llm, asks, 1, wanted)
        logps = [dict(zip(*one.best[0], strict=True))[token] for one, (token,) in zip(written, wanted, strict=True)]

        # 3. Add up the log-probabilities.
        scores: np.ndarray = np.array(logps).reshape(len(prompts), len(places)).sum(1)
        penalty = 0.0 if is_list else self._settings["length_penalty"]
        check_no_nan(torch.from_numpy(scores))
        scores /= len(path_tokens) ** penalty
        return scores


def _unpadded(prompts: dict[str, Tensor]) -> list[list[int]]:
    """Returns the tokens of each prompt."""
    rows = zip(prompts["input_ids"], prompts["attention_mask"].bool(), strict=True)
    return [tokens[mask].tolist() for tokens, mask in rows]


def _arguments(exclude: Tensor, weights: ItemWeights | None) -> list[dict[str, Any]]:
    """Returns vLLM's `extra_args` for each prompt. They make vLLM leave out the items in `exclude`, `(B, E)`, and the
    items that the filters in `weights` remove."""
    excluded = [{"exclude_rows": [item for item in row if item >= 0]} for row in exclude.tolist()]
    masks = _masks(weights, len(excluded))
    return [
        one if mask is None else {**one, "mask": packed(mask.items)} for one, mask in zip(excluded, masks, strict=True)
    ]


def _masks(weights: ItemWeights | None, num_prompts: int) -> list[Mask | None]:
    """Returns the filter of each prompt. This ranker has no prior, so `weights` contains only filters."""
    if weights is None or weights.allowed is None:
        return [None] * num_prompts
    masks = [Mask(one.numpy()) for one in weights.allowed.cpu()]
    numbers = [0] * num_prompts if weights.allowed_of is None else weights.allowed_of.tolist()
    return [masks[number] for number in numbers]
