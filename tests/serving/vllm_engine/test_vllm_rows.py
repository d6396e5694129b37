"""Compares `CatalogRows`, which our logits processor for vLLM uses, with a slow search for the legal tokens. Each row
is a request. Between decoding steps, the tests add, move and remove rows, as vLLM does."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.decoding.test_beam import random_catalogue
from tests.oracles.lists import legal_tokens
from trl_rec.decoding.item_filter import Mask
from trl_rec.items import TokenTrie
from trl_rec.serving.vllm.filters import MOST_UNUSED, FilterTables
from trl_rec.serving.vllm.rows import CatalogRows, Row


EOS = 1
VOCAB = 40


class Slow:
    """A row whose legal tokens are computed from scratch in every step."""

    def __init__(self, sequences: list[list[int]], row: Row, are_lists: bool, renormalize: bool) -> None:
        self.sequences = sequences
        self.row = row
        self.are_lists = are_lists
        self.renormalize = renormalize or are_lists

    def state(self) -> tuple[list[int], list[int]]:
        """Returns the complete items, and the tokens after them."""
        items: list[int] = []
        path: list[int] = []
        for token in [*self.row.prefix, *self.row.written]:
            if len(items) == self.row.length:
                break
            path.append(token)
            left = [item for item in self.left(items) if self.sequences[item] == path]
            if left:
                items.append(left[0])
                path = []
        return items, path

    def left(self, items: list[int]) -> list[int]:
        mask = self.row.mask
        everything = range(len(self.sequences))
        gone = {*items, *self.row.exclude}
        return [item for item in everything if item not in gone and (mask is None or mask.items[item])]

    def expected(self, logits: torch.Tensor) -> torch.Tensor:
        items, path = self.state()
        scores = torch.full_like(logits, -torch.inf)
        left = legal_tokens(self.sequences, set(self.left(items)), path) if len(items) < self.row.length else []
        if not left:
            scores[EOS] = 0.0
            return scores
        legal = left if self.are_lists else legal_tokens(self.sequences, set(range(len(self.sequences))), path)
        base = logits[legal] if self.renormalize else logits
        scores[left] = logits[left] - base.logsumexp(0)
        return scores


def random_row(rng: random.Random, sequences: list[list[int]], are_lists: bool) -> Row:
    number = len(sequences)
    exclude = rng.sample(range(number), rng.randint(0, number))
    mask = Mask(np.array([rng.random() < 0.6 for _ in range(number)])) if rng.random() < 0.5 else None
    prefix = rng.choice(sequences) if rng.random() < 0.3 else []
    prefix = prefix[: rng.randrange(len(prefix))] if prefix else []
    return Row(rng.randint(1, 3) if are_lists else 1, [], prefix=prefix, exclude=exclude, mask=mask)


@given(st.integers(0, 2**32), st.booleans(), st.booleans(), st.booleans())
# With this seed, no allowed item starts with the prefix, so only EOS is legal. In this catalogue, EOS is also the last
# token of every path.
@example(438, True, True, False)
def test_rows_that_are_added_moved_and_removed_allow_only_legal_tokens(
    seed: int, has_eos: bool, are_lists: bool, renormalize: bool
) -> None:
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    rows = CatalogRows(TokenTrie.from_sequences(sequences), EOS, are_lists=are_lists, renormalize=renormalize)
    slow: dict[int, Slow] = {}
    generator = torch.Generator().manual_seed(seed % 2**31)

    for _ in range(12):
        # 1. The engine removes, adds and moves rows.
        for index in [index for index in slow if rng.random() < 0.2]:
            rows.remove(index)
            del slow[index]
        for _ in range(rng.randint(0, 2)):
            index = rng.randrange(6)
            row = random_row(rng, sequences, are_lists)
            rows.add(index, row)
            slow[index] = Slow(sequences, row, are_lists, renormalize)
        source, target = rng.sample(range(6), 2)
        swap = rng.random() < 0.5
        rows.move(source, target, swap=swap)
        first, second = slow.pop(source, None), slow.pop(target, None)
        slow |= {target: first} if first is not None else {}
        slow |= {source: second} if swap and second is not None else {}

        # 2. Every row allows only its legal tokens. Logits that belong to no row are unchanged.
        logits = torch.randn(6, VOCAB, generator=generator)
        out = rows.apply(logits.clone())
        for index in range(6):
            expected = slow[index].expected(logits[index]) if index in slow else logits[index]
            torch.testing.assert_close(out[index], expected)

        # 3. The engine chooses a token for each row. Sometimes it replaces a row by a new one with the same tokens.
        for index, one in slow.items():
            one.row.written.append(int(rng.choice((out[index] > -torch.inf).nonzero().flatten().tolist())))
        if slow and rng.random() < 0.3:
            index = rng.choice(list(slow))
            again = slow[index].row
            again = Row(again.length, again.written, again.prefix, again.exclude, again.mask)
            rows.add(index, again)
            slow[index].row = again
    for index, one in slow.items():
        assert rows.items(index) == one.state()[0]


def test_a_placeholder_token_of_asynchronous_scheduling_is_refused() -> None:
    rows = CatalogRows(TokenTrie.from_sequences([[4, 5], [4, 6]]), EOS, are_lists=False)
    rows.add(0, Row(1, [-1]))
    with pytest.raises(RuntimeError, match="asynchronous scheduling"):
        rows.apply(torch.zeros(1, VOCAB))


def test_a_token_that_is_not_legal_ends_the_row() -> None:
    """A token that is not legal can only come from logits that are NaN, or from a wrong prefix in a request."""
    rows = CatalogRows(TokenTrie.from_sequences([[4, 5], [4, 6]]), EOS, are_lists=False)
    rows.add(0, Row(1, [], prefix=[9]))
    assert rows.apply(torch.zeros(1, VOCAB))[0].isfinite().nonzero().flatten().tolist() == [EOS]


def test_nan_stays_nan() -> None:
    rows = CatalogRows(TokenTrie.from_sequences([[4], [5]]), EOS, are_lists=False)
    rows.add(0, Row(1, []))
    assert rows.apply(torch.full((1, VOCAB), torch.nan))[0, 4:6].isnan().all()


def test_half_precision_logits_stay_half_precision() -> None:
    rows = CatalogRows(TokenTrie.from_sequences([[4], [5]]), EOS, are_lists=False)
    rows.add(0, Row(1, []))
    out = rows.apply(torch.zeros(1, VOCAB, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16 and out[0, 4].item() == pytest.approx(-0.6931, abs=1e-2)


def test_filters_that_no_row_uses_are_forgotten() -> None:
    trie = TokenTrie.from_sequences([[token] for token in range(2, 12)])
    tables = FilterTables(trie)
    rng = np.random.default_rng(0)
    masks = [Mask(rng.random(10) < 0.5) for _ in range(5 * MOST_UNUSED)]
    kept = tables.number(masks[0], [])
    numbers = [tables.number(mask, [kept]) for mask in masks]
    assert numbers[0] == kept == tables.number(masks[0], [kept]) and max(numbers) <= MOST_UNUSED + 2
    places = torch.arange(11).unsqueeze(0)
    for mask, number in [(masks[0], kept), (masks[-1], numbers[-1])]:
        assert tables.is_allowed(torch.tensor([number]), places)[0].tolist() == [*mask.items.tolist(), False]
        assert tables.num_allowed(torch.tensor([number]), torch.tensor([[0]])).item() == mask.count
