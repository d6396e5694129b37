"""Tests the smallest difference that a study can detect, and the headroom (an upper bound on the gain) of arms that
know items only by their ids."""

from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from datasets import Dataset

from trl_rec import evaluate_baselines, prepare
from trl_rec.evaluation import smallest_difference
from trl_rec.schedule.studies.arms import Arm, default_surface
from trl_rec.schedule.studies.resolution import Resolution, _reachable, knows_only_ids, resolution
from trl_rec.scripts.verbs import SCRIPTS, TRAINING


ITEMS = pa.list_(pa.int32())


def split(rows: list[tuple[list[int], list[int]]]) -> Dataset:
    histories, targets = zip(*rows, strict=True)
    return Dataset(pa.table({"history": pa.array(histories, ITEMS), "targets": pa.array(targets, ITEMS)}))


@pytest.mark.parametrize(("exclude_history", "share"), [(True, 0.5), (False, 0.75)])
def test_reachable_targets_occur_in_training_and_may_be_recommended(exclude_history: bool, share: float) -> None:
    rows = [
        ([0], [1]),  # the target occurs in training
        ([0], [4]),  # the target does not occur in training
        ([1], [1]),  # the target is in the history
        ([0, 2], [0, 4, 3, 3]),  # at least one of several targets is reachable
    ]
    dataset = SimpleNamespace(catalog=range(5), train=split([([0], [1, 2]), ([3], [1])]), validation=split(rows))
    assert _reachable(dataset, exclude_history) == share


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_estimate_uses_two_baselines_on_validation_and_the_number_of_users_of_the_studys_split(
    split: str, tmp_path: Path
) -> None:
    dataset = prepare("toy", tmp_path / "toy", toy_users=30, toy_items=60).with_surface("item_token")
    found = resolution(
        dataset,
        {"counter": Arm("counter", baseline="transition")},
        "counter",
        "ndcg@5",
        num_candidates=10,
        evaluation={"split": "test", "ks": [5], "batch_size": 8},
        split=split,
    )
    pilot = evaluate_baselines(dataset, split="validation", ks=[5])
    runs = ([pilot[name].per_user] for name in ("transition", "popularity"))
    assert found.smallest == pytest.approx(smallest_difference(*runs, metric="ndcg@5", num_users=found.num_users))
    assert found.num_users == len(getattr(dataset, split))
    assert found.reference == pilot["transition"].metrics["ndcg@5"]


def test_a_study_of_rated_candidates_counts_the_users_whose_candidates_can_be_ordered(tmp_path: Path) -> None:
    dataset = prepare("toy", tmp_path / "toy", toy_users=60, toy_items=60, split="leave_last", num_held_out=2)
    arms = {"mean": Arm("mean", baseline="item mean")}
    found = resolution(dataset, arms, "mean", "graded_ndcg@10", num_candidates=2, evaluation={})
    ratings = dataset.test["target_ratings"]
    assert found.num_users == sum(len(set(one)) > 1 for one in ratings) < len(dataset.test)


TOKENS = {"surface": "item_token"}
# Arms whose models know items only by their ids, followed by all other kinds of arms.
KNOWN = {
    "scratch": Arm("scratch", verb="bear"),
    "behaviour": Arm("behaviour", verb="bear", recipe={"item_vectors": "behaviour"}),
    "stages": Arm("stages", verb="align3gr", recipe=TOKENS, start="scratch"),
    "lists": Arm("lists", verb="blade", start="scratch", grid=({"learning_rate": 1}, {"learning_rate": 2})),
}
UNKNOWN = {
    "titles": Arm("titles", verb="bear", recipe={"surface": "title"}),
    "one point": Arm("one point", verb="bear", grid=(TOKENS, {"surface": "semantic_id"})),
    "texts": Arm("texts", verb="bear", recipe={"item_vectors": "both"}),
    "tasks": Arm("tasks", verb="bear", recipe={"tasks": {"item_to_id": 1.0}}),
    "pretrained": Arm("pretrained", verb="bear", recipe={"model_name_or_path": "Qwen/Qwen3-0.6B"}),
    "codes by default": Arm("codes by default", verb="align3gr", start="scratch"),
    "supervised": Arm("supervised", verb="align3gr", recipe={**TOKENS, "supervised": {"tasks": {}}}),
    "preferences": Arm("preferences", verb="softmax_dpo", start="scratch"),
    "their preferences": Arm("their preferences", verb="softmax_dpo", recipe=TOKENS, start="scratch"),
    "after texts": Arm("after texts", verb="align3gr", recipe=TOKENS, start="texts"),
    "after that": Arm("after that", verb="blade", start="after texts"),
    "candidates": Arm("candidates", verb="alro"),
    "counter": Arm("counter", baseline="transition"),
}


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_only_arms_that_know_items_by_their_ids_have_a_limited_headroom(name: str) -> None:
    arms = {**KNOWN, **UNKNOWN}
    assert knows_only_ids(arms[name], arms) == (name in KNOWN)
    found = Resolution(0.1, 0.5, 0.45, frozenset(KNOWN))
    assert found.headroom(arms[name]) == (pytest.approx(0.05) if name in KNOWN else None)
    assert found.is_decidable(arms[name]) == (name in UNKNOWN)


@pytest.mark.parametrize("verb", TRAINING)
def test_the_default_surfaces_are_those_of_the_verbs(verb: str) -> None:
    kind = import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}").KINDS[0]
    assert default_surface(verb) == next(one.default for one in fields(kind) if one.name == "surface")
