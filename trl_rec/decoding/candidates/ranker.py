"""A run folder of [`AlroTrainer`] puts candidates in order: model, tokenizer, catalogue and settings are all in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.decoding.candidates.ranking import rank_candidates
from trl_rec.decoding.recommender import Recommendation
from trl_rec.decoding.run_folder import local_folder, read_settings, write_settings
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
        path = local_folder(folder)
        if not (path / SETTINGS).is_file():
            raise ValueError(f"{folder} is no run folder of AlroTrainer ({SETTINGS} is missing); name one")
        settings = read_settings(path / SETTINGS)
        catalog, tokenizer = ItemCatalog.load(path / "catalog"), load_tokenizer(path)
        prompt_format = RatedPromptFormat.for_catalog(
            catalog, tokenizer, settings.pop("ratings"), **settings.pop("prompt")
        )
        return cls(load_model(path, **options), tokenizer, catalog, prompt_format, settings)

    def rank(
        self, history: Sequence[str], ratings: Sequence[float], candidates: Sequence[str]
    ) -> list[Recommendation]:
        """The candidates, the most preferred first; they are shown in the order in which they are given.

        Args:
            history: Ids of rated items, oldest first. What the prompt has no room for is the oldest of them, but one
                at least has to fit.
            ratings: Their ratings. One that training did not see is written as the nearest that it saw.
            candidates: Ids of different items, two or more; as many as there are letters, where letters name them.
        """
        self._refuse(history, ratings, candidates)
        indices = self.catalog.index_of(list(candidates))
        prompt, names = self._prompt(history, ratings, indices)
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        ranked = rank_candidates(
            self.model,
            inputs,
            names,
            torch.ones_like(names, dtype=torch.bool),
            single_pass=self.settings["single_pass"],
        )
        found = zip(indices[ranked.order[0].cpu().numpy()].tolist(), ranked.scores[0].tolist(), strict=True)
        return [Recommendation(self.catalog.ids[item], self.catalog.titles[item], score) for item, score in found]

    def _prompt(self, history: Sequence[str], ratings: Sequence[float], indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """The prompt `(1, P)`, and the candidates' names `(1, m)`."""
        shown, names = self.prompt_format.show(
            Ragged.from_lists([indices.tolist()]), Ragged.from_lists([range(len(indices))])
        )
        max_length, most = self.settings["max_length"], self.settings["max_history"] or len(history)
        before = Ragged.from_lists([self.catalog.index_of(list(history)) if len(history) else []]).tail(most)
        room = None if max_length is None else max_length - shown.lengths - len(indices)
        told = self.prompt_format.encode_histories(before, Ragged.from_lists([ratings], float).tail(most), room)
        left_out = len(history) > 0 and told.lengths[0] == len(self.prompt_format.prompt_head)
        if room is not None and (left_out or told.lengths[0] > room[0]):
            raise ValueError(
                f"{len(indices)} candidates and their order take {shown.lengths[0] + len(indices)} of the {max_length} tokens "
                "of max_length, and what is left has no room for a rated item; give fewer candidates"
            )
        prompt, tokens = (torch.from_numpy(part.padded()) for part in (join(told, shown), names))
        return prompt, tokens

    def _refuse(self, history: Sequence[str], ratings: Sequence[float], candidates: Sequence[str]) -> None:
        if len(history) != len(ratings):
            raise ValueError(
                f"there are {len(history)} items in the history and {len(ratings)} ratings; give one for each"
            )
        finite = np.isfinite(np.array(ratings, float))
        if not finite.all():
            place = int(np.flatnonzero(~finite)[0])
            raise ValueError(f"the rating of {history[place]!r} is {ratings[place]}; leave out what is not rated")
        if len({*candidates}) < max(2, len(candidates)):
            raise ValueError("give two candidates or more, all different")
        letters = len(self.prompt_format.letters)
        if letters and len(candidates) > letters:
            raise ValueError(f"there are {len(candidates)} candidates and {letters} letters to name them; give fewer")


def save_ranker(folder: str | Path, catalog: ItemCatalog, settings: dict[str, Any]) -> None:
    """Writes what [`CandidateRanker`] needs beside a saved model and tokenizer."""
    catalog.save(Path(folder) / "catalog")
    write_settings(Path(folder) / SETTINGS, settings)
