"""Tests how the settings of a prior are measured. A setting consists of the strength, which is the exponent of the
prior's weights, and eps, which is the factor of item popularity in these weights. The NDCG that is measured for a
setting must equal the NDCG of a complete ranking with this setting."""

from dataclasses import replace

import pytest

from tests.evaluation.policies import make_policy
from trl_rec.data import RecDataset
from trl_rec.data.dataset import split_rows
from trl_rec.decoding import PopularityPrior, TransitionPrior
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.prior_choice import Setting, choice_table, choose_prior, measuring, with_setting


@pytest.mark.parametrize("surface", ["item_token", "semantic_id"])
def test_each_value_of_the_grid_is_the_metric_of_a_ranking(surface: str, dataset: RecDataset) -> None:
    """With semantic IDs, each setting re-ranks the best items of the policy and of the prior. In this small catalogue,
    that is every item."""
    dataset = replace(dataset, catalog=dataset.catalog.with_surface(surface))
    policy = make_policy(dataset, batch_size=11)
    prior = TransitionPrior.fit(dataset.train, len(dataset.catalog))
    chosen, choice = choose_prior(policy, dataset, prior, k=5)
    assert choice.how == {"item_token": "exact", "semantic_id": "rescored"}[surface] and choice.num_users == 30
    assert len(choice.grid) >= 1 + 8 * 7
    targets = split_rows(dataset.validation, "targets")
    for one in choice.grid[::9]:
        setting = Setting(one["strength"], one["eps"])
        own = replace(policy, prior=with_setting(prior, setting) if setting.strength else None)
        ranked = own.rank_exhaustively(dataset.validation, 5)
        expected = per_user_metrics(ranked.items, targets, ks=[5])["ndcg@5"].mean()
        assert one["value"] == pytest.approx(expected, abs=1e-9), one
    best = max(one["value"] for one in choice.grid)
    found = next(one for one in choice.grid if one["value"] == best)
    assert (choice.strength, choice.eps) == (found["strength"], found["eps"])
    assert chosen.strength == choice.strength and (choice.eps is None or chosen.eps == choice.eps)


def test_for_lists_one_axis_of_the_grid_is_searched_after_the_other(
    dataset: RecDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the policy writes lists, it must write new lists for each setting. To save time, not all combinations of
    strength and eps are measured."""
    monkeypatch.setitem(measuring.MOST_USERS, "lists", 3)
    prior = TransitionPrior.fit(dataset.train, len(dataset.catalog))
    _, choice = choose_prior(make_policy(dataset, 3, batch_size=11), dataset, prior, k=3)
    assert choice.how == "lists" and choice.num_users == 3
    assert 8 + 7 - 1 <= len(choice.grid) - 1 < 8 * 7


def test_only_the_strength_of_a_popularity_prior_is_chosen(dataset: RecDataset) -> None:
    dataset = replace(dataset, catalog=dataset.catalog.with_surface("item_token"))
    prior = PopularityPrior.fit(dataset.train, len(dataset.catalog))
    _, choice = choose_prior(make_policy(dataset, batch_size=11), dataset, prior, k=5)
    assert {one["eps"] for one in choice.grid} == {None} and "ndcg@5" in choice_table(choice)
