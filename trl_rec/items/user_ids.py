"""Reads, writes and checks `user_ids.parquet`, which contains one list of semantic-ID tokens per user."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trl_rec.files import atomic_file
from trl_rec.ragged import Ragged


FILE = "user_ids.parquet"


def write_user_ids(user_ids: Ragged | None, folder: Path) -> None:
    """Writes the users' semantic IDs to the folder. If `user_ids` is None, deletes an existing file."""
    if user_ids is None:
        (folder / FILE).unlink(missing_ok=True)
        return
    column = Ragged(user_ids.values.astype(object), user_ids.offsets).to_arrow()
    with atomic_file(folder / FILE) as temporary:
        pq.write_table(pa.table({"semantic_id": column}), temporary)


def read_user_ids(folder: Path) -> Ragged | None:
    """Reads the IDs that `write_user_ids` wrote, or returns None if there is no file.

    Raises `ValueError` if the file cannot be read. The caller adds the folder and the remedy to the message.
    """
    if not (folder / FILE).is_file():
        return None
    try:
        return Ragged.from_arrow(pq.read_table(folder / FILE)["semantic_id"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{FILE} cannot be read: {error!r}") from error


def tokens_of(ids: Ragged | None) -> list[str]:
    """Returns the distinct tokens of the IDs, sorted; empty if there are no IDs."""
    return [] if ids is None else np.unique(ids.values.astype(str)).tolist()


def check_shared_tokens(user_ids: Ragged, semantic_ids: Ragged | None) -> None:
    """Raises ValueError if a user has no tokens, or shares a token with an item.

    The tokens of items are the tokens of their semantic IDs and, whatever the surface is, all tokens of the form
    `<item_17>`.
    """
    items = set(tokens_of(semantic_ids))
    shared = [token for token in tokens_of(user_ids) if token in items or re.fullmatch(r"<item_\d+>", token)]
    if shared:
        raise ValueError(
            f"the token {shared[0]!r} is used by both users and items; use different tokens for users, such as <ua_3>"
        )

    empty = np.flatnonzero(user_ids.lengths == 0)
    if len(empty):
        raise ValueError(f"user {empty[0]} has a semantic ID without tokens; give every user at least one token")
