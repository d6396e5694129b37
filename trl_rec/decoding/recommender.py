"""Loads a recommender from a run folder (model, tokenizer, catalogue and settings), and recommends items with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.catalog_change import changed_recommender
from trl_rec.decoding.item_filter import Allowed, FilterMasks, ItemFilter, Where
from trl_rec.decoding.priors import Prior
from trl_rec.decoding.priors.matched import known_to
from trl_rec.decoding.priors.run_folder import load_run_prior
from trl_rec.decoding.recommended import Explanation, Recommendation, RecommendedList
from trl_rec.decoding.requests import Request, RequestRanker
from trl_rec.decoding.run_folder import SETTINGS, check_keys, check_users, load_run, local_folder
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.models.cpu import adapt_to_cpu
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.ranges import COUNT


@dataclass(frozen=True, eq=False)
class Recommender:
    """Recommends items that a user is likely to choose after a history. Make it with `from_pretrained`.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        catalog (`ItemCatalog`): The items.
        prompt_format (`PromptFormat`): Encodes histories as prompts.
        trie (`TokenTrie`): The catalogue's paths.
        settings (`dict`): `num_beams`, `renormalize`, `length_penalty`, `max_length`, and in `prompt` the arguments of
            [`PromptFormat.for_catalog`].
        prior ([`Prior`], *optional*): A prior, whose weights multiply the model's probabilities.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    catalog: ItemCatalog
    prompt_format: PromptFormat
    trie: TokenTrie
    settings: dict[str, Any]
    prior: Prior | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        catalog: ItemCatalog | str | Path | None = None,
        prior: Prior | Literal["saved"] | None = "saved",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> Recommender:
        """Loads the recommender from a run folder, or from a hub repository that was pushed from one.

        Args:
            folder (`str` or `Path`): The folder or hub id.
            catalog ([`ItemCatalog`], `str` or `Path`, *optional*): The items that the model was trained with, or the
                dataset folder that contains them. Needed only for a model from the hub, and there only in two
                cases: it was pushed without its catalogue, or its prompts contain semantic IDs of users, which are
                never pushed. To recommend from a different catalogue, see [`with_catalog`].
            prior ([`Prior`], *optional*, defaults to `"saved"`): A prior, whose weights multiply the model's
                probabilities. By default, the prior in the run folder is used, if there is one. With `None`, no prior
                is used.
            device (`torch.device` or `str`, *optional*): Where the model and the trie are kept. Defaults to the
                accelerator, or to the CPU if there is none. With `device_map`, the model stays where it is loaded.
            dtype (`torch.dtype` or `str`, *optional*): The type of the model's weights. Defaults to that of the saved
                weights.
            options: Passed to the model's `from_pretrained` (`device_map`, `attn_implementation`, ...).
        """
        path = local_folder(folder)
        if device is not None and "device_map" in options:
            raise ValueError("device and device_map both set the device of the model; pass only one of them")

        # 1. Load everything but the model.
        parts = load_parts(path, folder, catalog, with_prior=prior == "saved")
        prior = parts.prior if prior == "saved" else known_to(prior, parts.catalog)

        # 2. Load the model, and move it and the trie to the device.
        if dtype is not None:
            options["dtype"] = dtype
        model = load_model(path, **options)
        # Typed as `Any`, because the annotation of `PreTrainedModel.to` does not accept a `torch.device`.
        place: Any = PartialState().device if device is None else torch.device(device)
        if "device_map" not in options and model.device != place:
            model = model.to(place)
        adapt_to_cpu(model)
        trie = parts.trie.to(model.device)
        return cls(model, parts.tokenizer, parts.catalog, parts.prompt_format, trie, parts.settings, prior)

    def with_catalog(self, catalog: ItemCatalog, *, ids_from: str | Path | None = None) -> Recommender:
        """Returns a recommender with another catalogue, such as a newer version, and with the same model.

        Items are matched by `item_id`. The model can still read removed items in histories, but never recommends them.
        If items are written as titles, new items can be recommended at once. With semantic IDs, new items get IDs from
        `ids_from`, and known items keep their IDs. With one token per item, a new item raises a `ValueError`.

        Args:
            catalog (`ItemCatalog`): The new catalogue. Its surface is ignored.
            ids_from (`str` or `Path`, *optional*): With semantic IDs, the dataset folder whose saved encoder
                ([`ItemIdEncoder`]) gives new items their IDs. Required if there are new items.
        """
        return changed_recommender(self, catalog, ids_from)

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        user: int | None = None,
        exclude_history: bool = True,
        exclude: Sequence[str] = (),
        allowed: Allowed | None = None,
        where: Where | None = None,
        max_per: Mapping[str, int] | None = None,
        unknown: Literal["drop", "refuse"] = "drop",
    ) -> RecommendedList:
        """Returns the best `k` items after a history: [`recommend_batch`] for a single history.

        Args:
            history (list of `str`): Item ids, oldest first.
            k (`int`, *optional*, defaults to `10`): Number of items to recommend. A model that writes lists can
                recommend at most as many items as its lists have.
            user (`int`, *optional*): The user's row number in `RecDataset.users`. Required if the prompts contain
                semantic IDs of users.
            exclude_history (`bool`, *optional*, defaults to `True`): Whether to leave out the items of the history.
                Where items are written as titles, other items with the same titles are left out too.
            exclude (list of `str`, *optional*): Ids of further items to leave out.
            allowed, where, max_per (*optional*): Restrict which items may be recommended, as in [`ItemFilter`].
            unknown (`str`, *optional*, defaults to `"drop"`): What to do with ids in the history that the catalogue
                does not contain. With `"drop"`, they are dropped and counted in the list's `unknown`. With `"refuse"`,
                a `ValueError` is raised.

        Returns:
            [`RecommendedList`]: At most `k` [`Recommendation`]s, best first. With a model that writes lists, they are
            the first `k` items of its list, and the score of an item is the score of the list up to that item. Without
            a prior, this score is the log-probability of the list up to that item.
        """
        return self.recommend_batch(
            [history],
            k,
            users=[user],
            exclude_history=exclude_history,
            exclude=[exclude],
            filters=ItemFilter(allowed, where, max_per),
            unknown=unknown,
        )[0]

    def recommend_batch(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        *,
        users: Sequence[int | None] | None = None,
        exclude_history: bool = True,
        exclude: Sequence[Sequence[str]] | None = None,
        filters: ItemFilter | Sequence[ItemFilter | None] | None = None,
        unknown: Literal["drop", "refuse"] = "drop",
        batch_size: int = 64,
    ) -> list[RecommendedList]:
        """Returns the best items after each history, one list per history.

        The list of a history does not depend on the other histories of the batch, up to the rounding of scores.

        If a history is empty, or the catalogue contains none of its items, the list is ranked by the prior alone. The
        score of an item is then `log(w / W)`, where w is the weight that the prior gives the item, and W the sum of
        the weights of all items. The list's `fallback` is then True. But if there is no prior, if the prior's strength
        is 0, or if all positive weights of the prior are equal, the model ranks the items instead.

        Args:
            histories (lists of `str`): Item ids, oldest first.
            k (`int` or list of `int`, *optional*, defaults to `10`): Number of items to recommend: one number for all
                histories, or one per history.
            users (list of `int`, *optional*): The row number of each user in `RecDataset.users`. Required if the
                prompts contain semantic IDs of users.
            exclude_history (`bool`, *optional*, defaults to `True`): As in [`recommend`].
            exclude (lists of `str`, *optional*): Ids of further items to leave out, one list per history.
            filters ([`ItemFilter`], *optional*): Restricts which items may be recommended: one filter for all
                histories, or a list with one filter or None per history.
            unknown (`str`, *optional*, defaults to `"drop"`): As in [`recommend`].
            batch_size (`int`, *optional*, defaults to `64`): Maximum number of prompts per forward pass.
        """
        COUNT.check("batch_size", batch_size)
        if unknown not in ("drop", "refuse"):
            raise ValueError(f"unknown must be 'drop' or 'refuse', not {unknown!r:.80}")
        if isinstance(histories, str) or any(isinstance(history, str) for history in histories):
            raise ValueError("histories must be lists of item ids, one list per history")

        # 1. Give every history its own arguments.
        number = len(histories)
        ks = [k] * number if isinstance(k, int | np.integer) else _one_each("k", k, number)
        rows = [None] * number if users is None else _one_each("users", users, number)
        left_out = [()] * number if exclude is None else _one_each("exclude", exclude, number)
        own_filters = [filters] * number if isinstance(filters, ItemFilter) or filters is None else filters
        own_filters = _one_each("filters", own_filters, number)

        # 2. Look up the ids, and make the masks.
        requests = [
            self._request(history, own_k, row, out, one, unknown)
            for history, own_k, row, out, one in zip(histories, ks, rows, left_out, own_filters, strict=True)
        ]

        # 3. Rank, and look up the items.
        ranked = self.ranker.rank(requests, exclude_history=exclude_history, batch_size=batch_size)
        return [
            RecommendedList(
                (
                    Recommendation(self.catalog.ids[item], self.catalog.titles[item], score)
                    for item, score in zip(one.items, one.scores, strict=True)
                ),
                unknown=request.num_unknown,
                fallback=one.fallback,
                short=one.short,
            )
            for request, one in zip(requests, ranked, strict=True)
        ]

    def check_filter(self, one: ItemFilter) -> int:
        """Returns how many items of the catalogue a filter allows, not counting the effect of `max_per`.

        Raises `ValueError` if the filter is invalid.
        """
        mask = self.masks.mask(one)
        self.ranker.groups.limits(one.max_per)
        return self.catalog.num_recommendable if mask is None else mask.count

    def explain(
        self,
        history: Sequence[str],
        item: str,
        k: int | None = None,
        *,
        user: int | None = None,
        batch_size: int = 64,
    ) -> list[Explanation]:
        """Returns the items of a history that changed the score of an item most.

        The difference of a history item is the score of `item` after the whole history, minus the score after the
        history without that one item. It is positive if the history item raises the score. The score includes the
        prior, if there is one. A model that writes lists scores `item` as the first item of a list.

        Args:
            history (list of `str`): Item ids, oldest first. Ids that the catalogue does not contain are ignored.
            item (`str`): The id of the item to explain.
            k (`int`, *optional*): Maximum number of history items to return. Defaults to all.
            user (`int`, *optional*): As in [`recommend`].
            batch_size (`int`, *optional*, defaults to `64`): Maximum number of prompts per forward pass.

        Returns:
            list of [`Explanation`]: Sorted by the absolute value of the difference, largest first.
        """
        COUNT.check("batch_size", batch_size)
        if k is not None:
            COUNT.check("k", k)
        target = self._index(item, "item")
        if target >= self.catalog.num_recommendable:
            raise ValueError(f"item: {item!r:.80} was removed from the catalogue, so it has no score to explain")
        known = [self.catalog.positions[one] for one in history if one in self.catalog.positions]
        differences = self.ranker.leave_one_out(np.array(known, np.int64), target, user, batch_size)
        order = np.argsort(-np.abs(differences), kind="stable")[:k]
        return [
            Explanation(self.catalog.ids[known[place]], self.catalog.titles[known[place]], float(differences[place]))
            for place in order
        ]

    def _request(
        self,
        history: Sequence[str],
        k: int,
        user: int | None,
        exclude: Sequence[str],
        one: ItemFilter | None,
        unknown: str,
    ) -> Request:
        """Checks the arguments of one history, and looks up its ids."""
        COUNT.check("k", k)
        positions = self.catalog.positions
        if not all(isinstance(item_id, str) for item_id in (*history, *exclude)):
            raise ValueError("histories and exclude must contain item ids (strings)")
        known = [positions[item_id] for item_id in history if item_id in positions]
        if unknown == "refuse" and len(known) < len(history):
            first = next(item_id for item_id in history if item_id not in positions)
            raise ValueError(
                f"the history contains {first!r:.80}, which is not in the catalogue of {len(self.catalog)} items; "
                "leave it out, or pass unknown='drop'"
            )
        return Request(
            history=np.array(known, np.int64),
            num_unknown=len(history) - len(known),
            k=min(k, self.catalog.num_recommendable),
            wanted=k,
            user=user,
            exclude=np.array([self._index(item_id, "exclude") for item_id in exclude], np.int64),
            mask=self.masks.mask(one),
            limits=self.ranker.groups.limits(None if one is None else one.max_per),
        )

    def _index(self, item_id: str, what: str) -> int:
        """Returns the index of an id. Raises `ValueError` if the catalogue does not contain it."""
        if item_id not in self.catalog.positions:
            raise ValueError(
                f"{what}: {item_id!r:.80} is not in the catalogue of {len(self.catalog)} items; give the id of an "
                "item in the catalogue"
            )
        return self.catalog.positions[item_id]

    @cached_property
    def masks(self) -> FilterMasks:
        """Converts filters to masks, and caches the masks of recent `where` conditions."""
        return FilterMasks(self.catalog)

    @cached_property
    def ranker(self) -> RequestRanker:
        """Ranks the catalogue for requests, which contain item indices instead of ids."""
        return RequestRanker(
            self.model,
            self.prompt_format,
            self.trie,
            self.catalog.without_retired(),
            pad_token_id=int(self.tokenizer.pad_token_id),
            settings=self.settings,
            prior=self.prior,
        )


