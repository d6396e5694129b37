"""Tests that a malformed study is refused before anything runs. Also tests how grids and comparisons are read, and how
the best point of a grid is chosen."""

from pathlib import Path
from typing import Any

import pytest

from tests.schedule.studies.study_runs import ARMS, TRAINING, config
from trl_rec.schedule.studies.arms import Arm, read_arms, read_comparisons
from trl_rec.schedule.studies.choice import check_primary, choose
from trl_rec.schedule.studies.study import Study


SFT = ARMS["sft"]


def read(**changes: Any) -> None:
    one = config(Path("data"), Path("runs"), **changes)
    read_comparisons(one, read_arms(one, lambda name: dict(TRAINING)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1, 0]}, "seeds: .* names a seed twice"),
        ({"seeds": []}, "seeds: .* is empty"),
        ({"arms": {}}, "arms is empty"),
        ({"arms": {"a": 3}}, "arms: a must be a mapping"),
        ({"arms": {"a": {}}}, "arms: a: verb must be a non-empty string"),
        ({"arms": {"a": {"verb": "prepare"}}}, "'prepare' is not a training verb"),
        ({"arms": {"a": {**SFT, "sets": {}}}}, "arms: a: there is no key 'sets'"),
        (
            {"arms": {"a": {"baseline": "popularity", "verb": "bear"}}},
            "arms: a: there is no key 'verb'; an arm with the key 'baseline'",
        ),
        (
            {"arms": {"a": {"baseline": "counter"}}},
            "this study ranks the whole catalogue, and has no baseline 'counter'; choose one of random",
        ),
        (
            {"arms": {"a": {"baseline": "sequence"}, "b": {**SFT, "verb": "alro"}}},
            "arms: a: baseline: this study orders rated candidates, and has no baseline 'sequence'",
        ),
        ({"arms": {"a": SFT, "b": {"policy": "a"}}}, "b: this arm would repeat the measurement of its policy"),
        ({"arms": {"a": SFT, "b": {"policy": "a", "row": "both"}}}, "b: row: 'both' is not a row of an evaluation"),
        (
            {"arms": {"a": SFT, "b": {"policy": "c", "row": "prior"}}},
            "policy: 'c' is not .*; name one of a$",
        ),
        (
            {"arms": {"a": SFT, "b": {"policy": "a", "evaluation": {"split": "test"}}}},
            "b: evaluation: the study sets split itself",
        ),
        (
            {"arms": {"a": SFT, "b": {"policy": "a", "row": "prior"}}, "only_validation": True},
            "b: with only_validation, only trainings and baselines are measured",
        ),
        (
            {"arms": {"a": SFT, "b": {"lists": "lists.csv"}}, "only_validation": True},
            "b: with only_validation, only trainings and baselines are measured",
        ),
        ({"arms": {"a b": SFT, "a-b": SFT}}, "'a-b' and 'a b' would share a folder"),
        ({"arms": {"a": {**SFT, "set": {"seed": 3}}}}, "arms: a: set: the study sets seed itself"),
        ({"arms": {"a": {**SFT, "set": {"final_split": "test"}}}}, "the study sets final_split itself"),
        ({"arms": {"a": {**SFT, "set": [1]}}}, "arms: a: set must map keys"),
        ({"arms": {"a": {**SFT, "grid": {"bear_weight": 1}}}}, "grid: bear_weight must be a list of values"),
        ({"arms": {"a": {**SFT, "grid": {"bear_weight": [1, 1]}}}}, "grid has the point bear_weight=1 twice"),
        ({"arms": {"a": {**SFT, "grid": []}}}, "grid is empty; give it at least one point"),
        ({"arms": {"a": {**SFT, "grid": 3}}}, "grid must map keys to lists of values, .* or be a list of .*, not 3"),
        ({"arms": {"a": {**SFT, "grid": {"output_dir": ["x"]}}}}, "grid: the study sets output_dir itself"),
        ({"arms": {"a": {**SFT, "seeds": [1]}}}, "seeds must begin with the study's first seed, 0"),
        ({"arms": {"a": {**SFT, "seeds": [0, 7]}}}, r"seeds must list some of the study's seeds \[0, 1\]"),
        ({"arms": {"a": {**SFT, "seeds": [[0]]}}}, r"seeds must list some of the study's seeds \[0, 1\]"),
        ({"arms": {"a": {**SFT, "start": "b"}}}, "'b' is not another training of this study; leave start out"),
        (
            {"arms": {"a": {**SFT, "start": "b"}, "b": {"baseline": "random"}, "c": SFT, "d": SFT}},
            "start: 'b' is not another training of this study; name one of c, d$",
        ),
        ({"arms": {"a": {**SFT, "start": "a"}}}, "start: 'a' is not another training"),
        ({"arms": {"a": {**SFT, "start": "b"}, "b": {**SFT, "start": "a"}}}, "a, b start from each other"),
        (
            {"arms": {"a": {**SFT, "start": "b"}, "b": {**SFT, "seeds": [0]}}},
            "'a' starts from 'b', which does not run with seed 1",
        ),
        ({"arms": {"a": {**SFT, "needs": {"user": 3}}}}, "needs: there is no key 'user'"),
        ({"arms": {"a": {**SFT, "needs": {"users": True}}}}, "needs: users must be a whole number, not True"),
        ({"arms": {"a": {**SFT, "headroom": "much"}}}, "headroom must be a number"),
        ({"against": "nobody"}, "against: 'nobody' is not an arm of this study"),
        ({"comparisons": ["sft against nobody"]}, "'nobody' is not an arm of this study"),
        ({"comparisons": ["sft vs bear"]}, "does not name two arms"),
        ({"comparisons": ["sft against sft"]}, "compares an arm with itself"),
        ({"comparisons": ["sft against bear", "bear against sft"]}, "repeats another comparison"),
    ],
)
def test_a_malformed_study_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**{"against": "sft", "comparisons": None, "arms": ARMS, **changes})


