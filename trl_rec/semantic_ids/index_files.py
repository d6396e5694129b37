"""Semantic IDs exchanged with other projects as `X.index.json`, from an item's id to its tokens."""

from __future__ import annotations

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
from trl_rec.semantic_ids.storage import is_written, with_stored_ids, write_ids
from trl_rec.semantic_ids.tokens import ids_fingerprint


def export_index(catalog: ItemCatalog, path: str | Path) -> None:
    """Writes the items' IDs."""
    if catalog.semantic_ids is None:
        raise ValueError("the catalogue holds no semantic IDs to export; run trl-rec tokenize first")
    ids = zip(catalog.ids, range(len(catalog)), strict=True)
    index = {item: [str(token) for token in catalog.semantic_ids[row]] for item, row in ids}
    write_json(path, index, indent=1, ensure_ascii=False)


def import_index(dataset: RecDataset, path: str | Path, *, overwrite: bool = False) -> RecDataset:
    """Puts the IDs of a file into the dataset's folder, and gives back the dataset with them.

    Args:
        dataset (`RecDataset`): Its items have to be in the file; other items may be there too.
        path: The file. Tokens may be any text; no ID may be the beginning of another, which the trie refuses.
        overwrite (*optional*, defaults to `False`): Replace IDs that are there.
    """
    tokens = read_index(Path(path), dataset.catalog.ids)
    semantic_ids = Ragged.from_lists(tokens, object)
    settings = {"method": "import", "tokens": ids_fingerprint(semantic_ids)}
    card = _card(dataset, semantic_ids, settings)
    if not is_written(dataset, card["settings"], overwrite):
        write_ids(dataset, semantic_ids, card)
    return with_stored_ids(dataset)


def _card(dataset: RecDataset, semantic_ids: Ragged, settings: dict[str, Any]) -> dict[str, Any]:
    """Of IDs that nothing but their tokens is known of; a shorter ID has a code of its own at the places that it
    lacks."""
    columns = [np.unique(column, return_inverse=True)[1] for column in semantic_ids.padded(fill="").astype(str).T]
    codes, alone = torch.from_numpy(np.stack(columns, 1)), torch.full((len(semantic_ids),), -1)
    made = IdCodes(codes, codes, alone, errors=None, num_codes=int(codes.max()) + 1)
    settings = {**settings, "levels": codes.shape[1], "codes": made.num_codes}
    chosen = popularity(dataset.train, len(dataset.catalog))
    return make_card(made, semantic_ids, dataset.catalog, chosen, settings=settings, without_vector=0)
