"""Downloads a dataset from the Hugging Face Hub, and saves its tables in a cache folder, from which they are read.

The dataset is given as `hf://datasets/owner/name` or `hf://datasets/owner/name@revision`. Its tables are
configurations or splits with the names `interactions`, `items` and `users`. If no configuration or split is called
`interactions`, the dataset must have a single split, which contains the interactions.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from datasets import Dataset, DatasetDict, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetsError

from trl_rec.data.readers.fetching import FetchError, cache_folder
from trl_rec.files import atomic_folder


logger = logging.getLogger(__name__)

PREFIX = "hf://datasets/"
KINDS = ("interactions", "items", "users")


def is_hub_source(source: str | Path) -> bool:
    """Returns whether a source is the name of a dataset on the Hub."""
    return str(source).startswith(PREFIX)


def hub_folder(source: str) -> Path:
    """Returns a folder with the tables of a dataset on the Hub. Raises FetchError if they cannot be downloaded.

    A dataset that has changed on the Hub is downloaded again, into another folder.
    """
    # 1. Download.
    name, _, revision = source.removeprefix(PREFIX).strip("/").partition("@")
    if name.count("/") > 1 or not name:
        raise ValueError(f"{source} is not the name of a dataset on the Hub; write {PREFIX}owner/name")
    try:
        downloaded = _download(name, revision or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FetchError(
            f"{source} cannot be downloaded ({reason}); check its name and the network, or save its tables with "
            "save_to_disk and pass their folder as the source"
        ) from error

    # 2. Save the tables in a folder that is named after a hash of the names of the downloaded files. These names
    # contain the revision, so another revision gets another folder.
    tables = _tables(downloaded, name)
    files = sorted(file["filename"] for table in tables.values() for file in table.cache_files)
    key = hashlib.sha256("\n".join([*tables, *files]).encode()).hexdigest()[:16]
    folder = cache_folder() / "hub" / name.replace("/", "--") / key
    if not files or not folder.is_dir():
        logger.info("saving %s as %s", source, folder)
        with atomic_folder(folder, check_old=_anything) as temporary:
            for kind, table in tables.items():
                table.save_to_disk(str(temporary / kind))
    return folder


def _download(name: str, revision: str | None) -> dict[str, DatasetDict]:
    """Downloads the configurations that are called `interactions`, `items` or `users`.

    If no configuration is called `interactions`, the default configuration is downloaded instead.
    """
    configs = get_dataset_config_names(name, revision=revision)
    if "interactions" not in configs:
        return {"default": load_dataset(name, revision=revision)}
    return {kind: load_dataset(name, kind, revision=revision) for kind in KINDS if kind in configs}


def _tables(downloaded: dict[str, DatasetDict], name: str) -> dict[str, Dataset]:
    """Returns a dict that maps table names to tables."""
    if "default" not in downloaded:
        return {kind: _only_split(splits, f"{name}, configuration {kind}") for kind, splits in downloaded.items()}
    splits = downloaded["default"]
    if "interactions" in splits:
        return {kind: splits[kind] for kind in KINDS if kind in splits}
    return {"interactions": _only_split(splits, name)}


def _only_split(splits: DatasetDict, what: str) -> Dataset:
    """Returns the only split of a configuration. Raises ValueError if there are several splits."""
    if len(splits) > 1:
        raise ValueError(
            f"{what} has the splits {', '.join(splits)}, so it is not clear which one to read; name "
            "the splits or configurations 'interactions', 'items' and 'users'"
        )
    table: Dataset = next(iter(splits.values()))
    return table


def _anything(folder: Path) -> None:
    """Raises no error, so an old folder may be replaced whatever it contains."""
