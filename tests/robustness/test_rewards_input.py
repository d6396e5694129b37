"""Tests that malformed rewards are refused: wrong names and weights, and wrong return values of custom reward
functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.robustness.attacks import Attack, assert_refused, each
from trl_rec import prepare
from trl_rec.evaluation.rewards import ListBatch, ListRewards, score_lists
from trl_rec.ragged import Ragged
from trl_rec.trainer import BladeConfig


SHAPE = (2, 3)  # two users with three lists each
ZEROS = np.zeros(SHAPE)
NAN = float("nan")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a dataset."""
    folder = tmp_path_factory.mktemp("world")
    prepare("toy", folder / "data", toy_users=24, toy_items=60)
    return folder


def recipe(content: str) -> Callable[[Path], object]:
    """Returns a function that writes a recipe to a folder."""
    return lambda folder: (folder / "recipe.yaml").write_text(content)


RECIPE = ["--config", "recipe.yaml"]
COMMAND_LINES = [
    Attack("unknown name", "there is no reward 'x'; choose from hit, ild, mgu", words=["--rewards", '{"x": 1}']),
    Attack("no rewards", "rewards is empty; give a weight to at least one of hit", words=["--rewards", "{}"]),
    Attack("not a mapping", "'ndcg' is not a mapping; write it as JSON", words=["--rewards", "ndcg"]),
    Attack("a list", "'[\"ndcg\"]' is not a mapping; write it as JSON", words=["--rewards", '["ndcg"]']),
    Attack("truncated", "is not a mapping; write it as JSON", words=["--rewards", '{"ndcg": ']),
    Attack("deep", "is not a mapping; write it as JSON", words=["--rewards", "[" * 100000]),
    Attack("NaN", "rewards: ndcg must be a finite number, not nan", words=["--rewards", '{"ndcg": NaN}']),
    Attack("infinite", "rewards: ndcg must be a finite number, not inf", words=["--rewards", '{"ndcg": 1e999}']),
    Attack(
        "an integer beyond floats",
        "rewards: ndcg must be a finite number, not 1000",
        words=["--rewards", f'{{"ndcg": 1{"0" * 400}}}'],
    ),
    Attack("a text", "rewards: ndcg must be a number, not 'high'", words=["--rewards", '{"ndcg": "high"}']),
    Attack("null", "rewards: ndcg must be a number, not None", words=["--rewards", '{"ndcg": null}']),
    Attack("true", "rewards: ndcg must be a number, not True", words=["--rewards", '{"ndcg": true}']),
    Attack("nested", "rewards: ndcg must be a number, not {'k': 1}", words=["--rewards", '{"ndcg": {"k": 1}}']),
    Attack(
        "an infinite sum",
        "the weighted sum of the rewards ndcg, hit, recall is too large; lower",
        words=["--rewards", '{"ndcg": 1e308, "hit": 1e308, "recall": 1e308}'],
    ),
    Attack("best of without rewards", "set rewards and list_length", words=["--best_of", "4"]),
    Attack("a text in a recipe", "rewards", recipe("rewards: ndcg"), RECIPE),
    Attack("a list in a recipe", "rewards", recipe("rewards: [ndcg, mgu]"), RECIPE),
    Attack("a number in a recipe", "rewards", recipe("rewards: 3"), RECIPE),
    Attack("a weight without value", "rewards: ndcg must be a number, not None", recipe("rewards: {ndcg: }"), RECIPE),
    Attack("a number as name", "reward", recipe("rewards: {3: 1}"), RECIPE),
]


@each(COMMAND_LINES)
def test_malformed_rewards_of_a_command_line_are_refused(
    attack: Attack, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "recipe.yaml").write_text("")
    assert_refused(attack, "evaluate", ["--dataset", "data", "--output_dir", "out"], world, capsys)


class PythonAttack(NamedTuple):
    """One malformed argument, or one malformed return value of a reward function.

    Args:
        name: The test's id.
        says: A regular expression that the error must match.
        value: The argument or the return value.
    """

    name: str
    says: str
    value: Any


MAPPING = r"rewards must map names to (weights|numbers)"
BLADE = [
    PythonAttack("empty", r"rewards must map names to weights, as in .*, not \{\}", {}),
    PythonAttack("a text", r"rewards must map names to weights, as in .*, not 'ndcg'", "ndcg"),
    PythonAttack("a list", MAPPING, ["ndcg"]),
    PythonAttack("a number", MAPPING, 3),
    PythonAttack("NaN", "rewards: ndcg must be a finite number, not nan", {"ndcg": NAN}),
    PythonAttack("a huge integer", "rewards: ndcg must be a finite number, not 1000", {"ndcg": 10**400}),
    PythonAttack("a text as weight", "rewards: ndcg must be a number, not '1'", {"ndcg": "1"}),
    PythonAttack("null", "rewards: ndcg must be a number, not None", {"ndcg": None}),
]


@pytest.mark.parametrize("attack", BLADE, ids=[attack.name for attack in BLADE])
def test_malformed_rewards_of_a_training_are_refused(attack: PythonAttack, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=attack.says):
        BladeConfig(str(tmp_path), use_cpu=True, bf16=False, rewards=attack.value)


