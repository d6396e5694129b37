"""Compares DMPO with a loop and, for one negative, with DPO, and tests it at the limits of its arguments."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.losses.batches import precisions
from tests.losses.test_softmax_dpo import METRICS, Batch, Result, batches, random_batch
from tests.oracles import dmpo as oracle
from trl_rec.losses import dmpo_loss, softmax_dpo_loss


def gradient(batch: Batch, beta: float) -> Result:
    """Returns the losses, and the gradient of their sum with respect to both log-ratios."""
    chosen, rejected = (tensor.detach().clone().requires_grad_() for tensor in batch[:2])
    output = dmpo_loss(chosen, rejected, batch.mask, beta=beta)
    return Result(output, *torch.autograd.grad(output.loss.sum(), (chosen, rejected)))


def expected(batch: Batch, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the losses and both gradients, computed row by row."""
    mask = torch.ones_like(batch.rejected, dtype=torch.bool) if batch.mask is None else batch.mask
    rows = zip(batch.chosen.tolist(), batch.rejected.tolist(), mask.tolist(), strict=True)
    found = [oracle.row(*row, beta=beta) for row in rows]
    columns = [torch.tensor([row[place] for row in found], dtype=torch.float64) for place in range(3)]
    return columns[0], columns[1], columns[2].view(batch.rejected.shape)


def test_value_and_gradient_worked_by_hand() -> None:
    """Beta is 2, and the chosen log-ratio is (log 3) / 2 above the mean of the negatives. The margin is beta times
    this difference. So the margin is log 3, and its sigmoid is 3/4.

    The gradient with respect to the margin is 3/4 - 1 = -1/4. Multiplied by beta, it gives -1/2 for the chosen
    log-ratio. Each of the two negatives gets half of the opposite value: 1/4.
    """
    chosen = torch.tensor([math.log(3) / 2])
    rejected = torch.tensor([[0.7, -0.7]])
    found = gradient(Batch(chosen, rejected, None), beta=2.0)
    assert_close(found.output.loss, torch.tensor([math.log(4 / 3)]))
    assert_close(found.chosen_gradient, torch.tensor([-0.5]))
    assert_close(found.rejected_gradient, torch.tensor([[0.25, 0.25]]))


@given(batches(), st.sampled_from([0.1, 1.0, 2.5]))
def test_value_and_gradient_agree_with_a_loop(batch: Batch, beta: float) -> None:
    found = gradient(batch, beta)
    assert_close((found.output.loss, *found[1:]), expected(batch, beta), rtol=1e-9, atol=1e-9)
    metrics = softmax_dpo_loss(*batch, beta=beta).metrics
    assert_close(found.output.metrics, metrics, rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_one_negative_equals_dpo_with_the_sigmoid_loss_and_softmax_dpo(beta: float) -> None:
    chosen, rejected, _ = random_batch(masked=False)
    batch = Batch(chosen, rejected[:, :1], None)
    found = gradient(batch, beta)
    assert_close(found.output.loss, -F.logsigmoid(beta * (chosen - rejected[:, 0])), rtol=1e-12, atol=1e-12)
    assert_close(found.output.loss, softmax_dpo_loss(*batch, beta=beta).loss, rtol=1e-12, atol=1e-12)


def test_at_the_reference_the_loss_is_log_2_for_any_number_of_negatives() -> None:
    mask = torch.arange(20) < torch.arange(21)[:, None]
    loss = dmpo_loss(torch.zeros(21), torch.zeros(21, 20), mask, beta=1.0).loss
    assert_close(loss, torch.full((21,), math.log(2)).masked_fill(torch.arange(21) == 0, 0))


@pytest.mark.parametrize("fill", [torch.inf, -torch.inf, torch.nan, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masked_entries_contribute_nothing(fill: float, dtype: torch.dtype) -> None:
    batch = random_batch()
    batch = batch._replace(chosen=batch.chosen.to(dtype), rejected=batch.rejected.to(dtype))
    found = gradient(batch._replace(rejected=batch.rejected.masked_fill(~batch.mask, fill)), 0.7)
    assert_close(found, gradient(batch, 0.7), rtol=0, atol=0)
    assert found.rejected_gradient[~batch.mask].eq(0).all()


@pytest.mark.parametrize("num_negatives", [0, 3])
def test_a_row_without_a_negative_gives_zeros(num_negatives: int) -> None:
    rejected = torch.full((1, num_negatives), torch.nan)
    found = gradient(Batch(torch.tensor([1.5]), rejected, torch.zeros(1, num_negatives, dtype=torch.bool)), 1.0)
    assert found.output.loss.eq(0).all() and found.chosen_gradient.eq(0).all() and found.rejected_gradient.eq(0).all()
    assert list(found.output.metrics) == METRICS
    assert all(metric.eq(0).all() for metric in found.output.metrics.values())


def test_copies_of_all_negatives_change_nothing() -> None:
    """In Softmax-DPO, in contrast, m copies of a negative act like one negative whose log-ratio is higher by
    log(m) / beta."""
    chosen, rejected, _ = random_batch(masked=False)
    once = dmpo_loss(chosen, rejected, None, beta=0.7).loss
    assert_close(dmpo_loss(chosen, rejected.repeat(1, 3), None, beta=0.7).loss, once, rtol=1e-12, atol=1e-12)


@precisions
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, computed: torch.dtype, tolerance: float) -> None:
    batch = random_batch()
    batch = batch._replace(chosen=batch.chosen.to(dtype), rejected=batch.rejected.to(dtype))
    found, wanted = gradient(batch, 0.7), expected(batch, 0.7)
    assert found.output.loss.dtype == computed and found.chosen_gradient.dtype == dtype
    assert_close(found.output.loss, wanted[0], rtol=1e-5, atol=1e-5, check_dtype=False)
    assert_close(found[1:], wanted[1:], rtol=tolerance, atol=1e-6, check_dtype=False)


def test_the_loss_is_finite_at_huge_log_ratios_in_bf16() -> None:
    chosen = torch.tensor([1e4, -1e4, 0.0], dtype=torch.bfloat16)
    rejected = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.bfloat16).expand(3, -1)
    found = gradient(Batch(chosen, rejected, None), 1.0)
    assert all(tensor.isfinite().all() for tensor in (found.output.loss, *found[1:]))


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked: bool) -> None:
    chosen, rejected, mask = random_batch(masked=masked)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return dmpo_loss(chosen, rejected, mask, beta=0.7).loss

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_an_invalid_beta_is_refused() -> None:
    with pytest.raises(ValueError, match="`beta` must be positive, but is 0"):
        dmpo_loss(torch.zeros(1), torch.zeros(1, 1), None, beta=0)
