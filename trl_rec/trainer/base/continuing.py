"""Matches the items of a run folder with those of a dataset, so that training can continue on a newer log.

A run that starts from the folder of an earlier run may have a dataset with other items, or with the same items in
another order. Items are matched by `item_id`. Only items in the catalogue of the dataset can be recommended. Items
that are only in the catalogue of the run folder are kept as retired items, which the model can still read in
histories.
"""

from __future__ import annotations

import logging
from pathlib import Path

from trl_rec.decoding.run_folder import CATALOG, SETTINGS, load_run
from trl_rec.items.catalog import ItemCatalog
from trl_rec.items.changes import CatalogChange, changed_ids, match_items


logger = logging.getLogger(__name__)


def catalog_change(
    folder: str | Path | None, catalog: ItemCatalog, name: str | Path = "the dataset"
) -> CatalogChange | None:
    """Returns how the catalogue of a dataset differs from that of a run folder, and logs how many items were added or
    removed.

    Returns None if training does not start from a run folder. Also returns None if the items of the earlier run have
    another surface, because the tokens that the earlier run learned for items then have no meaning for the new run.

    Args:
        folder (`str` or `Path`, *optional*): The model that training starts from: a run folder, or any other folder or
            name of a model.
        catalog (`ItemCatalog`): The catalogue of the dataset, with the surface to train on.
        name (`str` or `Path`, *optional*): Name of the dataset in messages.
    """
    # 1. Read the catalogue of the run.
    if folder is None or not (Path(folder) / CATALOG / "catalog.json").is_file():
        return None
    settings = SETTINGS if (Path(folder) / SETTINGS).is_file() else "ranker.json"
    _, trained = load_run(folder, settings)
    if trained.surface != catalog.surface:
        return None

    # 2. Match the items.
    change = match_items(trained, catalog)
    if change.catalog.surface == "semantic_id":
        _check_ids(change, folder, name)
    if change.num_new or change.num_removed or not change.keeps_indices:
        logger.info("training of the model in %s continues with the items of %s: %s", folder, name, change.describe())
    return change


def _check_ids(change: CatalogChange, folder: str | Path, name: str | Path) -> None:
    """Raises ValueError if an item of the dataset has a different semantic ID from the one that the model learned."""
    changed = changed_ids(change)
    if len(changed):
        raise ValueError(
            f"in {name}, item {change.catalog.ids[changed[0]]!r} has a different semantic ID from the one that the "
            f"model in {folder} has learned (number of such items: {len(changed):,}); keep the learned IDs with "
            "trl-rec tokenize --known DATASET, where DATASET is the dataset that the model was trained on, or train "
            "from scratch"
        )
