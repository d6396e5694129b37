"""Tests the training of models that have no `nn.Dropout` modules, but pass their dropout rate to a function, as OPT
does. TRL's `disable_dropout` does not turn off such dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.blade import blade_runs
from tests.trainer.softmax_dpo import preference_runs
from trl_rec import load
from trl_rec.decoding import sample_item_lists
from trl_rec.models import load_tokenizer
from trl_rec.trainer import BladeTrainer


MAKERS: dict[str, Callable[..., Any]] = {
    "bear": runs.make_trainer,
    "alro": alro_runs.make_trainer,
    "blade": blade_runs.make_trainer,
    "softmax_dpo": preference_runs.make_trainer,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with data for the runs of each method."""
    ranked = tmp_path_factory.mktemp("ranked")
    runs.make_folder(ranked)
    rated = tmp_path_factory.mktemp("rated")
    alro_runs.make_folder(rated)
    return {name: rated if name == "alro" else ranked for name in MAKERS}


def opt(folder: Path) -> PreTrainedModel:
    """Returns a small OPT with every kind of dropout that OPT supports. With `layerdrop`, training skips whole
    layers."""
    tokenizer = load_tokenizer(folder / "model")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "init_std": 0.3}
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = OPTConfig(
        vocab_size=len(tokenizer),
        word_embed_proj_dim=16,
        max_position_embeddings=256,
        dropout=0.5,
        attention_dropout=0.5,
        layerdrop=0.5,
        **size,
        **special,
    )
    return OPTForCausalLM(config).train()


def make(name: str, folders: dict[str, Path], output: Path, **options: Any) -> Any:
    """Makes the trainer of a method with a small OPT in training mode."""
    trainer = MAKERS[name](folders[name], output, model=opt(folders[name]), **options)
    trainer.model.train()
    return trainer


def first_batch(trainer: Any) -> dict[str, Any]:
    return blade_runs.first_batch(trainer) if trainer.method == "blade" else next(iter(trainer.get_train_dataloader()))


def test_lists_are_as_probable_to_the_policy_in_training_as_when_they_were_drawn(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    trainer: BladeTrainer = make("blade", folders, tmp_path)
    inputs = first_batch(trainer)
    prompts = {"input_ids": inputs["prompt_ids"], "attention_mask": inputs["prompt_mask"].long()}
    drawn = sample_item_lists(
        trainer.model, prompts, trainer.trie, num_lists=4, list_length=3, exclude=inputs["history"]
    )
    assert trainer.model.training
    logps = trainer._logps(trainer.model, inputs, drawn.items)
    assert logps.requires_grad
    torch.testing.assert_close(logps.detach(), drawn.logps.sum(-1), atol=1e-4, rtol=1e-4)


def test_before_the_first_step_the_policy_equals_its_reference(folders: dict[str, Path], tmp_path: Path) -> None:
    trainer = make("softmax_dpo", folders, tmp_path, per_device_train_batch_size=24)
    assert preference_runs.first_loss(trainer) == pytest.approx(preference_runs.loss_of_equals(trainer), abs=1e-4)


@pytest.mark.parametrize("name", ["bear", "alro"])
def test_supervised_training_keeps_its_dropout_and_ranks_without(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """A supervised trainer trains with the model's own dropout, as `SFTTrainer` does, and ranks without dropout."""
    trainer = make(name, folders, tmp_path)
    split = load(folders[name] / "data").validation
    ranked = [trainer.rank(split)[0] for _ in range(2)]
    np.testing.assert_array_equal(*ranked)
    assert trainer.model.training

    batch = first_batch(trainer)
    losses = [trainer.compute_loss(trainer.model, dict(batch)).item() for _ in range(2)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("name", MAKERS)
def test_every_method_trains_opt(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    trainer = make(name, folders, tmp_path, max_steps=2)
    before = {key: weight.clone() for key, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {key for key, weight in trainer.model.named_parameters() if not torch.equal(weight, before[key])}
    assert any("fc1" in key for key in moved)
    assert any("embed_tokens" in key for key in moved)
