"""Tests the final evaluation of a run: its users, its estimated time, and how it continues after an interruption."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState, TrainingArguments

from tests.trainer.runs import make_folder
from trl_rec.data.dataset import spread
from trl_rec.evaluation import check_comparable, policy, rank, read_evaluation
from trl_rec.evaluation import cost as evaluation_cost
from trl_rec.evaluation.kept.files import FINISHED
from trl_rec.evaluation.kept.finished_rows import FinishedRows
from trl_rec.scripts import bear, evaluate
from trl_rec.trainer.base import cost
from trl_rec.trainer.base.saving.output import remove_work
from trl_rec.trainer.base.saving.published import copy_published


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose items have several tokens. A final evaluation therefore makes two passes over the users: one for
    recall@20, with more beams, and one for all other metrics."""
    folder = tmp_path_factory.mktemp("final-evaluation")
    make_folder(folder)
    return folder / "data"


def words(options: dict[str, Any]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def train(data: Path, output: Path, **options: Any) -> None:
    defaults = {"dataset": data, "output_dir": output, "surface": "semantic_id", "hidden_size": 16, "max_steps": 2}
    defaults |= {"max_length": 96, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 2}
    defaults |= {"load_best_model_at_end": False, "per_device_eval_batch_size": 4, "eval_recall_at": 20}
    bear.main(["--config", "bear/toy", *words({**defaults, **options})])


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run, measured on seven users, that prints no estimate of its time."""
    output = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bear, "announce_cost", lambda trainer, dataset: None)
        train(data, output, max_test_users=7)
    return output


def test_a_sample_of_users_is_the_same_for_every_run(data: Path, run: Path, tmp_path: Path, capsys) -> None:
    train(data, tmp_path / "seed", max_test_users=7, seed=1, bear_weight=0)
    evaluate.main(words({"dataset": data, "output_dir": tmp_path / "again", "model": run, "max_users": 7}))
    evaluations = [read_evaluation(folder) for folder in (run, tmp_path / "seed", tmp_path / "again")]
    for kept in evaluations:
        check_comparable(evaluations[0], kept)
        assert kept.users["row"].tolist() == spread(7, 24).tolist()
    content = json.loads((run / "metrics.json").read_text())
    assert (content["num_users"], content["num_rows"], content["settings"]["max_test_users"]) == (7, 24, 7)
    said = capsys.readouterr().out
    assert "test split (7 of 24 users), history excluded" in said and "final evaluation:" not in said

    fewer = replace(evaluations[0], num_users=6)
    with pytest.raises(ValueError, match=r"7 and 6; evaluate both on the same number \(max_test_users of a"):
        check_comparable(evaluations[0], fewer)


class Killed(BaseException):
    """Interrupts a run as a signal would."""


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the sizes of the batches that are ranked. The ranking of each batch is saved as soon as it is finished,
    and the fourth batch is interrupted."""
    sizes: list[int] = []
    usual = rank.rank_items
    monkeypatch.setitem(FinishedRows.of_model.__kwdefaults__, "seconds", 0.0)
    monkeypatch.setattr(policy, "seconds_per_user", lambda passes, *others: [0.0] * len(passes))

    def rank_some(model: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        sizes.append(len(prompts["input_ids"]))
        if len(sizes) == 4:
            raise Killed
        return usual(model, prompts, *args, **options)

    monkeypatch.setattr(rank, "rank_items", rank_some)
    return sizes


def test_an_interrupted_final_evaluation_continues(
    data: Path, run: Path, tmp_path: Path, batches: list[int], capsys
) -> None:
    """The evaluation makes two passes of two batches, and the last batch is interrupted."""
    output = tmp_path / "run"
    with pytest.raises(Killed):
        train(data, output, max_test_users=7)
    assert (output / FINISHED).is_dir() and not (output / "metrics.json").exists()

    train(data, output, max_test_users=7, resume_from_checkpoint=True)
    said = capsys.readouterr().out
    assert "ranking: 7 of 7 rows were already finished by an interrupted evaluation" in said
    assert "ranking: 4 of 7 rows were already finished by an interrupted evaluation" in said
    assert batches == [4, 3, 4, 3, 3]
    assert not (output / FINISHED).exists()
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]  # no further step was trained
    for name, tensor in load_file(run / "model.safetensors").items():
        assert torch.equal(tensor, load_file(output / "model.safetensors")[name]), name
    results = [json.loads((folder / "metrics.json").read_text())["results"] for folder in (run, output)]
    assert results[0] == results[1]
    tables = [pq.read_table(folder / "rankings.parquet").replace_schema_metadata() for folder in (run, output)]
    assert tables[0].equals(tables[1])


def test_an_interrupted_choice_of_the_prior_continues(data: Path, tmp_path: Path, batches: list[int], capsys) -> None:
    """The pass over the 18 validation users has five batches, and the fourth batch is interrupted."""
    options = {"prior": "transition", "final_split": "none", "max_users": 18}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with pytest.raises(Killed):
        train(data, cut, **options)
    assert batches == [4, 4, 4, 4] and not (cut / "choice.json").exists()
    train(data, cut, **options, resume_from_checkpoint=True)
    assert "ranking: 12 of 18 rows were already finished by an interrupted evaluation" in capsys.readouterr().out
    assert sum(batches) == 16 + 6 and not (cut / FINISHED).exists()

    train(data, whole, **options)
    assert (whole / "choice.json").read_text() == (cut / "choice.json").read_text()


def test_an_interrupted_evaluation_of_a_saved_model_continues(
    data: Path, run: Path, tmp_path: Path, batches: list[int], capsys
) -> None:
    """The second call of `evaluate` has another batch size. Both calls use the seven users of the run."""
    options = {"dataset": data, "model": run, "recall_at": 20, "output_dir": tmp_path / "cut", "max_users": 7}
    with pytest.raises(Killed):
        evaluate.main(words({**options, "batch_size": 4}))
    evaluate.main(words({**options, "batch_size": 2}))
    assert "were already finished by an interrupted evaluation" in capsys.readouterr().out
    assert batches == [4, 3, 4, 3, 2, 1] and not (tmp_path / "cut" / FINISHED).exists()
    cut, whole = read_evaluation(tmp_path / "cut"), read_evaluation(run)
    assert np.array_equal(cut.rankings_of(cut.recommender).items, whole.rankings_of("BEAR").items)


def test_finished_rows_are_removed_with_the_work_of_their_run(tmp_path: Path) -> None:
    (tmp_path / FINISHED / "a pass").mkdir(parents=True)
    remove_work(tmp_path)
    assert not (tmp_path / FINISHED).exists()


def test_finished_rows_are_never_pushed(tmp_path: Path) -> None:
    """While an evaluation runs, it saves the rankings of the finished rows, so that it can be resumed. These files are
    not pushed to the Hub with a run folder or with a checkpoint."""
    for name in ("run", "checkpoint-2"):
        folder, copy = tmp_path / name, tmp_path / f"{name}-copy"
        (folder / FINISHED / "a pass").mkdir(parents=True)
        (folder / FINISHED / "a pass" / "part.parquet").touch()
        (folder / "config.json").touch()
        copy.mkdir()
        assert copy_published(folder, copy) == ["config.json"]


# The printed estimates


def test_a_run_prints_the_estimated_time_of_training_and_final_evaluation(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Printing the estimates does not change the weights."""
    for module in (cost, evaluation_cost):
        monkeypatch.setattr(module, "SHORT", 0.0)
    monkeypatch.setattr(cost, "FEW", 0.0)
    train(data, tmp_path / "run", max_test_users=7)
    said = capsys.readouterr().out
    remedy = "set max_test_users to shorten it"
    line = rf"final evaluation: 7 users of the test split, about \d+ s; {remedy}\n(.*\n)*?training: about \d+ s\n"
    assert len(re.findall(line, said)) == 1
    assert len(re.findall(rf"^final evaluation: 7 users, about \d+ s; {remedy}$", said, re.MULTILINE)) == 1
    for name, tensor in load_file(run / "model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "run" / "model.safetensors")[name]), name


def test_a_run_prints_the_estimated_time_of_choosing_the_prior(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The run prints the estimate before training, and again before the choice."""
    for module in (cost, evaluation_cost):
        monkeypatch.setattr(module, "SHORT", 0.0)
    monkeypatch.setattr(policy, "seconds_per_user", lambda passes, *others: [2.0] * len(passes))
    train(data, tmp_path / "run", prior="transition", max_test_users=7, max_users=9)
    said = capsys.readouterr().out
    # A pass takes 2 s per user. The choice makes two passes over nine users, and the final evaluation makes two passes
    # over seven users without the prior, and two with it.
    assert "final evaluation: 7 users of the test split, about 56 s, and 36 s for choosing the prior; set max" in said
    assert "choice of the prior: 9 users, about 36 s; set max_users to shorten it" in said


def test_a_run_says_that_it_has_no_final_evaluation(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(cost, "SHORT", 1e-9)
    monkeypatch.setattr(cost, "FEW", 0.0)
    options = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
    train(data, tmp_path / "run", final_split="none", early_stopping_patience=2, **options)
    assert re.search(r"training: at most \d+ s; no final evaluation", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("options", "step", "epoch", "expected"),
    [
        ({"eval_strategy": "steps", "eval_steps": 4}, 0, 0.0, 5),
        ({"eval_strategy": "steps", "eval_steps": 4}, 7, 0.7, 4),
        ({"eval_strategy": "steps", "eval_steps": 4}, 8, 0.8, 3),
        ({"eval_strategy": "epoch"}, 0, 0.0, 2),
        ({"eval_strategy": "epoch"}, 11, 1.1, 1),
        ({"eval_strategy": "no"}, 0, 0.0, 0),
    ],
)
def test_the_number_of_remaining_evaluations(
    tmp_path: Path, options: dict[str, Any], step: int, epoch: float, expected: int
) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, **options)
    state = TrainerState(epoch=epoch, global_step=step, max_steps=20, num_train_epochs=2)
    state.compute_steps(args, state.max_steps)
    assert cost.num_evaluations(args, state) == expected
