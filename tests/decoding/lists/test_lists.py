"""Tests sampled lists: their randomness, the tokens that the model reads, and their probabilities, which are compared
with an enumeration of all lists. Also tests greedy lists."""

import math
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import make_model
from tests.decoding.test_beam import pad, random_catalogue, random_prompts
from tests.oracles.lists import all_lists, drawable, greedy, token_logps
from trl_rec.decoding import SampledLists, greedy_list, list_logps, list_tokens, sample_item_lists
from trl_rec.decoding.lists.sampler import _sampled_columns
from trl_rec.items import TokenTrie
from trl_rec.models import read_completions


EOS, END = 1, 2  # END ends a title in a list
CATALOGUES = {
    "item_token": [[token] for token in (9, 5, 7, 12, 4)],
    "semantic_id": [[5, 11, 20], [5, 11, 21], [5, 12, 20], [6, 11, 20], [6, 13, 22]],
    # first tokens that are forced (the only legal ones), chains of forced tokens, a title that is a prefix of another
    # title, and two items with the same title
    "title": [
        [30, 31, 5, END],
        [30, 31, 5, 8, 8, END],
        [30, 31, 5, 8, 8, END],
        [30, 31, 7, 9, 9, 9, END],
        [30, 31, 5, 8, 9, END],
    ],
    # no forced first tokens
    "ragged": [[5, END], [7, 8, END], [7, 9, 9, END], [6, 5, 5, 5, END], [7, 8, 8, END]],
    # all items but one share a path
    "twins": [[30, 4, END], [30, 4, END], [30, 6, 5, END], [30, 4, END]],
}
# Transformers does not support sdpa for gemma2. mistral-window needs one cache row per list instead of one per prompt,
# because its attention window is shorter than a prompt and a list together.
FAMILIES = [("llama", "sdpa"), ("gpt2", "eager"), ("gemma2", "eager"), ("mistral-window", "sdpa")]
MODELS = {key: make_model(key[0], attention=key[1]) for key in FAMILIES}
ROWS = [[3, 14, 15], [9, 26, 5, 35, 8], [4]]


def scored(model, prompts: dict[str, Tensor], trie: TokenTrie, items: Tensor, **options) -> Tensor:
    lists = list_tokens(trie, items)
    inputs = (prompts["input_ids"], prompts["attention_mask"], lists.token_ids, lists.mask)
    read = read_completions(model, *inputs, scored=lists.branches)
    return list_logps(read, items, trie, **options)


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
@pytest.mark.parametrize("key", FAMILIES)
def test_drawn_lists_have_the_same_probabilities_when_they_are_scored_again(
    key: tuple[str, str], surface: str
) -> None:
    sequences = CATALOGUES[surface]
    model, trie, prompts = MODELS[key], TokenTrie.from_sequences(sequences), pad(ROWS)
    options = {"exclude": [[], [0], [2, 2]], "temperature": 1.7}
    drawn = sample_item_lists(model, prompts, trie, num_lists=4, list_length=3, seed=(3, 1), **options)
    torch.testing.assert_close(scored(model, prompts, trie, drawn.items, **options), drawn.logps, rtol=0, atol=1e-5)
    for row, prompt in enumerate(ROWS):
        for place, chosen in enumerate(drawn.items[row].tolist()):
            expected = token_logps(model, prompt, sequences, chosen, options["exclude"][row], 1.7)
            mask = drawn.mask[row, place]
            assert drawn.token_ids[row, place][mask].tolist() == [
                token for item in chosen for token in sequences[item]
            ]
            torch.testing.assert_close(drawn.logps[row, place][mask], expected, rtol=0, atol=2e-5)
            assert not drawn.logps[row, place][~mask].any()
            assert not drawn.token_ids[row, place][~mask].any()


