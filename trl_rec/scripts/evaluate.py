"""`trl-rec evaluate`: evaluates the baselines and, if given, a model or a file of lists on the same rows of a split.

Under `accelerate launch -m trl_rec.scripts.evaluate`, the users are divided among the processes.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field

from accelerate import PartialState

from trl_rec.data import RecDataset, load
from trl_rec.evaluation import (
    EvaluationConfig,
    beam_gap_table,
    closing_verdict,
    evaluate_with_baselines,
    evaluation_settings,
    metrics_table,
    read_evaluation,
    slices_table,
    write_results,
)
from trl_rec.evaluation.graded.saved_ranker import evaluate_ranker, is_ranker
from trl_rec.evaluation.prior_choice import PriorChoice, check_choice, choice_table, keep_choice, read_choice
from trl_rec.evaluation.results import SEQUENCE
from trl_rec.evaluation.saved_model.prior import kind_and_strength
from trl_rec.files import clean_up, exclusive
from trl_rec.schedule import SequenceBaseline
from trl_rec.scripts.options.parsing import parse, show_progress
from trl_rec.scripts.running import run
from trl_rec.trainer import orders_table
from trl_rec.trainer.base.processes import join_processes, on_main_process


@dataclass
class EvaluateArguments:
    """Arguments for the dataset folder, the output folder and what to print."""

    dataset: str = field(metadata={"help": "dataset folder, made by trl-rec prepare"})
    output_dir: str = field(metadata={"help": "folder for the results"})
    slices: bool = field(
        default=False,
        metadata={
            "help": "also print NDCG for slices of the users: by the target's frequency in the training split, by "
            "history length, and by the target's group, such as a genre"
        },
    )


KINDS = (EvaluateArguments, EvaluationConfig)


def main(argv: list[str]) -> None:
    """Evaluates the baselines and, if given, a model or lists; prints tables; and writes the results."""
    # 1. Read the arguments, and find out what kind of model is evaluated.
    arguments, config = parse(KINDS, argv, "evaluate")
    join_processes()
    if is_ranker(config.model):
        evaluate = _order_candidates
    else:
        evaluate = _rank_catalog
        config = evaluation_settings(config)
    dataset = load(arguments.dataset)

    def lock() -> None:
        """Locks the output folder, and removes unfinished files that a killed process has left there."""
        held.enter_context(exclusive(arguments.output_dir))
        clean_up(arguments.output_dir)

    # 2. Evaluate.
    with ExitStack() as held:
        on_main_process(lock)
        table, metric = evaluate(dataset, config, arguments.output_dir)

    # 3. Print.
    if PartialState().is_main_process:
        print(table)
        if arguments.slices:
            print(f"\n{slices_table(read_evaluation(arguments.output_dir), metric)}")
        print(f"\nmetrics.json, the ranked items and the values per user are in {arguments.output_dir}")


def _rank_catalog(dataset: RecDataset, config: EvaluationConfig, output: str) -> tuple[str, str]:
    """Evaluates recommendations from the whole catalogue, and writes the results.

    Returns the text to print, and the metric to show by slice.
    """
    # 1. Check the prior before the model is loaded. If the output folder already records the prior of an evaluation on
    # the test split, any other prior is refused.
    prior = kind_and_strength(config)
    if prior is not None:
        on_main_process(lambda: check_choice(output, *prior))

    def keep(choice: PriorChoice) -> None:
        """Writes and prints the choice of a prior, before the prior is evaluated on `config.split`."""
        on_main_process(lambda: keep_choice(output, choice, config.split))
        if PartialState().is_main_process:
            print(f"{choice_table(choice)}\n")

    # 2. Evaluate, and write the results.
    if SEQUENCE in config.baselines:
        show_progress()  # training the baseline takes minutes
    sequence = SequenceBaseline(config.seed, exclude_history=config.exclude_history)
    results = evaluate_with_baselines(
        dataset, config, keep=keep, recorded=read_choice(output), sequence=sequence.fit, output=output
    )
    if PartialState().is_main_process:
        write_results(output, results, dataset, config)

    # 3. Make the tables.
    history = "excluded" if config.exclude_history else "not excluded"
    tables = [metrics_table(results, caption=f"{dataset.path}, {config.split} split, history {history}")]
    tables += [beam_gap_table(one.beam_gap) for one in results.values() if one.beam_gap is not None]
    return "\n\n".join([*tables, closing_verdict(results)]), f"ndcg@{max(config.ks)}"


def _order_candidates(dataset: RecDataset, config: EvaluationConfig, output: str) -> tuple[str, str]:
    """Evaluates a model that orders rated candidates, and writes the results.

    Like [`_rank_catalog`], returns the text to print, and the metric to show by slice.
    """
    results = evaluate_ranker(dataset, config, output)
    count = int(next(iter(results.values())).metrics["num_users"])
    caption = f"{dataset.path}, {config.split} split, rated items of {count} users"
    return orders_table(results, caption=caption), f"graded_ndcg@{max(config.ks)}"


if __name__ == "__main__":
    run("evaluate", main, sys.argv[1:])
