"""Softmax-DPO: a preference of one completion over many, whose number differs from row to row.

Negatives that are missing are masked, never filled up by repeating one: m copies of a negative add log m to its
exponent. What is given are log-ratios of policy and reference, so that no model and no token appears here.

Legend: B rows, K negatives (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.losses.output import LossOutput, at_least_float32


def softmax_dpo_loss(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    mask: Tensor | None,
    *,
    beta: float,
) -> LossOutput:
    r"""Softmax-DPO (S-DPO, arXiv 2406.09215, and Align³GR, arXiv 2511.11255, its equation 3), one value a row.

    With $h = \beta \log(\pi_\theta / \pi_{ref})$ of the chosen completion $w$ and of the negatives $l$:

    $$ L = -\log \sigma\left(-\log \sum_l \exp(h_l - h_w)\right) $$

    This is cross-entropy at the chosen one, over it and its negatives. One negative gives DPO with TRL's `"sigmoid"`
    loss. Where the policy is the reference, the loss is log(1 + negatives).

    A row without a negative has loss 0, zero gradient, and 0 in every metric. Nothing here leaves it out of a mean:
    that is for the caller, who has the mask.

    Args:
        chosen_logratios: `(B,)`, the log-probability of the chosen completion under the policy minus that under the
            reference, each a sum over its tokens. bfloat16 and float16 are computed in float32.
        rejected_logratios: `(B, K)`, the same of the negatives. K may be 0.
        mask: `(B, K)`, True where there is a negative, or `None` when all are. What is held elsewhere plays no part,
            be it infinite or NaN.
        beta: Weight of the divergence from the reference.

    Returns:
        The loss, `(B,)`, and the metrics `rewards_chosen`, `rewards_rejected` (the mean over the negatives), `margins`
        (their difference), and `accuracies`: 1 where the chosen one is above every negative, so that a tie counts as
        0.
    """
    check_beta(beta)
    if mask is None:
        mask = torch.ones_like(rejected_logratios, dtype=torch.bool)
    chosen = beta * at_least_float32(chosen_logratios)
    rejected = beta * at_least_float32(rejected_logratios)
    # The subtraction comes before the mask, so that a row without a negative sends back zeros and not 0 * infinity.
    excess = torch.where(mask, rejected - chosen[:, None], -torch.inf)
    loss = -F.logsigmoid(-excess.logsumexp(-1))
    return LossOutput(loss, preference_metrics(chosen.detach(), rejected.detach(), mask))


def preference_metrics(chosen: Tensor, rejected: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What preference losses report per row, from rewards `(B,)` and `(B, K)`; 0 in a row without a negative."""
    has_negatives = mask.any(-1)
    mean_rejected = torch.where(mask, rejected, 0).sum(-1) / mask.sum(-1).clamp(min=1)
    above_all = torch.where(mask, rejected < chosen[:, None], True).all(-1)
    return {
        "rewards_chosen": torch.where(has_negatives, chosen, 0),
        "rewards_rejected": mean_rejected,
        "margins": torch.where(has_negatives, chosen - mean_rejected, 0),
        "accuracies": (above_all & has_negatives).to(chosen.dtype),
    }


def check_beta(beta: float) -> None:
    """Refuses a beta at which nothing is preferred."""
    if beta <= 0:
        raise ValueError(
            f"`beta` is {beta}, but at 0 or below nothing is preferred: give a positive number, such as 1."
        )
