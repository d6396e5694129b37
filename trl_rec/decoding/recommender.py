"""Recommends items with the model of a run folder, which contains the model, tokenizer, catalogue and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.beam import RankedItems, rank_items
from trl_rec.decoding.list_beams import rank_list
from trl_rec.decoding.priors import Prior
from trl_rec.decoding.priors.run_folder import load_run_prior
from trl_rec.decoding.run_folder import SETTINGS, check_keys, load_run, local_folder
from trl_rec.decoding.weights import ItemWeights
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT


class Recommendation(NamedTuple):
    """One rank of a recommended list: an item and its score."""

    item_id: str
    title: str
    score: float


@dataclass(frozen=True, eq=False)
class Recommender:
    """Recommends items that a user is likely to choose after a history. Make it with `from_pretrained`.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        catalog (`ItemCatalog`): The items.
        prompt_format (`PromptFormat`): Encodes histories as prompts.
        trie (`TokenTrie`): The catalogue's paths.
        settings (`dict`): `num_beams`, `renormalize`, `length_penalty`, `max_length`.
        prior ([`Prior`], *optional*): A prior that the model is multiplied by.
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
        cls, folder: str | Path, *, prior: Prior | Literal["saved"] | None = "saved", **options: Any
    ) -> Recommender:
        """Loads the recommender from a run folder, or from a hub repository that was pushed from one.

        Args:
            folder (`str` or `Path`): The folder or hub id.
            prior ([`Prior`], *optional*, defaults to `"saved"`): A prior that the model is multiplied by. By default,
                the prior in the run folder is used, if there is one. With `None`, no prior is used.
            options: Passed to the model's `from_pretrained` (`dtype`, `device_map`, ...).
        """
        path = local_folder(folder)
        if not (path / SETTINGS).is_file():
            raise ValueError(
                f"{folder} is not a run folder ({SETTINGS} is missing); pass the output folder of a trl-rec trainer"
            )

        settings, catalog = load_run(path, SETTINGS)
        check_keys(path / SETTINGS, settings, ("num_beams", "renormalize", "length_penalty", "max_length"))
        tokenizer = load_tokenizer(path)
        prompt_format = PromptFormat.for_catalog(catalog, tokenizer, **settings.pop("prompt"))
        trie = TokenTrie.from_catalog(catalog, tokenizer, lists=prompt_format.list_length is not None)
        own = load_run_prior(path, settings, len(catalog)) if prior == "saved" else prior
        return cls(load_model(path, **options), tokenizer, catalog, prompt_format, trie, settings, own)

    def recommend(
        self, history: Sequence[str], k: int = 10, *, user: int | None = None, exclude_history: bool = True
    ) -> list[Recommendation]:
        """Returns the best `k` items after a history.

        Args:
            history (list of `str`): Item ids, oldest first.
            k (`int`, *optional*, defaults to `10`): Number of items to recommend. A model that writes lists can
                recommend at most as many items as its lists have.
            user (`int`, *optional*): The user's row in `RecDataset.users`; required if the prompts name the user.
            exclude_history (`bool`, *optional*, defaults to `True`): Whether to leave out the items of the history.
                Where items are written as titles, other items with the same titles are left out too.

        Returns:
            At most `k` [`Recommendation`]s, best first. With a model that writes lists, they are the first `k` items
            of its list, and the score of an item is the score of the list up to that item. Without a prior, this is
            the log-probability of that part of the list.
        """
        COUNT.check("k", k)
        k = min(k, len(self.catalog))

        # 1. Write the prompt.
        indices = self.catalog.index_of(list(history)).tolist() if len(history) else []
        users = None if user is None else np.array([user])
        histories = Ragged.from_lists([indices])
        encoded = self.prompt_format.encode(histories, users, max_length=self.settings["max_length"])
        prompt = torch.from_numpy(encoded.padded())  # (1, P)

        # 2. Rank the catalogue.
        batch = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        exclude = [self.prompt_format.exclusions(histories)[0].tolist()] if exclude_history else None
        weights = None if self.prior is None else self.prior.weights(histories)
        ranked = self._rank(batch, k, exclude, weights)

        # 3. Look up the items; -1 marks an empty rank.
        ranks = zip(ranked.items[0].tolist(), ranked.scores[0].tolist(), strict=True)
        return [
            Recommendation(self.catalog.ids[item], self.catalog.titles[item], score)
            for item, score in ranks
            if item >= 0
        ]

    def _rank(
        self, prompts: dict[str, torch.Tensor], k: int, exclude: list[list[int]] | None, weights: ItemWeights | None
    ) -> RankedItems:
        """Ranks the catalogue in the way that the model was trained for: by writing a list, or by ranking single
        items."""
        num_beams = self.settings["num_beams"]
        length = self.prompt_format.list_length
        if length is not None:
            return rank_list(
                self.model,
                prompts,
                self.trie,
                list_length=length,
                top_k=k,
                num_beams=num_beams,
                exclude=exclude,
                weights=weights,
            )
        return rank_items(
            self.model,
            prompts,
            self.trie,
            num_beams=max(k, num_beams),
            top_k=k,
            exclude=exclude,
            renormalize=self.settings["renormalize"],
            length_penalty=self.settings["length_penalty"],
            weights=weights,
        )
