"""The study of ALRO's arms finds what earlier calls kept, and nothing that was made from other data or in other
steps."""

from pathlib import Path

import pytest


def test_work_is_kept_apart_by_source_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    from alro_arms import Study

    first, again, longer = (Study("toy", 5, tmp_path, steps) for steps in (1, 1, 2))
    other = Study(str(write_source(tmp_path / "toy.log")), 5, tmp_path, 1)
    assert first.output == again.output
    assert len({one.output for one in (first, longer, other)}) == 3
    assert first.dataset.path == longer.dataset.path != other.dataset.path
    start = first.start(0)
    written = (start / "complete").stat().st_mtime_ns
    assert again.start(0) == start and (start / "complete").stat().st_mtime_ns == written


def write_source(folder: Path) -> Path:
    """Users with enough ratings for two lists of five and a history."""
    folder.mkdir()
    rows = [f"{user},{item},{item},{1 + item % 5}" for user in range(8) for item in range(16)]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp,rating", *rows]) + "\n")
    items = [f"{item},Item {item}" for item in range(16)]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *items]) + "\n")
    return folder
