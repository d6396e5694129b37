"""Stores the results of the rows that an evaluation has finished, so that an interrupted evaluation can be resumed.

An evaluation makes several passes over its rows, such as a ranking with 50 beams and a ranking with 10 beams. The
values of each pass are stored in a separate folder, whose name is a hash of everything that the values depend on: the
weights of the model, the prompts and histories, the trie, the prior, the decoding settings and the package versions.
So a pass never reads values that were computed with a different model or with different inputs. The batch size and the
number of processes are not part of the hash, because they affect values only by rounding.

A pass that ends without an error in less than `SECONDS` writes nothing. The folders of all passes are removed when the
evaluation is complete.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from trl_rec.evaluation.kept.content_hash import Hashed, Unidentified, content_hash
from trl_rec.evaluation.kept.files import FINISHED
from trl_rec.evaluation.kept.metrics_file import package_version
from trl_rec.parts import RowStore


logger = logging.getLogger(__name__)

SECONDS = 20.0  # minimum time between two writes; a killed process loses at most this much work and one batch
PACKAGES = ("trl-rec", "trl", "transformers", "peft", "torch")
Keep: TypeAlias = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True, eq=False)
class FinishedRows:
    """Reads and writes the finished rows of one pass.

    A pass is described in several steps: [`~FinishedRows.of_model`] describes the model, and each call of
    [`~FinishedRows.of`] adds further inputs that the values depend on. Read and keep rows only after the last step.

    Args:
        folder (`Path`): The folder that contains the folders of all passes.
        content (`tuple`, *optional*): What the values of the pass depend on. Its [`content_hash`] identifies the pass.
        seconds (`float`, *optional*): Minimum number of seconds between two writes.
    """

    folder: Path
    content: tuple[Any, ...] = ()
    seconds: float = SECONDS

    @classmethod
    def of_model(cls, output_dir: str | Path, model: nn.Module, *, seconds: float = SECONDS) -> FinishedRows:
        """Describes the model of a pass. Call this method inside the autocast context in which the model is evaluated.

        Args:
            output_dir: The output folder of the evaluation.
            model: The model. Sharded weights must be gathered. The model must not change as long as the
                returned object is used.
            seconds (*optional*): Minimum number of seconds between two writes.
        """
        versions = {package: package_version(package) for package in PACKAGES}
        device = next(model.parameters()).device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        return cls(Path(output_dir) / FINISHED, (versions, autocast, Hashed(model)), seconds)

    def of(self, *content: Any) -> FinishedRows:
        """Returns a copy that also describes `content`, on which the values of the pass depend."""
        return replace(self, content=(*self.content, *content))

    def read(self, width: int, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the finished rows, ascending, `(N,)`, and their values, `(N, width)`.

        Only one process should call this method, because different processes may see different files.
        """
        try:
            stored = self._store.read() if self.folder.is_dir() else None
        except Unidentified:
            stored = None
        if stored is None:
            return np.empty(0, np.int64), np.empty((0, width), dtype)
        numbers, first = np.unique(stored[0], return_index=True)
        return numbers, np.ascontiguousarray(stored[1][first]).view(dtype)

    @contextmanager
    def keeping(self) -> Iterator[Keep]:
        """Yields a function that takes row numbers `(B,)` and their values `(B, width)`, and writes them at intervals.

        When the `with` block ends, the remaining rows are written too. The only exception is a block that ends without
        an error before the first write: then nothing is written.
        """
        writer = _Writer(self)
        try:
            yield writer.keep
        except BaseException:
            writer.write()
            raise
        if writer.has_written:
            writer.write()

    @cached_property
    def _store(self) -> RowStore:
        fingerprint = content_hash(self.content)
        return RowStore(self.folder / fingerprint, fingerprint)


class _Writer:
    """Collects finished rows, and writes them when enough time has passed."""

    def __init__(self, finished: FinishedRows) -> None:
        self._finished = finished
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._last = time.monotonic()
        self._fails = False
        self.has_written = False

    def keep(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Adds finished rows, and writes all waiting rows if enough time has passed."""
        self._waiting.append((rows, values))
        if time.monotonic() - self._last >= self._finished.seconds:
            self.write()

    def write(self) -> None:
        """Writes the waiting rows. If writing fails, the evaluation continues, but no rows are written any more."""
        if not self._waiting or self._fails:
            return
        rows = np.concatenate([rows for rows, _ in self._waiting])
        values = np.ascontiguousarray(np.concatenate([values for _, values in self._waiting]))
        try:
            self._finished._store.write(rows, values.view(np.int32))
            self.has_written = True
        except Unidentified:
            self._fails = True
        except (OSError, ValueError) as error:
            self._fails = True
            logger.warning(
                "cannot save finished rows (%s); if the evaluation is interrupted, rows that are not saved will be "
                "computed again",
                error,
            )
        self._waiting = []
        self._last = time.monotonic()


def discard_finished(output_dir: str | Path) -> None:
    """Removes the finished rows of a complete evaluation, after its results have been written."""
    if PartialState().is_local_main_process:
        shutil.rmtree(Path(output_dir) / FINISHED, ignore_errors=True)
