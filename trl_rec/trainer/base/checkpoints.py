"""Complete checkpoints: a mark is written last, and a resume takes the newest checkpoint that has it."""

from __future__ import annotations

import logging
import re
from pathlib import Path


MARK = "complete"
logger = logging.getLogger(__name__)


def newest_complete(output_dir: str | Path) -> Path | None:
    """The complete checkpoint of the latest step, or None. Later ones that are not complete are named in a warning."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for folder in sorted(folders, key=_step, reverse=True):
        if (folder / MARK).is_file():
            return folder
        logger.warning("%s was not written to its end; it is passed over", folder)
    return None


def _step(folder: Path) -> int:
    return int(folder.name.split("-")[1])
