"""Trains the baseline `sequence`, a small model with one token per item, in its folder in the cache.

If the process is killed, the next call resumes from the newest checkpoint. After a few seconds of training, the
estimated remaining time is logged.
"""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_rec.compat import reset_accelerator_state
from trl_rec.data.dataset import RecDataset, split_rows
from trl_rec.models import RecModelConfig
from trl_rec.printing import in_words
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.base.saving.checkpoints import MARK, checkpoints, write_mark
from trl_rec.trainer.base.saving.output import NotWrittenError, find_start, remove_work
from trl_rec.trainer.bear.building import build_bear_trainer
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.trainer import BearTrainer


logger = logging.getLogger(__name__)
METRIC = "eval_ndcg@10"  # the saved model is the checkpoint with the highest value
RESUMES = "the same command continues from the newest checkpoint"
SAMPLE_SECONDS = 5.0  # after this training time, the remaining time is estimated


def train_sequence(folder: Path, dataset: RecDataset, recipe: dict[str, Any]) -> None:
    """Trains the model in a folder, from the newest checkpoint if there is one, and marks the training as complete."""
    # 1. Remove the file `MARK` if a damaged model has left one. This file says that the training is complete.
    start = time.monotonic()
    (folder / MARK).unlink(missing_ok=True)

    # 2. Train, and save the model. If the checkpoints are damaged or were written by other versions of the
    # dependencies, training starts from scratch. The user does not have to act.
    trainer = _build_trainer(folder, dataset, recipe)
    trainer.describe_run()
    try:
        find_start(folder, True, overwrite=False, run=trainer.fingerprint, launch=trainer.launch)
    except ValueError as error:
        logger.warning("baseline sequence: training starts from scratch, because %s", str(error).split(";")[0])
        remove_work(folder)
    try:
        trainer.train(resume_from_checkpoint=True)
        save_run(trainer, {"dataset": str(dataset.path), **{name: recipe[name] for name in _model_keys(recipe)}})
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"interrupted while training the baseline 'sequence'; {RESUMES}") from interrupt
    except NotWrittenError as error:
        raise OSError(
            f"the baseline 'sequence' could not be written to {folder} ({error.__cause__}); free some space, or set "
            f"XDG_CACHE_HOME to another folder; {RESUMES} if there is one"
        ) from error

    # 3. Mark the model as complete, and delete the checkpoints, which were needed only to resume.
    run = {METRIC: trainer.state.best_metric, "step": trainer.state.best_global_step}
    write_mark(folder, run, trainer.launch)
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)
    time_taken = in_words(time.monotonic() - start)
    logger.info("baseline sequence: training took %s (%s); the model is in %s", time_taken, describe(run), folder)
    trainer.accelerator.free_memory()
    del trainer
    gc.collect()  # reference cycles would keep the optimizer's tensors in memory


def _build_trainer(folder: Path, dataset: RecDataset, recipe: dict[str, Any]) -> BearTrainer:
    """Returns a trainer that logs its progress in a few lines."""
    reset_accelerator_state()  # an earlier trainer in this process may have left the state of its Accelerator
    of_model = {name: recipe[name] for name in _model_keys(recipe)}
    of_training = {name: value for name, value in recipe.items() if name not in of_model}
    config = BearConfig(str(folder), **of_training)
    trainer = build_bear_trainer(dataset, config, RecModelConfig(**of_model))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Progress(trainer))
    return trainer


def _model_keys(recipe: dict[str, Any]) -> list[str]:
    """Returns the keys of the recipe that describe the model."""
    of_model = {field.name for field in fields(RecModelConfig)}
    return [name for name in recipe if name in of_model]


def describe(run: Mapping[str, Any]) -> str:
    """Returns a description of the checkpoint that was saved as the model.

    `run` contains the metric and the step of this checkpoint, as in the file `MARK` of the model's folder.
    """
    return f"validation NDCG@10 {run[METRIC]:.4f} at step {run['step']:,}"


class _Progress(TrainerCallback):
    """Logs how long the rest of training will take: once after a few seconds, and with the metric of each
    checkpoint.

    The first steps of an epoch have the longest rows, so their mean time is longer than that of all steps. Therefore,
    the first estimate assumes that the time of a step is proportional to its number of tokens.
    """

    def __init__(self, trainer: BearTrainer) -> None:
        self.trainer = trainer
        self.is_estimated = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Logs the numbers of the first and the last step, and the maximum number of items of a row."""
        self.start_time = time.monotonic()
        self.start_step = state.global_step
        self.trainer.read_metrics()
        self.start_tokens = self.trainer._total_train_tokens
        logger.info(
            "baseline sequence: training from step %s to %s, on rows of up to %d items",
            f"{state.global_step:,}",
            f"{state.max_steps:,}",
            (self.trainer.args.max_length or 0) - 1,  # without BOS
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Logs the first estimate when `SAMPLE_SECONDS` have passed."""
        seconds = time.monotonic() - self.start_time
        if self.is_estimated or seconds < SAMPLE_SECONDS:
            return
        self.is_estimated = True
        self.trainer.read_metrics()
        tokens = self.trainer._total_train_tokens - self.start_tokens
        lengths = split_rows(self.trainer.train_dataset, "input_ids").lengths
        tokens_per_step = lengths.mean() * args.per_device_train_batch_size
        left = (state.max_steps - state.global_step) * tokens_per_step * seconds / tokens
        logger.info("baseline sequence: the rest of training will take about %s", in_words(left))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Logs the metric of the checkpoint, and the remaining time, estimated from the mean time of the steps."""
        seconds = (time.monotonic() - self.start_time) / max(1, state.global_step - self.start_step)
        logger.info(
            "baseline sequence: step %s of %s, validation NDCG@10 %.4f, about %s left",
            f"{state.global_step:,}",
            f"{state.max_steps:,}",
            others["metrics"][METRIC],
            in_words(seconds * (state.max_steps - state.global_step)),
        )
