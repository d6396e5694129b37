"""The benchmark of `prepare`, at a tenth of its size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_million_interactions(tmp_path):
    root = Path(__file__).parents[3]
    command = [sys.executable, "benchmarks/prepare_scale.py", "--interactions", "1000000"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    output = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True).stdout
    found = re.fullmatch(r"1000000 interactions, parquet: (\S+) s, peak (\S+) GiB; {'num_users': \d+, .*}\n", output)
    assert found, output
    assert 0 < float(found[1]) < 60 and 0 < float(found[2]) < 4
    assert list(tmp_path.iterdir()) == []
