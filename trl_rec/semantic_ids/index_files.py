"""Exports and imports semantic IDs as `X.index.json`, LC-Rec's file format, which maps item ids to tokens."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trl_rec.data import RecDataset
from trl_rec.data.readers.lcrec import read_index
from trl_rec.files import write_json
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.card import IdCodes, make_card
from trl_rec.semantic_ids.cooccurrence import popularity
from trl_rec.semantic_ids.storage import make_once, write_ids
from trl_rec.semantic_ids.tokens import ids_fingerprint


def check_index_path(path: str | Path) -> None:
    """Raises ValueError if the path is a folder, or if one of its parent folders is in fact a file.

    `trl-rec tokenize` calls this function first, so that it reports an unusable path before it makes any IDs.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file name, such as {path / 'items.index.json'}")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"{existing} is not a folder, so {path} cannot be written; give another path")


def export_index(catalog: ItemCatalog, path: str | Path) -> None:
    """Writes the semantic IDs of a catalogue to an index file."""
    if catalog.semantic_ids is None:
        raise ValueError("the catalogue has no semantic IDs to export; run trl-rec tokenize first")
    tokens = [catalog.semantic_ids[row] for row in range(len(catalog))]
    index = {item: [str(token) for token in row] for item, row in zip(catalog.ids, tokens, strict=True)}
    write_json(path, index, indent=1, ensure_ascii=False)


def import_index(dataset: RecDataset, path: str | Path, *, overwrite: bool = False) -> RecDataset:
    """Reads IDs from an index file and writes them into the dataset folder.

    Args:
        dataset (`RecDataset`): A dataset returned by `prepare` or `load`.
        path (`str` or `Path`): The index file. The file must contain all items of the dataset, and may contain other
            items. The tokens may be arbitrary strings. No ID may be a prefix of a longer ID.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace IDs that the folder already contains.
            If False, such IDs raise a ValueError, unless they come from an import of the same tokens.

    Returns:
        [`RecDataset`]: The dataset, whose catalogue now contains the semantic IDs of the items. Semantic IDs of users
        are not imported. If the import replaces existing IDs, those of users are deleted.
    """
    tokens = read_index(Path(path), dataset.catalog.ids)
    _check_prefixes(tokens, dataset.catalog.ids, Path(path).name)
    semantic_ids = Ragged.from_lists(tokens, object)
    card = card_of_tokens(dataset, semantic_ids)
    write = partial(write_ids, dataset, semantic_ids, card)
    return make_once(dataset, card["settings"], write, overwrite=overwrite)


def _check_prefixes(tokens: list[list[str]], items: list[str], name: str) -> None:
    """Raises ValueError if an ID is a prefix of a longer ID, because decoding stops only at the leaves of the trie."""
    owners = {tuple(row): item for row, item in zip(tokens, items, strict=True)}
    for row, item in zip(tokens, items, strict=True):
        owner = next((owners[tuple(row[:end])] for end in range(1, len(row)) if tuple(row[:end]) in owners), None)
        if owner is not None:
            raise ValueError(
                f"{name}: the tokens of item {owner!r} are a prefix of the tokens of item {item!r}; add a token to "
                f"item {owner!r}"
            )


def card_of_tokens(dataset: RecDataset, semantic_ids: Ragged) -> dict[str, Any]:
    """Returns the card (settings and statistics) of IDs of which only the tokens are known.

    The quantisation errors are None, because they can be computed only with the vectors that the IDs were made from.
    """
    # 1. Number the distinct tokens at each position. Shorter IDs are padded with an empty token, which gets
    # a number too.
    padded = semantic_ids.padded(fill="").astype(str)  # (num_items, levels)
    columns = [np.unique(column, return_inverse=True)[1] for column in padded.T]
    codes = torch.from_numpy(np.stack(columns, 1))

    # 2. Use these numbers as codes. `IdCodes` takes the codes before and after a repair of collisions (items with
    # equal codes). Nothing is repaired here, so both are the same. The quantisation errors are unknown.
    no_extra = torch.full((len(semantic_ids),), -1)
    id_codes = IdCodes(codes, codes, no_extra, errors=None, num_codes=int(codes.max()) + 1)
    settings = {
        "method": "import",
        "tokens": ids_fingerprint(semantic_ids),
        "levels": codes.shape[1],
        "codes": id_codes.num_codes,
    }
    counts = popularity(dataset.train, len(dataset.catalog))
    return make_card(id_codes, semantic_ids, dataset.catalog, counts, settings=settings, without_vector=0)
