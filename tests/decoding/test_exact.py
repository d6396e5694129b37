"""Tests the functions that score all items or given items exactly, without a search. Compares their scores with those
of a beam search that has one beam per item, and with those of one forward pass per item."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import make_model
from tests.decoding.test_beam import EOS, MODELS, as_rankings, assert_same, pad, random_catalogue, random_prompts
from tests.oracles.decoding import brute_force
from trl_rec.decoding import exact, rank_items
from trl_rec.decoding.exact import rank_scores, score_catalog, score_items
from trl_rec.items import TokenTrie


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(sorted(MODELS)), st.booleans(), st.booleans())
def test_exact_scores_equal_a_beam_search_with_one_beam_per_item(
    monkeypatch: pytest.MonkeyPatch, shared: bool, seed: int, key: tuple[str, str], has_eos: bool, renormalize: bool
) -> None:
    """The catalogues contain chains of forced tokens, and leaves that several items share. Some items are excluded. If
    `shared` is true, the key-value cache has one row per prompt, and the trie's nodes are read in chunks of random
    size."""
    monkeypatch.setattr("trl_rec.decoding.prompt_cache.why_separate", lambda *_: None if shared else "for this test")
    rng = random.Random(seed)
    monkeypatch.setattr(exact, "MOST_NODES", rng.choice([1, 2, 5, 1000]))
    sequences = random_catalogue(rng, has_eos)
    trie = TokenTrie.from_sequences(sequences)
    prompts, rows = random_prompts(rng, rng.randint(1, 3))
    exclude = [rng.sample(range(len(sequences)), rng.randint(0, len(sequences) // 2)) for _ in rows]
    options = {"renormalize": renormalize, "length_penalty": rng.choice([0.0, 1.0])}

    scores = score_catalog(MODELS[key], prompts, trie, **options)
    ranked = rank_scores(scores, trie, len(sequences) + 2, exclude)
    expected = rank_items(
        MODELS[key], prompts, trie, num_beams=len(sequences), top_k=len(sequences) + 2, exclude=exclude, **options
    )
    assert ranked.items.shape == expected.items.shape
    for ours, theirs in zip(as_rankings(ranked), as_rankings(expected), strict=True):
        assert dict(ours) == pytest.approx(dict(theirs), abs=1e-4)
        assert ours == sorted(ours, key=lambda pair: (-pair[1], pair[0]))
        if shared:  # otherwise, the scores are rounded differently, and nearly equal items may change places
            assert_same(ours, theirs)


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.sampled_from(sorted(MODELS)), st.booleans(), st.booleans())
def test_scores_equal_those_of_one_forward_pass_per_item(
    seed: int, key: tuple[str, str], has_eos: bool, renormalize: bool
) -> None:
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    trie = TokenTrie.from_sequences(sequences)
    prompts, rows = random_prompts(rng, 2)
    options = {"renormalize": renormalize, "length_penalty": rng.choice([0.0, 0.5])}
    every = score_catalog(MODELS[key], prompts, trie, **options)
    given = torch.tensor([[rng.randrange(-1, len(sequences)) for _ in range(4)] for _ in rows])
    some = score_items(MODELS[key], prompts, trie, given, **options)
    for row, prompt in enumerate(rows):
        expected = dict(brute_force(MODELS[key], prompt, sequences, **options))
        assert dict(enumerate(every[row].tolist())) == pytest.approx(expected, abs=1e-4)
        wanted = [expected.get(item, -torch.inf) for item in given[row].tolist()]
        assert some[row].tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("family", ["mistral-window", "gemma2", "qwen3_moe"])
def test_the_scores_of_other_models_equal_brute_force(family: str) -> None:
    """The family `mistral-window` has a sliding window of 4 tokens, so the model reads the prompt again for each path.
    Gemma 2 soft-caps its logits."""
    model = make_model(family, attention="eager" if family == "gemma2" else "sdpa")
    rng = random.Random(1)
    sequences = random_catalogue(rng, has_eos=True)
    rows = [[rng.randrange(3, 40) for _ in range(6)] for _ in range(2)]
    scores = score_catalog(model, pad(rows), TokenTrie.from_sequences(sequences))
    for row, prompt in enumerate(rows):
        expected = dict(brute_force(model, prompt, sequences, renormalize=True))
        assert dict(enumerate(scores[row].tolist())) == pytest.approx(expected, abs=1e-4)


def test_only_nodes_with_several_children_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one token per item, the forward pass over the prompt suffices. With longer paths, each later pass reads at
    most `MOST_NODES` nodes, and the path to the first of them."""
    model = MODELS["llama", "sdpa"]
    widths = []
    handle = model.register_forward_pre_hook(
        lambda _, arguments, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        score_catalog(model, pad([[5, 6, 7]]), TokenTrie.from_sequences([[token] for token in range(3, 30)]))
        assert widths == [3]

        widths.clear()
        monkeypatch.setattr(exact, "MOST_NODES", 3)
        sequences = [[first, second, third, EOS] for first in (4, 5) for second in (6, 7, 8) for third in (9, 10)]
        score_catalog(model, pad([[5, 6, 7]]), TokenTrie.from_sequences(sequences))
        # Besides the root, 8 nodes have several children. The last two passes also read the parent of their first
        # node.
        assert widths == [3, 3, 4, 3]
    finally:
        handle.remove()


def test_paths_of_given_items_are_read_up_to_their_last_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a path ends with a long chain of forced tokens, the model does not read this chain. It reads each prompt
    once."""
    trie = TokenTrie.from_sequences([[5, 6, 7, EOS], [5, 6, 8, EOS], [9, *[10] * 500, EOS]])
    read = []
    usual = exact.read_completions

    def read_some(model, ids, mask, completion_ids, completion_mask, **options):
        read.append(completion_mask.sum(-1).tolist())
        return usual(model, ids, mask, completion_ids, completion_mask, **options)

    monkeypatch.setattr(exact, "read_completions", read_some)
    model = make_model("llama")
    prompts, _ = random_prompts(random.Random(0), 2)
    scores = score_items(model, prompts, trie, torch.tensor([[0, 1, 2], [2, 1, 0]]))
    assert read == [[[3, 3, 1], [1, 3, 3]]]
    ranked = rank_items(model, prompts, trie, top_k=3, num_beams=3)
    found = torch.full((2, 3), torch.nan).scatter(1, ranked.items, ranked.scores)
    assert torch.allclose(scores, found.gather(1, torch.tensor([[0, 1, 2], [2, 1, 0]])), atol=1e-5)


def test_score_items_removes_excluded_items_before_the_softmax() -> None:
    """With `exclude`, the other items have the scores that they would have in a catalogue without the excluded items.
    List decoding excludes items in the same way."""
    model = MODELS["gpt2", "sdpa"]
    sequences = [[4, 5, 6], [4, 7, 8], [4, 7, 9], [9, 9, 9], [9, 9, 9]]  # the last two share a leaf
    trie = TokenTrie.from_sequences(sequences)
    items = torch.tensor([[0, 1, 2, 3, 4]])
    scores = score_items(model, pad([[3, 5]]), trie, items, exclude=[[1, 3]])
    left = {item: path for item, path in enumerate(sequences) if item in (0, 2, 4)}
    expected = brute_force(model, [3, 5], list(left.values()), renormalize=True)
    wanted = {list(left)[place]: score for place, score in expected}
    # Item 3 is excluded, but its leaf stays legal for item 4.
    assert scores[0].tolist() == pytest.approx([wanted[0], -torch.inf, wanted[2], wanted[4], wanted[4]], abs=1e-4)
    with pytest.raises(ValueError, match="exclude requires renormalize=True"):
        score_items(model, pad([[3]]), trie, items, exclude=[[0]], renormalize=False)


def test_bad_input_is_refused() -> None:
    trie = TokenTrie.from_sequences([[4, EOS], [5, EOS]])
    model = MODELS["llama", "sdpa"]
    with pytest.raises(ValueError, match="length_penalty must be a finite number, not nan"):
        score_catalog(model, pad([[3]]), trie, length_penalty=torch.nan)
    with pytest.raises(ValueError, match="a list contains item 7, which is not one of the 2 items of the trie"):
        score_items(model, pad([[3]]), trie, torch.tensor([[7]]))
    broken = make_model("llama")
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="logits contain NaN"):
        score_catalog(broken, pad([[3]]), trie)
