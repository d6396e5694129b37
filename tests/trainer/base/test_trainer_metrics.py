"""Tests the metrics that trainers log, the check for losses that are not finite, the loss that a trainer class must
define, and the model card."""

import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl import SFTTrainer

from tests.trainer.runs import make_folder, make_trainer
from trl_rec.trainer import BatchLoss, CatalogRankingMixin, Mean
from trl_rec.trainer.base.metrics import KeptMetrics, RowLosses
from trl_rec.trainer.base.saving.model_card import ModelCard, Paper, write_model_card


def batch(row_losses: list[float], means: dict[str, Mean], row_ids: Tensor | None = None) -> BatchLoss:
    return BatchLoss(torch.zeros(()), torch.tensor(row_losses), means, torch.tensor(7), row_ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metrics")
    make_folder(path)
    return path


def test_a_mean_is_a_sum_divided_by_a_count_and_is_left_out_if_the_count_is_0() -> None:
    means = {
        "rows": Mean.of(torch.tensor([1.0, 2.0, 6.0])),
        "tensors": Mean(torch.tensor(5, dtype=torch.int64), torch.tensor(2)),
        "numbers": Mean(0.25, 1),
        "nothing": Mean(torch.tensor(0.0), torch.tensor(0)),
    }
    kept = KeptMetrics()
    kept.add(batch([0.0, 1.0], means))
    kept.add(batch([0.0], {"nothing": Mean.of(torch.tensor([2.0]))}))  # another batch may have other metrics
    first, second = kept.read(Accelerator(cpu=True))
    assert first.means == {"rows": 3.0, "tensors": 2.5, "numbers": 0.25}
    assert second.means == {"nothing": 2.0}
    assert first.num_tokens == second.num_tokens == 7
    assert len(kept) == 0 and kept.read(Accelerator(cpu=True)) == []


def test_rows_with_a_broken_loss_are_counted_and_named() -> None:
    broken = [0.0, float("nan"), float("inf"), 1.0]
    names = torch.tensor([40, 41, 42, 43])
    cases = {
        "the loss of 2 rows is not finite at step 5 (on this process: rows [1, 2] of the step)": [batch(broken, {})],
        "the loss of 1 row is not finite at step 5 (on this process: rows [3] of the step)": [
            batch([0.0, 1.0], {}),
            batch([0.0, float("nan")], {}),
        ],
        "the loss of 2 rows is not finite at step 5 (on this process: training rows [41, 42])": [
            batch(broken, {}, names)
        ],
    }
    losses = RowLosses()
    for message, batches in cases.items():
        for one in batches:
            losses.add(one)
        with pytest.raises(ValueError, match=re.escape(message)):
            losses.check(Accelerator(cpu=True), 5)
    losses.add(batch([0.0], {}))  # rows of earlier steps no longer count
    losses.check(Accelerator(cpu=True), 6)


def test_a_broken_loss_of_an_early_batch_stops_the_run_before_the_step(folder: Path, tmp_path: Path) -> None:
    """The loss of the second of four accumulated batches is NaN. The error is raised in the forward pass of the
    fourth batch, before the optimizer step."""
    trainer = make_trainer(folder, tmp_path, gradient_accumulation_steps=4, per_device_train_batch_size=1)
    compute, batches = trainer.batch_loss, []

    def breaking(*given: object) -> BatchLoss:
        batches.append(compute(*given))
        broken = batches[-1].row_losses * torch.nan
        return batches[-1]._replace(row_losses=broken) if len(batches) == 2 else batches[-1]

    trainer.batch_loss = breaking
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(ValueError, match=r"the loss of 1 row is not finite at step 0 \(on this process: rows \[1\]"):
        trainer.train()
    assert len(batches) == 4
    assert all(torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))


def test_a_trainer_without_a_loss_cannot_be_made() -> None:
    class Unfinished(CatalogRankingMixin, SFTTrainer):
        method = "unfinished"

    with pytest.raises(TypeError, match="abstract method '?batch_loss"):
        Unfinished("model")
    assert Unfinished._tag_names == ["trl", "trl-rec", "unfinished"]


def test_the_model_card_names_the_method_and_its_paper(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"Trained with {trainer.display_name}." in card
    assert f"[{trainer.paper.title}](https://arxiv.org/abs/2601.22925)" in card


def test_a_model_card_has_no_control_characters(tmp_path: Path) -> None:
    hostile = "\x1b[2Ja\u202e\r\nb"
    settings = {"prompt_head": hostile, "split": "a|b"}
    write_model_card(tmp_path, ModelCard(hostile, ["x"], "BEAR", Paper("A paper", "1"), hostile, settings, []))
    lines = (tmp_path / "README.md").read_text(encoding="utf-8").split("\n")
    assert all(line.isprintable() for line in lines)
    assert "# \ufffd[2Ja\ufffd  b" in lines and "| prompt_head | \ufffd[2Ja\ufffd  b |" in lines
    assert "| split | a\\|b |" in lines
