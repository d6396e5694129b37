"""Runs a function of a test in a separate process, or in two processes that train together.

The processes are forked from a server that has already imported the trainers. When the function has returned, its
process shuts Python down completely and calls the `atexit` functions, as a script does. Unlike the processes of
`accelerate launch`, these processes share one hash seed.

The function to run, the "work", must be defined at the top level of a module, or be a `partial` of such a function.
Its only argument is the output folder. The processes print to a log file next to this folder, with the suffix `.log`.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import chdir
from multiprocessing import connection, forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import NamedTemporaryFile
from unittest.mock import patch

import numpy as np
import torch
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser

from trl_rec.scripts.options.recipe_files import find_recipe


PRELOADED = [
    "tests.trainer.alro.alro_runs",
    "tests.trainer.bear.task_runs",
    "tests.trainer.blade.blade_runs",
    "tests.trainer.softmax_dpo.preference_runs",
    "tests.schedule.loops",
    "tests.schedule.studies.study_runs",
    "deepspeed",
]
SECONDS = 300  # work that takes longer counts as failed
Work = Callable[[Path], object]


def start(work: Work, output: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """Starts the work in a new process, with the given environment or else the environment of this process. The
    caller may kill the new process."""
    forkserver.set_forkserver_preload(PRELOADED)
    with chdir(Path(__file__).parents[1]):  # the server imports the tests from there
        forkserver.ensure_running()
    output.with_suffix(".log").touch()
    arguments = (work, output, dict(os.environ if environment is None else environment))
    process = get_context("forkserver").Process(target=_work, args=arguments)
    process.start()
    return process


def _work(work: Work, output: Path, environment: dict[str, str]) -> None:
    assert PRELOADED[0] in sys.modules, "the server has not imported the trainers"
    log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    random.seed(), np.random.seed()
    work(output)
    ctypes.pythonapi.Py_Exit(0)  # a forked process would otherwise not call `atexit` functions


def run_alone(work: Work, output: Path) -> None:
    """Runs the work in one process and waits for it."""
    _run(work, output, [dict(os.environ)])


def run_in_two(recipe: str, work: Work, output: Path) -> None:
    """Runs the work in two processes with the environment that `accelerate launch` sets for a shipped recipe.

    If one process fails, the other process is killed, and the `AssertionError` contains the end of their common log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        **_launch_environment(recipe),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    _run(work, output, [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")])


def _launch_environment(name: str) -> dict[str, str]:
    """Returns the environment that `accelerate launch` sets for a shipped recipe, changed to the CPU and to full
    precision. The work must set `use_cpu` in its training arguments as well."""
    recipe = {
        **yaml.safe_load(find_recipe(f"accelerate/{name}").read_text()),
        "use_cpu": True,
        "mixed_precision": "no",
    }
    environment: dict[str, str] = {}
    with NamedTemporaryFile("w", suffix=".yaml") as file, patch("torch.distributed.run.run") as elastic:
        yaml.safe_dump(recipe, file)
        elastic.side_effect = lambda _: environment.update(os.environ)
        options = ["--config_file", file.name, "--num_cpu_threads_per_process", "1", "script.py"]
        launch_command(launch_command_parser().parse_args(options))
    return environment


def _run(work: Work, output: Path, environments: list[dict[str, str]]) -> None:
    processes: list[BaseProcess] = []
    try:
        processes += [start(work, output, environment) for environment in environments]
        deadline = time.monotonic() + SECONDS
        while running := [process for process in processes if process.exitcode is None]:
            left = deadline - time.monotonic()
            assert left > 0, f"still running after {SECONDS} seconds\n{log_of(output)}"
            connection.wait([process.sentinel for process in running], timeout=left)
            codes = [process.exitcode for process in processes]
            assert not any(codes), f"exit codes {codes}\n{log_of(output)}"
    finally:
        for process in processes:
            process.kill()
            process.join()


def log_of(output: Path) -> str:
    """Returns the last 3,000 characters that the processes printed."""
    return output.with_suffix(".log").read_text()[-3000:]
