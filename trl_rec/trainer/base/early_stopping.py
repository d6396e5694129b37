"""Stops training when a metric no longer improves.

Unlike in transformers, a resumed run continues the count of evaluations without improvement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments


if TYPE_CHECKING:
    from trl_rec.trainer.base.config import RecConfig


class EarlyStopping(EarlyStoppingCallback):
    """Stops training after a number of successive evaluations that do not improve `metric_for_best_model`.

    Checkpoints contain the count of such evaluations. `Trainer` would restore the count only with
    `restore_callback_states_from_checkpoint`, which would also replace the patience by that of the checkpoint.
    Therefore this class restores the count itself.

    Args:
        early_stopping_patience (`int`): Number of successive evaluations without improvement that ends training.
        early_stopping_threshold (`float`, *optional*, defaults to `0.0`): Improvements that are smaller than this are
            ignored.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object
    ) -> None:
        """Restores the count of a resumed run. If the count has reached the patience, no further step is trained."""
        super().on_train_begin(args, state, control, **others)  # type: ignore[no-untyped-call]
        self.early_stopping_patience_counter = 0
        states: Any = state.stateful_callbacks
        saved = states.get(type(self).__name__)
        if state.global_step and isinstance(saved, dict):
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


def check_metric(args: RecConfig) -> None:
    """Raises `ValueError` if early stopping is set without a metric."""
    if args.early_stopping_patience is not None and args.metric_for_best_model is None:
        raise ValueError(
            "early_stopping_patience counts evaluations that do not improve metric_for_best_model, which is not set; "
            f"set it, for example to eval_ndcg@{max(args.eval_ks)}"
        )
