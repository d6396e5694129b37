"""Tests the baseline `sequence`, a small transformer. Its recipe is derived from the interaction log. The model is
trained once per log, and evaluated like the other baselines."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from tests.evaluation.logs import make_split
from trl_rec import RecDataset, load, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import (
    EvaluationConfig,
    Rankings,
    evaluate_baselines,
    evaluate_with_baselines,
    read_evaluation,
)
from trl_rec.items.twins import Twins
from trl_rec.models import RecModelConfig
from trl_rec.models.building import scratch_options
from trl_rec.ragged import Ragged
from trl_rec.schedule import SequenceBaseline, sequence, sequence_recipe, sequence_rule, sequence_training
from trl_rec.scripts import bear, evaluate


STEPS = 3  # a checkpoint is saved after each step
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Limits recipes to few steps and a small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_rule, "SMALL", {**sequence_rule.SMALL, "hidden_size": 16})
        patch.setattr(sequence_rule, "MIN_STEPS", STEPS)
        patch.setattr(sequence_rule, "MAX_STEPS", STEPS)
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    folder = tmp_path_factory.mktemp("data")
    return prepare("toy", folder, toy_users=24, toy_items=50, split="leave_last", num_held_out=4)


@pytest.fixture(scope="module")
def fitted(dataset: RecDataset, tmp_path_factory: pytest.TempPathFactory) -> SequenceBaseline:
    return SequenceBaseline(cache=tmp_path_factory.mktemp("cache")).fit(dataset)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*arguments: Any) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(sequence, "train_sequence", train)


def ranked(baseline: SequenceBaseline, dataset: RecDataset) -> Rankings:
    return baseline.rank(split_rows(dataset.test, "history"), 10, True)


def copied(fitted: SequenceBaseline, tmp_path: Path) -> Path:
    """Copies the trained model into a new cache. Returns the folder of the copy."""
    return Path(shutil.copytree(fitted.folder, tmp_path / "cache" / fitted.folder.name))


# The recipe


def log(num_items: int, lengths: np.ndarray) -> Any:
    """Returns a log with sequences of the given lengths, in which every item is item 0. The first item of a sequence
    is the history of a user, and the other items are targets."""
    starts = Ragged.from_lengths(np.zeros(len(lengths), np.int32), np.ones(len(lengths), np.int64))
    others = Ragged.from_lengths(np.zeros(int((lengths - 1).sum()), np.int32), lengths - 1)
    train = Dataset.from_dict({"history": starts.to_arrow(), "targets": others.to_arrow()})
    return SimpleNamespace(catalog=range(num_items), train=train)


@pytest.fixture
def full() -> Iterator[None]:
    """Restores the usual limits on the number of steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence_rule, "MIN_STEPS", 200)
        patch.setattr(sequence_rule, "MAX_STEPS", 20_000)
        yield


@pytest.mark.usefixtures("full")
def test_the_rule_gives_settings_close_to_tuned_ones() -> None:
    """The logs have the sizes of Amazon Beauty and of MovieLens-100k, for which shipped recipes were tuned."""
    generator = np.random.default_rng(0)
    beauty = sequence_recipe(log(12_101, 2 + generator.geometric(1 / 4.88, 22_363)))
    known = {"hidden_size": 128, "dropout": 0.5, "embedding_dropout": 0.3, "learning_rate": 2e-3, "bear_weight": 0}
    known |= {"per_device_train_batch_size": 128, "sampled_items": None}
    assert {name: beauty.get(name) for name in known} == known
    assert beauty["max_length"] in (32, 64)
    assert 8 <= beauty["max_steps"] * 128 / 22_363 <= 10

    films = sequence_recipe(log(1_682, np.exp(generator.normal(4.2, 0.95, 943)).astype(np.int64).clip(18, 735)))
    assert films["dropout"] == 0.3 and films["learning_rate"] == 3e-3
    assert (films["max_length"], films["per_device_train_batch_size"]) == (128, 16)
    assert 900 < films["max_steps"] < 1_500


@pytest.mark.usefixtures("full")
def test_the_rule_limits_steps_lengths_and_batches() -> None:
    short = sequence_recipe(log(30, np.full(20, 4)))
    assert (short["max_steps"], short["max_length"], short["per_device_train_batch_size"]) == (200, 16, 256)
    long = sequence_recipe(log(300_000, np.full(10_000, 300)))
    assert (long["max_steps"], long["max_length"], long["per_device_train_batch_size"]) == (20_000, 128, 8)
    assert long["sampled_items"] == 1_024 and long["per_device_eval_batch_size"] * 300_000 < 1 << 25


@pytest.mark.parametrize(("items", "start"), [([1, 1, 1], "random"), ([1, 1, 2], "behaviour")])
def test_item_vectors_start_at_random_if_no_two_items_share_a_sequence(items: list[int], start: str) -> None:
    train = Dataset.from_dict({"history": [items[:1], [2]], "targets": [items[1:], [2]]})
    assert sequence_recipe(SimpleNamespace(catalog=range(3), train=train))["item_vectors"] == start


