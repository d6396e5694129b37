"""Trains small BEAR models for tests, in the test's own process or in separate ones. The argument `folder` is a
folder with the dataset and the model that `make_folder` writes."""

from __future__ import annotations

import os


os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from tests.processes import Work, run_alone, run_in_two
from trl_rec import BearConfig, BearTrainer, RecDataset, load, prepare
from trl_rec.compat import knows_activation_checkpointing
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.ragged import Ragged


Trained = tuple[dict[str, Any], dict[str, torch.Tensor]]  # what was measured, and the weights
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
PASSED_ON = ("peft_config", "callbacks", "train_dataset", "eval_dataset", "data_collator", "compute_metrics")
PASSED_ON += ("preprocess_logits_for_metrics", "compute_loss_func", "formatting_func")


def with_known_names(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options. With a transformers release older than 5.23, `activation_checkpointing` gets its old name,
    `gradient_checkpointing`."""
    if knows_activation_checkpointing():
        return options
    return {name.replace("activation_checkpointing", "gradient_checkpointing"): options[name] for name in options}


def make_folder(folder: Path) -> RecDataset:
    """Saves a toy dataset and a model without dropout. A semantic ID has three tokens. Often, the first two tokens
    determine the third."""
    dataset = prepare("toy", folder / "data", toy_users=24, toy_items=60)
    codes = np.random.default_rng(0).integers(0, 7, (60, 2))
    ids = [[f"<a_{a}>", f"<b_{b}>", f"<c_{item}>"] for item, (a, b) in enumerate(codes.tolist())]
    catalog = dataset.catalog.with_surface("semantic_id", Ragged.from_lists(ids, object))
    catalog.save(folder / "data" / "catalog")
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained(folder / "model")
    make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=256).save_pretrained(folder / "model")
    return load(folder / "data")


def make_trainer(folder: Path, output: Path, **options: Any) -> BearTrainer:
    """Makes a trainer for the data of the folder. `options` are fields of `BearConfig`, arguments of the trainer, or
    `padding_side` for the tokenizer."""
    model = options.pop("model", None) or load_model(folder / "model")
    dataset, tokenizer = load(folder / "data"), load_tokenizer(folder / "model")
    tokenizer.padding_side = options.pop("padding_side", "left")
    extra = {name: options.pop(name) for name in PASSED_ON if name in options}
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
    }
    defaults["optim"] = "sgd"  # Adam would take a full step for a gradient that is 0 except for rounding
    defaults |= {"max_length": 96, "save_strategy": "no", "activation_checkpointing": False, "overwrite": True}
    config = BearConfig(str(output), **{**QUIET, **defaults, **options})
    extra.setdefault("train_dataset", dataset.train)
    return BearTrainer(model, config, processing_class=tokenizer, catalog=dataset.catalog, **extra)


def conclude(trainer: Any, output: Path, **told: Any) -> None:
    """Writes the measurements of a run, and the way it was launched, to `OUTPUT/run.pt`. Then waits for all
    processes, and calls `trainer.end()`."""
    state = trainer.accelerator.state
    zero, others = state.deepspeed_plugin, {DistributedType.NO: "alone", DistributedType.MULTI_CPU: "ddp"}
    told["ran_under"] = others[state.distributed_type] if zero is None else f"zero{zero.zero_stage}"
    if trainer.is_world_process_zero():
        torch.save(told, output / "run.pt")
    trainer.accelerator.wait_for_everyone()  # a process may abort if it ends while another one writes
    trainer.end()


def trained(name: str, train: Work, output: Path) -> Trained:
    """Trains, and returns the measurements and the weights. If `name` is "alone", one process trains. Otherwise, two
    processes train with the accelerate recipe `name`."""
    run_alone(train, output) if name == "alone" else run_in_two(name, train, output)
    told, weights = torch.load(output / "run.pt"), output / "adapter_model.safetensors"
    assert told["ran_under"] == name
    return told, load_file(weights if weights.is_file() else output / "model.safetensors")


def assert_same(two: Trained, one: Trained, figures: tuple[str, ...]) -> None:
    """Asserts that the given figures and all weights are equal, except for rounding."""
    for name in figures:
        assert two[0][name] == pytest.approx(one[0][name], abs=1e-5), name
    for key, tensor in one[1].items():  # with ZeRO-3, `two` also contains the tied output embedding
        assert torch.allclose(tensor, two[1][key], atol=1e-5), key


def losses(trainer: BearTrainer) -> list[float]:
    """Returns the logged training losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def run(folder: Path, options: dict[str, Any], output: Path) -> None:
    """Trains, ranks and measures. Every process of the run calls this function. Saves the weights in `output`, and the
    measurements in `OUTPUT/run.pt`."""
    trainer = make_trainer(folder, output, **options)
    trainer.train(trainer.args.resume_from_checkpoint)
    metrics = trainer.rank_and_measure(load(folder / "data").validation)
    trainer.save_model(output)
    conclude(trainer, output, losses=losses(trainer), ndcg=metrics[f"ndcg@{max(trainer.args.eval_ks)}"])
