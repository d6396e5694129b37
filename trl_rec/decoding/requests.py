"""Ranks the catalogue for requests. A request is a history with its own filter, limits and number of items.

Requests that need the same kind of search and the same number of beams are ranked together in batches, sorted by the
length of their histories. The filters of a batch form a boolean table with one row per distinct filter. This table is
passed to the search as a part of [`ItemWeights`], which are factors on the probabilities of items. A request that
limits how many of its items share a value, such as a brand (`max_per`), may need several rounds, see `caps.py`.

Legend: B: prompts, P: prompt tokens (padded), E: excluded items per prompt (padded), F: distinct filters, I: items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.beam import RankedItems, rank_items
from trl_rec.decoding.caps import CappedList, ColumnGroups, Groups
from trl_rec.decoding.exact import rank_scores, score_items
from trl_rec.decoding.item_filter import Mask
from trl_rec.decoding.lists.beams import rank_list
from trl_rec.decoding.padding import left_padded
from trl_rec.decoding.priors import Prior
from trl_rec.decoding.trie_weights import log_weights
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.ragged import Ragged, join


if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Request(NamedTuple):
    """A history, the number of items to recommend after it, and restrictions on these items.

    Args:
        history (`np.ndarray` of shape `(N,)`): Item indices, oldest first.
        num_unknown (`int`): Number of ids that were dropped from the history, because the catalogue lacks them.
        k (`int`): Number of items to recommend, at most the size of the catalogue.
        wanted (`int`): Number of items that were asked for. It may exceed the size of the catalogue.
        user (`int`, *optional*): The user's row in `RecDataset.users`.
        exclude (`np.ndarray` of shape `(E,)`): Item indices to leave out.
        mask ([`Mask`], *optional*): The allowed items.
        limits: For each column of `max_per`, the groups of items that share a value, and the limit per group.
    """

    history: np.ndarray
    num_unknown: int
    k: int
    wanted: int
    user: int | None
    exclude: np.ndarray
    mask: Mask | None
    limits: list[tuple[Groups, int]]


class Ranked(NamedTuple):
    """The items of one request by descending score, and the values of `fallback` and `short` in
    [`RecommendedList`]."""

    items: list[int]
    scores: list[float]
    fallback: bool
    short: str | None


@dataclass(frozen=True, eq=False)
class _Batch:
    """Requests that are ranked together.

    Args:
        prompts: `input_ids` and `attention_mask` of the padded prompts, `(B, P)` each.
        exclude: The excluded items, `(B, E)`, padded with -1.
        weights: The weights of the prior, or None.
        masks: For each request, the allowed items, or None if it has no filter.
    """

    prompts: dict[str, Tensor]
    exclude: Tensor
    weights: ItemWeights | None
    masks: list[Mask | None]


class RequestRanker:
    """Ranks the catalogue for requests, with one model and one prior.

    Args:
        model, prompt_format, trie, settings, prior: As in [`Recommender`].
        catalog (`ItemCatalog`): The items, with or without the retired items at the end. Histories may contain
            retired items, but they are never recommended.
        pad_token_id (`int`): Id of the padding token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompt_format: PromptFormat,
        trie: TokenTrie,
        catalog: ItemCatalog,
        *,
        pad_token_id: int,
        settings: dict[str, Any],
        prior: Prior | None,
    ) -> None:
        self.groups = ColumnGroups(catalog)
        self._model = model
        self._format = prompt_format
        self._given_trie = trie
        self._num_items = catalog.num_recommendable
        self._pad_token_id = pad_token_id
        self._settings = settings
        self._prior = prior
        self._everything = Mask(np.ones(catalog.num_recommendable, bool))

    def rank(self, requests: Sequence[Request], *, exclude_history: bool, batch_size: int) -> list[Ranked]:
        """Returns the ranking of each request."""
        self._check_users(requests)
        ranked: list[Ranked] = [Ranked([], [], False, None)] * len(requests)
        for key, rows in self._groups_of(requests).items():
            for some in self._batches(requests, rows, batch_size):
                batch = [requests[row] for row in some]
                for row, one in zip(some, self._rank(batch, key, exclude_history), strict=True):
                    ranked[row] = one
        return ranked

    def _check_users(self, requests: Sequence[Request]) -> None:
        """Raises `ValueError` if the prompts name the user, and some requests have a user while others have none.

        If no request has a user, [`PromptFormat.encode_heads`] raises an error.
        """
        missing = [row for row, request in enumerate(requests) if request.user is None]
        if self._format.users is not None and 0 < len(missing) < len(requests):
            raise ValueError(
                f"the prompt names the user, but users[{missing[0]}] is None; pass the user's row number in "
                "RecDataset.users"
            )

    def leave_one_out(self, history: np.ndarray, target: int, user: int | None, batch_size: int) -> np.ndarray:
        """Returns how much the score of `target` falls if one item is left out of the history, for each item of the
        history, `(len(history),)`."""
        # 1. Row 0 is the whole history. In row `i + 1`, the item at position `i` is left out.
        without = [np.delete(history, place) for place in range(len(history))]
        histories = Ragged.from_lists([history, *without])
        prompts = self._encode(histories, [user] * len(histories))

        # 2. Score the target after each of these histories.
        scores = np.concatenate(
            [
                self._scores_of(prompts.take(rows), histories.take(rows), target)
                for rows in np.array_split(np.arange(len(histories)), -(-len(histories) // batch_size))
            ]
        )
        if not np.isfinite(scores[0]):
            raise ValueError(
                "the item cannot be explained, because the prior gives it the weight 0 after this history; choose "
                "another item, or load the recommender with prior=None"
            )
        differences: np.ndarray = scores[0] - scores[1:]
        return differences

    def _scores_of(self, prompts: Ragged, histories: Ragged, target: int) -> np.ndarray:
        """Returns the score of one item after each prompt, `(B,)`."""
        items = torch.full((len(prompts), 1), target)
        is_list = self._format.list_length is not None
        scores = score_items(
            self._model,
            left_padded(prompts, self._pad_token_id),
            self._trie,
            items,
            renormalize=is_list or self._settings["renormalize"],
            length_penalty=0.0 if is_list else self._settings["length_penalty"],
        )
        if self._prior is not None:
            scores = scores + log_weights(self._trie, self._prior.weights(histories), items.to(scores.device))
        values: np.ndarray = scores[:, 0].double().cpu().numpy()
        return values

    def _groups_of(self, requests: Sequence[Request]) -> dict[_Search, list[int]]:
        """Groups the requests that need the same search: a dict from searches to the indices of requests."""
        groups: dict[_Search, list[int]] = {}
        for row, request in enumerate(requests):
            groups.setdefault(self._search_of(request), []).append(row)
        return groups

    def _search_of(self, request: Request) -> _Search:
        """Returns the search that a request needs."""
        length = self._format.list_length
        if not len(request.history) and self._falls_back:
            return _Search("prior", 0)
        if length is not None:
            if request.k > length:
                raise ValueError(f"k {request.k} exceeds the list length {length}; choose k <= {length}")
            return _Search("lists", 0)
        if self._trie.max_depth == 1:  # one step scores every item, so the number of beams has no effect
            return _Search("items", 0)
        return _Search("items", max(_asked(request, self._num_items), self._settings["num_beams"]))

    def _batches(self, requests: Sequence[Request], rows: list[int], batch_size: int) -> Iterator[list[int]]:
        """Yields the indices `rows` of requests in batches with histories of similar length, the longest first."""
        order = sorted(rows, key=lambda row: -len(requests[row].history))
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]

    def _rank(self, requests: list[Request], search: _Search, exclude_history: bool) -> list[Ranked]:
        """Ranks requests that need the same search."""
        batch = self._batch(requests, exclude_history)
        lists = [CappedList(request.limits, request.k, self._num_items) for request in requests]
        asked = [self._num_ranked(request, search) for request in requests]
        top_k = max(asked)

        # In the first round, every list is filled with the best items of a ranking. A list with limits may then be too
        # short, although the catalogue has more items. In the next round, only the items that may still be added to
        # this list are ranked.
        rows = list(range(len(requests)))
        while rows:
            ranked = self._found(batch, search, top_k)
            unfinished = []
            for place, row in enumerate(rows):
                # Cut the ranking off, because another request of the batch may have asked for more items.
                items, scores = ranked[place]
                lists[row].add(items[: asked[row]], scores[: asked[row]])
                ended = len(items) < asked[row] or search.kind == "lists"
                if not lists[row].is_full and not ended:
                    unfinished.append(place)
            rows = [rows[place] for place in unfinished]
            if rows:
                batch = self._narrowed(batch, unfinished, [lists[row].open for row in rows])

        return [_finished(one, request, search) for one, request in zip(lists, requests, strict=True)]

    def _num_ranked(self, request: Request, search: _Search) -> int:
        """Returns how many items are ranked for a request in a round. If the model writes lists and the request has
        `max_per`, this is the length of a whole list, because there is no second round for such a model."""
        if search.kind == "lists" and request.limits:
            assert self._format.list_length is not None
            return self._format.list_length
        return _asked(request, self._num_items)

    def _batch(self, requests: list[Request], exclude_history: bool) -> _Batch:
        """Writes the prompts, and looks up the excluded items and the weights."""
        histories = Ragged.from_lists([request.history for request in requests])
        prompts = self._encode(histories, [request.user for request in requests])
        exclude = Ragged.from_lists([request.exclude for request in requests])
        if exclude_history:
            exclude = join(exclude, self._format.exclusions(histories))
        return _Batch(
            left_padded(prompts, self._pad_token_id),
            torch.from_numpy(exclude.padded()),
            None if self._prior is None else self._prior.weights(histories),
            [request.mask for request in requests],
        )

    def _narrowed(self, batch: _Batch, places: list[int], open_items: list[np.ndarray]) -> _Batch:
        """Returns a batch of the requests at `places`, each of which now allows only its `open_items`."""
        masks = [batch.masks[place] or self._everything for place in places]
        return _Batch(
            {name: tensor[places] for name, tensor in batch.prompts.items()},
            batch.exclude[places],
            None if batch.weights is None else batch.weights.take(places),
            [Mask(mask.items & one) for mask, one in zip(masks, open_items, strict=True)],
        )

    def _found(self, batch: _Batch, search: _Search, top_k: int) -> list[tuple[list[int], list[float]]]:
        """Returns the best `top_k` items of each request, and their scores."""
        weights = self._weights(batch)
        if search.kind == "prior":
            assert weights is not None
            weights = replace(weights, strength=1.0)
            scores = torch.zeros(len(batch.exclude), len(self._trie.item_positions), device=self._trie.items.device)
            ranked = rank_scores(scores, self._trie, top_k, batch.exclude, weights)
        elif search.kind == "lists":
            ranked = self._written(batch, weights, top_k)
        else:
            num_beams = search.num_beams or top_k
            ranked = self._ranked_items(batch.prompts, num_beams, top_k, batch.exclude, weights)
        if search.kind != "lists":
            ranked = RankedItems(ranked.items, self._as_without_filter(ranked.scores, batch, weights))
        return _without_missing(ranked)

    def _as_without_filter(self, scores: Tensor, batch: _Batch, weights: ItemWeights | None) -> Tensor:
        """Returns the scores `(B, K)` that the items would have without a filter.

        Scores are relative to the sum of all weights. A filter lowers this sum, and so shifts the scores.
        """
        if weights is None or batch.weights is None or weights is batch.weights or weights.strength == 0:
            return scores
        size = (len(scores), len(self._trie.item_positions))
        change = weights.log_total(*size) - batch.weights.to(self._trie.items.device).log_total(*size)  # (B, 1)
        change = torch.where(change.isfinite(), weights.strength * change, 0.0)
        return scores + change.to(scores)

    def _written(self, batch: _Batch, weights: ItemWeights | None, top_k: int) -> RankedItems:
        """Lets the model write one list per prompt. With one beam, it writes only the first `top_k` items of the list.
        A list is shorter if too few items are left to recommend."""
        assert self._format.list_length is not None
        num_beams = self._settings["num_beams"]
        full = top_k if num_beams == 1 else self._format.list_length
        lengths = _num_left(batch.exclude, weights, self._num_items).clamp(max=full).tolist()

        items = torch.full((len(lengths), top_k), -1)
        scores = torch.full((len(lengths), top_k), -torch.inf)
        for length in set(lengths) - {0}:
            rows = [row for row, own in enumerate(lengths) if own == length]
            ranked = self._ranked_list(
                {name: tensor[rows] for name, tensor in batch.prompts.items()},
                length,
                min(top_k, length),
                batch.exclude[rows],
                None if weights is None else weights.take(rows),
            )
            items[rows, : ranked.items.shape[1]] = ranked.items.cpu()
            scores[rows, : ranked.items.shape[1]] = ranked.scores.float().cpu()
        return RankedItems(items, scores)

    def _ranked_items(
        self, prompts: dict[str, Tensor], num_beams: int, top_k: int, exclude: Tensor, weights: ItemWeights | None
    ) -> RankedItems:
        """Returns the best `top_k` items after each prompt."""
        return rank_items(
            self._model,
            prompts,
            self._trie,
            num_beams=num_beams,
            top_k=top_k,
            exclude=exclude,
            renormalize=self._settings["renormalize"],
            length_penalty=self._settings["length_penalty"],
            weights=weights,
        )

    def _ranked_list(
        self, prompts: dict[str, Tensor], list_length: int, top_k: int, exclude: Tensor, weights: ItemWeights | None
    ) -> RankedItems:
        """Returns the first `top_k` items of the list that the model writes after each prompt."""
        return rank_list(
            self._model,
            prompts,
            self._trie,
            list_length=list_length,
            top_k=top_k,
            num_beams=self._settings["num_beams"],
            exclude=exclude,
            weights=weights,
        )

    def _weights(self, batch: _Batch) -> ItemWeights | None:
        """Returns the weights of the prior, with the filters of the batch."""
        if all(mask is None for mask in batch.masks):
            return batch.weights

        # Without a prior, use weights of strength 0. They remove the items that the filter does not allow, and change
        # no score.
        weights = ItemWeights(strength=0.0) if batch.weights is None else batch.weights
        masks = [mask or self._everything for mask in batch.masks]
        distinct = {mask.key: mask for mask in masks}
        number = {key: row for row, key in enumerate(distinct)}
        device = self._trie.items.device
        table = torch.stack([mask.on(device) for mask in distinct.values()])  # (F, I)
        return weights.to(device).filtered(table, torch.tensor([number[mask.key] for mask in masks], device=device))

    def _encode(self, histories: Ragged, users: list[int | None]) -> Ragged:
        """Returns the prompts of the histories."""
        known = [user for user in users if user is not None]
        given = np.array(known, np.int64) if self._format.users is not None and len(known) == len(users) else None
        return self._format.encode(histories, given, max_length=self._settings["max_length"])

    @cached_property
    def _falls_back(self) -> bool:
        """Whether the prior alone ranks the items for a request with an empty history. It does if its strength is not
        0 and if its positive weights differ, because the items would otherwise have equal scores."""
        if self._prior is None:
            return False
        weights = self._prior.weights(Ragged.from_lists([[]]))
        values = weights.dense(1, self._num_items)[0]
        values = values[values > 0]
        return bool(weights.strength) and len(values) > 0 and bool(values.min() < values.max())

    @property
    def _trie(self) -> TokenTrie:
        """The trie on the device of the model. If the model has been moved, the trie is moved as well."""
        self._given_trie = self._given_trie.to(self._model.device)
        return self._given_trie


class _Search(NamedTuple):
    """The kind of a search, and its number of beams.

    Args:
        kind: `"items"` (the model ranks single items), `"lists"` (the model writes a list) or `"prior"` (the prior
            alone ranks the items).
        num_beams: Number of beams of a search of the kind `"items"`. 0 if it has no effect, and for the other kinds.
    """

    kind: str
    num_beams: int


def _asked(request: Request, num_items: int) -> int:
    """Returns how many items are asked for in a round. With `max_per`, these are twice as many as the request needs
    (at most all items), because `max_per` leaves some of them out."""
    return min(2 * request.k, num_items) if request.limits else request.k


def _finished(one: CappedList, request: Request, search: _Search) -> Ranked:
    """Returns the ranking of a finished list."""
    # A later round of a beam search may find an item with a higher score than those of the rounds before.
    order = np.argsort(-np.array(one.scores), kind="stable")
    items = [one.items[place] for place in order]
    short = None if len(items) == request.wanted else _why_short(len(items), request, search)
    return Ranked(items, [one.scores[place] for place in order], search.kind == "prior", short)


def _why_short(number: int, request: Request, search: _Search) -> str:
    """Returns a sentence that says why a list has fewer items than were asked for."""
    if search.kind == "lists" and request.limits:
        why = "max_per allows no more items of the list that the model writes"
    elif request.mask is not None or request.limits:
        why = "the filters allow no more items"
    elif len(request.exclude):
        why = "all other items are excluded"
    else:
        why = "the catalogue has no other items that may be recommended"
    return f"the list has {number} of {request.wanted} items, because {why}"


def _without_missing(ranked: RankedItems) -> list[tuple[list[int], list[float]]]:
    """Converts a ranking to lists. Ranks without an item (-1) are left out."""
    lengths = (ranked.items >= 0).sum(1).tolist()
    rows = zip(ranked.items.tolist(), ranked.scores.float().tolist(), lengths, strict=True)
    return [(items[:length], scores[:length]) for items, scores, length in rows]


def _num_left(exclude: Tensor, weights: ItemWeights | None, num_items: int) -> Tensor:
    """Returns how many items can be recommended after each prompt, `(B,)`."""
    left = torch.ones(len(exclude), num_items + 1, dtype=torch.bool)
    if weights is not None:
        left[:, :-1] = weights.dense(len(exclude), num_items).cpu() > 0
    is_left_out = (exclude >= 0) & (exclude < num_items)
    # The last column is for padding and for retired items.
    left = left.scatter(1, torch.where(is_left_out, exclude, num_items), False)
    return left[:, :-1].sum(1)
