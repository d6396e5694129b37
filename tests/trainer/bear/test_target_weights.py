"""Tests label smoothing of targets, and loss weights that decay with the age of a target. The age is the number of
newer targets in the same row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.runs import QUIET, losses, make_folder, make_trainer
from trl_rec import BearConfig, BearTrainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bear")
    make_folder(path)
    return path


def make(folder: Path, output: Path, **options: object) -> BearTrainer:
    return make_trainer(folder, output, **{"targets": "all", "bear_weight": 0, **options})


def one_batch(trainer: BearTrainer) -> dict[str, Tensor]:
    return next(iter(trainer.get_train_dataloader()))


def paths(trainer: BearTrainer) -> list[list[int]]:
    catalog = trainer.catalog
    return [catalog.paths(trainer.processing_class)[item].tolist() for item in range(len(catalog))]


def by_hand(trainer: BearTrainer, batch: dict[str, Tensor], *, decay: float, smoothing: float = 0.0) -> float:
    """Computes the weighted mean of the loss over target tokens in a loop, from the logits of the model."""
    known = paths(trainer)
    names = ("input_ids", "attention_mask", "position_ids")
    logits = trainer.model.eval()(**{name: batch[name] for name in names}).logits.detach().double()
    total = 0.0
    weights = 0.0
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        pad = int((mask == 0).sum())
        tokens = ids[pad:].tolist()
        num_items = (len(tokens) - 1) // 3  # after <bos>, each item has three tokens
        for item in range(1, num_items):  # the first item is not a target
            for depth in range(3):
                place = 1 + 3 * item + depth
                prefix = tokens[place - depth : place]
                among = range(len(logits[0, 0]))
                if trainer.renormalizes:
                    among = sorted({path[depth] for path in known if path[:depth] == prefix})
                if len(among) == 1:
                    continue
                logps = logits[row, pad + place - 1, list(among)].log_softmax(0)
                weight = decay ** (num_items - 1 - item)
                chosen = logps[list(among).index(tokens[place])]
                total -= weight * float((1 - smoothing) * chosen + smoothing * logps.mean())
                weights += weight
    return total / weights


@pytest.mark.parametrize("softmax", ["legal", "vocabulary"])
@pytest.mark.parametrize(("decay", "smoothing"), [(0.5, 0.0), (0.0, 0.0), (0.9, 0.2), (1.0, 0.2)])
def test_the_loss_is_the_weighted_mean_of_a_loop(
    folder: Path, tmp_path: Path, softmax: str, decay: float, smoothing: float
) -> None:
    options = {"target_age_decay": decay, "target_smoothing": smoothing, "softmax": softmax}
    trainer = make(folder, tmp_path, **options)
    batch = one_batch(trainer)
    found = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert found == pytest.approx(by_hand(trainer, batch, decay=decay, smoothing=smoothing), abs=1e-5)


def test_decay_1_is_off(folder: Path, tmp_path: Path) -> None:
    assert "target_weights" not in one_batch(make(folder, tmp_path, target_age_decay=1.0))
    assert "target_weights" in one_batch(make(folder, tmp_path, target_age_decay=0.99))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_accumulating_changes_nothing(folder: Path, tmp_path: Path, padding_side: str) -> None:
    options = {"target_age_decay": 0.7, "target_smoothing": 0.1, "padding_side": padding_side, "max_steps": 3}
    whole = make(folder, tmp_path, **options)
    parts = make(folder, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, **options)
    whole.train()
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)


def test_a_checkpoint_with_other_settings_of_targets_is_refused(folder: Path, tmp_path: Path) -> None:
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    make(folder, tmp_path, target_smoothing=0.1, target_age_decay=0.8, **options).train()
    for changed, name in (({"target_smoothing": 0.2}, "target_smoothing"), ({"target_age_decay": 0.9}, "target_age")):
        trainer = make(folder, tmp_path, **{"target_smoothing": 0.1, "target_age_decay": 0.8, **options, **changed})
        with pytest.raises(ValueError, match=name):
            trainer.train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_age_decay": 0.5},
            "target_age_decay=0.5 has no effect, because it applies only to rows with several",
        ),
        ({"target_age_decay": 1.5, "targets": "all"}, "target_age_decay must be from 0 to 1, not 1.5"),
        ({"target_smoothing": 1.0}, "target_smoothing must be from 0 to below 1, not 1.0"),
    ],
)
def test_invalid_settings_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BearConfig(str(tmp_path), **QUIET, **options)
