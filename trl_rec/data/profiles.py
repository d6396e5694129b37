"""Makes texts that describe items and users, from their columns and from the training split.

The texts are composed without a language model, so they are deterministic. The preferences of a user are described by
the labels of the user's items in the training split. The labels of an item are the values of the catalogue's group
column, such as genres. If the catalogue has no group column, they are the words of the item's title that have at least
four letters.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from trl_rec.data.dataset import RecDataset, check_is_train, split_rows, split_users
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged, join


WORD = r"[^\W\d_]{4,}"  # a word of at least four letters, because shorter words say little about an item
CHUNK = 100_000  # number of histories processed at once, which bounds memory


def item_texts(catalog: ItemCatalog, template: str | None = None) -> list[str]:
    """Returns one text per item, such as `Silver Mirror; genres: Comedy, Romance; year: 1995`.

    Args:
        catalog: The items.
        template (*optional*): Text with column names in braces, such as `{title}, of {year}`; a missing value becomes
            empty text. The default text is the title, followed by the other columns in which the item has a value.
            The column `item_id` is never used.
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
    """Returns one text per user, such as `age 24, occupation technician; often Comedy, Drama, Action`.

    The text is empty if the user has no value in any column and none of the user's training items has a label.

    Args:
        dataset: The dataset. Only its users, catalogue and training split are used.
        most (*optional*, defaults to `3`): Maximum number of labels in a text.
    """
    facts = _facts(_text_columns(dataset.users, leave_out=("user_id",)), "{} {}", dataset.users.num_rows)
    preferences = preference_texts(_chosen_items(dataset), dataset.catalog, most=most)
    profiles = []
    for fact, preference in zip(facts, preferences, strict=True):
        parts = [", ".join(fact), f"often {preference}" if preference else ""]
        profiles.append("; ".join(filter(None, parts)))
    return profiles


def preference_texts(histories: Ragged, catalog: ItemCatalog, *, most: int = 3) -> list[str]:
    """Returns the most frequent labels of the items of each history, such as `Comedy, Drama`.

    Equally frequent labels are in alphabetical order.

    Args:
        histories: Item indices.
        catalog: The items.
        most (*optional*, defaults to `3`): Maximum number of labels in a text.
    """
    names, labels = item_labels(catalog)
    texts: list[str] = []
    for start in range(0, len(histories), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(histories)))
        top = _most_frequent(histories.take(rows).flatten(labels), len(names), most)
        texts += [", ".join(names[label] for label in top[row]) for row in range(len(top))]
    return texts


def item_labels(catalog: ItemCatalog) -> tuple[list[str], Ragged]:
    """Returns the names of all labels in alphabetical order, and for each item the indices of its distinct labels."""
    values: list[Any]
    if catalog.group_column is None:
        values = [re.findall(WORD, title) for title in catalog.titles]
    else:
        values = catalog.items[catalog.group_column].to_pylist()
    # A group column contains lists or single values. Drop empty labels.
    lists = [sorted({str(label) for label in _as_list(value) if label}) for value in values]
    members = Ragged.from_lists(lists, object)
    names, labels = np.unique(members.values.astype(str), return_inverse=True)
    return names.tolist(), Ragged(labels.astype(np.int64), members.offsets)


def _most_frequent(labels: Ragged, num_labels: int, most: int) -> Ragged:
    """Returns at most `most` labels of each row, the most frequent first. Ties are in order of the label indices."""
    # 1. Encode each pair of row and label as one number, and count the pairs.
    base = max(num_labels, 1)
    pairs, counts = np.unique(labels.row_ids * base + labels.values, return_counts=True)
    rows, label = np.divmod(pairs, base)

    # 2. Sort by row, then by descending count, then by label.
    order = np.lexsort((label, -counts, rows))
    return Ragged.from_lengths(label[order], np.bincount(rows, minlength=len(labels))).head(most)


def _chosen_items(dataset: RecDataset) -> Ragged:
    """Returns the distinct items of each user in the training split. Row `u` belongs to user `u`."""
    check_is_train(dataset.train, "profiles")
    items = join(split_rows(dataset.train, "history"), split_rows(dataset.train, "targets"))
    users = split_users(dataset.train)[items.row_ids].astype(np.int64)
    # Encode each pair of user and item as one number, so that `unique` removes repetitions and sorts by user.
    pairs = np.unique(users * len(dataset.catalog) + items.values)
    users, chosen = np.divmod(pairs, len(dataset.catalog))
    return Ragged.from_lengths(chosen, np.bincount(users, minlength=dataset.users.num_rows))


def _text_columns(table: pa.Table, leave_out: tuple[str, ...]) -> dict[str, list[str]]:
    """Converts the values of each column to texts."""
    names = [name for name in table.column_names if name not in leave_out]
    return {name: [_as_text(value) for value in table[name].to_pylist()] for name in names}


def _facts(columns: dict[str, list[str]], form: str, num_rows: int) -> list[list[str]]:
    """Returns a list per row, with one text for each column that has a value in the row.

    The text is `form`, filled with the column's name and the value.
    """
    named = [(name.replace("_", " "), values) for name, values in columns.items()]
    return [[form.format(name, values[row]) for name, values in named if values[row]] for row in range(num_rows)]


def _as_text(value: Any) -> str:
    """Returns a value as text on one line. Null and NaN give empty text."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_as_text, value)))
    if value is None or value != value:  # NaN differs from itself
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


def _as_list(value: Any) -> list[Any]:
    """Returns a list unchanged, and wraps any other value in a list. Null gives an empty list."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]
