"""Tests rankings with item weights against brute force over all items, and against rankings that exclude items."""

import math
import random
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.conftest import make_model
from tests.decoding.test_beam import MODELS, as_rankings, pad, random_catalogue, random_prompts
from tests.oracles.decoding import brute_force, generate_rankings
from tests.oracles.lists import all_lists
from tests.oracles.weights import terms_of, weights_of
from trl_rec.decoding import (
    ItemWeights,
    TrieLogitsProcessor,
    beam_list,
    greedy_list,
    rank_items,
    rank_scores,
    score_catalog,
)
from trl_rec.decoding.lists.beams import rank_list
from trl_rec.items import TokenTrie


def random_weights(rng: random.Random, num_prompts: int, num_items: int) -> ItemWeights:
    """Returns a random combination of shared weights, weights per prompt and a filter. Weights may be 0, and an item
    may occur more than once in the weights of a prompt."""

    def some() -> list[float]:
        return [rng.choice([0.0, 1e-3, 0.3, 1.0, 5.0]) * rng.random() for _ in range(num_items)]

    options = {"strength": rng.choice([0.0, 0.5, 1.0, 3.0])}
    if rng.random() < 0.6:
        options["shared"] = torch.tensor(some())
    if rng.random() < 0.6:
        width = rng.randint(1, 6)
        options["items"] = torch.randint(-1, num_items, (num_prompts, width), generator=seeded(rng))
        options["values"] = torch.rand(num_prompts, width, generator=seeded(rng)) * rng.choice([0.0, 1.0])
    if rng.random() < 0.5:
        options["allowed"] = torch.rand(2, num_items, generator=seeded(rng)) < 0.7
        options["allowed_of"] = torch.randint(0, 2, (num_prompts,), generator=seeded(rng))
    return ItemWeights(**options)


def seeded(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**31))


@pytest.mark.parametrize("shared_cache", [True, False])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 2**32), st.sampled_from(sorted(MODELS)), st.booleans(), st.booleans(), st.sampled_from([0.0, 1.0])
)
@example(3_973_751_206, ("gpt2", "eager"), True, False, 0.0)  # excluded items with paths of different lengths
def test_with_one_beam_per_item_scores_are_exact(
    monkeypatch: pytest.MonkeyPatch,
    shared_cache: bool,
    seed: int,
    key: tuple[str, str],
    has_eos: bool,
    renormalize: bool,
    length_penalty: float,
) -> None:
    why = None if shared_cache else "for this test"
    monkeypatch.setattr("trl_rec.decoding.prompt_cache.why_separate", lambda *_: why)
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    trie = TokenTrie.from_sequences(sequences)
    prompts, rows = random_prompts(rng, 2)
    weights = random_weights(rng, 2, len(sequences))
    exclude = [rng.sample(range(len(sequences)), rng.randint(0, len(sequences) // 2)) for _ in rows]
    options = {"renormalize": renormalize, "length_penalty": length_penalty}

    ranked = rank_items(
        MODELS[key], prompts, trie, num_beams=len(sequences), exclude=exclude, weights=weights, **options
    )
    scores = score_catalog(MODELS[key], prompts, trie, **options)
    exact = rank_scores(scores, trie, len(sequences), exclude, weights)
    for row, prompt in enumerate(rows):
        terms = terms_of(weights, row, len(sequences))
        plain = dict(brute_force(MODELS[key], prompt, sequences, **options))
        expected = {item: plain[item] + term for item, term in terms.items() if item not in exclude[row]}
        for ours in (as_rankings(ranked)[row], as_rankings(exact)[row]):
            assert dict(ours) == pytest.approx(expected, abs=1e-4)
            found = [score for _, score in ours]
            assert found == sorted(found, reverse=True)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 10]), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_equal_weights_change_no_list_and_a_filter_equals_exclusion(
    seed: int, num_beams: int, renormalize: bool, length_penalty: float
) -> None:
    """Equal weights give the same lists as no weights. A filter gives the same lists as the exclusion of the items
    that it removes."""
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos=True)
    count = len(sequences)
    trie = TokenTrie.from_sequences(sequences)
    prompts, rows = random_prompts(rng, 3)
    exclude = [rng.sample(range(count), rng.randint(0, count // 2)) for _ in rows]
    options = {"num_beams": num_beams, "renormalize": renormalize, "length_penalty": length_penalty}
    model = MODELS["llama", "sdpa"]

    plain = rank_items(model, prompts, trie, exclude=exclude, **options).items
    equal = ItemWeights(shared=torch.full((count,), 0.37), strength=rng.choice([0.0, 1.0, 2.5]))
    assert torch.equal(rank_items(model, prompts, trie, exclude=exclude, weights=equal, **options).items, plain)

    allowed = torch.rand(3, count, generator=seeded(rng)) < 0.6
    of = torch.tensor([2, 0, 1])
    complements = [row + (~allowed[of[i]]).nonzero().flatten().tolist() for i, row in enumerate(exclude)]
    filtered = rank_items(
        model, prompts, trie, exclude=exclude, weights=ItemWeights(allowed=allowed, allowed_of=of), **options
    )
    assert torch.equal(filtered.items, rank_items(model, prompts, trie, exclude=complements, **options).items)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 10]), st.booleans())
