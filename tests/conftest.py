"""Configures all tests, and makes tiny models and tokenizers from scratch. Only tests/test_wheel.py uses the network,
through pip."""

import logging
import os
from copy import deepcopy


os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch
from hypothesis import Phase, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)


class LoggedDeprecations(logging.Handler):
    """Raises an error when a library logs a deprecation. Python warnings about deprecations are turned into errors by
    `filterwarnings` in setup.cfg."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING and "deprecated" in message:
            raise DeprecationWarning(message)


for name in ("accelerate", "datasets", "peft", "transformers", "trl"):
    logging.getLogger(name).addHandler(LoggedDeprecations())

# Use one thread, because the rounding of sums depends on the number of threads. Processes that `tests/processes.py`
# starts also use one thread.
torch.set_num_threads(1)

# All phases of Hypothesis except `target`, which no test needs, and `explain`, which can take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
settings.register_profile("default", deadline=None, max_examples=30, print_blob=True, phases=PHASES)
settings.load_profile("default")

FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": 4}),
    "gemma": (GemmaForCausalLM, GemmaConfig, {"head_dim": 8}),
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 8, "sliding_window": 256}),
}


def make_model(
    family: str = "llama", *, vocab_size: int = 40, attention: str = "sdpa", seed: int = 0
) -> PreTrainedModel:
    """A 2-layer model with weights so large that its distributions are far from uniform."""
    torch.manual_seed(seed)
    common = {"vocab_size": vocab_size, "attn_implementation": attention, "initializer_range": 0.4}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=512, **common, **special)).eval()
    kind, config, extra = FAMILIES[family]
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return kind(config(**size, **heads, **common, **special, **extra)).eval()


def make_tokenizer(texts: list[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the texts, with a padding, an EOS and a BOS token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", padding_side="left"
    )


@pytest.fixture(scope="session")
def titles() -> list[str]:
    """Titles with common beginnings, unusual characters and a duplicate."""
    return [
        "Blue Pen, 12 Pack",
        "Blue Pen, 24 Pack",
        "Blue Pencil",
        "Red Pen",
        "Desk Lamp (LED)",
        "Desk Lamp (LED)",
        "Caf\u00e9 Mug \u2615",
        "Stapler",
    ]


@pytest.fixture(scope="session")
def tokenizer(titles: list[str]) -> PreTrainedTokenizerFast:
    return make_tokenizer(titles * 4)


@pytest.fixture
def tokenizer_copy(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy of `tokenizer` that a test may modify."""
    return deepcopy(tokenizer)
