"""Trains small BEAR models on several tasks at once, in the test's own process or in separate ones. `make_folder`
writes a dataset and a model into a folder. The other functions take this folder as their argument `folder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import disable_progress_bars

from tests.trainer import runs
from tests.trainer.runs import QUIET, conclude, losses
from trl_rec import BearConfig, BearTrainer, RecDataset, load
from trl_rec.data import task_texts
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.trainer import build_training_rows


disable_progress_bars()

TASKS = {"next_item": 1.0, "item_to_id": 0.5, "id_to_item": 0.5, "history_to_title": 0.5, "titles_to_id": 0.5}
TASKS |= {"profile_to_user": 0.5, "user_to_profile": 0.5, "query_to_item": 0.5, "history_to_preference": 0.5}
DEFAULTS: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.1, "targets": "all"}
DEFAULTS |= {"lr_scheduler_type": "constant", "optim": "sgd", "max_length": 128, "save_strategy": "no"}
DEFAULTS |= {"activation_checkpointing": False, "prompt_head": "{user}", "tasks": TASKS, "task_history": 5, **QUIET}
DEFAULTS |= {"overwrite": True}  # several runs of a test share a folder
PASSED_ON = ("peft_config", "callbacks", "eval_dataset")


def make_folder(folder: Path) -> RecDataset:
    """Saves the data of `runs.make_folder`, and adds semantic IDs of users. Also saves a tokenizer that knows the
    words of the tasks, and a model without dropout for this tokenizer."""
    catalog = runs.make_folder(folder).catalog
    users = [[f"<ua_{user % 5}>", f"<ub_{user}>"] for user in range(24)]
    catalog = catalog.with_surface("semantic_id", user_ids=Ragged.from_lists(users, object))
    catalog.save(folder / "data" / "catalog")
    dataset = load(folder / "data")
    tokenizer = make_tokenizer(catalog, task_texts(dataset))
    tokenizer.save_pretrained(folder / "model")
    make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=256).save_pretrained(folder / "model")
    return dataset


def make_trainer(folder: Path, output: Path, **options: Any) -> BearTrainer:
    """Makes a trainer for the data of the folder. `options` are fields of `BearConfig` or arguments of the trainer."""
    dataset, tokenizer = load(folder / "data"), load_tokenizer(folder / "model")
    extra = {name: options.pop(name) for name in PASSED_ON if name in options}
    rows, model = (options.pop(name, None) for name in ("train_dataset", "model"))
    config = BearConfig(str(output), **{**DEFAULTS, **options})
    rows = build_training_rows(dataset, tokenizer, config) if rows is None else rows
    common = {"train_dataset": rows, "processing_class": tokenizer, "catalog": dataset.catalog, **extra}
    return BearTrainer(model or load_model(folder / "model"), config, **common)


def run(folder: Path, options: dict[str, Any], output: Path) -> None:
    """Trains, ranks and measures. Every process of the run calls this function. Saves the weights in the folder
    `output`, and the measurements in its file `run.pt`."""
    trainer = make_trainer(folder, output, **options)
    trainer.train()
    metrics = trainer.rank_and_measure(load(folder / "data").validation)
    trainer.save_model(output)
    told: dict[str, Any] = {"losses": losses(trainer), "ndcg": metrics[f"ndcg@{max(trainer.args.eval_ks)}"]}
    told["tasks"] = [{name: entry[name] for name in entry if "task/" in name} for entry in trainer.state.log_history]
    conclude(trainer, output, **told)
