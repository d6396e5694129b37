"""Tests the Sinkhorn algorithm, and the repair of colliding semantic IDs that uses it.

The algorithm divides each item among codes, so that all codes receive the same total. Items collide if all their codes
are equal.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import dual_ids as oracle
from trl_rec.semantic_ids.collisions import group_of
from trl_rec.semantic_ids.sinkhorn import balanced, sinkhorn_repair


@st.composite
def quantised(draw):
    count = draw(st.integers(2, 25))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    codes = torch.randint(3, (count, 2), generator=generator)
    return codes, torch.randn(count, 3, generator=generator), torch.randn(6, 3, generator=generator)


@given(quantised())
def test_shares_equal_a_loop(case):
    distances = torch.cdist(case[1], case[2]).square()
    other = torch.rand(1, *distances.shape)
    shares = balanced(torch.cat([other, distances.unsqueeze(0)]), epsilon=0.2, iterations=10)[1]
    assert torch.allclose(shares, torch.tensor(oracle.sinkhorn(distances.tolist(), 0.2, 10)).double(), atol=1e-4)


def test_all_codes_receive_the_same_share():
    distances = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).square()
    shares = balanced(distances.unsqueeze(0), epsilon=0.1, iterations=500)[0]
    assert torch.allclose(shares.sum(1), torch.ones(12).double())
    assert torch.allclose(shares.sum(0), torch.full((4,), 3.0).double(), atol=0.05)


@given(quantised())
def test_the_repair_moves_each_colliding_group_as_if_it_were_alone(case):
    codes, residuals, codebook = case
    repaired = sinkhorn_repair(codes, residuals, codebook)
    assert torch.equal(repaired[:, 0], codes[:, 0])
    sizes = torch.bincount(group_of(codes))[group_of(codes)]
    once = sinkhorn_repair(codes, residuals, codebook, rounds=1)
    assert torch.equal(once[sizes == 1], codes[sizes == 1]) and torch.equal(once[sizes > 6], codes[sizes > 6])
    for group in group_of(codes).unique():
        items = group_of(codes) == group
        if 1 < items.sum() <= 6:  # groups of other sizes do not change
            alone = balanced(torch.cdist(residuals[items], codebook).square().unsqueeze(0))[0].argmax(-1)
            assert torch.equal(once[items, 1], alone)


def test_fewer_items_collide():
    """At first, many of the 400 items collide, because they use only 40 first codes, and 4 of the 16 last codes."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.stack(
        [torch.randint(40, (400,), generator=generator), torch.randint(4, (400,), generator=generator)], 1
    )
    repaired = sinkhorn_repair(
        codes, torch.randn(400, 3, generator=generator), torch.randn(16, 3, generator=generator)
    )
    assert len(repaired.unique(dim=0)) > 1.5 * len(codes.unique(dim=0))


def test_distinct_codes_are_not_changed():
    codes = torch.tensor([[0, 0], [0, 1], [1, 0]])
    assert torch.equal(sinkhorn_repair(codes, torch.randn(3, 2), torch.randn(4, 2)), codes)


def test_a_group_is_spread_over_the_codes_nearest_to_it():
    """All three items are nearest to code 0. The first keeps this code, and the others move to the codes that are next
    nearest to them."""
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
    residuals = codebook[:3] * 0.4
    assert sinkhorn_repair(torch.zeros(3, 2, dtype=torch.int64), residuals, codebook)[:, 1].tolist() == [0, 1, 2]
