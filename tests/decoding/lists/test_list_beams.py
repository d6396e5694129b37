"""Compares beam search over lists with a slow search that reads one token at a time, and with an enumeration of all
lists."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.conftest import make_model
from tests.decoding.lists.test_lists import CATALOGUES, MODELS, ROWS
from tests.decoding.test_beam import pad, random_catalogue, random_prompts
from tests.oracles.lists import all_lists, beam_search, token_logps
from trl_rec.decoding import beam_list, greedy_list
from trl_rec.decoding.lists.beams import rank_list
from trl_rec.items import TokenTrie


EXCLUDE = [[], [1], [0]]
CHAINS = [[4, 30, 30, 30, 30, 1], [4, 31, 30, 30, 1], [5, 1], [6, 1], [7, 8, 1], [7, 9, 1]]


@pytest.fixture(scope="module")
def flat() -> PreTrainedModel:
    """A model under which many lists have similar probabilities. The result of a beam search therefore depends on when
    it compares beams: after equal numbers of tokens, or after equal numbers of choices."""
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.2)
    return model


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
@pytest.mark.parametrize("key", [("llama", "sdpa"), ("gpt2", "eager")])
def test_with_a_beam_for_every_list_the_best_list_is_found(key: tuple[str, str], surface: str) -> None:
    sequences = CATALOGUES[surface]
    trie = TokenTrie.from_sequences(sequences)
    ranked = beam_list(MODELS[key], pad(ROWS), trie, list_length=3, num_beams=60, exclude=EXCLUDE)
    for row, prompt in enumerate(ROWS):
        every = all_lists(sequences, 3, EXCLUDE[row])
        logps = [token_logps(MODELS[key], prompt, sequences, one, EXCLUDE[row]).detach() for one in every]
        best = max(range(len(every)), key=lambda place: float(logps[place].sum()))
        assert tuple(ranked.items[row].tolist()) == every[best]
        ends = torch.tensor([len(sequences[item]) for item in every[best]]).cumsum(0) - 1
        torch.testing.assert_close(ranked.scores[row], logps[best].cumsum(0)[ends], rtol=0, atol=2e-5)


@pytest.mark.parametrize("separate", [False, True])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.booleans())
def test_beam_list_equals_a_search_that_reads_every_token(
    flat: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, separate: bool, seed: int, has_eos: bool
) -> None:
    """The catalogues contain chains of forced tokens, and paths that several items share. Some items are excluded. All
    prompts are in one batch. The cache has either one row per prompt, or one row per beam."""
    monkeypatch.setattr("trl_rec.decoding.prompt_cache.why_separate", lambda *_: "for this test" if separate else None)
    rng = random.Random(seed)
    sequences = random_catalogue(rng, has_eos)
    prompts, rows = random_prompts(rng, rng.randint(1, 2))
    most = rng.randint(0, len(sequences) - 1)
    exclude = [rng.sample(range(len(sequences)), rng.randint(0, most)) for _ in rows]
    length = rng.randint(1, min(3, min(len(sequences) - len(one) for one in exclude)))
    num_beams = rng.choice([1, 2, 3, 5])
    ranked = beam_list(
        flat, prompts, TokenTrie.from_sequences(sequences), list_length=length, num_beams=num_beams, exclude=exclude
    )
    for row, prompt in enumerate(rows):
        items, score = beam_search(flat, prompt, sequences, length, num_beams, exclude[row])
        assert tuple(ranked.items[row].tolist()) == items
        assert float(ranked.scores[row, -1]) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("sequences", [CATALOGUES["ragged"], CHAINS], ids=["ragged", "chains"])
def test_beams_are_compared_at_equal_numbers_of_tokens(flat: PreTrainedModel, sequences: list[list[int]]) -> None:
    """Beams are compared after equal numbers of tokens, including forced tokens, and not after equal numbers of
    choices."""
    prompts, rows = random_prompts(random.Random(0), 8)
    ranked = beam_list(flat, prompts, TokenTrie.from_sequences(sequences), list_length=3, num_beams=2)
    assert [tuple(items) for items in ranked.items.tolist()] == [
        beam_search(flat, row, sequences, 3, 2)[0] for row in rows
    ]


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
def test_one_beam_equals_greedy_decoding_and_more_beams_are_better(surface: str) -> None:
    model, trie, prompts = MODELS["llama", "sdpa"], TokenTrie.from_sequences(CATALOGUES[surface]), pad(ROWS)
    greedy = greedy_list(model, prompts, trie, list_length=3, exclude=EXCLUDE)
    one, all_of_them = (
        beam_list(model, prompts, trie, list_length=3, num_beams=beams, exclude=EXCLUDE) for beams in (1, 60)
    )
    assert torch.equal(one.items, greedy.items)
    torch.testing.assert_close(one.scores, greedy.scores)
    assert bool((all_of_them.scores[:, -1] >= greedy.scores[:, -1] - 1e-5).all())


def test_equal_scores_are_ordered_by_item_index() -> None:
    model = make_model("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    trie = TokenTrie.from_sequences([[30 - item] for item in range(20)])  # a higher item index has a lower token id
    ranked = beam_list(model, pad([[5, 6]]), trie, list_length=4, num_beams=7)
    assert ranked.items.tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("surface", sorted(CATALOGUES))
def test_the_list_of_a_prompt_does_not_depend_on_its_batch(surface: str) -> None:
    model, trie = MODELS["llama", "sdpa"], TokenTrie.from_sequences(CATALOGUES[surface])
    together = beam_list(model, pad(ROWS), trie, list_length=3, num_beams=3)
    for row, prompt in enumerate(ROWS):
        alone = beam_list(model, pad([prompt]), trie, list_length=3, num_beams=3)
        assert torch.equal(alone.items[0], together.items[row])


def test_a_ranking_is_the_beginning_of_the_list() -> None:
    model, trie, prompts = MODELS["llama", "sdpa"], TokenTrie.from_sequences(CATALOGUES["title"]), pad(ROWS)
    greedy = greedy_list(model, prompts, trie, list_length=3).items
    assert torch.equal(rank_list(model, prompts, trie, list_length=3, top_k=2).items, greedy[:, :2])
    whole = beam_list(model, prompts, trie, list_length=3, num_beams=4)
    ranked = rank_list(model, prompts, trie, list_length=3, top_k=2, num_beams=4)
    assert torch.equal(ranked.items, whole.items[:, :2]) and torch.equal(ranked.scores, whole.scores[:, :2])
    with pytest.raises(ValueError, match="top_k 4 exceeds the list length 3; choose top_k <= list_length"):
        rank_list(model, prompts, trie, list_length=3, top_k=4)


def test_bad_input_and_nan_are_reported() -> None:
    model, trie = make_model("llama"), TokenTrie.from_sequences(CATALOGUES["title"])
    with pytest.raises(ValueError, match="num_beams must be at least 1, not 0"):
        beam_list(model, pad(ROWS), trie, list_length=2, num_beams=0)
    with pytest.raises(ValueError, match="prompt 1 has 2 items to choose from, too few for a list of 3"):
        beam_list(model, pad([[3], [4]]), trie, list_length=3, num_beams=2, exclude=[[0], [0, 1, 2]])
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)
    for sequences in CATALOGUES.values():
        with pytest.raises(ValueError, match="logits contain NaN"):
            beam_list(model, pad(ROWS), TokenTrie.from_sequences(sequences), list_length=3, num_beams=3)
