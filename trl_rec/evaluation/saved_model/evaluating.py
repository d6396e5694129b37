"""Evaluates the baselines, and a saved model or lists made elsewhere, on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl_rec.data.dataset import RecDataset, at_most, spread
from trl_rec.decoding.run_folder import check_same_items
from trl_rec.evaluation.baselines import FittedBaseline
from trl_rec.evaluation.given_lists import read_lists
from trl_rec.evaluation.kept.finished_rows import FinishedRows
from trl_rec.evaluation.prior_choice import PriorChoice
from trl_rec.evaluation.rankings import Rankings
from trl_rec.evaluation.results import (
    SEQUENCE,
    Evaluation,
    evaluate_baselines,
    evaluate_split,
    further_cutoff,
    held_out,
    recall_far_down,
)
from trl_rec.evaluation.saved_model.config import EvaluationConfig
from trl_rec.evaluation.saved_model.model import evaluate_model, load_policy
from trl_rec.evaluation.saved_model.prior import choose_setting, keeps_saved_setting, load_prior
from trl_rec.evaluation.saved_model.settings import DEFAULTS, metric_options
from trl_rec.evaluation.saved_model.writing import model_row, recommender_name


def evaluate_with_baselines(
    dataset: RecDataset,
    config: EvaluationConfig,
    *,
    keep: Callable[[PriorChoice], object] | None = None,
    recorded: Mapping[str, Any] | None = None,
    sequence: Callable[[RecDataset], FittedBaseline] | None = None,
    output: str | Path | None = None,
) -> dict[str, Evaluation]:
    """Evaluates the baselines, and the model or the lists of `config`.

    In a distributed run, the users for whom a model ranks items are divided among the processes.

    Args:
        dataset: The dataset, with any surface. The model writes items with the surface in `config`.
        config: The settings, as returned by [`evaluation_settings`].
        keep (`Callable`, *optional*): Function that is called on every process with the [`PriorChoice`], before the
            prior is evaluated on `config.split`. The function can save the choice, or raise an error to stop the
            evaluation. It is not called for a saved prior that keeps its saved strength and its saved eps. (Some
            priors add eps times the popularity of an item to the item's weight.)
        recorded (*optional*): The [`PriorChoice`] of an earlier call, read from the output folder by [`read_choice`].
            If the kind of prior and the strength in `config` are those of this choice, its eps is used too.
        sequence (`Callable`, *optional*): Function that trains the baseline `"sequence"` on the dataset, such as
            `SequenceBaseline().fit`. Required if `config.baselines` contains `"sequence"`.
        output (*optional*): The output folder. If it is given, the model's results for finished rows are stored in
            this folder until [`write_results`] has written all results, so that an interrupted evaluation can be
            resumed.

    Returns:
        The evaluation of each recommender by name.
    """
    if SEQUENCE in config.baselines and sequence is None:
        raise ValueError(
            "the baseline 'sequence' has to be trained; pass sequence=SequenceBaseline().fit, or remove 'sequence' "
            "from `baselines`"
        )

    # 1. Set the surface, and check that the model was trained on these items. Without a model, the surface is
    #    `item_token`, so that the baselines exclude only the items of a history, as in published results. With titles,
    #    they would also exclude all other items with the title of a history item.
    folder = config.folder
    if folder is not None:
        dataset = dataset.with_surface(config.surface or DEFAULTS["surface"])
        check_same_items(folder, dataset.catalog, dataset.path)
    else:
        dataset = dataset.with_surface("item_token")

    # 2. Load the prior and the policy, and set the strength and eps of the prior.
    prior = None if folder is None else load_prior(folder, dataset, config)
    policy = None if folder is None else load_policy(folder, dataset, config)
    if policy is not None and output is not None:
        policy = replace(policy, finished=FinishedRows.of_model(output, policy.model))
    if policy is not None and prior is not None and not keeps_saved_setting(config):
        prior, choice = choose_setting(policy, prior, dataset, config, recorded)
        if keep is not None:
            keep(choice)

    # 3. Read the lists, train the baseline `sequence`, and select the rows to evaluate. The baseline needs the whole
    #    validation split, so it is trained before the rows are selected.
    lists = None if config.lists is None else _read_lists(config.lists, dataset, config)
    trained = None if sequence is None or SEQUENCE not in config.baselines else sequence(dataset)
    rows = at_most(config.max_users, held_out(dataset, config.split))
    dataset = replace(dataset, **{config.split: rows})  # the fields of the dataset are named after the splits

    # 4. Evaluate the baselines, then the model or the lists.
    results = evaluate_baselines(
        dataset,
        exclude_history=config.exclude_history,
        baselines=config.baselines,
        sequence=trained,
        **metric_options(config),
    )
    name = recommender_name(config)
    if policy is not None and config.model is not None:
        results |= evaluate_model(policy, prior, model_row(config.model), dataset, config)
    elif lists is not None and name is not None:
        results[name] = _evaluate_lists(lists, dataset, config)
    return results


def _read_lists(path: str, dataset: RecDataset, config: EvaluationConfig) -> Rankings:
    """Reads lists for the rows to evaluate, up to the largest cutoff that a metric needs."""
    return read_lists(
        path,
        dataset,
        split=config.split,
        rows=spread(config.max_users, len(held_out(dataset, config.split))),
        top_k=max(config.ks),
        at_most=further_cutoff(config.recall_at, config.ks, len(dataset.catalog)),
        exclude_history=config.exclude_history,
    )


def _evaluate_lists(lists: Rankings, dataset: RecDataset, config: EvaluationConfig) -> Evaluation:
    """Evaluates lists made elsewhere. Recall at `recall_at` is left out if no list is long enough."""
    options = metric_options(config)
    further = further_cutoff(options.pop("recall_at"), config.ks, len(dataset.catalog))
    evaluation = evaluate_split(lists.head(max(config.ks)), dataset, **options)
    if further is None or lists.items.shape[1] < further:
        return evaluation
    return evaluation.with_values(recall_far_down(lists, held_out(dataset, config.split), further), seed=config.seed)
