"""Trains small Softmax-DPO models for tests, in the test's own process or in separate ones. In each
function, `folder` contains the dataset and the model that `tests.trainer.runs.make_folder` writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars

from tests.conftest import make_tokenizer
from tests.trainer.runs import QUIET, conclude, losses
from trl_rec import RecDataset, load
from trl_rec.data.dataset import split_rows
from trl_rec.models import load_model, load_tokenizer
from trl_rec.trainer import SoftmaxDPOConfig, SoftmaxDPOTrainer


disable_progress_bars()

# Plain SGD, because Adam would take a step for a gradient that is 0 except for rounding.
DEFAULTS = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
DEFAULTS |= {"optim": "sgd", "max_length": 96, "save_strategy": "no", "activation_checkpointing": False, **QUIET}
PASSED_ON = ("peft_config", "callbacks", "eval_dataset", "quantization_config", "data_collator", "compute_metrics")
SENTENCES = [
    "the cat sat on the mat",
    "a dog ran in the park",
    "blue birds fly over the hill",
    "red pens write on paper",
]
CHAT = "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"
TEXT_TOKENIZER = make_tokenizer(SENTENCES * 4)


def preference_table(dataset: RecDataset, *, most: int = 4, seed: int = 0) -> Dataset:
    """Returns one preference row per row of the training split. `chosen` is the last item of the training row, and
    `rejected` contains 1 to `most` items that are not in that row."""
    draw = np.random.default_rng(seed)
    histories, targets = (split_rows(dataset.train, name) for name in ("history", "targets"))
    rows = []
    for user in range(len(histories)):
        items = [*histories[user].tolist(), *targets[user].tolist()]
        others = np.setdiff1d(np.arange(len(dataset.catalog)), items)
        rejected = draw.choice(others, draw.integers(1, most + 1), replace=False).tolist()
        rows.append({"user": user, "history": items[:-1], "chosen": items[-1], "rejected": rejected})
    return Dataset.from_list(rows)


def text_rows(*, several: bool = True) -> Dataset:
    """Returns eight prompts with a chosen text each. If `several`, each prompt has one to three rejected texts,
    else a single one."""
    rows = []
    for row, sentence in enumerate(SENTENCES * 2):
        words, cut = sentence.split(), 2 + row % 3
        wrong = [" " + other[: 3 + row] for other in SENTENCES[: 1 + row % 3]]
        texts = {"prompt": " ".join(words[:cut]), "chosen": " " + " ".join(words[cut:])}
        rows.append({**texts, "rejected": wrong if several else wrong[0]})
    return Dataset.from_list(rows)


def make_trainer(folder: Path, output: Path, **options: Any) -> SoftmaxDPOTrainer:
    """Makes a trainer for preferences of the folder's users. `options` are fields of `SoftmaxDPOConfig` or arguments
    of the trainer. With `ref_model="loaded"`, the reference is loaded from the folder."""
    dataset = load(folder / "data")
    model, ref_model, rows = (options.pop(name, None) for name in ("model", "ref_model", "train_dataset"))
    tokenizer = options.pop("processing_class", None) or load_tokenizer(folder / "model")
    catalog = options.pop("catalog", dataset.catalog)
    extra = {name: options.pop(name) for name in PASSED_ON if name in options}
    return SoftmaxDPOTrainer(
        load_model(folder / "model") if model is None else model,
        load_model(folder / "model") if ref_model == "loaded" else ref_model,
        SoftmaxDPOConfig(str(output), **{"overwrite": True, **DEFAULTS, **options}),
        train_dataset=preference_table(dataset) if rows is None else rows,
        processing_class=tokenizer,
        catalog=catalog,
        **extra,
    )


def first_loss(trainer: SoftmaxDPOTrainer) -> float:
    """Returns the loss of all training rows before any step. The batch must contain all of them."""
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["prompt_ids"]) == len(trainer.train_dataset)
    return trainer.compute_loss(trainer.model, batch).item()


def loss_of_equals(trainer: SoftmaxDPOTrainer) -> float:
    """Returns the first loss of a policy that equals its reference: the mean of log(1 + number of negatives)."""
    counts = [len(rejected) for rejected in trainer.train_dataset["rejected_ids"]]
    return math.fsum(math.log(1 + count) for count in counts) / len(counts)


def run(folder: Path, options: dict[str, Any], output: Path) -> None:
    """Trains, ranks and measures. Every process of the run calls this function. Saves the weights in `output`, and the
    measurements in `OUTPUT/run.pt`."""
    trainer = make_trainer(folder, output, **options)
    trainer.train()
    metrics = trainer.evaluate(load(folder / "data").validation)
    trainer.save_model(output)
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "loss" in entry]
    conclude(trainer, output, losses=losses(trainer), ndcg=metrics["eval_ndcg@10"], margins=margins)
