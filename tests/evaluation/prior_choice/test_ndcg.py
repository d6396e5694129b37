"""Tests the computation of NDCG for many settings of a prior in one call. The values must equal those of a separate
ranking for each setting."""

import numpy as np
import pytest
import torch

from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.prior_choice import Setting, ndcg, ndcg_by_setting
from trl_rec.ragged import Ragged


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_by_setting_equals_a_ranking_per_setting(seed: int) -> None:
    """The rows have several targets, repeated targets, excluded items, padding and ties."""
    rng = np.random.default_rng(seed)
    items = torch.from_numpy(np.stack([rng.permutation(12)[:9] for _ in range(7)]))
    items[2, 5:] = -1
    scores = torch.from_numpy(rng.integers(0, 4, (7, 9)).astype(np.float32))
    scores[0, :4] = -torch.inf
    scores[2, 5:] = -torch.inf
    targets = torch.from_numpy(rng.integers(0, 12, (7, 3)))
    targets[1, 1:] = -1
    weights = {0.5: torch.from_numpy(rng.integers(-3, 0, (7, 9)).astype(np.float32))}
    settings = [Setting(0, None), Setting(0.5, 0.5), Setting(2, 0.5)]
    got = ndcg_by_setting(scores, items, targets, settings, weights, k=4)
    for number, setting in enumerate(settings):
        total = scores + setting.strength * weights[0.5] if setting.strength else scores
        ranked = np.full((7, 4), -1)
        for row in range(7):
            keys = [(-total[row, c].item(), items[row, c].item()) for c in range(9) if scores[row, c] > -torch.inf]
            listed = [item for _, item in sorted(keys)][:4]
            ranked[row, : len(listed)] = listed
        relevant = Ragged.from_lists([[one for one in row if one >= 0] for row in targets.tolist()])
        expected = per_user_metrics(ranked, relevant, ks=[4])["ndcg@4"]
        np.testing.assert_allclose(got[:, number], expected, err_msg=str(setting))


def test_prompts_without_a_target_near_the_top_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """To save time, the computation first ranks the targets only among a few items with high scores or weights, and
    continues only for prompts whose targets are near the top there. This must not change any value."""
    generator = torch.Generator().manual_seed(0)
    items = torch.arange(300).expand(40, -1)
    scores = torch.randn(40, 300, generator=generator).round(decimals=1)
    scores[:, 7] = -torch.inf
    targets = torch.stack(
        [scores.argsort(1, descending=True)[:, 8], torch.randint(0, 300, (40,), generator=generator)], 1
    )
    weights = {eps: torch.randn(40, 300, generator=generator) for eps in (0.1, 1.0)}
    settings = [Setting(0, None), *(Setting(strength, eps) for strength in (0.3, 2.0) for eps in (0.1, 1.0))]
    monkeypatch.setattr(ndcg, "NUM_STRONG", 12)
    quick = ndcg_by_setting(scores, items, targets, settings, weights, k=5)
    monkeypatch.setattr(ndcg, "NUM_STRONG", 1000)
    np.testing.assert_array_equal(quick, ndcg_by_setting(scores, items, targets, settings, weights, k=5))
    assert 0 < (quick > 0).mean() < 1
