"""The end of a run on rated lists: saves the model and measures its orders of test candidates beside baselines."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from trl_rec.data.dataset import RecDataset
from trl_rec.evaluation import Evaluation, evaluate_orders, evaluate_rated_baselines, metrics_table, write_metrics
from trl_rec.trainer.alro.ordering import CandidateOrderingMixin
from trl_rec.trainer.base.reporting import save_run


logger = logging.getLogger(__name__)


def conclude_ranking(
    trainer: CandidateOrderingMixin, dataset: RecDataset, settings: dict[str, Any]
) -> dict[str, Evaluation]:
    """Saves the run folder, prints the table, and returns the baselines' results and the model's, by name.

    Args:
        trainer: The trainer, trained.
        dataset: The data it was trained on; the test split is measured.
        settings: What else the run depends on, for `metrics.json` and `recipe.json`.
    """
    save_run(trainer, settings)
    if trainer.is_fsdp_enabled:
        logger.warning("%s is saved; under FSDP its candidates are not ranked here", trainer.args.output_dir)
        return {}
    rows, ks = trainer.rows_of(dataset.test), trainer.args.eval_ks
    results = evaluate_rated_baselines(dataset.train, rows, len(dataset.catalog), ks=ks)
    results[trainer.display_name] = evaluate_orders(trainer.rank(dataset.test), rows, ks=ks)
    if trainer.is_world_process_zero():
        path = Path(str(trainer.args.output_dir)) / "metrics.json"
        # no candidate is in its user's history
        write_metrics(path, results, split="test", ks=ks, exclude_history=True, settings=settings)
        print(orders_table(results, caption=f"{dataset.path}: {len(rows)} users' last rated items"))  # noqa: T201
    trainer.accelerator.wait_for_everyone()  # a process that ends while another writes takes it along
    return results


def orders_table(results: dict[str, Evaluation], *, caption: str) -> str:
    """The results as text: NDCG at the smallest and largest k and, for several orders per list, measures of position
    bias."""
    known = [name for name in next(reversed(results.values())).metrics if name != "num_users"]
    ndcg = [name for name in known if name.startswith("graded_ndcg")]
    return metrics_table(results, columns=[ndcg[0], *ndcg[-1:], *known[len(ndcg) :]], caption=caption)