def test_recipe_keys_are_those_of_the_verb(dataset: RecDataset) -> None:
    """The recipe sets every option of a model that is trained from scratch, and the option for its initial item
    vectors. The other keys are options of the training."""
    of_model = sequence_training._model_keys(sequence_recipe(dataset))
    assert set(of_model) == {*scratch_options(RecModelConfig()), "item_vectors"}
    assert sequence_recipe(dataset, seed=3, exclude_history=False)["seed"] == 3


# Training and its cache


def test_the_verb_trains_once_and_writes_the_same_metrics_as_for_other_baselines(
    dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["--dataset", str(dataset.path), "--baselines", "popularity", "sequence", "transition", "--ks", "5", "10"]
    words += ["--recall_at", "20"]
    caplog.set_level("INFO", "trl_rec")
    evaluate.main([*words, "--output_dir", str(tmp_path / "first")])
    assert [path.parent.name for path in (tmp_path / "cache/trl-rec").glob("*/*")] == ["sequence"]
    assert f"training from step 0 to {STEPS}" in caplog.text and f"step {STEPS} of {STEPS}, validation" in caplog.text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "train_sequence", None)
        evaluate.main([*words, "--output_dir", str(tmp_path / "second")])
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second"))
    assert list(first["results"]) == ["popularity", "sequence", "transition"]
    assert first["results"] == second["results"]

    # The row of the sequence baseline has the same metrics as the other rows, with values per user.
    assert set(first["results"]["sequence"]["metrics"]) == set(first["results"]["transition"]["metrics"])
    kept = read_evaluation(tmp_path / "first")
    per_user = kept.results["sequence"].per_user
    assert set(per_user) == set(kept.results["transition"].per_user)
    for name, values in per_user.items():
        known = values[~np.isnan(values)]
        assert kept.results["sequence"].metrics[name] == pytest.approx(known.mean())
    items = kept.rankings_of("sequence").items
    for row, history in zip(items, dataset.test["history"], strict=True):
        assert not set(row) & set(history)


