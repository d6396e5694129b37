"""Ends an ALRO run: saves the model, and evaluates how it and the baselines order rated candidates.

The config field `final_split` selects the split that is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl_rec.data.dataset import RecDataset, split_rows, spread
from trl_rec.evaluation import Evaluation, evaluate_orders, evaluate_rated_baselines, metrics_table
from trl_rec.evaluation.cost import say_cost
from trl_rec.evaluation.results import held_out
from trl_rec.trainer.alro.ordering import CandidateOrderingMixin
from trl_rec.trainer.base.reporting import REMEDY, Measured, conclude_run, final_rows


def conclude_ranking(
    trainer: CandidateOrderingMixin,
    dataset: RecDataset,
    settings: Mapping[str, Any],
    *,
    recipe: Mapping[str, Any] | None = None,
) -> dict[str, Evaluation]:
    """Saves a trained model, and evaluates how it and the baselines order the candidates of a held-out split.

    The config field `final_split` selects the split. The results are written to the run folder and printed.

    Args:
        trainer: A trainer whose `train` has returned.
        dataset: The dataset that the model was trained on.
        settings: Settings of the run besides the trainer's configuration, for `metrics.json`.
        recipe (*optional*): Keys of `recipe.yaml` besides the trainer's configuration, as in [`conclude`].

    Returns:
        The results of the baselines and of the model, by name. Every process returns the same results. The dict is
        empty under FSDP, or if `final_split` is `"none"`.
    """
    ks = trainer.args.eval_ks

    def measure() -> Measured:
        """Orders the candidates of the split with the model and the baselines."""
        split = held_out(final_rows(dataset, trainer.args), trainer.args.final_split)
        rows = trainer.rows_of(split)
        seconds = len(rows) * trainer.seconds_per_user(split).final
        say_cost(len(rows), seconds, name="final evaluation", remedy=REMEDY)
        results = evaluate_rated_baselines(dataset.train, rows, len(dataset.catalog), ks=ks)
        lists = trainer.rank(split, keep_in=trainer.args.output_dir)
        results[trainer.display_name] = evaluate_orders(lists, rows, ks=ks)
        table = orders_table(results, caption=f"{dataset.path}: lists of {len(rows)} users, one per user")
        all_numbers = spread(trainer.args.max_test_users, len(held_out(dataset, trainer.args.final_split)))
        numbers = all_numbers[rows.with_format("numpy")[:]["row"]]
        return Measured(results, table, numbers, split_rows(rows, "candidates"))

    return conclude_run(
        trainer,
        dataset,
        settings,
        measure,
        recipe=recipe,
        exclude_history=True,  # the lists contain no items of the user's history, see `held_out_rows`
        instead="run trl-rec evaluate",
    )


def orders_table(results: dict[str, Evaluation], *, caption: str) -> str:
    """Formats the results as a table with graded NDCG at the first and the last cutoff k, and Kendall's tau.

    If each list was presented in several orders, the table also contains the agreement between orders and the
    position bias.
    """
    known = [name for name in next(reversed(results.values())).metrics if name != "num_users"]
    ndcg = [name for name in known if name.startswith("graded_ndcg")]
    return metrics_table(
        results, columns=list(dict.fromkeys([ndcg[0], ndcg[-1], *known[len(ndcg) :]])), caption=caption
    )
