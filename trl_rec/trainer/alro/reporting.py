"""The end of a run on rated lists: saves the model and measures its orders of test candidates beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl_rec.data.dataset import RecDataset
from trl_rec.evaluation import Evaluation, evaluate_orders, evaluate_rated_baselines, metrics_table
from trl_rec.trainer.alro.ordering import CandidateOrderingMixin
from trl_rec.trainer.base.reporting import conclude_run


def conclude_ranking(
    trainer: CandidateOrderingMixin, dataset: RecDataset, settings: Mapping[str, Any]
) -> dict[str, Evaluation]:
    """Saves a trained model, orders the candidates of the test split, and writes and prints the results.

    Args:
        trainer: A trainer that has been trained.
        dataset: The data that it was trained on.
        settings: What the run depends on besides the trainer's configuration, for `recipe.json` and `metrics.json`.

    Returns:
        The results of the baselines and of the model by name, on every process; empty under FSDP.
    """
    ks = trainer.args.eval_ks

    def measure() -> tuple[dict[str, Evaluation], str]:
        """The results on the test split, and their table."""
        rows = trainer.rows_of(dataset.test)
        results = evaluate_rated_baselines(dataset.train, rows, len(dataset.catalog), ks=ks)
        results[trainer.display_name] = evaluate_orders(trainer.rank(dataset.test), rows, ks=ks)
        return results, orders_table(results, caption=f"{dataset.path}: {len(rows)} users' last rated items")

    return conclude_run(
        trainer,
        settings,
        measure,
        exclude_history=True,  # no candidate is in its user's history
        instead="use CandidateRanker in one process",
    )


def orders_table(results: dict[str, Evaluation], *, caption: str) -> str:
    """The results as text: NDCG at the smallest and largest k and, for several orders per list, measures of position
    bias."""
    known = [name for name in next(reversed(results.values())).metrics if name != "num_users"]
    ndcg = [name for name in known if name.startswith("graded_ndcg")]
    return metrics_table(results, columns=[ndcg[0], *ndcg[-1:], *known[len(ndcg) :]], caption=caption)
