"""Compares what an evaluation computes from a policy (rankings, metrics and the beam gap) with values computed from
the scores of all items."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.evaluation.policies import make_policy
from tests.oracles import metrics as oracle
from trl_rec.data import RecDataset, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.decoding import ArrayPrior, TransitionPrior, list_logps, list_tokens, rank_items
from trl_rec.decoding.exact import score_catalog
from trl_rec.decoding.padding import left_padded
from trl_rec.evaluation import (
    Policy,
    beam_gap_table,
    evaluate_baselines,
    evaluate_policy,
    measure_beam_gap,
    measure_beam_gaps,
)
from trl_rec.evaluation.beam_gap import BeamGap
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.intervals import paired_comparison
from trl_rec.models.completions import read_completions
from trl_rec.ragged import Ragged


NUM_ITEMS = 80


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    """A dataset whose test users have four rated targets each. The semantic IDs have three tokens, and some items have
    the same ID."""
    path = tmp_path_factory.mktemp("data") / "toy"
    prepared = prepare("toy", path, toy_users=20, toy_items=NUM_ITEMS, split="leave_last", num_held_out=4)
    codes = [[f"<a_{item % 8}>", f"<b_{item // 8 % 5}>", f"<c_{item // 60}>"] for item in range(NUM_ITEMS)]
    ids = Ragged.from_lists(codes, np.dtype(object))
    return replace(prepared, catalog=prepared.catalog.with_surface("semantic_id", ids))


@pytest.fixture(scope="module")
def policy(dataset: RecDataset) -> Policy:
    return make_policy(dataset)


def prompts_of(policy: Policy, dataset: RecDataset) -> Iterator[dict[str, torch.Tensor]]:
    encoded = policy.prompt_format.encode(split_rows(dataset.test, "history"))
    for row in range(len(encoded)):
        yield left_padded(encoded.take(np.array([row])), policy.pad_token_id)


def test_a_prior_multiplies_the_policy_in_every_kind_of_ranking(dataset: RecDataset, policy: Policy) -> None:
    """A beam search, an exhaustive ranking and the scores of given items all use `log p + strength * log(w / W)`.
    Here, p is the probability of an item, w is its weight, and W is the sum of all weights."""
    prior = TransitionPrior.fit(dataset.train, NUM_ITEMS, strength=0.8)
    both = replace(policy, prior=prior)
    exact = both.rank_exhaustively(dataset.test, NUM_ITEMS)
    wide = both.rank(dataset.test, NUM_ITEMS)
    np.testing.assert_array_equal(wide.items, exact.items)
    np.testing.assert_allclose(wide.scores, exact.scores, atol=1e-4)

    # Each score must be the policy's score, plus 0.8 times the prior's score.
    given = Ragged.from_lists([row[row >= 0] for row in exact.items])
    alone = policy.score(dataset.test, given)
    together = both.score(dataset.test, given)
    by_prior = both.rank_by_prior(dataset.test, NUM_ITEMS)
    for row, (items, scores) in enumerate(zip(by_prior.items, by_prior.scores, strict=True)):
        bonus = {item: 0.8 * score for item, score in zip(items.tolist(), scores.tolist(), strict=True)}
        part = slice(given.offsets[row], given.offsets[row + 1])
        expected = alone[part] + [bonus[item] for item in given[row].tolist()]
        np.testing.assert_allclose(together[part], expected, atol=1e-4)
        np.testing.assert_allclose(exact.scores[row][exact.items[row] >= 0], expected, atol=1e-4)

    # With strength 0, the prior only removes items of weight 0, and this prior has no such items.
    none = replace(policy, prior=replace(prior, strength=0.0)).rank(dataset.test, 5)
    np.testing.assert_array_equal(none.items, policy.rank(dataset.test, 5).items)


def test_a_prior_multiplies_a_policy_that_writes_lists(dataset: RecDataset) -> None:
    lists = make_policy(dataset, list_length=3)
    prior = ArrayPrior(1.0 + np.arange(NUM_ITEMS), strength=1000.0)
    both = replace(lists, prior=prior, exclude_history=False)
    np.testing.assert_array_equal(both.rank(dataset.test, 1).items, both.rank_by_prior(dataset.test, 1).items)


def test_the_exact_ranking_equals_a_beam_search_with_one_beam_per_item(dataset: RecDataset, policy: Policy) -> None:
    ranked = policy.rank_exhaustively(dataset.test, 12)
    wide = policy.rank(dataset.test, 12, num_beams=NUM_ITEMS)
    np.testing.assert_array_equal(ranked.items, wide.items)
    np.testing.assert_allclose(ranked.scores, wide.scores, atol=1e-4)
    narrow = policy.rank(dataset.test, 12, num_beams=12)
    assert (narrow.items != ranked.items).any()
    kept = replace(policy, exclude_history=False).rank_exhaustively(dataset.test, 12)
    assert any(set(kept.items[row]) & set(history) for row, history in enumerate(dataset.test["history"]))


def test_recall_at_a_larger_cutoff_uses_its_own_beam_search(dataset: RecDataset, policy: Policy) -> None:
    evaluation = evaluate_policy(policy, dataset, ks=[2, 5], recall_at=20)
    targets = split_rows(dataset.test, "targets")
    far = per_user_metrics(policy.rank(dataset.test, 20).items, targets, ks=[20])["recall@20"]
    np.testing.assert_array_equal(evaluation.per_user["recall@20"], far)
    assert evaluation.metrics["recall@20"] == far.mean() and "recall@20" in evaluation.intervals

    # The other metrics and the returned ranking are computed with five beams.
    near = evaluate_policy(policy, dataset, ks=[2, 5])
    assert {name: evaluation.metrics[name] for name in near.metrics} == near.metrics
    np.testing.assert_array_equal(evaluation.rankings.items, policy.rank(dataset.test, 5).items)
    assert set(evaluation.metrics) - set(near.metrics) == {"recall@20"}

    # No metric is added if the cutoff is 0, is one of `ks`, or is the size of the catalogue.
    for recall_at in (0, 5, NUM_ITEMS):
        assert evaluate_policy(policy, dataset, ks=[2, 5], recall_at=recall_at).metrics == near.metrics
    baselines = evaluate_baselines(dataset, ks=[2, 5], recall_at=20)
    plain = evaluate_baselines(dataset, ks=[2, 5])
    wide = evaluate_baselines(dataset, ks=[20])
    for name, baseline in baselines.items():
        assert baseline.metrics["recall@20"] == wide[name].metrics["recall@20"]
        assert {key: baseline.metrics[key] for key in plain[name].metrics} == plain[name].metrics


def test_item_tokens_need_only_one_pass(dataset: RecDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """If every item is a single token, one pass over the users gives all metrics, including recall at a larger
    cutoff."""
    dataset = dataset.with_surface("item_token")
    policy = make_policy(dataset)
    passes = []
    rank = Policy.rank
    monkeypatch.setattr(Policy, "rank", lambda *arguments, **named: passes.append(1) or rank(*arguments, **named))
    both = evaluate_policy(policy, dataset, ks=[5], recall_at=20)
    assert len(passes) == 1
    np.testing.assert_array_equal(both.rankings.items, rank(policy, dataset.test, 5).items)


def test_preference_accuracy_agrees_with_the_scores_of_all_items(dataset: RecDataset, policy: Policy) -> None:
    for exclude_history, renormalize, length_penalty in ((True, True, 0.0), (False, False, 1.0)):
        changed = replace(
            policy, exclude_history=exclude_history, renormalize=renormalize, length_penalty=length_penalty
        )
        options = {"renormalize": renormalize, "length_penalty": length_penalty}
        every = [score_catalog(policy.model, p, policy.trie, **options)[0] for p in prompts_of(policy, dataset)]
        rows = [
            list(zip(*pair, strict=True))
            for pair in zip(dataset.test["targets"], dataset.test["target_ratings"], strict=True)
        ]
        scores = [scores[targets].tolist() for scores, targets in zip(every, dataset.test["targets"], strict=True)]
        evaluation = evaluate_policy(changed, dataset, ks=[5])
        expected = oracle.preferences(evaluation.rankings.items.tolist(), scores, rows, 5)
        for place, name in enumerate(("liked@5", "disliked@5", "preference_accuracy")):
            values = np.array([row[place] for row in expected], float)
            np.testing.assert_allclose(evaluation.per_user[name], values)
            assert evaluation.metrics[name] == pytest.approx(np.nanmean(values))
        assert 0 < evaluation.metrics["preference_users"] < len(rows)


def test_a_list_policy_scores_an_item_as_the_first_item_of_a_list(dataset: RecDataset) -> None:
    policy = make_policy(dataset, list_length=6)
    rows = dataset.test.select(range(5))
    items = split_rows(rows, "targets")
    scores = policy.score(rows, Ragged(items.values.astype(np.int64), items.offsets)).reshape(5, 4)
    for row, (prompt, history) in enumerate(zip(prompts_of(policy, dataset), rows["history"], strict=False)):
        lists = torch.tensor(rows["targets"][row]).view(1, 4, 1)
        tokens = list_tokens(policy.trie, lists)
        read = read_completions(
            policy.model,
            prompt["input_ids"],
            prompt["attention_mask"],
            tokens.token_ids,
            tokens.mask,
            scored=tokens.branches,
        )
        expected = list_logps(read, lists, policy.trie, exclude=[history]).sum(-1)[0]
        np.testing.assert_allclose(scores[row], expected.detach().numpy(), atol=1e-4)

    evaluation = evaluate_policy(policy, dataset, ks=[5], recall_at=20)
    assert "recall@20" not in evaluation.metrics and "preference_accuracy" in evaluation.metrics
    with pytest.raises(ValueError, match="the model writes lists; the beam gap compares"):
        measure_beam_gap(policy, dataset, num_users=3)


def test_items_that_share_a_leaf_have_expected_metrics(dataset: RecDataset, policy: Policy) -> None:
    """`expected_recall@k` and `expected_ndcg@k` are recall and NDCG, averaged over all orders of the items of each
    leaf."""
    evaluation = evaluate_policy(policy, dataset, ks=[5])
    surfaces = dataset.catalog.surfaces
    leaves = [surfaces.index(surface) for surface in surfaces]
    assert len(set(leaves)) < NUM_ITEMS
    for row, (history, targets) in enumerate(zip(dataset.test["history"], dataset.test["targets"], strict=True)):
        allowed = [item for item in range(NUM_ITEMS) if item not in history]
        ranking = evaluation.rankings.items[row].tolist()
        every = [
            oracle.accuracy([each], [targets], 5)[0] for each in oracle.orders_of_leaves(ranking, leaves, allowed)
        ]
        assert evaluation.per_user["expected_recall@5"][row] == pytest.approx(np.mean(every, 0)[0])
        assert evaluation.per_user["expected_ndcg@5"][row] == pytest.approx(np.mean(every, 0)[2])
    item_tokens = dataset.with_surface("item_token")
    assert "expected_ndcg@5" not in evaluate_policy(make_policy(item_tokens), item_tokens, ks=[5]).metrics


def test_the_beam_gap_compares_the_beam_search_with_every_item(dataset: RecDataset, policy: Policy) -> None:
    gap = measure_beam_gap(policy, dataset, num_users=1000, k=3)
    rows = list(zip(prompts_of(policy, dataset), dataset.test["history"], dataset.test["targets"], strict=True))
    found = {
        width: [
            rank_items(policy.model, prompt, policy.trie, num_beams=width, top_k=3, exclude=[history])
            .items[0]
            .tolist()
            for prompt, history, _ in rows
        ]
        for width in (3, NUM_ITEMS)
    }
    ndcg = {
        width: [
            oracle.accuracy([items], [targets], 3)[0][2] for items, (_, _, targets) in zip(lists, rows, strict=True)
        ]
        for width, lists in found.items()
    }
    assert gap.num_users == len(rows) and gap.num_beams == 3
    assert gap.beam["ndcg@3"] == pytest.approx(np.mean(ndcg[3]))
    assert gap.exhaustive["ndcg@3"] == pytest.approx(np.mean(ndcg[NUM_ITEMS]))
    assert gap.gaps["ndcg@3"] == paired_comparison(np.array(ndcg[NUM_ITEMS]), np.array(ndcg[3]))

    # A target is reachable if it is among the best items by exact score. A reachable target is pruned if the beam
    # search does not find it.
    pairs = [
        (beam, exact, target)
        for beam, exact, (_, _, targets) in zip(*found.values(), rows, strict=True)
        for target in targets
    ]
    reachable = [(beam, target) for beam, exact, target in pairs if target in exact]
    lost = [target for beam, target in reachable if target not in beam]
    assert (gap.num_reachable, gap.num_pruned) == (len(reachable), len(lost))
    assert lost and gap.pruning_rate == len(lost) / len(reachable)

    missing = [item for beam, exact in zip(*found.values(), strict=True) for item in exact if item not in beam]
    assert missing and gap.lost_share == pytest.approx(len(missing) / sum(map(len, found[NUM_ITEMS])))

    text = beam_gap_table(gap)
    assert f"of the 3 best items of each user, the beam search loses {gap.lost_share:.2%}" in text
    assert f"PruningRate@3: {gap.pruning_rate:.4f} (the beam search loses {len(lost)} of the {len(reachable)}" in text
    assert "3 beams" in text and f"{gap.gaps['ndcg@3'].difference:+.4f}" in text and "does not bound" in text
    assert gap.to_dict()["gaps"]["ndcg@3"]["low"] == gap.gaps["ndcg@3"].low

    # With one beam per item, the search loses no item.
    none = measure_beam_gap(replace(policy, num_beams=NUM_ITEMS), dataset, num_users=4, k=3)
    assert none.num_users == 4 and none.num_pruned == none.lost_share == 0 and none.gaps["ndcg@3"].difference == 0


def test_beam_gaps_of_several_widths_share_the_exact_scores(dataset: RecDataset, policy: Policy) -> None:
    num_users = len(dataset.test) - 2
    gaps = measure_beam_gaps(policy, dataset, beams=[1, 3, 8], num_users=num_users, k=3)
    assert [gap.num_beams for gap in gaps] == [1, 3, 8] and len({gap.exhaustive_seconds for gap in gaps}) == 1
    alone = measure_beam_gap(replace(policy, num_beams=8), dataset, num_users=num_users, k=3)
    assert gaps[2].to_dict() == {
        **alone.to_dict(),
        "beam_seconds": gaps[2].beam_seconds,
        "exhaustive_seconds": gaps[2].exhaustive_seconds,
    }
    assert list(gaps[0].beam) == ["ndcg@1", "recall@1"] and list(gaps[2].beam) == ["ndcg@3", "recall@3"]
    restored = BeamGap.from_dict(gaps[1].to_dict())
    assert restored.to_dict() == gaps[1].to_dict()
    before = {name: value for name, value in gaps[1].to_dict().items() if name != "lost_share"}
    assert BeamGap.from_dict(before).lost_share is None

    # The two users who were not ranked have no values.
    pruned, rate = (gaps[1].per_user[name] for name in ("pruned@3", "pruning_rate@3"))
    assert np.isnan(pruned).sum() == 2 and len(pruned) == len(dataset.test)
    assert np.nansum(pruned) * 4 == gaps[1].num_pruned > 0  # each user has four targets
    reachable = np.isfinite(rate)
    assert (rate[reachable] > 0).tolist() == (pruned[reachable] > 0).tolist() and not pruned[~reachable][:2].any()


def test_a_repeated_target_counts_once(dataset: RecDataset, policy: Policy) -> None:
    twice = dataset.test.map(lambda row: {"targets": row["targets"] * 2})
    once, repeated = (
        measure_beam_gap(policy, replace(dataset, test=rows), num_users=1000, k=3).per_user["pruned@3"]
        for rows in (dataset.test, twice)
    )
    assert once.sum() > 0 and repeated.tolist() == once.tolist()


def test_a_beam_gap_without_reachable_targets_has_no_pruning_rate(dataset: RecDataset, policy: Policy) -> None:
    never = replace(policy, exclude_history=True)
    unreachable = dataset.test.select([0]).map(lambda row: {"targets": row["history"][:1]})
    gap = measure_beam_gap(never, replace(dataset, test=unreachable), num_users=1, k=3)
    assert gap.pruning_rate is None and "no target is among the 3 best items" in beam_gap_table(gap)