class RunParts(NamedTuple):
    """The content of a run folder besides the model. The fields are those of [`Recommender`]."""

    tokenizer: PreTrainedTokenizerBase
    catalog: ItemCatalog
    prompt_format: PromptFormat
    trie: TokenTrie
    settings: dict[str, Any]
    prior: Prior | None


def load_parts(
    path: Path, name: str | Path, catalog: ItemCatalog | str | Path | None = None, *, with_prior: bool
) -> RunParts:
    """Loads the content of a run folder besides the model. Error messages call the folder `name`."""
    if not (path / SETTINGS).is_file():
        raise ValueError(
            f"{name} is not a run folder ({SETTINGS} is missing); pass the output folder of a trl-rec trainer"
        )
    settings, items = load_run(path, SETTINGS, catalog)
    check_keys(path / SETTINGS, settings, ("num_beams", "renormalize", "length_penalty", "max_length"))
    check_users(name, items, settings["prompt"])
    tokenizer = load_tokenizer(path)
    prompt_format = PromptFormat.for_catalog(items, tokenizer, **settings["prompt"])
    trie = TokenTrie.from_catalog(items, tokenizer, lists=prompt_format.list_length is not None)
    prior = known_to(load_run_prior(path, settings, items.num_recommendable), items) if with_prior else None
    return RunParts(tokenizer, items, prompt_format, trie, settings, prior)


def _one_each(name: str, values: Sequence[Any], number: int) -> list[Any]:
    """Returns the values as a list. Raises `ValueError` unless there is one value per history."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or len(values) != number:
        raise ValueError(f"{name} must have one entry for each of the {number} histories")
    return list(values)
