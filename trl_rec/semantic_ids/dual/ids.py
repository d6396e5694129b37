"""Makes Align3GR's semantic IDs for items and users. The IDs are learned from texts and interactions.

An ID consists of codes. Two trained models compute them: the item tower and the user tower (see [`Tower`]).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from trl_rec.data import RecDataset
from trl_rec.ranges import COUNT, NOT_NEGATIVE, SEED, SHARE_BELOW_ONE, check_ranges
from trl_rec.semantic_ids.card import IdCodes, code_use, make_card
from trl_rec.semantic_ids.collisions import number_within_group, repair_last_level
from trl_rec.semantic_ids.dual.inputs import DualInputs, dual_inputs
from trl_rec.semantic_ids.dual.storage import save_item_tower
from trl_rec.semantic_ids.dual.tower import Tower
from trl_rec.semantic_ids.dual.training import NUM_OTHERS, DualTraining
from trl_rec.semantic_ids.signals import SIGNALS
from trl_rec.semantic_ids.sinkhorn import sinkhorn_repair
from trl_rec.semantic_ids.storage import is_written, make_once, write_ids
from trl_rec.semantic_ids.text_encoders import WORDS, load_text_encoder
from trl_rec.semantic_ids.tokens import check_codes, id_tokens, ids_fingerprint, user_tokens


BEHAVIOURS = ("cooccurrence", "sequence")


@dataclass(frozen=True)
class DualIdsConfig:
    """Configuration of [`make_dual_ids`].

    Args:
        text_encoder (`str`, *optional*, defaults to `"words"`): The encoder that embeds texts, as in
            [`load_text_encoder`].
        item_text (`str`, *optional*): Template for the text of an item, with column names in braces, such as
            `"{title}, {genres}"`. By default, the text contains all columns except `item_id`.
        signals (`str`, *optional*, defaults to `"both"`): What the IDs are learned from: `"text"`, `"behaviour"` or
            `"both"`.
        behaviour (`str`, *optional*, defaults to `"cooccurrence"`): How the items' collaborative vectors are computed
            from interactions. `"cooccurrence"` factorises the mutual information of items that occur near each other.
            `"sequence"` trains a small encoder to predict the next item, and uses the encoder's item embeddings. The
            recipe `study/ml-100k-align3gr` compares the two.
        users (`bool`, *optional*, defaults to `True`): Whether users get IDs too.
        align (`bool`, *optional*, defaults to `True`): Whether to align users with the items they chose, by the U2I
            (user-to-item) loss. Without `users`, nothing is aligned.
        levels (`int`, *optional*, defaults to `3`): Number of codes per ID.
        codes (`int`, *optional*, defaults to `256`): Number of different codes per level.
        code_width (`int`, *optional*, defaults to `32`): Width of the vectors that are quantised.
        behaviour_width (`int`, *optional*, defaults to `64`): Width of the collaborative vectors.
        fused_width (`int`, *optional*, defaults to `128`): Width of the SC vectors, which fuse semantic (text) and
            collaborative vectors.
        hidden (`int`, *optional*, defaults to `256`): Width of the hidden layers.
        alpha (`float`, *optional*, defaults to `0.1`): Weight of the U2I loss in the last phase of the training, in
            which the codes are learned (see [`DualTraining`]).
        without_behaviour (`float`, *optional*, defaults to `0.1`): Probability that the collaborative vector of an
            item is replaced with zeros during training, so that a new item can get an ID from its text alone.
        learning_rate (`float`, *optional*, defaults to `1e-3`): Learning rate of AdamW.
        batch_size (`int`, *optional*, defaults to `1024`): Number of user-item pairs per batch.
        max_epochs (`int`, *optional*, defaults to `30`): Maximum number of epochs of each phase of the training. An
            epoch is one pass over all user-item pairs.
        patience (`int`, *optional*, defaults to `3`): Number of epochs without improvement after which a phase ends.
        collisions (`str`, *optional*, defaults to `"share"`): The last code of some items is changed, so that fewer
            items have the same codes. Items that still have the same codes share an ID (`"share"`), or each get an
            additional token (`"extend"`).
        seed (`int`, *optional*, defaults to `0`): Random seed. The same seed gives the same IDs on the same machine.
    """

    text_encoder: str = field(
        default=WORDS,
        metadata={"help": "words (needs no model), or the hub id or folder of a sentence-transformers model"},
    )
    item_text: str | None = field(
        default=None, metadata={"help": "template for the text of an item, such as '{title}, {genres}'"}
    )
    signals: str = field(default="both", metadata={"help": "what the IDs are learned from: text, behaviour or both"})
    behaviour: str = field(
        default="cooccurrence",
        metadata={
            "help": "source of the items' collaborative vectors, which are computed from interactions: cooccurrence, "
            "or sequence (a trained encoder)"
        },
    )
    users: bool = field(default=True, metadata={"help": "whether to make IDs for users as well"})
    align: bool = field(default=True, metadata={"help": "whether to align users with the items they chose"})
    levels: Annotated[int, COUNT] = field(default=3, metadata={"help": "number of codes per ID"})
    codes: Annotated[int, replace(COUNT, low=2)] = field(
        default=256, metadata={"help": "number of different codes per level"}
    )
    code_width: Annotated[int, COUNT] = field(default=32, metadata={"help": "width of the vectors that are quantised"})
    behaviour_width: Annotated[int, COUNT] = field(default=64, metadata={"help": "width of the collaborative vectors"})
    fused_width: Annotated[int, COUNT] = field(
        default=128, metadata={"help": "width of the vectors that fuse text and behaviour"}
    )
    hidden: Annotated[int, COUNT] = field(default=256, metadata={"help": "width of the hidden layers"})
    alpha: Annotated[float, NOT_NEGATIVE] = field(
        default=0.1, metadata={"help": "weight of the U2I (user-to-item) loss while codes are learned"}
    )
    without_behaviour: Annotated[float, SHARE_BELOW_ONE] = field(
        default=0.1,
        metadata={
            "help": "probability that an item's collaborative vector is replaced with zeros in training",
        },
    )
    learning_rate: Annotated[float, NOT_NEGATIVE] = field(
        default=1e-3, metadata={"help": "learning rate of the models that compute the IDs"}
    )
    batch_size: Annotated[int, COUNT] = field(default=1024, metadata={"help": "number of user-item pairs per batch"})
    max_epochs: Annotated[int, COUNT] = field(
        default=30, metadata={"help": "maximum number of epochs for each phase of the training"}
    )
    patience: Annotated[int, COUNT] = field(
        default=3, metadata={"help": "number of epochs without improvement after which a phase ends"}
    )
    collisions: str = field(
        default="share",
        metadata={
            "help": "items with the same codes: share (they share an ID) or extend (they get an additional token)"
        },
    )
    seed: Annotated[int, SEED] = field(default=0, metadata={"help": "random seed"})

    def __post_init__(self) -> None:
        check_ranges(self)


def make_dual_ids(dataset: RecDataset, config: DualIdsConfig | None = None, *, overwrite: bool = False) -> RecDataset:
    """Makes IDs of items and users from texts and the training split, and writes them into the dataset folder.

    If the folder already contains IDs made with the same settings, they are reused.

    Args:
        dataset (`RecDataset`): A dataset returned by `prepare` or `load`.
        config (`DualIdsConfig`, *optional*): The configuration.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace IDs that were made with other settings
            or came with the data. If False, such IDs raise a ValueError.

    Returns:
        [`RecDataset`]: The dataset with the IDs in its catalogue. The catalogue's surface does not change.
    """
    config = config or DualIdsConfig()
    _check_config(config, dataset)
    return make_once(dataset, _settings(config), partial(_make, dataset, config), overwrite=overwrite)


def _make(dataset: RecDataset, config: DualIdsConfig) -> None:
    """Makes and writes the IDs."""
    # 1. Train the towers.
    encoder = load_text_encoder(config.text_encoder)
    inputs = dual_inputs(
        dataset,
        encoder,
        signals=config.signals,
        behaviour=config.behaviour,
        width=config.behaviour_width,
        item_template=config.item_text,
        seed=config.seed,
    )
    training, shape = _train(inputs, config)

    # 2. Quantise items and users.
    codes = _item_codes(training, config)
    user_codes = _user_codes(training)
    semantic_ids = id_tokens(codes.repaired, codes.extra)
    user_ids = None if user_codes is None else user_tokens(user_codes)

    # 3. Write the item tower, then the IDs. If the process is killed in between, the next call trains the towers and
    # makes the IDs again.
    card = make_card(
        codes,
        semantic_ids,
        dataset.catalog,
        inputs.popularity.numpy(),
        settings=_settings(config),
        without_vector=int((~inputs.known).sum()) if config.signals == "behaviour" else 0,
        training=_training_facts(training, user_codes, config, encoder.fingerprint),
    )
    save_item_tower(
        dataset.path,
        training.item_tower,
        shape,
        inputs.scales.get("item_text"),
        text_encoder=config.text_encoder,
        hashes={
            "text_encoder_hash": encoder.fingerprint,
            "fingerprint": ids_fingerprint(semantic_ids, user_ids),
        },
    )
    write_ids(dataset, semantic_ids, card, user_ids=user_ids)


def has_dual_ids(dataset: RecDataset, config: DualIdsConfig) -> bool:
    """Returns whether the dataset folder contains the IDs that [`make_dual_ids`] makes with this configuration."""
    return is_written(dataset, _settings(config), overwrite=True)


def _settings(config: DualIdsConfig) -> dict[str, Any]:
    return {"method": "dual", **asdict(config)}


def _train(inputs: DualInputs, config: DualIdsConfig) -> tuple[DualTraining, dict[str, int]]:
    """Trains the towers. Returns the finished training and the constructor arguments of the item tower."""
    shape = {
        "inputs": inputs.items(torch.zeros(1, dtype=torch.int64)).shape[1],
        "hidden": config.hidden,
        "width": config.fused_width,
        "code_width": config.code_width,
        "levels": config.levels,
        "codes": config.codes,
    }
    user_shape = {**shape, "inputs": inputs.users(torch.zeros(1, dtype=torch.int64)).shape[1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        item_tower = Tower(**shape)
        user_tower = Tower(**user_shape) if config.users else None

    training = DualTraining(
        inputs,
        item_tower,
        user_tower,
        align=config.align and config.users,
        alpha=config.alpha,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        max_epochs=config.max_epochs,
        patience=config.patience,
        without_behaviour=config.without_behaviour if config.signals == "both" else 0.0,
        generator=torch.Generator().manual_seed(config.seed),
    )
    training.run()
    return training, shape


@torch.no_grad()
def _item_codes(training: DualTraining, config: DualIdsConfig) -> IdCodes:
    """Returns the codes of the items, before and after each repair of collisions (items with the same codes)."""
    tower = training.item_tower
    items = torch.arange(len(training.inputs.known))
    quantized = tower.quantize.assign(training.latents(tower, training.fused_items(items)))
    spread = sinkhorn_repair(quantized.codes, quantized.last_residuals, quantized.codebooks[-1])
    repaired = repair_last_level(spread, quantized.last_residuals, quantized.codebooks[-1])
    extra = number_within_group(repaired) if config.collisions == "extend" else torch.full((len(items),), -1)
    return IdCodes(quantized.codes, repaired, extra, quantized.errors, config.codes, spread)


@torch.no_grad()
def _user_codes(training: DualTraining) -> Tensor | None:
    """Returns the codes of the users, `(num_users, levels)`. Users may share an ID, so collisions are not resolved."""
    tower = training.user_tower
    if tower is None:
        return None
    users = torch.arange(len(training.inputs.mask))
    return tower.quantize.assign(training.latents(tower, training.fused_users(users))).codes


@torch.no_grad()
def _training_facts(
    training: DualTraining, user_codes: Tensor | None, config: DualIdsConfig, text_encoder_hash: str
) -> dict[str, Any]:
    """Returns the part of the card (statistics that are stored beside the IDs) that describes the training."""
    held_out = training.held_out()
    return {
        "text_encoder": config.text_encoder if config.signals != "behaviour" else None,
        "text_encoder_hash": text_encoder_hash,
        "rebuilding_error": round(training.rebuilding_error(), 4),
        "u2i_accuracy": None if held_out is None else round(held_out.accuracy, 4),
        "u2i_pairs": 0 if held_out is None else held_out.pairs,
        "u2i_others": NUM_OTHERS,
        "u2i_chance": None if held_out is None else round(held_out.chance, 4),
        "num_users": len(training.inputs.mask),
        "distinct_users": None if user_codes is None else round(len(user_codes.unique(dim=0)) / len(user_codes), 4),
        "user_levels": []
        if user_codes is None
        else [code_use(column, config.codes) for column in user_codes.unbind(1)],
        "curve": training.curve,
    }


def _check_config(config: DualIdsConfig, dataset: RecDataset) -> None:
    check_codes(asdict(config), len(dataset.catalog))

    # Choices
    if config.signals not in SIGNALS:
        raise ValueError(f"unknown signals {config.signals!r}; choose {' or '.join(map(repr, SIGNALS))}")
    if config.behaviour not in BEHAVIOURS:
        raise ValueError(f"unknown behaviour {config.behaviour!r}; choose {' or '.join(map(repr, BEHAVIOURS))}")

    # Numbers
    if config.behaviour == "sequence" and config.behaviour_width % 2:
        raise ValueError(
            f"behaviour_width={config.behaviour_width} must be a multiple of 2, because the encoder of "
            "behaviour=sequence has two attention heads"
        )
    _check_inert(config)


def _check_inert(config: DualIdsConfig) -> None:
    """Raises ValueError if an option is set that has no effect because of another option."""
    unused_by_signals: dict[str, tuple[str, ...]] = {
        "both": (),
        "text": ("behaviour", "behaviour_width", "without_behaviour"),
        "behaviour": ("text_encoder", "item_text", "without_behaviour"),
    }
    inert = {f"signals={config.signals!r}": unused_by_signals[config.signals]}
    if not config.users:
        # align=False is allowed, although it changes nothing: it agrees with users=False, which also aligns nothing.
        inert["users=False"] = ("alpha",)
    if not config.align:
        inert["align=False"] = ("alpha",)

    defaults = asdict(DualIdsConfig())
    for reason, names in inert.items():
        for name in names:
            if getattr(config, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(config, name)!r} has no effect with {reason}; leave it out")
