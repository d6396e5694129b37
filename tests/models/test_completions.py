"""Tests shared rows, in which a prompt is followed by all its completions. The log-probabilities must equal those of
one forward pass per completion. Also tests the models that need a separate row for each completion."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.conftest import make_model
from trl_rec.items import TokenTrie
from trl_rec.models import CompletionLogits, completion_logps, legal_completion_logps, read_completions
from trl_rec.models.attention import warn_once
from trl_rec.models.completions import _read, lay_out


VOCABULARY = 40
SHARED = [(family, kind) for family in ("llama", "qwen3", "mistral", "gemma", "gpt2") for kind in ("sdpa", "eager")]
Case = tuple[Tensor, Tensor, Tensor, Tensor]
# The arguments are the logits (V,) that predict a token, and three indices that locate this token: its prompt (row),
# its completion of this prompt (slot), and its place in the completion (step).
Score = Callable[[Tensor, int, int, int], Tensor]
# A prompt is described by its length and by the lengths of its completions. A length of 0 means that the completion is
# missing.
shapes = st.lists(
    st.tuples(st.integers(1, 7), st.lists(st.integers(0, 5), min_size=1, max_size=4)), min_size=1, max_size=3
)
EXAMPLE = [(5, [3, 1, 4]), (2, [0, 2]), (7, [0, 0])]


def tiny(family: str, kind: str = "sdpa") -> PreTrainedModel:
    """Returns a small model with halved weight matrices. With the usual weights, rounding alone can change a gradient
    by 2e-5."""
    model = make_model(family, attention=kind)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5 if parameter.ndim > 1 else 1.0)
    return model


MODELS = {key: tiny(*key) for key in SHARED}


def make_case(lengths: list[tuple[int, list[int]]], seed: int = 0) -> Case:
    """Returns random prompts, padded on the left, and random completions, padded on the right."""
    prompts, several = zip(*lengths, strict=True)
    width, count, longest = max(prompts), max(map(len, several)), max(max(map(max, several)), 1)
    prompt_mask = torch.arange(width) >= width - torch.tensor(prompts).unsqueeze(1)
    counts = torch.tensor([[*some, *[0] * (count - len(some))] for some in several])
    completion_mask = torch.arange(longest) < counts.unsqueeze(-1)
    generator = torch.Generator().manual_seed(seed)
    prompt_ids = torch.randint(3, VOCABULARY, prompt_mask.shape, generator=generator)
    return (
        prompt_ids,
        prompt_mask,
        torch.randint(3, VOCABULARY, completion_mask.shape, generator=generator),
        completion_mask,
    )


def one_by_one(model: nn.Module, case: Case, score: Score | None = None) -> Tensor:
    """Returns the log-probabilities of the completion tokens from one forward pass per completion, without padding.
    Their shape is `(B, K, C)`: prompts, completions per prompt, tokens per completion."""
    prompt_ids, prompt_mask, completion_ids, completion_mask = case
    logps = torch.zeros(completion_mask.shape)
    for row, slot in completion_mask.any(-1).nonzero().tolist():
        prompt = prompt_ids[row][prompt_mask[row]]
        completion = completion_ids[row, slot][completion_mask[row, slot]]
        logits = model(input_ids=torch.cat([prompt, completion]).unsqueeze(0), use_cache=False).logits[0].float()
        for step, token in enumerate(completion.tolist()):
            one = logits[len(prompt) - 1 + step]
            value = one.log_softmax(-1)[token] if score is None else score(one, row, slot, step)
            logps = logps.index_put((torch.tensor(row), torch.tensor(slot), torch.tensor(step)), value)
    return logps


def read(model: nn.Module, case: Case) -> CompletionLogits:
    return read_completions(model, *case)


def scored(model: nn.Module, case: Case) -> Tensor:
    return completion_logps(read(model, case), *case[2:])


def gradients(model: nn.Module, logps: Tensor) -> list[Tensor]:
    """Returns the gradients of a sum in which every token has a different weight."""
    weights = torch.linspace(-1, 1, logps.numel()).view(logps.shape)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad((logps * weights).sum(), chosen, materialize_grads=True))


def assert_close(ours: Tensor | list[Tensor], expected: Tensor | list[Tensor], tolerance: float = 1e-5) -> None:
    """Asserts that values differ by at most the tolerance. If the largest expected value is above 1, the tolerance is
    multiplied by this value."""
    ours, expected = (torch.cat([one.detach().flatten() for one in several]) for several in (ours, expected))
    assert float((ours - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def assert_equals_one_by_one(
    model: nn.Module, case: Case, score: Score | None = None, ours: Tensor | None = None
) -> None:
    ours, expected = scored(model, case) if ours is None else ours, one_by_one(model, case, score)
    assert_close(ours, expected)
    assert not ours[~case[3]].any()
    if case[3].any():
        assert_close(gradients(model, ours), gradients(model, expected))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the warnings that are logged during the test, including those that are logged only once per process."""
    messages: list[str] = []
    warn_once.cache_clear()
    monkeypatch.setattr(logging.getLogger("trl_rec.models.attention"), "warning", messages.append)
    return messages


