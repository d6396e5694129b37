"""Reads and writes the file of a prior: a safetensors file whose metadata contains the prior's kind and settings.

Nothing in such a file is executed. The kind, the arrays and the settings are checked, so a file whose parts do not fit
together is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trl_rec.data.transitions import TransitionCounts
from trl_rec.files import atomic_file
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, NOT_NEGATIVE


PRIOR = "prior.safetensors"  # the prior of a run folder
KIND = "trl_rec.prior"  # key of the kind in the metadata
SETTINGS = "settings"  # key of the settings in the metadata, as JSON
REMEDY = "restore it from a copy, or fit and save the prior again"


@dataclass(frozen=True, eq=False)
class PriorFile:
    """The content of the file of a prior.

    Args:
        path (`Path`): The file.
        kind (`str`): The kind of prior.
        arrays (`dict[str, np.ndarray]`): Its arrays by name.
        settings (`dict`): Its settings by name.
    """

    path: Path
    kind: str
    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]

    def array(self, name: str, dtype: type[np.generic], ndim: int) -> np.ndarray:
        """Returns an array after checking its type and its number of dimensions."""
        if name not in self.arrays:
            raise ValueError(f"the array {name!r} is missing")
        array = self.arrays[name]
        if array.dtype != dtype or array.ndim != ndim:
            raise ValueError(
                f"{name} is {array.dtype} with {array.ndim} dimension(s), not {np.dtype(dtype)} with {ndim}"
            )
        return array

    def number(self, name: str) -> float:
        """Returns a setting without checking its value. The class of the prior checks that it is a number in its
        range."""
        if name not in self.settings:
            raise ValueError(f"the setting {name!r} is missing")
        value: float = self.settings[name]
        return value

    def whole(self, name: str) -> int:
        """Returns a setting after checking that it is a whole number. The class of the prior checks its range."""
        value = self.number(name)
        if not isinstance(value, int):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
        return value

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside the block, errors about invalid values become a `ValueError` that names the file and the remedy."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path} does not contain a valid prior: {error}; {REMEDY}") from error


def write_prior_file(
    path: str | Path, kind: str, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    """Writes the file of a prior, atomically.

    Args:
        path: The file.
        kind: The kind of prior.
        arrays: Its arrays by name.
        settings: Its settings by name. They must be JSON values.
    """
    metadata = {KIND: kind, SETTINGS: json.dumps(dict(settings), allow_nan=False)}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, metadata)


def read_prior_file(path: str | Path) -> PriorFile:
    """Reads the file of a prior. Raises `ValueError` if the file is missing, is damaged or contains no prior."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no prior at {path}; fit a prior and save it there")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # `file` itself cannot be iterated
        settings = json.loads(metadata.get(SETTINGS, "{}"))
    except (OSError, SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error
    if KIND not in metadata or not isinstance(settings, dict):
        raise ValueError(f"{path} does not contain a prior; give a file that the method save() of a prior has written")
    return PriorFile(path, metadata[KIND], arrays, settings)


def check_kind(path: str | Path, content: PriorFile, kind: str) -> None:
    """Raises `ValueError` unless the kind of the prior in the file is `kind`."""
    if content.kind != kind:
        raise ValueError(
            f"{path} contains a prior of the kind {content.kind!r}, not {kind!r}; load it with the class that saved it"
        )


def check_counts(name: str, counts: np.ndarray) -> None:
    """Raises `ValueError` unless the counts are whole numbers of at least 0, one per item."""
    if counts.ndim != 1 or not len(counts) or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(f"{name} must contain one whole number per item, not {counts.dtype} of shape {counts.shape}")
    if counts.min() < 0:
        raise ValueError(f"{name} contains a negative count")


def count_tensors(counts: TransitionCounts, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays in which transition counts are stored, by name. The names start with `prefix`."""
    return {
        f"{prefix}offsets": counts.targets.offsets.astype(np.int64, copy=False),
        f"{prefix}targets": counts.targets.values.astype(np.int32, copy=False),
        f"{prefix}shares": counts.shares.astype(np.float64, copy=False),
    }


def read_counts(content: PriorFile, prefix: str, max_history: object, decay: object) -> TransitionCounts:
    """Returns the transition counts that were stored with [`count_tensors`].

    The class of the prior checks that the arrays are consistent with each other.

    Args:
        content: The content of the file.
        prefix: The beginning of the names of the arrays.
        max_history, decay: The fields of [`TransitionCounts`]; this function checks them.
    """
    offsets = content.array(f"{prefix}offsets", np.int64, 1)
    targets = content.array(f"{prefix}targets", np.int32, 1)
    shares = content.array(f"{prefix}shares", np.float64, 1)
    COUNT.check("max_history", max_history)
    NOT_NEGATIVE.check("decay", decay)
    return TransitionCounts(Ragged(targets, offsets), shares, cast(int, max_history), cast(float, decay))
