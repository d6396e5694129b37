"""Describes items and users in words, from their columns and from what users chose in training.

No language model writes these texts, so the same data gives the same texts. A user's taste is described by labels of
the chosen items: their groups, or the words of their titles if the catalogue has no group column. Validation and test
are not used.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from trl_rec.data.dataset import RecDataset, check_is_train, split_rows, split_users
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged, join


WORD = r"[^\W\d_]{4,}"  # a word of a title; words of fewer letters say little about an item
CHUNK = 100_000  # histories per chunk, which bounds the memory for the labels of their items


def item_texts(catalog: ItemCatalog, template: str | None = None) -> list[str]:
    """One text per item, by index: `Silver Mirror; genres: Comedy, Romance; year: 1995`.

    Args:
        catalog: The items.
        template (*optional*): Text with column names in braces, such as `{title}, of {year}`; a missing value becomes
            empty text. By default the title, then all other columns in which the item has a value.
    """
    columns = _text_columns(catalog.items, leave_out=("item_id",))
    if template is None:
        titles = columns.pop("title")
        facts = _facts(columns, "{}: {}", len(catalog))
        return ["; ".join([title, *fact]) for title, fact in zip(titles, facts, strict=True)]

    try:
        texts = []
        for item in range(len(catalog)):
            texts.append(template.format_map({name: values[item] for name, values in columns.items()}))
        return texts
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise ValueError(
            f"the item template {template!r} cannot be filled ({error!r}); the columns are {', '.join(columns)}"
        ) from error


def user_profiles(dataset: RecDataset, *, most: int = 3) -> list[str]:
    """One text per user, by number: `age 24, occupation technician; often Comedy, Drama, Action`.

    The text of a user without columns who chose nothing in training is empty.

    Args:
        dataset: The users' columns and the training split are used.
        most (*optional*, defaults to `3`): Largest number of labels in a text.
    """
    facts = _facts(_text_columns(dataset.users, leave_out=("user_id",)), "{} {}", dataset.users.num_rows)
    preferences = preference_texts(_chosen_items(dataset), dataset.catalog, most=most)
    profiles = []
    for fact, preference in zip(facts, preferences, strict=True):
        parts = [", ".join(fact), f"often {preference}" if preference else ""]
        profiles.append("; ".join(filter(None, parts)))
    return profiles


def preference_texts(histories: Ragged, catalog: ItemCatalog, *, most: int = 3) -> list[str]:
    """The most frequent labels of each history's items: `Comedy, Drama`. Ties go to the first label by name.

    Args:
        histories: Item indices.
        catalog: The items.
        most (*optional*, defaults to `3`): Largest number of labels in a text.
    """
    names, labels = item_labels(catalog)
    texts: list[str] = []
    for start in range(0, len(histories), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(histories)))
        top = _most_frequent(histories.take(rows).flatten(labels), len(names), most)
        texts += [", ".join(names[label] for label in top[row]) for row in range(len(top))]
    return texts


def item_labels(catalog: ItemCatalog) -> tuple[list[str], Ragged]:
    """The names of all labels in alphabetical order, and the distinct labels of each item as rows of indices."""
    values: list[Any]
    if catalog.group_column is None:
        values = [re.findall(WORD, title) for title in catalog.titles]
    else:
        values = catalog.items[catalog.group_column].to_pylist()
    # A group column contains lists or single values. Empty labels are left out.
    lists = [sorted({str(label) for label in _as_list(value) if label}) for value in values]
    members = Ragged.from_lists(lists, object)
    names, labels = np.unique(members.values.astype(str), return_inverse=True)
    return names.tolist(), Ragged(labels.astype(np.int64), members.offsets)


def _most_frequent(labels: Ragged, num_labels: int, most: int) -> Ragged:
    """The labels that occur most often in each row; ties go to the lower index."""
    # 1. Count each pair of row and label, as one number.
    base = max(num_labels, 1)
    pairs, counts = np.unique(labels.row_ids * base + labels.values, return_counts=True)
    rows, label = np.divmod(pairs, base)

    # 2. Sort by row, then by falling count, then by label.
    order = np.lexsort((label, -counts, rows))
    return Ragged.from_lengths(label[order], np.bincount(rows, minlength=len(labels))).head(most)


def _chosen_items(dataset: RecDataset) -> Ragged:
    """Row `u` has the distinct items that user `u` chose in training."""
    check_is_train(dataset.train, "a profile")
    items = join(split_rows(dataset.train, "history"), split_rows(dataset.train, "targets"))
    users = split_users(dataset.train)[items.row_ids].astype(np.int64)
    # Each pair of user and item as one number, so that `unique` removes repetitions and sorts by user.
    pairs = np.unique(users * len(dataset.catalog) + items.values)
    users, chosen = np.divmod(pairs, len(dataset.catalog))
    return Ragged.from_lengths(chosen, np.bincount(users, minlength=dataset.users.num_rows))


def _text_columns(table: pa.Table, leave_out: tuple[str, ...]) -> dict[str, list[str]]:
    """Each column's values as texts."""
    names = [name for name in table.column_names if name not in leave_out]
    return {name: [_as_text(value) for value in table[name].to_pylist()] for name in names}


def _facts(columns: dict[str, list[str]], form: str, num_rows: int) -> list[list[str]]:
    """Per row, name and value of each column in which the row has a value."""
    named = [(name.replace("_", " "), values) for name, values in columns.items()]
    return [[form.format(name, values[row]) for name, values in named if values[row]] for row in range(num_rows)]


def _as_text(value: Any) -> str:
    """A value on one line; empty for null and NaN."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    if value is None or value != value:  # NaN differs from itself
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


def _as_list(value: Any) -> list[Any]:
    """The value if it is a list, else a list of the value. Null gives an empty list."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]
