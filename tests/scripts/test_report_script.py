"""Tests which sections a page of `trl-rec report` has for one run of a training verb, for several runs, and for a
study."""

from __future__ import annotations

import json
import re
from contextlib import chdir
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import pytest

from trl_rec import load, prepare
from trl_rec.evaluation import compare, read_evaluation
from trl_rec.scripts import report
from trl_rec.semantic_ids import make_semantic_ids


pytestmark = pytest.mark.slow

TWO_STEPS = (
    "--max_steps 2 --logging_steps 1 --eval_strategy steps --eval_steps 1 --save_strategy no "
    "--load_best_model_at_end false --disable_tqdm true"
)
TOY = {"toy_users": 24, "toy_items": 60}


def train(verb: str, recipe: str, output: str, *words: str) -> None:
    main = import_module(f"trl_rec.scripts.{verb}").main
    main(["--config", recipe, "--output_dir", output, *TWO_STEPS.split(), *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a folder with datasets in `data/`, and with BEAR, BLADE and ALRO runs of two steps in `runs/`."""
    folder = tmp_path_factory.mktemp("reports")
    with chdir(folder):
        prepare("toy", "data/toy", **TOY)
        make_semantic_ids(load("data/toy"), levels=2, codes=8, collisions="extend")
        prepare("toy", "data/toy-rated", split="leave_last", num_held_out=10, **TOY)
        prepare("toy", "data/toy-next-ten", split="leave_last", num_held_out=10, **TOY)
        train("bear", "bear/toy", "runs/bear")
        train("bear", "bear/toy", "runs/ids", "--surface", "semantic_id")
        train("bear", "bear/toy-lists", "runs/lists")
        train("blade", "blade/toy", "runs/blade", "--model_name_or_path", "runs/lists")
        train("alro", "alro/toy", "runs/alro")
    return folder


def sections(folder: Path, *words: str) -> tuple[set[str], str]:
    """Returns the anchors of the sections of a page, and the text of the page."""
    with chdir(folder):
        report.main([*words, "--output", "page.html"])
        text = Path("page.html").read_text(encoding="utf-8")
    return set(re.findall(r'<section id="([^"]+)"', text)), text


ALWAYS = {"verdicts", "results", "curves", "slices", "lists", "origin"}


@pytest.mark.parametrize(
    ("runs", "more", "says"),
    [
        (["bear"], {"signal", "groups"}, "BEAR against "),
        (["ids"], {"signal", "groups", "codes"}, "level 2, BEAR"),
        (["blade"], {"blade", "plane", "groups"}, "zero-advantage share"),
        (["alro"], {"signal"}, "rated "),
        (["bear", "ids"], {"signal", "groups", "codes"}, "BEAR (ids) against BEAR (bear)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_a_section_appears_if_the_runs_have_its_data(folder: Path, runs: list[str], more: set[str], says: str) -> None:
    found, text = sections(folder, *(f"runs/{run}" for run in runs))
    assert found == ALWAYS | more
    assert says in text and "after " in text and "versions" in text


def test_without_the_dataset_histories_are_missing_and_the_page_says_so(folder: Path) -> None:
    with chdir(folder):
        Path("data/toy").rename("data/moved")
        try:
            _, without = sections(folder, "runs/bear")
            _, given = sections(folder, "runs/bear", "--dataset", "data/moved")
        finally:
            Path("data/moved").rename("data/toy")
    assert "give --dataset" in without and "<p>after " not in without
    assert "give --dataset" not in given and "<p>after " in given


def test_a_study_shows_its_own_comparisons(folder: Path) -> None:
    """The test itself writes `study.json`, in the form that `trl-rec study` uses."""
    own, ids = (read_evaluation(folder / "runs" / name) for name in ("bear", "ids"))
    runs = {"tokens": [own.results["BEAR"].per_user], "IDs": [ids.results["BEAR"].per_user]}
    baseline = {"kind": "baseline", "runs": {"none": {"test": "../runs/bear", "row": "transition"}}}
    content = {
        "primary": "recall@10",
        "comparisons": [asdict(one) for one in compare(runs, against="tokens", metric="recall@10")],
        "recommendation": "no difference from tokens",
        "command": "trl-rec study --config study/toy",
        "seeds": [42],
        "smallest_difference": 0.25,
        "arms": {
            "counter": baseline,
            **{
                name: {
                    "kind": "training",
                    "headroom": 0.5,
                    "runs": {"42": {"test": f"../runs/{run}", "run": f"../runs/{run}", "row": "BEAR"}},
                }
                for name, run in (("tokens", "bear"), ("IDs", "ids"))
            },
            "titles": {"kind": "training", "reason": "the log has no titles"},
        },
    }
    (folder / "study").mkdir()
    (folder / "study" / "study.json").write_text(json.dumps(content))
    found, text = sections(folder, "study")
    assert found == ALWAYS | {"signal", "groups", "codes"}
    for words in ("no difference from tokens", "IDs against tokens", "the log has no titles", "0.2500", "study/toy"):
        assert words in text