def test_excluding_items_equals_filtering_them_out_of_uneven_weights(seed: int, num_beams: int, has_eos: bool) -> None:
    """The search chooses subtrees by a bound on the weights of their items. This bound ignores excluded items."""
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    count = len(sequences)
    trie = TokenTrie.from_sequences(sequences)
    prompts, rows = random_prompts(rng, 3)
    exclude = [rng.sample(range(count), rng.randint(0, count - 1)) for _ in rows]
    allowed = torch.ones(3, count, dtype=torch.bool)
    for row, items in enumerate(exclude):
        allowed[row, items] = False
    options = {"shared": torch.rand(count, generator=seeded(rng)) ** 6 + 1e-4, "strength": rng.choice([0.0, 1.0, 3.0])}
    if rng.random() < 0.5:
        options["items"] = torch.randint(-1, count, (3, 4), generator=seeded(rng))
        options["values"] = torch.rand(3, 4, generator=seeded(rng))

    model = MODELS["llama", "sdpa"]
    excluded = rank_items(
        model, prompts, trie, num_beams=num_beams, exclude=exclude, weights=ItemWeights(**options)
    ).items
    filtered = ItemWeights(**options, allowed=allowed, allowed_of=torch.arange(3))
    assert torch.equal(excluded, rank_items(model, prompts, trie, num_beams=num_beams, weights=filtered).items)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_any_precision_are_accepted(dtype: torch.dtype) -> None:
    trie = TokenTrie.from_sequences([[4, 1], [5, 1], [6, 1]])
    weights = ItemWeights(
        shared=torch.tensor([1.0, 0.5, 0.0], dtype=dtype), items=torch.tensor([[2]]), values=torch.tensor([[2.0]])
    )
    model = MODELS["llama", "sdpa"]
    assert rank_items(model, pad([[9]]), trie, num_beams=3, weights=weights).items.min() >= 0
    for num_beams in (1, 3):
        items = rank_list(model, pad([[9]]), trie, list_length=3, top_k=3, num_beams=num_beams, weights=weights).items
        assert sorted(items[0].tolist()) == [0, 1, 2]


