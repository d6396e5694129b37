"""Appends every recommended list to the log file of the day.

Each line is a JSON object with `request_id`, `time`, `run`, `items` (ids), `scores` and `fallback` (see
[`RecommendResponse`]). Clicks can later be joined to the lists by the request id. The log contains no user ids and no
histories. A list is written before the client receives it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from trl_rec.serving.schema import RecommendResponse


logger = logging.getLogger(__name__)


class ListLog:
    """Appends lists to `lists-YYYY-MM-DD.jsonl` (days in UTC). Only one thread may use an instance.

    Args:
        folder (`str` or `Path`): The folder. It is made if necessary.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"lists cannot be logged to {folder}: {error}; choose another folder") from error
        if not os.access(self._folder, os.W_OK):
            raise ValueError(f"lists cannot be logged to {folder}, because it is read-only; choose another folder")
        self._may_be_cut = True  # whether the last line of the file may be incomplete

    def append(self, answers: Iterable[RecommendResponse]) -> bool:
        """Appends lists in one write, and returns whether this succeeded. An `OSError` is logged, not raised."""
        now = datetime.now(UTC)
        text = "".join(_line(answer, now) for answer in answers)
        if not text:
            return True
        path = self._folder / f"lists-{now:%Y-%m-%d}.jsonl"
        try:
            with open(path, "ab", buffering=0) as file:
                if self._may_be_cut and not _ends_a_line(path):
                    text = f"\n{text}"
                data = text.encode()
                written = file.write(data)
        except OSError as error:
            self._may_be_cut = True
            logger.warning("lists cannot be appended to %s: %s", path, error)
            return False
        self._may_be_cut = written < len(data)
        if self._may_be_cut:
            logger.warning("only %d of %d bytes of lists were appended to %s", written, len(data), path)
        return not self._may_be_cut


def _line(answer: RecommendResponse, now: datetime) -> str:
    content = {
        "request_id": answer.request_id,
        "time": now.isoformat(timespec="milliseconds"),
        "run": answer.run,
        "items": [item.item_id for item in answer.items],
        "scores": [item.score for item in answer.items],
        "fallback": answer.fallback,
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def _ends_a_line(path: Path) -> bool:
    """Returns whether a file is empty or ends with a line break."""
    size = path.stat().st_size
    if not size:
        return True
    with open(path, "rb") as file:
        file.seek(size - 1)
        return file.read(1) == b"\n"
