"""Makes the models and datasets for `device.py`: random weights in published shapes, and logs with titles.

`device.py` runs recipes with them. Nothing is downloaded. Histories of titles are as long as a recipe's `max_length`
or `max_history` allows, and logits are as wide as the vocabulary of the recipe's model. A recipe therefore takes about
the time and the memory that it would take with real weights and with real histories of this length. The tokenizer has
few tokens. The other tokens of the model's vocabulary never occur in the data, but every softmax over the vocabulary
includes them.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from trl_rec import RecDataset, load, prepare
from trl_rec.ragged import Ragged


LLAMA_3 = {"vocab_size": 128_256, "num_key_value_heads": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}
QWEN_2 = {"vocab_size": 151_936, "num_key_value_heads": 2, "tie_word_embeddings": True}
# Shapes of published models. The key is part of the model's name.
SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "Llama-3.2-1B": (
        LlamaConfig,
        LLAMA_3 | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    ),
    "Llama-3.2-3B": (
        LlamaConfig,
        LLAMA_3 | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    ),
    "Llama-2-7b": (
        LlamaConfig,
        {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
        | {"num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False},
    ),
    "Qwen2.5-0.5B": (
        Qwen2Config,
        QWEN_2 | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    ),
    "Qwen2.5-1.5B": (
        Qwen2Config,
        QWEN_2 | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    ),
}
# Two layers, for a test on a CPU. bitsandbytes needs weight matrices whose number of columns is a multiple of 64.
TINY = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
TINY |= {"num_attention_heads": 8, "num_key_value_heads": 2}
SPECIAL = ["<pad>", "<eos>", "<bos>"]
SHARD = 2_000_000_000  # maximum number of weights per file


@dataclass
class World:
    """A folder with models and datasets, each of which is made when it is first requested.

    Args:
        folder (`Path`): The folder.
        device (`torch.device`): The device on which random weights are drawn.
        is_tiny (`bool`): Whether models have two narrow layers, and datasets few users.
    """

    folder: Path
    device: torch.device
    is_tiny: bool = False

    def model(self, name: str) -> Path:
        """Returns a folder with random weights in the shape of the model `name`, in bfloat16, and a tokenizer."""
        shape = next((key for key in SHAPES if key in name), None)
        if shape is None:
            raise ValueError(f"the shape of {name} is unknown; add it to SHAPES in benchmarks/device_world.py")
        folder = self.folder / "models" / shape
        if not folder.is_dir():
            kind, size = SHAPES[shape]
            tokenizer = make_tokenizer()
            ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            config = kind(**(size | (TINY if self.is_tiny else {})), **ids)
            tokenizer.save_pretrained(folder)
            save_random_weights(config, folder, self.device)
        return folder

    def dataset(self, name: str) -> Path:
        """Returns a generated dataset folder, which a recipe reads instead of its dataset folder `data/NAME`.

        If the name ends with `next-ten`, the validation and the test split have ten targets per user each. Otherwise,
        they have one (leave-one-out). Users and items have semantic IDs. Titles are long if the name begins with
        `office`.
        """
        folder = self.folder / "data" / name
        if not folder.is_dir():
            source = self.folder / "sources" / name
            num_words = 16 if name.startswith("office") and not self.is_tiny else 5
            size = {"num_users": 48, "num_items": 2000, "per_user": 60}
            if self.is_tiny:
                size = {"num_users": 6, "num_items": 100, "per_user": 40}
            write_log(source, num_words, **size)
            split = {"split": "leave_last", "num_held_out": 10} if name.endswith("next-ten") else {}
            give_ids(prepare(source, folder, format="table", **split))
        return folder

    def preferences(self) -> Path:
        """Returns a file of prompts, each with one chosen and three rejected answers."""
        path = self.folder / "preferences.jsonl"
        draw = random.Random(0)
        rows = [
            {
                "prompt": " ".join(make_title(draw, 9) for _ in range(5 if self.is_tiny else 40)),
                "chosen": " " + make_title(draw, 9),
                "rejected": [" " + make_title(draw, 9) for _ in range(3)],
            }
            for _ in range(64)
        ]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path


def save_random_weights(config: PretrainedConfig, folder: Path, device: torch.device) -> None:
    """Writes a model of random weights in bfloat16. Only the weights of one file are in memory at a time."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}

    # 1. Divide the weights among files.
    files: list[dict[str, torch.Size]] = [{}]
    for name, shape in shapes.items():
        if sum(held.numel() for held in files[-1].values()) + shape.numel() > SHARD and files[-1]:
            files.append({})
        files[-1][name] = shape

    # 2. Draw the weights. The weights of norms are 1, and biases are 0.
    generator = torch.Generator(device).manual_seed(0)
    places = {}
    for number, held in enumerate(files):
        file = f"model-{number:05d}.safetensors"
        weights = {}
        for name, shape in held.items():
            weight = torch.full(shape, float("norm" in name), dtype=torch.bfloat16, device=device)
            if len(shape) > 1:
                weight.normal_(0, 0.02, generator=generator)
            weights[name] = weight.cpu()
            places[name] = file
        save_file(weights, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer that has learned the words of the titles."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1_500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    draw = random.Random(1)
    tokenizer.train_from_iterator([f'"{make_title(draw, 16)}"\n' for _ in range(2_000)], trainer)
    pad, eos, bos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=eos, bos_token=bos, padding_side="left"
    )


def make_title(draw: random.Random, num_words: int) -> str:
    """Returns a title of words with two syllables. Some syllables are drawn more often than others."""
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o")]
    words = []
    for _ in range(num_words):
        first, second = (syllables[int(len(syllables) * draw.random() ** 2)] for _ in range(2))
        words.append((first + second).capitalize())
    return " ".join(words)


def write_log(folder: Path, num_words: int, *, num_users: int, num_items: int, per_user: int) -> None:
    """Writes interactions with ratings, and items with titles of about `num_words` words, as CSV files."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    items = [f"{item},{make_title(draw, num_words)} {item}" for item in range(num_items)]
    interactions = [
        f"u{user},{item},{time},{draw.randint(1, 5)}"
        for user in range(num_users)
        for time, item in enumerate(draw.sample(range(num_items), per_user))
    ]
    (folder / "items.csv").write_text("\n".join(["item_id,title", *items]), encoding="utf-8")
    header = "user_id,item_id,timestamp,rating"
    (folder / "interactions.csv").write_text("\n".join([header, *interactions]), encoding="utf-8")


def give_ids(dataset: RecDataset) -> None:
    """Gives semantic IDs to a dataset folder: three codes per item, and two per user."""
    items = [[f"<a_{i % 256}>", f"<b_{i // 7 % 256}>", f"<c_{i // 256}>"] for i in range(len(dataset.catalog))]
    users = [[f"<ua_{u % 8}>", f"<ub_{u // 8}>"] for u in range(dataset.users.num_rows)]
    ids = {name: Ragged.from_lists(rows, object) for name, rows in (("semantic_ids", items), ("user_ids", users))}
    replace(dataset.catalog, **ids).save(dataset.path / "catalog")
    load(dataset.path)