def test_the_score_by_hand() -> None:
    """The model gives all tokens the same probability. The normalised weights are 1/8, 2/8 and 5/8, and the
    strength is 2."""
    model = make_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    trie = TokenTrie.from_sequences([[4, 5, 1], [4, 6, 1], [7, 1]])
    weights = ItemWeights(shared=torch.tensor([1.0, 2.0, 5.0]), strength=2.0)
    ranked = rank_items(model, pad([[9]]), trie, num_beams=3, weights=weights)
    expected = [math.log(1 / 2) + 2 * math.log(5 / 8), math.log(1 / 4) + 2 * math.log(2 / 8)]
    assert ranked.items.tolist() == [[2, 1, 0]]
    assert ranked.scores[0, :2].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_look_ahead_finds_a_weight_behind_an_unlikely_token() -> None:
    """With one beam, the search finds the only item with a large weight, although the model prefers a first token that
    does not lead to this item."""
    model = make_model("llama")
    trie = TokenTrie.from_sequences([[4, 5, 1], [4, 6, 1], [7, 8, 1], [7, 9, 1]])
    plain = int(rank_items(model, pad([[9]]), trie, num_beams=1).items[0, 0])
    other = 3 if plain < 2 else 0
    weights = ItemWeights(items=torch.tensor([[other, plain]]), values=torch.tensor([[1.0, 1e-6]]))
    assert rank_items(model, pad([[9]]), trie, num_beams=1, weights=weights).items.tolist() == [[other]]


def test_items_of_a_leaf_are_sorted_by_weight_before_the_leaf_is_cut() -> None:
    trie = TokenTrie.from_sequences([[4, 1]] * 5 + [[5, 1]])
    weights = ItemWeights(shared=torch.tensor([1.0, 5.0, 2.0, 0.0, 4.0, 1.0]))
    ranked = rank_items(make_model("llama"), pad([[9]]), trie, num_beams=2, top_k=6, weights=weights)
    of_leaf = [item for item in ranked.items[0].tolist() if item != 5]
    assert of_leaf == [1, 4, 2, 0, -1]
    assert 1 in rank_items(make_model("llama"), pad([[9]]), trie, num_beams=2, top_k=2, weights=weights).items