@pytest.mark.parametrize("key", SHARED, ids="-".join)
@settings(max_examples=8)
@given(shapes, st.integers(0, 2**32))
def test_shared_rows_equal_one_row_per_completion(
    key: tuple[str, str], lengths: list[tuple[int, list[int]]], seed: int
) -> None:
    assert_equals_one_by_one(MODELS[key], make_case(lengths, seed))


@pytest.mark.parametrize("key", SHARED, ids="-".join)
def test_completions_share_rows_in_these_families(key: tuple[str, str], warnings: list[str]) -> None:
    """The logits at the last position of a prompt are computed once for all of its completions. The logits at the last
    token of a completion are never computed."""
    logits, rows, *_ = read(MODELS[key], make_case(EXAMPLE))
    assert warnings == []
    assert logits.shape == ((1 + 2 + 0 + 3) + (1 + 1), VOCABULARY)
    assert rows.tolist() == [0, 1, 2, 0, 0, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("window", [4, 256])
@settings(max_examples=6)
@given(shapes)
def test_gemma2_equals_one_by_one_within_its_window_and_beyond(
    window: int, lengths: list[tuple[int, list[int]]]
) -> None:
    model = tiny("gemma2", "eager")  # this family refuses sdpa
    model.config.sliding_window = window
    assert_equals_one_by_one(model, make_case(lengths))


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@settings(max_examples=6)
@given(shapes)
def test_a_window_shorter_than_the_text_still_applies(kind: str, lengths: list[tuple[int, list[int]]]) -> None:
    assert_equals_one_by_one(tiny("mistral-window", kind), make_case(lengths))


@pytest.mark.parametrize(("longest", "reasons"), [(2, []), (3, ["do not fit into the attention window of 4 tokens"])])
def test_completions_share_a_row_only_if_prompt_and_longest_completion_fit_the_window(
    longest: int, reasons: list[str], warnings: list[str]
) -> None:
    model, case = tiny("mistral-window"), make_case([(2, [1, longest, 2, 2])])
    for _ in range(2):
        assert_equals_one_by_one(model, case)
    assert len(warnings) == len(reasons)
    assert all(reason in message for reason, message in zip(reasons, warnings, strict=True))


def test_models_without_positions_or_with_a_state_get_separate_rows(warnings: list[str]) -> None:
    torch.manual_seed(0)
    lfm = Lfm2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, layer_types=["conv", "full_attention"], initializer_range=0.4,
    )  # fmt: skip
    neo = {"num_layers": 2, "num_heads": 4, "max_position_embeddings": 64, "window_size": 4, "initializer_range": 0.4}
    models = {
        "BloomForCausalLM does not accept position ids": BloomForCausalLM(
            BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2, initializer_range=0.4)
        ),
        "local attention measures distances in columns": GPTNeoForCausalLM(
            GPTNeoConfig(vocab_size=VOCABULARY, hidden_size=32, attention_types=[[["global", "local"], 1]], **neo)
        ),
        "Lfm2ForCausalLM keeps a recurrent state": Lfm2ForCausalLM(lfm),
        "MambaForCausalLM keeps a recurrent state": MambaForCausalLM(
            MambaConfig(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=1)
        ),
    }
    for model in models.values():
        assert_equals_one_by_one(model.eval(), make_case(EXAMPLE))
    assert all(message.startswith(reason) for message, reason in zip(warnings, models, strict=True))


