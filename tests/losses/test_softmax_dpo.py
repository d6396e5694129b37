"""Compares Softmax-DPO with a loop and, for one negative, with DPO, and tests it at the limits of its arguments."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.losses.batches import chunks_of, joined, picked, precisions, rows_of
from tests.oracles import softmax_dpo as oracle
from trl_rec.losses import LossOutput, softmax_dpo_loss


METRICS = ["rewards_chosen", "rewards_rejected", "margins", "accuracies"]


class Batch(NamedTuple):
    chosen: Tensor
    rejected: Tensor
    mask: Tensor | None


class Result(NamedTuple):
    output: LossOutput
    chosen_gradient: Tensor
    rejected_gradient: Tensor


def gradient(batch: Batch, beta: float) -> Result:
    """Returns the losses, and the gradient of their sum with respect to both log-ratios."""
    chosen, rejected = (tensor.detach().clone().requires_grad_() for tensor in batch[:2])
    output = softmax_dpo_loss(chosen, rejected, batch.mask, beta=beta)
    return Result(output, *torch.autograd.grad(output.loss.sum(), (chosen, rejected)))


def expected(batch: Batch, beta: float) -> Result:
    mask = torch.ones_like(batch.rejected, dtype=torch.bool) if batch.mask is None else batch.mask
    rows = zip(batch.chosen.tolist(), batch.rejected.tolist(), mask.tolist(), strict=True)
    found = [oracle.row(*row, beta=beta) for row in rows]
    columns = {
        name: torch.tensor([getattr(row, name) for row in found], dtype=torch.float64) for name in oracle.Row._fields
    }
    output = LossOutput(columns["loss"], {name: columns[name] for name in METRICS})
    return Result(output, columns["chosen_gradient"], columns["rejected_gradient"].view(batch.rejected.shape))


def random_batch(num_rows: int = 6, num_negatives: int = 5, *, masked: bool = True, seed: int = 0) -> Batch:
    """Returns rows with 0, 1, 2, ... negatives if `masked`. Otherwise, all rows have `num_negatives` negatives."""
    generator = torch.Generator().manual_seed(seed)
    chosen = 2 * torch.randn(num_rows, generator=generator, dtype=torch.float64)
    rejected = 2 * torch.randn(num_rows, num_negatives, generator=generator, dtype=torch.float64)
    order = torch.rand(num_rows, num_negatives, generator=generator).argsort(1)
    return Batch(chosen, rejected, order < torch.arange(num_rows)[:, None] if masked else None)


def test_value_and_gradient_worked_by_hand() -> None:
    """Beta is 2. The rewards (beta times the log-ratios) are log 4 for the chosen completion, and log 2, log 1 and
    log 1 for the negatives.

    The softmax is 4/8, 2/8, 1/8, 1/8, so the loss is log 2. Its gradient with respect to the rewards is the softmax,
    minus 1 for the chosen completion: -1/2, 1/4, 1/8, 1/8. The gradient with respect to the log-ratios is twice as
    large. The mean reward of the negatives is (log 2) / 3.
    """
    chosen, rejected = torch.tensor([math.log(4) / 2]), torch.tensor([[math.log(2) / 2, 0.0, 0.0]])
    found = gradient(Batch(chosen, rejected, None), beta=2.0)
    assert_close(found.output.loss, torch.tensor([math.log(2)]))
    assert_close(found.chosen_gradient, torch.tensor([-1.0]))
    assert_close(found.rejected_gradient, torch.tensor([[0.5, 0.25, 0.25]]))
    wanted = {"rewards_chosen": 2.0, "rewards_rejected": 1 / 3, "margins": 5 / 3}
    metrics = {name: torch.tensor([parts * math.log(2)]) for name, parts in wanted.items()}
    assert_close(found.output.metrics, {**metrics, "accuracies": torch.tensor([1.0])})


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Draws log-ratios that are multiples of 1/2, so that many of them are equal."""
    num_rows, num_negatives = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    ratios = st.integers(-60, 60).map(lambda step: step / 2)

    def table(cells: st.SearchStrategy, width: int) -> list:
        row = st.lists(cells, min_size=width, max_size=width)
        return draw(st.lists(row, min_size=num_rows, max_size=num_rows))

    chosen = torch.tensor(table(ratios, 1), dtype=torch.float64).view(num_rows)
    rejected = torch.tensor(table(ratios, num_negatives), dtype=torch.float64).view(num_rows, num_negatives)
    mask = None
    if draw(st.booleans()):
        mask = torch.tensor(table(st.booleans(), num_negatives), dtype=torch.bool).view(num_rows, num_negatives)
    return Batch(chosen, rejected, mask)


