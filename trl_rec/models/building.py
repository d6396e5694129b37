"""Builds a recipe's model: a pretrained model (optionally quantised or with an adapter) or a model from scratch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import ModelConfig, get_peft_config, get_quantization_config

from trl_rec.items.catalog import ItemCatalog
from trl_rec.items.changes import CatalogChange
from trl_rec.models.item_vectors import start_from_vectors
from trl_rec.models.loading import load_model, load_policy, load_tokenizer
from trl_rec.models.scratch import make_model, make_tokenizer
from trl_rec.models.token_rows import changes_embeddings, follow_items
from trl_rec.models.tokens import add_item_tokens, new_token_modules
from trl_rec.ranges import COUNT, SHARE_BELOW_ONE, check_ranges


if TYPE_CHECKING:
    from peft import PeftConfig


@dataclass
class RecModelConfig(ModelConfig):
    """[`~trl.ModelConfig`] with additional options for a model from scratch.

    A model is made from scratch if `model_name_or_path` is None. Otherwise the additional options have no effect,
    except `item_vectors` and `text_encoder`.

    Args:
        hidden_size (`int`, *optional*, defaults to `64`): Width of the hidden states, a multiple of twice `num_heads`.
        num_layers (`int`, *optional*, defaults to `2`): Number of layers.
        num_heads (`int`, *optional*, defaults to `2`): Number of attention heads per layer.
        dropout (`float`, *optional*, defaults to `0.2`): Dropout probability for the attention weights and for the
            output of each sublayer.
        embedding_dropout (`float`, *optional*, defaults to `0.0`): Dropout probability for the input embeddings.
        item_vectors (`str`, *optional*, defaults to `"random"`): What the embeddings of item tokens and semantic IDs
            start from. `"random"` uses random numbers, `"text"` uses vectors of the items' texts, `"behaviour"` uses
            vectors of co-occurrences in the training split, and `"both"` uses both kinds of vectors. The option also
            applies to tokens that are added to a pretrained model. See [`start_from_vectors`].
        text_encoder (`str`, *optional*, defaults to `"words"`): Encoder of the items' texts for `item_vectors`.
            `"words"` needs no model, and gives similar vectors to texts that share words. Any other value is the hub
            id or folder of a sentence-transformers model.
    """

    hidden_size: Annotated[int, COUNT] = field(default=64, metadata={"help": "width of a model from scratch"})
    num_layers: Annotated[int, COUNT] = field(default=2, metadata={"help": "number of layers of a model from scratch"})
    num_heads: Annotated[int, COUNT] = field(
        default=2, metadata={"help": "number of attention heads per layer of a model from scratch"}
    )
    dropout: Annotated[float, SHARE_BELOW_ONE] = field(
        default=0.2, metadata={"help": "dropout probability of a model from scratch"}
    )
    embedding_dropout: Annotated[float, SHARE_BELOW_ONE] = field(
        default=0.0, metadata={"help": "dropout probability for the input embeddings of a model from scratch"}
    )
    item_vectors: Literal["random", "text", "behaviour", "both"] = field(
        default="random",
        metadata={"help": "what the embeddings of new item tokens start from: random, text, behaviour or both"},
    )
    text_encoder: str = field(
        default="words",
        metadata={
            "help": "encoder of the items' texts for item_vectors: words (needs no model), or the hub id or folder of "
            "a sentence-transformers model"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        check_ranges(self)
        for name in ("use_peft", "load_in_4bit", "load_in_8bit"):
            if self.model_name_or_path is None and getattr(self, name):
                raise ValueError(
                    f"{name} needs a pretrained model, but model_name_or_path is not set; set it, or leave {name} out "
                    "to train all weights of a model from scratch"
                )


def build_model(
    catalog: ItemCatalog,
    config: RecModelConfig,
    *,
    max_length: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
    texts: Iterable[str] = (),
    item_vectors: Callable[[], Tensor] | None = None,
    change: CatalogChange | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PeftConfig | None]:
    """Builds the model, the tokenizer and the adapter configuration that a trainer needs.

    Args:
        catalog (`ItemCatalog`): The items. Their surface determines which tokens are added.
        config (`RecModelConfig`): The model to load or make.
        max_length (`int`, *optional*): Maximum number of tokens per text for a model from scratch; 1024 by default.
        seed (`int`, *optional*, defaults to `0`): Random seed for a model from scratch and for the embeddings of new
            tokens.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run custom code from the model's
            repository.
        texts (iterable of `str`, *optional*): Texts whose words are added to the vocabulary of a model from scratch.
        item_vectors (`Callable`, *optional*): Returns the vectors of the items, `(num_items, D)`, which the embeddings
            of the items' tokens start from. By default, the embeddings of new tokens start at random or, if `change`
            is given, from means of learned embeddings, such as those of items of the same genre (see
            `token_rows.py`).
        change (`CatalogChange`, *optional*): The change from the catalogue that the model was trained with to the
            current one. If given, `catalog` must be `change.catalog`, which contains the items of both catalogues.

    Returns:
        The model, its tokenizer, and the adapter configuration, which is None without an adapter.
    """
    # 1. If no pretrained model is named, make a model from scratch.
    if config.model_name_or_path is None:
        item_tokenizer = make_tokenizer(catalog, texts)
        model = make_model(item_tokenizer, max_length=max_length or 1024, seed=seed, **scratch_options(config))
        if item_vectors is not None:
            start_from_vectors(model, item_tokenizer, catalog, item_vectors(), seed=seed)
        return model, item_tokenizer, None

    # 2. Otherwise, load a pretrained model, and add the catalogue's tokens.
    options = loading_options(config, trust_remote_code)
    model = load_policy(config.model_name_or_path, **options)
    tokenizer = load_tokenizer(
        config.model_name_or_path, revision=config.model_revision, trust_remote_code=trust_remote_code or None
    )
    set_seed(seed)
    knows_tokens = not set(catalog.new_tokens).isdisjoint(tokenizer.get_vocab())
    if change is None:
        new_token_ids = add_item_tokens(model, tokenizer, catalog)
    else:
        model, new_token_ids = follow_items(model, tokenizer, change)
    if item_vectors is not None:
        if knows_tokens:
            raise ValueError(
                f"{config.model_name_or_path} already has the tokens of the items, and item_vectors would overwrite "
                "the embeddings that it has learned for these tokens; leave out item_vectors"
            )
        start_from_vectors(model, tokenizer, catalog, item_vectors(), seed=seed)

    # 3. An adapter must also train the embeddings of the new tokens.
    adapter = get_peft_config(config)
    if isinstance(adapter, LoraConfig) and new_token_ids:
        adapter.trainable_token_indices = new_token_modules(model, new_token_ids)
    return model, tokenizer, adapter


def scratch_options(config: RecModelConfig) -> dict[str, Any]:
    """Returns the fields of a configuration that are arguments of [`make_model`], such as the number of layers."""
    names = ("hidden_size", "num_layers", "num_heads", "dropout", "embedding_dropout")
    return {name: getattr(config, name) for name in names}


def build_policy(
    config: ModelConfig,
    *,
    trust_remote_code: bool = False,
    with_reference: bool = True,
    change: CatalogChange | None = None,
) -> tuple[PreTrainedModel, PreTrainedModel | None, PreTrainedTokenizerBase, PeftConfig | None]:
    """Builds the policy, the reference, the tokenizer and the adapter configuration for preference training.

    Args:
        config (`ModelConfig`): The model to load. Its `model_name_or_path` must be set.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run custom code from the model's
            repository.
        with_reference (`bool`, *optional*, defaults to `True`): Whether to load a reference.
        change (`CatalogChange`, *optional*): The change from the catalogue that the policy was trained with to the
            current one.

    Returns:
        The policy, the reference, the tokenizer and the adapter configuration. The reference is a second copy of the
        model. It is None if `with_reference` is False, if the policy was loaded with an adapter, or if the policy gets
        a new adapter. In the last two cases, the policy's model also computes the outputs of the reference: with a
        frozen copy of the loaded adapter, or with the new adapter switched off.
    """
    name = config.model_name_or_path
    if name is None:
        raise ValueError(
            "there is no policy to start from; set model_name_or_path, for example to the output folder of trl-rec "
            "bear"
        )

    # 1. Load the policy.
    options = loading_options(config, trust_remote_code)
    policy = load_policy(name, **options)
    tokenizer = load_tokenizer(name, revision=config.model_revision, trust_remote_code=trust_remote_code or None)

    # 2. Load the reference, unless a policy with an adapter also serves as the reference.
    adapter = get_peft_config(config)
    has_own_reference = isinstance(policy, PeftModel) or adapter is not None
    reference = load_model(name, **options) if with_reference and not has_own_reference else None
    if change is None:
        return policy, reference, tokenizer, adapter

    # 3. Item tokens are numbered by item index. If the indices have changed, move each item's embedding to its new
    # token. Make embeddings for new tokens. Do both in the policy and in the reference.
    has_changes = changes_embeddings(tokenizer, change)
    if reference is not None:
        reference, _ = follow_items(reference, deepcopy(tokenizer), change)
    policy, token_ids = follow_items(policy, tokenizer, change)

    # 4. A new adapter must also contain these embeddings, because saving an adapter does not save the base model.
    if isinstance(adapter, LoraConfig) and has_changes:
        adapter.trainable_token_indices = new_token_modules(policy, token_ids)
    return policy, reference, tokenizer, adapter


def loading_options(config: ModelConfig, trust_remote_code: bool = False) -> dict[str, Any]:
    """Returns the options for [`load_model`], such as dtype, attention implementation and quantisation.

    Args:
        config (`ModelConfig`): The configuration of the model.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run custom code from the model's
            repository. It is a separate argument because `trust_remote_code` is a field of the trainer's
            configuration, not of `ModelConfig`.
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
        # Each process loads its own copy onto its own device.
        options["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    return options
