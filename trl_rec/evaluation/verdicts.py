"""Says in words what a comparison of two recommenders shows.

The verdict is "better" or "worse" only if the adjusted p-value is below `alpha` and the difference has the same sign
with every seed. If there is only one seed, the verdict ends in "one seed": it holds for the trained models that were
compared, and another seed may reverse it.
"""

from __future__ import annotations

from trl_rec.evaluation.tables import direction_of


UNRESOLVED = "no difference that this split resolves"
DISAGREEING = "no difference that every seed shows"
WORDS = {1: ("better", "worse"), -1: ("worse", "better"), 0: ("higher", "lower")}  # above the reference, below it


def verdict(
    metric: str, difference: float, adjusted_p: float, *, num_seeds: int, same_sign: bool, alpha: float = 0.05
) -> str:
    """Returns the verdict on one recommender compared with a reference.

    Args:
        metric (`str`): The metric. Whether higher or lower values are better depends on the metric. If neither is
            better, the verdict is "higher" or "lower" instead of "better" or "worse".
        difference (`float`): Mean of the recommender minus that of the reference.
        adjusted_p (`float`): The p-value, adjusted for the number of comparisons.
        num_seeds (`int`): Number of seeds compared.
        same_sign (`bool`): Whether the difference has the same sign with every seed.
        alpha (`float`, *optional*, defaults to `0.05`): Level of the verdict. If no recommender differs from the
            reference, at most this share of studies calls any of them better or worse.
    """
    if adjusted_p >= alpha:
        words = UNRESOLVED
    elif not same_sign:
        words = DISAGREEING
    else:
        above, below = WORDS[direction_of(metric)]
        words = above if difference > 0 else below
    return f"{words}, one seed" if num_seeds == 1 else words
