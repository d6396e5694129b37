"""Keeps the semantic IDs of known items when the catalogue changes, and gives IDs to new items.

Known items are the items of the earlier catalogue. A model identifies an item by its tokens, so a known item must keep
its ID. The IDs of new items are computed from their texts, by the encoder that was saved with the known IDs (see
[`ItemIdEncoder`]). A new item may get the same codes as a known item. Both items then have the same ID and share a
leaf of the trie. However, if the known IDs with these codes have an additional token, the ID of the new item gets an
additional token as well, because no ID may be a prefix of a longer ID.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trl_rec.data import RecDataset, load
from trl_rec.data.profiles import item_texts
from trl_rec.files import resolved, write_json
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.dual.storage import NAME, ItemIdEncoder
from trl_rec.semantic_ids.index_files import card_of_tokens
from trl_rec.semantic_ids.storage import make_once, read_ids_card, write_ids
from trl_rec.semantic_ids.tokens import ids_fingerprint


def continue_ids(dataset: RecDataset, folder: str | Path, *, overwrite: bool = False) -> RecDataset:
    """Writes semantic IDs into a dataset folder: known items keep theirs, and new items get IDs from their texts.

    The users keep their semantic IDs if every user of `dataset` has one in the earlier dataset. Otherwise, no user
    gets a semantic ID, because the model that makes these IDs (the user tower) is not saved, so new users could not
    get any.

    Args:
        dataset (`RecDataset`): The dataset with the new catalogue.
        folder (`str` or `Path`): The folder of the earlier dataset, whose IDs are kept.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace other IDs that `dataset` already has.
            If False, such IDs raise a ValueError.

    Returns:
        [`RecDataset`]: The dataset with the IDs in its catalogue.
    """
    if resolved(folder) == resolved(dataset.path):
        raise ValueError(f"{folder} is the folder of the dataset itself; give the folder of the earlier dataset")
    known = load(folder)
    if known.catalog.semantic_ids is None:
        raise ValueError(f"{folder} has no semantic IDs to keep; run trl-rec tokenize on it first")
    semantic_ids = kept_ids(dataset.catalog, known.catalog, folder)
    user_ids = _kept_user_ids(dataset, known)

    card = card_of_tokens(dataset, semantic_ids)
    card["settings"] |= {"method": "known", "item_text": _template(folder)}

    def write() -> None:
        """Writes the encoder before the IDs, so that the folder never contains the IDs without the encoder."""
        _copy_encoder(Path(folder), dataset.path, ids_fingerprint(semantic_ids, user_ids))
        write_ids(dataset, semantic_ids, card, user_ids=user_ids)

    return make_once(dataset, card["settings"], write, overwrite=overwrite)


def kept_ids(catalog: ItemCatalog, known: ItemCatalog, folder: str | Path | None) -> Ragged:
    """Returns the semantic ID of each item of a catalogue, as tokens.

    Args:
        catalog (`ItemCatalog`): The items.
        known (`ItemCatalog`): A catalogue with semantic IDs. Items with an `item_id` of this catalogue keep their IDs.
        folder (`str` or `Path`, *optional*): The dataset folder whose saved encoder gives IDs to all other items. If
            None, other items raise a ValueError.
    """
    assert known.semantic_ids is not None
    rows = pc.index_in(_ids(catalog), _ids(known)).fill_null(-1).to_numpy().astype(np.int64)  # (num_items,)
    tokens = [known.semantic_ids[row].tolist() if row >= 0 else [] for row in rows.tolist()]
    new = np.flatnonzero(rows < 0)
    if not len(new):
        return Ragged.from_lists(tokens, object)
    if folder is None:
        raise ValueError(
            f"{len(new):,} items have no semantic ID, such as item {catalog.ids[new[0]]!r}; set ids_from to the "
            "dataset folder whose saved encoder gives them IDs"
        )

    # Give IDs to the new items. `extra` maps the codes of each known ID that has an additional token to the next
    # unused number of this token.
    encoder = ItemIdEncoder.from_pretrained(folder)
    some = ItemCatalog(catalog.items.take(pa.array(new)), group_column=catalog.group_column)
    encoded = encoder.tokens(item_texts(some, _template(folder)))
    levels = int(encoded.lengths[0])
    extra: dict[tuple[str, ...], int] = {}
    for row in range(len(known)):
        found = tuple(known.semantic_ids[row].tolist())
        if len(found) > levels:
            number = int(found[levels].rpartition("_")[2].rstrip(">"))
            extra[found[:levels]] = max(extra.get(found[:levels], 0), number + 1)
    letter = chr(ord("a") + levels)
    for place, item in enumerate(new.tolist()):
        found = tuple(encoded[place].tolist())
        tokens[item] = list(found)
        if found in extra:
            tokens[item].append(f"<{letter}_{extra[found]}>")
            extra[found] += 1
    return Ragged.from_lists(tokens, object)


def _ids(catalog: ItemCatalog) -> pa.Array:
    return catalog.items["item_id"].cast(pa.large_string()).combine_chunks()


def _template(folder: str | Path) -> str | None:
    """Returns the template of the texts that the encoder in a dataset folder was trained with."""
    card = read_ids_card(folder)
    return None if card is None else card["settings"].get("item_text")


def _kept_user_ids(dataset: RecDataset, known: RecDataset) -> Ragged | None:
    """Returns the semantic IDs of the users of `dataset`, or None if `known` has no such ID for one of them."""
    if known.catalog.user_ids is None:
        return None
    wanted, given = (one.users["user_id"].cast(pa.large_string()).combine_chunks() for one in (dataset, known))
    rows = pc.index_in(wanted, given)
    if rows.null_count:
        return None
    return known.catalog.user_ids.take(rows.to_numpy(zero_copy_only=False).astype(np.int64))


def _copy_encoder(source: Path, target: Path, fingerprint: str) -> None:
    """Copies the encoder, if there is one, so that the next change of the catalogue can start from `target`."""
    if not (source / f"{NAME}.json").is_file():
        return
    description = json.loads((source / f"{NAME}.json").read_text(encoding="utf-8"))
    (target / f"{NAME}.json").unlink(missing_ok=True)
    shutil.copyfile(source / f"{NAME}.safetensors", target / f"{NAME}.safetensors")
    write_json(target / f"{NAME}.json", {**description, "fingerprint": fingerprint})
