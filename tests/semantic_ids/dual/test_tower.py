"""Checks parts of dual semantic IDs against slow loops: the U2I (user-to-item) loss, the quantiser, and the pooling of
a user's item vectors. Also tests that a tower (a model that maps vectors to codes) learns to rebuild its inputs."""

import pytest
import torch

from tests.oracles import dual_ids as oracle
from trl_rec.semantic_ids.collaborative import pooled
from trl_rec.semantic_ids.dual.quantizer import COMMITMENT, ResidualQuantizer
from trl_rec.semantic_ids.dual.tower import Tower, u2i_loss
from trl_rec.semantic_ids.residual import residual_kmeans


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def quantizer(generator, levels=3, codes=5, width=4):
    made = ResidualQuantizer(levels, codes, width)
    made.codebooks.data = torch.randn(levels, codes, width, generator=generator)
    return made


def test_u2i_worked_by_hand():
    """The items have the scores 0 and log 3. The second user's item has the probability 3/4. For the first user, the
    second item is not a negative, so the loss is 0."""
    users, items = torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [1.0986123]])
    also_chosen = torch.tensor([[False, True], [False, True]])
    assert u2i_loss(users, items, also_chosen).tolist() == pytest.approx([0.0, 0.2876821], abs=1e-6)


def test_u2i_equals_a_loop(generator):
    users, items = torch.randn(6, 3, generator=generator), torch.randn(6, 3, generator=generator)
    also_chosen = torch.rand(6, 6, generator=generator) < 0.4
    expected = oracle.u2i(users.tolist(), items.tolist(), also_chosen.tolist())
    assert u2i_loss(users, items, also_chosen).tolist() == pytest.approx(expected, abs=1e-5)


def test_other_items_that_a_user_chose_are_not_negatives(generator):
    users, items = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator).requires_grad_()
    also_chosen = torch.zeros(4, 4, dtype=torch.bool)
    also_chosen[0, 2] = True
    u2i_loss(users, items, also_chosen)[0].backward()
    assert (items.grad[2] == 0).all() and (items.grad[[0, 1, 3]] != 0).any(1).all()


def test_quantiser_equals_a_loop(generator):
    latents, made = torch.randn(20, 4, generator=generator), quantizer(generator)
    codes, sums, losses = oracle.quantise(latents.tolist(), made.codebooks.tolist(), COMMITMENT)
    quantized, assigned = made(latents), made.assign(latents)
    assert assigned.codes.tolist() == codes
    assert torch.allclose(quantized.vectors, torch.tensor(sums), atol=1e-5)
    assert quantized.loss.tolist() == pytest.approx(losses, rel=1e-4)
    left = latents - torch.tensor(sums)
    assert assigned.errors[-1] == pytest.approx(float(left.square().sum() / latents.square().sum()), rel=1e-4)
    assert torch.allclose(assigned.last_residuals - made.codebooks[-1][assigned.codes[:, -1]], left, atol=1e-5)


def test_gradients_of_the_quantiser(generator):
    """The gradient of the quantised vectors passes unchanged to the latents, and does not reach the codebooks. The
    loss has two terms: the first trains the codebooks, and the second (the commitment term) trains the latents."""
    latents, made = torch.randn(7, 4, generator=generator).requires_grad_(), quantizer(generator, levels=1)
    weights = torch.randn(7, 4, generator=generator)
    (made(latents).vectors * weights).sum().backward()
    assert torch.allclose(latents.grad, weights) and made.codebooks.grad is None
    latents.grad = None
    made(latents).loss.sum().backward()
    nearest = made.codebooks[0][made.assign(latents).codes[:, 0]]
    assert torch.allclose(latents.grad, 2 * COMMITMENT * (latents - nearest), atol=1e-5)
    total = torch.zeros(5, 4).index_add(0, made.assign(latents).codes[:, 0], 2 * (nearest - latents).detach())
    assert torch.allclose(made.codebooks.grad[0], total, atol=1e-5)


def test_codebooks_start_as_those_of_residual_kmeans(generator):
    latents, made = torch.randn(200, 4, generator=generator), ResidualQuantizer(2, 8, 4)
    made.start(latents, generator=torch.Generator().manual_seed(3))
    found = residual_kmeans(latents, levels=2, codes=8, seed=3)
    assert torch.equal(made.codebooks.data, found.codebooks) and torch.equal(made.assign(latents).codes, found.codes)


def test_unused_codes_are_revived(generator):
    """At the second level, three centroids are too far away from all vectors to be used. `revive` moves unused
    centroids to the residuals of randomly drawn vectors."""
    latents, made = torch.randn(50, 4, generator=generator), quantizer(generator)
    made.codebooks.data[1, 2:] = 100.0
    used = [len(column.unique()) for column in made.assign(latents).codes.unbind(1)]
    assert made.revive(latents, generator=generator) >= 3
    assert len(made.assign(latents).codes[:, 1].unique()) > used[1]


def test_a_tower_rebuilds_its_input(generator):
    torch.manual_seed(0)
    tower = Tower(6, hidden=16, width=8, code_width=4, levels=2, codes=8)
    inputs = torch.randn(40, 6, generator=generator)
    optimizer = torch.optim.Adam(tower.parameters(), lr=1e-2)
    with torch.no_grad():
        tower.quantize.start(tower.encode(tower.fuse(inputs)), generator=generator)
    errors = []
    # The choice of codes depends on rounding, and so does the speed at which the error falls. 300 steps are enough in
    # any case.
    for _ in range(300):
        rebuilt = tower.rebuild(tower.fuse(inputs), inputs)
        errors.append(float(rebuilt.error.mean().detach()))
        optimizer.zero_grad()
        rebuilt.loss.mean().backward()
        optimizer.step()
    assert errors[-1] < 0.6 * errors[0]
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in tower.parameters())


def test_pooling_equals_a_loop(generator):
    vectors, items = torch.randn(9, 4, generator=generator), torch.randint(9, (5, 6), generator=generator)
    mask = torch.rand(5, 6, generator=generator) < 0.6
    mask[3] = False
    expected = [oracle.pooled(vectors.tolist(), row[kept].tolist()) for row, kept in zip(items, mask, strict=True)]
    assert torch.allclose(pooled(vectors, items, mask), torch.tensor(expected), atol=1e-5)
