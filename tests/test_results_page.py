"""The tables of docs/results.md contain the numbers of docs/studies/*.json."""

import json
from pathlib import Path

import pytest

from tests.programs import load_program


DOCS = Path(__file__).parents[1] / "docs"
write_results = load_program("docs/write_results.py")


def test_the_page_contains_what_its_command_writes() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert write_results.written(page) == page, "run python docs/write_results.py"


def test_every_kept_study_is_on_the_page_and_small() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    files = sorted((DOCS / "studies").glob("*.json"))
    assert {path.stem for path in files} == {match["name"] for match in write_results.BLOCK.finditer(page)}
    assert sum(path.stat().st_size for path in files) < 5_000_000


def test_a_study_becomes_a_table_with_its_verdicts() -> None:
    figure = {"mean": 0.25, "interval": [0.2, 0.3], "by_seed": [0.24, 0.26]}
    comparison = {"name": "sft", "against": "counter", "difference": -0.01, "adjusted_p": 0.5, "verdict": "unclear"}
    study = {
        "status": "complete",
        "command": "trl-rec study --config study/x",
        "commit": "abc",
        "num_users": 1000,
        "primary": "ndcg@10",
        "metrics": ["recall@10"],
        "against": "counter",
        "smallest_difference": 0.02,
        "comparisons": [comparison, {**comparison, "name": "counter", "against": "sft"}],
        "arms": {
            "counter": {"kind": "baseline", "figures": {"ndcg@10": figure}, "recipe": {}},
            "sft": {"kind": "training", "figures": {"ndcg@10": figure}, "validation": 0.3, "verb": "bear"},
            "big": {"kind": "training", "status": "left out", "reason": "no titles"},
        },
    }
    kept = write_results.kept(json.loads(json.dumps(study)))
    assert "recipe" not in kept["arms"]["counter"]
    lines = write_results.measured(kept)
    assert lines[0].startswith("`trl-rec study --config study/x` (commit abc). 1,000 test users")
    assert "| counter | | | .2500 ±.0500 | | | | | reference |" in lines
    assert "| sft | 2 | | .2500 ±.0500 | .2400 .2600 | .3000 | -.0100 | .5000 | unclear |" in lines
    unknown = {**kept, "smallest_difference": None, "split": "validation"}
    assert write_results.measured(unknown)[0].endswith("(commit abc). 1,000 validation users.")
    assert lines[-2:] == ["- counter against sft: -.0100, adjusted p .5000: unclear.", "- big is left out: no titles."]


def test_a_page_that_names_a_missing_study_is_refused() -> None:
    with pytest.raises(SystemExit, match="names the study 'nothing'"):
        write_results.written("<!-- study: nothing -->\n<!-- end -->")
