"""Keeps the rows that an evaluation has finished, so that it can be resumed after a kill.

An evaluation makes several passes over its rows, such as a ranking with 50 beams and one with 10. The values of each
pass are kept in a folder of their own, whose name is a hash of everything that they depend on: the weights of the
model, the prompts and histories, the trie, the prior, the decoding settings and the versions of the packages. So they
are only used again by the same pass. The batch size and the number of processes are not part of the hash. They affect
values only by rounding, and may change.

A pass that takes less than `SECONDS` keeps nothing. The folder is removed when the evaluation is complete.
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

SECONDS = 20.0  # between two writes; a kill loses at most this much work
PACKAGES = ("trl-rec", "trl", "transformers", "peft", "torch")
Keep: TypeAlias = Callable[[np.ndarray, np.ndarray], None]


@dataclass(frozen=True, eq=False)
class FinishedRows:
    """The finished rows of one pass, or, before [`~FinishedRows.of`] has described the pass completely, of all passes.

    Args:
        folder (`Path`): The folder that contains the folders of all passes.
        content (`tuple`, *optional*): What the values of the pass depend on, see [`content_hash`].
        seconds (`float`, *optional*): Seconds between two writes.
    """

    folder: Path
    content: tuple[Any, ...] = ()
    seconds: float = SECONDS

    @classmethod
    def of_model(cls, output_dir: str | Path, model: nn.Module, *, seconds: float = SECONDS) -> FinishedRows:
        """Returns where the evaluation of a model keeps its rows.

        Args:
            output_dir: The output folder of the evaluation.
            model: The model, with sharded weights gathered, under the autocast in which it is evaluated. It must not
                change as long as the result is used.
            seconds (*optional*): Seconds between two writes.
        """
        versions = {package: package_version(package) for package in PACKAGES}
        device = next(model.parameters()).device.type
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        return cls(Path(output_dir) / FINISHED, (versions, autocast, Hashed(model)), seconds)

    def of(self, *content: Any) -> FinishedRows:
        """Returns the same with more of what the values depend on."""
        return replace(self, content=(*self.content, *content))

    def read(self, width: int, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of the finished rows, ascending, `(N,)`, and their values, `(N, width)`.

        Only one process should call this method, because other processes may see other files.
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
        """Yields a function that takes row numbers `(B,)` and their values `(B, width)`, and writes them now and then.

        If the block is interrupted or fails, what is not yet written is written. If it ends, this is only done if the
        pass has written before.
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
        """Takes finished rows."""
        self._waiting.append((rows, values))
        if time.monotonic() - self._last >= self._finished.seconds:
            self.write()

    def write(self) -> None:
        """Writes the waiting rows. A failure only means that these rows would have to be computed again."""
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
            logger.warning("finished rows cannot be kept, so an interrupted evaluation would start again: %s", error)
        self._waiting = []
        self._last = time.monotonic()


def discard_finished(output_dir: str | Path) -> None:
    """Removes the finished rows of a complete evaluation, after its results have been written."""
    if PartialState().is_local_main_process:
        shutil.rmtree(Path(output_dir) / FINISHED, ignore_errors=True)
