"""`make_dual_ids`: Align3GR's IDs for items and users, from what is said of them and from what they did."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from trl_rec.data import RecDataset
from trl_rec.semantic_ids.card import IdCodes, code_use, make_card
from trl_rec.semantic_ids.collisions import number_within_group, repair_last_level
from trl_rec.semantic_ids.dual_inputs import DualInputs, dual_inputs
from trl_rec.semantic_ids.dual_model import Tower
from trl_rec.semantic_ids.dual_storage import save_item_tower
from trl_rec.semantic_ids.dual_training import CHANCES, DualTraining
from trl_rec.semantic_ids.sinkhorn import sinkhorn_repair
from trl_rec.semantic_ids.storage import is_written, with_stored_ids, write_ids
from trl_rec.semantic_ids.text_encoders import WORDS, load_text_encoder
from trl_rec.semantic_ids.tokens import check_codes, id_tokens, ids_fingerprint, user_tokens


logger = logging.getLogger(__name__)
SIGNALS = ("both", "text", "behaviour")


@dataclass(frozen=True)
class DualIdsConfig:
    """How [`make_dual_ids`] makes IDs.

    Args:
        text_encoder (`str`, *optional*, defaults to `"words"`): What makes vectors of texts, as in
            [`load_text_encoder`].
        item_text (`str`, *optional*): Text of an item with the names of columns in it, such as `"{title}, {genres}"`.
        signals (`str`, *optional*, defaults to `"both"`): `"both"`, `"text"`, or `"behaviour"` alone.
        behaviour (`str`, *optional*, defaults to `"cooccurrence"`): What tells who chooses an item: vectors of
            `"cooccurrence"`, whose IDs were decoded better, or embeddings of a `"sequence"` encoder, a small one of
            ours.
        users (`bool`, *optional*, defaults to `True`): Whether users get IDs as well.
        align (`bool`, *optional*, defaults to `True`): Whether users and what they choose are aligned (U2I).
        levels (`int`, *optional*, defaults to `3`): Codes of an ID.
        codes (`int`, *optional*, defaults to `256`): Different codes of a level.
        code_width (`int`, *optional*, defaults to `32`): Width of what is quantised.
        behaviour_width (`int`, *optional*, defaults to `64`): Width of the collaborative vectors.
        fused_width (`int`, *optional*, defaults to `128`): Width of the fused (SC) vectors.
        hidden (`int`, *optional*, defaults to `256`): Width of hidden layers.
        alpha (`float`, *optional*, defaults to `0.1`): Weight of the U2I loss while codes are learned.
        without_behaviour (`float`, *optional*, defaults to `0.1`): Share of the items that training shows without
            their behaviour, so that a new item's text alone gives it an ID.
        learning_rate (`float`, *optional*, defaults to `1e-3`): Of AdamW.
        batch_size (`int`, *optional*, defaults to `1024`): Pairs of a user and an item.
        max_epochs (`int`, *optional*, defaults to `30`): Most passes over the pairs, for each part of the training.
        patience (`int`, *optional*, defaults to `3`): Passes without improvement after which a part ends.
        collisions (`str`, *optional*, defaults to `"share"`): As in [`make_semantic_ids`].
        seed (`int`, *optional*, defaults to `0`): Of everything. The same seed gives the same IDs on the same machine.
    """

    text_encoder: str = field(
        default=WORDS, metadata={"help": "words, or a sentence-transformers model by hub id or folder"}
    )
    item_text: str | None = field(
        default=None, metadata={"help": "text of an item, columns in braces: {title}, {genres}"}
    )
    signals: str = field(default="both", metadata={"help": "both, text, or behaviour alone"})
    behaviour: str = field(
        default="cooccurrence", metadata={"help": "what tells of behaviour: cooccurrence or sequence"}
    )
    users: bool = field(default=True, metadata={"help": "users get IDs as well"})
    align: bool = field(default=True, metadata={"help": "align users and what they choose"})
    levels: int = field(default=3, metadata={"help": "codes of an ID"})
    codes: int = field(default=256, metadata={"help": "different codes of a level"})
    code_width: int = field(default=32, metadata={"help": "width of what is quantised"})
    behaviour_width: int = field(default=64, metadata={"help": "width of the collaborative vectors"})
    fused_width: int = field(default=128, metadata={"help": "width of the fused vectors"})
    hidden: int = field(default=256, metadata={"help": "width of hidden layers"})
    alpha: float = field(default=0.1, metadata={"help": "weight of the alignment while codes are learned"})
    without_behaviour: float = field(default=0.1, metadata={"help": "share of items shown without their behaviour"})
    learning_rate: float = field(default=1e-3, metadata={"help": "of the towers"})
    batch_size: int = field(default=1024, metadata={"help": "pairs of a user and an item"})
    max_epochs: int = field(default=30, metadata={"help": "most passes over the pairs, for each part of the training"})
    patience: int = field(default=3, metadata={"help": "passes without improvement after which a part ends"})
    collisions: str = field(
        default="share", metadata={"help": "items that stay alike share an ID, or extend it by a token"}
    )
    seed: int = field(default=0, metadata={"help": "of everything that is drawn"})


def make_dual_ids(dataset: RecDataset, config: DualIdsConfig | None = None, *, overwrite: bool = False) -> RecDataset:
    """Makes the IDs of items and users from texts and the training split, writes them into the dataset's folder, and
    gives back the dataset with them. IDs made before with the same settings are taken as they are.

    Args:
        dataset (`RecDataset`): A dataset that `prepare` made or `load` loaded.
        config (`DualIdsConfig`, *optional*): How they are made.
        overwrite (`bool`, *optional*, defaults to `False`): Replace IDs that were made otherwise, or came with the
            data.
    """
    config = config or DualIdsConfig()
    _check_senseless(config, dataset)
    settings = _settings(config)
    if is_written(dataset, settings, overwrite):
        logger.info("%s has these semantic IDs already", dataset.path)
        return with_stored_ids(dataset)
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
    codes, users = _item_codes(training, config), _user_codes(training)
    semantic_ids = id_tokens(codes.repaired, codes.extra)
    card = make_card(
        codes,
        semantic_ids,
        dataset.catalog,
        inputs.popularity.numpy(),
        settings=settings,
        without_vector=int((~inputs.known).sum()) if config.signals == "behaviour" else 0,
        training=_told(training, users, config, encoder.fingerprint),
    )
    text = inputs.scales.get("item_text")
    user_ids = None if users is None else user_tokens(users)
    hashes = {"text_encoder_hash": encoder.fingerprint, "fingerprint": ids_fingerprint(semantic_ids, user_ids)}
    save_item_tower(dataset.path, training.item_tower, shape, text, text_encoder=config.text_encoder, hashes=hashes)
    write_ids(dataset, semantic_ids, card, user_ids=user_ids)
    return with_stored_ids(dataset)


def has_dual_ids(dataset: RecDataset, config: DualIdsConfig) -> bool:
    """Whether the dataset's folder holds the IDs that [`make_dual_ids`] makes with this configuration."""
    return is_written(dataset, _settings(config), overwrite=True)


