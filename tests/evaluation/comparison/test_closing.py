"""Tests the sentences that are printed below a table of results."""

import numpy as np

from trl_rec.evaluation import Evaluation, closing_verdict


RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.05, 200)


def evaluation(mean: float, *metrics: str, num_users: int = 200) -> Evaluation:
    per_user = {metric: mean + RNG.permutation(NOISE)[:num_users] for metric in metrics or ("ndcg@1", "ndcg@10")}
    return Evaluation({name: float(values.mean()) for name, values in per_user.items()}, {}, per_user)


BASELINES = {"random": evaluation(0.1), "popularity": evaluation(0.2), "transition": evaluation(0.3)}


def test_a_model_is_compared_with_the_strongest_baseline() -> None:
    above = closing_verdict(BASELINES | {"BEAR": evaluation(0.4)}, "BEAR")
    assert above.startswith("BEAR: above the transition baseline by 0.1000 in ndcg@10 (95 % interval +0.0")
    assert above.endswith("p 0.003, one seed)")


def test_the_line_of_a_result_below_the_baseline_says_what_may_help() -> None:
    below = closing_verdict(BASELINES | {"BEAR": evaluation(0.25)})
    assert below.startswith("BEAR: below the transition baseline by 0.0500 in ndcg@10 (95 % interval -0.0")
    assert below.endswith(
        "p 0.003, one seed): more data, a longer run or a pretrained language model may help; see docs/evaluation.md"
    )


def test_without_a_significant_difference_the_line_says_what_can_be_detected() -> None:
    line = closing_verdict(BASELINES | {"BEAR": evaluation(0.301)}, "BEAR")
    assert line.startswith("BEAR: no significant difference from the transition baseline in ndcg@10 (+0.00")
    assert line.endswith("; the split can detect differences of about 0.0139 or more")

    single = {name: evaluation(0.3, num_users=1) for name in ("transition", "BEAR")}
    assert "can detect" not in closing_verdict(single, "BEAR")


def test_baselines_alone_are_compared_with_each_other() -> None:
    line = closing_verdict(BASELINES)
    assert line.startswith(
        "the strongest baseline is transition: above the popularity baseline by 0.1000 in ndcg@10 ("
    )
    assert "one seed" not in line


def test_rewards_rated_lists_and_the_starting_model_have_their_own_lines() -> None:
    names = ("ndcg@10", "reward")
    results = {
        name: evaluation(mean, *names) for name, mean in {"transition": 0.2, "before": 0.1, "after": 0.15}.items()
    }
    lines = closing_verdict(results, "after", start="before").splitlines()
    assert [line.split(" by ")[0] for line in lines] == [
        "after: below the transition baseline",
        "after: above before",
        "after: below the transition baseline",
        "after: above before",
    ]
    assert "a longer run or a higher learning rate may help" in lines[2]

    # For each metric, there are two comparisons: one with the baseline and one with the starting model. Holm's
    # adjustment therefore doubles the smallest possible p value, which is about 0.001 with 1,000 random sign flips.
    assert all(line.count("p 0.002, one seed") == 1 for line in lines)

    rated = {name: evaluation(mean, "graded_ndcg@5") for name, mean in {"item mean": 0.9, "ALRO": 0.8}.items()}
    line = closing_verdict(rated, "ALRO")
    assert line.startswith("ALRO: below the item mean baseline by 0.1000 in graded_ndcg@5")
    assert "more ratings" in line
