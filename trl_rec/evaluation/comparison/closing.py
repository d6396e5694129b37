"""Writes the sentences below a table of results. They say whether the model beats the strongest baseline, and what may
help if it is worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trl_rec.evaluation.comparison.compare import Comparison, adjust, compare
from trl_rec.evaluation.comparison.resolution import smallest_difference
from trl_rec.evaluation.graded.baselines import RATED_BASELINES
from trl_rec.evaluation.prior_rows import PRIOR_ROW, product_row
from trl_rec.evaluation.results import SEQUENCE, Evaluation


BASELINES = ("popularity", "transition", "random", SEQUENCE, *RATED_BASELINES)
ALPHA = 0.05
NUM_RESAMPLES = 1000
REMEDIES = {
    "ndcg": "more data, a longer run or a pretrained language model may help",
    "graded_ndcg": "more ratings, a longer run or a pretrained language model may help",
    "reward": "a longer run or a higher learning rate may help",
}
GUIDE = "see docs/evaluation.md"


def closing_verdict(results: Mapping[str, Evaluation], name: str | None = None, *, start: str | None = None) -> str:
    """Compares a model with the strongest baseline in each main metric, and returns one line per comparison.

    The main metrics are NDCG at the largest k (graded NDCG for rated candidates), and the reward if there is one. In
    each metric, the model is compared with every baseline and, if `start` is given, with the policy that training
    started from. The p-values are adjusted for the number of these comparisons, but only those with the strongest
    baseline and with `start` get a line. If `results` also contains the model combined with a prior (the product of
    their probabilities), further lines compare this combination with the model alone and with the prior alone.

    Args:
        results (`Mapping[str, Evaluation]`): Evaluation of each recommender by name, with values per user.
        name (`str`, *optional*): The model. Defaults to the first recommender that is not a baseline. If all
            recommenders are baselines, the strongest is compared with the second strongest.
        start (`str`, *optional*): Name of the policy that training started from. If given, the model is also
            compared with this policy.
    """
    lines = []
    baselines = [one for one in results if one in BASELINES]
    if name is None:
        name = next((one for one in results if one not in BASELINES), None)
    measured = next(iter(results.values())) if name is None else results[name]
    for metric in main_metrics(measured.per_user):
        ordered = sorted(baselines, key=lambda one: results[one].metrics[metric], reverse=True)

        # Without a model, compare the strongest baseline with all other baselines. Report the comparison with the
        # second strongest.
        if name is None:
            best, *others = ordered
            if others:
                compared = _against_each(results, best, others, metric)[0]
                lines.append(f"the strongest baseline is {_line(compared, results, of_model=False)}")
            continue

        # Compare the model with all baselines and `start`. Report the comparisons with the strongest baseline and
        # with `start`.
        starts = [] if start is None else [start]
        compared_with = {one.against: one for one in _against_each(results, name, [*ordered, *starts], metric)}
        lines += [_line(compared_with[reference], results) for reference in [*ordered[:1], *starts]]

        # Compare the product with the model and with the prior.
        product = product_row(name)
        if product in results:
            lines += [_line(one, results) for one in _against_each(results, product, [name, PRIOR_ROW], metric)]
    return "\n".join(lines)


def strongest_baseline(results: Mapping[str, Evaluation], metric: str) -> str:
    """Returns the name of the baseline with the highest value of a metric."""
    known = [name for name in results if name in BASELINES and metric in results[name].metrics]
    if not known:
        raise ValueError(f"no baseline has {metric}; give a run of another recommender to compare with")
    return max(known, key=lambda name: results[name].metrics[metric])


def main_metrics(per_user: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the main metrics: NDCG or graded NDCG at the largest k, and the reward if there is one."""
    at_k: dict[int, str] = {}
    for metric in per_user:
        stem, _, k = metric.partition("@")
        if stem in ("ndcg", "graded_ndcg") and k:
            at_k[int(k)] = metric
    found = [at_k[max(at_k)]] if at_k else []
    return [*found, "reward"] if "reward" in per_user else found


def _against_each(
    results: Mapping[str, Evaluation], name: str, references: Sequence[str], metric: str
) -> list[Comparison]:
    """Compares a recommender with each reference. The p-values are adjusted for the number of references."""
    compared: list[Comparison] = []
    for reference in references:
        runs = {one: [results[one].per_user] for one in (reference, name)}
        compared += compare(runs, against=reference, metric=metric, num_resamples=NUM_RESAMPLES)
    return adjust(compared)


def _line(compared: Comparison, results: Mapping[str, Evaluation], *, of_model: bool = True) -> str:
    """Returns one sentence with the verdict on a model, or on the strongest baseline."""
    reference = f"the {compared.against} baseline" if compared.against in BASELINES else compared.against
    figures = f"95 % interval {compared.low:+.4f} to {compared.high:+.4f}, p {compared.adjusted_p:.3f}"
    if of_model:
        figures += ", one seed"

    # State the difference. If it is not significant, add the smallest difference that the split can detect.
    if compared.adjusted_p >= ALPHA:
        line = (
            f"{compared.name}: no significant difference from {reference} in {compared.metric} "
            f"({compared.difference:+.4f}, {figures})"
        )
        if compared.num_users == 1:
            return line
        runs = ([results[name].per_user] for name in (compared.name, compared.against))
        return (
            f"{line}; the split can detect differences of about "
            f"{smallest_difference(*runs, metric=compared.metric):.4f} or more"
        )
    direction = "above" if compared.difference > 0 else "below"
    line = (
        f"{compared.name}: {direction} {reference} by {abs(compared.difference):.4f} in {compared.metric} ({figures})"
    )
    if compared.difference > 0:
        return line
    return f"{line}: {REMEDIES[compared.metric.split('@')[0]]}; {GUIDE}"
