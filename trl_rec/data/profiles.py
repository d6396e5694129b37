"""What is said of items and users in words, made from their columns and from what was chosen in training.

No language model writes these texts: the same data gives the same ones. What a user likes is told by labels of the
items chosen: their groups, or the words of their titles where the catalogue has no group column. Validation and test
play no part.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa

from trl_rec.data.dataset import RecDataset, check_is_train, split_rows
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged, join


WORD = r"[^\W\d_]{4,}"  # of a title: shorter ones say little
CHUNK = 100_000  # histories whose items' labels are held at a time


def item_texts(catalog: ItemCatalog, template: str | None = None) -> list[str]:
    """A text for each item, by index: `Silver Mirror; genres: Comedy, Romance; year: 1995`.

    Args:
        catalog: The items.
        template (*optional*): Text with the names of columns in it, such as `{title}, of {year}`; what an item lacks
            is written as nothing. By default the title, then all other columns that the item has something in.
    """
    columns = _columns(catalog.items, leave_out=("item_id",))
    if template is None:
        titles = columns.pop("title")
        facts = _facts(columns, "{}: {}", len(catalog))
        return ["; ".join([title, *told]) for title, told in zip(titles, facts, strict=True)]
    try:
        return [
            template.format_map({name: texts[item] for name, texts in columns.items()}) for item in range(len(catalog))
        ]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"the item template {template!r} cannot be filled ({error!r}); the columns are {', '.join(columns)}"
        ) from error


def user_profiles(dataset: RecDataset, *, most: int = 3) -> list[str]:
    """A text for each user, by number: `age 24, occupation technician; often Comedy, Drama, Action`. A user without
    columns who chose nothing in training has an empty one.

    Args:
        dataset: The users' columns and the training split are read.
        most (*optional*, defaults to `3`): Labels of what the user chose in training.
    """
    liked = preference_texts(_chosen(dataset), dataset.catalog, most=most)
    facts = _facts(_columns(dataset.users, leave_out=("user_id",)), "{} {}", dataset.users.num_rows)
    often = [f"often {text}" if text else "" for text in liked]
    return ["; ".join(filter(None, (", ".join(told), text))) for told, text in zip(facts, often, strict=True)]


def preference_texts(histories: Ragged, catalog: ItemCatalog, *, most: int = 3) -> list[str]:
    """The labels that a history's items have most often, `Comedy, Drama`; the first by name where as many have them.

    Args:
        histories: Item indices.
        catalog: The items.
        most (*optional*, defaults to `3`): Labels of a text.
    """
    names, labels = item_labels(catalog)
    texts: list[str] = []
    for start in range(0, len(histories), CHUNK):
        found = histories.take(np.arange(start, min(start + CHUNK, len(histories)))).flatten(labels)
        best = _commonest(found, len(names), most)
        texts += [", ".join(names[one] for one in best[row]) for row in range(len(best))]
    return texts


def item_labels(catalog: ItemCatalog) -> tuple[list[str], Ragged]:
    """The labels' names in alphabetical order, and row `i`: those of item `i`, each once."""
    if catalog.group_column is None:
        values: list[Any] = [re.findall(WORD, title) for title in catalog.titles]
    else:
        values = catalog.items[catalog.group_column].to_pylist()
    lists = [sorted({str(one) for one in _several(value) if one}) for value in values]
    members = Ragged.from_lists(lists, object)
    names, labels = np.unique(members.values.astype(str), return_inverse=True)
    return names.tolist(), Ragged(labels.astype(np.int64), members.offsets)


def _commonest(labels: Ragged, num_labels: int, most: int) -> Ragged:
    """The labels that each row has most often, the first where as many have them."""
    keys, counts = np.unique(labels.row_ids * max(num_labels, 1) + labels.values, return_counts=True)
    rows, label = np.divmod(keys, max(num_labels, 1))
    order = np.lexsort((label, -counts, rows))
    ranked = Ragged.from_lengths(label[order], np.bincount(rows, minlength=len(labels)))
    return ranked.slice(0 * ranked.lengths, np.minimum(ranked.lengths, most))


def _chosen(dataset: RecDataset) -> Ragged:
    """Row `u`: the items that user `u` chose in training, each once however many rows tell of it."""
    check_is_train(dataset.train, "a profile")
    items = join(split_rows(dataset.train, "history"), split_rows(dataset.train, "targets"))
    users = dataset.train.with_format("numpy")[:]["user"][items.row_ids].astype(np.int64)
    pairs = np.unique(users * len(dataset.catalog) + items.values)
    users, chosen = np.divmod(pairs, len(dataset.catalog))
    return Ragged.from_lengths(chosen, np.bincount(users, minlength=dataset.users.num_rows))


def _columns(table: pa.Table, leave_out: tuple[str, ...]) -> dict[str, list[str]]:
    """Each column's values in words."""
    return {
        name: [_written(value) for value in table[name].to_pylist()]
        for name in table.column_names
        if name not in leave_out
    }


def _facts(columns: dict[str, list[str]], form: str, num_rows: int) -> list[list[str]]:
    """For each row, name and value of the columns that it has something in."""
    told = [(name.replace("_", " "), values) for name, values in columns.items()]
    return [[form.format(name, values[row]) for name, values in told if values[row]] for row in range(num_rows)]


def _written(value: Any) -> str:
    """A value on one line; nothing for a missing one."""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_written, value)))
    if value is None or value != value:
        return ""
    whole = isinstance(value, float) and value.is_integer()
    return " ".join(str(int(value) if whole else value).split())


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
