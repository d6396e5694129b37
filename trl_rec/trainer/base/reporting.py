"""Ends a run: saves the model, evaluates it and the baselines on a held-out split, and writes the run folder.

The config field `final_split` selects the split. By default, it is the test split. If an evaluation is killed, the
results of the rows that it has finished stay in the run folder. When the run is resumed, the evaluation continues with
the remaining rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trl_rec.data.dataset import RecDataset, at_most, spread
from trl_rec.evaluation import (
    Evaluation,
    closing_verdict,
    evaluate_baselines,
    evaluate_policy,
    evaluate_product,
    metrics_table,
    write_evaluation,
)
from trl_rec.evaluation.cost import say_cost
from trl_rec.evaluation.kept.environment import write_environment
from trl_rec.evaluation.kept.finished_rows import FinishedRows, discard_finished
from trl_rec.evaluation.policy import ranking_passes
from trl_rec.evaluation.results import held_out
from trl_rec.evaluation.rewards import ListReward
from trl_rec.files import write_text
from trl_rec.ragged import Ragged
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
from trl_rec.trainer.base.config import RecConfig
from trl_rec.trainer.base.prior import make_prior
from trl_rec.trainer.base.prior_config import wants_prior
from trl_rec.trainer.base.saving.recipe import write_recipe
from trl_rec.trainer.base.trainer import RecTrainerMixin


logger = logging.getLogger(__name__)
REMEDY = "set max_test_users to shorten it"


class Measured(NamedTuple):
    """The outcome of measuring a model on a held-out split.

    Args:
        results (`dict[str, Evaluation]`): The results of the model and of the baselines, by name.
        table (`str`): The table to print.
        rows, targets (*optional*): The numbers of the measured rows in the split, and the targets of these rows, as in
            [`write_evaluation`].
    """

    results: dict[str, Evaluation]
    table: str
    rows: np.ndarray | None = None
    targets: Ragged | None = None


def conclude(
    trainer: CatalogRankingMixin,
    dataset: RecDataset,
    settings: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any] | None = None,
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
) -> dict[str, Evaluation]:
    """Saves a trained model, evaluates it on the split that `final_split` selects, and writes and prints the results.

    Args:
        trainer: A trainer whose `train` has returned.
        dataset: The dataset that the model was trained on.
        settings: Settings of the run besides the trainer's configuration, for `metrics.json`.
        recipe (*optional*): Keys of `recipe.yaml` besides the trainer's configuration. Defaults to the dataset, its
            surface and `settings`.
        rewards, reward_functions (*optional*): Same as in [`evaluate_split`].

    Returns:
        The results of the baselines and of the model, by name. If there is a prior, the dict also contains the results
        of the prior and of its product with the model. Every process returns the dict. It is empty under FSDP, or if
        `final_split` is `"none"`.
    """
    exclude_history = trainer.args.eval_exclude_history
    options: dict[str, Any] = {
        "split": trainer.args.final_split,
        "ks": trainer.args.eval_ks,
        "recall_at": trainer.args.eval_recall_at,
        "rewards": rewards,
        "reward_functions": reward_functions,
    }

    def complete() -> None:
        """Makes the prior, and stores it in the trainer and in the run folder."""
        trainer.prior = None  # a prior from an earlier call was chosen for other model weights
        with trainer.policy() as policy:
            policy = replace(policy, finished=FinishedRows.of_model(trainer.args.output_dir, policy.model))
            trainer.prior = make_prior(policy, dataset, trainer.args, trainer.args.output_dir)

    def measure() -> Measured:
        """Evaluates the model and the baselines on the split."""
        name = trainer.display_name
        some = final_rows(dataset, trainer.args)
        with trainer.policy() as policy:
            # 1. Print how long the evaluation will take, unless it is short.
            policy = replace(policy, finished=FinishedRows.of_model(trainer.args.output_dir, policy.model))
            rows = held_out(some, trainer.args.final_split)
            passes = ranking_passes(policy, options["ks"], options["recall_at"], len(dataset.catalog))
            num_rankings = 1 if trainer.prior is None else 2
            seconds = num_rankings * len(rows) * sum(policy.seconds_per_user(rows, passes))
            say_cost(len(rows), seconds, name="final evaluation", remedy=REMEDY)

            # 2. Evaluate the model and, if there is a prior, the prior and their product.
            of_model = {name: evaluate_policy(policy, some, **options)}
            if trainer.prior is not None:
                of_model |= evaluate_product(policy, trainer.prior, some, name, **options)
        results = evaluate_baselines(some, exclude_history=exclude_history, **options) | of_model

        # 3. Make the table.
        history = "excluded" if exclude_history else "not excluded"
        caption = f"{dataset.path}, {describe_split(dataset, trainer.args)}, history {history}"
        numbers = spread(trainer.args.max_test_users, len(held_out(dataset, trainer.args.final_split)))
        return Measured(results, metrics_table(results, caption=caption), numbers)

    return conclude_run(
        trainer,
        dataset,
        settings,
        measure,
        recipe=recipe,
        exclude_history=exclude_history,
        instead="run trl-rec evaluate",
        complete=complete if wants_prior(trainer.args) else None,
    )


def conclude_run(
    trainer: RecTrainerMixin,
    dataset: RecDataset,
    settings: Mapping[str, Any],
    measure: Callable[[], Measured],
    *,
    recipe: Mapping[str, Any] | None,
    exclude_history: bool,
    instead: str,
    complete: Callable[[], None] | None = None,
) -> dict[str, Evaluation]:
    """Saves a trained model, evaluates it, and writes and prints the results. Every process returns the results.

    With `final_split="none"`, or under FSDP, the model is not evaluated, and the returned results are empty.

    Args:
        trainer: A trainer whose `train` has returned.
        dataset: The dataset that the model was trained on.
        settings: Settings of the run besides the trainer's configuration, for `metrics.json`.
        measure: Measures the model on the split that `final_split` selects. Every process calls it.
        recipe: Keys of `recipe.yaml` besides the trainer's configuration, as in [`conclude`].
        exclude_history: Whether `measure` excludes the items of a user's history from the recommendations.
        instead: What the user can do under FSDP, where nothing can be measured. A logged warning ends with this text.
        complete (*optional*): Adds files to the saved run, such as those of the prior. Every process calls it, before
            the run is pushed to the hub and before `measure`. It is not called under FSDP.
    """
    # 1. Save first, so that the model is not lost if a later step fails.
    folder = trainer.args.output_dir
    trainer.card_data = dataset.card
    trainer.card_results = None  # results of an earlier call were measured with other model weights
    if recipe is None:
        recipe = {"dataset": str(dataset.path), "surface": dataset.catalog.surface, **settings}
    pushes_later = complete is not None and not trainer.is_fsdp_enabled
    save_run(trainer, recipe, push=not pushes_later)
    if trainer.is_fsdp_enabled:
        logger.warning(
            "the model is saved in %s, but is not evaluated, because evaluation does not work under FSDP; %s",
            folder,
            instead,
        )
        return {}

    # 2. Complete the run, and push it.
    if complete is not None:
        complete()
        if trainer.args.push_to_hub:
            trainer.push_to_hub(commit_message="Model save")
    if trainer.args.final_split == "none":
        discard_finished(folder)
        return {}

    # 3. Measure on all processes. The main process writes and prints the results, and the other processes wait. If
    # another process ended earlier and crashed on exit, the launcher would end the main process before everything is
    # written.
    measured = measure()
    if trainer.is_world_process_zero():
        write_evaluation(
            folder,
            measured.results,
            dataset=dataset,
            split=trainer.args.final_split,
            ks=trainer.args.eval_ks,
            exclude_history=exclude_history,
            settings={**settings, "max_test_users": trainer.args.max_test_users},
            recommender=trainer.display_name,
            seed=trainer.args.seed,
            rows=measured.rows,
            targets=measured.targets,
        )
        verdict = closing_verdict(measured.results, trainer.display_name)
        trainer.card_results = f"{measured.table}\n\n{verdict}"
        trainer.create_model_card()
        print(measured.table)  # noqa: T201
        print(f"\n{verdict}")  # noqa: T201
        print(f"\nthe model, metrics.json and the training log are in {folder}")  # noqa: T201
    trainer.accelerator.wait_for_everyone()
    discard_finished(folder)

    # 4. Push the results, which did not exist when the model was pushed.
    if trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="Add the final evaluation")
    return measured.results


def final_rows(dataset: RecDataset, args: RecConfig) -> RecDataset:
    """Returns the dataset with only those rows of `final_split` that the final evaluation uses."""
    rows = at_most(args.max_test_users, held_out(dataset, args.final_split))
    changes: dict[str, Any] = {args.final_split: rows}  # the fields of the dataset are named after the splits
    return replace(dataset, **changes)


def describe_split(dataset: RecDataset, args: RecConfig) -> str:
    """Returns the name of `final_split` and, unless all of its users are evaluated, the number of evaluated users."""
    num_rows = len(held_out(dataset, args.final_split))
    num_ranked = len(spread(args.max_test_users, num_rows))
    some = "" if num_ranked == num_rows else f" ({num_ranked:,} of {num_rows:,} users)"
    return f"{args.final_split} split{some}"


def save_run(trainer: RecTrainerMixin, recipe: Mapping[str, Any] | None = None, *, push: bool = True) -> None:
    """Saves a trained model and the files that describe how it was trained. Returns when everything is written.

    Args:
        trainer: A trainer whose `train` has returned.
        recipe (*optional*): Keys of `recipe.yaml` besides the trainer's configuration. By default, no recipe is
            written, which is right for a run that no `trl-rec` verb can repeat.
        push (*optional*): Whether to push the model and these files to the hub, if `push_to_hub` is set.
    """
    trainer.save_model(_internal_call=True)  # saves without pushing
    if trainer.is_world_process_zero():
        keys = None if recipe is None else {**recipe, **trainer.args.given}
        write_run(trainer.args.output_dir, trainer.method, keys, trainer.state.log_history)
        trainer.create_model_card()  # contains the recipe
    trainer.accelerator.wait_for_everyone()
    if push and trainer.args.push_to_hub:
        trainer.push_to_hub(commit_message="Model save")


def write_run(
    folder: str | Path, verb: str, recipe: Mapping[str, Any] | None, log_history: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the files that describe how a model was trained. Only one process may call this function.

    The files are `eval.jsonl` (one line per log entry), `environment.json` and, if `recipe` is given, `recipe.yaml`.

    Args:
        folder: The run folder.
        verb: The subcommand of `trl-rec` that takes the recipe.
        recipe: The keys of the recipe.
        log_history: Log entries of the trainer.
    """
    folder = Path(folder)
    if recipe is not None:
        write_recipe(folder, verb, recipe)
    write_text(folder / "eval.jsonl", "".join(f"{json.dumps(entry)}\n" for entry in log_history))
    write_environment(folder)