def score(weights: Any, function: Any = None) -> ListRewards:
    """Scores three lists for each of two users."""
    lists = np.array([[[0, 1], [1, 2], [2, 0]]] * 2)
    batch = ListBatch(lists, Ragged.from_lists([[1], [2]]), Ragged.from_lists([[0], [1]]))
    return score_lists(batch, weights, {"mine": function})


NO_ARRAY = r"which is not an array of real numbers; return one value per list, of the shape \(2, 3\)"
WRONG_SHAPE = r"; return one value per list, of the shape \(2, 3\)"
FUNCTIONS = [
    PythonAttack("too short", rf"reward 'mine' returned values of the shape \(2,\){WRONG_SHAPE}", np.zeros(2)),
    PythonAttack("transposed", rf"reward 'mine' returned values of the shape \(3, 2\){WRONG_SHAPE}", ZEROS.T),
    PythonAttack("one number", rf"reward 'mine' returned values of the shape \(\){WRONG_SHAPE}", 1.0),
    PythonAttack(
        "per item", rf"reward 'mine' returned values of the shape \(2, 3, 2\){WRONG_SHAPE}", np.zeros((2, 3, 2))
    ),
    PythonAttack("nothing", rf"reward 'mine' returned values of the shape \(0,\){WRONG_SHAPE}", []),
    PythonAttack(
        "a tensor of another shape", rf"returned values of the shape \(3, 2\){WRONG_SHAPE}", torch.zeros(3, 2)
    ),
    PythonAttack(
        "a tensor without values", f"reward 'mine' returned tensor.*, {NO_ARRAY}", torch.empty(2, 3, device="meta")
    ),
    PythonAttack("NaN", "reward 'mine' returned nan for list 0 of row 0; return finite numbers", ZEROS * NAN),
    PythonAttack(
        "infinite", "reward 'mine' returned inf for list 2 of row 1; return finite", [[0, 0, 0], [0, 0, float("inf")]]
    ),
    PythonAttack("None", f"reward 'mine' returned None, {NO_ARRAY}", None),
    PythonAttack(
        "None per list", "reward 'mine' returned nan for list 1 of row 0; return finite numbers", [[0, None, 0]] * 2
    ),
    PythonAttack("a text", f"reward 'mine' returned 'high', {NO_ARRAY}", "high"),
    PythonAttack("texts", f"reward 'mine' returned .*, {NO_ARRAY}", [["1", "2", "3"]] * 2),
    PythonAttack("complex numbers", f"reward 'mine' returned array.*, {NO_ARRAY}", ZEROS + 1j),
    PythonAttack("dates", f"reward 'mine' returned array.*, {NO_ARRAY}", ZEROS.astype("datetime64[s]")),
    PythonAttack("uneven lists", f"reward 'mine' returned .*, {NO_ARRAY}", [[1, 2], [1]]),
    PythonAttack("a mapping", f"reward 'mine' returned .*, {NO_ARRAY}", {"mine": ZEROS}),
    PythonAttack("a generator", f"reward 'mine' returned <generator.*, {NO_ARRAY}", (row for row in ZEROS)),
    PythonAttack("huge integers", f"reward 'mine' returned .*, {NO_ARRAY}", [[10**400] * 3] * 2),
]


@pytest.mark.parametrize("attack", FUNCTIONS, ids=[attack.name for attack in FUNCTIONS])
def test_malformed_values_of_a_reward_are_refused(attack: PythonAttack) -> None:
    with pytest.raises(ValueError, match=attack.says):
        score({"mine": 1.0}, lambda batch: attack.value)


WEIGHTS = [
    PythonAttack("no groups", "the rewards ild and mgu need groups of items; set group_column", {"mgu": 1}),
    PythonAttack("a text", "rewards must map names to weights, as in .*, not 'mine'", "mine"),
    PythonAttack("a list", r"rewards must map names to weights, as in .*, not \['mine'\]", ["mine"]),
    PythonAttack("None", "rewards is empty; give a weight to at least one of hit", None),
    PythonAttack("an array", "the weight of reward 'mine' must be a number, not array", {"mine": np.ones(2)}),
    PythonAttack("complex", "the weight of reward 'mine' must be a number, not 1j", {"mine": 1j}),
    PythonAttack("no function", "reward 'mine' is 3; pass a function that takes a ListBatch", {"mine": 1}),
]


@pytest.mark.parametrize("attack", WEIGHTS, ids=[attack.name for attack in WEIGHTS])
def test_malformed_weights_are_refused(attack: PythonAttack) -> None:
    with pytest.raises(ValueError, match=attack.says):
        score(attack.value, 3 if attack.name == "no function" else lambda batch: ZEROS)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_are_accepted_as_rewards(kind: torch.dtype) -> None:
    values = torch.arange(6).view(SHAPE).to(kind).requires_grad_(kind.is_floating_point)
    np.testing.assert_array_equal(
        score({"mine": -2.0}, lambda batch: values).total, -2.0 * np.arange(6).reshape(SHAPE)
    )


def test_a_reward_cannot_change_the_lists() -> None:
    with pytest.raises(ValueError, match="read-only"):
        score({"mine": 1.0}, lambda batch: batch.lists.sort() or ZEROS)
