"""Compares accuracy metrics with those of ranx. The functions of ranx are not compiled here, because compiling them
takes a minute."""

import numpy as np
import pytest

from trl_rec.evaluation import metrics
from trl_rec.evaluation.evaluator import per_user_metrics


numba = pytest.importorskip("numba")
numba.config.DISABLE_JIT = True  # read when ranx is imported
ranx = pytest.importorskip("ranx")
KS = (1, 3, 5, 8)


def test_accuracy_and_graded_ndcg_equal_ranx():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(20)[:8] for _ in range(60)])
    ranked[np.arange(8) >= rng.integers(1, 9, 60)[:, None]] = -1
    grades = [
        dict(zip(rng.permutation(20)[:n].tolist(), rng.integers(1, 6, n).tolist(), strict=True))
        for n in rng.integers(1, 12, 60)
    ]
    qrels = ranx.Qrels(
        {f"{user:03}": {str(item): grade for item, grade in row.items()} for user, row in enumerate(grades)}
    )
    run = ranx.Run(
        {
            f"{user:03}": {str(item): 9.0 - rank for rank, item in enumerate(row) if item >= 0}
            for user, row in enumerate(ranked.tolist())
        }
    )
    ours = per_user_metrics(ranked, [list(row) for row in grades], ks=KS)
    gains = np.array(
        [[row.get(item, 0) for item in items] for row, items in zip(grades, ranked.tolist(), strict=True)]
    )
    ideal = np.array([sorted(row.values()) + [0] * (12 - len(row)) for row in grades])
    ours |= {f"graded@{k}": metrics.graded_ndcg(gains, ideal, k) for k in KS}
    # The `ndcg` of ranx uses the grades as gains, but our plain NDCG only counts hits. For all metrics except graded
    # NDCG, ranx therefore gets qrels in which every grade is 1.
    binary = ranx.Qrels({user: dict.fromkeys(row, 1) for user, row in qrels.to_dict().items()})
    for name, theirs in {
        "recall": "recall",
        "hit": "hit_rate",
        "ndcg": "ndcg",
        "mrr": "mrr",
        "graded": "ndcg_burges",
    }.items():
        for k in KS:
            judged = qrels if name == "graded" else binary
            expected = ranx.evaluate(judged, run, f"{theirs}@{k}", return_mean=False)
            np.testing.assert_allclose(ours[f"{name}@{k}"], expected, atol=1e-9, err_msg=f"{name}@{k}")
