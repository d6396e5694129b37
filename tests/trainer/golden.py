"""Compares runs with golden trajectories. A golden trajectory consists of the values that a small fixed run logs at
each of ten steps. `golden/METHOD.json` keeps these values with their tolerances.

If the numbers are meant to change, write the files again and review the diff:

    TRL_REC_WRITE_GOLDEN=1 python -m pytest tests/trainer -k golden
"""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest


FOLDER = Path(__file__).parent / "golden"
NUM_STEPS = 10
# Relative tolerances. They are far above rounding (a run with 2 threads differs from a run with 1 thread by 2e-7), and
# far below an error of one percent.
TOLERANCES = {"loss": 1e-4, "grad_norm": 1e-4}
PACKAGES = ("torch", "transformers", "trl")

Trajectory = dict[str, list[float]]


def trajectory(trainer: Any) -> Trajectory:
    """Trains for `NUM_STEPS` steps, and returns the logged values that the JSON file keeps. The trainer must log every
    step."""
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == NUM_STEPS
    return {name: [float(f"{entry[name]:.8g}") for entry in steps] for name in TOLERANCES}


def assert_golden(method: str, run: str, told: Trajectory) -> None:
    """Compares the run with the JSON file. If TRL_REC_WRITE_GOLDEN is set, writes the file instead and skips the
    test."""
    if os.environ.get("TRL_REC_WRITE_GOLDEN"):
        write(method, run, told)
        pytest.skip(f"golden/{method}.json: {run} was written")
    compare(method, run, told)


def compare(method: str, run: str, told: Trajectory) -> None:
    """Fails if a number is outside its tolerance. The message says how to write the file again."""
    golden = json.loads((FOLDER / f"{method}.json").read_text())
    assert told.keys() == golden["tolerances"].keys() == golden["runs"][run].keys()
    for name, tolerance in golden["tolerances"].items():
        hint = (
            f"{name} of {run} differs from golden/{method}.json, which was written with {golden['versions']}; "
            "to write the file again, see tests/trainer/golden.py"
        )
        assert told[name] == pytest.approx(golden["runs"][run][name], rel=tolerance, abs=0), hint


def write(method: str, run: str, told: Trajectory) -> None:
    """Writes the run to the file, and keeps the tolerances that the file already has."""
    path = FOLDER / f"{method}.json"
    golden = json.loads(path.read_text()) if path.exists() else {"tolerances": TOLERANCES, "runs": {}}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    golden = {"versions": versions, "tolerances": golden["tolerances"], "runs": {**golden["runs"], run: told}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden, indent=1) + "\n")
