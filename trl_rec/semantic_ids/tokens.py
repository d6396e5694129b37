"""Codes written as tokens: `<a_12><b_7><c_201>`, a letter a level, and one letter more where items with equal codes
are told apart; those of users are `<ua_3><ub_40><uc_7>`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from string import ascii_lowercase
from typing import Any

import numpy as np
from torch import Tensor

from trl_rec.ragged import Ragged, join


MOST_LEVELS = len(ascii_lowercase) - 1  # the last letter is left for telling items apart


def id_tokens(codes: Tensor, extra: Tensor) -> Ragged:
    """Row `i`: the tokens of item `i`, as strings.

    `codes` `(num_items, levels)`; `extra` `(num_items,)`: a further code, -1 for an item that needs none. As all items
    with equal codes have one or none has, no ID is the beginning of another.
    """
    levels = [_named(letter, column.numpy()) for letter, column in zip(ascii_lowercase, codes.unbind(1), strict=False)]
    regular = np.stack(levels, 1)
    needs = (extra >= 0).numpy()
    further = _named(ascii_lowercase[len(levels)], extra.numpy()[needs])
    rows = Ragged.from_lengths(regular.ravel(), np.full(len(regular), len(levels)))
    return join(rows, Ragged.from_lengths(further, needs.astype(np.int64)))


def user_tokens(codes: Tensor) -> Ragged:
    """Row `u`: the tokens of user `u`, as strings; users may share them. `codes` `(num_users, levels)`."""
    levels = [
        _named(f"u{letter}", column.numpy()) for letter, column in zip(ascii_lowercase, codes.unbind(1), strict=False)
    ]
    return Ragged.from_lengths(np.stack(levels, 1).ravel(), np.full(len(codes), len(levels)))


def ids_fingerprint(semantic_ids: Ragged, user_ids: Ragged | None = None) -> str:
    """A hash of all items' tokens, and of all users'."""
    digest = hashlib.sha256()
    for ids in [semantic_ids] if user_ids is None else [semantic_ids, user_ids]:
        digest.update("\0".join(ids.values.tolist()).encode())
        digest.update(ids.offsets.tobytes())
    return digest.hexdigest()[:16]


def check_codes(settings: Mapping[str, Any], num_items: int) -> None:
    """Raises unless `levels` and `codes` give a catalogue of that size enough IDs, and `collisions` is known."""
    for name, low, high in (("levels", 1, MOST_LEVELS), ("codes", 2, num_items)):
        if not low <= settings[name] <= high:
            raise ValueError(
                f"{name}={settings[name]}: give a number from {low} to {high} for a catalogue of {num_items} items"
            )
    if settings["collisions"] not in ("share", "extend"):
        raise ValueError(f"unknown collisions {settings['collisions']!r}; choose share or extend")
    if settings["codes"] ** settings["levels"] < num_items:
        raise ValueError(
            f"{settings['levels']} levels of {settings['codes']} codes make fewer IDs than there are items ({num_items}); give "
            "more levels or more codes"
        )


def _named(letter: str, codes: np.ndarray) -> np.ndarray:
    names = np.array([f"<{letter}_{code}>" for code in range(codes.max(initial=-1) + 1)], dtype=object)
    return names[codes]
