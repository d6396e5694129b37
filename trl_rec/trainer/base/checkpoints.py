"""Checkpoints that can be trusted: a mark is written last, and resuming takes the newest one that has it."""

from __future__ import annotations

import logging
import re
from pathlib import Path


MARK = "complete"
logger = logging.getLogger(__name__)


def newest_complete(output_dir: str | Path) -> Path | None:
    """The checkpoint folder of the latest step that was written to its end, or None; says which later ones it passes
    over."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if (folder / MARK).is_file():
            return folder
        logger.warning("%s was not written to its end; it is passed over", folder)
    return None
