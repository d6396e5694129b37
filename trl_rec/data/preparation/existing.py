"""Checks whether a folder already contains the requested dataset, and whether an existing folder may be replaced."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from trl_rec.data.dataset import UNLISTED, read_card
from trl_rec.data.log import SPLITS
from trl_rec.files import is_temporary


# Patterns of all files that may be in a dataset folder. A folder with any other file is not overwritten.
OWN = [
    "catalog",
    "catalog/catalog.json",
    "catalog/items.parquet",
    "users.parquet",
    "interactions.parquet",
    UNLISTED,
    *SPLITS,
    *(f"{split}/{name}" for split in SPLITS for name in ("*.arrow", "tmp*", "dataset_info.json", "state.json")),
    "card.json",
    ".lock",
    # Written by `trl-rec tokenize`.
    "catalog/user_ids.parquet",
    "catalog/semantic_ids.json",
    "catalog/semantic_ids.unfinished",
    "vectors",
    "vectors/*.safetensors",
    "id_encoder.json",
    "id_encoder.safetensors",
    "semantic_ids.svg",
]


def is_made(output_dir: Path, settings: dict[str, Any], sources: dict[str, str], overwrite: bool) -> bool:
    """Returns whether the folder contains a dataset that was made from these sources with these settings.

    Raises ValueError if the folder contains anything that must not be replaced. Without `overwrite`, a dataset that
    was made with other settings or from other sources must not be replaced. With `overwrite`, the function never
    returns True, because the dataset is made again.
    """
    if not (output_dir / "card.json").is_file():
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise ValueError(f"{output_dir} exists and is not a dataset folder; choose another output_dir")
        return False

    card = read_card(output_dir)  # raises if the card is not the card of a dataset, even with overwrite
    if overwrite:
        check_own(output_dir, output_dir)
        return False

    written = json.loads(json.dumps(settings))  # as in the card, since JSON turns tuples into lists
    if (card["settings"], card["sources"]) != (written, sources):
        raise ValueError(
            f"{output_dir} is a dataset that was made with other settings or from other files; set "
            "overwrite=True to replace it (in a shell: trl-rec prepare --overwrite true)"
        )
    return True


def check_own(folder: Path, name: Path) -> None:
    """Raises ValueError if a dataset folder contains a file that does not belong to the dataset.

    Args:
        folder: The current path of the folder. While the folder is being replaced, this is a temporary path.
        name: The path that the user has given for the folder, for the error message.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if not is_temporary(path) and not any(fnmatchcase(relative, pattern) for pattern in OWN):
            raise ValueError(f"{name} also contains {relative}, which would be deleted; move it elsewhere first")


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file. For a folder, hashes the relative paths and the SHA-256 of all files in it."""
    if path.is_dir():
        parts = [part for part in sorted(path.rglob("*")) if part.is_file()]
        names = [f"{part.relative_to(path).as_posix()} {sha256(part)}" for part in parts]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