@pytest.mark.parametrize("num_lists", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_no_ranking_has_an_item_of_weight_0(num_lists: int) -> None:
    rng = random.Random(5)
    sequences = random_catalogue(rng, has_eos=True) + [[25, token, 1] for token in range(3, 30)]
    trie = TokenTrie.from_sequences(sequences)
    model = make_model("llama", seed=3)
    for start in range(0, num_lists, 2_000):
        prompts, rows = random_prompts(random.Random(start), 2_000, longest=3)
        values = torch.rand(len(sequences), generator=seeded(rng))
        shared = torch.where(values < 0.3, 0.0, values)
        weights = ItemWeights(shared=shared, strength=rng.choice([0.0, 1.0]))
        items = rank_items(model, prompts, trie, num_beams=4, top_k=8, weights=weights).items
        assert not bool((shared[items[items >= 0]] == 0).any())
        assert bool((items >= 0).any(1).all())


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.booleans())
def test_generate_with_the_processor_gives_the_same_scores(seed: int, renormalize: bool) -> None:
    rng = random.Random(seed)
    sequences = sorted({tuple(path) for path in random_catalogue(rng, has_eos=True)})
    trie = TokenTrie.from_sequences([list(path) for path in sequences])
    prompts, rows = random_prompts(rng, 2)
    weights = random_weights(rng, 2, len(sequences))
    exclude = [rng.sample(range(len(sequences)), rng.randint(0, len(sequences) // 2)) for _ in rows]
    # `generate` needs at least one legal item per prompt.
    assume(all({*terms_of(weights, row, len(sequences))} - {*exclude[row]} for row in range(2)))
    options = {"num_beams": rng.choice([2, 3, 12]), "exclude": exclude, "renormalize": renormalize}
    model = MODELS["llama", "sdpa"]
    ranked = rank_items(model, prompts, trie, weights=weights, **options)
    expected = generate_rankings(model, prompts, trie, weights=weights, **options)
    for ours, theirs in zip(as_rankings(ranked), expected, strict=True):
        assert sorted(score for _, score in ours) == pytest.approx(sorted(score for _, score in theirs), abs=1e-4)
        assert dict(ours) == pytest.approx(dict(theirs), abs=1e-4)


def test_shared_weights_apply_to_every_prompt_of_the_processor() -> None:
    trie = TokenTrie.from_sequences([[4, 1], [5, 1]])
    weights = ItemWeights(shared=torch.tensor([1.0, 3.0]))
    out = TrieLogitsProcessor(trie, 1, eos_token_id=1, weights=weights)(torch.tensor([[9]] * 3), torch.zeros(3, 10))
    assert out[:, 4].exp().tolist() == pytest.approx([1 / 8] * 3)
    assert out[:, 5].exp().tolist() == pytest.approx([3 / 8] * 3)


# Lists


def weighed_lists(sequences: list[list[int]], length: int, given: list[float], excluded: list[int]) -> list:
    """Returns all lists that contain neither excluded items nor items of weight 0. Items with the same path occur in
    the order of descending weight."""
    order = sorted(range(len(sequences)), key=lambda item: (-given[item], item))
    gone = [order.index(item) for item in {*excluded, *(item for item in order if given[item] == 0)}]
    lists = all_lists([sequences[item] for item in order], length, gone)
    return [tuple(order[place] for place in one) for one in lists]


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_with_a_beam_for_every_list_the_best_weighed_list_is_found(seed: int) -> None:
    rng = random.Random(seed)
    paths = [[4, 5, 1], [4, 6, 1], [4, 6, 1], [7, 1], [8, 9, 1], [8, 9, 1]]
    trie = TokenTrie.from_sequences(paths)
    prompts, rows = random_prompts(rng, 2)
    weights = random_weights(rng, 2, len(paths))
    given_weights = [weights_of(weights, row, len(paths)) for row in range(2)]
    exclude = [rng.sample(range(len(paths)), rng.randint(0, 2)) for _ in rows]
    left = min(sum(w > 0 for i, w in enumerate(row) if i not in exclude[r]) for r, row in enumerate(given_weights))
    if left < 2:
        with pytest.raises(ValueError, match="items to choose from, too few for a list of 2"):
            beam_list(
                MODELS["llama", "sdpa"], prompts, trie, list_length=2, num_beams=2, exclude=exclude, weights=weights
            )
        return

    model = MODELS["llama", "sdpa"]
    ranked = beam_list(model, prompts, trie, list_length=2, num_beams=40, exclude=exclude, weights=weights)
    for row, prompt in enumerate(rows):
        terms = terms_of(weights, row, len(paths))
        removed = {*exclude[row], *(item for item in range(len(paths)) if item not in terms)}
        best = -math.inf
        for one in weighed_lists(paths, 2, given_weights[row], exclude[row]):
            best = max(best, list_score(model, prompt, paths, one, removed) + sum(terms[item] for item in one))
        items = ranked.items[row].tolist()
        score = list_score(model, prompt, paths, items, removed) + sum(terms[item] for item in items)
        assert float(ranked.scores[row, -1]) == pytest.approx(score, abs=1e-4)
        assert score == pytest.approx(best, abs=1e-4)


@torch.no_grad()
def list_score(model, prompt: list[int], paths: list[list[int]], items, removed: set[int]) -> float:
    """Returns the log-probability of a list. A path is legal as long as one of its items is neither removed nor
    already in the list."""
    text = [token for item in items for token in paths[item]]
    logits = model(input_ids=torch.tensor([prompt + text])).logits[0, len(prompt) - 1 :].float()
    left = set(range(len(paths))) - removed
    score, position = 0.0, 0
    for item in items:
        for depth, token in enumerate(paths[item]):
            pool = sorted({paths[other][depth] for other in left if paths[other][:depth] == paths[item][:depth]})
            score += float(logits[position, token] - logits[position, pool].logsumexp(0))
            position += 1
        left.discard(item)
    return score


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 5]))
def test_lists_of_a_narrow_beam_are_complete(seed: int, num_beams: int) -> None:
    """If paths differ in length, a beam with a high score may still be in the middle of a path when the search ends.
    The search must not return its incomplete list."""
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos=True)
    prompts, _ = random_prompts(rng, 2)
    weights = ItemWeights(
        shared=torch.rand(len(sequences), generator=seeded(rng)) ** 6 + 1e-4, strength=rng.choice([0.5, 1.0, 3.0])
    )
    length = min(3, len(sequences))
    trie = TokenTrie.from_sequences(sequences)
    ranked = beam_list(flat_model(), prompts, trie, list_length=length, num_beams=num_beams, weights=weights)
    assert bool((ranked.items >= 0).all()) and bool(ranked.scores.isfinite().all())


