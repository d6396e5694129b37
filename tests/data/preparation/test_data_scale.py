"""Runs `benchmarks/data_scale.py` with only 200,000 interactions. This benchmark measures the time and memory that
large logs take."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_every_step_is_measured(tmp_path):
    root = Path(__file__).parents[3]
    command = [sys.executable, "benchmarks/data_scale.py", "200000"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    output = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout
    lines = [
        re.fullmatch(r"200000 interactions, (\w+): (\S+) s, (\S+) s of CPU, peak (\S+) GiB; .+", line)
        for line in output.splitlines()
    ]
    assert [line and line[1] for line in lines] == [
        "log",
        "prepare",
        "load",
        "transition",
        "mixture",
        "evaluate",
        "lists",
    ], output
    assert all(line and 0 < float(line[3]) < 60 and 0 < float(line[4]) < 4 for line in lines)
    assert list(tmp_path.iterdir()) == []