def test_trl_rec_bear_repeats_the_model_from_the_recipe_in_its_folder(
    fitted: SequenceBaseline, dataset: RecDataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--config", str(fitted.folder / "recipe.yaml"), "--use_cpu", "true", "--output_dir", str(run)]
    bear.main([*words, "--final_split", "none"])
    one, other = (load_file(folder / WEIGHTS) for folder in (fitted.folder, run))
    assert all(torch.equal(one[name], other[name]) for name in one)

    words = ["--dataset", str(dataset.path), "--model", str(run), "--output_dir", str(tmp_path / "out")]
    evaluate.main([*words, "--baselines", "random", "--batch_size", "256"])
    theirs = read_evaluation(tmp_path / "out").rankings_of("model run")
    mine = ranked(fitted, dataset)
    np.testing.assert_array_equal(mine.items, theirs.items)
    np.testing.assert_array_equal(mine.scores, theirs.scores)


def test_an_interrupted_training_continues_and_gives_the_same_weights(
    fitted: SequenceBaseline, dataset: RecDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    baseline = SequenceBaseline(cache=tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt, match="the same command continues"):
        patch.setattr(sequence_training._Progress, "on_evaluate", stop)
        baseline.fit(dataset)
    assert not (baseline.folder / "complete").exists() and not hasattr(baseline, "policy")

    caplog.set_level("INFO", "trl_rec")
    baseline.fit(dataset)
    assert f"training from step 2 to {STEPS}" in caplog.text
    assert baseline.folder.name == fitted.folder.name and not list(baseline.folder.glob("checkpoint-*"))
    one, other = (load_file(folder / WEIGHTS) for folder in (fitted.folder, baseline.folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("damaged", "said"),
    [(WEIGHTS, "has changed"), ("config.json", "cannot be loaded"), ("complete", "contains no metric")],
)
def test_a_damaged_model_is_trained_again(
    damaged: str, said: str, fitted: SequenceBaseline, dataset: RecDataset, tmp_path: Path, caplog
) -> None:
    folder = copied(fitted, tmp_path)
    (folder / damaged).write_bytes(b"{")
    with pytest.raises(AssertionError, match="it was trained again"):
        SequenceBaseline(cache=folder.parent).fit(dataset)
    assert said in caplog.text and "so the model is trained again" in caplog.text


def test_damaged_checkpoints_are_replaced_and_weights_without_the_file_complete_are_not_used(
    fitted: SequenceBaseline, dataset: RecDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(fitted, tmp_path)
    (folder / "checkpoint-2").mkdir()
    shutil.move(folder / "complete", folder / "checkpoint-2")
    (folder / WEIGHTS).write_bytes(b"half")
    again = SequenceBaseline(cache=folder.parent).fit(dataset)
    assert "training starts from scratch" in caplog.text
    np.testing.assert_array_equal(ranked(again, dataset).items, ranked(fitted, dataset).items)


@pytest.mark.usefixtures("no_training")
def test_the_cache_folder_depends_on_everything_that_the_model_depends_on(
    fitted: SequenceBaseline, dataset: RecDataset, tmp_path: Path
) -> None:
    def is_known(data: RecDataset, **options: Any) -> bool:
        baseline = SequenceBaseline(cache=fitted.folder.parent, **options)
        try:
            return baseline.fit(data).folder == fitted.folder
        except AssertionError:
            assert baseline.folder != fitted.folder
            return False

    assert is_known(dataset) and is_known(load(dataset.path).with_surface("title"))
    assert is_known(replace(dataset, test=dataset.test.select(range(3))))
    assert not is_known(replace(dataset, train=dataset.train.select(range(20))))
    assert not is_known(replace(dataset, validation=dataset.validation.select(range(20))))
    assert not is_known(dataset, seed=1)
    assert not is_known(dataset, exclude_history=False)


# Ranking


def test_scores_order_items_as_the_ranking_does(fitted: SequenceBaseline, dataset: RecDataset) -> None:
    histories = split_rows(dataset.test, "history").take(np.arange(5))
    num_items = len(dataset.catalog)
    everything = Ragged.from_lengths(np.tile(np.arange(num_items), 5), np.full(5, num_items))
    scores = fitted.score(histories, everything).reshape(5, num_items)
    ranks = fitted.rank(histories, num_items, False)
    np.testing.assert_array_equal(ranks.items, np.argsort(-scores, kind="stable"))
    np.testing.assert_allclose(np.exp(scores.astype(float)).sum(1), 1, rtol=1e-5)
    assert fitted.score(histories, everything.slice(np.zeros(5, int), np.zeros(5, int))).shape == (0,)


def test_twins_of_the_history_are_excluded_too(fitted: SequenceBaseline, dataset: RecDataset) -> None:
    twins = Twins.of_titles(pa.chunked_array([["a", "b"] * (len(dataset.catalog) // 2)]))
    histories = Ragged.from_lists([[2, 4], [], [1, 2]])
    ranks = fitted.rank(histories, len(dataset.catalog), True, twins)
    kept = [set(row[row >= 0] % 2) for row in ranks.items]
    assert kept == [{1}, {0, 1}, set()]


# Refusals


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "baselines is empty; name at least one of random, popularity, transition, sequence"),
        (["sasrec"], "there is no baseline 'sasrec'; choose among random, popularity, transition, sequence"),
        (["sequence", "random", "sequence"], "baselines contains a baseline twice"),
    ],
)
def test_names_that_are_wrong_are_refused(names: list[str], message: str, dataset: RecDataset) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(baselines=names)
    with pytest.raises(ValueError, match=message):
        evaluate_baselines(dataset, baselines=names)


def test_in_python_the_fitted_baseline_must_be_passed(fitted: SequenceBaseline, dataset: RecDataset) -> None:
    with pytest.raises(ValueError, match=r"pass sequence=SequenceBaseline\(\)\.fit\(dataset\)"):
        evaluate_baselines(dataset, baselines=["sequence"])
    config = EvaluationConfig(baselines=["sequence"])
    with pytest.raises(ValueError, match=r"pass sequence=SequenceBaseline\(\)\.fit, or remove"):
        evaluate_with_baselines(dataset, config)
    surfaced = dataset.with_surface("item_token")
    found = evaluate_with_baselines(surfaced, config, sequence=SequenceBaseline(cache=fitted.folder.parent).fit)
    expected = evaluate_baselines(surfaced, baselines=["sequence"], recall_at=50, sequence=fitted)
    assert found["sequence"].metrics == expected["sequence"].metrics


def test_the_checkpoint_is_chosen_on_all_validation_rows(dataset: RecDataset) -> None:
    """The evaluation's `max_users` does not limit the rows on which the checkpoint is chosen."""
    config = EvaluationConfig(baselines=["sequence"], split="validation", max_users=3)

    def train(given: RecDataset) -> SequenceBaseline:
        raise RuntimeError(f"{len(given.validation)} rows")

    with pytest.raises(RuntimeError, match="24 rows"):
        evaluate_with_baselines(dataset, config, sequence=train)


@pytest.mark.usefixtures("no_training")
def test_a_baseline_that_cannot_be_trained_is_refused(dataset: RecDataset, tmp_path: Path, monkeypatch) -> None:
    baseline = SequenceBaseline(cache=tmp_path)
    with pytest.raises(ValueError, match="the baseline is not fitted"):
        baseline.rank([[1]], 5, True)
    with pytest.raises(ValueError, match="on the validation split, which has no rows"):
        baseline.fit(replace(dataset, validation=dataset.validation.select([])))
    with pytest.raises(ValueError, match="no user has two interactions in the training split"):
        baseline.fit(replace(dataset, train=make_split([(0, [1], []), (1, [2], [])])))
    monkeypatch.setattr(sequence, "PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="only a single process can train the baseline 'sequence'"):
        baseline.fit(dataset)


def test_a_model_of_rated_candidates_has_other_baselines(dataset: RecDataset, tmp_path: Path) -> None:
    (tmp_path / "ranker.json").touch()
    words = ["--dataset", str(dataset.path), "--model", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="baselines has no effect on .*, which orders rated candidates"):
        evaluate.main([*words, "--baselines", "sequence"])
