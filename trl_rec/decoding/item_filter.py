"""Restricts which items a recommender may recommend: by their ids, by a mask, or by conditions on catalogue columns.

Conditions on columns are written like the filters of PyArrow's Parquet reader, such as
`[["category", "==", "Shoes"], ["price", "<", 50]]`. They are evaluated by Arrow as an expression, and no text is ever
evaluated as code. A column of lists, such as genres, is compared value by value: `["genres", "==", "Drama"]` requires
that one of the item's genres is Drama.

Each filter is converted to a boolean mask with one value per item. A filter may also limit how many items of a
recommended list share a value of a column (`max_per`). These limits are not part of the mask: `caps.py` applies them.
`FilterMasks` caches the masks of recent conditions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from trl_rec.items import ItemCatalog


# A condition is (column, operator, value). A list of conditions requires all of them. A list of such lists requires
# all conditions of at least one of the lists.
Where: TypeAlias = Sequence[Sequence[Any]]
Allowed: TypeAlias = Sequence[str] | np.ndarray | Tensor

OPERATORS = ("==", "=", "!=", "<", "<=", ">", ">=", "in", "not in")
# The operators for columns of lists. True: an item passes if one of its values equals a value of the condition. False:
# an item passes if none of its values does.
EQUALITY = {"==": True, "=": True, "in": True, "!=": False, "not in": False}
FORM = 'write it as [["category", "==", "Shoes"], ["price", "<", 50]]'
MOST_MASKS = 256  # maximum number of cached masks; 256 masks of a million items take 256 MB
NUMBER = "_number"  # name of the temporary column of item indices


@dataclass(frozen=True, eq=False)
class ItemFilter:
    """Restricts which items may be recommended after one history. If several arguments are given, all of them apply.

    Args:
        allowed (*optional*): The ids of the allowed items, or a boolean mask with one value per item of the catalogue,
            by item index. The values of retired items, which come last, have no effect and may be left out. Ids that
            the catalogue does not contain have no effect.
        where (*optional*): Conditions on the columns of the catalogue, in the format of `filters` in
            `pyarrow.parquet.read_table`. A list of conditions `[["category", "==", "Shoes"], ["price", "<", 50]]`
            requires all of them. A list of such lists requires all conditions of at least one list. The operators are
            `==`, `!=`, `<`, `<=`, `>`, `>=`, `in` and `not in`. If a column contains lists, `==` and `in` accept an
            item if at least one of its values matches, and `!=` and `not in` accept it if no value matches. An item
            whose value is missing passes only `not in`.
        max_per (*optional*): The maximum number of items in a recommended list that share a value of a column, such as
            `{"brand": 2}`. An item with several values, such as several genres, counts for each of them. An item
            without a value is not limited.
    """

    allowed: Allowed | None = None
    where: Where | None = None
    max_per: Mapping[str, int] | None = None


class FilterMasks:
    """Converts filters to masks, and caches the masks of recent conditions.

    Args:
        catalog (`ItemCatalog`): The items.
    """

    def __init__(self, catalog: ItemCatalog) -> None:
        self._catalog = catalog
        self._kept: OrderedDict[str, Mask] = OrderedDict()
        self._lock = Lock()

    def mask(self, one: ItemFilter | None) -> Mask | None:
        """Returns the mask of a filter; None if it has neither `allowed` nor `where`.

        Raises `ValueError` if the filter is invalid.
        """
        if one is None:
            return None
        parts = []
        if one.allowed is not None:
            parts.append(allowed_mask(one.allowed, self._catalog))
        if one.where is not None:
            parts.append(self._where(one.where))
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else Mask(parts[0].items & parts[1].items)

    def _where(self, where: Where) -> Mask:
        key = repr(where)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]

        items = self._catalog.items.slice(0, self._catalog.num_recommendable)
        mask = Mask(where_mask(where, items))
        with self._lock:
            self._kept[key] = mask
            if len(self._kept) > MOST_MASKS:
                self._kept.popitem(last=False)
        return mask


class Mask:
    """A boolean mask with one value per item, and a hash of its content.

    Args:
        items (`np.ndarray` of shape `(num_items,)`): The mask.

    Attributes:
        count (`int`): Number of items that the mask allows.
        key (`bytes`): The hash. Equal masks have equal keys.
    """

    def __init__(self, items: np.ndarray) -> None:
        self.items = np.ascontiguousarray(items, bool)
        self.count = int(self.items.sum())
        self.key = hashlib.blake2b(self.items.tobytes(), digest_size=16).digest()
        self._tensor: Tensor | None = None

    def on(self, device: torch.device) -> Tensor:
        """Returns the mask as a tensor on the device, `(num_items,)`. The tensor is kept for later calls."""
        if self._tensor is None or self._tensor.device != device:
            self._tensor = torch.from_numpy(self.items).to(device)
        return self._tensor


def allowed_mask(allowed: Allowed, catalog: ItemCatalog) -> Mask:
    """Returns the mask of the allowed items. Raises `ValueError` if these are not given as ids or as a valid mask."""
    if isinstance(allowed, Tensor):
        allowed = allowed.cpu().numpy()
    if isinstance(allowed, np.ndarray) and allowed.dtype == bool:
        if allowed.shape not in ((len(catalog),), (catalog.num_recommendable,)):
            removed = f", {catalog.num_retired} of them retired" if catalog.num_retired else ""
            raise ValueError(
                f"allowed is a mask of shape {allowed.shape}, but the catalogue has {len(catalog)} items{removed}; "
                "give one value per item"
            )
        return Mask(allowed[: catalog.num_recommendable])

    ids = list(allowed) if not isinstance(allowed, str) else None
    if ids is None or not all(isinstance(item_id, str) for item_id in ids):
        raise ValueError("allowed must be a list of item ids (strings) or a boolean mask with one value per item")
    mask = np.zeros(len(catalog), bool)
    mask[[catalog.positions[item_id] for item_id in ids if item_id in catalog.positions]] = True
    return Mask(mask[: catalog.num_recommendable])


def where_mask(where: Where, items: pa.Table) -> np.ndarray:
    """Returns which rows of a table of items meet the conditions, `(num_items,)`. Raises `ValueError` if a condition
    is invalid."""
    alternatives = _alternatives(where)
    names = dict.fromkeys(name for conjunction in alternatives for name, _, _ in conjunction)
    for name in names:
        if name not in items.column_names:
            raise ValueError(
                f"where: the catalogue has no column {name!r}; choose one of {', '.join(items.column_names)}"
            )

    # 1. Check the conditions one by one, so that an error message can name the invalid condition. A condition on a
    # column of lists is evaluated here, and replaced by a condition on a new column that contains the results.
    columns = {name: items[name] for name in names}
    for conjunction in alternatives:
        for place, (name, operator, value) in enumerate(conjunction):
            if _has_lists(items[name]):
                added = f"{NUMBER} {len(columns)}"
                columns[added] = _compared_lists(items[name], name, operator, value)
                conjunction[place] = (added, "==", True)
            else:
                conjunction[place] = (name, operator, _checked_value(items[name].type, name, operator, value))

    # 2. Evaluate all conditions together.
    table = pa.table({**columns, NUMBER: np.arange(items.num_rows)})
    found = table.filter(pq.filters_to_expression(alternatives))[NUMBER].to_numpy()
    mask = np.zeros(items.num_rows, bool)
    mask[found] = True
    return mask


def _alternatives(where: Where) -> list[list[tuple[str, str, Any]]]:
    """Returns the conditions as a list of alternatives, each a list of conditions that must all hold."""
    if isinstance(where, str) or not isinstance(where, Sequence) or not where:
        raise ValueError(f"where must be a list of conditions, not {where!r:.80}; {FORM}")
    are_conditions = [_is_condition(one) for one in where]
    if all(are_conditions):
        return [[_checked_condition(one) for one in where]]
    for one in where:
        if isinstance(one, str) or not isinstance(one, Sequence) or not one or _is_condition(one):
            raise ValueError(
                "where must contain either only conditions or only lists of conditions, but contains "
                f"{one!r:.80}; {FORM}"
            )
    return [[_checked_condition(one) for one in conjunction] for conjunction in where]


def _is_condition(value: Any) -> bool:
    """Returns whether a value looks like a condition rather than a list of conditions."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0 and isinstance(value[0], str)


