"""A run folder of [`AlroTrainer`] puts candidates in order: model, tokenizer, catalogue and settings are all in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.rated_prompts import RatedPromptFormat
from trl_rec.decoding.candidates import rank_candidates
from trl_rec.decoding.recommender import Recommendation, _local
from trl_rec.items import ItemCatalog
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.ragged import Ragged, join


SETTINGS = "ranker.json"


@dataclass(frozen=True, eq=False)
class CandidateRanker:
    """Puts candidates in the order in which a user with a rated history would like them.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        catalog (`ItemCatalog`): The items.
        prompt_format (`RatedPromptFormat`): How histories and candidates are written.
        settings (`dict`): `max_length`, `max_history`, `single_pass`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    catalog: ItemCatalog
    prompt_format: RatedPromptFormat
    settings: dict[str, Any]

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> CandidateRanker:
        """The ranker in a run folder, or in a hub repository that was pushed from one.

        Args:
            folder: The folder or hub id.
            options: Passed to the model's `from_pretrained` (`dtype`, `device_map`, ...).
        """
        path = _local(folder)
        if not (path / SETTINGS).is_file():
            raise ValueError(f"{folder} is no run folder of AlroTrainer ({SETTINGS} is missing); name one")
        settings = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        catalog, tokenizer = ItemCatalog.load(path / "catalog"), load_tokenizer(path)
        prompt_format = RatedPromptFormat.for_catalog(catalog, tokenizer, settings.pop("ratings"), **settings.pop("prompt"))
        return cls(load_model(path, **options), tokenizer, catalog, prompt_format, settings)

    def rank(self, history: Sequence[str], ratings: Sequence[float], candidates: Sequence[str]) -> list[Recommendation]:
        """The candidates, the most preferred first; they are shown in the order in which they are given.

        Args:
            history: Ids of rated items, oldest first.
            ratings: Their ratings.
            candidates: Ids of different items, two or more.
        """
        if len(history) != len(ratings):
            raise ValueError(f"there are {len(history)} items in the history and {len(ratings)} ratings; give one for each")
        if len({*candidates}) < max(2, len(candidates)):
            raise ValueError("give two candidates or more, all different")
        indices = self.catalog.index_of(list(candidates))
        shown, names = self.prompt_format.show(Ragged.from_lists([indices]), Ragged.from_lists([range(len(indices))]))
        max_length, most = self.settings["max_length"], self.settings["max_history"] or len(history)
        before = Ragged.from_lists([self.catalog.index_of(list(history)) if len(history) else []]).tail(most)
        room = None if max_length is None else max_length - shown.lengths - len(indices)
        told = self.prompt_format.encode_histories(before, Ragged.from_lists([ratings], float).tail(most), room)
        prompt, tokens = (torch.from_numpy(part.padded()) for part in (join(told, shown), names))
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        ranked = rank_candidates(
            self.model, inputs, tokens, torch.ones_like(tokens, dtype=torch.bool), single_pass=self.settings["single_pass"]
        )
        found = zip(indices[ranked.order[0].cpu().numpy()].tolist(), ranked.scores[0].tolist(), strict=True)
        return [Recommendation(self.catalog.ids[item], self.catalog.titles[item], score) for item, score in found]


def save_ranker(folder: str | Path, catalog: ItemCatalog, settings: dict[str, Any]) -> None:
    """Writes what [`CandidateRanker`] needs beside a saved model and tokenizer."""
    catalog.save(Path(folder) / "catalog")
    (Path(folder) / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