@pytest.mark.parametrize(("length", "excluded"), [(2, []), (3, []), (3, [4]), (2, [1, 0])])
@pytest.mark.parametrize("surface", ["item_token", "semantic_id", "title"])
def test_all_lists_together_have_probability_one(surface: str, length: int, excluded: list[int]) -> None:
    sequences, prompt = CATALOGUES[surface], [3, 14, 15]
    lists = all_lists(sequences, length, excluded)
    items = torch.tensor(lists).unsqueeze(0)
    options = {"exclude": [excluded], "temperature": 2.0}
    logps = scored(MODELS["llama", "sdpa"], pad([prompt]), TokenTrie.from_sequences(sequences), items, **options)[
        0
    ].detach()
    assert float(logps.sum(-1).exp().sum()) == pytest.approx(1, abs=1e-5)
    for chosen, ours in zip(lists[::7], logps[::7], strict=True):
        expected = token_logps(MODELS["llama", "sdpa"], prompt, sequences, chosen, excluded, 2.0)
        torch.testing.assert_close(ours[: len(expected)], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("surface", ["item_token", "semantic_id", "title"])
def test_lists_are_drawn_in_proportion_to_their_probabilities(
    surface: str, separate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs a chi-square test over all lists. Lists whose expected count is below 5 are pooled."""
    monkeypatch.setattr("trl_rec.decoding.prompt_cache.why_separate", lambda *_: "for this test" if separate else None)
    sequences, prompt, copies = CATALOGUES[surface], [3, 14, 15], 256
    model, trie = MODELS["llama", "sdpa"], TokenTrie.from_sequences(sequences)
    options = {"temperature": 2.0}
    lists = all_lists(sequences, 3, [0])
    items = torch.tensor(lists).unsqueeze(0)
    logps = scored(model, pad([prompt]), trie, items, exclude=[[0]], **options)[0].detach()
    expected = logps.sum(-1).exp() * copies * 16
    drawn = sample_item_lists(
        model, pad([prompt] * copies), trie, num_lists=16, list_length=3, exclude=[[0]] * copies, seed=7, **options
    )
    counts = torch.zeros(len(lists))
    for chosen in drawn.items.flatten(0, 1).tolist():
        counts[lists.index(tuple(chosen))] += 1
    rare = expected < 5
    expected, counts = (torch.cat([part[~rare], part[rare].sum().unsqueeze(0)]) for part in (expected, counts))
    expected, counts = expected[expected > 0], counts[expected > 0]
    freedom = len(expected) - 1
    assert freedom > 8
    statistic = float(((counts - expected).square() / expected).sum())
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def gradient(model, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [one for one in model.parameters() if one.requires_grad], allow_unused=True))


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
def test_the_gradient_equals_that_of_lists_that_are_scored_one_by_one(surface: str) -> None:
    sequences, weights = CATALOGUES[surface], [0.7, -1.1]
    model, trie = MODELS["llama", "sdpa"], TokenTrie.from_sequences(sequences)
    items = torch.tensor([[[0, 2, 3], [2, 3, 1]], [[3, 1, 0], [1, 0, 2]]])
    logps = scored(model, pad(ROWS[:2]), trie, items).sum(-1)
    ours = gradient(model, (logps * torch.tensor(weights)).sum())
    loss = sum(
        weight * token_logps(model, prompt, sequences, chosen).sum()
        for prompt, lists in zip(ROWS[:2], items.tolist(), strict=True)
        for weight, chosen in zip(weights, lists, strict=True)
    )
    for one, other in zip(ours, gradient(model, loss), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_given_lists_may_be_shorter_and_illegal_tokens_have_probability_zero() -> None:
    sequences = CATALOGUES["title"]
    model, trie, prompts = MODELS["llama", "sdpa"], TokenTrie.from_sequences(sequences), pad([ROWS[0]])
    items = torch.tensor([[[3, 0, -1], [3, 3, 0], [4, 0, 1], [-1, -1, -1]]])
    logps = scored(model, prompts, trie, items, exclude=[[4]])
    expected = token_logps(model, ROWS[0], sequences, (3, 0), [4])
    torch.testing.assert_close(logps[0, 0][: len(expected)], expected, rtol=0, atol=2e-5)
    assert not logps[0, 0][len(expected) :].any()
    assert logps.sum(-1).isneginf().tolist() == [[False, True, True, False]]
    assert not logps[0, 3].any()
    finite = torch.where(logps.isneginf(), 0.0, logps).sum() + logps[0, 1].sum() + logps[0, 2].sum()
    assert all(bool(one.isfinite().all()) for one in gradient(model, finite) if one is not None)
    with pytest.raises(ValueError, match="a list contains item 5, which is not one of the 5 items of the trie"):
        list_tokens(trie, torch.tensor([[5]]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans(), st.booleans())
def test_lists_have_distinct_items_that_are_not_excluded(
    monkeypatch: pytest.MonkeyPatch, seed: int, has_eos: bool, separate: bool, is_greedy: bool
) -> None:
    """A list may even contain every item that is not excluded. The catalogues contain chains of forced tokens, and
    paths that several items share. All prompts are in one batch."""
    monkeypatch.setattr("trl_rec.decoding.prompt_cache.why_separate", lambda *_: "for this test" if separate else None)
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    prompts, rows = random_prompts(rng, rng.randint(1, 3))
    most = rng.randint(0, len(sequences) - 1)
    exclude = [rng.sample(range(len(sequences)), rng.randint(0, most)) for _ in rows]
    length = rng.randint(1, min(6, min(len(sequences) - len(one) for one in exclude)))
    drawn = sample_item_lists(
        MODELS["gpt2", "eager"],
        prompts,
        TokenTrie.from_sequences(sequences),
        num_lists=rng.randint(1, 3),
        list_length=length,
        temperature=3.0,
        exclude=[one + one[:1] for one in exclude],
        seed=seed,
        greedy=is_greedy,
    )
    assert bool(drawn.logps.isfinite().all()) and bool((drawn.logps <= 0).all())
    for row, left_out in enumerate(exclude):
        for place, chosen in enumerate(drawn.items[row].tolist()):
            assert len(set(chosen)) == length
            assert set(chosen) <= set(range(len(sequences))) - set(left_out)
            assert drawable(sequences, tuple(chosen), left_out)
            tokens = drawn.token_ids[row, place][drawn.mask[row, place]].tolist()
            assert tokens == [token for item in chosen for token in sequences[item]]


def draw(prompts: list[list[int]], surface: str, **options) -> SampledLists:
    trie = TokenTrie.from_sequences(CATALOGUES[surface])
    options = {"num_lists": 6, "list_length": 3, "temperature": 3.0, **options}
    return sample_item_lists(MODELS["llama", "sdpa"], pad(prompts), trie, **options)


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
def test_the_lists_of_a_row_do_not_depend_on_its_batch(surface: str) -> None:
    together = draw(ROWS, surface, seed=(5, 2), rows=[40, 41, 42])
    assert not torch.equal(together.items[1], draw(ROWS, surface, seed=(5, 3), rows=[40, 41, 42]).items[1])
    assert not torch.equal(together.items[1], draw(ROWS, surface, seed=(5, 2)).items[1])
    alone = draw(ROWS[1:2], surface, seed=(5, 2), rows=torch.tensor([41]))
    turned = draw(ROWS[::-1], surface, seed=(5, 2), rows=[42, 41, 40], num_lists=4)
    width = alone.logps.shape[-1]
    assert torch.equal(alone.items[0], together.items[1])
    assert torch.equal(turned.items[1], together.items[1, :4])
    torch.testing.assert_close(alone.logps[0], together.logps[1][:, :width], rtol=0, atol=1e-5)


def test_noise_differs_between_lists_and_between_equal_rows() -> None:
    lists = draw([ROWS[0]] * 2, "item_token", num_lists=16, seed=11)
    assert len({tuple(one) for one in lists.items[0].tolist()}) > 8
    assert not torch.equal(lists.items[0], lists.items[1])


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
def test_one_cache_row_per_list_gives_the_same_lists(surface: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one cache row per list, forced tokens are read one by one. Each choice still uses the same random
    numbers as with one row per prompt."""
    shared = draw(ROWS, surface, seed=4)
    monkeypatch.setattr("trl_rec.decoding.prompt_cache.why_separate", lambda *_: "for this test")
    separate = draw(ROWS, surface, seed=4)
    assert torch.equal(shared.items, separate.items)
    torch.testing.assert_close(shared.logps, separate.logps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
@pytest.mark.parametrize("key", [("llama", "sdpa"), ("gpt2", "eager")])
def test_greedy_lists_take_the_likeliest_token_at_each_step(key: tuple[str, str], surface: str) -> None:
    sequences, exclude = CATALOGUES[surface], [[], [1], [0]]
    trie = TokenTrie.from_sequences(sequences)
    ranked = greedy_list(MODELS[key], pad(ROWS), trie, list_length=3, exclude=exclude)
    for row, prompt in enumerate(ROWS):
        chosen = greedy(MODELS[key], prompt, sequences, 3, exclude[row])
        assert ranked.items[row].tolist() == chosen
        logps, ends = token_logps(MODELS[key], prompt, sequences, chosen, exclude[row]).cumsum(0), []
        for item in chosen:
            ends.append((ends[-1] if ends else -1) + len(sequences[item]))
        torch.testing.assert_close(ranked.scores[row], logps[ends].detach(), rtol=0, atol=2e-5)


def test_equal_scores_are_ordered_by_item_index() -> None:
    model = make_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    trie = TokenTrie.from_sequences([[30 - item] for item in range(20)])  # a higher item index has a lower token id
    assert greedy_list(model, pad([[5, 6]]), trie, list_length=6).items.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_no_token_is_read_twice_and_none_after_the_last_choice() -> None:
    """There is one forward pass for the prompt, and one before each choice. The pass before a choice reads the
    previously chosen token and the forced tokens after it. In this catalogue, even the first choice follows forced
    tokens."""
    sequences, widths = CATALOGUES["title"], []
    model = MODELS["llama", "sdpa"]
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    lists = sample_item_lists(
        model, pad([ROWS[0]]), TokenTrie.from_sequences(sequences), num_lists=1, list_length=3, exclude=[[4]]
    )
    handle.remove()
    trie = TokenTrie.from_sequences(sequences)
    written = list_tokens(trie, lists.items)
    branches = trie.row_offsets[written.nodes + 1] - trie.row_offsets[written.nodes] > 1
    choices = branches[0, 0].nonzero().flatten().tolist()
    steps = [second - first for first, second in zip([0, *choices[:-1]], choices, strict=True)]
    assert widths == [len(ROWS[0]), *steps]


def test_a_token_without_probability_is_never_drawn() -> None:
    logps = torch.tensor([[-torch.inf, 0.0, -torch.inf], [math.log(0.5), -torch.inf, math.log(0.5)]])
    for noise, columns in ((0, [1, 0]), (2**31 - 1, [1, 2]), (2**30 - 1, [1, 0]), (2**30, [1, 2])):
        assert _sampled_columns(logps, torch.full((2, 1), noise)).flatten().tolist() == columns


def test_only_a_model_in_training_mode_is_switched_to_evaluation_mode() -> None:
    """If the model is in evaluation mode, its layers keep their modes. A quantised layer, for example, may be in
    training mode."""
    model, trie, seen = make_model("llama"), TokenTrie.from_sequences([[4], [5]]), []
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    for whole in (True, False):
        model.train(whole)
        layer.training = True
        sample_item_lists(model, pad([[3]]), trie, num_lists=1, list_length=1)
        assert (model.training, layer.training) == (whole, True)
    assert seen == [False, True]


@pytest.mark.parametrize("is_greedy", [False, True])
def test_nan_is_reported(is_greedy: bool) -> None:
    """A NaN selects an arbitrary child of the current node. This child must be a valid node, because the error is
    raised only after sampling."""
    broken = make_model("llama")
    torch.nn.init.constant_(broken.lm_head.weight, torch.nan)
    catalogues = [
        *CATALOGUES.values(),
        *(random_catalogue(random.Random(seed), has_eos=True) for seed in (72, 82, 126, 166)),
    ]
    for sequences in catalogues:
        options = {"num_lists": 2, "list_length": 4, "greedy": is_greedy}
        with pytest.raises(ValueError, match="logits contain NaN"):
            sample_item_lists(broken, pad(ROWS), TokenTrie.from_sequences(sequences), **options)


def test_bad_input_is_refused() -> None:
    model, trie = MODELS["llama", "sdpa"], TokenTrie.from_sequences(CATALOGUES["item_token"])

    def refused(match: str, prompts: dict[str, Tensor] | None = None, **options) -> None:
        options = {"num_lists": 2, "list_length": 3, **options}
        with pytest.raises(ValueError, match=match):
            sample_item_lists(model, prompts or pad([[3], [4]]), trie, **options)

    refused("prompt 1 has 2 items to choose from, too few for a list of 3", exclude=[[0], [0, 1, 2, 2, -1]])
    refused("prompt 0 has 5 items to choose from, too few for a list of 6", list_length=6)
    refused("rows has 1 entries for 2 prompts", rows=[4])
    refused("exclude has 1 lists for 2 prompts", exclude=[[0]])
    refused("num_lists must be at least 1, not 0", num_lists=0)
    refused("list_length must be at least 1, not 0", list_length=0)
    refused("temperature must be above 0, not 0", temperature=0)
    refused("seed must be from 0 to 4294967295, not -1", seed=-1)
    refused("seed must be from 0 to 4294967295, not -2", seed=(1, -2))
    refused("take 513 tokens, but the model has 512 positions", pad([[3] * 510]))
    right = {"input_ids": torch.tensor([[3, 0]]), "attention_mask": torch.tensor([[1, 0]])}
    refused("padded on the left", right)
    trie = TokenTrie.from_sequences(CATALOGUES["title"])  # its three longest paths have 7, 6 and 6 tokens
    refused("take 513 tokens, but the model has 512 positions", pad([[3] * 494]))
    sample_item_lists(model, pad([[3] * 493]), trie, num_lists=1, list_length=3)
