"""Stops training early. Unlike that of transformers, the callback continues to count when a run is resumed."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments


class EarlyStopping(EarlyStoppingCallback):
    """Stops training after a number of successive evaluations that do not improve `metric_for_best_model`.

    A checkpoint contains the count. `Trainer` only restores it with `restore_callback_states_from_checkpoint`, which
    would also replace the patience by that of the checkpoint.

    Args:
        early_stopping_patience (`int`): Number of evaluations.
        early_stopping_threshold (`float`, *optional*, defaults to `0.0`): A smaller improvement counts as none.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Restores the count of a resumed run. If this run had already been stopped, no further step is trained."""
        super().on_train_begin(args, state, control, **others)  # type: ignore[no-untyped-call]
        self.early_stopping_patience_counter = 0
        states: Any = state.stateful_callbacks
        saved = states.get(type(self).__name__)
        if state.global_step and isinstance(saved, dict):
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


def check_metric(args: Any) -> None:
    """Raises `ValueError` if early stopping has no metric to look at."""
    if args.early_stopping_patience is not None and args.metric_for_best_model is None:
        raise ValueError(
            "early_stopping_patience counts evaluations that do not improve metric_for_best_model, which is not set; "
            f"set it, for example to eval_ndcg@{max(args.eval_ks)}"
        )
