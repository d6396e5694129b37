"""Makes small ALRO runs, in the process of a test or in other processes. `make_folder` writes a rated dataset and a
model into a folder. `make_trainer` and `run` take this folder as their argument `folder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import disable_progress_bars

from tests.trainer.runs import QUIET, conclude, losses
from trl_rec import AlroConfig, AlroTrainer, RecDataset, load, prepare
from trl_rec.decoding import rated_tokens
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.trainer import rating_values


disable_progress_bars()

DEFAULTS = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.5, "lr_scheduler_type": "constant"}
# Plain SGD, because Adam would take a full step for a gradient that is 0 except for rounding.
DEFAULTS |= {"optim": "sgd", "max_length": 96, "save_strategy": "no", "activation_checkpointing": False, **QUIET}
DEFAULTS |= {"overwrite": True}  # several runs of a test share a folder
DEFAULTS |= {"num_candidates": 4, "lambda_weight": 10.0, "eval_ks": [1, 4]}
PASSED_ON = ("peft_config", "callbacks", "eval_dataset", "quantization_config", "data_collator", "compute_metrics")
PASSED_ON += ("preprocess_logits_for_metrics", "compute_loss_func", "formatting_func")


def make_folder(folder: Path, surface: str = "semantic_id") -> RecDataset:
    """Saves a rated toy dataset and a model without dropout. With the default surface, an item takes two tokens, so
    the model's answers name candidates by letters."""
    dataset = prepare("toy", folder / "data", toy_users=24, toy_items=60, split="leave_last", num_held_out=4)
    codes = [[f"<a_{item // 8}>", f"<b_{item % 8}>"] for item in range(60)]
    catalog = dataset.catalog.with_surface(surface, Ragged.from_lists(codes, object))
    catalog.save(folder / "data" / "catalog")
    tokenizer = make_tokenizer(catalog)
    tokenizer.add_tokens(rated_tokens(catalog, rating_values(dataset.train)))
    tokenizer.save_pretrained(folder / "model")
    make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=256).save_pretrained(folder / "model")
    return load(folder / "data")


def make_trainer(folder: Path, output: Path, **options: Any) -> AlroTrainer:
    """Makes a trainer for the data of the folder. `options` are fields of `AlroConfig` or arguments of the trainer."""
    model = options.pop("model", None) or load_model(folder / "model")
    dataset, tokenizer = load(folder / "data"), load_tokenizer(folder / "model")
    rows = options.pop("train_dataset", dataset.train)
    extra = {name: options.pop(name) for name in PASSED_ON if name in options}
    config = AlroConfig(str(output), **{**DEFAULTS, **options})
    return AlroTrainer(model, config, train_dataset=rows, processing_class=tokenizer, catalog=dataset.catalog, **extra)


def first_batch(trainer: AlroTrainer) -> dict[str, Any]:
    """Returns the inputs of the first step."""
    trainer.model.train()
    return next(iter(trainer.get_train_dataloader()))


def run(folder: Path, options: dict[str, Any], output: Path) -> None:
    """Trains, ranks and measures. Every process of the run calls this function. Saves the weights in `output`, and the
    measurements in `OUTPUT/run.pt`."""
    trainer = make_trainer(folder, output, **options)
    trainer.train()
    split = load(folder / "data").validation
    metrics, ranked = trainer.rank_and_measure(split), trainer.rank(split)
    trainer.save_model(output)
    told = {"losses": losses(trainer), "ndcg": metrics["graded_ndcg@4"], "places": np.asarray(ranked.places).tolist()}
    told["soft_lambda"] = [entry["alro/soft_lambda"] for entry in trainer.state.log_history if "loss" in entry]
    conclude(trainer, output, **told)
