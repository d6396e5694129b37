"""Compares beam search with `generate`, and with scores that are computed for each item separately."""

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MptConfig,
    MptForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import make_model
from tests.oracles.decoding import brute_force, generate_rankings
from trl_rec.decoding import RankedItems, rank_items
from trl_rec.decoding.beam import best_first
from trl_rec.items import TokenTrie


VOCABULARY, EOS = 40, 1
MODELS = {
    (family, kind): make_model(family, attention=kind)
    for family in ("llama", "qwen3", "gpt2")
    for kind in ("sdpa", "eager")
}


def random_catalogue(rng: random.Random, has_eos: bool) -> list[list[int]]:
    """Returns paths with forks, forced chains and duplicates."""
    alphabet = list(range(3, 3 + rng.choice([2, 4, 20])))
    length = rng.randint(1, 4)
    sequences = []
    for _ in range(rng.choice([1, 3, 8, 30])):
        if has_eos:
            chain = [30] * rng.randint(0, 4) if rng.random() < 0.4 else []
            body = [rng.choice(alphabet) for _ in range(rng.randint(1, 5))]
            sequences.append([*body[:1], *chain, *body[1:], EOS])
        else:
            sequences.append([rng.choice(alphabet) for _ in range(length)])
    return sequences


def random_prompts(
    rng: random.Random, count: int, longest: int = 7
) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    prompts = [[rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(count)]
    return pad(prompts), prompts


def pad(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def as_rankings(ranked: RankedItems) -> list[list[tuple[int, float]]]:
    rows = zip(ranked.items.tolist(), ranked.scores.tolist(), strict=True)
    return [[(item, score) for item, score in zip(items, scores, strict=True) if item >= 0] for items, scores in rows]


def assert_same(ours: list[tuple[int, float]], expected: list[tuple[int, float]]) -> None:
    assert [item for item, _ in ours] == [item for item, _ in expected]
    assert [score for _, score in ours] == pytest.approx([score for _, score in expected], abs=1e-4)


@pytest.mark.parametrize("shared", [True, False])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.sampled_from(sorted(MODELS)), st.booleans(), st.booleans(), st.booleans())
def test_rank_items_equals_generate_with_the_processor(
    monkeypatch: pytest.MonkeyPatch,
    shared: bool,
    seed: int,
    key: tuple[str, str],
    has_eos: bool,
    renormalize: bool,
    excludes: bool,
) -> None:
    """The processor is [`TrieLogitsProcessor`]. In `rank_items`, the key-value cache has one row per prompt if
    `shared` is true, and one row per beam otherwise."""
    monkeypatch.setattr("trl_rec.decoding.prompt_cache.why_separate", lambda *_: None if shared else "for this test")
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    trie = TokenTrie.from_sequences(sequences)
    prompts, rows = random_prompts(rng, rng.randint(1, 3))
    exclude = None
    if excludes:  # an excluded item may be given twice, as in a history
        chosen = [rng.sample(range(len(sequences)), rng.randint(0, len(sequences) // 2)) for _ in rows]
        exclude = [items + items[:1] for items in chosen]
    options = {"num_beams": rng.choice([2, 3, 5, 12]), "exclude": exclude, "renormalize": renormalize}
    options["length_penalty"] = rng.choice([0.0, 1.0])
    ranked = rank_items(MODELS[key], prompts, trie, top_k=len(sequences), **options)
    expected = generate_rankings(MODELS[key], prompts, trie, has_eos=has_eos, **options)
    for ours, theirs in zip(as_rankings(ranked), expected, strict=True):
        assert_same(ours, theirs)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from(sorted(MODELS)), st.booleans(), st.booleans())
def test_with_one_beam_per_item_every_item_is_scored(
    seed: int, key: tuple[str, str], has_eos: bool, renormalize: bool
) -> None:
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    prompts, rows = random_prompts(rng, 2)
    ranked = rank_items(
        MODELS[key], prompts, TokenTrie.from_sequences(sequences), num_beams=len(sequences), renormalize=renormalize
    )
    for ours, prompt in zip(as_rankings(ranked), rows, strict=True):
        expected = brute_force(MODELS[key], prompt, sequences, renormalize=renormalize)
        assert {item for item, _ in ours} == set(range(len(sequences)))
        assert [score for _, score in ours] == pytest.approx([score for _, score in expected], abs=1e-4)
        assert dict(ours) == pytest.approx(dict(expected), abs=1e-4)


@pytest.mark.parametrize("family", ["mistral", "mistral-window", "gemma2"])
def test_models_with_other_attention_equal_brute_force(family: str) -> None:
    """A sliding window of 4 tokens needs one cache row per beam. Gemma 2 soft-caps its logits, and runs with eager
    attention."""
    model = make_model(family, attention="eager" if family == "gemma2" else "sdpa")
    rng = random.Random(1)
    sequences = random_catalogue(rng, has_eos=True)
    prompts, rows = random_prompts(rng, 3)
    ranked = rank_items(model, prompts, TokenTrie.from_sequences(sequences), num_beams=len(sequences))
    for ours, prompt in zip(as_rankings(ranked), rows, strict=True):
        assert dict(ours) == pytest.approx(dict(brute_force(model, prompt, sequences, renormalize=True)), abs=1e-4)


def test_ten_thousand_rankings_have_no_invalid_or_repeated_item() -> None:
    rng = random.Random(3)
    sequences = random_catalogue(rng, has_eos=True) + [[25, token, EOS] for token in range(3, 30)]
    trie, model = TokenTrie.from_sequences(sequences), make_model("llama", seed=3)
    for start in range(0, 10_000, 1_000):
        prompts, rows = random_prompts(random.Random(start), 1_000, longest=4)
        exclude = [[index % len(sequences)] for index in range(len(rows))]
        items = rank_items(model, prompts, trie, num_beams=8, top_k=10, exclude=exclude).items
        assert int(items.min()) >= -1 and int(items.max()) < len(sequences)
        assert not bool((items == torch.tensor(exclude)).any())
        ordered = items.sort(1).values
        assert not bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any())


def test_equal_scores_are_ordered_by_item_index() -> None:
    model = make_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    sequences = [[30 - item, EOS] for item in range(20)]  # a higher item index has a lower token id
    ranked = rank_items(model, pad([[5, 6]]), TokenTrie.from_sequences(sequences), num_beams=6)
    assert ranked.items.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_excluding_all_items_leaves_every_rank_empty() -> None:
    trie = TokenTrie.from_sequences([[4, 5, EOS], [4, 6, EOS]])
    ranked = rank_items(MODELS["gpt2", "sdpa"], pad([[3], [3]]), trie, num_beams=2, exclude=[[0, 1], [1]])
    assert ranked.items.tolist() == [[-1, -1], [0, -1]]
    assert ranked.scores[0].tolist() == [-torch.inf, -torch.inf]


def test_a_batch_ranks_like_its_prompts_one_by_one() -> None:
    rng = random.Random(4)
    trie = TokenTrie.from_sequences(random_catalogue(rng, has_eos=True))
    prompts, rows = random_prompts(rng, 5)
    together = rank_items(MODELS["qwen3", "sdpa"], prompts, trie, num_beams=3)
    for index, row in enumerate(rows):
        alone = rank_items(MODELS["qwen3", "sdpa"], pad([row]), trie, num_beams=3)
        assert alone.items[0].tolist() == together.items[index].tolist()


def test_best_first_sorts_like_floats_and_breaks_ties_by_the_lower_item() -> None:
    scores = torch.tensor([[0.0, -0.0, -1e-30, 3.5, -torch.inf, 3.5, -7.25, 1e30]])
    ties = torch.tensor([[9, 2, 0, 5, 0, 4, 0, 0]], dtype=torch.int32)
    assert best_first(scores, ties, 8).tolist() == [[7, 5, 3, 1, 0, 2, 6, 4]]


def test_training_mode_is_restored() -> None:
    model = make_model("llama").train()
    rank_items(model, pad([[3]]), TokenTrie.from_sequences([[4, EOS]]), num_beams=1)
    assert model.training


def test_bad_input_is_refused() -> None:
    model, trie = MODELS["llama", "sdpa"], TokenTrie.from_sequences([[4, EOS], [5, EOS]])
    right = {"input_ids": torch.tensor([[3, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    with pytest.raises(ValueError, match="padded on the left"):
        rank_items(model, right, trie, num_beams=2)
    for options, message in (
        ({"num_beams": 0}, "num_beams must be at least 1, not 0"),
        ({"num_beams": 2, "top_k": -1}, "top_k must be at least 1, not -1"),
        ({"num_beams": 2, "length_penalty": torch.nan}, "length_penalty must be a finite number, not nan"),
    ):
        with pytest.raises(ValueError, match=message):
            rank_items(model, pad([[3]]), trie, **options)
    for empty in (
        torch.zeros(0, 2, dtype=torch.int64),
        torch.zeros(1, 0, dtype=torch.int64),
        torch.zeros(1, 2, dtype=torch.int64),
    ):
        with pytest.raises(ValueError, match="input_ids contains no prompts, or a prompt without tokens"):
            rank_items(model, {"input_ids": empty, "attention_mask": empty}, trie, num_beams=2)
    with pytest.raises(ValueError, match="take 602 tokens, but the model has 512 positions; encode prompts with"):
        rank_items(model, pad([[3] * 600]), trie, num_beams=2)
    with pytest.raises(ValueError, match="exclude has 1 lists for 2 prompts"):
        rank_items(model, pad([[3], [4]]), trie, num_beams=2, exclude=[[0]])
    with pytest.raises(ValueError, match="the trie contains token 99, but the model's vocabulary ends at 39"):
        rank_items(model, pad([[3]]), TokenTrie.from_sequences([[99, EOS]]), num_beams=2)
    broken = make_model("llama")
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    with pytest.raises(ValueError, match="logits contain NaN"):
        rank_items(broken, pad([[3]]), trie, num_beams=2)


def test_excluded_items_may_be_an_array() -> None:
    trie, exclude = TokenTrie.from_sequences([[4, EOS], [5, EOS]]), np.array([[0]])
    assert rank_items(MODELS["llama", "sdpa"], pad([[3]]), trie, num_beams=2, exclude=exclude).items.tolist() == [
        [1, -1]
    ]


def test_a_model_with_local_attention_equals_brute_force() -> None:
    """The window of GPT-Neo's local layers counts columns of the cache, not positions. If beams shared a row, their
    columns would push the prompt out of the window."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(
        GPTNeoConfig(attention_types=[[["global", "local"], 1]], window_size=4, initializer_range=0.4, **sizes)
    )
    sequences, rows = random_catalogue(random.Random(1), has_eos=True), [[5, 6, 7, 8, 9, 10]]
    ranked = rank_items(model.eval(), pad(rows), TokenTrie.from_sequences(sequences), num_beams=len(sequences))
    expected = brute_force(model, rows[0], sequences, renormalize=True)
    assert dict(as_rankings(ranked)[0]) == pytest.approx(dict(expected), abs=1e-4)


def test_models_that_cannot_be_decoded_are_refused() -> None:
    trie = TokenTrie.from_sequences([[4, EOS]])
    small = {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    for model in (
        BloomForCausalLM(BloomConfig(**small)),
        MptForCausalLM(MptConfig(vocab_size=VOCABULARY, d_model=16, n_heads=2, n_layers=1)),
    ):
        with pytest.raises(ValueError, match="does not accept position ids"):
            rank_items(model, pad([[3]]), trie, num_beams=1)
    lfm = Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    lfm.layer_types = ["conv", "full_attention"]
    with pytest.raises(ValueError, match="keeps a recurrent state"):
        rank_items(Lfm2ForCausalLM(lfm), pad([[3]]), trie, num_beams=1)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1))
    with pytest.raises(ValueError, match="keeps a recurrent state"):
        rank_items(mamba, pad([[3]]), trie, num_beams=1)
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ValueError, match="is an encoder-decoder"):
        rank_items(T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes)), pad([[3]]), trie, num_beams=1)
