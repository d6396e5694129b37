"""Codes written as tokens: `<a_12><b_7><c_201>`, a letter a level, and one letter more where items with equal codes are told
apart."""

from __future__ import annotations

import hashlib
from string import ascii_lowercase

import numpy as np
from torch import Tensor

from trl_rec.ragged import Ragged, join


MOST_LEVELS = len(ascii_lowercase) - 1  # the last letter is left for telling items apart


def id_tokens(codes: Tensor, extra: Tensor) -> Ragged:
    """Row `i`: the tokens of item `i`, as strings.

    `codes` `(num_items, levels)`; `extra` `(num_items,)`: a further code, -1 for an item that needs none. As all items with
    equal codes have one or none has, no ID is the beginning of another.
    """
    levels = [_named(letter, column.numpy()) for letter, column in zip(ascii_lowercase, codes.unbind(1), strict=False)]
    regular = np.stack(levels, 1)
    needs = (extra >= 0).numpy()
    further = _named(ascii_lowercase[len(levels)], extra.numpy()[needs])
    rows = Ragged.from_lengths(regular.ravel(), np.full(len(regular), len(levels)))
    return join(rows, Ragged.from_lengths(further, needs.astype(np.int64)))


def ids_fingerprint(semantic_ids: Ragged) -> str:
    """A hash of all items' tokens."""
    digest = hashlib.sha256("\0".join(semantic_ids.values.tolist()).encode())
    digest.update(semantic_ids.offsets.tobytes())
    return digest.hexdigest()[:16]


def _named(letter: str, codes: np.ndarray) -> np.ndarray:
    names = np.array([f"<{letter}_{code}>" for code in range(codes.max(initial=-1) + 1)], dtype=object)
    return names[codes]
