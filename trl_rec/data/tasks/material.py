"""What the tasks' rows are made of: whom they are about, what fills the slots of their prompts, and what they answer.

Everything is a row of token ids in a table that is tokenised once: titles, texts, users' IDs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from trl_rec.data.dataset import RecDataset, split_rows, split_users
from trl_rec.data.profiles import item_texts, preference_texts, user_profiles
from trl_rec.data.prompts import PromptFormat
from trl_rec.ragged import Ragged, join, within


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_ITEMS, OF_USERS = ("item_to_id", "id_to_item"), ("profile_to_user", "user_to_profile")
NOBODY = -1  # the user of a row about an item


@dataclass(frozen=True, eq=False)
class Words:
    """What slots and answers are made of, each made when first asked for.

    Args:
        dataset (`RecDataset`): Items, users and training split.
        tokenizer (`PreTrainedTokenizerBase`): Writes texts.
        prompt_format (`PromptFormat`): Writes items, and tells whether users are named.
        longest_history (`int`): Most items that are told of.
    """

    dataset: RecDataset
    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat
    longest_history: int

    @cached_property
    def titles(self) -> Ragged:
        """Row `i`: item `i`'s title."""
        return self.written(self.dataset.catalog.titles)

    @cached_property
    def listed_titles(self) -> Ragged:
        """Row `i`: item `i` as it stands in a history of titles."""
        return self.written([f'"{title}"\n' for title in self.dataset.catalog.titles])

    @cached_property
    def user_ids(self) -> Ragged:
        """Row `u`: user `u`'s semantic ID."""
        return self.dataset.catalog.user_token_ids(self.tokenizer)

    def named(self, users: np.ndarray) -> Ragged:
        """Each user as a prompt about items names them."""
        if self.prompt_format.users is None:
            return Ragged.from_lengths(np.empty(0, np.int64), np.zeros(len(users), np.int64))
        return self.user_ids.take(users)

    def written(self, texts: list[str]) -> Ragged:
        """Token ids of texts, in which no control token and no item's token is read."""
        if not texts:
            return Ragged.from_lists([])
        texts = [re.sub(r"<(?=[^<>\s]+>)", "< ", text) for text in texts]  # a title may hold what a token looks like
        return Ragged.from_lists(
            self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )

    def ended(self, texts: Ragged) -> Ragged:
        """Texts as answers: EOS ends them."""
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token to end a text with; set tokenizer.eos_token")
        return join(texts, Ragged.repeated(np.array([self.tokenizer.eos_token_id]), len(texts)))


@dataclass(frozen=True, eq=False)
class Material:
    """Rows of a task before they are fitted.

    Args:
        users (`np.ndarray`): Whom each row is about.
        slots (`dict[str, Ragged]`): What fills the slots, histories aside.
        answers (`Ragged`): What is to be learned.
        before (`Ragged`, *optional*): The items of the history.
    """

    users: np.ndarray
    slots: dict[str, Ragged]
    answers: Ragged
    before: Ragged | None = None


def make_material(name: str, count: int, key: list[int], words: Words) -> Material:
    """So many rows of a task, in which the key chooses what is drawn."""
    make = _about_items if name in OF_ITEMS else _about_users if name in OF_USERS else _after_histories
    return make(name, count, key, words)


def _about_items(name: str, count: int, key: list[int], words: Words) -> Material:
    catalog, paths = words.dataset.catalog, words.prompt_format.paths
    items = drawn(len(catalog), count, key)
    nobody, titles = np.full(len(items), NOBODY), words.titles.take(items)
    if name == "id_to_item":
        return Material(nobody, {"item": paths.take(items)}, words.ended(titles))
    texts = words.written(item_texts(catalog)).take(items)
    return Material(nobody, {"title": titles, "text": texts}, paths.take(items))


def _about_users(name: str, count: int, key: list[int], words: Words) -> Material:
    profiles = user_profiles(words.dataset)
    described = np.flatnonzero([bool(profile) for profile in profiles])
    users = described[drawn(len(described), count, key)]
    texts, ids = words.written(profiles).take(users), words.user_ids.take(users)
    if name == "profile_to_user":
        return Material(users, {"profile": texts}, ids)
    return Material(users, {"user": ids}, words.ended(texts))


def _after_histories(name: str, count: int, key: list[int], words: Words) -> Material:
    train, catalog = words.dataset.train, words.dataset.catalog
    chosen = drawn(len(split_rows(train, "targets").values), count, key)
    users, before, target = _prefixes(train, chosen, words.longest_history)
    slots, kept = {"user": words.named(users)}, np.ones(len(users), bool)
    if name == "history_to_title":
        answers = words.ended(words.titles.take(target))
    elif name == "history_to_preference":
        told = preference_texts(before, catalog)
        answers, kept = words.ended(words.written(told)), np.array([bool(text) for text in told], bool)
    else:
        answers = words.prompt_format.paths.take(target)
    if name == "query_to_item":
        asked = {"preference": preference_texts(before, catalog), "query": _queries(words.dataset, target)}
        slots |= {slot: words.written(texts) for slot, texts in asked.items()}
        kept = np.array([bool(preference and query) for preference, query in zip(*asked.values(), strict=True)], bool)
    rows = np.flatnonzero(kept)
    return Material(
        users[rows], {slot: ids.take(rows) for slot, ids in slots.items()}, answers.take(rows), before.take(rows)
    )


def _queries(dataset: RecDataset, items: np.ndarray) -> list[str]:
    """What somebody would search for who wants the item: its groups, or words of its title where the catalogue has
    none."""
    return preference_texts(Ragged.from_lengths(items, np.ones(len(items), np.int64)), dataset.catalog, most=2)


def _prefixes(train: Dataset, numbers: np.ndarray, most: int) -> tuple[np.ndarray, Ragged, np.ndarray]:
    """User, the newest items before, and the item, of the training targets with these numbers."""
    history, targets = split_rows(train, "history"), split_rows(train, "targets")
    sequences = join(history, targets)
    source = np.searchsorted(targets.offsets, numbers, side="right") - 1
    stop = sequences.offsets[source] + history.lengths[source] + numbers - targets.offsets[source]
    lengths = np.minimum(stop - sequences.offsets[source], most)
    before = sequences.values[np.repeat(stop - lengths, lengths) + within(lengths)]
    return split_users(train)[source], Ragged.from_lengths(before, lengths), sequences.values[stop]


def drawn(total: int, count: int, key: list[int]) -> np.ndarray:
    """So many of the numbers below `total`, ascending: all of them as often as they fit, and a sample."""
    if not total:
        return np.empty(0, np.int64)
    rest = np.random.default_rng(key).choice(total, count % total, replace=False)
    return np.sort(np.concatenate([np.tile(np.arange(total), count // total), rest]))
