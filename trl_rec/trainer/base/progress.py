"""Prints only the most important metrics of each evaluation. Transformers would print all of them, often about thirty.

All metrics are still in `eval.jsonl`, in the log of the trainer and in the trackers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


if TYPE_CHECKING:
    from trl_rec.trainer.base.config import RecConfig

# Metrics that are printed if an evaluation has them. K is the largest of `eval_ks`.
SHOWN = ("ndcg@K", "recall@K", "graded_ndcg@K", "reward")
# Metrics that are printed for an evaluation without those in `SHOWN`. An evaluation on preferences among texts is an
# example.
OTHERWISE = ("loss", "rewards/accuracies")


def shorten_evaluations(trainer: Trainer) -> None:
    """Replaces the callback that prints the trainer's logs by one that prints short lines for evaluations."""
    for usual, short in ((ProgressCallback, ShortProgress), (PrinterCallback, ShortPrinter)):
        if any(type(one) is usual for one in trainer.callback_handler.callbacks):
            trainer.remove_callback(usual)
            trainer.add_callback(short)


def short_evaluation(logs: Mapping[str, float], args: RecConfig) -> dict[str, float]:
    """Returns the entries of a log that are printed.

    If the log is that of an evaluation, these are the metrics in `SHOWN` (or `OTHERWISE`), the metric that
    `metric_for_best_model` names, and the epoch. Otherwise, all entries are printed.

    Args:
        logs: The entries of the log by name.
        args: The configuration of the trainer.
    """
    if not any(name.startswith("eval_") for name in logs):
        return dict(logs)

    shown = [name.replace("K", str(max(args.eval_ks))) for name in SHOWN]
    if not any(_is(name, shown) for name in logs):
        shown = list(OTHERWISE)
    best = args.metric_for_best_model
    if best is not None:
        shown.append(str(best).removeprefix("eval_"))
    return {name: value for name, value in logs.items() if name == "epoch" or _is(name, shown)}


def _is(name: str, metrics: list[str]) -> bool:
    """Returns whether a name consists of `eval_` or `eval_DATASET_` and one of the metrics."""
    return name.startswith("eval_") and any(name.endswith(f"_{metric}") for metric in metrics)


class _ShortLines(TrainerCallback):
    """Passes shortened logs of evaluations on to the callback that prints logs."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Prints the log."""
        short = short_evaluation(logs or {}, cast("RecConfig", args))
        super().on_log(args, state, control, logs=short, **kwargs)


class ShortProgress(_ShortLines, ProgressCallback):
    """The progress bar of Transformers, with short lines for evaluations."""


class ShortPrinter(_ShortLines, PrinterCallback):
    """The callback that prints logs if `disable_tqdm` is set, with short lines for evaluations."""