@cache
def flat_model() -> PreTrainedModel:
    """Returns a model under which many lists have similar probabilities."""
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)
    return model


def test_one_beam_equals_greedy_decoding_and_a_filter_equals_exclusion_in_lists() -> None:
    rng = random.Random(2)
    paths = random_catalogue(random.Random(11), has_eos=True) + [[25, token, 1] for token in range(3, 9)]
    trie = TokenTrie.from_sequences(paths)
    prompts, _ = random_prompts(rng, 3)
    model = MODELS["llama", "sdpa"]
    weights = ItemWeights(shared=torch.rand(len(paths), generator=seeded(rng)) + 0.01)
    greedy = greedy_list(model, prompts, trie, list_length=3, weights=weights)
    one = beam_list(model, prompts, trie, list_length=3, num_beams=1, weights=weights)
    assert torch.equal(greedy.items, one.items)
    torch.testing.assert_close(greedy.scores, one.scores)

    allowed = torch.ones(1, len(paths), dtype=torch.bool)
    allowed[0, 3:6] = False
    for num_beams in (1, 3, 10):
        options = {"list_length": 3, "num_beams": num_beams}
        filtered = beam_list(model, prompts, trie, weights=ItemWeights(allowed=allowed), **options)
        assert torch.equal(filtered.items, beam_list(model, prompts, trie, exclude=[[3, 4, 5]] * 3, **options).items)


BAD = [
    ({"shared": [1.0, -1.0, 1.0]}, "shared contains a negative, infinite or NaN weight"),
    ({"shared": [1.0, math.nan, 1.0]}, "shared contains a negative, infinite or NaN weight"),
    ({"shared": [[1.0]]}, r"shared must have 1 dimension\(s\), not 2"),
    ({"items": [[1]], "values": [[math.inf]]}, "values contains a negative, infinite or NaN weight"),
    ({"items": [[1]]}, "items and values belong together; pass both, or neither"),
    ({"items": [[1]], "values": [[1.0, 2.0]]}, r"items has the shape \(1, 1\), but values \(1, 2\)"),
    ({"items": [[1.0]], "values": [[1.0]]}, "items must contain item indices, which are integers"),
    ({"strength": -1.0}, "strength must be at least 0, not -1.0"),
    ({"strength": math.nan}, "strength must be at least 0, not nan"),
    ({"allowed": [[1.0]]}, "allowed must be a boolean tensor; pass weights as 'shared'"),
    ({"allowed_of": [0]}, "allowed_of selects rows of 'allowed', which is missing"),
    ({"allowed": [[True, True, True]], "allowed_of": [1]}, "a row number outside the 1 rows of 'allowed'"),
]
UNFIT = [
    ({"shared": [1.0, 1.0]}, "weights.shared has 2 items, but the trie has 3"),
    ({"allowed": [[True]]}, "weights.allowed has 1 items, but the trie has 3"),
    ({"items": [[3]], "values": [[1.0]]}, "weights.items contains 3, which is not one of the 3 items"),
    ({"items": [[1], [1]], "values": [[1.0], [1.0]]}, "weights.items has 2 rows for 1 prompts"),
]


def as_weights(options: dict) -> ItemWeights:
    return ItemWeights(**{name: torch.tensor(v) if isinstance(v, list) else v for name, v in options.items()})


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_weights_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_weights(options)


@pytest.mark.parametrize(("options", "message"), UNFIT)
def test_weights_of_other_items_or_prompts_are_refused(options: dict, message: str) -> None:
    trie = TokenTrie.from_sequences([[4, 1], [5, 1], [6, 1]])
    with pytest.raises(ValueError, match=message):
        rank_items(MODELS["llama", "sdpa"], pad([[9]]), trie, num_beams=2, weights=as_weights(options))
