"""Compares the loss of BEAR with a slow loop, and its gradient with that of the authors' code. Also tests the loss at
the limits of its arguments."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests.losses.batches import chunks_of, joined, picked, precisions, rows_of
from tests.oracles import bear as oracle
from trl_rec.losses import LossOutput, bear_loss


VARIANTS = ("paper", "survival")
SETTINGS = {"num_beams": 2, "weight": 3.0, "sharpness": 1.5, "temperature": 0.8}


class Batch(NamedTuple):
    logits: Tensor
    target: Tensor
    legal: Tensor | None


def gradient(batch: Batch, **settings: Any) -> tuple[LossOutput, Tensor]:
    """Returns the losses, and the gradient of their sum with respect to the logits."""
    logits = batch.logits.detach().clone().requires_grad_()
    output = bear_loss(logits, batch.target, batch.legal, **settings)
    return output, torch.autograd.grad(output.loss.sum(), logits)[0]


def expected(batch: Batch, **settings: Any) -> tuple[LossOutput, Tensor]:
    legal = torch.ones_like(batch.logits, dtype=torch.bool) if batch.legal is None else batch.legal
    rows = zip(batch.logits.tolist(), batch.target.tolist(), legal.tolist(), strict=True)
    positions = [oracle.position(*row, **settings) for row in rows]
    columns = {
        name: torch.tensor([getattr(p, name) for p in positions], dtype=torch.float64)
        for name in oracle.Position._fields
    }
    gradients = columns.pop("gradient")
    return LossOutput(columns.pop("loss"), columns), gradients


def random_batch(num_rows: int = 6, num_columns: int = 7, *, masked: bool = True, seed: int = 0) -> Batch:
    """Returns rows of logits. If `masked`, the rows have 1, 2, ... legal columns, and the target is always legal. If
    not `masked`, all columns are legal."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    target = torch.randint(num_columns, (num_rows,), generator=generator)
    if not masked:
        return Batch(logits, target, None)
    order = torch.rand(num_rows, num_columns, generator=generator).scatter(1, target[:, None], -1.0)
    return Batch(logits, target, order.argsort(1).argsort(1) < 1 + torch.arange(num_rows)[:, None] % num_columns)


