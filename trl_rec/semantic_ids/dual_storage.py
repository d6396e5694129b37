"""The items' trained tower in a dataset folder, `id_encoder.safetensors` and `id_encoder.json`, which encodes new
items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trl_rec.files import atomic_file, write_json
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.dual_inputs import Block
from trl_rec.semantic_ids.dual_model import Tower
from trl_rec.semantic_ids.storage import read_ids_card
from trl_rec.semantic_ids.text_encoders import TextEncoder, load_text_encoder
from trl_rec.semantic_ids.tokens import id_tokens


NAME = "id_encoder"


@dataclass(frozen=True, eq=False)
class ItemIdEncoder:
    """Gives an item that training did not know the semantic ID that its text asks for; nothing is trained.

    Args:
        tower (`Tower`): The items' tower.
        encoder (`TextEncoder`): What the texts were encoded by.
        text (`Block`): The scale of the texts' vectors.
        behaviour_width (`int`): Width of what stays zero.
    """

    tower: Tower
    encoder: TextEncoder
    text: Block
    behaviour_width: int

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ItemIdEncoder:
        """The encoder that [`make_dual_ids`] left in a dataset folder."""
        file = Path(folder) / f"{NAME}.json"
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no trained semantic IDs ({NAME}.json is missing); make them with make_dual_ids"
            )
        told = json.loads(file.read_text(encoding="utf-8"))
        card = read_ids_card(folder)
        if card is None or card["fingerprint"] != told["fingerprint"]:
            raise ValueError(
                f"{file} belongs to other semantic IDs than the folder holds now; make them again with make_dual_ids"
            )
        if told["text_encoder"] is None:
            raise ValueError(
                f"the semantic IDs of {folder} are made from behaviour alone, which a new item has none of"
            )
        encoder = load_text_encoder(told["text_encoder"])
        if encoder.fingerprint != told["text_encoder_hash"]:
            raise ValueError(
                f"{told['text_encoder']} is not the text encoder that the IDs were made with; its weights differ"
            )
        weights = load_file(file.with_suffix(".safetensors"))
        text = Block(weights.pop("text_mean"), weights.pop("text_scale"))
        tower = Tower(**told["tower"])
        tower.load_state_dict(weights)
        return cls(tower.eval(), encoder, text, told["tower"]["inputs"] - len(text.mean))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """The codes `(len(texts), levels)` of items described as [`item_texts`] does it."""
        words = self.text(self.encoder(texts))
        inputs = torch.cat([words, words.new_zeros(len(words), self.behaviour_width)], 1)
        return self.tower.quantize.assign(self.tower.encode(self.tower.fuse(inputs))).codes

    def tokens(self, texts: Sequence[str]) -> Ragged:
        """The same as tokens. Several items may get one ID, also one that a known item has; with `collisions: extend`
        such a known item's ID goes on, so that the new one is its beginning."""
        codes = self.encode(texts)
        return id_tokens(codes, torch.full((len(codes),), -1))


def save_item_tower(
    folder: Path, tower: Tower, shape: dict[str, int], text: Block | None, *, text_encoder: str, hashes: dict[str, str]
) -> None:
    """Writes both files, the description last. `text` is None where the IDs are made from behaviour alone; `hashes`
    are those of the text encoder (`text_encoder_hash`) and of the IDs (`fingerprint`)."""
    (folder / f"{NAME}.json").unlink(missing_ok=True)
    weights = tower.state_dict() | ({} if text is None else {"text_mean": text.mean, "text_scale": text.scale})
    told = {"tower": shape, "text_encoder": text_encoder if text is not None else None, **hashes}
    with atomic_file(folder / f"{NAME}.safetensors") as temporary:
        save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary)
    write_json(folder / f"{NAME}.json", told)
