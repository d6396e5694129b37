"""Each example runs as it stands, at three steps, on the toy world."""

import subprocess
import sys
from pathlib import Path

import pytest


TELLS = {
    "alro": ("item mean", "SFT", "ALRO over the item mean"),
    "align3gr": ("transition", "1 self_play-easy", "5 feedback-hard", "before", "after"),
    "blade": ("transition", "SFT", "Best-of-8", "BLADE", "before BLADE", "over SFT"),
    "bear": ("transition", "SFT", "MSL", "BEAR", "after ", "10. "),
}
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, path, "--source", "toy", "--max_steps", "3"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300).stdout
    assert all(word in told for word in TELLS[path.stem])
