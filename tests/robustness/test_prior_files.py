"""Tests that invalid saved priors are refused: damaged files, arrays that do not fit together, and settings out of
range. Also tests that a recommender uses the prior in its run folder by default."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from tests.robustness.attacks import Attack, assert_refused, each
from trl_rec import ItemCatalog, Recommender
from trl_rec.data.transitions import TransitionCounts
from trl_rec.decoding import TransitionPrior, load_prior
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.models import make_model, make_tokenizer
from trl_rec.ragged import Ragged


IDS = ["a", "b", "c"]
FILE = "run/prior.safetensors"
SETTINGS = {"strength": 1.0, "eps": 0.5, "prior_items": 10, "max_history": 10}


def make_prior() -> TransitionPrior:
    """Returns a prior of a log in which item b followed item a, and item c followed item b."""
    counts = TransitionCounts(Ragged(np.array([1, 2], np.int32), np.array([0, 1, 2, 2])), np.ones(2), max_history=10)
    return TransitionPrior(counts, np.array([2, 2, 1]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a run folder with a prior."""
    folder = tmp_path_factory.mktemp("world")
    catalog = ItemCatalog(pa.table({"item_id": IDS, "title": IDS}), surface="item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained(folder / "run")
    make_model(tokenizer, hidden_size=16).save_pretrained(folder / "run")
    ranking = {"max_length": 64, "renormalize": True, "length_penalty": 0.0, "num_beams": 3}
    save_recommender(folder / "run", catalog, {"prompt": {"prompt_head": None, "list_length": None}, **ranking})
    save_run_prior(folder / "run", make_prior())
    return folder


def rewritten(arrays: dict[str, Any] | None = None, kind: str = "transition", **settings: Any) -> Callable:
    """Returns a function that rewrites the prior's file with other arrays or settings. Arrays and settings given as
    None are removed."""

    def change(folder: Path) -> None:
        kept = {**load_file(folder / FILE), **(arrays or {})}
        values = {name: value for name, value in {**SETTINGS, **settings}.items() if value is not None}
        save_file(
            {name: array for name, array in kept.items() if array is not None},
            folder / FILE,
            {"trl_rec.prior": kind, "settings": json.dumps(values)},
        )

    return change


def described(value: object) -> Callable[[Path], None]:
    """Returns a function that sets the key `prior` of `recommender.json`."""

    def change(folder: Path) -> None:
        path = folder / "run/recommender.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "prior": value}))

    return change


def with_setting(**values: object) -> Callable[[Path], None]:
    """Returns a function that sets the key `prior` to a valid description of the prior, with the given changes."""
    return described({"kind": "transition", "strength": 1.0, "eps": 0.5, **values})


ATTACKS = [
    # The file
    Attack("missing", "there is no prior at run/prior.safetensors", lambda folder: (folder / FILE).unlink()),
    Attack(
        "empty", "prior.safetensors is damaged and cannot be read", lambda folder: (folder / FILE).write_bytes(b"")
    ),
    Attack("cut", "is damaged", lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-9])),
    Attack("text", "is damaged", lambda folder: (folder / FILE).write_text("{" * 200)),
    Attack(
        "no prior",
        "does not contain a prior",
        lambda folder: save_file({"x": np.ones(3)}, folder / FILE),
    ),
    Attack(
        "unknown kind", "of the kind 'neural', which this version of trl-rec cannot load", rewritten(kind="neural")
    ),
    Attack("other kind", "describes a prior of the kind 'transition', but", rewritten(kind="popularity")),
    # Its arrays
    Attack("no counts", "the array 'popularity' is missing", rewritten({"popularity": None})),
    Attack(
        "float counts", "popularity is float64 with 1 dimension(s), not int64", rewritten({"popularity": np.ones(3)})
    ),
    Attack("matrix", "not int64 with 1", rewritten({"popularity": np.ones((3, 1), np.int64)})),
    Attack("negative count", "popularity contains a negative count", rewritten({"popularity": np.array([1, -1, 1])})),
    Attack("no items", "one whole number per item", rewritten({"popularity": np.array([], np.int64)})),
    Attack(
        "more items",
        "the transition counts are for 3 items, not 4",
        rewritten({"popularity": np.ones(4, np.int64)}),
    ),
    Attack(
        "items of another catalogue",
        "has weights for 4 items, but the catalogue has 3",
        rewritten({"popularity": np.ones(4, np.int64), "offsets": np.array([0, 1, 2, 2, 2])}),
    ),
    Attack("descending offsets", "do not have one row per item", rewritten({"offsets": np.array([0, 2, 1, 2])})),
    Attack("offsets beyond", "do not have one row per item", rewritten({"offsets": np.array([0, 1, 2, 9])})),
    Attack("negative offset", "do not have one row per item", rewritten({"offsets": np.array([-1, 1, 2, 2])})),
    Attack("unknown item", "an item outside the range 0 to 2", rewritten({"targets": np.array([1, 3], np.int32)})),
    Attack("negative item", "an item outside the range 0 to 2", rewritten({"targets": np.array([1, -1], np.int32)})),
    Attack("NaN share", "a share outside the range 0 to 1", rewritten({"shares": np.array([1, np.nan])})),
    Attack("large share", "a share outside the range 0 to 1", rewritten({"shares": np.array([1, 1e30])})),
    # Its settings
    Attack("no strength", "the setting 'strength' is missing", rewritten(strength=None)),
    Attack("negative strength", "strength must be at least 0", rewritten(strength=-1)),
    Attack("strength in words", "strength must be a number", rewritten(strength="high")),
    Attack("eps 0", "eps must be above 0", rewritten(eps=0)),
    Attack("half an item", "prior_items must be a whole number", rewritten(prior_items=1.5)),
    Attack("no history", "max_history must be at least 1", rewritten(max_history=0)),
    # The key `prior` of recommender.json
    Attack("not a mapping", "prior is 'transition', which is not a mapping", described("transition")),
    Attack("setting without a strength", "the prior's strength must be a number", described({"kind": "transition"})),
    Attack("setting with a negative strength", "the prior's strength must be", with_setting(strength=-0.1)),
    Attack("setting with eps 0", "the prior's eps must be above 0", with_setting(eps=0)),
    Attack("setting of another kind", "but prior.safetensors contains the kind", with_setting(kind=["transition"])),
]


