"""Loads a model that [`AlroTrainer`] has trained, and orders candidates with it.

The run folder of the trainer contains the model, the tokenizer, the catalogue and the settings.
"""

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
from trl_rec.decoding.recommended import Recommendation
from trl_rec.decoding.run_folder import check_keys, load_run, local_folder, save_run_settings
from trl_rec.items import ItemCatalog
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.ragged import Ragged, join


SETTINGS = "ranker.json"


@dataclass(frozen=True, eq=False)
class CandidateRanker:
    """Orders candidates by how much a user with a rated history would like them. Make it with `from_pretrained`.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        catalog (`ItemCatalog`): The items.
        prompt_format (`RatedPromptFormat`): Encodes histories and candidates as prompts.
        settings (`dict`): The values of `max_length` and `max_history` (see [`rank`]), and of `single_pass` (see
            [`rank_candidates`]).
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    catalog: ItemCatalog
    prompt_format: RatedPromptFormat
    settings: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, catalog: ItemCatalog | str | Path | None = None, **options: Any
    ) -> CandidateRanker:
        """Loads the ranker from a run folder, or from a hub repository that was pushed from one.

        Args:
            folder (`str` or `Path`): The folder or hub id.
            catalog (*optional*): The items that the model was trained with, or their dataset folder. Needed only if
                the folder lacks the catalogue (see [`Recommender.from_pretrained`]).
            options: Passed to the model's `from_pretrained` (`dtype`, `device_map`, ...).
        """
        path = local_folder(folder)
        if not (path / SETTINGS).is_file():
            raise ValueError(
                f"{folder} is not a run folder of AlroTrainer ({SETTINGS} is missing); pass the output folder of "
                "AlroTrainer"
            )

        settings, items = load_run(path, SETTINGS, catalog)
        check_keys(path / SETTINGS, settings, ("ratings", "max_length", "max_history", "single_pass"))
        tokenizer = load_tokenizer(path)
        prompt_format = RatedPromptFormat.for_catalog(
            items, tokenizer, settings.pop("ratings"), **settings.pop("prompt")
        )
        return cls(load_model(path, **options), tokenizer, items, prompt_format, settings)

    def rank(
        self, history: Sequence[str], ratings: Sequence[float], candidates: Sequence[str]
    ) -> list[Recommendation]:
        """Orders the candidates. The prompt lists them in the given order.

        Args:
            history (list of `str`): Ids of rated items, oldest first. Only the newest `max_history` items are used. Of
                these, the oldest are left out until the prompt and the answer fit into `max_length`. Unless the
                history is empty, at least one item must fit.
            ratings (list of `float`): The rating of each item in the history. Ratings that do not occur in the
                training data are written as the nearest rating that occurs there.
            candidates (list of `str`): Ids of two or more different items. If the prompt names the candidates by
                letters, there may be at most as many candidates as letters.

        Returns:
            One [`Recommendation`] per candidate, most preferred first. The scores are those of [`RankedCandidates`].
        """
        self._check(history, ratings, candidates)
        indices = self.catalog.index_of(list(candidates))
        prompt, names = self._prompt(history, ratings, indices)

        ranked = rank_candidates(
            self.model,
            {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)},
            names,
            torch.ones_like(names, dtype=torch.bool),
            single_pass=self.settings["single_pass"],
        )
        ranks = zip(indices[ranked.order[0].cpu().numpy()].tolist(), ranked.scores[0].tolist(), strict=True)
        return [Recommendation(self.catalog.ids[item], self.catalog.titles[item], score) for item, score in ranks]

    def _prompt(self, history: Sequence[str], ratings: Sequence[float], indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns the prompt, `(1, P)`, and the token that names each candidate, `(1, m)`."""
        # 1. Write the candidates. The tokens that remain of `max_length` are left for the history.
        count = len(indices)
        shown, names = self.prompt_format.encode_candidates(
            Ragged.from_lists([indices.tolist()]), Ragged.from_lists([range(count)])
        )
        max_length = self.settings["max_length"]
        room = None if max_length is None else max_length - shown.lengths - count

        # 2. Write as much of the history as fits.
        most = self.settings["max_history"] or len(history)
        items = self.catalog.index_of(list(history)).tolist() if len(history) else []
        written = self.prompt_format.encode_histories(
            Ragged.from_lists([items]).tail(most), Ragged.from_lists([ratings], float).tail(most), room
        )
        nothing_fits = len(history) > 0 and written.lengths[0] == len(self.prompt_format.prompt_head)
        if room is not None and (nothing_fits or written.lengths[0] > room[0]):
            needed = len(self.prompt_format.prompt_head) + shown.lengths[0] + count
            reason = "leaves too little room for a rated item" if len(history) else "is too small"
            raise ValueError(
                f"with {count} candidates and no history, the prompt and the answer take {needed} tokens, so "
                f"max_length {max_length} {reason}; give fewer candidates"
            )
        return torch.from_numpy(join(written, shown).padded()), torch.from_numpy(names.padded())

    def _check(self, history: Sequence[str], ratings: Sequence[float], candidates: Sequence[str]) -> None:
        """Raises ValueError if the arguments of `rank` are invalid."""
        if len(history) != len(ratings):
            raise ValueError(
                f"history has {len(history)} items, but ratings has {len(ratings)} values; give one rating per item"
            )
        finite = np.isfinite(np.array(ratings, float))
        if not finite.all():
            place = int(np.flatnonzero(~finite)[0])
            raise ValueError(
                f"the rating of {history[place]!r} is {ratings[place]}, which is not a finite number; leave out items "
                "without a rating"
            )

        if len({*candidates}) < max(2, len(candidates)):
            raise ValueError("candidates must contain at least two ids, and no id twice; correct the list")
        letters = len(self.prompt_format.letters)
        if letters and len(candidates) > letters:
            raise ValueError(
                f"there are {len(candidates)} candidates, but only {letters} letters to name them; give fewer "
                "candidates"
            )


def save_ranker(folder: str | Path, catalog: ItemCatalog, settings: dict[str, Any]) -> None:
    """Saves what [`CandidateRanker`] needs in addition to the saved model and tokenizer."""
    save_run_settings(folder, SETTINGS, catalog, settings)
