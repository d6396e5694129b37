"""Golden trajectories: what a small fixed run logs at each of ten steps, kept in `golden/METHOD.json` with its
tolerances.

Where the numbers are meant to change, they are written anew, and the diff is read:

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
TOLERANCES = {
    "loss": 1e-4,
    "grad_norm": 1e-4,
}  # relative: 1 and 2 threads differ by 2e-7, a change of a percent by 1e-2
PACKAGES = ("torch", "transformers", "trl")

Trajectory = dict[str, list[float]]


def trajectory(trainer: Any) -> Trajectory:
    """Trains `NUM_STEPS` steps, and returns what the JSON keeps of them. The trainer logs every step and saves
    nothing."""
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == NUM_STEPS
    return {name: [float(f"{entry[name]:.8g}") for entry in steps] for name in TOLERANCES}


def assert_golden(method: str, run: str, told: Trajectory) -> None:
    """Compares with the JSON, or writes into it where the variable says so; such a test is then skipped, not
    passed."""
    if os.environ.get("TRL_REC_WRITE_GOLDEN"):
        write(method, run, told)
        pytest.skip(f"golden/{method}.json: {run} was written anew")
    compare(method, run, told)


def compare(method: str, run: str, told: Trajectory) -> None:
    """Fails where a number lies outside its tolerance, and says how to write the file anew."""
    golden = json.loads((FOLDER / f"{method}.json").read_text())
    assert told.keys() == golden["tolerances"].keys() == golden["runs"][run].keys()
    for name, tolerance in golden["tolerances"].items():
        hint = (
            f"{name} of {run}, written with {golden['versions']}; tests/trainer/golden.py tells how to write it anew"
        )
        assert told[name] == pytest.approx(golden["runs"][run][name], rel=tolerance, abs=0), hint


def write(method: str, run: str, told: Trajectory) -> None:
    """Puts the run into the file. Tolerances that are there stay."""
    path = FOLDER / f"{method}.json"
    golden = json.loads(path.read_text()) if path.exists() else {"tolerances": TOLERANCES, "runs": {}}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    golden = {"versions": versions, "tolerances": golden["tolerances"], "runs": {**golden["runs"], run: told}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(golden, indent=1) + "\n")
