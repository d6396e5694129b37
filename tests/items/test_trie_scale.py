"""Checks the time and the memory that it takes to build a trie of ten million items. Also checks that looking up
children takes less than 1.5 times as long in this trie as in a small one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_ten_million_items_build_within_a_minute_and_three_gib() -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "trie.py"
    output = subprocess.run([sys.executable, benchmark], capture_output=True, text=True, check=True).stdout
    figures = json.loads(output.splitlines()[-1])
    assert figures["seconds"] < 60 and figures["peak_gib"] < 3
    assert max(figures["ratios"].values()) < 1.5
