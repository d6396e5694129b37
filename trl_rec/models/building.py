"""Builds the model that a recipe describes: a pretrained one, perhaps quantised or with an adapter, or a small one
from scratch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_rec.items.catalog import ItemCatalog
from trl_rec.models.loading import load_model, load_policy, load_tokenizer
from trl_rec.models.scratch import make_model, make_tokenizer
from trl_rec.models.tokens import add_item_tokens, new_token_modules
from trl_rec.ranges import COUNT, SHARE_BELOW_ONE, check_ranges


if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class RecModelConfig(ModelConfig):
    """[`~trl.ModelConfig`] plus the size of a model from scratch, which is made if there is no `model_name_or_path`.

    Args:
        hidden_size (`int`, *optional*, defaults to `64`): Width.
        num_layers (`int`, *optional*, defaults to `2`): Number of layers.
        num_heads (`int`, *optional*, defaults to `2`): Number of attention heads per layer.
        dropout (`float`, *optional*, defaults to `0.2`): Dropout on the attention weights and on the output of each
            sublayer.
    """

    hidden_size: int = field(default=64, metadata={"range": COUNT, "help": "width of a model from scratch"})
    num_layers: int = field(default=2, metadata={"range": COUNT, "help": "layers of a model from scratch"})
    num_heads: int = field(default=2, metadata={"range": COUNT, "help": "attention heads of a model from scratch"})
    dropout: float = field(default=0.2, metadata={"range": SHARE_BELOW_ONE, "help": "dropout of a model from scratch"})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        check_ranges(self)


def build_model(
    catalog: ItemCatalog,
    config: RecModelConfig,
    *,
    max_length: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    texts: Iterable[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PeftConfig | None]:
    """Builds model, tokenizer and adapter configuration, ready for a trainer.

    Args:
        catalog (`ItemCatalog`): The items; their surface decides which tokens are new.
        config (`RecModelConfig`): The model to load or make.
        max_length (`int`, *optional*): The most tokens of a text, for a model from scratch; 1024 by default.
        seed (`int`, *optional*, defaults to `0`): Seed of a model from scratch and of the embeddings of new tokens.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code that comes with a model.
        texts (iterable of `str`, *optional*): Texts whose words a model from scratch needs besides items.

    Returns:
        The model, its tokenizer, and the adapter configuration, which is None without an adapter.
    """
    # From scratch.
    if config.model_name_or_path is None:
        item_tokenizer = make_tokenizer(catalog, texts)
        size = {name: getattr(config, name) for name in ("hidden_size", "num_layers", "num_heads", "dropout")}
        model = make_model(item_tokenizer, max_length=max_length or 1024, seed=seed, **size)
        return model, item_tokenizer, get_peft_config(config)

    # Pretrained: load it, and add the catalogue's tokens. An adapter has to train their embeddings.
    options = loading_options(config, trust_remote_code)
    model = load_policy(config.model_name_or_path, **options)
    tokenizer = load_tokenizer(config.model_name_or_path, trust_remote_code=trust_remote_code or None)
    set_seed(seed)
    new_token_ids = add_item_tokens(model, tokenizer, catalog)
    adapter = get_peft_config(config)
    if isinstance(adapter, LoraConfig) and new_token_ids:
        adapter.trainable_token_indices = new_token_modules(model, new_token_ids)
    return model, tokenizer, adapter


def build_policy(
    config: ModelConfig, *, trust_remote_code: bool = False, with_reference: bool = True
) -> tuple[PreTrainedModel, PreTrainedModel | None, PreTrainedTokenizerBase, PeftConfig | None]:
    """Builds policy, reference, tokenizer and adapter configuration for preference training.

    Args:
        config (`ModelConfig`): The model to load; it must have a `model_name_or_path`.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run code that comes with a model.
        with_reference (`bool`, *optional*, defaults to `True`): Whether to load a reference at all.

    Returns:
        The policy, the reference, the tokenizer and the adapter configuration. The reference is the same model, loaded
        again. It is None if the policy has or gets an adapter: its base without the adapter is then the reference.
    """
    name = config.model_name_or_path
    if name is None:
        raise ValueError(
            "there is no policy to start from; give model_name_or_path, such as the output folder of trl-rec bear"
        )

    options = loading_options(config, trust_remote_code)
    policy = load_policy(name, **options)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code or None)

    adapter = get_peft_config(config)
    has_own_reference = isinstance(policy, PeftModel) or adapter is not None
    reference = load_model(name, **options) if with_reference and not has_own_reference else None
    return policy, reference, tokenizer, adapter


def loading_options(config: ModelConfig, trust_remote_code: bool = False) -> dict[str, Any]:
    """The options with which [`load_model`] loads a recipe's model: number format, attention and quantisation.

    Args:
        config (`ModelConfig`): The recipe's model.
        trust_remote_code (`bool`, *optional*, defaults to `False`): The trainer configuration's setting of this name;
            TRL's `ModelConfig` has none.
    """
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        "revision": config.model_revision,
    }
    if trust_remote_code:
        options["trust_remote_code"] = True

    quantization = get_quantization_config(config)
    if quantization is not None:
        options["quantization_config"] = quantization
        # Every process keeps a copy of its own, on its own device.
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    return options