def _settings(config: DualIdsConfig) -> dict[str, Any]:
    return {"method": "dual", **asdict(config)}


def _train(inputs: DualInputs, config: DualIdsConfig) -> tuple[DualTraining, dict[str, int]]:
    """The training, done, and the shape of the items' tower."""
    sizes = {"hidden": config.hidden, "width": config.fused_width, "code_width": config.code_width}
    shape = {"inputs": inputs.items(torch.zeros(1, dtype=torch.int64)).shape[1], **sizes}
    shape |= {"levels": config.levels, "codes": config.codes}
    of_users = inputs.users(torch.zeros(1, dtype=torch.int64)).shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        item_tower = Tower(**shape)
        user_tower = Tower(**{**shape, "inputs": of_users}) if config.users else None
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
    tower, rows = training.item_tower, torch.arange(len(training.inputs.known))
    found = tower.quantize.assign(training.latents(tower, training.fused_items(rows)))
    spread = sinkhorn_repair(found.codes, found.last_residuals, found.codebooks[-1])
    repaired = repair_last_level(spread, found.last_residuals, found.codebooks[-1])
    extra = number_within_group(repaired) if config.collisions == "extend" else torch.full((len(rows),), -1)
    return IdCodes(found.codes, repaired, extra, found.errors, config.codes, spread)


@torch.no_grad()
def _user_codes(training: DualTraining) -> Tensor | None:
    """Users may share an ID: it is a cohort's."""
    tower = training.user_tower
    if tower is None:
        return None
    users = torch.arange(len(training.inputs.mask))
    return tower.quantize.assign(training.latents(tower, training.fused_users(users))).codes


@torch.no_grad()
def _told(
    training: DualTraining, users: Tensor | None, config: DualIdsConfig, text_encoder_hash: str
) -> dict[str, Any]:
    """What the card tells of the training."""
    inputs = training.inputs
    held_out = training.held_out()
    return {
        "text_encoder": config.text_encoder if config.signals != "behaviour" else None,
        "text_encoder_hash": text_encoder_hash,
        "rebuilding_error": round(training.lost(), 4),
        "u2i_accuracy": None if held_out is None else round(held_out.accuracy, 4),
        "u2i_pairs": 0 if held_out is None else held_out.pairs,
        "u2i_others": CHANCES,
        "u2i_chance": None if held_out is None else round(held_out.chance, 4),
        "num_users": len(inputs.mask),
        "distinct_users": None if users is None else round(len(users.unique(dim=0)) / len(users), 4),
        "user_levels": [] if users is None else [code_use(column, config.codes) for column in users.unbind(1)],
        "curve": training.curve,
    }


def _check_senseless(config: DualIdsConfig, dataset: RecDataset) -> None:
    check_codes(asdict(config), len(dataset.catalog))
    if config.signals not in SIGNALS:
        raise ValueError(f"unknown signals {config.signals!r}; choose one of {', '.join(SIGNALS)}")
    if config.behaviour not in ("cooccurrence", "sequence"):
        raise ValueError(f"unknown behaviour {config.behaviour!r}; choose cooccurrence or sequence")
    for name in ("code_width", "behaviour_width", "fused_width", "hidden", "batch_size", "max_epochs", "patience"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: give a number from 1")
    if config.behaviour == "sequence" and config.behaviour_width % 2:
        raise ValueError(f"behaviour_width={config.behaviour_width} must be a multiple of 2: two heads read it")
    if not 0 <= config.without_behaviour < 1:
        raise ValueError(f"without_behaviour={config.without_behaviour} is a share of the items, from 0 to below 1")
    _check_inert(config)


def _check_inert(config: DualIdsConfig) -> None:
    """Raises where an option is set that another one leaves without effect."""
    inert = {
        f"signals={config.signals!r}": {
            "both": (),
            "text": ("behaviour", "behaviour_width", "without_behaviour"),
            "behaviour": ("text_encoder", "item_text", "without_behaviour"),
        }[config.signals],
        "users=False": () if config.users else ("align", "alpha"),
        "align=False": () if config.align else ("alpha",),
    }
    defaults = asdict(DualIdsConfig())
    for why, names in inert.items():
        for name in names:
            if getattr(config, name) != defaults[name]:
                raise ValueError(f"{name}={getattr(config, name)!r} has no effect with {why}; leave it out")
