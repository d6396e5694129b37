"""Tests `PreferenceCollator`: the padding of batches of preferences, and the trie nodes of completions that are items.
Also tests the check that all completions are items of the catalogue."""

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from trl_rec.items import TokenTrie
from trl_rec.trainer import PreferenceCollator
from trl_rec.trainer.softmax_dpo.collator import check_on_catalogue


PAD = 0
ITEMS = [[5, 7], [5, 8], [6, 7, 9], [6, 7, 10]]
TRIE = TokenTrie.from_sequences(ITEMS)
texts = st.lists(st.integers(0, 9), min_size=1, max_size=5)  # the padding token may occur in a text
batches = st.lists(st.tuples(texts, texts, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=4)


def as_rows(batch: list[tuple]) -> list[dict[str, Any]]:
    return [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), row, strict=True)) for row in batch]


def test_a_batch_equals_the_one_written_by_hand() -> None:
    rows = as_rows([([1, 2], [5, 7], [[5, 8], [6, 7, 9]]), ([3], [6, 7, 10], [[5, 7]])])
    batch = PreferenceCollator(PAD)(
        [{**row, "ref_logps": [-1.0, -2.0, -3.0][: 1 + len(row["rejected_ids"])]} for row in rows]
    )
    assert {name: value.tolist() for name, value in batch.items()} == {
        "prompt_ids": [[1, 2], [0, 3]],
        "prompt_mask": [[True, True], [False, True]],
        "completion_ids": [[[5, 7, 0], [5, 8, 0], [6, 7, 9]], [[6, 7, 10], [5, 7, 0], [0, 0, 0]]],
        "completion_mask": [
            [[True, True, False], [True, True, False], [True, True, True]],
            [[True, True, True], [True, True, False], [False, False, False]],
        ],
        "ref_logps": [[-1.0, -2.0, -3.0], [-1.0, -2.0, 0.0]],
    }
    assert batch["ref_logps"].dtype == torch.float32 and batch["completion_ids"].dtype == torch.int64


@given(batches)
def test_nothing_but_padding_is_added(batch: list) -> None:
    made = PreferenceCollator(PAD)(as_rows(batch))
    for row, (prompt, chosen, rejected) in enumerate(batch):
        assert made["prompt_ids"][row][made["prompt_mask"][row]].tolist() == prompt
        # Padding is on the left.
        assert (made["prompt_mask"][row].int().diff() >= 0).all() and made["prompt_mask"][row, -1]
        for slot, text in enumerate([chosen, *rejected]):
            mask = made["completion_mask"][row, slot]
            # Padding is on the right.
            assert made["completion_ids"][row, slot][mask].tolist() == text and mask[: len(text)].all()
        assert not made["completion_mask"][row, 1 + len(rejected) :].any()
    # The batch is no larger than needed: every slot and every token position is used in at least one row.
    assert made["completion_mask"].any(-1).any(0).all() and made["completion_mask"].any(0).any(0).all()
    assert (made["completion_ids"][~made["completion_mask"]] == PAD).all() and (
        made["prompt_ids"][~made["prompt_mask"]] == PAD
    ).all()


@given(st.lists(st.lists(st.sampled_from(ITEMS), min_size=2, max_size=4), min_size=1, max_size=4))
def test_each_token_has_the_trie_node_at_which_it_is_chosen(several: list) -> None:
    rows = as_rows([([1], some[0], some[1:]) for some in several])
    batch = PreferenceCollator(PAD, TRIE)(rows)
    nodes, mask = batch["trie_nodes"], batch["completion_mask"]
    assert (nodes[~mask] == -1).all() and (nodes[mask] >= 0).all()
    for row, slot, place in np.argwhere(mask.numpy()):
        legal = {path[place] for path in ITEMS if path[:place] == several[row][slot][:place]}
        tokens, _, real = TRIE.children(nodes[row, slot, place])
        assert set(tokens[real].tolist()) == legal


@pytest.mark.parametrize("wrong", [[5, 9], [5], [6, 7], [4], [5, 7, 7]])
def test_completions_that_are_not_items_are_refused(wrong: list[int]) -> None:
    """Each wrong completion leaves the trie, ends before an item is complete, or goes on after an item is complete."""
    rows = [([1], ITEMS[0], []), ([1], ITEMS[2], [ITEMS[1], ITEMS[3]]), ([1], ITEMS[0], [ITEMS[1]])]
    check_on_catalogue(Dataset.from_list(as_rows(rows)), TRIE)
    for chosen, rejected in ((wrong, [ITEMS[1]]), (ITEMS[0], [ITEMS[1], wrong])):
        with pytest.raises(ValueError, match="row 3: a completion is not an item of the catalogue"):
            check_on_catalogue(Dataset.from_list(as_rows([*rows, ([1], chosen, rejected)])), TRIE)
    many = Dataset.from_list(as_rows([rows[0]] * 10_001 + [([1], wrong, [])]))
    with pytest.raises(ValueError, match="row 10001: a completion is not an item of the catalogue"):
        check_on_catalogue(many, TRIE)
