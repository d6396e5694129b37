"""Watches the run folder or the file of precomputed lists, and loads a new version while the server runs.

A new run may be written into the same folder, or a symbolic link may be changed to point to another folder. The new
run is loaded as soon as its files have stopped changing. Until it is loaded, requests are served from the old run. If
the new run cannot be loaded, the server stays with the old one. A file of lists is treated in the same way.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TypeAlias

from trl_rec.serving.config import ServingConfig
from trl_rec.serving.lists_engine import list_files
from trl_rec.serving.model_engine import run_files
from trl_rec.serving.service import Service, load_engine


logger = logging.getLogger(__name__)

State: TypeAlias = list[tuple[str, int, int, int]]


def watched_state(config: ServingConfig) -> State | None:
    """Returns the paths, inodes, sizes and modification times of the watched files.

    Returns None while the files are missing, for example because they are being replaced. Always returns None if the
    model is given as a hub id.
    """
    source = Path(config.lists or config.model or "")
    try:
        folder = source.resolve(strict=True)
        files = run_files(folder) if config.lists is None else list_files(folder)
        found = [(str(path), path.stat()) for path in sorted(files)]
    except OSError:
        return None
    return [(path, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found] or None


async def watch(service: Service, loaded: State | None) -> None:
    """Replaces the service's engine whenever the watched files have changed. Runs until it is cancelled.

    Args:
        service ([`Service`]): The service.
        loaded: The state of the files that the engine was loaded from.
    """
    before = loaded
    while True:
        await asyncio.sleep(service.config.reload_seconds)
        now = await asyncio.to_thread(watched_state, service.config)
        is_settled = now is not None and now == before
        before = now
        if not is_settled or now == loaded:
            continue

        # The files differ from those that were loaded, and have not changed since the last check.
        loaded = now
        try:
            engine = await asyncio.to_thread(load_engine, service.config)
        except Exception as error:
            logger.warning("cannot load the new run (%s); still serving %s", error, service.engine.run)
            service.metrics.count("reload_failures_total")
            continue
        if await asyncio.to_thread(watched_state, service.config) != now:
            loaded = None  # the files changed while they were read, so load them again once they are settled
            continue
        service.use(engine)
        service.metrics.count("reloads_total")
        logger.info("loaded the new run; now serving %s", engine.run)
