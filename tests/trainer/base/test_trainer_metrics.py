"""What trainers log: means over all processes, and which rows have a broken loss. And what a method has to define."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from trl import SFTTrainer

from tests.trainer.runs import make_folder, make_trainer
from trl_rec.trainer import BatchLoss, CatalogRankingMixin, Mean
from trl_rec.trainer.base.metrics import describe_broken, reduce_batch
from trl_rec.trainer.base.model_card import ModelCard, Paper, write_model_card


def batch(row_losses: list[float], means: dict[str, Mean], row_ids: Tensor | None = None) -> BatchLoss:
    return BatchLoss(torch.zeros(()), torch.tensor(row_losses), means, torch.tensor(7), row_ids)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metrics")
    make_folder(path)
    return path


def test_means_are_sums_over_counts_and_what_nothing_was_counted_for_is_left_out() -> None:
    means = {
        "rows": Mean.of(torch.tensor([1.0, 2.0, 6.0])),
        "tensors": Mean(torch.tensor(5, dtype=torch.int64), torch.tensor(2)),
        "numbers": Mean(0.25, 1),
        "nothing": Mean(torch.tensor(0.0), torch.tensor(0)),
    }
    reduced = reduce_batch(batch([0.0, 1.0], means), Accelerator(cpu=True))
    assert reduced.means == {"rows": 3.0, "tensors": 2.5, "numbers": 0.25}
    assert (reduced.num_tokens, reduced.num_broken) == (7, 0)


def test_rows_with_a_broken_loss_are_counted_and_named() -> None:
    losses = [0.0, float("nan"), float("inf"), 1.0]
    assert reduce_batch(batch(losses, {}), Accelerator(cpu=True)).num_broken == 2
    assert describe_broken(batch(losses, {})) == "including rows [1, 2] of this process's batch"
    named = batch(losses, {}, torch.tensor([40, 41, 42, 43]))
    assert describe_broken(named) == "including the training rows [41, 42]"
    assert describe_broken(batch([0.0], {})) == "all in the batches of other processes"


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