@each(ATTACKS)
def test_damaged_priors_are_refused(
    attack: Attack, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    assert_refused(attack, "recommend", ["--model", "run", "--titles", "a"], tmp_path, capsys)


def test_the_recommender_uses_the_saved_prior_by_default(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    alone = Recommender.from_pretrained(tmp_path / "run", prior=None)
    saved = Recommender.from_pretrained(tmp_path / "run")
    assert alone.prior is None and isinstance(saved.prior, TransitionPrior)

    def scores(recommender: Recommender) -> dict[str, float]:
        return {one.item_id: one.score for one in recommender.recommend(["a"], exclude_history=False)}

    # eps times the smoothed popularity of each item, plus 1 for item "b", which always follows item "a"
    weights = np.array([0.5 * 3 / 8, 0.5 * 3 / 8 + 1, 0.5 * 2 / 8])
    expected = np.log(weights / weights.sum())
    for item, bonus in zip(IDS, expected, strict=True):
        assert scores(saved)[item] == pytest.approx(scores(alone)[item] + bonus, abs=1e-4)

    # The strength in recommender.json takes precedence over that in the file of the prior.
    with_setting(strength=2)(tmp_path)
    twice = Recommender.from_pretrained(tmp_path / "run")
    assert scores(twice)["b"] == pytest.approx(scores(alone)["b"] + 2 * expected[1], abs=1e-4)


def test_a_mixture_with_malformed_counts_is_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    for counts in (None, 3, [3], [{"name": "counter"}], [{"name": "x", "share": -1, "max_history": 1, "decay": 1}]):
        rewritten(kind="mixture", counts=counts, exclude_history=True)(tmp_path)
        with pytest.raises(ValueError, match="does not contain a valid prior"):
            load_prior(tmp_path / FILE)
