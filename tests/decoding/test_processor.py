"""Compares the logits processor with values that were worked out by hand."""

import pytest
import torch

from trl_rec.decoding import TrieLogitsProcessor
from trl_rec.items import TokenTrie


EOS = 1


def test_scores_by_hand() -> None:
    """The paths are [4 5 EOS], [4 6 EOS] and [7 EOS]. After 4, the legal tokens are 5 and 6. Their scores are 0 and
    log 3, and their softmax is 1/4 and 3/4."""
    trie = TokenTrie.from_sequences([[4, 5, EOS], [4, 6, EOS], [7, EOS]])
    processor = TrieLogitsProcessor(trie, 1, eos_token_id=EOS)
    scores = torch.zeros(1, 10)
    scores[0, 6] = torch.log(torch.tensor(3.0))
    out = processor(torch.tensor([[9, 4]]), scores)
    assert out.exp().nonzero().tolist() == [[0, 5], [0, 6]]
    assert out[0, [5, 6]].exp().tolist() == pytest.approx([0.25, 0.75])
    raw = TrieLogitsProcessor(trie, 1, eos_token_id=EOS, renormalize=False)(torch.tensor([[9, 4]]), scores)
    assert raw[0, 6] == scores[0, 6]


def test_excluded_items_are_removed_after_the_softmax() -> None:
    trie = TokenTrie.from_sequences([[4, 5, EOS], [4, 6, EOS], [7, EOS]])
    processor = TrieLogitsProcessor(trie, 1, eos_token_id=EOS, exclude=[[2]])
    out = processor(torch.tensor([[9]]), torch.zeros(1, 10))
    assert out.exp()[0].nonzero().flatten().tolist() == [4]
    assert out[0, 4].exp() == pytest.approx(0.5)


def test_only_eos_follows_a_complete_item() -> None:
    trie = TokenTrie.from_sequences([[4, 5], [4, 6]])
    processor = TrieLogitsProcessor(trie, 1, eos_token_id=EOS)
    for generated in ([4, 5], [4, 5, EOS], [4, 5, EOS, 0]):
        out = processor(torch.tensor([[9, *generated]]), torch.randn(1, 10))
        assert out[0].isfinite().nonzero().flatten().tolist() == [EOS] and out[0, EOS] == 0


def test_a_row_that_left_the_trie_is_named() -> None:
    trie = TokenTrie.from_sequences([[4, 5], [4, 6]])
    processor = TrieLogitsProcessor(trie, 1, eos_token_id=EOS)
    with pytest.raises(ValueError, match="row 1 left the trie after 1 tokens"):
        processor(torch.tensor([[9, 4, 5], [9, 4, 8]]), torch.zeros(2, 10))


def test_token_zero_can_be_legal() -> None:
    trie = TokenTrie.from_sequences([[0, EOS], [3, EOS], [3, 2, EOS]])
    out = TrieLogitsProcessor(trie, 1, eos_token_id=EOS)(torch.tensor([[9], [9]]), torch.zeros(2, 10))
    assert out.isfinite().nonzero().tolist() == [[0, 0], [0, 3], [1, 0], [1, 3]]
