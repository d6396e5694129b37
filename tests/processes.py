"""Work in processes of its own: in one, in one that is killed, in two that train together.

Each is forked from a server that has imported the trainers once, so that it costs no import. The work is a function of a
module, or a `partial` of one, and gets the folder that it writes to. What its processes say is in `OUTPUT.log`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from unittest.mock import patch

import torch
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser

from trl_rec.scripts.parsing import find_recipe


PRELOADED = [f"tests.trainer.{name}_runs" for name in ("alro", "blade", "preference", "task")]
PRELOADED += ["tests.schedule.loops", "deepspeed"]
SECONDS = 300  # no work takes as long
Work = Callable[[Path], object]


def start(work: Work, output: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """The running process."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_work, args=(work, output, dict(environment or {})))
    process.start()
    return process


def _work(work: Work, output: Path, environment: dict[str, str]) -> None:
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    work(output)


def run_alone(work: Work, output: Path) -> None:
    """The work in one process, to its end."""
    _wait([start(work, output)], output)


def run_in_two(recipe: str, work: Work, output: Path) -> None:
    """The work in two processes that are told what `accelerate launch` tells them with a shipped recipe.

    Where one fails the other is killed, and what they said is in the `AssertionError`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**_told(recipe), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    _wait([start(work, output, {**common, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")], output)


@cache
def _told(name: str) -> Mapping[str, str]:
    """What `accelerate launch` adds to the environment, with the CPU for device."""
    recipe = {**yaml.safe_load(find_recipe(f"accelerate/{name}").read_text()), "use_cpu": True, "mixed_precision": "no"}
    told: dict[str, str] = {}
    before = set(os.environ.items())
    with NamedTemporaryFile("w", suffix=".yaml") as file, patch("torch.distributed.run.run") as elastic:
        yaml.safe_dump(recipe, file)
        elastic.side_effect = lambda _: told.update(os.environ.items() - before)
        launch_command(launch_command_parser().parse_args(["--config_file", file.name, "script.py"]))
    return told


def _wait(processes: list[BaseProcess], output: Path) -> None:
    """Until all have ended, or one has failed."""
    deadline = time.monotonic() + SECONDS
    while (running := [process for process in processes if process.exitcode is None]) and time.monotonic() < deadline:
        connection.wait([process.sentinel for process in running], timeout=deadline - time.monotonic())
        if any(process.exitcode for process in processes):
            break
    for process in processes:
        process.kill()
        process.join()
    assert not any(process.exitcode for process in processes), log_of(output)


def log_of(output: Path) -> str:
    """The end of what the processes said."""
    return output.with_suffix(".log").read_text()[-3000:]
