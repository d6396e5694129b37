"""Tests rows with branches. Such a row starts with a text, the trunk. Each branch is another text, which continues a
prefix of the trunk. The log-probabilities must equal those of one forward pass per branch. For models that cannot read
several branches in one row, each branch gets a row of its own."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PreTrainedModel

from tests.models.test_completions import VOCABULARY, assert_close, gradients, tiny, warnings  # noqa: F401
from trl_rec.models import logits_at
from trl_rec.models.attention import unscaled_length
from trl_rec.models.branches import prepare_branches, visible
from trl_rec.trainer.bear.collator import NextItemCollator


SHARED = [(family, kind) for family in ("llama", "qwen3", "phi3", "gpt2") for kind in ("sdpa", "eager")]
MODELS = {key: tiny(*key) for key in SHARED}
Rows = list[dict[str, list[int]]]
# A row is described by the number of tokens in its trunk and by its branches. A branch is described by two numbers
# `(n, length)`: it continues the first `1 + n % trunk` tokens of the trunk, and has `length` tokens of its own.
shapes = st.lists(
    st.tuples(
        st.integers(1, 7),
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=4, unique_by=lambda branch: branch[0]),
    ),
    min_size=1,
    max_size=3,
)
EXAMPLE: Any = [(6, [(1, 3), (3, 0), (5, 2)]), (3, []), (4, [(3, 4)])]


def make_rows(shape: list[tuple[int, list[tuple[int, int]]]], seed: int = 0) -> Rows:
    """Returns rows of random tokens, in which every column but the first has a label.

    Of several branches with the same prefix, only the last is kept. The label that a column predicts is stored in the
    next column, so each row has one token more than its description says. This token belongs to the last branch of the
    row or, without branches, to the trunk.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for trunk, branches in shape:
        kept = {1 + prefix % trunk: length for prefix, length in branches}
        prefixes = sorted(kept)
        lengths = [kept[prefix] for prefix in prefixes]
        width = trunk + sum(lengths) + 1
        tokens = torch.randint(3, VOCABULARY, (2, width), generator=generator)
        if lengths:
            lengths[-1] += 1
        row = {"input_ids": tokens[0].tolist(), "labels": [-100, *tokens[1, 1:].tolist()]}
        rows.append({**row, "branch_prefixes": prefixes, "branch_lengths": lengths})
    return rows