@given(batches(), st.sampled_from([0.1, 1.0, 2.5]))
def test_value_metrics_and_gradient_agree_with_a_loop(batch: Batch, beta: float) -> None:
    assert_close(gradient(batch, beta), expected(batch, beta), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("masked", [False, True])
@precisions
def test_half_precision_is_computed_in_float32(
    masked: bool, dtype: torch.dtype, computed: torch.dtype, tolerance: float
) -> None:
    batch = random_batch(masked=masked)
    batch = batch._replace(chosen=batch.chosen.to(dtype), rejected=batch.rejected.to(dtype))
    found, wanted = gradient(batch, 0.7), expected(batch, 0.7)
    assert {found.output.loss.dtype, *(metric.dtype for metric in found.output.metrics.values())} == {computed}
    assert {found.chosen_gradient.dtype, found.rejected_gradient.dtype} == {dtype}
    exact = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    assert_close(found.output.loss, wanted.output.loss, **exact)
    assert_close(found.output.metrics, wanted.output.metrics, **exact)
    # The gradient is rounded only once, when it is cast to the dtype of the log-ratios.
    assert_close(found[1:], wanted[1:], rtol=tolerance, atol=1e-6, check_dtype=False)


def test_the_loss_equals_the_cross_entropy_of_the_chosen_completion() -> None:
    chosen, rejected, mask = random_batch()
    for beta in (0.1, 1.0, 3.0):
        logits = beta * torch.cat([chosen[:, None], rejected.masked_fill(~mask, -torch.inf)], 1)
        wanted = -logits.log_softmax(-1)[:, 0]
        found = softmax_dpo_loss(chosen, rejected, mask, beta=beta).loss
        assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_one_negative_equals_dpo_with_the_sigmoid_loss(beta: float) -> None:
    chosen, rejected, _ = random_batch(masked=False)
    found = gradient(Batch(chosen, rejected[:, :1], None), beta)
    leaves = chosen.clone().requires_grad_(), rejected[:, 0].clone().requires_grad_()
    losses = -F.logsigmoid(beta * (leaves[0] - leaves[1]))
    assert_close(found.output.loss, losses.detach(), rtol=1e-12, atol=1e-12)
    wanted = torch.autograd.grad(losses.sum(), leaves)
    assert_close((found[1], found[2][:, 0]), wanted, rtol=1e-12, atol=1e-12)
    rewards = {"rewards_chosen": beta * chosen, "rewards_rejected": beta * rejected[:, 0]}
    margins = beta * (chosen - rejected[:, 0])
    metrics = {**rewards, "margins": margins, "accuracies": (chosen > rejected[:, 0]).double()}
    assert_close(found.output.metrics, metrics, rtol=1e-12, atol=1e-12)
    assert set(metrics["accuracies"].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_at_the_reference_the_loss_depends_on_the_number_of_negatives(beta: float) -> None:
    mask = torch.arange(20) < torch.arange(21)[:, None]
    found = gradient(Batch(torch.zeros(21), torch.zeros(21, 20), mask), beta)
    num_negatives = torch.arange(21.0)
    assert_close(found.output.loss, num_negatives.log1p())
    assert_close(found.chosen_gradient, -beta * num_negatives / (1 + num_negatives))
    assert all(metric.eq(0).all() for metric in found.output.metrics.values())


def test_copies_of_a_negative_add_the_log_of_their_number() -> None:
    """m copies of one negative act like one negative whose log-ratio is higher by log(m) / beta."""
    chosen, rejected, _ = random_batch(masked=False)
    for copies in (2, 7):
        repeated = gradient(Batch(chosen, rejected[:, :1].repeat(1, copies), None), 0.5)
        single = gradient(Batch(chosen, rejected[:, :1] + math.log(copies) / 0.5, None), 0.5)
        assert_close(repeated.output.loss, single.output.loss, rtol=1e-12, atol=1e-12)
        assert_close(repeated.chosen_gradient, single.chosen_gradient, rtol=1e-12, atol=1e-12)
        summed = repeated.rejected_gradient.sum(1, keepdim=True)
        assert_close(summed, single.rejected_gradient, rtol=1e-12, atol=1e-12)
        assert (repeated.output.loss > softmax_dpo_loss(chosen, rejected[:, :1], None, beta=0.5).loss).all()


@pytest.mark.parametrize("fill", [torch.inf, -torch.inf, torch.nan, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_masked_entries_contribute_nothing(fill: float, dtype: torch.dtype) -> None:
    batch = random_batch()
    batch = batch._replace(chosen=batch.chosen.to(dtype), rejected=batch.rejected.to(dtype))
    wanted = gradient(batch, 0.7)
    found = gradient(batch._replace(rejected=batch.rejected.masked_fill(~batch.mask, fill)), 0.7)
    assert_close(found, wanted, rtol=0, atol=0)
    assert found.rejected_gradient[~batch.mask].eq(0).all()
    assert all(tensor.isfinite().all() for tensor in found[1:])


@pytest.mark.parametrize("num_negatives", [0, 3])
@pytest.mark.parametrize("chosen", [1.5, -1.5])
def test_a_row_without_a_negative_gives_zeros(num_negatives: int, chosen: float) -> None:
    rejected = torch.full((1, num_negatives), torch.nan)
    found = gradient(Batch(torch.tensor([chosen]), rejected, torch.zeros(1, num_negatives, dtype=torch.bool)), 1.0)
    assert found.output.loss.eq(0).all()
    assert found.chosen_gradient.eq(0).all()
    assert found.rejected_gradient.eq(0).all()
    assert list(found.output.metrics) == METRICS
    assert all(metric.eq(0).all() for metric in found.output.metrics.values())


def test_padding_and_the_order_of_rows_and_negatives_do_not_matter() -> None:
    batch = random_batch()
    found = gradient(batch, 0.7)
    padded = Batch(batch.chosen, F.pad(batch.rejected, (0, 3), value=9.0), F.pad(batch.mask, (0, 3)))
    assert_close(
        gradient(padded, 0.7), found._replace(rejected_gradient=F.pad(found[2], (0, 3))), rtol=1e-12, atol=1e-12
    )

    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([4, 2, 0, 1, 3])
    moved = rows_of(batch, rows)
    moved = Batch(moved.chosen, moved.rejected[:, columns], moved.mask[:, columns])
    wanted = Result(picked(found.output, rows), found[1][rows], found[2][rows][:, columns])
    assert_close(gradient(moved, 0.7), wanted, rtol=1e-12, atol=1e-12)


def test_chunks_give_the_same_results_as_the_whole_batch() -> None:
    batch = random_batch()
    whole = gradient(batch, 0.7)
    outputs, *gradients = zip(*(gradient(chunk, 0.7) for chunk in chunks_of(batch)), strict=True)
    assert_close(Result(joined(outputs), *map(torch.cat, gradients)), whole, rtol=1e-12, atol=1e-12)


def test_a_mask_of_ones_equals_no_mask() -> None:
    batch = random_batch(masked=False)
    full = batch._replace(mask=torch.ones_like(batch.rejected, dtype=torch.bool))
    assert_close(gradient(full, 0.7), gradient(batch, 0.7), rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_finite_at_huge_log_ratios_in_bf16(beta: float, masked: bool) -> None:
    chosen = torch.tensor([1e4, -1e4, 0.0], dtype=torch.bfloat16)
    rejected = torch.tensor([[1e4, -1e4, 0.0, 1e4, -1e4]], dtype=torch.bfloat16).expand(3, -1)
    mask = torch.tensor([[False, True, True, False, False]]).expand(3, -1) if masked else None
    found, wanted = gradient(Batch(chosen, rejected, mask), beta), expected(Batch(chosen, rejected, mask), beta)
    assert found.output.loss.isfinite().all()
    assert_close(found.output.loss.double(), wanted.output.loss, rtol=1e-5, atol=1e-5)
    assert_close(found.output.metrics, wanted.output.metrics, rtol=1e-5, atol=1e-3, check_dtype=False)
    assert_close(found[1:], wanted[1:], rtol=2**-8, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked: bool) -> None:
    chosen, rejected, mask = random_batch(masked=masked)

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return softmax_dpo_loss(chosen, rejected, mask, beta=0.7).loss

    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


def test_a_row_is_accurate_if_the_chosen_completion_is_above_every_negative() -> None:
    """In the first row, the chosen completion is above all negatives. In the second, it is above their mean, but not
    above all of them. In the third, it equals the best negative. In the fourth, only a masked negative is above it."""
    rejected = torch.tensor([[0.0, 0.9], [-9.0, 1.1], [0.0, 1.0], [0.0, 5.0]])
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    output = softmax_dpo_loss(torch.ones(4), rejected, mask, beta=0.5)
    assert output.metrics["accuracies"].tolist() == [1, 0, 0, 1]
    assert (output.metrics["margins"] > 0).all()


def test_metrics_are_detached_and_the_inputs_are_unchanged() -> None:
    chosen, rejected, mask = random_batch()
    before = chosen.clone(), rejected.clone(), mask.clone()
    output = softmax_dpo_loss(chosen.requires_grad_(), rejected.requires_grad_(), mask, beta=1.0)
    output.loss.sum().backward()
    assert list(output.metrics) == METRICS
    assert not any(metric.requires_grad for metric in output.metrics.values())
    assert {output.loss.shape, *(metric.shape for metric in output.metrics.values())} == {chosen.shape}
    assert all(now.equal(then) for now, then in zip((chosen, rejected, mask), before, strict=True))


@pytest.mark.parametrize("beta", [0.0, -1.0])
def test_an_invalid_beta_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=f"`beta` must be positive, but is {beta}"):
        softmax_dpo_loss(*random_batch(), beta=beta)
