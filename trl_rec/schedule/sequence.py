"""Provides the baseline `sequence`, a small transformer over item tokens that is trained with cross-entropy.

The model is trained once on the training split, kept in the user's cache folder, and loaded by later calls. The name
of its folder is a hash of the training and validation rows, the number of items, the recipe and the version of this
package. During training, the folder contains checkpoints. If the process is killed, the next call continues from the
newest checkpoint. Training counts as complete only if the folder contains a mark, a file that `write_mark` writes
last. The mark contains the size and a hash of each weight file, so that files that were removed, cut short or replaced
are detected.

The folder is a run folder: its `recipe.yaml` trains the same model with `trl-rec bear`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from datasets import Dataset

from trl_rec.data.dataset import RecDataset
from trl_rec.data.item_rows import Rows, item_rows
from trl_rec.data.prompts import PromptFormat
from trl_rec.data.readers.fetching import cache_folder
from trl_rec.evaluation.policy import Policy
from trl_rec.evaluation.rankings import Rankings
from trl_rec.files import clean_up, exclusive
from trl_rec.items import TokenTrie
from trl_rec.models.loading import load_model, load_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, SEED
from trl_rec.schedule.sequence_rule import sequence_recipe
from trl_rec.schedule.sequence_training import METRIC, describe, train_sequence
from trl_rec.trainer.base.saving.checkpoints import find_changed, read_mark
from trl_rec.trainer.base.saving.fingerprint import row_entries
from trl_rec.version import __version__


if TYPE_CHECKING:
    from trl_rec.items.twins import Twins

logger = logging.getLogger(__name__)


class SequenceBaseline:
    """Recommends the most likely next items according to a small sequence model that is trained on the training split.

    The model resembles SASRec: it is a causal transformer with one token per item, trained with cross-entropy at every
    position. Its checkpoint is chosen by NDCG@10 on the validation split. The caller does not have to choose any
    sizes, because [`sequence_recipe`] derives them and the number of steps from the data.

    `fit` sets the attributes `recipe` and `folder`. `recipe` contains the settings with which `trl-rec bear` trains
    the same model, except `dataset` and `output_dir`. `folder` is the folder of the trained model.

    Args:
        seed (`int`, *optional*, defaults to `0`): Seed of the training.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether the items of a user's history are excluded
            from the recommendations when checkpoints are compared.
        cache (`Path`, *optional*): Folder for the trained models. Defaults to `sequence` in the cache folder of the
            user.
    """

    def __init__(self, seed: int = 0, *, exclude_history: bool = True, cache: str | Path | None = None) -> None:
        SEED.check("seed", seed)
        self.seed = seed
        self.exclude_history = exclude_history
        self.cache = cache_folder() / "sequence" if cache is None else Path(cache)
        self.num_items = 0

    def fit(self, dataset: RecDataset) -> SequenceBaseline:
        """Trains the model, or loads it if it was trained before. Only a single process can train it.

        Args:
            dataset (`RecDataset`): The dataset, with any surface. The test split is not used.
        """
        if not len(dataset.validation):
            raise ValueError(
                "the baseline 'sequence' chooses its checkpoint on the validation split, which has no rows; remove "
                "'sequence' from `baselines`, or prepare the data with more interactions per user"
            )
        dataset = dataset.with_surface("item_token")
        self.recipe = sequence_recipe(dataset, seed=self.seed, exclude_history=self.exclude_history)
        self.folder = self.cache / _fingerprint(dataset, self.recipe)

        # Load the model, or train it. Loading needs no lock, so several processes can load it at the same time.
        policy = _read(self.folder, dataset, self.recipe)
        if policy is None:
            if PartialState().num_processes > 1:
                raise ValueError(
                    "only a single process can train the baseline 'sequence'; to train and keep the model, first run "
                    "'trl-rec evaluate --baselines sequence' with the same dataset, seed and exclude_history, but "
                    "without 'accelerate launch'"
                )
            with exclusive(self.folder):
                clean_up(self.folder)
                train_sequence(self.folder, dataset, self.recipe)
            policy = _read(self.folder, dataset, self.recipe)
            assert policy is not None, f"{self.folder} was changed by another process while it was being written"
        self.policy = policy
        self.num_items = len(dataset.catalog)
        return self

    def rank(self, histories: Rows, top_k: int, exclude_history: bool, twins: Twins | None = None) -> Rankings:
        """Returns the best items and their log-probabilities, `(num_users, top_k)`.

        For the arguments, see [`RandomBaseline.rank`].
        """
        COUNT.check("top_k", top_k)
        rows = self._rows(histories)
        prompt_format = replace(self.policy.prompt_format, twins=twins)
        policy = replace(self.policy, prompt_format=prompt_format, exclude_history=exclude_history)
        return policy.rank(rows, top_k)

    def score(self, histories: Rows, items: Ragged) -> np.ndarray:
        """Returns the log-probabilities of the given items of each row, `(len(items.values),)`."""
        rows = self._rows(histories)
        return self.policy.score(rows, items) if len(items.values) else np.zeros(0)

    def _rows(self, histories: Rows) -> Dataset:
        """Returns the histories as rows of a split."""
        if self.num_items == 0:
            raise ValueError("the baseline is not fitted; call fit with a dataset first")
        return Dataset(pa.table({"history": item_rows(histories, "histories", self.num_items).to_arrow()}))


def _fingerprint(dataset: RecDataset, recipe: dict[str, Any]) -> str:
    """Returns a hash of everything that the trained model depends on, except the versions of dependencies."""
    splits = {"train": dataset.train, "validation": dataset.validation}
    entries = {
        "version": __version__,
        "number of items": len(dataset.catalog),
        **{name: row_entries(rows, ("history", "targets")) for name, rows in splits.items()},
        "recipe": recipe,
    }
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]


def _read(folder: Path, dataset: RecDataset, recipe: dict[str, Any]) -> Policy | None:
    """Returns the trained model in a folder. Returns None if there is none or, after a warning, if it is damaged."""
    mark = read_mark(folder)
    if mark is None:
        return None
    damage = find_changed(folder, mark) if METRIC in mark.run else "its file 'complete' contains no metric"
    if damage is None:
        try:
            policy = _load(folder, dataset, recipe)
        except ValueError as error:  # a damaged file that the mark does not list, such as config.json
            damage = str(error)
        else:
            logger.info("baseline sequence: loaded the trained model from %s (%s)", folder, describe(mark.run))
            return policy
    logger.warning("baseline sequence: %s is damaged (%s), so the model is trained again", folder, damage)
    return None


def _load(folder: Path, dataset: RecDataset, recipe: dict[str, Any]) -> Policy:
    """Returns the trained model as a policy that uses the prompt format and maximum length of training."""
    tokenizer = load_tokenizer(folder)
    return Policy(
        load_model(folder).to(PartialState().device),
        PromptFormat.for_catalog(dataset.catalog, tokenizer),
        TokenTrie.from_catalog(dataset.catalog, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        batch_size=recipe["per_device_eval_batch_size"],
        max_length=recipe["max_length"],
    )
