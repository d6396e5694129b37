"""Semantic IDs in a dataset folder: a column of `catalog/items.parquet`, and `catalog/semantic_ids.json`, the card.

The table is replaced at once, and the card is written last, so that a card always tells of the IDs beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl_rec.data import RecDataset
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.tokens import ids_fingerprint


CARD = "semantic_ids.json"


def write_ids(dataset: RecDataset, semantic_ids: Ragged, card: Mapping[str, Any]) -> None:
    """Puts the IDs, row `i` the tokens of item `i`, and their card into the dataset's folder, in place of what was there."""
    folder = dataset.path / "catalog"
    stored, new = ItemCatalog.load(folder), folder / ".semantic_ids"
    if stored.fingerprint != dataset.catalog.fingerprint:
        raise ValueError(f"{dataset.path} now holds other items than the dataset that was loaded; load it again")
    try:
        stored.with_surface(stored.surface, semantic_ids).save(new)
        text = json.dumps({**card, "fingerprint": ids_fingerprint(semantic_ids)}, indent=2, ensure_ascii=False)
        (new / CARD).write_text(text + "\n", encoding="utf-8")
        (folder / CARD).unlink(missing_ok=True)
        (new / "items.parquet").replace(folder / "items.parquet")
        (new / CARD).replace(folder / CARD)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def read_ids_card(path: str | Path) -> dict[str, Any] | None:
    """The card of the semantic IDs in a dataset folder; None where there is none."""
    file = Path(path) / "catalog" / CARD
    if not file.is_file():
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        return {**card, "settings": dict(card["settings"]), "fingerprint": str(card["fingerprint"])}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); delete it and run trl-rec tokenize with --overwrite") from error


def is_written(dataset: RecDataset, settings: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds IDs made with these very settings; refuses other ones unless they may be replaced."""
    stored = ItemCatalog.load(dataset.path / "catalog").semantic_ids
    if stored is None or overwrite:
        return False
    card = read_ids_card(dataset.path)
    if card is None or (card["settings"], card["fingerprint"]) != (dict(settings), ids_fingerprint(stored)):
        raise ValueError(f"{dataset.path} holds semantic IDs that were made otherwise; replace them with overwrite=True")
    return True
