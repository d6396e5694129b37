"""Reads and writes the semantic IDs of a dataset folder. The folder stores them in these places:

- a column of `catalog/items.parquet`: the semantic IDs of the items;
- `catalog/user_ids.parquet`: the semantic IDs of the users, if users have any;
- `catalog/semantic_ids.json`: the card, which contains the settings of the IDs and statistics about them;
- `vectors/`: cached vectors of texts and items, which are slow to compute (see [`cached_tensor`]).

Each file is replaced atomically. The old card is deleted first and the new card is written last, so a card always
describes the IDs in its folder. While the files are being replaced, `catalog/semantic_ids.unfinished` contains the
settings of the new IDs. If the process is killed in the meantime, [`make_once`] makes the IDs again when it is next
called with the same settings. Only one process at a time can make IDs in a folder.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_rec.data import RecDataset
from trl_rec.files import atomic_file, clean_up, exclusive, leftovers, sync_folder, temporary_folder, write_json
from trl_rec.items import ItemCatalog
from trl_rec.items.user_ids import FILE as USER_IDS
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.card import describe_ids
from trl_rec.semantic_ids.tokens import ids_fingerprint


CARD = "semantic_ids.json"
UNFINISHED = "semantic_ids.unfinished"
logger = logging.getLogger(__name__)


def make_once(
    dataset: RecDataset, settings: Mapping[str, Any], make: Callable[[], None], *, overwrite: bool
) -> RecDataset:
    """Calls `make` to write IDs, unless the dataset folder already contains IDs made with the same settings.

    If the folder already contains these IDs, several processes may call this function at the same time. Otherwise,
    only one process at a time may call it.

    Args:
        dataset (`RecDataset`): The dataset.
        settings (`Mapping`): Everything that the IDs depend on besides the dataset.
        make (`Callable`): Makes the IDs and writes them with [`write_ids`].
        overwrite (`bool`): Whether to replace IDs that were not made with these settings. If False, such IDs raise a
            ValueError.

    Returns:
        [`RecDataset`]: The dataset with the IDs in its catalogue.
    """
    if is_written(dataset, settings, overwrite=True):
        logger.info("%s already contains these semantic IDs", dataset.path)
        _tidy(dataset.path)
        return with_stored_ids(dataset)
    with exclusive(dataset.path):
        clean_up(dataset.path)
        if not is_written(dataset, settings, overwrite):
            make()
        (dataset.path / "catalog" / UNFINISHED).unlink(missing_ok=True)
    return with_stored_ids(dataset)


def write_ids(
    dataset: RecDataset, semantic_ids: Ragged, card: Mapping[str, Any], *, user_ids: Ragged | None = None
) -> None:
    """Writes IDs and their card into the dataset folder. They replace any IDs that the folder contains.

    Args:
        dataset (`RecDataset`): The dataset.
        semantic_ids (`Ragged`): Row `i` contains the tokens of item `i`.
        card (`Mapping`): The card of the IDs, from [`make_card`].
        user_ids (`Ragged`, *optional*): Row `u` contains the tokens of user `u`.
    """
    folder = dataset.path / "catalog"
    stored = ItemCatalog.load(folder)
    if stored.fingerprint != dataset.catalog.fingerprint:
        raise ValueError(
            f"the items in {dataset.path} have changed since the dataset was loaded; load the dataset again"
        )

    card = {**card, "fingerprint": ids_fingerprint(semantic_ids, user_ids)}
    with temporary_folder(folder / "semantic_ids") as new:
        # 1. Write all files to a temporary folder. If this fails, the old IDs are unchanged.
        replace(stored, semantic_ids=semantic_ids, user_ids=user_ids).save(new)
        write_json(new / CARD, card, ensure_ascii=False)
        write_json(new / UNFINISHED, card["settings"])

        # 2. Replace the files one by one. While there is no card, UNFINISHED contains the settings of the new IDs.
        (new / UNFINISHED).replace(folder / UNFINISHED)
        (folder / CARD).unlink(missing_ok=True)
        sync_folder(folder)
        if user_ids is None:
            (folder / USER_IDS).unlink(missing_ok=True)
        else:
            (new / USER_IDS).replace(folder / USER_IDS)
        (new / "items.parquet").replace(folder / "items.parquet")

        # 3. Write the card only after everything that it describes is on disk.
        sync_folder(folder)
        (new / CARD).replace(folder / CARD)
        sync_folder(folder)


def with_stored_ids(dataset: RecDataset) -> RecDataset:
    """Returns the dataset with the IDs that are stored in its folder."""
    stored = ItemCatalog.load(dataset.path / "catalog")
    catalog = replace(dataset.catalog, semantic_ids=stored.semantic_ids, user_ids=stored.user_ids)
    return replace(dataset, catalog=catalog)


def read_ids_card(path: str | Path) -> dict[str, Any] | None:
    """Reads the card of the semantic IDs in a dataset folder, or returns None if there is no card.

    The keys of the card are described in [`make_card`].
    """
    file = Path(path) / "catalog" / CARD
    if not file.is_file():
        return None
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        card = {**card, "settings": dict(card["settings"]), "fingerprint": str(card["fingerprint"])}
        describe_ids(card)  # raises if a key is missing
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({error!r}); delete it and run trl-rec tokenize with --overwrite true"
        ) from error
    return card


def is_written(dataset: RecDataset, settings: Mapping[str, Any], overwrite: bool) -> bool:
    """Returns whether the dataset folder contains complete IDs that were made with exactly these settings.

    If `overwrite` is False, other IDs and a damaged card raise a ValueError. There is one exception: if a killed
    process was writing IDs with the same settings, the result is False.
    """
    stored = ItemCatalog.load(dataset.path / "catalog")
    if stored.semantic_ids is None:
        return False

    # 1. The folder contains these IDs if its card has the same settings and a fingerprint that matches the stored
    # tokens.
    try:
        card = read_ids_card(dataset.path)
    except ValueError:
        if overwrite:
            return False
        raise
    fingerprint = ids_fingerprint(stored.semantic_ids, stored.user_ids)
    if card is not None and (card["settings"], card["fingerprint"]) == (dict(settings), fingerprint):
        return True

    # 2. If a killed process was writing IDs with the same settings, the IDs have to be made again.
    if card is None and _unfinished_settings(dataset.path) == dict(settings):
        return False

    # 3. The folder contains other IDs.
    if not overwrite:
        raise ValueError(
            f"{dataset.path} already contains semantic IDs that were not made with these settings; to replace them, "
            "set overwrite=True (--overwrite true of trl-rec tokenize, overwrite_ids of align3gr)"
        )
    return False


def _tidy(path: Path) -> None:
    """Removes files that a killed process left beside complete IDs, unless another process is writing IDs."""
    unfinished = path / "catalog" / UNFINISHED
    if unfinished.exists() or leftovers(path):
        with suppress(ValueError, OSError), exclusive(path):
            clean_up(path)
            if (path / "catalog" / CARD).is_file():
                unfinished.unlink(missing_ok=True)


def _unfinished_settings(path: Path) -> Any:
    """Returns the settings of the IDs that a killed process was writing, or None if they cannot be read."""
    try:
        return json.loads((path / "catalog" / UNFINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def cached_tensor(folder: Path | None, name: str, key: str, make: Callable[[], Tensor]) -> Tensor:
    """Returns the tensor that the folder stores under `key`. If there is none, computes and stores it.

    Args:
        folder (`Path`, *optional*): The cache folder. If it is None, nothing is cached.
        name (`str`): Prefix of the file name.
        key (`str`): Hash of everything that the tensor depends on.
        make (`Callable`): Computes the tensor.
    """
    if folder is None:
        return make()

    # 1. Read the tensor if it is stored.
    path = folder / f"{name}-{key}.safetensors"
    if path.is_file():
        try:
            return load_file(path)[name]
        except (OSError, KeyError, SafetensorError) as error:
            logger.warning("%s cannot be read (%r); it is computed again", path, error)

    # 2. Otherwise compute and store it. It is then read from the file, so that every call returns the same tensor.
    tensor = make().contiguous()
    with atomic_file(path) as temporary:
        save_file({name: tensor}, temporary)
    return load_file(path)[name]
