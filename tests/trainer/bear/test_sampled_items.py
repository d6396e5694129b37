"""Tests `sampled_items`: in training, the softmax is taken over the target and K sampled items instead of over all
items."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.runs import QUIET, losses
from trl_rec import BearConfig, BearTrainer, RecDataset, prepare
from trl_rec.models import make_model, make_tokenizer
from trl_rec.trainer.bear.sampling import ItemSampler


NUM_ITEMS = 60
K = 8
Make = Callable[..., BearTrainer]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    folder = tmp_path_factory.mktemp("data")
    return prepare("toy", folder, toy_users=24, toy_items=NUM_ITEMS).with_surface("item_token")


@pytest.fixture
def make(dataset: RecDataset, tmp_path: Path) -> Make:
    def build(folder: str = "run", dropout: float = 0.0, **options: Any) -> BearTrainer:
        tokenizer = make_tokenizer(dataset.catalog)
        defaults = {"sampled_items": K, "bear_weight": 0, "targets": "all", "max_length": 64, "max_steps": 4}
        defaults |= {"per_device_train_batch_size": 4, "learning_rate": 0.1, "optim": "sgd", "save_strategy": "no"}
        defaults |= {"lr_scheduler_type": "constant", "activation_checkpointing": False, "overwrite": True}
        return BearTrainer(
            make_model(tokenizer, hidden_size=16, dropout=dropout, max_length=128),
            BearConfig(str(tmp_path / folder), **{**QUIET, **defaults, **options}),
            train_dataset=dataset.train,
            eval_dataset=dataset.validation,
            processing_class=tokenizer,
            catalog=dataset.catalog,
        )

    return build


def one_batch(trainer: BearTrainer) -> dict[str, Tensor]:
    return next(iter(trainer.get_train_dataloader()))


def negatives_of(draws: list[int], target: int) -> list[int]:
    return [token for token in draws if token not in (target, -1)][:K]


@pytest.mark.parametrize("sampled_from", ["uniform", "popularity"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_loss_is_that_of_a_loop(make: Make, sampled_from: str, temperature: float) -> None:
    trainer = make(sampled_from=sampled_from, temperature=temperature)
    batch = one_batch(trainer)
    found = trainer.compute_loss(trainer.model.train(), dict(batch)).item()

    # With "uniform", all items are sampled with the same probability. With "popularity", the probability of an item is
    # proportional to 1 + the number of times that the item is a training target.
    tokens = trainer.processing_class.convert_tokens_to_ids(trainer.catalog.new_tokens)
    counts = dict.fromkeys(tokens, 1)
    if sampled_from == "popularity":
        for target in (label for labels in trainer.train_dataset["labels"] for label in labels if label != -100):
            counts[target] += 1

    names = ("input_ids", "attention_mask", "position_ids")
    logits = trainer.model(**{name: batch[name] for name in names}).logits.detach().double() / temperature
    total = []
    for row, place in (batch["labels"] != -100).nonzero().tolist():
        target = int(batch["labels"][row, place])
        scores = logits[row, place - 1]
        drawn = negatives_of(batch["negatives"][row].tolist(), target)
        assert len(drawn) == K
        others = sum(counts.values()) - counts[target]
        corrected = [scores[token] - math.log(K * counts[token] / others) for token in drawn]
        total.append(float(torch.stack([scores[target], *corrected]).logsumexp(0) - scores[target]))
    assert found == pytest.approx(sum(total) / len(total), abs=1e-5)


@pytest.mark.parametrize("sampled_from", ["uniform", "popularity"])
def test_negatives_are_drawn_from_the_sampling_distribution_without_the_target(sampled_from: str) -> None:
    tokens = np.array([3, 4, 5, 6])
    sampler = ItemSampler(tokens, np.array([4, 4, 4, 4, 4, 6]), K, sampled_from)
    q = {"uniform": [1, 1, 1, 1], "popularity": [1, 6, 1, 2]}[sampled_from]
    np.testing.assert_allclose(sampler.log_q(7).exp()[3:], np.array(q) / sum(q), rtol=1e-6)
    assert sampler.log_q(7)[:3].eq(-torch.inf).all()

    drawn = {4: [], 5: []}
    for row in range(1000):
        stream = sampler.stream(np.array([4, 5, 5]), [0, 0, row]).tolist()
        for target, found in drawn.items():
            negatives = negatives_of(stream, target)
            assert len(negatives) == K
            found.extend(negatives)
    for target, found in drawn.items():
        others = {token: count for token, count in zip(tokens.tolist(), q, strict=True) if token != target}
        for token, count in others.items():
            share = count / sum(others.values())
            error = math.sqrt(share * (1 - share) / len(found))
            assert abs(found.count(token) / len(found) - share) < 4 * error


def test_many_sampled_items_approach_the_full_softmax(make: Make) -> None:
    def loss_and_gradients(trainer: BearTrainer) -> tuple[Tensor, list[Tensor]]:
        loss = trainer.compute_loss(trainer.model.train(), one_batch(trainer))
        loss.backward()
        return loss, [weight.grad for weight in trainer.model.parameters()]

    full = loss_and_gradients(make(sampled_items=None))
    for sampled_from in ("uniform", "popularity"):
        found = loss_and_gradients(make(sampled_items=30_000, sampled_from=sampled_from))
        torch.testing.assert_close(found[0], full[0], rtol=0, atol=5e-3)
        torch.testing.assert_close(found[1], full[1], rtol=0, atol=5e-3)


def test_evaluation_uses_the_softmax_over_all_items(make: Make) -> None:
    sampled = make(max_steps=1, logging_steps=1)
    full = make(sampled_items=None)
    found = sampled.evaluate()
    expected = full.evaluate()
    for name in ("eval_loss", "eval_bear/ce", "eval_bear/pruned", "eval_ndcg@10"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6), name
    assert sampled.evaluate(sampled.train_dataset)["eval_loss"] == pytest.approx(
        full.evaluate(full.train_dataset)["eval_loss"], abs=1e-6
    )

    sampled.train()
    logged = {name for entry in sampled.state.log_history for name in entry}
    assert "bear/sampled_ce" in logged
    assert not logged & {"bear/ce", "bear/margin", "bear/pruned", "bear/rows_pruned"}


def test_accumulating_changes_nothing_and_every_tensor_moves(make: Make) -> None:
    whole = make()
    parts = make(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    before = [weight.detach().clone() for weight in whole.model.parameters()]
    whole.train()
    parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    for one, other, start in zip(whole.model.parameters(), parts.model.parameters(), before, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
        assert not torch.equal(one, start)


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(make: Make, dataset: RecDataset) -> None:
    options = {"max_steps": 9, "sampled_from": "popularity", "dropout": 0.2, "target_age_decay": 0.9}
    options |= {"save_strategy": "steps", "save_steps": 4}  # an epoch has 6 steps
    whole = make("whole", **options)
    whole.train()
    cut = make("cut", **options)
    cut.train()
    for step in (8, 9):
        (Path(cut.args.output_dir) / f"checkpoint-{step}" / "complete").unlink()
    resumed = make("cut", **options)
    resumed.train(resume_from_checkpoint=True)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)

    for changed in ({"sampled_items": K + 1}, {"sampled_from": "uniform"}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            make("cut", **{**options, **changed}).train(resume_from_checkpoint=True)


def test_draws_change_with_the_epoch_the_row_and_the_seed(make: Make) -> None:
    trainer = make()
    rows = [trainer.train_dataset[row] for row in (0, 1)]
    first = trainer.data_collator(rows)["negatives"]
    assert torch.equal(trainer.data_collator(rows)["negatives"], first)
    assert not torch.equal(first[0], first[1])
    alone = trainer.data_collator(rows[1:])["negatives"][0]
    assert torch.equal(alone, first[1, : len(alone)])  # the draws of a row do not depend on the batch
    trainer.data_collator.epoch.fill_(1)
    assert not torch.equal(trainer.data_collator(rows)["negatives"][:, :K], first[:, :K])
    assert not torch.equal(make(seed=1).data_collator(rows)["negatives"][:, :K], first[:, :K])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bear_weight": 0.5}, "sampled_items cannot be combined with bear_weight=0.5, because the beam term needs"),
        ({"softmax": "vocabulary"}, "sampled_items cannot be combined with softmax='vocabulary'"),
        ({"target_smoothing": 0.1}, "sampled_items cannot be combined with target_smoothing=0.1"),
        ({"list_length": 10}, "sampled_items cannot be combined with list_length=10"),
        ({"tasks": {"next_item": 1.0}}, "sampled_items cannot be combined with tasks="),
        ({"sampled_items": 0}, "sampled_items must be at least 1, not 0"),
        ({"sampled_items": 2.5}, "sampled_items must be a whole number, not 2.5"),
        ({"sampled_from": "batch"}, "sampled_from must be 'uniform' or 'popularity', not 'batch'"),
        ({"sampled_items": None, "sampled_from": "popularity"}, "it applies only to sampled_items, which is unset"),
    ],
)
def test_invalid_settings_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BearConfig(str(tmp_path), **{"sampled_items": 4, "bear_weight": 0, **QUIET, **options})


def test_other_surfaces_and_a_single_item_are_refused(dataset: RecDataset, tmp_path: Path) -> None:
    titles = dataset.with_surface("title")
    with pytest.raises(ValueError, match="sampled_items requires the surface 'item_token', not 'title'"):
        BearTrainer(
            make_model(make_tokenizer(dataset.catalog), hidden_size=16),
            BearConfig(str(tmp_path), sampled_items=4, bear_weight=0, **QUIET),
            train_dataset=titles.train,
            processing_class=make_tokenizer(dataset.catalog),
            catalog=titles.catalog,
        )
    with pytest.raises(ValueError, match="sampled_items needs a catalogue of at least 2 items"):
        ItemSampler(np.array([3]), np.array([3, 3]), 4, "uniform")