@pytest.mark.parametrize("shared", [True, False])
def test_separate_rows_leave_out_absent_completions(shared: bool) -> None:
    model, case = MODELS["llama", "sdpa"], make_case(EXAMPLE)
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    logits, rows, *_ = _read(model, model, lay_out(*case, case[3], shared=shared))
    handle.remove()
    assert sizes == ([(3, 13)] if shared else [(4, 9)])
    assert_close(completion_logps(CompletionLogits(logits, rows), *case[2:]), one_by_one(model, case))


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_only_scored_tokens_reach_the_output_embedding(family: str) -> None:
    model, case = tiny(family), make_case(EXAMPLE)
    everything = read_completions(model, *case)
    wanted = torch.rand(case[3].shape, generator=torch.Generator().manual_seed(0)) < 0.4
    some = read_completions(model, *case, scored=wanted)
    assert len(some.rows) == (wanted & case[3]).sum() and len(some.logits) < len(everything.logits)
    assert_close(some.logits[some.rows], everything.logits[everything.rows][wanted[case[3]]])


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_padding_has_no_effect(family: str) -> None:
    model = tiny(family)
    prompt_ids, prompt_mask, completion_ids, completion_mask = make_case(EXAMPLE)
    other = make_case(EXAMPLE, seed=1)
    changed = (
        torch.where(prompt_mask, prompt_ids, other[0]),
        prompt_mask.long(),
        torch.where(completion_mask, completion_ids, other[2]),
        completion_mask,
    )
    assert not torch.equal(changed[0], prompt_ids)
    assert not torch.equal(changed[2], completion_ids)
    ours, theirs = (
        scored(model, case) for case in ((prompt_ids, prompt_mask, completion_ids, completion_mask), changed)
    )
    assert torch.equal(ours, theirs)
    assert not ours[~completion_mask].any()
    for one, another in zip(gradients(model, ours), gradients(model, theirs), strict=True):
        assert torch.equal(one, another)


def test_prompts_padded_on_the_right_give_the_same_log_probabilities() -> None:
    model, (prompt_ids, prompt_mask, *completions) = MODELS["gpt2", "sdpa"], make_case(EXAMPLE)
    order = torch.argsort(~prompt_mask, dim=1, stable=True)
    right = (prompt_ids.gather(1, order), prompt_mask.gather(1, order), *completions)
    assert torch.equal(scored(model, right), scored(model, (prompt_ids, prompt_mask, *completions)))


@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_without_completions_the_empty_logits_have_a_gradient(family: str) -> None:
    model, case = tiny(family), make_case([(3, [0, 0]), (6, [0])])
    output = read(model, case)
    assert output.logits.shape == (0, VOCABULARY)
    trie = TokenTrie.from_sequences([[4], [5]])
    logps = (
        completion_logps(output, *case[2:]),
        legal_completion_logps(output, *case[2:], trie, torch.full_like(case[2], -1)),
    )
    for one in logps:
        assert one.shape == case[3].shape
        assert not one.any()
    (logps[0].sum() + logps[1].sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_in_bfloat16_shared_rows_are_as_exact_as_separate_rows(family: str, kind: str) -> None:
    model = tiny(family, kind).bfloat16()
    case = make_case([(7, [3, 1, 4, 2]), (4, [0, 2, 5])] * 4)
    ours = scored(model, case)
    theirs = completion_logps(_read(model, model, lay_out(*case, case[3], shared=False)), *case[2:])
    exact = one_by_one(model.float(), case)
    assert ours.dtype == torch.float32
    ours, theirs = ((one - exact)[case[3]].square().mean().sqrt() for one in (ours, theirs))
    assert 0 < float(ours) < 1.5 * float(theirs) < 0.5


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    model, case = tiny("qwen3").train(), make_case(EXAMPLE)
    expected = gradients(model, scored(model, case))
    # The method was renamed in transformers 5.23.
    name = "activation_checkpointing_enable"
    enable = getattr(model, name) if hasattr(model, name) else model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for parameter in model.parameters():
        parameter.grad = None
    logps = scored(model, case)
    # `torch.autograd.grad` does not work with reentrant checkpointing.
    (logps * torch.linspace(-1, 1, logps.numel()).view(logps.shape)).sum().backward()
    assert_close([parameter.grad for parameter in model.parameters()], expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_adapters_get_gradients_and_can_be_disabled(family: str) -> None:
    case, targets = make_case(EXAMPLE), "all-linear"
    model = get_peft_model(tiny(family), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    assert_equals_one_by_one(model, case)
    with model.disable_adapter(), torch.no_grad():
        assert_close(scored(model, case), one_by_one(tiny(family), case))
    assert not torch.allclose(scored(model, case), one_by_one(tiny(family), case), atol=1e-2)


def test_an_adapter_on_a_quantised_base_equals_one_by_one(tmp_path: Path) -> None:
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.4, **size)).save_pretrained(tmp_path)
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantized).eval()
    assert "4bit" in type(model.model.layers[0].mlp.up_proj).__name__
    model = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False)
    )
    assert_equals_one_by_one(model.eval(), make_case(EXAMPLE))


