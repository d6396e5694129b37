"""Runs a small study on toy data. Its verbs run in forked processes instead of new interpreters."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from trl_rec import prepare
from trl_rec.schedule.studies import Study, StudyConfig
from trl_rec.scripts import bear, evaluate  # noqa: F401  # forked processes then need not import these
from trl_rec.scripts.study import check_keys
from trl_rec.scripts.verbs import SCRIPTS


TRAINING: dict[str, Any] = {
    "surface": "item_token",
    "hidden_size": 16,
    "targets": "all",
    "max_length": 32,
    "max_steps": 6,
    "learning_rate": 0.03,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 64,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}
ARMS: dict[str, Any] = {
    "popularity": {"baseline": "popularity"},
    "counter": {"baseline": "transition"},
    "sft": {"verb": "bear", "config": "small", "set": {"bear_weight": 0}},
    "bear": {"verb": "bear", "config": "small", "grid": {"bear_weight": [0.5, 2.0]}},
    "sft, continued": {"verb": "bear", "config": "small", "start": "sft", "set": {"max_steps": 2}, "seeds": [0]},
}
COMPARISONS = ["sft against counter", "bear against counter", "bear against sft"]


class Forked:
    """A process that was forked to run a verb. It has the methods of `subprocess.Popen` that a study uses."""

    def __init__(self, words: Sequence[str], log: Path, lock: int | None, threads: int) -> None:
        self._status: int | None = None
        self._pid = os.fork()
        if self._pid:
            return
        status = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(output, 1), os.dup2(output, 2)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(threads)
            import_module(f"trl_rec.scripts.{SCRIPTS.get(words[0], words[0])}").main(list(words[1:]))
            status = 0
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def terminate(self) -> None:
        os.kill(self._pid, signal.SIGTERM)

    def wait(self) -> int:
        self._status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._status


def config(data: Path, output: Path, **changes: Any) -> StudyConfig:
    """Returns the configuration of the study."""
    keys: dict[str, Any] = {
        "dataset": str(data),
        "output_dir": str(output),
        "arms": ARMS,
        "against": "counter",
        "seeds": [0, 1],
        "comparisons": COMPARISONS,
        "evaluation": {"ks": [5, 10], "batch_size": 64},
        "recommend": True,
    }
    return StudyConfig(**{**keys, **changes})


def study(data: Path, output: Path, **changes: Any) -> Study:
    """Returns the study, which prints to standard output."""
    return Study(
        config(data, output, **changes),
        read_recipe=lambda name: dict(TRAINING),
        say=_say,
        command="trl-rec study",
        start=Forked,
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run_study(data: Path, output: Path, **changes: Any) -> None:
    """Runs the study in a process group of its own."""
    if os.getpid() != os.getpgid(0):
        os.setpgid(0, 0)
    one = study(data, output, **changes)
    for title, verb, keys in one.recipes():
        check_keys(title, verb, keys)
    one.run()


def make_data(folder: Path) -> Path:
    """Makes the dataset of the study."""
    prepare("toy", folder, toy_users=60, toy_items=50)
    return folder
