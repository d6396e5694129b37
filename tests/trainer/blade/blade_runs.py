"""Makes small BLADE runs, in the process of a test or in other processes. `folder` contains the files that
`tests.trainer.runs.make_folder` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from peft import LoraConfig

from tests.trainer.runs import QUIET, conclude
from trl_rec import load
from trl_rec.models import load_model, load_tokenizer
from trl_rec.trainer import BladeConfig, BladeTrainer
from trl_rec.trainer.blade import reference_lists
from trl_rec.trainer.blade.rollouts import Rollouts


disable_progress_bars()

NUM_PROMPTS = 24
# Plain SGD, because Adam would take a full step for a gradient that is 0 except for rounding.
DEFAULTS = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.1, "lr_scheduler_type": "constant"}
DEFAULTS |= {"optim": "sgd", "max_length": 96, "save_strategy": "no", "activation_checkpointing": False, **QUIET}
DEFAULTS |= {"overwrite": True}  # several runs of a test share a folder
DEFAULTS |= {"list_length": 3, "eval_ks": [3], "max_prompts": NUM_PROMPTS, "num_references": 8}
PASSED_ON = ("peft_config", "callbacks", "eval_dataset", "quantization_config", "data_collator", "compute_metrics")
PASSED_ON += ("reward_functions",)
ADAPTER = LoraConfig(r=4, target_modules="all-linear")


def make_trainer(folder: Path, output: Path, **options: Any) -> BladeTrainer:
    """Makes a trainer for the dataset of the folder. `options` are fields of `BladeConfig` or arguments of the
    trainer. With `ref_model="loaded"`, the reference is loaded from the folder."""
    dataset = load(folder / "data")
    model, ref_model, rows = (options.pop(name, None) for name in ("model", "ref_model", "train_dataset"))
    tokenizer = options.pop("processing_class", None) or load_tokenizer(folder / "model")
    catalog = options.pop("catalog", dataset.catalog)
    extra = {name: options.pop(name) for name in PASSED_ON if name in options}
    return BladeTrainer(
        load_model(folder / "model") if model is None else model,
        load_model(folder / "model") if ref_model == "loaded" else ref_model,
        BladeConfig(str(output), **{**DEFAULTS, **options}),
        train_dataset=dataset.train if rows is None else rows,
        processing_class=tokenizer,
        catalog=catalog,
        **extra,
    )


def logged(trainer: BladeTrainer, name: str) -> list[float]:
    """Returns the value that each training step logged under a name. Do not compare losses if each rollout is used in
    only one step, because all losses are then 0 except for rounding."""
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


def first_batch(trainer: BladeTrainer) -> dict[str, Any]:
    """Returns the inputs of the first step, including the reference lists."""
    if trainer.args.num_references:
        trainer.draw_references()
    trainer.model.train()
    return trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))


def drawn(trainer: BladeTrainer, inputs: dict[str, Any]) -> Rollouts:
    """Samples new rollouts for a batch of inputs, as a training step does, and returns them."""
    trainer._drawn_at = -1
    trainer.compute_loss(trainer.model, inputs)
    (rollouts,) = trainer._rollouts.values()
    return rollouts


def other_model(folder: Path) -> Any:
    """Returns a policy that differs from the model of the folder."""
    model = load_model(folder / "model")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def run(folder: Path, options: dict[str, Any], output: Path) -> None:
    """Trains, ranks and measures. Every process of the run calls this function. Saves the weights in `output`, and the
    measurements in `OUTPUT/run.pt`."""
    options = dict(options)
    reference_lists.PART_SIZE = options.pop("part_size", reference_lists.PART_SIZE)
    trainer = make_trainer(folder, output, **options)
    trainer.train()
    metrics = trainer.evaluate(load(folder / "data").validation)
    trainer.save_model(output)
    told = {name: logged(trainer, name) for name in ("reward", "kl", "grad_norm", "blade/clipped")}
    conclude(trainer, output, ndcg=metrics["eval_ndcg@3"], **told)
