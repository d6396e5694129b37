"""`trl-rec evaluate`: evaluates the baselines and a model on the same rows.

Under `accelerate launch -m trl_rec.scripts.evaluate`, the users are divided among the processes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from accelerate import PartialState

from trl_rec.data import RecDataset, load
from trl_rec.evaluation import (
    EvaluationConfig,
    beam_gap_table,
    evaluate_with_baselines,
    evaluation_settings,
    metrics_table,
    write_results,
)
from trl_rec.evaluation.saved_ranker import evaluate_ranker, is_ranker
from trl_rec.scripts.parsing import parse, run
from trl_rec.trainer import orders_table


@dataclass
class EvaluateArguments:
    """Arguments for the dataset folder and the output folder."""

    dataset: str = field(metadata={"help": "dataset folder, made by trl-rec prepare"})
    output_dir: str = field(metadata={"help": "folder for the results"})


KINDS = (EvaluateArguments, EvaluationConfig)


def main(argv: list[str]) -> None:
    """Evaluates the baselines and the model, prints a table, and writes the results."""
    arguments, config = parse(KINDS, argv, "evaluate")
    dataset = load(arguments.dataset)
    if is_ranker(config.model):
        _evaluate_ranker(dataset, config, arguments.output_dir)
        return
    config = evaluation_settings(config)
    results = evaluate_with_baselines(dataset, config)

    if PartialState().is_main_process:
        write_results(arguments.output_dir, results, dataset, config)
        history = "excluded" if config.exclude_history else "not excluded"
        print(metrics_table(results, caption=f"{arguments.dataset}, {config.split} split, history {history}"))
        for evaluation in results.values():
            if evaluation.beam_gap is not None:
                print(f"\n{beam_gap_table(evaluation.beam_gap)}")
        print(f"\nmetrics.json, the ranked items and the values per user are in {arguments.output_dir}")


def _evaluate_ranker(dataset: RecDataset, config: EvaluationConfig, output: str) -> None:
    """Evaluates a model that orders rated candidates, prints a table, and writes the results."""
    results = evaluate_ranker(dataset, config, output)
    if PartialState().is_main_process:
        count = int(next(iter(results.values())).metrics["num_users"])
        print(orders_table(results, caption=f"{dataset.path}: {count} users' rated items of the {config.split} split"))
        print(f"\nmetrics.json and the values per user are in {output}")


if __name__ == "__main__":
    run("evaluate", main, sys.argv[1:])
