"""Prints the two or three measures of an evaluation that matter, instead of a mapping with thirty.

All measures are in `eval.jsonl`, in the log of the trainer and in the trackers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer


# Measures that are printed if an evaluation has them. K is the largest cutoff.
SHOWN = ("ndcg@K", "recall@K", "graded_ndcg@K", "reward")
# Printed for an evaluation with none of these, as that of preferences without items.
OTHERWISE = ("loss", "rewards/accuracies")


def shorten_evaluations(trainer: Trainer) -> None:
    """Makes the trainer's own callback that prints logs print short lines for evaluations."""
    for usual, short in ((ProgressCallback, ShortProgress), (PrinterCallback, ShortPrinter)):
        if any(type(one) is usual for one in trainer.callback_handler.callbacks):
            trainer.remove_callback(usual)
            trainer.add_callback(short)


def short_evaluation(logs: Mapping[str, Any], args: Any) -> dict[str, Any]:
    """Returns the entries of a log to print: all of them, unless they are the measures of an evaluation.

    Of an evaluation, these are the measures in `SHOWN`, the one that `metric_for_best_model` names, and the epoch.

    Args:
        logs: The entries by name.
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


def _is(name: str, measures: list[str]) -> bool:
    """Returns whether a name is one of the measures, after `eval_` or `eval_DATASET_`."""
    return name.startswith("eval_") and any(name.endswith(f"_{measure}") for measure in measures)


class ShortProgress(ProgressCallback):
    """The progress bar of Transformers, with short lines for evaluations."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Prints the log."""
        super().on_log(args, state, control, short_evaluation(logs or {}, args), **kwargs)  # type: ignore[no-untyped-call]


class ShortPrinter(PrinterCallback):
    """The printer of Transformers (with `disable_tqdm`), with short lines for evaluations."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Prints the log."""
        super().on_log(args, state, control, short_evaluation(logs or {}, args), **kwargs)  # type: ignore[no-untyped-call]