def _checked_condition(condition: Any) -> tuple[str, str, Any]:
    """Returns a condition as a tuple. Raises `ValueError` if it is not a column, an operator and a value."""
    if not _is_condition(condition) or len(condition) != 3:
        raise ValueError(f"where: {condition!r:.80} does not consist of a column, an operator and a value; {FORM}")
    name, operator, value = condition
    if operator not in OPERATORS:
        raise ValueError(f"where: {operator!r:.80} is not an operator; choose one of {', '.join(OPERATORS)}")
    return name, operator, value


def _checked_value(kind: pa.DataType, name: str, operator: str, value: Any) -> Any:
    """Returns the value in a form that a column of this type can be compared with.

    Raises `ValueError` if the value cannot be compared with the column.
    """
    if operator not in ("in", "not in"):
        return _comparable(kind, name, operator, value)
    if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset) or not len(value):
        raise ValueError(
            f"where: the operator {operator!r} on the column {name!r} needs a list of values, not {value!r:.80}"
        )
    return [_comparable(kind, name, "==", one) for one in value]


def _comparable(kind: pa.DataType, name: str, operator: str, value: Any) -> Any:
    """Same as [`_checked_value`], for a single value. Converts text if the column contains dates or times."""
    problem = ValueError(f"where: {name} has values of the type {kind}, which cannot be compared with {value!r:.80}")
    if value is None or isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
        raise problem
    try:
        if pa.types.is_temporal(kind) and isinstance(value, str):
            return pa.scalar(value).cast(kind)
        empty = pa.table({name: pa.array([], kind)})
        empty.filter(pq.filters_to_expression([(name, operator, value)]))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        raise problem from None
    return value


def _has_lists(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_list(column.type) or pa.types.is_large_list(column.type))


def _compared_lists(column: pa.ChunkedArray, name: str, operator: str, value: Any) -> pa.Array:
    """Returns whether each list of a column meets a condition."""
    if operator not in EQUALITY:
        raise ValueError(
            f"where: the column {name} contains lists, which {operator!r} cannot compare; use '==', '!=', 'in' or "
            "'not in'"
        )
    kind = column.type.value_type
    values = _checked_value(kind, name, operator, value)
    values = values if operator in ("in", "not in") else [values]

    # Compare all values of all lists, and find the lists that contain a value of the condition.
    lists = column.combine_chunks()
    missing = lists.is_null().to_numpy(zero_copy_only=False)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    flat = pa.table({name: lists.flatten(), NUMBER: np.repeat(np.arange(len(lists)), lengths)})
    rows = flat.filter(pq.filters_to_expression([(name, "in", values)]))[NUMBER].to_numpy()
    is_equal = np.bincount(rows, minlength=len(lists)) > 0
    if EQUALITY[operator]:
        return pa.array(is_equal)
    return pa.array(~is_equal & (~missing | (operator == "not in")))
