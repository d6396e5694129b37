"""Tests the repair of semantic IDs that collide, and the tokens that IDs are written with.

A semantic ID has one code per level. Items collide if they have the same code at every level. A cell is a group of
items that share all codes before the last one. The repair gives the items of a cell different last codes, as far as
there are enough codes.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import semantic_ids as oracle
from trl_rec.semantic_ids import collisions
from trl_rec.semantic_ids.collisions import group_of, number_within_group, repair_last_level
from trl_rec.semantic_ids.tokens import id_tokens


CODES = 4


@st.composite
def quantised(draw, levels=2):
    """Draws the codes of items, and the residuals and the codebook of the last level. There are few different prefixes
    (codes before the last one). The residuals and the codebook are small whole numbers, so that many distances are
    equal."""
    count = draw(st.integers(1, 25))
    prefixes = st.lists(st.integers(0, 1), min_size=levels - 1, max_size=levels - 1)
    rows = [draw(prefixes) + [draw(st.integers(0, CODES - 1))] for _ in range(count)]
    point = st.lists(st.integers(-3, 3), min_size=2, max_size=2)
    residuals, codebook = ([draw(point) for _ in range(size)] for size in (count, CODES))
    return rows, residuals, codebook


def repaired(rows, residuals, codebook):
    return repair_last_level(torch.tensor(rows), torch.tensor(residuals).float(), torch.tensor(codebook).float())


@given(quantised())
def test_repair_equals_a_loop_over_pairs(case):
    assert repaired(*case)[:, -1].tolist() == oracle.repair(*case)


@given(quantised(levels=3))
def test_the_repair_keeps_prefixes_and_unique_codes_and_uses_all_codes_of_a_cell(case):
    before = torch.tensor(case[0])
    after = repaired(*case)
    assert torch.equal(before[:, :-1], after[:, :-1])
    alone = torch.bincount(group_of(before))[group_of(before)] == 1
    assert torch.equal(before[alone], after[alone])
    cell, group = group_of(before[:, :-1]), group_of(after)
    for number in cell.unique():
        members = cell == number
        assert len(group[members].unique()) == min(int(members.sum()), CODES)
    kept = before[(before == after).all(1)]
    assert len(kept.unique(dim=0)) == len(before.unique(dim=0))  # one of the items with equal codes keeps them


@given(quantised())
def test_chunks_of_cells_change_nothing(case):
    whole, chunk = repaired(*case), collisions.CHUNK
    try:
        collisions.CHUNK = 1
        assert torch.equal(repaired(*case), whole)
    finally:
        collisions.CHUNK = chunk


@given(quantised(), st.integers(0, 30), st.integers(0, 2))
def test_few_of_many_identical_items_are_considered(case, count, code):
    """Of many items with equal codes and residuals, the repair considers only the first ones. There would be no free
    code for the others."""
    rows, residuals, codebook = case
    rows, residuals = rows + [[0, code]] * count, residuals + [[0, 0]] * count
    assert repaired(rows, residuals, codebook)[:, -1].tolist() == oracle.repair(rows, residuals, codebook)
    distance = (torch.tensor(residuals) - torch.tensor(codebook)[torch.tensor(rows)[:, -1]]).square().sum(1)
    waiting = collisions._waiting_items(torch.tensor(rows), distance, torch.tensor(residuals), CODES)
    assert (waiting >= len(case[0])).sum() < CODES + (code in [last for first, last in case[0] if first == 0])


def test_equal_distances_do_not_make_items_identical():
    """All items have the distance 1 from their centroid, but not all in the same direction. Each of the last two items
    is the nearest item to a free centroid, so the repair must not skip it as if it were identical to an earlier
    item."""
    residuals = [[-1, 0], [-1, 0], [0, -1], [-1, 0], [0, -1], [0, 1], [1, 0]]
    codes = repaired([[0, 0]] * 7, residuals, [[0, 0], [9, 0], [0, 9], [-9, 0]])
    assert codes[:, -1].tolist() == [0, 3, 0, 0, 0, 2, 1]


def test_one_level_is_one_cell():
    codes = repaired([[1], [1], [1]], [[1, 0], [3, 0], [2, 0]], [[0, 0], [1, 0], [2, 0], [9, 9]])
    assert codes.tolist() == [[1], [0], [2]]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=20))
def test_further_tokens_make_ids_distinct_and_prefix_free(rows):
    codes = torch.tensor(rows)
    group, extra = group_of(codes), number_within_group(codes)
    assert (group.unsqueeze(1) == group).tolist() == [[a == b for b in rows] for a in rows]
    assert extra.tolist() == [rows[:item].count(row) if rows.count(row) > 1 else -1 for item, row in enumerate(rows)]
    tokens = id_tokens(codes, extra)
    texts = ["".join(tokens[item]) for item in range(len(rows))]
    assert len(set(texts)) == len(texts)
    assert not any(a != b and a.startswith(b) for a in texts for b in texts)


def test_tokens_are_lettered_by_level():
    tokens = id_tokens(torch.tensor([[12, 7, 201], [0, 1, 2], [0, 1, 2]]), torch.tensor([-1, 0, 1]))
    assert ["".join(tokens[item]) for item in range(3)] == [
        "<a_12><b_7><c_201>",
        "<a_0><b_1><c_2><d_0>",
        "<a_0><b_1><c_2><d_1>",
    ]
