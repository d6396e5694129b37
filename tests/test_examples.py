"""Each example runs unchanged on the synthetic data of `--source toy`, for three training steps."""

import os
import runpy
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.processes import run_alone


PRINTS = {
    "alro": ("item mean", "SFT", "ALRO over the item mean"),
    "align3gr": ("transition", "1 self_play-easy", "5 feedback-hard", "before", "after", "user 1, after ", "10. "),
    "blade": ("transition", "SFT", "Best-of-8", "BLADE", "before BLADE", "over SFT", "example-blade.html"),
    "bear": ("transition", "SFT", "MSL", "BEAR", "after ", "10. ", "recall@50"),
}
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def run(path: Path, output: Path) -> None:
    os.chdir(output)
    sys.argv = [str(path), "--source", "toy", "--max_steps", "3"]
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    run_alone(partial(run, path), tmp_path)
    printed = tmp_path.with_suffix(".log").read_text()
    assert all(word in printed for word in PRINTS[path.stem])
