"""Codes written as tokens: `<a_12><b_7><c_201>`, with one letter per level.

With `collisions: extend`, the IDs of items with equal codes get one more token, with the next letter. The ID of a user
looks like `<ua_3><ub_40><uc_7>`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from string import ascii_lowercase
from typing import Any

import numpy as np
from torch import Tensor

from trl_rec.ragged import Ragged, join


MOST_LEVELS = len(ascii_lowercase) - 1  # the last letter is kept for the token that tells items apart


def id_tokens(codes: Tensor, extra: Tensor) -> Ragged:
    """Makes the tokens of each item's ID, as strings.

    No ID is the beginning of another if, among items with equal codes, either all have an extra code or none has one.

    Args:
        codes (`torch.Tensor` of shape `(num_items, levels)`): The codes.
        extra (`torch.Tensor` of shape `(num_items,)`): A further code; -1 for an item without one.

    Returns:
        [`Ragged`]: Row `i` contains the tokens of item `i`.
    """
    # 1. One token per level.
    columns = [
        _token_names(letter, column.numpy()) for letter, column in zip(ascii_lowercase, codes.unbind(1), strict=False)
    ]
    levels = len(columns)
    tokens = np.stack(columns, 1)  # (num_items, levels)
    rows = Ragged.from_lengths(tokens.ravel(), np.full(len(tokens), levels))

    # 2. One more for the items with a further code.
    has_extra = (extra >= 0).numpy()
    extra_tokens = _token_names(ascii_lowercase[levels], extra.numpy()[has_extra])
    return join(rows, Ragged.from_lengths(extra_tokens, has_extra.astype(np.int64)))


def user_tokens(codes: Tensor) -> Ragged:
    """Makes the tokens of each user's ID, as strings, from codes `(num_users, levels)`. Users may share an ID."""
    columns = [
        _token_names(f"u{letter}", column.numpy())
        for letter, column in zip(ascii_lowercase, codes.unbind(1), strict=False)
    ]
    return Ragged.from_lengths(np.stack(columns, 1).ravel(), np.full(len(codes), len(columns)))


def ids_fingerprint(semantic_ids: Ragged, user_ids: Ragged | None = None) -> str:
    """A hash of the tokens of all items, and of all users if there are any."""
    digest = hashlib.sha256()
    for ids in [semantic_ids] if user_ids is None else [semantic_ids, user_ids]:
        digest.update("\0".join(ids.values.tolist()).encode())
        digest.update(ids.offsets.tobytes())
    return digest.hexdigest()[:16]


def check_codes(settings: Mapping[str, Any], num_items: int) -> None:
    """Raises unless `levels` and `codes` give enough IDs for `num_items` items and `collisions` is a known value."""
    for name, low, high in (("levels", 1, MOST_LEVELS), ("codes", 2, num_items)):
        if not low <= settings[name] <= high:
            raise ValueError(
                f"{name}={settings[name]}: choose a number from {low} to {high} for a catalogue of {num_items} items"
            )
    if settings["collisions"] not in ("share", "extend"):
        raise ValueError(f"unknown collisions {settings['collisions']!r}; choose share or extend")
    if settings["codes"] ** settings["levels"] < num_items:
        raise ValueError(
            f"{settings['levels']} levels of {settings['codes']} codes make fewer IDs than there are items "
            f"({num_items}); use more levels or more codes"
        )


def _token_names(letter: str, codes: np.ndarray) -> np.ndarray:
    """`<a_12>` for the letter `a` and the code 12."""
    # Each distinct name is built once.
    names = np.array([f"<{letter}_{code}>" for code in range(codes.max(initial=-1) + 1)], dtype=object)
    tokens: np.ndarray = names[codes]
    return tokens
