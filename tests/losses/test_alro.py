"""Compares ALRO's two losses with loops and with LambdaLoss, and tests them at the limits of their arguments."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.losses.batches import chunks_of, joined, precisions
from tests.oracles import alro as oracle
from trl_rec.losses import LossOutput, permutation_loss, soft_lambda_loss


SCORES = ("logprob", "prob")
DELTAS = ("target", "model")
DISTANCES = ("jsd", "symkl", "ce")
SETTINGS = {"gamma": 1.3, "sigma": 0.7}


class Batch(NamedTuple):
    """Lists of candidates. `logps` contains one table per list: the log-probability of each candidate at each answer
    position. `permuted` contains the tables for prompts that show the candidates in another order. Column i belongs
    to the same candidate in both."""

    logps: Tensor
    ratings: Tensor
    gold_rank: Tensor
    mask: Tensor | None
    permuted: Tensor


def normalised(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns log-probabilities over the candidates of each list: -inf for masked entries, NaN in lists without
    candidates."""
    return (logits if mask is None else logits.masked_fill(~mask[:, None, :], -torch.inf)).log_softmax(-1)


def gold(ratings: Tensor, mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Returns ranks by descending rating, with equal ratings in random order and masked entries last."""
    keys = -ratings + 0.5 * torch.rand(ratings.shape, generator=generator, dtype=ratings.dtype)
    return (keys if mask is None else keys.masked_fill(~mask, torch.inf)).argsort(-1).argsort(-1)


def random_batch(num_lists: int = 5, width: int = 4, *, masked: bool = True, seed: int = 0) -> Batch:
    """Returns lists of 0, 1, 2, ... candidates if `masked`. Otherwise, all lists have `width` candidates. Ratings are
    whole numbers from 0 to 5, so many of them are equal."""
    generator = torch.Generator().manual_seed(seed)
    tables = 2 * torch.randn(2, num_lists, width, width, generator=generator, dtype=torch.float64)
    ratings = torch.randint(6, (num_lists, width), generator=generator).double()
    mask = None
    if masked:
        order = torch.rand(num_lists, width, generator=generator).argsort(1)
        mask = order < torch.arange(num_lists)[:, None] % (width + 1)
    logps, permuted = (normalised(logits, mask) for logits in tables)
    return Batch(logps, ratings, gold(ratings, mask, generator), mask, permuted)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    num_lists, width, seed = draw(st.integers(0, 4)), draw(st.integers(1, 6)), draw(st.integers(0, 2**20))
    batch = random_batch(num_lists, width, masked=False, seed=seed)
    if draw(st.booleans()):
        return batch
    flags = st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=num_lists, max_size=num_lists)
    mask = torch.tensor(draw(flags), dtype=torch.bool).view(num_lists, width)
    gold_rank = gold(batch.ratings, mask, torch.Generator().manual_seed(seed))
    return Batch(normalised(batch.logps, mask), batch.ratings, gold_rank, mask, normalised(batch.permuted, mask))


def soft_lambda(batch: Batch, **settings: Any) -> tuple[LossOutput, Tensor]:
    """Returns the losses, and the gradient of their sum with respect to `logps`."""
    logps = batch.logps.detach().clone().requires_grad_()
    output = soft_lambda_loss(logps, batch.ratings, batch.gold_rank, batch.mask, **settings)
    return output, torch.autograd.grad(output.loss.sum(), logps)[0]


def permutation(batch: Batch, distance: str) -> tuple[LossOutput, Tensor, Tensor]:
    """Returns the losses, and the gradients of their sum with respect to `logps` and `permuted`."""
    tables = [table.detach().clone().requires_grad_() for table in (batch.logps, batch.permuted)]
    output = permutation_loss(*tables, batch.mask, distance=distance)
    return output, *torch.autograd.grad(output.loss.sum(), tables, allow_unused=True, materialize_grads=True)


def full_mask(batch: Batch) -> Tensor:
    return torch.ones_like(batch.ratings, dtype=torch.bool) if batch.mask is None else batch.mask


def expected_soft_lambda(batch: Batch, *, delta: str = "target", **settings: Any) -> tuple[LossOutput, Tensor]:
    settings = {"gamma": 1.0, "sigma": 1.0, "score": "logprob", **settings}
    lists = zip(*(tensor.tolist() for tensor in (*batch[:3], full_mask(batch))), strict=True)
    found = [oracle.soft_lambda(*one, delta=delta, **settings) for one in lists]
    loss, position, gradient = (
        torch.tensor([getattr(one, name) for one in found], dtype=torch.float64) for name in oracle.Ranked._fields
    )
    return LossOutput(loss, {"position": position.view(batch.ratings.shape)}), gradient.view(batch.logps.shape)


def expected_permutation(batch: Batch, distance: str) -> tuple[LossOutput, Tensor, Tensor]:
    lists = zip(*(tensor.tolist() for tensor in (batch.logps, batch.permuted, full_mask(batch))), strict=True)
    found = [oracle.permutation(*one, distance=distance) for one in lists]
    loss, *gradients = (
        torch.tensor([getattr(one, name) for one in found], dtype=torch.float64) for name in oracle.Compared._fields
    )
    return LossOutput(loss, {}), *(gradient.view(batch.logps.shape) for gradient in gradients)


def both(batch: Batch) -> list[tuple]:
    """Returns the values and gradients of every variant of both losses."""
    variants = [(score, delta) for score in SCORES for delta in DELTAS]
    ranked = [soft_lambda(batch, **SETTINGS, score=score, delta=delta) for score, delta in variants]
    return [*ranked, *(permutation(batch, distance) for distance in DISTANCES)]


def hard(order: list[int]) -> Tensor:
    """Returns the table `(1, m, m)` of a model that is almost certain to name the candidates in this order."""
    logits = torch.full((len(order), len(order)), -50.0, dtype=torch.float64)
    logits[range(len(order)), order] = 50.0
    return normalised(logits[None])


def table_of(*lists: list[float]) -> Tensor:
    return torch.tensor([*lists], dtype=torch.float64)


# The soft lambda loss.


def test_soft_lambda_worked_by_hand() -> None:
    """Two candidates are rated 1 and 2. The model names the first candidate with probability 3/4 at position 1, and
    with probability 1/4 at position 2.

    The expected positions are s = (1 * 3/4 + 2 * 1/4, 1 * 1/4 + 2 * 3/4) = (5/4, 7/4). The second candidate is
    preferred, but its expected position is 1/2 behind that of the first one. Before the division by maxDCG, the gains
    are 1 and 3. With maxDCG = 3 + 1/log2(3) and delta = 1 - 1/log2(3), the weight of the pair is
    w = delta * (3 - 1) / maxDCG, and the loss is w log2(1 + exp(1/2)).

    With c = w sigmoid(1/2) / log 2, the loss has the slope c in the expected position of the second candidate, and -c
    in that of the first. An expected position s has the slope p * (k - s) in the log-probability at answer position k,
    where p is the probability there. This is 3/4 * (1 - 5/4) = -3/16 and 1/4 * (2 - 5/4) = 3/16 for the first
    candidate, and 1/4 * (1 - 7/4) = -3/16 and 3/4 * (2 - 7/4) = 3/16 for the second.
    """
    logps = torch.tensor([[[0.75, 0.25], [0.25, 0.75]]], dtype=torch.float64).log()
    batch = Batch(logps, table_of([1.0, 2.0]), torch.tensor([[1, 0]]), None, logps)
    output, found = soft_lambda(batch)
    weight = (1 - 1 / math.log2(3)) * 2 / (3 + 1 / math.log2(3))
    assert_close(output.loss, torch.tensor([weight * math.log2(1 + math.exp(0.5))], dtype=torch.float64))
    assert_close(output.metrics, {"position": table_of([1.25, 1.75])})
    slope = weight / (1 + math.exp(-0.5)) / math.log(2) * 3 / 16
    assert_close(found, slope * torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64))


@given(
    batches(),
    st.sampled_from([0.3, 1.0, 5.0]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from(SCORES),
    st.sampled_from(DELTAS),
)
def test_soft_lambda_agrees_with_a_loop(batch: Batch, gamma: float, sigma: float, score: str, delta: str) -> None:
    settings = {"gamma": gamma, "sigma": sigma, "score": score, "delta": delta}
    assert_close(soft_lambda(batch, **settings), expected_soft_lambda(batch, **settings), rtol=1e-9, atol=1e-9)


def test_the_weight_of_a_pair_depends_on_the_gap_of_its_ranks() -> None:
    """If all log-probabilities are equal and the ratings are 1 and 0, every factor of the loss except delta is 1."""
    gaps = torch.arange(1, 6)
    gold_rank = torch.stack([torch.zeros_like(gaps), gaps], 1)
    output = soft_lambda_loss(torch.zeros(5, 2, 2), torch.tensor([[1, 0]]).expand(5, -1), gold_rank, None)
    assert_close(output.loss, torch.tensor([0.3691, 0.1309, 0.0693, 0.0438, 0.0306]), rtol=0, atol=5e-5)


@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_soft_lambda_equals_lambda_loss_if_the_model_is_almost_certain(sigma: float) -> None:
    """LambdaLoss sums over pairs instead of averaging, and measures the distances of pairs in the model's order, as
    `delta="model"` does. Here, the score of a candidate is minus its position."""
    ratings = table_of([3.0, 5.0, 0.0, 3.0, 1.0, 4.0, 4.0])
    num_pairs = sum(a > b for a in ratings[0] for b in ratings[0])
    for order in ([1, 5, 6, 0, 3, 4, 2], [2, 4, 3, 0, 6, 5, 1], [3, 1, 4, 2, 6, 0, 5]):
        # The gold order must have no effect here.
        gold_rank = torch.arange(7)[None]
        output = soft_lambda_loss(hard(order), ratings, gold_rank, None, sigma=sigma, delta="model")
        scores = [-1.0 - order.index(item) for item in range(7)]
        assert_close(output.metrics["position"], table_of([-score for score in scores]))
        assert (output.loss * num_pairs).item() == pytest.approx(
            oracle.lambda_loss(scores, ratings[0].tolist(), sigma)
        )


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("rating", [0.0, 4.0])
def test_equal_ratings_give_no_loss_and_no_gradient(rating: float, score: str, delta: str) -> None:
    batch = random_batch()
    batch = batch._replace(ratings=torch.full_like(batch.ratings, rating))
    output, found = soft_lambda(batch, score=score, delta=delta)
    assert output.loss.eq(0).all()
    assert found.eq(0).all()


@pytest.mark.parametrize("delta", DELTAS)
def test_each_swap_into_order_lowers_the_loss(delta: str) -> None:
    """Swaps of neighbours turn the reversed answer into the perfect answer, which still has a loss above 0."""
    ratings, gold_rank = table_of([5.0, 4.0, 3.0, 1.0]), torch.arange(4)[None]
    order, losses = [3, 2, 1, 0], []
    while True:
        losses.append(soft_lambda_loss(hard(order), ratings, gold_rank, None, delta=delta).loss.item())
        wrong = [k for k in range(3) if order[k] > order[k + 1]]
        if not wrong:
            break
        order[wrong[0]], order[wrong[0] + 1] = order[wrong[0] + 1], order[wrong[0]]
    assert len(losses) == 7
    if delta == "target":
        assert losses == sorted(losses, reverse=True)
    # With `delta="model"`, the weights depend on the model's order, so only the first and the last loss can be
    # compared.
    assert 0 < losses[-1] < losses[0]


def test_raising_a_good_candidate_early_or_a_bad_one_late_lowers_the_loss() -> None:
    """The loss rises with the position of the best candidate, and falls with the position of the worst candidate."""
    batch = random_batch(masked=False)
    batch = batch._replace(ratings=table_of([0.0, 5.0, 3.0, 1.0]).expand(5, -1))
    batch = batch._replace(gold_rank=torch.tensor([[3, 0, 1, 2]]).expand(5, -1))
    for score in SCORES:
        for delta in DELTAS:
            _, found = soft_lambda(batch, score=score, delta=delta)
            assert (found[:, 0, 1] < 0).all()
            assert (found[:, -1, 1] > 0).all()
            assert (found[:, 0, 0] > 0).all()
            assert (found[:, -1, 0] < 0).all()


def test_the_softmax_runs_over_positions() -> None:
    """Adding a constant to all log-probabilities of a candidate changes nothing. Adding a constant to all
    log-probabilities at a position changes the loss."""
    batch = random_batch(masked=False)
    output, found = soft_lambda(batch, **SETTINGS)
    shift = torch.tensor([4.0, -3.0, 0.0, 1.0], dtype=torch.float64)
    moved = batch._replace(logps=batch.logps + shift)
    assert_close(soft_lambda(moved, **SETTINGS), (output, found), rtol=1e-12, atol=1e-12)
    assert_close(found.sum(1), torch.zeros(5, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    moved = batch._replace(logps=batch.logps + shift[:, None])
    assert (soft_lambda(moved, **SETTINGS)[0].loss != output.loss).all()


def test_the_limits_of_a_sharp_softmax_and_of_a_flat_softmax() -> None:
    batch = random_batch(masked=False)
    for score in SCORES:
        sharp = soft_lambda_loss(*batch[:4], gamma=1e4, score=score).metrics["position"]
        assert_close(sharp, batch.logps.argmax(1).double() + 1)
        flat = soft_lambda_loss(*batch[:4], gamma=1e-9, score=score).metrics["position"]
        assert_close(flat, torch.full_like(flat, 2.5))


def test_a_short_list_uses_only_as_many_positions_as_candidates() -> None:
    batch = random_batch()
    num_candidates = batch.mask.sum(1, keepdim=True)
    assert num_candidates.flatten().tolist() == [0, 1, 2, 3, 4]
    flat = soft_lambda_loss(*batch[:4], gamma=1e-9).metrics["position"]
    assert_close(flat, torch.where(batch.mask, (num_candidates + 1) / 2, 0).double())


def test_delta_model_uses_the_models_ranks_and_holds_them_constant() -> None:
    batch = random_batch(masked=False)
    found = soft_lambda(batch, **SETTINGS, delta="model")
    rank = found[0].metrics["position"].argsort(-1).argsort(-1)
    assert (rank != batch.gold_rank).any()
    assert_close(soft_lambda(batch._replace(gold_rank=rank), **SETTINGS, delta="target"), found, rtol=0, atol=0)


def test_equal_positions_are_ranked_by_column() -> None:
    batch = Batch(
        torch.zeros(1, 5, 5), torch.tensor([[1, 4, 3, 5, 2]]), torch.tensor([[4, 1, 2, 0, 3]]), None, torch.empty(0)
    )
    tied = soft_lambda(batch, delta="model")
    ranked = soft_lambda(batch._replace(gold_rank=torch.arange(5)[None]), delta="target")
    assert_close(tied, ranked, rtol=0, atol=0)


def test_huge_ratings_do_not_overflow() -> None:
    """Ratings such as play counts may be huge. Here, they are so far apart that the gains of all candidates except the
    best one are rounded to 0."""
    logps = torch.randn(1, 3, 3).log_softmax(-1).requires_grad_()
    output = soft_lambda_loss(logps, torch.tensor([[1e4, 200.0, 1.0]]), torch.tensor([[0, 1, 2]]), None)
    wanted = soft_lambda_loss(logps, torch.tensor([[60.0, 2.0, 1.0]]), torch.tensor([[0, 1, 2]]), None)
    assert_close(output.loss, wanted.loss)
    assert torch.autograd.grad(output.loss.sum(), logps)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.bfloat16])
def test_ratings_may_have_any_dtype(dtype: torch.dtype) -> None:
    batch = random_batch()
    assert_close(soft_lambda(batch._replace(ratings=batch.ratings.to(dtype))), soft_lambda(batch), rtol=0, atol=0)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("masked", [False, True])
def test_soft_lambda_gradcheck(masked: bool, score: str) -> None:
    batch = random_batch(masked=masked)
    logps = torch.where(batch.logps.isfinite(), batch.logps, 0).requires_grad_()

    def loss(logps: Tensor) -> Tensor:
        return soft_lambda_loss(logps, *batch[1:4], **SETTINGS, score=score).loss

    assert torch.autograd.gradcheck(loss, logps)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gamma": 0.0}, "`gamma` must be positive, but is 0.0"),
        ({"sigma": -1.0}, "`sigma` must be positive, but is -1.0"),
        ({"score": "logit"}, "`score` must be 'logprob' or 'prob', but is 'logit'"),
        ({"delta": "gold"}, "`delta` must be 'target' or 'model', but is 'gold'"),
    ],
)
def test_invalid_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_lambda_loss(*random_batch()[:4], **changed)


# The permutation loss.


@pytest.mark.parametrize(
    ("distance", "loss", "slopes"),
    [
        ("jsd", 0.75 * math.log(1.5) - 0.25 * math.log(2), (0.375 * math.log(1.5), -0.125 * math.log(2))),
        ("symkl", math.log(3) / 2, (0.375 * math.log(3) + 0.25, -0.125 * math.log(3) - 0.25)),
        ("ce", math.log(3) / 2, (-0.25, -0.75)),
    ],
)
def test_permutation_worked_by_hand(distance: str, loss: float, slopes: tuple[float, float]) -> None:
    """At the first answer position, `logps` gives p = (3/4, 1/4), and `permuted` gives q = (1/4, 3/4). At the second
    position, p and q are equal, so the loss is half of the distance at the first position.

    The mean of p and q is M = (1/2, 1/2), so KL(p||M) = KL(q||M) = 3/4 log(3/2) - 1/4 log 2.
    KL(p||q) = KL(q||p) = 3/4 log 3 - 1/4 log 3 = 1/2 log 3.
    The slope in log p is p (log p - log M) / 2 for `jsd`, (p (log p - log q) + p - q) / 2 for `symkl`, and -q for
    `ce`.
    """
    p, q = ([0.75, 0.25], [0.25, 0.75])
    logps, permuted = (torch.tensor([[first, [0.5, 0.5]]], dtype=torch.float64).log() for first in (p, q))
    batch = Batch(logps, torch.empty(1, 2), torch.empty(1, 2), None, permuted)
    output, found, _ = permutation(batch, distance)
    assert_close(output, LossOutput(torch.tensor([loss / 2], dtype=torch.float64), {}))
    assert_close(found[0, 0], torch.tensor(slopes, dtype=torch.float64) / 2)


@given(batches(), st.sampled_from(DISTANCES))
def test_permutation_agrees_with_a_loop(batch: Batch, distance: str) -> None:
    assert_close(permutation(batch, distance), expected_permutation(batch, distance), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_distributions_have_no_gradient(distance: str) -> None:
    """A cross-entropy with a gradient through both distributions would fail this test, because sharpening both lowers
    it even if they are equal."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    first, second = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = permutation_loss(normalised(first), normalised(second), None, distance=distance).loss
    assert_close(loss, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-15)
    found = torch.autograd.grad(loss.sum(), (first, second), allow_unused=True, materialize_grads=True)
    assert_close(found, (torch.zeros_like(logits),) * 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("distance", DISTANCES)
def test_slots_that_are_mapped_back_to_candidates_give_0_and_unmapped_slots_do_not(distance: str) -> None:
    """A slot is the place of a candidate in the prompt. The model of this test ignores the order of the prompt, so
    the score of a candidate does not depend on its slot."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 5, 5, generator=generator, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted_slots = normalised(scores[:, :, order])
    back = permuted_slots[:, :, order.argsort()]
    assert_close(order[order.argsort()], torch.arange(5))
    assert_close(back, normalised(scores))
    assert permutation_loss(normalised(scores), back, None, distance=distance).loss.abs() < 1e-12
    assert permutation_loss(normalised(scores), permuted_slots, None, distance=distance).loss > 0.1


def test_jsd_is_bounded_and_two_distances_are_symmetric() -> None:
    batch = random_batch(masked=False)
    swapped = batch._replace(logps=batch.permuted, permuted=batch.logps)
    for distance in ("jsd", "symkl"):
        output, found, other = permutation(batch, distance)
        assert (output.loss > 0).all()
        assert_close(permutation(swapped, distance), (output, other, found), rtol=1e-12, atol=1e-12)
    assert (permutation(batch, "jsd")[0].loss < math.log(2)).all()
    apart = permutation_loss(hard([0, 1, 2]), hard([1, 2, 0]), None).loss
    assert_close(apart, torch.tensor([math.log(2)], dtype=torch.float64))


def test_ce_has_the_gradient_of_cross_entropy_against_a_constant() -> None:
    batch = random_batch(masked=False)
    _, found, other = permutation(batch, "ce")
    logps = batch.logps.clone().requires_grad_()
    cross_entropy = -(batch.permuted.exp() * logps).sum(-1).mean(-1)
    assert_close(found, torch.autograd.grad(cross_entropy.sum(), logps)[0])
    assert other.eq(0).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distance", ["jsd", "symkl"])
def test_permutation_gradcheck(distance: str, masked: bool) -> None:
    batch = random_batch(masked=masked)
    tables = [torch.where(table.isfinite(), table, 0).requires_grad_() for table in (batch.logps, batch.permuted)]

    def loss(logps: Tensor, permuted: Tensor) -> Tensor:
        return permutation_loss(logps, permuted, batch.mask, distance=distance).loss

    assert torch.autograd.gradcheck(loss, tables)


def test_gradcheck_of_ce() -> None:
    batch = random_batch(masked=False)
    assert torch.autograd.gradcheck(
        lambda logps: permutation_loss(logps, batch.permuted, None, distance="ce").loss, batch.logps.requires_grad_()
    )


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="`distance` must be 'jsd', 'symkl' or 'ce', but is 'kl'"):
        permutation_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), None, distance="kl")


# Both losses.


@pytest.mark.parametrize("masked", [False, True])
def test_a_permutation_of_the_candidates_changes_nothing(masked: bool) -> None:
    batch = random_batch(masked=masked)
    columns, lists = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    ratings, gold_rank, mask = (None if tensor is None else tensor[lists][:, columns] for tensor in batch[1:4])
    moved = Batch(batch.logps[lists][..., columns], ratings, gold_rank, mask, batch.permuted[lists][..., columns])
    for found, (wanted, *gradients) in zip(both(moved), both(batch), strict=True):
        metrics = {name: metric[lists][:, columns] for name, metric in wanted.metrics.items()}
        wanted = LossOutput(wanted.loss[lists], metrics)
        assert_close(found, (wanted, *(one[lists][..., columns] for one in gradients)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_padding_changes_nothing(masked: bool) -> None:
    batch = random_batch(masked=masked)
    logps, permuted = (F.pad(table, (2, 1, 0, 3), value=0.7) for table in (batch.logps, batch.permuted))
    ratings, gold_rank = (F.pad(tensor, (2, 1), value=9) for tensor in (batch.ratings, batch.gold_rank))
    padded = Batch(logps, ratings, gold_rank, F.pad(full_mask(batch), (2, 1)), permuted)
    for found, (wanted, *gradients) in zip(both(padded), both(batch), strict=True):
        wanted = LossOutput(wanted.loss, {name: F.pad(metric, (2, 1)) for name, metric in wanted.metrics.items()})
        assert_close(found, (wanted, *(F.pad(one, (2, 1, 0, 3)) for one in gradients)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fill", [torch.inf, -torch.inf, torch.nan, 1e30])
def test_masked_entries_contribute_nothing(fill: float) -> None:
    batch = random_batch()
    num_candidates = batch.mask.sum(1)
    outside = (torch.arange(4) >= num_candidates[:, None])[:, :, None] | ~batch.mask[:, None, :]
    logps, permuted = (table.masked_fill(outside, fill) for table in (batch.logps, batch.permuted))
    ratings, gold_rank = batch.ratings.masked_fill(~batch.mask, fill), batch.gold_rank.masked_fill(~batch.mask, 10**12)
    filled = Batch(logps, ratings, gold_rank, batch.mask, permuted)
    for (output, *gradients), wanted in zip(both(filled), both(batch), strict=True):
        assert_close((output, *gradients), wanted, rtol=0, atol=0)
        assert output.loss.isfinite().all()
        assert all(one[outside].eq(0).all() and one.isfinite().all() for one in gradients)


def test_lists_of_at_most_one_candidate_give_zeros() -> None:
    batch = random_batch()
    for output, *_ in both(batch):
        assert output.loss[:2].eq(0).all()
        assert output.loss[2:].ne(0).any()
    for output, *gradients in both(batch)[:4]:
        assert output.metrics["position"].sum(1)[:2].tolist() == [0, 1]
        assert all(one[:2].eq(0).all() for one in gradients)


@pytest.mark.parametrize("masked", [False, True])
def test_chunks_give_the_same_results_as_the_whole_batch(masked: bool) -> None:
    batch = random_batch(masked=masked)
    for whole, *pieces in zip(both(batch), *map(both, chunks_of(batch)), strict=True):
        outputs, *gradients = zip(*pieces, strict=True)
        assert_close((joined(outputs), *map(torch.cat, gradients)), whole, rtol=1e-12, atol=1e-12)


def test_a_mask_of_ones_equals_no_mask() -> None:
    batch = random_batch(masked=False)
    assert_close(both(batch._replace(mask=full_mask(batch))), both(batch), rtol=0, atol=0)


def expected_both(batch: Batch) -> list[tuple]:
    variants = [(score, delta) for score in SCORES for delta in DELTAS]
    ranked = [expected_soft_lambda(batch, **SETTINGS, score=score, delta=delta) for score, delta in variants]
    return [*ranked, *(expected_permutation(batch, distance) for distance in DISTANCES)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@precisions
def test_half_precision_is_computed_in_float32(
    masked: bool, dtype: torch.dtype, computed: torch.dtype, tolerance: float, autocast: bool
) -> None:
    batch = random_batch(masked=masked)
    batch = batch._replace(logps=batch.logps.to(dtype), permuted=batch.permuted.to(dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = both(batch)
    exact = {"rtol": 2e-5, "atol": 1e-5, "check_dtype": False}
    for (output, *gradients), (wanted, *slopes) in zip(results, expected_both(batch), strict=True):
        assert {output.loss.dtype, *(metric.dtype for metric in output.metrics.values())} == {computed}
        assert {one.dtype for one in gradients} == {dtype}
        assert_close(output, wanted, **exact)
        # The gradient is rounded only once, when it is cast to the dtype of the table.
        assert_close(gradients, slopes, rtol=tolerance, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("masked", [False, True])
def test_both_losses_are_finite_at_huge_logits_in_bf16(masked: bool) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4], [-1e4, 1e4, 0.0, -1e4], [0.0] * 4, [1e4] * 4], dtype=torch.bfloat16)
    # In the first list, each table is uniform at the positions where the other table is not. In the second list, some
    # candidates are impossible at the same position in both tables.
    permuted = torch.stack([logits.flip(0), logits[:, [2, 1, 0, 3]]])
    mask = torch.tensor([[True, True, False, True]]).expand(2, -1) if masked else None
    ratings, gold_rank = torch.tensor([[1, 5, 0, 3]]).expand(2, -1), torch.tensor([[2, 0, 3, 1]]).expand(2, -1)
    tables = [normalised(table, mask) for table in (logits.expand(2, -1, -1), permuted)]
    batch = Batch(tables[0], ratings, gold_rank, mask, tables[1])
    for (output, *gradients), (wanted, *slopes) in zip(both(batch), expected_both(batch), strict=True):
        assert output.loss.isfinite().all()
        assert_close(output, wanted, rtol=1e-5, atol=1e-5, check_dtype=False)
        assert_close(gradients, slopes, rtol=2**-8, atol=1e-6, check_dtype=False)


def test_the_metric_is_detached_and_the_inputs_are_unchanged() -> None:
    batch = random_batch()
    before = [tensor.clone() for tensor in batch]
    batch.logps.requires_grad_(), batch.permuted.requires_grad_()
    ranked = soft_lambda_loss(*batch[:4])
    compared = permutation_loss(batch.logps, batch.permuted, batch.mask)
    (ranked.loss + compared.loss).sum().backward()
    assert list(ranked.metrics) == ["position"]
    assert compared.metrics == {}
    assert not ranked.metrics["position"].requires_grad
    assert ranked.metrics["position"].shape == batch.ratings.shape
    assert {ranked.loss.shape, compared.loss.shape} == {batch.ratings.shape[:1]}
    for now, then in zip(batch, before, strict=True):
        assert_close(now.detach(), then, rtol=0, atol=0, equal_nan=True)
