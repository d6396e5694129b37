"""Compares the sampled softmax with a loop and with the full softmax, and tests it at the limits of its arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from trl_rec.losses import sampled_softmax_loss


Q = np.array([0.4, 0.05, 0.05, 0.2, 0.3])  # the probability of drawing each of five negatives
SCORES = torch.tensor([0.7, -1.0, 2.0, 0.0, 0.5, -0.3], dtype=torch.float64)  # the target, then the negatives


def drawn(num_positions: int, num_draws: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Draws K negatives for each of N positions. Returns the negatives `(N, K)`, the logits of the target and of the
    negatives `(N, 1 + K)`, and the logarithm of each negative's probability in `Q`, `(N, K)`."""
    negatives = torch.from_numpy(np.random.default_rng(seed).choice(len(Q), (num_positions, num_draws), p=Q))
    logits = torch.cat([SCORES[:1].expand(num_positions, 1), SCORES[1:][negatives]], 1)
    return negatives, logits, torch.from_numpy(Q).log()[negatives]


def test_value_and_gradient_agree_with_a_loop() -> None:
    _, logits, log_q = drawn(4, 3)
    counted = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    logits = logits.requires_grad_()
    output = sampled_softmax_loss(logits, log_q, counted, temperature=0.8)
    gradient = torch.autograd.grad(output.loss.sum(), logits)[0]
    for row in range(4):
        columns = counted[row].nonzero()[:, 0].tolist()
        scores = (logits[row] / 0.8).tolist()
        terms = [math.exp(scores[1 + c]) / (len(columns) * math.exp(log_q[row, c])) for c in columns]
        total = math.exp(scores[0]) + sum(terms)
        assert output.loss[row].item() == pytest.approx(math.log(total) - scores[0], abs=1e-12)
        expected = [0.0] * 4
        expected[0] = (math.exp(scores[0]) / total - 1) / 0.8
        for column, term in zip(columns, terms, strict=True):
            expected[1 + column] = term / total / 0.8
        assert gradient[row].tolist() == pytest.approx(expected, abs=1e-12)
    assert_close(output.metrics["sampled_ce"], output.loss.detach())
    assert not output.metrics["sampled_ce"].requires_grad


@pytest.mark.parametrize("num_draws", [1, 4])
def test_the_mean_of_the_corrected_sum_equals_the_full_sum(num_draws: int) -> None:
    """The full sum adds exp(score) of all negatives. The corrected sum estimates it from K draws: it adds
    exp(score) / (K q) of each drawn negative, where q is the probability of drawing this negative."""
    _, logits, log_q = drawn(200_000, num_draws)
    loss = sampled_softmax_loss(logits, log_q).loss
    sums = (loss + SCORES[0]).exp() - SCORES[0].exp()
    error = sums.std() / math.sqrt(len(sums))
    full = SCORES[1:].exp().sum()
    assert abs(sums.mean() - full) < 4 * error < 0.05 * full
    cross_entropy = SCORES.logsumexp(0) - SCORES[0]
    assert loss.mean() < cross_entropy  # by Jensen's inequality


def test_many_draws_give_the_loss_and_the_gradient_of_the_full_softmax() -> None:
    negatives, logits, log_q = drawn(1, 200_000)
    logits = logits.requires_grad_()
    loss = sampled_softmax_loss(logits, log_q).loss.sum()
    columns = torch.autograd.grad(loss, logits)[0][0]
    gradient = torch.zeros(6, dtype=torch.float64).index_add(
        0, torch.cat([torch.tensor([0]), 1 + negatives[0]]), columns
    )
    scores = SCORES.clone().requires_grad_()
    full = F.cross_entropy(scores, torch.tensor(0))
    assert_close(loss, full, rtol=0, atol=3e-2)
    assert_close(gradient, torch.autograd.grad(full, scores)[0], rtol=0, atol=1e-2)


def test_one_draw_of_each_negative_from_equal_probabilities_gives_the_full_softmax() -> None:
    log_q = torch.full((1, 5), 0.2, dtype=torch.float64).log()
    loss = sampled_softmax_loss(SCORES.unsqueeze(0), log_q, temperature=2.0).loss
    assert_close(loss, F.cross_entropy(SCORES.unsqueeze(0) / 2, torch.tensor([0]), reduction="none"))


def test_gradcheck() -> None:
    _, logits, log_q = drawn(3, 4)
    counted = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)) < 0.7
    assert torch.autograd.gradcheck(lambda x: sampled_softmax_loss(x, log_q, counted).loss, logits.requires_grad_())


@pytest.mark.parametrize("fill", [torch.inf, -torch.inf, torch.nan])
def test_columns_that_are_not_counted_contribute_nothing(fill: float) -> None:
    _, logits, log_q = drawn(2, 3)
    counted = torch.tensor([[True, True, False], [True, False, True]])
    wanted = sampled_softmax_loss(logits, log_q, counted).loss
    filled = logits.clone()
    filled[:, 1:][~counted] = fill
    filled.requires_grad_()
    found = sampled_softmax_loss(filled, log_q.masked_fill(~counted, -torch.inf), counted).loss
    assert_close(found.detach(), wanted, rtol=0, atol=0)
    gradient = torch.autograd.grad(found.sum(), filled)[0]
    assert gradient.isfinite().all()
    assert gradient[:, 1:][~counted].eq(0).all()


def test_without_negatives_the_loss_and_the_gradient_are_0() -> None:
    logits = torch.tensor([[3.0]], requires_grad=True)
    loss = sampled_softmax_loss(logits, torch.zeros(1, 0)).loss
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), logits)[0].item() == 0


def test_the_loss_is_finite_at_huge_logits_in_bf16() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4], [-1e4, 1e4, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = sampled_softmax_loss(logits, torch.tensor([[0.5, 1e-6], [1e-6, 0.5]]).log()).loss
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


def test_a_temperature_of_0_is_refused() -> None:
    with pytest.raises(ValueError, match="`temperature` must be positive, but is 0.0"):
        sampled_softmax_loss(torch.zeros(1, 2), torch.zeros(1, 1), temperature=0.0)
