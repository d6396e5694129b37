"""Reads the arguments with which a request to vLLM restricts its output to items of the catalogue.

The arguments are in the request's `extra_args`, which an HTTP client sends as `vllm_xargs`:

| argument | meaning |
| --- | --- |
| `items` | number of distinct items to write. Without this argument, the output is not restricted to the catalogue. |
| `exclude` | ids of items to leave out |
| `allowed` | ids of the items to choose from; all other items are left out |
| `where` | conditions on the columns of the catalogue, as in [`ItemFilter`]; over HTTP as JSON text |
| `prefix` | tokens at the end of the prompt that already belong to the output; their items count towards `items` |
| `exclude_rows` | `exclude` as row numbers of the catalogue instead of ids; sent by [`VllmRecommender`] |
| `mask` | the allowed items as packed bits, in place of `allowed` and `where`; sent by [`VllmRecommender`] |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trl_rec.decoding.item_filter import FilterMasks, ItemFilter, Mask
from trl_rec.decoding.run_folder import SETTINGS, load_run
from trl_rec.ranges import COUNT, COUNT_FROM_0
from trl_rec.serving.vllm.rows import Row


ARGUMENTS = ("items", "exclude", "allowed", "where", "prefix", "exclude_rows", "mask")
MOST_PREFIX = 4096  # maximum number of tokens of `prefix`, regardless of the catalogue
# Arguments in `extra_args` that other parts of vLLM read.
OTHERS = ("kv_transfer_params", "ec_transfer_params", "session_id")


def is_held(arguments: Mapping[str, Any] | None) -> bool:
    """Returns whether the output of a request with these `extra_args` is restricted to the catalogue."""
    return arguments is not None and "items" in arguments


def check_form(arguments: Mapping[str, Any] | None) -> None:
    """Raises `ValueError` if the form of the arguments is wrong. This check needs no catalogue."""
    if arguments is None:
        return
    if not is_held(arguments):
        lost = next((name for name in ARGUMENTS if name in arguments), None)
        if lost is not None:
            raise ValueError(
                f"the argument {lost!r} requires the argument 'items'; set 'items' to the number of items to write"
            )
        return

    unknown = next((name for name in arguments if name not in (*ARGUMENTS, *OTHERS)), None)
    if unknown is not None:
        raise ValueError(f"unknown argument {unknown!r:.80}; choose from {', '.join(ARGUMENTS[:4])}")
    COUNT.check("items", arguments["items"])
    for name in ("exclude", "allowed"):
        _check_list(arguments, name, str, "item ids (strings)")
    for name in ("prefix", "exclude_rows"):
        _check_list(arguments, name, int, "whole numbers")
        for number in arguments.get(name, ()):
            COUNT_FROM_0.check(name, number)
    _check_prefix(arguments, MOST_PREFIX)
    if not isinstance(arguments.get("mask", b""), bytes):
        raise ValueError("'mask' must be bytes; use 'allowed' or 'where' instead")
    _where(arguments.get("where"))


class RunArguments:
    """Reads the arguments of requests to the model of a run folder, and checks them against its catalogue.

    Args:
        folder (`str` or `Path`): The run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        settings, catalog = load_run(Path(folder), SETTINGS)
        self.catalog = catalog
        self.list_length: int | None = settings["prompt"].get("list_length")

    def row(self, arguments: Mapping[str, Any], written: list[int]) -> Row:
        """Returns the [`Row`] that describes a request. Raises `ValueError` if an argument does not fit the catalogue.

        Args:
            arguments: The request's `extra_args`, with `items`.
            written (`list[int]`): The tokens that the request has written. vLLM appends to this list.
        """
        check_form(arguments)
        most = self.list_length or 1
        if arguments["items"] > most:
            writes = "one item" if self.list_length is None else f"lists of {most} items"
            raise ValueError(f"items must be at most {most}, because this model writes {writes}")
        _check_prefix(arguments, self._longest)
        return Row(
            arguments["items"],
            written,
            prefix=arguments.get("prefix", ()),
            exclude=self._excluded(arguments),
            mask=self._mask(arguments),
        )

    def _excluded(self, arguments: Mapping[str, Any]) -> Sequence[int]:
        """Returns the indices of the excluded items. Row numbers beyond the end of the catalogue are ignored.

        Duplicates are dropped to save memory: every request of a batch takes as much memory as the request with the
        most excluded items.
        """
        positions = self.catalog.positions
        rows = list(arguments.get("exclude_rows", ()))
        for item_id in arguments.get("exclude", ()):
            if item_id not in positions:
                raise ValueError(
                    f"exclude: {item_id!r:.80} is not in the catalogue of {len(self.catalog)} items; leave it out"
                )
            rows.append(positions[item_id])
        return [row for row in dict.fromkeys(rows) if row < len(self.catalog)]

    def _mask(self, arguments: Mapping[str, Any]) -> Mask | None:
        """Returns the allowed items; None if all are allowed."""
        if "mask" not in arguments:
            return self._masks.mask(ItemFilter(arguments.get("allowed"), _where(arguments.get("where"))))
        bits = np.frombuffer(arguments["mask"], np.uint8)
        number = self.catalog.num_recommendable
        if len(bits) != -(-number // 8):
            raise ValueError(
                f"'mask' has {len(bits)} bytes, but needs one bit for each of the catalogue's {number} items; use "
                "'allowed' or 'where' instead"
            )
        return Mask(np.unpackbits(bits, count=number).astype(bool))

    @cached_property
    def _longest(self) -> int:
        """An upper bound on the number of tokens of a completion.

        Each token contains at least one byte of an item's surface, except for at most two tokens per item: a leading
        space, and the token that ends the item.
        """
        sizes = np.sort([len(surface.encode()) + 2 for surface in self.catalog.surfaces])
        return int(sizes[-(self.list_length or 1) :].sum()) + 1  # EOS ends a list

    @cached_property
    def _masks(self) -> FilterMasks:
        return FilterMasks(self.catalog.without_retired())


def packed(mask: np.ndarray) -> bytes:
    """Packs a boolean mask, with one value per item index, for the argument `mask`."""
    return np.packbits(mask).tobytes()


def _check_list(arguments: Mapping[str, Any], name: str, kind: type, what: str) -> None:
    """Raises `ValueError` unless an argument is a list of values of one type."""
    values = arguments.get(name, [])
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ValueError(f"{name} must be a list of {what}, not {values!r:.80}")


def _check_prefix(arguments: Mapping[str, Any], most: int) -> None:
    """Raises `ValueError` if `prefix` has too many tokens.

    [`CatalogProcessor`] reads these tokens one after the other, and all other requests wait in the meantime.
    """
    length = len(arguments.get("prefix", ()))
    if length > most:
        raise ValueError(
            f"prefix has {length:,} tokens, but may have at most {most:,}; give only the tokens of the items that the "
            "prompt ends with"
        )


def _where(where: Any) -> Any:
    """Returns the conditions of the argument `where`, which may be JSON text."""
    if not isinstance(where, str):
        return where
    try:
        return json.loads(where)
    except (ValueError, RecursionError):
        raise ValueError(f"'where' is not JSON: {where!r:.80}") from None
