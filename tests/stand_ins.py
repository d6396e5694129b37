"""Makes tiny models for tests of recipes. Each tiny model replaces the pretrained model of a recipe. It has the same
architecture, and its tokenizer treats BOS, EOS and padding like the tokenizer of that model."""

from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

from tests.conftest import make_tokenizer


CHAT = (
    "{% for message in messages %}<bos>{{ message.role }}\n{{ message.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)
# On a CPU with AVX-512 for bfloat16, bitsandbytes repacks nf4 weights. This requires that the number of rows of a
# weight is a multiple of 32, and the number of columns is a multiple of 64.
SIZE = {"intermediate_size": 192, "num_hidden_layers": 2, "tie_word_embeddings": True}
LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def save_stand_in(name: str, texts: list[str], folder: Path) -> Path:
    """Saves a tiny model that replaces the Hub model `name`, and a tokenizer that is trained on `texts`."""
    family = next((known for known in FAMILIES if known in name), None)
    if family is None:
        raise ValueError(f"{name} has no stand-in; add its family to tests/stand_ins.py")
    tokenizer = make_tokenizer([*texts, "user system assistant"], vocab_size=500)
    if "Instruct" in name:
        tokenizer.chat_template = CHAT
    set_seed(0)
    model = FAMILIES[family](tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama_3(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns a model with four query heads per key-value head and long-context rotary positions. Changes the
    tokenizer so that it puts BOS before every text and has no padding token."""
    bos = tokenizer.bos_token_id
    eos = tokenizer.eos_token_id
    begin_with_bos(tokenizer)
    heads = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
    rest = {"max_position_embeddings": 131_072, "bos_token_id": bos, "eos_token_id": eos, "rms_norm_eps": 1e-5}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), rope_parameters=LLAMA_3_ROPE, **SIZE, **heads, **rest)
    )


def llama_2(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns a model with one query head per key-value head and an untied output layer. Changes the tokenizer so that
    it puts BOS before every text and has no padding token."""
    begin_with_bos(tokenizer)
    heads = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 8}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    size = {**SIZE, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, **heads, **tokens))


def begin_with_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    """Changes the tokenizer so that it puts BOS before every text and has no padding token, as in Llama."""
    bos = tokenizer.bos_token_id
    begin = TemplateProcessing(single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", bos)])
    tokenizer.backend_tokenizer.post_processor = begin
    tokenizer.pad_token = None


def qwen_2(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """Returns a model with biases in attention, and with more embedding rows than tokens. Changes the tokenizer so
    that it has no BOS."""
    tokenizer.bos_token = None
    heads = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 1}
    rest = {
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    }
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + 27, **SIZE, **heads, **rest))
    assert model.model.layers[0].self_attn.q_proj.bias is not None
    return model


def smollm_2(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Returns a Llama with an odd number of heads. Makes the tokenizer pad with EOS."""
    tokenizer.pad_token = tokenizer.eos_token
    heads = {"hidden_size": 192, "num_attention_heads": 3, "num_key_value_heads": 1}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZE, **heads, **tokens)
    )


FAMILIES = {"Llama-2": llama_2, "Llama-3": llama_3, "Qwen2.5": qwen_2, "SmolLM2": smollm_2}
