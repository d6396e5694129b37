"""Makes the contents of the training rows of a task, such as `item_to_id`: users, texts for the prompt, and answers.

A slot is a placeholder of a prompt template, such as `{title}`. The texts that fill the slots, and the answers, are
stored as token ids. Titles and users' semantic IDs are tokenised once, into tables from which the rows are filled.
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

ITEM_TASKS = ("item_to_id", "id_to_item")
USER_TASKS = ("profile_to_user", "user_to_profile")
NOBODY = -1  # the user of a row about an item


@dataclass(frozen=True, eq=False)
class TokenTables:
    """Tables of token ids for slots and answers. Each table is made on first use.

    Args:
        dataset (`RecDataset`): The dataset. Only its items, users and training split are used.
        tokenizer (`PreTrainedTokenizerBase`): Tokenises texts.
        prompt_format (`PromptFormat`): Determines how items are written, and whether prompts name users (contain
            their semantic IDs).
        longest_history (`int`): Maximum number of items in a history.
    """

    dataset: RecDataset
    tokenizer: PreTrainedTokenizerBase
    prompt_format: PromptFormat
    longest_history: int

    @cached_property
    def titles(self) -> Ragged:
        """Row `i` contains the title of item `i`."""
        return self.tokenize(self.dataset.catalog.titles)

    @cached_property
    def listed_titles(self) -> Ragged:
        """Row `i` contains the line of item `i` in a history of titles."""
        return self.tokenize([f'"{title}"\n' for title in self.dataset.catalog.titles])

    @cached_property
    def user_ids(self) -> Ragged:
        """Row `u` contains the semantic ID of user `u`."""
        return self.dataset.catalog.user_token_ids(self.tokenizer)

    def user_slots(self, users: np.ndarray) -> Ragged:
        """Returns the semantic ID of each user, or empty rows if prompts do not name users."""
        if self.prompt_format.users is None:
            return Ragged.from_lengths(np.empty(0, np.int64), np.zeros(len(users), np.int64))
        return self.user_ids.take(users)

    def tokenize(self, texts: list[str]) -> Ragged:
        """Tokenises texts. The result contains no special tokens and no tokens of items."""
        if not texts:
            return Ragged.from_lists([])
        # A title may contain "<a_1>". A space after the bracket prevents a match with an added token.
        texts = [re.sub(r"<(?=[^<>\s]+>)", "< ", text) for text in texts]
        tokens = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
        return Ragged.from_lists(tokens["input_ids"])

    def with_eos(self, texts: Ragged) -> Ragged:
        """Appends EOS to texts that are answers."""
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise ValueError("the tokenizer has no EOS token to end a text with; set tokenizer.eos_token")
        return join(texts, Ragged.repeated(np.array([eos]), len(texts)))


@dataclass(frozen=True, eq=False)
class Material:
    """The contents of the rows of a task before they are cut to `max_length`.

    Args:
        users (`np.ndarray`): The user of each row, or `NOBODY`.
        slots (`dict[str, Ragged]`): Maps the name of each slot, except the history, to its token ids in each row.
        answers (`Ragged`): Token ids of the answer of each row.
        histories (`Ragged`, *optional*): Item indices of the history of each row, if the task has histories.
    """

    users: np.ndarray
    slots: dict[str, Ragged]
    answers: Ragged
    histories: Ragged | None = None


def make_material(name: str, count: int, key: list[int], tables: TokenTables) -> Material:
    """Returns up to `count` rows of a task. Rows whose texts would be empty are dropped.

    Args:
        name: The task.
        count: Maximum number of rows.
        key: Seed of the sample, as for `np.random.default_rng`.
        tables: The token ids of slots and answers.
    """
    if name in ITEM_TASKS:
        return _about_items(name, count, key, tables)
    if name in USER_TASKS:
        return _about_users(name, count, key, tables)
    return _after_histories(name, count, key, tables)


def sample_evenly(total: int, count: int, key: list[int]) -> np.ndarray:
    """Returns a sorted sample of `count` numbers below `total`, or an empty array if `total` is 0.

    All numbers occur equally often, up to a difference of 1.
    """
    if not total:
        return np.empty(0, np.int64)
    rest = np.random.default_rng(key).choice(total, count % total, replace=False)
    return np.sort(np.concatenate([np.tile(np.arange(total), count // total), rest]))


def _about_items(name: str, count: int, key: list[int], tables: TokenTables) -> Material:
    """Makes rows about an item. In `id_to_item`, the prompt contains the item's path (the token ids of its surface),
    and the answer is the title. In `item_to_id`, the prompt contains the title or a description, and the answer is
    the path."""
    catalog = tables.dataset.catalog
    items = sample_evenly(len(catalog), count, key)
    users = np.full(len(items), NOBODY)
    item_ids = tables.prompt_format.paths.take(items)
    titles = tables.titles.take(items)
    if name == "id_to_item":
        return Material(users, {"item": item_ids}, tables.with_eos(titles))
    texts = tables.tokenize(item_texts(catalog)).take(items)  # tokenise each text once, even if its item is repeated
    return Material(users, {"title": titles, "text": texts}, item_ids)


def _about_users(name: str, count: int, key: list[int], tables: TokenTables) -> Material:
    """Makes rows that ask for the user of a profile, or for the profile of a user. Drops users without a profile."""
    profiles = user_profiles(tables.dataset)
    described = np.flatnonzero([bool(profile) for profile in profiles])  # users with a profile
    users = described[sample_evenly(len(described), count, key)]
    texts = tables.tokenize(profiles).take(users)
    user_ids = tables.user_ids.take(users)
    if name == "profile_to_user":
        return Material(users, {"profile": texts}, user_ids)
    return Material(users, {"user": user_ids}, tables.with_eos(texts))


def _after_histories(name: str, count: int, key: list[int], tables: TokenTables) -> Material:
    """Makes rows about a training target and the history before it."""
    # 1. Sample training targets.
    train = tables.dataset.train
    catalog = tables.dataset.catalog
    numbers = sample_evenly(len(split_rows(train, "targets").values), count, key)
    users, histories, targets = _prefixes(train, numbers, tables.longest_history)
    slots = {"user": tables.user_slots(users)}
    has_text = np.ones(len(users), bool)  # (count,)

    # 2. Make the answers, and the slots that only some tasks have.
    if name == "history_to_title":
        answers = tables.with_eos(tables.titles.take(targets))
    elif name == "history_to_preference":
        preferences = preference_texts(histories, catalog)
        answers = tables.with_eos(tables.tokenize(preferences))
        has_text = np.array([bool(text) for text in preferences], bool)
    else:
        answers = tables.prompt_format.paths.take(targets)
    if name == "query_to_item":
        preferences = preference_texts(histories, catalog)
        queries = _query_texts(tables.dataset, targets)
        slots["preference"] = tables.tokenize(preferences)
        slots["query"] = tables.tokenize(queries)
        has_text = np.array([bool(text and query) for text, query in zip(preferences, queries, strict=True)], bool)

    # 3. Drop rows in which a text would be empty.
    rows = np.flatnonzero(has_text)
    slots = {slot: ids.take(rows) for slot, ids in slots.items()}
    return Material(users[rows], slots, answers.take(rows), histories.take(rows))


def _query_texts(dataset: RecDataset, items: np.ndarray) -> list[str]:
    """Returns a search query per item: up to two of the item's groups, such as genres. If the catalogue has no groups,
    the query consists of words of the title instead."""
    single_items = Ragged.from_lengths(items, np.ones(len(items), np.int64))
    return preference_texts(single_items, dataset.catalog, most=2)


def _prefixes(train: Dataset, numbers: np.ndarray, most: int) -> tuple[np.ndarray, Ragged, np.ndarray]:
    """For the targets with the given numbers, returns the user, the newest items before the target, and the target.

    Args:
        train: The training split.
        numbers: Indices into all targets of the split, joined row by row.
        most: Maximum number of items before a target.
    """
    history = split_rows(train, "history")
    targets = split_rows(train, "targets")
    sequences = join(history, targets)

    # Find the row of each target, and the position of the target in the joined values of all sequences.
    source = np.searchsorted(targets.offsets, numbers, side="right") - 1
    stop = sequences.offsets[source] + history.lengths[source] + numbers - targets.offsets[source]

    # Gather the newest items before each target from the joined values.
    lengths = np.minimum(stop - sequences.offsets[source], most)
    before = sequences.values[np.repeat(stop - lengths, lengths) + within(lengths)]
    return split_users(train)[source], Ragged.from_lengths(before, lengths), sequences.values[stop]
