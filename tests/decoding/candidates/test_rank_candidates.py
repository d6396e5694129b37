"""Tests `rank_candidates`, which lets a model order lists of candidates. The expected orders come from a slow loop
that orders one list at a time without a KV cache."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import make_model
from trl_rec import rank_candidates


VOCAB = 40


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("llama", vocab_size=VOCAB)


def make_batch(num_lists: int, width: int, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Returns padded prompts of 1 to 6 tokens, and the names and the mask of lists with 1 to `width` candidates. The
    name of a candidate is the token that identifies it in the answer."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (num_lists, 1), generator=generator)
    attention_mask = (torch.arange(6) >= 6 - lengths).long()
    input_ids = torch.randint(3, VOCAB, (num_lists, 6), generator=generator) * attention_mask
    names = torch.stack([torch.randperm(VOCAB - 3, generator=generator)[:width] + 3 for _ in range(num_lists)])
    counts = torch.randint(1, width + 1, (num_lists, 1), generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask}, names, torch.arange(width) < counts


@torch.no_grad()
def slow(
    model: PreTrainedModel, prompt: Tensor, names: list[int], *, single_pass: bool
) -> tuple[list[int], list[float]]:
    """Orders the candidates of one list. With `single_pass`, the model reads only the prompt, and all names are sorted
    by their probability as the next token. Otherwise, the most probable name is appended to the text, until no name is
    left. For each name, the model reads the prompt and all appended names again."""
    if single_pass:
        scores = model(input_ids=prompt.unsqueeze(0)).logits[0, -1][names].log_softmax(-1)
        order = scores.argsort(descending=True)
        return order.tolist(), scores[order].tolist()
    left, text, total, order, scores = list(range(len(names))), prompt, 0.0, [], []
    while left:
        logps = model(input_ids=text.unsqueeze(0)).logits[0, -1][[names[one] for one in left]].log_softmax(-1)
        best = int(logps.argmax())
        total += float(logps[best])
        order.append(left.pop(best))
        scores.append(total)
        text = torch.cat([text, torch.tensor([names[order[-1]]])])
    return order, scores


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """Collects the number of tokens that each forward pass reads."""
    calls: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("single_pass", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral-window"])
def test_orders_and_scores_equal_those_of_a_loop(family: str, single_pass: bool) -> None:
    model = make_model(family, vocab_size=VOCAB)
    prompts, names, mask = make_batch(6, 5, seed=1)
    ranked = rank_candidates(model, prompts, names, mask, single_pass=single_pass)
    for row in range(6):
        count = int(mask[row].sum())
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row].bool()]
        order, scores = slow(model, prompt, names[row, :count].tolist(), single_pass=single_pass)
        assert ranked.order[row].tolist() == order + [-1] * (5 - count)
        torch.testing.assert_close(ranked.scores[row, :count], torch.tensor(scores), atol=1e-4, rtol=1e-4)
        assert (ranked.scores[row, count:] == -torch.inf).all()


@settings(max_examples=20)
@given(num_lists=st.integers(1, 5), width=st.integers(1, 8), seed=st.integers(0, 1000), single_pass=st.booleans())
def test_the_order_is_always_a_permutation(model, num_lists: int, width: int, seed: int, single_pass: bool) -> None:
    prompts, names, mask = make_batch(num_lists, width, seed)
    ranked = rank_candidates(model, prompts, names, mask, single_pass=single_pass)
    for row in range(num_lists):
        count = int(mask[row].sum())
        assert sorted(ranked.order[row, :count].tolist()) == list(range(count))
        scores = ranked.scores[row, :count]
        assert (scores.diff() <= 1e-6).all() and scores.isfinite().all()


def test_ordering_reads_the_prompt_once_and_all_names_but_the_last_two(model: PreTrainedModel) -> None:
    """The model reads the prompt in one forward pass, then one name per pass. A name is read only to choose the next
    one. Once the second to last name is chosen, the last one is known, so neither of the two is read. With
    `single_pass`, the model reads only the prompt."""
    prompts, names, mask = make_batch(3, 6, seed=0)
    with counted(model) as calls:
        rank_candidates(model, prompts, names, torch.ones_like(mask))
    assert calls == [6, 1, 1, 1, 1]
    with counted(model) as calls:
        rank_candidates(model, prompts, names, mask, single_pass=True)
    assert calls == [6]


def test_generation_config_and_training_mode_have_no_effect(model: PreTrainedModel) -> None:
    prompts, names, mask = make_batch(4, 5, seed=3)
    expected = rank_candidates(model, prompts, names, mask)
    model.generation_config.update(top_k=1, temperature=9.0, repetition_penalty=5.0, do_sample=True)
    model.train()
    found = rank_candidates(model, prompts, names, mask)
    assert model.training and torch.equal(found.order, expected.order) and torch.equal(found.scores, expected.scores)
    model.eval()


def test_bad_input_is_refused(model: PreTrainedModel) -> None:
    prompts, names, mask = make_batch(3, 4, seed=0)
    with pytest.raises(ValueError, match=r"names has the shape \(3, 4\) and mask \(2, 4\), but there are 3 prompts"):
        rank_candidates(model, prompts, names, mask[:2])
    with pytest.raises(ValueError, match="list 1 has no candidates; leave it out"):
        rank_candidates(model, prompts, names, mask & torch.tensor([[True], [False], [True]]))
    right = {name: part.flip(1) for name, part in prompts.items()}
    with pytest.raises(ValueError, match="prompts must be padded on the left"):
        rank_candidates(model, right, names, mask)
    broken = make_model("llama", vocab_size=VOCAB)
    broken.model.norm.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the model's logits contain NaN"):
        rank_candidates(broken, prompts, names, mask)
