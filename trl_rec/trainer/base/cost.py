"""Prints, at the start of a run, how long training and the final evaluation will take.

The time per user is measured before the first step, by ranking items for a few users. The time per batch is measured
in the first steps. Neither measurement changes the trained weights. A long final evaluation is announced before the
first step, because the first steps may take minutes.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trl_rec.data.dataset import RecDataset, at_most
from trl_rec.evaluation.cost import SHORT, say
from trl_rec.evaluation.results import held_out
from trl_rec.printing import in_words
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
from trl_rec.trainer.base.prior import seconds_to_choose
from trl_rec.trainer.base.prior_config import wants_prior
from trl_rec.trainer.base.reporting import REMEDY, final_rows
from trl_rec.trainer.base.trainer import RecTrainerMixin, SecondsPerUser


if TYPE_CHECKING:
    from trl_rec.trainer.base.config import RecConfig

FEW = 2.0  # seconds of training, without the first batch, that are enough for an estimate
LONG = 10.0  # seconds of training, including the first batch, that are enough for an estimate
FORWARD = 1 / 3  # time of a forward pass, as a share of the training time of the same batch


def announce_cost(trainer: RecTrainerMixin, dataset: RecDataset) -> None:
    """Adds a callback that prints how long training and the final evaluation will take.

    Nothing is printed if training and the final evaluation together take only a short time.

    Args:
        trainer: A trainer whose `train` has not been called.
        dataset: The dataset that is passed to [`conclude`] after training.
    """
    trainer.add_callback(CostEstimate(trainer, dataset))


class CostEstimate(TrainerCallback):
    """Callback that measures the time per user and per batch, and prints how long the run will take.

    Args:
        trainer ([`RecTrainerMixin`]): The trainer.
        dataset (`RecDataset`): The dataset of the final evaluation.
    """

    def __init__(self, trainer: RecTrainerMixin, dataset: RecDataset) -> None:
        self._trainer = trainer
        self._dataset = dataset

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Ranks items for a few users, and announces the final evaluation if it will take long."""
        self._said = False
        self._batches: list[float] = []  # seconds of each batch
        self._per_user: SecondsPerUser | None = None
        self._choice_seconds = 0.0
        config: RecConfig = self._trainer.args
        if self._trainer.is_fsdp_enabled or not self._trainer.ranks_splits:
            return
        if isinstance(self._trainer, CatalogRankingMixin):
            with self._trainer.policy() as policy:
                self._choice_seconds = seconds_to_choose(policy, self._dataset, config)
        if config.final_split != "none":
            self._per_user = self._trainer.seconds_per_user(self._final_rows())
            if self._is_long():
                say(f"{self._final_in_words()}; {REMEDY}")
        elif self._trainer.ranked_splits:
            self._per_user = self._trainer.seconds_per_user(self._trainer.ranked_splits[0])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Stores the time at which the first batch of the step starts."""
        self._start = time.perf_counter()

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Records the time of a batch that is not the last one of its step. Without gradient accumulation, there is
        only one batch per step, so this method is never called."""
        self._count(args, state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Records the time of the last batch of a step."""
        self._count(args, state)

    def _count(self, args: TrainingArguments, state: TrainerState) -> None:
        """Records the time of a batch. Once enough time has been recorded, prints how long the run will take."""
        # 1. Record the time.
        if self._said:
            return
        now = time.perf_counter()
        self._batches.append(now - self._start)
        self._start = now

        # 2. Estimate the time per batch, without the first batch if possible. The first batch takes longer than
        # others, because memory is allocated and kernels are loaded.
        later = self._batches[1:]
        if sum(later) < FEW and sum(self._batches) < LONG:
            return
        self._said = True
        seconds = sum(later) / len(later) if later else self._batches[0]
        training = self._training_seconds(args, state, seconds)
        final = self._final_seconds() + self._choice_seconds

        # 3. Announce the estimate. A long final evaluation has already been announced.
        if training + final >= 2 * SHORT:
            limit = "about" if self._trainer.args.early_stopping_patience is None else "at most"
            rest = "" if self._is_long() else f"; {self._final_in_words()}"
            say(f"training: {limit} {in_words(training)}{rest}")

    def _training_seconds(self, args: TrainingArguments, state: TrainerState, per_batch: float) -> float:
        """Estimates the time of all remaining steps and of the evaluations between them."""
        num_steps = state.max_steps - state.global_step
        steps = num_steps * args.gradient_accumulation_steps * per_batch

        # Each evaluation ranks items for users. With some trainers (those with `measures_loss_on_splits`), it also
        # computes the loss of the users' rows.
        num_users = sum(len(at_most(self._trainer.args.max_users, split)) for split in self._trainer.ranked_splits)
        ranking = 0.0 if self._per_user is None else num_users * self._per_user.during_training
        num_rows = num_users if self._trainer.measures_loss_on_splits else 0
        rows_per_batch = args.per_device_train_batch_size * args.world_size
        loss = num_rows / rows_per_batch * FORWARD * per_batch
        seconds: float = steps + num_evaluations(args, state) * (ranking + loss)
        return seconds

    def _final_seconds(self) -> float:
        """Estimates the time of the final evaluation; 0 if there is none."""
        if self._per_user is None or self._trainer.args.final_split == "none":
            return 0.0
        # With a prior, items are ranked twice: by the model, and by the product of the model and the prior.
        num_rankings = 2 if wants_prior(self._trainer.args) else 1
        return num_rankings * len(self._final_rows()) * self._per_user.final

    def _is_long(self) -> bool:
        """Returns whether the final evaluation takes so long that it is announced before the first step."""
        config: RecConfig = self._trainer.args
        return config.final_split != "none" and self._final_seconds() + self._choice_seconds >= SHORT

    def _final_in_words(self) -> str:
        """Describes the final evaluation and its time."""
        config: RecConfig = self._trainer.args
        if self._trainer.is_fsdp_enabled or config.final_split == "none":
            return "no final evaluation"
        prior = f", and {in_words(self._choice_seconds)} for choosing the prior" if self._choice_seconds >= 1 else ""
        users = f"{len(self._final_rows()):,} users of the {config.final_split} split"
        return f"final evaluation: {users}, about {in_words(self._final_seconds())}{prior}"

    def _final_rows(self) -> Dataset:
        """Returns the rows of `final_split` that the final evaluation uses."""
        config: RecConfig = self._trainer.args
        return held_out(final_rows(self._dataset, config), config.final_split)


def num_evaluations(args: TrainingArguments, state: TrainerState) -> int:
    """Returns the number of evaluations in the remaining steps."""
    if args.eval_strategy == "steps":
        return state.max_steps // state.eval_steps - state.global_step // state.eval_steps
    if args.eval_strategy == "epoch":
        return state.num_train_epochs - int(state.epoch or 0)
    return 0
