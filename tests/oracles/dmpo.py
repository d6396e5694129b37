"""Computes the loss of DMPO (direct multi-preference optimization) for one row at a time, in plain floats. The
gradient was derived by hand."""

import math


def row(chosen: float, rejected: list[float], mask: list[bool], *, beta: float) -> tuple[float, float, list[float]]:
    """Returns the loss, and its gradient with respect to the chosen and to each rejected log-ratio."""
    negatives = [value for value, real in zip(rejected, mask, strict=True) if real]
    if not negatives:
        return 0.0, 0.0, [0.0] * len(rejected)
    margin = beta * (chosen - math.fsum(negatives) / len(negatives))
    loss = math.log1p(math.exp(-margin)) if margin > 0 else math.log1p(math.exp(margin)) - margin
    slope = -1 / (1 + math.exp(margin)) if margin < 700 else 0.0  # of the loss with respect to the margin
    shares = [-beta * slope / len(negatives) if real else 0.0 for real in mask]
    return loss, beta * slope, shares
