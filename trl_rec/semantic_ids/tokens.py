"""Writes the codes of semantic IDs as tokens: the codes 12, 7 and 201 of an item's three levels become
`<a_12><b_7><c_201>`.

With `collisions="extend"`, the ID of each item whose codes are not unique gets an additional token with the next
letter, such as `<d_0>`. The semantic ID of a user looks like `<ua_3><ub_40><uc_7>`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from string import ascii_lowercase
from typing import Any

import numpy as np
from torch import Tensor

from trl_rec.ragged import Ragged, join
from trl_rec.ranges import Range


MOST_LEVELS = len(ascii_lowercase) - 1  # one letter is reserved for the additional token of `collisions="extend"`


def id_tokens(codes: Tensor, extra: Tensor) -> Ragged:
    """Returns the tokens of each item's ID, as strings.

    If several items have equal codes, either all or none of them must have an additional code. Then no ID is a prefix
    of a longer ID.

    Args:
        codes (`torch.Tensor` of shape `(num_items, levels)`): The codes.
        extra (`torch.Tensor` of shape `(num_items,)`): An additional code; -1 for items without one.

    Returns:
        [`Ragged`]: Row `i` contains the tokens of item `i`.
    """
    # 1. Make one token per level.
    columns = [
        _token_names(letter, column.numpy()) for letter, column in zip(ascii_lowercase, codes.unbind(1), strict=False)
    ]
    levels = len(columns)
    tokens = np.stack(columns, 1)  # (num_items, levels)
    rows = Ragged.from_lengths(tokens.ravel(), np.full(len(tokens), levels))

    # 2. Append a token to the IDs of items with an additional code.
    has_extra = (extra >= 0).numpy()
    extra_tokens = _token_names(ascii_lowercase[levels], extra.numpy()[has_extra])
    return join(rows, Ragged.from_lengths(extra_tokens, has_extra.astype(np.int64)))


def user_tokens(codes: Tensor) -> Ragged:
    """Returns the tokens of each user's ID, as strings, from codes `(num_users, levels)`. Users may share an ID."""
    columns = [
        _token_names(f"u{letter}", column.numpy())
        for letter, column in zip(ascii_lowercase, codes.unbind(1), strict=False)
    ]
    return Ragged.from_lengths(np.stack(columns, 1).ravel(), np.full(len(codes), len(columns)))


def ids_fingerprint(semantic_ids: Ragged, user_ids: Ragged | None = None) -> str:
    """Returns a hash of the semantic IDs of all items, and of those of all users if `user_ids` is given."""
    digest = hashlib.sha256()
    for ids in [semantic_ids] if user_ids is None else [semantic_ids, user_ids]:
        digest.update("\0".join(ids.values.tolist()).encode())
        digest.update(ids.offsets.tobytes())
    return digest.hexdigest()[:16]


def check_codes(settings: Mapping[str, Any], num_items: int) -> None:
    """Raises ValueError if one of the settings `levels`, `codes` and `collisions` is invalid.

    Here, `codes` is the number of different codes per level. Also raises ValueError if `levels` and `codes`
    allow fewer distinct IDs than the catalogue has items.
    """
    hint = f"the catalogue has {num_items} items"
    Range(1, MOST_LEVELS, whole=True, hint=hint).check("levels", settings["levels"])
    Range(2, num_items, whole=True, hint=hint).check("codes", settings["codes"])
    if settings["collisions"] not in ("share", "extend"):
        raise ValueError(f"collisions must be 'share' or 'extend', not {settings['collisions']!r}")
    if settings["codes"] ** settings["levels"] < num_items:
        raise ValueError(
            f"{settings['levels']} levels of {settings['codes']} codes give fewer distinct IDs than the catalogue has "
            f"items ({num_items}); increase levels or codes"
        )


def _token_names(letter: str, codes: np.ndarray) -> np.ndarray:
    """Returns the tokens of one level, such as `<a_12>` for the letter `a` and the code 12."""
    # Each token is formatted only once, even if many items have it.
    names = np.array([f"<{letter}_{code}>" for code in range(codes.max(initial=-1) + 1)], dtype=object)
    tokens: np.ndarray = names[codes]
    return tokens