class Engine(nn.Module):
    """Imitates the wrapper of a distributed engine, which has a `forward`, but neither a config nor embeddings."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_the_wrapper_is_called() -> None:
    model, case = MODELS["llama", "sdpa"], make_case(EXAMPLE)
    engine = Engine(model)
    ours = read_completions(model, *case, wrapped=engine)
    assert engine.calls == 1
    assert torch.equal(ours.logits, read(model, case).logits)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from(SHARED), st.booleans(), st.sampled_from([1.0, 0.7]))
def test_the_legal_softmax_equals_a_loop(seed: int, key: tuple[str, str], eos: bool, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Token 0 is included, because `TokenTrie.children` pads with 0.
    items = torch.tensor([0, 3, 4, 5, 6, 7])[torch.randint(6, (12, 3), generator=generator)]
    paths = [[*items[item, : 1 + item % 3].tolist(), 1] if eos else items[item].tolist() for item in range(12)]
    trie = TokenTrie.from_sequences(paths)
    case = make_case([(3, [4, 4, 4]), (5, [4, 4, 4])], seed)
    for row, slot in ((row, slot) for row in range(2) for slot in range(3)):
        path = paths[int(torch.randint(12, (1,), generator=generator))] if (row, slot) != (1, 1) else []
        case[2][row, slot, : len(path)] = torch.tensor(path, dtype=torch.int64)
        case[3][row, slot] = torch.arange(4) < len(path)
    nodes = trie.walk(torch.where(case[3], case[2], 0))[..., :-1]

    def among_children(logits: Tensor, row: int, slot: int, step: int) -> Tensor:
        prefix = case[2][row, slot, :step].tolist()
        children = sorted({path[step] for path in paths if path[:step] == prefix})
        total = sum((logits[child] / temperature).exp() for child in children)
        return logits[case[2][row, slot, step]] / temperature - total.log()

    model = MODELS[key]
    ours = legal_completion_logps(read(model, case), *case[2:], trie, nodes, temperature=temperature)
    assert_equals_one_by_one(model, case, among_children, ours)


def test_a_temperature_divides_the_logits() -> None:
    model, case = MODELS["llama", "sdpa"], make_case(EXAMPLE)
    ours = completion_logps(read(model, case), *case[2:], temperature=0.5)
    row, slot, step = (index.unsqueeze(1) for index in case[3].nonzero().unbind(1))
    output = read(model, case)
    expected = (output.logits[output.rows] * 2).log_softmax(-1).gather(1, case[2][row, slot, step])
    assert_close(ours[case[3]], expected.squeeze(1))


@pytest.mark.parametrize("paths", [[[4, 6], [5, 6]], [[7, 8]]])
def test_an_illegal_token_has_no_probability_and_no_gradient(paths: list[list[int]]) -> None:
    model, case = tiny("llama"), make_case([(3, [2])])
    case[2][:] = torch.tensor([4, 9])
    trie = TokenTrie.from_sequences(paths)
    ours = legal_completion_logps(read(model, case), *case[2:], trie, trie.walk(case[2])[..., :-1]).flatten()
    assert ours.isfinite().tolist() == [[5, 6] in paths, False]
    ours.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_unsuitable_models_are_refused() -> None:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        read(T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes)), make_case(EXAMPLE))
    tuned = get_peft_model(tiny("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="inserts virtual tokens before each prompt"):
        read(tuned, make_case(EXAMPLE))
