"""Softmax-DPO: prefers one completion over several negatives, whose number may differ from row to row.

Missing negatives are masked. Repeating a negative to fill a row would change the loss: m copies add log m to its
exponent. The inputs are log-ratios of policy and reference, so no model and no tokens appear here.

Legend: B rows, K negatives (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trl_rec.losses.output import LossOutput, at_least_float32


def softmax_dpo_loss(
    chosen_logratios: Tensor, rejected_logratios: Tensor, mask: Tensor | None, *, beta: float
) -> LossOutput:
    r"""Softmax-DPO (S-DPO, arXiv 2406.09215; equation 3 of Align³GR, arXiv 2511.11255), one value per row.

    With $h = \beta \log(\pi_\theta / \pi_{ref})$ of the chosen completion $w$ and of the negatives $l$:

    $$ L = -\log \sigma\left(-\log \sum_l \exp(h_l - h_w)\right) $$

    This is the cross-entropy of the chosen completion among itself and its negatives. One negative gives DPO with
    TRL's `"sigmoid"` loss. If the policy equals the reference, the loss is log(1 + number of negatives).

    A row without a negative has loss 0, gradient 0, and 0 in every metric. The caller, who has the mask, leaves it out
    of means.

    Args:
        chosen_logratios (`torch.Tensor` of shape `(B,)`): The log-probability of the chosen completion under the
            policy minus that under the reference, each summed over its tokens. bfloat16 and float16 are computed in
            float32.
        rejected_logratios (`torch.Tensor` of shape `(B, K)`): The same for the negatives. K may be 0.
        mask (`torch.Tensor` of shape `(B, K)` or `None`): True where there is a negative; `None` if all entries are
            negatives. Masked entries have no effect, even if infinite or NaN.
        beta (`float`): Weight of the divergence from the reference.

    Returns:
        [`LossOutput`]: The loss, `(B,)`, and the metrics `rewards_chosen`, `rewards_rejected` (the mean over the
        negatives), `margins` (their difference), and `accuracies`: 1 where the chosen completion is above every
        negative; a tie counts as 0.
    """
    check_beta(beta)
    if mask is None:
        mask = torch.ones_like(rejected_logratios, dtype=torch.bool)

    chosen = beta * at_least_float32(chosen_logratios)  # (B,)
    rejected = beta * at_least_float32(rejected_logratios)  # (B, K)
    # Subtract before masking: then a row without a negative has the gradient 0, not 0 * infinity.
    excess = torch.where(mask, rejected - chosen[:, None], -torch.inf)
    loss = -F.logsigmoid(-excess.logsumexp(-1))
    return LossOutput(loss, preference_metrics(chosen.detach(), rejected.detach(), mask))


def preference_metrics(chosen: Tensor, rejected: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The metrics of preference losses, `(B,)` each, from rewards `(B,)` and `(B, K)`; 0 in rows without a
    negative."""
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
    """Raises unless `beta` is positive."""
    if beta <= 0:
        raise ValueError(
            f"`beta` is {beta}, but at 0 or below nothing is preferred: give a positive number, such as 1."
        )
