"""Tests `trl-rec compare`: how runs are grouped into arms, which arm is the reference, how slices are compared, what
the JSON file contains, and which runs are refused."""

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.robustness.attacks import Attack, assert_refused, each
from trl_rec.data import prepare
from trl_rec.evaluation import Evaluation, compare, evaluate_baselines, read_evaluation, write_evaluation
from trl_rec.scripts.compare import _compare_slices, main


METRIC = "ndcg@10"
NUM_USERS = 60
RECIPE = (
    "# Repeats this run: trl-rec bear --config recipe.yaml --output_dir ANOTHER_FOLDER\nbear_weight: {}\nseed: {}\n"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes run folders: three arms with three seeds each, another run of the arm `bear` with a seed that this arm has
    already, and runs without a recipe. Of the runs without a recipe, three have other data or settings, and one names
    no recommender, as if it contained only baselines."""
    folder = tmp_path_factory.mktemp("world")
    dataset = prepare("toy", folder / "data", toy_users=NUM_USERS, toy_items=50)
    baselines = evaluate_baselines(dataset, ks=[1, 10])
    rng = np.random.default_rng(0)
    easy = rng.normal(0, 0.2, NUM_USERS)

    def write(name: str, mean: float, weight: float | None = None, **changes: Any) -> None:
        per_user = {metric: mean + easy + rng.normal(0, 0.02, NUM_USERS) for metric in ("ndcg@1", METRIC)}
        metrics = {metric: float(values.mean()) for metric, values in per_user.items()}
        row = Evaluation({**metrics, "num_users": NUM_USERS}, {}, per_user)
        with_prior = changes.pop("with_prior", False)
        more = {"prior": baselines["transition"], "BEAR x prior": shifted(row, 0.05)} if with_prior else {}
        options = {"dataset": dataset, "ks": [1, 10], "exclude_history": True, "recommender": "BEAR", **changes}
        write_evaluation(folder / name, {**baselines, "BEAR": row, **more}, **options)
        if weight is not None:
            (folder / name / "recipe.yaml").write_text(RECIPE.format(weight, changes["seed"]))

    for seed in range(3):
        write(f"sft-seed{seed}", 0.5, 0, seed=seed)
        write(f"bear-{seed}", 0.6, 1, seed=seed)
        write(f"with-prior-{seed}", 0.6, 2, seed=seed, with_prior=True)
    write("bear-again", 0.6, 1, seed=2)
    write("lists", 0.5)
    write("with-history", 0.5, exclude_history=False)
    write("baselines", 0.5, recommender=None)
    write("validation", 0.5, split="validation")
    other = prepare("toy", folder / "other", toy_users=NUM_USERS, toy_items=51)
    write("other-data", 0.5, dataset=other)
    return folder


def shifted(row: Evaluation, amount: float) -> Evaluation:
    """Returns the evaluation with `amount` added to all values."""
    per_user = {metric: values + amount for metric, values in row.per_user.items()}
    metrics = {metric: float(values.mean()) for metric, values in per_user.items()}
    return Evaluation({**metrics, "num_users": NUM_USERS}, {}, per_user)


def compared(world: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with chdir(world):
        main(list(words))
    return capsys.readouterr().out


SFT = ("sft-seed0", "sft-seed1", "sft-seed2")
BEAR = ("bear-0", "bear-1", "bear-2")


def test_runs_that_differ_in_the_seed_are_one_arm(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compared(world, capsys, *SFT, *BEAR, "--output", "found.json")
    assert out.startswith(f"{world / 'data'}, test split, history excluded\n\n")
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["sft", "bear"]
    assert out.splitlines()[5].endswith("  better")
    assert "paired by user and by seed" in out

    found = json.loads((world / "found.json").read_text())
    assert found["runs"]["bear"][1] == {"seed": 1, "folder": "bear-1"}
    wanted = compare(
        {
            name: {seed: read_evaluation(world / run).results["BEAR"].per_user for seed, run in enumerate(folders)}
            for name, folders in {"sft": SFT, "bear": BEAR}.items()
        },
        against="sft",
        metric=METRIC,
    )[0]
    (one,) = found["comparisons"]
    assert (one["difference"], one["p_value"], one["num_seeds"]) == (wanted.difference, wanted.p_value, 3)


def test_folders_of_a_study_are_grouped_by_their_parent(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for arm, runs in (("msl", SFT), ("continued", BEAR)):
        for seed, run in enumerate(runs):
            folders.append(str(shutil.copytree(world / run, tmp_path / arm / f"seed-{seed}")))
            (tmp_path / arm / f"seed-{seed}/recipe.yaml").unlink()
    out = compared(world, capsys, *folders, "--against", "msl")
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["msl", "continued"]


@pytest.mark.parametrize(
    ("words", "reference"),
    [
        (("bear-0", "lists"), "bear-0"),
        (("bear-0", "lists", "--against", "lists"), "lists"),
        (("bear-0", "--against", "./lists"), "lists"),
        (("bear-0", "bear-1", "lists", "--against", "bear-1"), "bear"),
        (("bear-0", "--against", "popularity"), "popularity"),
        (("bear-0",), "transition"),
        (("bear-0", "lists", "--names", "a", "b", "--against", "b"), "b"),
        (("bear-0", "--names", "a", "--against", "./lists"), "lists"),
        (("bear-0", "--names", "lists", "--against", "./lists"), "./lists"),  # the name is taken by bear-0
    ],
)
def test_the_reference_can_be_a_run_a_name_or_a_baseline(
    world: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reference: str
) -> None:
    rows = compared(world, capsys, *words).splitlines()
    assert rows[4].split()[0] == reference and rows[4].endswith("reference")
    # If the reference is the arm bear, the run `lists` is paired with both seeds of this arm.
    assert rows[5].endswith(", one seed") == (reference != "bear")


def test_runs_with_the_same_name_are_one_arm(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compared(world, capsys, "lists", "bear-0", "sft-seed1", "--names", "mine", "theirs", "theirs")
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["mine", "theirs"]
    assert compared(world, capsys, "bear-0", "lists", "--metric", "ndcg@1").splitlines()[2].split()[0] == "ndcg@1"


def test_slices_are_adjusted_together(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compared(world, capsys, *SFT, *BEAR, "--slices", "--output", "sliced.json")
    assert "target more than 5 times in training" in out and "history of" in out
    assert out.count("adjusted p: p adjusted by Holm's method") == 1
    found = json.loads((world / "sliced.json").read_text())["slices"]
    assert len(found) > 2
    smallest = min((one for of_slice in found.values() for one in of_slice), key=lambda one: one["p_value"])
    assert smallest["adjusted_p"] == pytest.approx(min(1, len(found) * smallest["p_value"]))


ATTACKS = [
    Attack("no runs", "--runs", words=[]),
    Attack("no folder", "does not contain an evaluation", words=["bear-0", "nowhere"]),
    Attack("other data", "recommend from different catalogues", words=["bear-0", "other-data"]),
    Attack("other split", "were evaluated on different splits", words=["bear-0", "validation"]),
    Attack("other exclusion", "excludes the items of a user's history", words=["bear-0", "with-history"]),
    Attack("other data as reference", "different catalogues", words=["bear-0", "--against", "other-data"]),
    Attack("only baselines", "baselines contains only baselines", words=["bear-0", "baselines"]),
    Attack("a seed twice", "are both runs of bear with seed 2", words=["bear-2", "bear-again"]),
    Attack(
        "too few names",
        "the number of names (1) differs from the number of runs (2)",
        words=["bear-0", "lists", "--names", "a"],
    ),
    Attack("unknown reference", "there is no run, name or baseline 'sasrec'", words=["bear-0", "--against", "sasrec"]),
    Attack(
        "unknown metric", "no values of mrr@3 per user; choose one of", words=["bear-0", "lists", "--metric", "mrr@3"]
    ),
    Attack("one arm twice", "at least one recommender besides", words=["bear-0", "--against", "bear-0"]),
    Attack(
        "damaged recipe",
        "recipe.yaml is damaged",
        lambda folder: (folder / "bear-0/recipe.yaml").write_text("a: ["),
        ["bear-0", "lists"],
    ),
]


@each(ATTACKS)
def test_runs_that_cannot_be_compared_are_refused(
    attack: Attack, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "world"
    shutil.copytree(world, folder)
    assert_refused(attack, "compare", [], folder, capsys)


def test_slices_without_users_that_the_metric_applies_to_are_left_out() -> None:
    values = np.array([0.5, 0.1, np.nan, 0.2, np.nan, np.nan])
    runs = {name: {None: {METRIC: values + shift}} for name, shift in (("a", 0.0), ("b", 0.1))}
    masks = {"known": np.array([True] * 4 + [False] * 2), "unknown": np.array([False] * 3 + [True] * 3)}
    assert list(_compare_slices(runs, "a", METRIC, masks)) == ["known"]


def names(printed: str) -> list[str]:
    """Returns the first column of a table. Its rows are between a line of dashes and the legend."""
    rows = printed.split("---\n", 1)[1].split("\n\n", 1)[0]
    return [line.split("  ")[0] for line in rows.splitlines()]


def test_rows_of_a_prior_are_compared_too(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [f"with-prior-{seed}" for seed in range(3)]
    printed = compared(world, capsys, *runs, "--output", str(tmp_path / "out.json"))
    # The reference is still the strongest baseline.
    assert names(printed) == ["transition", "with-prior", "with-prior x prior", "prior"]
    content = json.loads((tmp_path / "out.json").read_text())
    verdicts = {one["name"]: one["verdict"] for one in content["comparisons"]}
    assert verdicts["with-prior x prior"] == "better" and "no sig" in verdicts["prior"]
    assert list(content["runs"]) == ["with-prior", "with-prior x prior", "prior"]

    printed = compared(world, capsys, *runs, "--against", "prior")
    assert "with-prior x prior" in printed and "is compared with that of prior" in printed
    printed = compared(world, capsys, "bear-0", "with-prior-0", "--against", "bear-0")
    assert names(printed) == ["bear-0", "with-prior-0", "with-prior-0 x prior", "with-prior-0's prior"]
