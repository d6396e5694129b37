"""Records the licence of the data in a dataset folder: in `card.json`, and in `catalog/catalog.json`.

A run folder contains the catalogue, and therefore also the licence of the data that its model was trained on.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from trl_rec.data.dataset import read_card
from trl_rec.data.readers import READERS
from trl_rec.files import exclusive, write_json
from trl_rec.items import ItemCatalog


logger = logging.getLogger(__name__)


def license_of(format: str, license: str | None) -> str | None:
    """Returns the licence of a source: `license` if it is given, or else the known licence of the format, if any
    (the formats `ml-100k` and `toy` have one).

    Raises ValueError if the given licence is empty, or differs from the known licence of the format.
    """
    if license is not None and (not isinstance(license, str) or not license.strip()):
        raise ValueError(f"license must be a non-empty string, not {license!r}; correct it, or leave it out")
    known = READERS[format].license
    if known is not None and license not in (None, known):
        raise ValueError(f"the licence of {format} is {known!r}, not {license!r}; leave license out")
    return license or known


def record_license(folder: Path, license: str | None) -> None:
    """Records a licence in an existing dataset folder. Does nothing if it is None or already recorded."""
    if license is None or read_card(folder).get("license") == license:
        return
    with exclusive(folder):
        card = read_card(folder)  # again, because another process may have replaced the dataset
        replace(ItemCatalog.load(folder / "catalog"), license=license).save(folder / "catalog")
        write_json(folder / "card.json", {**card, "license": license}, ensure_ascii=False)
    logger.info("recorded the licence %s in %s", license, folder)
