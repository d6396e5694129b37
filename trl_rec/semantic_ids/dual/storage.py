"""Saves the trained item tower (the model that computes the semantic IDs of items) in a dataset folder, and loads it
to compute semantic IDs for new items.

`id_encoder.safetensors` contains the weights of the tower and the scaling of the text vectors. `id_encoder.json`
contains the shape of the tower, the name of the text encoder, and hashes of the text encoder and of the IDs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_rec.files import atomic_file, write_json
from trl_rec.printing import first_line
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.dual.inputs import Scaling
from trl_rec.semantic_ids.dual.tower import Tower
from trl_rec.semantic_ids.storage import read_ids_card
from trl_rec.semantic_ids.text_encoders import TextEncoder, load_text_encoder
from trl_rec.semantic_ids.tokens import id_tokens


NAME = "id_encoder"
REMEDY = "make the IDs again with trl-rec tokenize --method dual --overwrite true"


@dataclass(frozen=True, eq=False)
class ItemIdEncoder:
    """Computes semantic IDs for new items from their texts, without further training.

    Args:
        tower (`Tower`): The item tower.
        encoder (`TextEncoder`): The text encoder that the tower was trained with.
        scaling (`Scaling`): The scaling of the text vectors.
        behaviour_width (`int`): Width of the part of the tower's input that contains the behaviour vector, which is
            computed from interactions. This part is zeros for new items.
    """

    tower: Tower
    encoder: TextEncoder
    scaling: Scaling
    behaviour_width: int

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ItemIdEncoder:
        """Loads the item tower that [`make_dual_ids`] wrote into a dataset folder, and its text encoder."""
        # 1. Check that the folder contains an item tower, and that the tower belongs to the IDs in the folder.
        file = Path(folder) / f"{NAME}.json"
        if not file.is_file():
            raise ValueError(f"{folder} contains no trained item tower ({NAME}.json is missing); {REMEDY}")
        description = _read_description(file)
        card = read_ids_card(folder)
        if card is None or card["fingerprint"] != description["fingerprint"]:
            raise ValueError(f"{file} does not belong to the semantic IDs in the folder; {REMEDY}")

        # 2. Load the text encoder, and check that the tower was trained with it.
        if description["text_encoder"] is None:
            raise ValueError(
                f"the semantic IDs of {folder} were learned from behaviour alone, which a new item does not have; "
                f"{REMEDY} and --signals both (or text)"
            )
        encoder = load_text_encoder(description["text_encoder"])
        if encoder.fingerprint != description["text_encoder_hash"]:
            raise ValueError(
                f"the text encoder {description['text_encoder']!r} has changed since the IDs were made; restore the "
                f"original encoder, or {REMEDY}"
            )

        # 3. Load the tower.
        file = file.with_suffix(".safetensors")
        try:
            weights = load_file(file)
            scaling = Scaling(weights.pop("text_mean"), weights.pop("text_scale"))
            tower = Tower(**description["tower"])
            tower.load_state_dict(weights)
            behaviour_width = description["tower"]["inputs"] - len(scaling.mean)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged or belongs to other IDs ({first_line(error)}); {REMEDY}") from error
        return cls(tower.eval(), encoder, scaling, behaviour_width)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Returns the codes of the items that `texts` describe, `(len(texts), levels)`. Codes are the numbers of which
        an ID consists, one per level.

        The texts must have the same format as in training. The function [`item_texts`] makes such texts, given the
        template that was used in training (the field `item_text` of [`DualIdsConfig`]).
        """
        text_vectors = self.scaling(self.encoder(texts))
        no_behaviour = text_vectors.new_zeros(len(text_vectors), self.behaviour_width)
        fused = self.tower.fuse(torch.cat([text_vectors, no_behaviour], 1))
        return self.tower.quantize.assign(self.tower.encode(fused)).codes

    def tokens(self, texts: Sequence[str]) -> Ragged:
        """Returns the tokens of the codes from [`ItemIdEncoder.encode`], one row per text.

        Several new items may get the same ID, and a new item may get the ID of a known item. If the IDs were made with
        `collisions="extend"`, some known items have an additional token in their ID, so the ID of a new item may be a
        prefix of a known ID.
        """
        codes = self.encode(texts)
        return id_tokens(codes, torch.full((len(codes),), -1))


def _read_description(file: Path) -> dict[str, Any]:
    """Reads the JSON file that `save_item_tower` wrote."""
    names = ("tower", "text_encoder", "text_encoder_hash", "fingerprint")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        return {name: description[name] for name in names}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); {REMEDY}") from error


def save_item_tower(
    folder: Path,
    tower: Tower,
    shape: dict[str, int],
    scaling: Scaling | None,
    *,
    text_encoder: str,
    hashes: dict[str, str],
) -> None:
    """Writes the weights of the item tower, then the description that [`ItemIdEncoder.from_pretrained`] reads.

    Args:
        folder (`Path`): The dataset folder.
        tower (`Tower`): The item tower.
        shape (`dict`): The constructor arguments of the tower.
        scaling (`Scaling`, *optional*): The scaling of the text vectors. None if the IDs were learned from behaviour
            alone.
        text_encoder (`str`): Name or path of the text encoder, as in [`load_text_encoder`].
        hashes (`dict`): The hashes `"text_encoder_hash"` (of the text encoder) and `"fingerprint"` (of the IDs).
    """
    weights = tower.state_dict()
    if scaling is not None:
        weights |= {"text_mean": scaling.mean, "text_scale": scaling.scale}
    description = {"tower": shape, "text_encoder": None if scaling is None else text_encoder, **hashes}

    # Delete the old description first, so that it is never loaded with the new weights if the process is killed.
    (folder / f"{NAME}.json").unlink(missing_ok=True)
    with atomic_file(folder / f"{NAME}.safetensors") as temporary:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary)
    write_json(folder / f"{NAME}.json", description)