def test_a_grid_has_all_combinations_in_the_order_of_the_keys() -> None:
    arms = {"a": {**SFT, "grid": {"bear_weight": [1, 2], "variant": ["paper", "survival"]}}}
    found = read_arms(config(Path("data"), Path("runs"), arms=arms), lambda name: {})
    assert [tuple(point.values()) for point in found["a"].grid] == [
        (1, "paper"),
        (1, "survival"),
        (2, "paper"),
        (2, "survival"),
    ]


def test_without_comparisons_every_arm_is_compared_with_the_reference() -> None:
    one = config(Path("data"), Path("runs"), comparisons=None)
    pairs = read_comparisons(one, read_arms(one, lambda name: {}))
    assert pairs == [(name, "counter") for name in ARMS if name != "counter"]


@pytest.mark.parametrize(("primary", "best"), [("ndcg@10", 1), ("reward", 1), ("disliked@10", 2), ("gini", 2)])
def test_the_best_point_has_the_lowest_value_if_lower_is_better(primary: str, best: int) -> None:
    arm = Arm("a", verb="bear", grid=({"x": 0}, {"x": 1}, {"x": 2}))
    assert choose(arm, {0: 0.2, 1: 0.3, 2: 0.1}, primary) == best
    assert choose(arm, {0: 0.1, 1: 0.1, 2: 0.1}, primary) == 0


def test_a_measure_cannot_choose_if_it_is_unknown_whether_high_values_are_better() -> None:
    grid, plain = Arm("a", grid=({"x": 0}, {"x": 1})), Arm("a")
    with pytest.raises(ValueError, match="values of 'slot_bias' are better, so no point of the grid of a can be"):
        check_primary("slot_bias", {"a": grid}, recommend=False)
    with pytest.raises(ValueError, match="values of 'ndgc@10' are better, so no arm can be recommended"):
        check_primary("ndgc@10", {"a": plain}, recommend=True)
    check_primary("slot_bias", {"a": plain}, recommend=False)
    check_primary("disliked@10", {"a": grid}, recommend=True)
    one = config(Path("data"), Path("runs"), primary="popularity")
    with pytest.raises(ValueError, match="^it is not known whether high or low values"):
        Study(one, read_recipe=lambda name: dict(TRAINING), say=lambda line: None)
    one = config(Path("data"), Path("runs"), primary="slot_bias", choose_by="ndcg@10", recommend=True)
    with pytest.raises(ValueError, match="values of 'slot_bias' are better, so no arm can be recommended"):
        Study(one, read_recipe=lambda name: dict(TRAINING), say=lambda line: None)
