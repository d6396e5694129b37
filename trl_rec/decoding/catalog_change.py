"""Lets a recommender recommend from a changed catalogue, without training.

What is possible depends on how the model writes items. A model that writes titles can rank any title. A model that
writes semantic IDs can rank a new item if its ID consists of tokens that the model knows. A model with one token per
item has no token for a new item, so items can only be removed.

The model can still read removed items in histories. Their paths are no longer in the trie, so they are never
recommended.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.priors.matched import MatchedPrior
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.items.changes import CatalogChange, match_items
from trl_rec.semantic_ids.known_ids import kept_ids


if TYPE_CHECKING:
    from trl_rec.decoding.recommender import Recommender


def changed_recommender(
    recommender: Recommender, catalog: ItemCatalog, ids_from: str | Path | None = None
) -> Recommender:
    """Returns a recommender that uses the same model, but recommends from another catalogue.

    Args:
        recommender (`Recommender`): The recommender, which is left unchanged.
        catalog (`ItemCatalog`): The items that can be recommended from now on. Its surface (the form in which items
            are written) is ignored.
        ids_from (`str` or `Path`, *optional*): As in [`Recommender.with_catalog`].
    """
    # 1. Match the items by their ids.
    old = recommender.catalog
    ids = catalog.semantic_ids
    if old.surface == "semantic_id":
        ids = kept_ids(catalog, old, ids_from)
    catalog = replace(catalog, surface=old.surface, semantic_ids=ids, user_ids=old.user_ids)
    change = match_items(old, catalog)
    _check_writable(change, recommender)

    # 2. Make the prompt format and the trie. An item token is named after the item's row in the catalogue that the
    # model was trained with. So the tokens of an item, both in histories (`pieces`) and as a recommendation (`paths`),
    # are taken from the old prompt format.
    if old.surface == "item_token":
        given = recommender.prompt_format
        prompt_format = replace(
            given, pieces=given.pieces.take(change.sources), paths=given.paths.take(change.sources)
        )
        paths = prompt_format.paths.first(change.catalog.num_recommendable)
        trie = TokenTrie.from_sequences(torch.from_numpy(paths.padded()))
    else:
        prompt = recommender.settings.get("prompt", {})
        prompt_format = PromptFormat.for_catalog(change.catalog, recommender.tokenizer, **prompt)
        lists = prompt_format.list_length is not None
        trie = TokenTrie.from_catalog(change.catalog, recommender.tokenizer, lists=lists)

    # 3. Match the prior with the new catalogue. If the prior is already a `MatchedPrior`, because the catalogue was
    # changed before or has retired items, match the original prior again.
    prior = recommender.prior
    sources = change.sources
    if isinstance(prior, MatchedPrior):
        sources = np.where(sources < 0, -1, prior.sources[sources])
        prior = prior.prior
    if prior is not None:
        prior = MatchedPrior(prior, sources, change.catalog.num_recommendable)
    trie = trie.to(recommender.trie.items.device)
    return replace(recommender, catalog=change.catalog, prompt_format=prompt_format, trie=trie, prior=prior)


def _check_writable(change: CatalogChange, recommender: Recommender) -> None:
    """Raises ValueError if the model has no tokens for a new item."""
    new = np.flatnonzero(change.sources < 0)
    if change.catalog.surface == "item_token" and len(new):
        raise ValueError(
            f"the model has one token per item, and none for {len(new):,} new items, such as item "
            f"{change.catalog.ids[new[0]]!r}; leave them out, or continue to train this model on a dataset with them"
        )
    if change.catalog.surface == "semantic_id":
        unknown = sorted(set(change.catalog.item_tokens) - set(recommender.tokenizer.get_vocab()))
        if unknown:
            raise ValueError(
                f"{len(unknown):,} tokens of the new items are unknown to the model, such as {unknown[0]!r}; leave "
                "these items out, or continue to train this model on a dataset with them"
            )