def logps(model: PreTrainedModel, inputs: dict[str, Tensor], max_length: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns the log-probability of each label of a batch, and the row of the batch that contains the label."""
    inputs, mask, owners = prepare_branches(model, inputs, max_length)
    labels = inputs.pop("labels")
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != -100
    if mask is not None:
        inputs["attention_mask"] = mask
    with logits_at(model, predicts):
        logits = model(**inputs, use_cache=False).logits[0]
    rows = predicts.nonzero()[:, 0]
    values = logits.log_softmax(-1).gather(1, labels[:, 1:][predicts[:, :-1]].unsqueeze(1)).squeeze(1)
    return values, rows if owners is None else owners[rows]


def one_by_one(model: PreTrainedModel, rows: Rows) -> Tensor:
    """Runs the model without padding, once per trunk and once per branch with its prefix. Returns the
    log-probabilities of the labels in column order."""
    found = []
    for row in rows:
        tokens = row["input_ids"]
        start = len(tokens) - sum(row["branch_lengths"])
        texts = [(list(range(start)), range(start))]
        for prefix, length in zip(row["branch_prefixes"], row["branch_lengths"], strict=True):
            columns = range(start, start + length)
            texts.append(([*range(prefix), *columns], columns))
            start += length
        for columns, own in texts:
            if not own:
                continue
            logits = model(input_ids=torch.tensor([[tokens[column] for column in columns]]), use_cache=False).logits[0]
            for column in own:
                if column + 1 < len(tokens):
                    found.append(logits[columns.index(column)].log_softmax(-1)[row["labels"][column + 1]])
    return torch.stack(found)


def batch_of(rows: Rows, side: str = "left") -> dict[str, Tensor]:
    return NextItemCollator(pad_token_id=0, padding_side=side)(rows)


def assert_equals_one_by_one(model: PreTrainedModel, rows: Rows, side: str = "left") -> None:
    ours, owners = logps(model, batch_of(rows, side))
    expected = one_by_one(model, rows)
    assert_close(ours, expected)
    assert torch.equal(owners, torch.repeat_interleave(torch.tensor([len(row["labels"]) - 1 for row in rows])))
    assert_close(gradients(model, ours), gradients(model, expected))


@pytest.mark.parametrize("key", SHARED, ids="-".join)
@settings(max_examples=5)
@given(shapes, st.integers(0, 2**32), st.sampled_from(["left", "right"]))
def test_rows_with_branches_equal_one_forward_pass_per_branch(
    key: tuple[str, str], shape: Any, seed: int, side: str
) -> None:
    assert_equals_one_by_one(MODELS[key], make_rows(shape, seed), side)


@pytest.mark.parametrize(("family", "kind"), [("mistral-window", "sdpa"), ("gemma2", "eager")])
@settings(max_examples=5)
@given(shape=shapes, seed=st.integers(0, 2**32), side=st.sampled_from(["left", "right"]))
def test_separate_rows_equal_one_forward_pass_per_branch(
    family: str, kind: str, shape: Any, seed: int, side: str
) -> None:
    model = tiny(family, kind)
    model.config.sliding_window = 4
    assert_equals_one_by_one(model, make_rows(shape, seed), side)


def test_the_reason_for_separate_rows_is_logged(warnings: list[str]) -> None:  # noqa: F811
    for _ in range(2):
        logps(tiny("mistral-window"), batch_of(make_rows(EXAMPLE)))
    assert len(warnings) == 1 and "window of 4 tokens: each target is processed in a separate row" in warnings[0]
    logps(tiny("mistral-window"), batch_of(make_rows(EXAMPLE)), max_length=4)
    logps(tiny("gemma2", "eager"), batch_of(make_rows(EXAMPLE)))  # the window of this model is longer than the texts
    assert len(warnings) == 1


def test_labels_of_separate_rows_keep_their_values() -> None:
    """When a row is split, entries with one value per label move with the labels, and entries with one value per row
    are copied to each new row."""
    batch = batch_of(make_rows(EXAMPLE))
    batch["trie_nodes"] = torch.where(batch["labels"] == -100, -1, batch["labels"] + 1000)
    batch["target_weights"] = torch.where(batch["labels"] == -100, 0.0, batch["labels"] / 8)
    batch["tasks"] = torch.tensor([5, 6, 7])
    inputs, mask, owners = prepare_branches(tiny("mistral-window"), batch)
    labels = inputs["labels"]
    # There is one row per trunk, and one row per branch that is not empty.
    assert mask is None and owners.tolist() == [0, 0, 0, 1, 2, 2]
    assert sorted(labels[labels != -100]) == sorted(batch["labels"][batch["labels"] != -100])
    assert torch.equal(inputs["trie_nodes"], torch.where(labels == -100, -1, labels + 1000))
    assert torch.equal(inputs["target_weights"], torch.where(labels == -100, 0.0, labels / 8))
    assert torch.equal(inputs["tasks"], owners + 5)


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_backward_without_labels_gives_zero_gradients(family: str) -> None:
    model = tiny(family)
    batch = batch_of(make_rows(EXAMPLE))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    values, _ = logps(model, batch)
    values.sum().backward()
    assert not len(values) and all(not parameter.grad.any() for parameter in model.parameters())


def test_padding_attends_only_to_itself() -> None:
    batch = batch_of(make_rows(EXAMPLE))
    real = batch["attention_mask"].bool()
    mask = visible(batch["seen"], batch["starts"], real)
    assert (mask[~real].sum(-1) == 1).all() and mask.any(-1).all()
    assert not mask.masked_select(~real.unsqueeze(1) & ~torch.eye(mask.shape[1]).bool()).any()


def test_position_embeddings_that_depend_on_the_longest_text_need_separate_rows() -> None:
    size: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    size |= {"vocab_size": VOCABULARY, "pad_token_id": 0, "initializer_range": 0.4}
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    llama = LlamaForCausalLM(LlamaConfig(**size, max_position_embeddings=6, rope_parameters=dynamic)).eval()
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 6, **factors}
    phi3 = Phi3ForCausalLM(
        Phi3Config(
            **size,
            max_position_embeddings=64,
            original_max_position_embeddings=6,
            rope_parameters={**longrope, "partial_rotary_factor": 1.0},
        )
    ).eval()
    assert unscaled_length(MODELS["phi3", "sdpa"].config) is unscaled_length(MODELS["gpt2", "sdpa"].config) is None
    for model in (llama, phi3):
        assert unscaled_length(model.config) == 6
        # One branch ends within 6 tokens and the other does not. In one row, both would get the rotary frequencies of
        # the longer branch.
        rows = make_rows([(6, [(0, 2), (5, 3)])])
        prepared = prepare_branches(model, batch_of(rows))
        assert prepared.mask is None and prepared.inputs["position_ids"].max() > 6
        assert prepare_branches(model, batch_of(rows), max_length=6).mask is not None
        short = make_rows([(3, [(0, 1), (1, 1)])])
        assert_equals_one_by_one(model, short)


def test_a_batch_without_branches_is_unchanged() -> None:
    batch = batch_of([{"input_ids": [3, 4], "labels": [-100, 4]}])
    prepared = prepare_branches(MODELS["llama", "sdpa"], batch)
    assert prepared.inputs == batch and prepared.mask is None and prepared.owners is None