@pytest.mark.parametrize(
    ("variant", "loss", "factor"),
    [("paper", math.log(8) + 3 * math.log(2 / 3), 2.0), ("survival", math.log(8) + 3 * math.log(3), 3.0)],
    ids=VARIANTS,
)
def test_value_and_gradient_worked_by_hand(variant: str, loss: float, factor: float) -> None:
    """The probabilities are 1/2, 1/4, 1/8 and 1/8, and the third token is the target. There are two beams, weight 3
    and sharpness 1.

    The second largest probability is 1/4, so margin = log(1/8) - log(1/4) = -log 2, and the target is pruned.
    paper:    sigmoid(-margin) = 1 / (1 + exp(-log 2)) = 2/3; loss = log 8 + 3 log(2/3)
    survival: sigmoid(margin)  = 1 / (1 + exp(log 2))  = 1/3; loss = log 8 - 3 log(1/3)
    Cross-entropy has the gradient p - onehot(y) = (1/2, 1/4, -7/8, 1/8). BEAR multiplies this gradient by
    paper:    1 + 3 sigmoid(margin)  = 1 + 3 * 1/3 = 2
    survival: 1 + 3 sigmoid(-margin) = 1 + 3 * 2/3 = 3
    """
    batch = Batch(torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log(), torch.tensor([2]), None)
    output, found = gradient(batch, num_beams=2, weight=3.0, sharpness=1.0, variant=variant)
    assert_close(output.loss, torch.tensor([loss]))
    assert_close(found, factor * torch.tensor([[0.5, 0.25, -0.875, 0.125]]))
    assert output.metrics["ce"].item() == pytest.approx(math.log(8))
    assert output.metrics["margin"].item() == pytest.approx(-math.log(2))
    assert output.metrics["pruned"].item() == 1


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Draws logits that are multiples of 1/2, so that many of them are equal."""
    num_rows, num_columns = draw(st.integers(0, 4)), draw(st.integers(1, 8))
    row = st.lists(st.integers(-12, 12).map(lambda step: step / 2), min_size=num_columns, max_size=num_columns)
    logits = torch.tensor(draw(st.lists(row, min_size=num_rows, max_size=num_rows)), dtype=torch.float64)
    columns = st.lists(st.integers(0, num_columns - 1), min_size=num_rows, max_size=num_rows)
    target = torch.tensor(draw(columns), dtype=torch.int64)
    legal = None
    if draw(st.booleans()):
        flags = st.lists(
            st.lists(st.booleans(), min_size=num_columns, max_size=num_columns), min_size=num_rows, max_size=num_rows
        )
        legal = torch.tensor(draw(flags), dtype=torch.bool).view(num_rows, num_columns)
        legal = legal.scatter(1, target[:, None], True)
    return Batch(logits.view(num_rows, num_columns), target, legal)


@given(
    batches(),
    st.integers(1, 10),
    st.sampled_from([0.0, 0.3, 4.0]),
    st.sampled_from([0.1, 1.0, 2.75]),
    st.sampled_from([0.5, 1.0, 4.5]),
    st.sampled_from(VARIANTS),
    st.sampled_from([0.0, 0.1, 0.9]),
)
def test_value_metrics_and_gradient_agree_with_a_loop(
    batch: Batch, num_beams: int, weight: float, sharpness: float, temperature: float, variant: str, smoothing: float
) -> None:
    settings = {
        "num_beams": num_beams,
        "weight": weight,
        "sharpness": sharpness,
        "temperature": temperature,
        "variant": variant,
        "smoothing": smoothing,
    }
    wanted, wanted_gradient = expected(batch, **settings)
    found = gradient(batch, **settings)
    assert_close(found, (wanted, wanted_gradient.view_as(batch.logits)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
@precisions
def test_half_precision_is_computed_in_float32(
    variant: str, masked: bool, dtype: torch.dtype, computed: torch.dtype, tolerance: float
) -> None:
    batch = random_batch(masked=masked)
    batch = batch._replace(logits=batch.logits.to(dtype))
    output, found = gradient(batch, **SETTINGS, variant=variant)
    assert {output.loss.dtype, *(metric.dtype for metric in output.metrics.values())} == {computed}
    assert found.dtype == dtype
    wanted, wanted_gradient = expected(batch, **SETTINGS, variant=variant)
    exact = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    assert_close(output.loss, wanted.loss, **exact)
    assert_close(output.metrics, wanted.metrics, **exact)
    # The gradient is rounded only once, when it is cast to the dtype of the logits.
    assert_close(found.double(), wanted_gradient, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weight_0_over_the_vocabulary_is_cross_entropy(variant: str) -> None:
    batch = random_batch(masked=False)
    output, found = gradient(batch, num_beams=3, weight=0.0, sharpness=2.75, variant=variant)
    logits = batch.logits.clone().requires_grad_()
    losses = F.cross_entropy(logits, batch.target, reduction="none")
    assert_close(output.loss, losses.detach(), rtol=1e-12, atol=1e-12)
    assert_close(found, torch.autograd.grad(losses.sum(), logits)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.5])
def test_weight_0_over_the_legal_tokens_is_msl(temperature: float) -> None:
    batch = random_batch()
    output, found = gradient(batch, num_beams=3, weight=0.0, sharpness=2.75, temperature=temperature)
    logits = batch.logits.clone().requires_grad_()
    masked = logits.masked_fill(~batch.legal, -torch.inf) / temperature
    losses = F.cross_entropy(masked, batch.target, reduction="none")
    assert_close(output.loss, losses.detach(), rtol=1e-12, atol=1e-12)
    assert_close(found, torch.autograd.grad(losses.sum(), logits)[0], rtol=1e-12, atol=1e-12)
    assert output.metrics["ce"].equal(output.loss)


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_smoothing_equals_that_of_torch_over_the_legal_tokens(smoothing: float) -> None:
    settings = {"num_beams": 3, "weight": 0.0, "sharpness": 1.0, "smoothing": smoothing}
    batch = random_batch()
    output, found = gradient(batch, **settings)
    for row, legal in enumerate(batch.legal):
        target = legal[: batch.target[row]].sum()  # the index of the target among the legal tokens
        wanted = F.cross_entropy(batch.logits[row, legal], target, label_smoothing=smoothing)
        assert_close(output.loss[row], wanted, rtol=1e-12, atol=1e-12)
    assert found[~batch.legal].eq(0).all()
    assert_close(output.metrics, gradient(batch, **{**settings, "smoothing": 0.0})[0].metrics, rtol=0, atol=0)

    batch = random_batch(masked=False)
    wanted = F.cross_entropy(batch.logits, batch.target, label_smoothing=smoothing, reduction="none")
    assert_close(gradient(batch, **settings)[0].loss, wanted, rtol=1e-12, atol=1e-12)


def test_smoothing_0_changes_nothing() -> None:
    batch = random_batch()
    assert_close(gradient(batch, **SETTINGS, smoothing=0.0), gradient(batch, **SETTINGS), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "legal", [None, torch.tensor([[True], [True]]), torch.tensor([[False, True, False]]).expand(2, -1)]
)
def test_the_gradient_of_a_forced_token_is_exactly_0(dtype: torch.dtype, variant: str, legal: Tensor | None) -> None:
    width = 1 if legal is None else legal.shape[1]
    logits = torch.tensor([[0.3], [-7.7]], dtype=dtype).expand(2, width)
    batch = Batch(logits, torch.full((2,), width // 2), legal)
    assert gradient(batch, **SETTINGS, variant=variant, smoothing=0.3)[1].eq(0).all()
    output, found = gradient(batch, **SETTINGS, variant=variant)
    assert found.eq(0).all()
    assert all(metric.eq(0).all() for metric in output.metrics.values())
    constant = SETTINGS["weight"] * math.log(2)
    assert_close(output.loss, torch.full((2,), -constant if variant == "paper" else constant))
    assert gradient(batch, **{**SETTINGS, "weight": 0.0}, variant=variant)[0].loss.eq(0).all()


def test_the_limits_of_a_large_and_of_a_small_sharpness() -> None:
    """BEAR multiplies the gradient of cross-entropy by 1 + 0.4 s, where 0.4 is weight / sharpness. Here, s is
    sigmoid(margin / sharpness) for `paper` and sigmoid(-margin / sharpness) for `survival`. s tends to 1/2 for a
    large sharpness. For a small sharpness, it tends to 0 or 1, unless the margin is 0. If the margin is 0, s is always
    1/2."""
    batch = random_batch(masked=False)
    _, plain = gradient(batch, num_beams=3, weight=0.0, sharpness=1.0)
    pruned = bear_loss(*batch, num_beams=3, weight=0.0, sharpness=1.0).metrics["pruned"]
    margin = bear_loss(*batch, num_beams=3, weight=0.0, sharpness=1.0).metrics["margin"]
    assert set(pruned.tolist()) == {0.0, 1.0}
    for variant in VARIANTS:
        _, flat = gradient(batch, num_beams=3, weight=0.4e9, sharpness=1e9, variant=variant)
        assert_close(flat, 1.2 * plain, rtol=1e-6, atol=0)
        _, sharp = gradient(batch, num_beams=3, weight=0.4e-9, sharpness=1e-9, variant=variant)
        side = torch.sign(margin if variant == "paper" else -margin)
        assert_close(sharp, (1.2 + 0.2 * side)[:, None] * plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("num_beams", [1, 3, 10])
def test_the_gradient_equals_that_of_the_published_token_weights(
    masked: bool, temperature: float, num_beams: int
) -> None:
    """The authors' code multiplies the cross-entropy of each token by a detached weight, which depends on its options
    `topk_weight` and `topk_tau`."""
    batch = random_batch(masked=masked)
    legal = torch.ones_like(batch.logits, dtype=torch.bool) if batch.legal is None else batch.legal
    logits = batch.logits.clone().requires_grad_()
    published = {"num_beams": num_beams, "topk_weight": 0.25, "topk_tau": 2.75, "temperature": temperature}
    losses = oracle.weighted_cross_entropy(logits, batch.target, legal, **published)
    wanted = torch.autograd.grad(losses.sum(), logits)[0]
    _, found = gradient(batch, num_beams=num_beams, weight=0.25 * 2.75, sharpness=2.75, temperature=temperature)
    assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert (wanted != 0).any()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_is_the_slope_of_the_loss_at_a_constant_threshold(variant: str, masked: bool) -> None:
    batch = random_batch(masked=masked)
    legal = torch.ones_like(batch.logits, dtype=torch.bool) if batch.legal is None else batch.legal
    _, found = gradient(batch, **SETTINGS, variant=variant)
    settings = {"weight": 3.0, "sharpness": 1.5, "temperature": 0.8, "variant": variant}
    rows = zip(batch.logits.tolist(), batch.target.tolist(), legal.tolist(), found.tolist(), strict=True)
    for logits, target, allowed, slopes in rows:
        kept = oracle.threshold(oracle.log_probs(logits, allowed, 0.8), allowed, 2)
        for column, slope in enumerate(slopes):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [logit + step * (index == column) for index, logit in enumerate(logits)]
                ends.append(oracle.frozen_loss(moved, target, allowed, kept, **settings))
            assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck_where_nothing_is_detached(masked: bool, smoothing: float) -> None:
    batch = random_batch(masked=masked)

    def loss(logits: Tensor) -> Tensor:
        settings = {**SETTINGS, "weight": 0.0, "smoothing": smoothing}
        return bear_loss(logits, batch.target, batch.legal, **settings).loss

    assert torch.autograd.gradcheck(loss, batch.logits.requires_grad_())


@pytest.mark.parametrize("fill", [torch.inf, -torch.inf, torch.nan, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_illegal_tokens_contribute_nothing(fill: float, dtype: torch.dtype, variant: str) -> None:
    batch = random_batch()
    batch = batch._replace(logits=batch.logits.to(dtype))
    wanted = gradient(batch, **SETTINGS, variant=variant)
    filled = batch._replace(logits=batch.logits.masked_fill(~batch.legal, fill))
    smoothed = {**SETTINGS, "variant": variant, "smoothing": 0.2}
    assert_close(gradient(filled, **smoothed), gradient(batch, **smoothed), rtol=0, atol=0)
    found = gradient(filled, **SETTINGS, variant=variant)
    assert_close(found, wanted, rtol=0, atol=0)
    assert found[1][~batch.legal].eq(0).all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_padding_columns_change_nothing(variant: str, masked: bool) -> None:
    batch = random_batch(masked=masked)
    legal = torch.ones_like(batch.logits, dtype=torch.bool) if batch.legal is None else batch.legal
    # With 10 beams, there are fewer tokens than beams. Padding columns must not fill the remaining beams.
    for num_beams in (2, 10):
        settings = {**SETTINGS, "num_beams": num_beams, "variant": variant}
        output, found = gradient(batch, **settings)
        padded = Batch(F.pad(batch.logits, (0, 5), value=9.0), batch.target, F.pad(legal, (0, 5)))
        assert_close(gradient(padded, **settings), (output, F.pad(found, (0, 5))), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_the_order_of_rows_and_columns_does_not_matter(masked: bool) -> None:
    batch = random_batch(masked=masked)
    output, found = gradient(batch, **SETTINGS)
    rows, columns = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([6, 2, 0, 5, 1, 4, 3])
    moved = rows_of(batch, rows)
    legal = None if moved.legal is None else moved.legal[:, columns]
    moved = Batch(moved.logits[:, columns], columns.argsort()[moved.target], legal)
    wanted = picked(output, rows), found[rows][:, columns]
    assert_close(gradient(moved, **SETTINGS), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_chunks_give_the_same_results_as_the_whole_batch(masked: bool) -> None:
    batch = random_batch(masked=masked)
    whole = gradient(batch, **SETTINGS)
    outputs, gradients = zip(*(gradient(chunk, **SETTINGS) for chunk in chunks_of(batch)), strict=True)
    assert_close((joined(outputs), torch.cat(gradients)), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_beams", [1, 3, 10])
def test_the_loss_is_finite_at_huge_logits_in_bf16(masked: bool, variant: str, num_beams: int) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 1e4, -1e4]], dtype=torch.bfloat16).expand(4, -1)
    legal = torch.tensor([[True, True, True, True, False]]).expand(4, -1) if masked else None
    batch = Batch(logits, torch.arange(4), legal)
    settings = {"num_beams": num_beams, "weight": 0.7, "sharpness": 2.75, "temperature": 1.0, "variant": variant}
    output, found = gradient(batch, **settings)
    wanted, wanted_gradient = expected(batch, **settings)
    assert_close(output.loss.double(), wanted.loss, rtol=1e-5, atol=1e-5)
    assert_close(output.metrics["margin"].double(), wanted.metrics["margin"], rtol=1e-6, atol=0)
    assert_close(found.double(), wanted_gradient, rtol=2**-8, atol=1e-6)
    assert output.loss.isfinite().all()
    assert found.isfinite().all()


def test_paper_weighs_targets_inside_the_beam_more_and_survival_those_outside() -> None:
    """The target's logit rises from far below the third largest of the other logits to far above the largest of
    them."""
    heights = torch.linspace(-9, 9, 13, dtype=torch.float64)
    others = torch.tensor([3.0, 1.0, 0.0, -1.0], dtype=torch.float64).expand(13, -1)
    batch = Batch(torch.cat([heights[:, None], others], 1), torch.zeros(13, dtype=torch.int64), None)
    settings = {"num_beams": 3, "sharpness": 0.5}
    output, plain = gradient(batch, weight=0.0, **settings)
    assert output.metrics["pruned"].tolist() == [float(height < 0) for height in heights]
    excess = {name: (gradient(batch, weight=2.0, variant=name, **settings)[1] / plain - 1)[:, 0] for name in VARIANTS}
    assert (excess["paper"].diff() >= -1e-9).all()
    assert (excess["survival"].diff() <= 1e-9).all()
    assert excess["paper"][0] < 0.01 < 3.9 < excess["paper"][-1] < 4
    assert excess["survival"][-1] < 0.01 < 3.9 < excess["survival"][0] < 4
    assert_close(excess["paper"] + excess["survival"], torch.full_like(heights, 4.0))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_target_that_ties_with_the_last_beam_is_kept(temperature: float) -> None:
    logits = torch.tensor([[2.0, 0.3, 0.3, 0.3, -1.0]]).expand(5, -1)
    batch = Batch(logits, torch.arange(5), None)
    output = bear_loss(*batch, num_beams=2, weight=1.0, sharpness=1.0, temperature=temperature)
    assert output.metrics["pruned"].tolist() == [0, 0, 0, 0, 1]
    assert output.metrics["margin"][1:4].eq(0).all()


def test_metrics_are_detached_and_the_inputs_are_unchanged() -> None:
    batch = random_batch()
    for dtype in (torch.float64, torch.bfloat16):
        logits = batch.logits.to(dtype).requires_grad_()
        before = logits.detach().clone()
        output = bear_loss(logits, batch.target, batch.legal, **SETTINGS)
        output.loss.sum().backward()
        assert list(output.metrics) == ["ce", "margin", "pruned"]
        assert output.loss.requires_grad
        assert not any(metric.requires_grad for metric in output.metrics.values())
        assert {output.loss.shape, *(metric.shape for metric in output.metrics.values())} == {batch.target.shape}
        assert logits.detach().equal(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_only_one_tensor_as_wide_as_the_vocabulary_is_kept_for_the_backward_pass(
    dtype: torch.dtype, variant: str
) -> None:
    batch = random_batch(masked=False)
    logits = batch.logits.to(dtype).requires_grad_()
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        bear_loss(logits, batch.target, None, num_beams=3, weight=1.0, sharpness=1.0, variant=variant)
    assert len({tensor.data_ptr() for tensor in kept if tensor.shape == logits.shape}) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_beams": 0}, "`num_beams` must be at least 1, but is 0"),
        ({"sharpness": 0.0}, "`sharpness` must be positive, but is 0.0"),
        ({"temperature": -1.0}, "`temperature` must be positive, but is -1.0"),
        ({"smoothing": 1.0}, "`smoothing` must be at least 0 and below 1, but is 1.0"),
        ({"variant": "exact"}, "`variant` must be 'paper' or 'survival', but is 'exact'"),
    ],
)
def test_invalid_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bear_loss(*random_batch(), **{**SETTINGS, **changed})
