"""Writes `environment.json`: the package versions, git commit, device, duration and peak memory of a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from trl_rec.evaluation.kept.metrics_file import package_version
from trl_rec.files import write_json


if sys.platform != "win32":
    import resource

ENVIRONMENT = "environment.json"
PACKAGES = (
    "trl-rec",
    "trl",
    "transformers",
    "torch",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "numpy",
    "pyarrow",
)
STARTED = time.monotonic()  # when this module was imported, usually shortly after the process began


def write_environment(folder: str | Path) -> None:
    """Writes `environment.json` into a folder. Only one process may call this function."""
    write_json(Path(folder) / ENVIRONMENT, environment())


def environment() -> dict[str, Any]:
    """Returns a description of this process and of the machine that it runs on.

    Returns:
        - `versions`: of Python, of the packages in `PACKAGES` and of CUDA; null for what is not installed.
        - `platform`: the operating system and the type of machine.
        - `git`: `commit` and `dirty` (whether files that git tracks have changed) of the current directory; null if
          the directory is not in a repository with a commit, or git is missing.
        - `device`: name of the device; `devices`: number of devices that this process sees.
        - `processes`, `threads`: number of processes, and of threads per process.
        - `seconds`: time since this module was imported, usually shortly after the process began.
        - `peak_memory`, `peak_device_memory`: maximum number of bytes that this process held; null if unknown.
    """
    state = PartialState()
    on_gpu = state.device.type == "cuda"
    return {
        "versions": {
            "python": platform.python_version(),
            **{package: package_version(package) for package in PACKAGES},
            "cuda": torch.version.cuda,
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "git": _git_state(),
        "device": torch.cuda.get_device_name() if on_gpu else state.device.type,
        "devices": torch.cuda.device_count() if on_gpu else 1,
        "processes": state.num_processes,
        "threads": torch.get_num_threads(),
        "seconds": round(time.monotonic() - STARTED, 1),
        "peak_memory": _peak_memory(),
        "peak_device_memory": torch.cuda.max_memory_allocated() if on_gpu else None,
    }


def _git_state() -> dict[str, Any] | None:
    """Returns `commit` and `dirty` of the current directory, or None if there is no commit or no git."""
    commit = _git(["rev-parse", "HEAD"])
    status = _git(["status", "--porcelain", "--untracked-files=no"])
    return None if commit is None or status is None else {"commit": commit, "dirty": bool(status)}


def _git(words: Sequence[str]) -> str | None:
    """Returns what git prints, or None if git fails."""
    try:
        done = subprocess.run(
            ["git", *words],
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # so that a concurrent git command does not fail
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _peak_memory() -> int | None:
    """Returns the peak memory of this process in bytes, or None on Windows."""
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
