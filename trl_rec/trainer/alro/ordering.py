"""Defines the mixin for trainers of models that order rated candidates. It adds ranking metrics to evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_rec.compat import unwrapped_for_generation
from trl_rec.data.dataset import at_most, split_rows
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.decoding.candidates.ranker import save_ranker
from trl_rec.evaluation.cost import seconds_per_user
from trl_rec.evaluation.graded.ranking import RankedLists, rank_rated_rows
from trl_rec.evaluation.graded.results import evaluate_orders
from trl_rec.evaluation.kept.finished_rows import FinishedRows
from trl_rec.items import ItemCatalog
from trl_rec.trainer.alro.config import AlroConfig
from trl_rec.trainer.alro.rows import RATED, ranked_lists, rating_values, training_lists
from trl_rec.trainer.base.checks import check_processes
from trl_rec.trainer.base.trainer import NO_RANKING_UNDER_FSDP, EvalSets, RecTrainerMixin, SecondsPerUser, is_split


class CandidateOrderingMixin(RecTrainerMixin):
    """Mixin for trainers of models that order rated candidates.

    Subclasses must call `_set_candidates` before `super().__init__`.

    Attributes:
        ratings (`list[float]`): The ratings that prompts can contain, in ascending order.
        rated_format (`RatedPromptFormat`): Format of the prompts for rated histories and candidates.
    """

    args: AlroConfig
    catalog: ItemCatalog
    ratings: list[float]
    rated_format: RatedPromptFormat

    def _set_candidates(
        self,
        catalog: ItemCatalog,
        processing_class: PreTrainedTokenizerBase,
        args: AlroConfig,
        train_dataset: Dataset,
        eval_dataset: EvalSets | None,
    ) -> None:
        """Sets the catalogue, the ratings, the prompt format, and the splits to evaluate."""
        check_processes(args)
        self.catalog = catalog
        self._eval_sets = eval_dataset
        self.ratings = rating_values(train_dataset)
        self.rated_format = RatedPromptFormat.for_catalog(
            catalog, processing_class, self.ratings, **args.prompt_options
        )

    def _rated_rows(self, dataset: Dataset, args: AlroConfig, dataset_name: str) -> Dataset:
        """Converts the training split to rated lists: a user's rated history, and candidates that the same user rated
        later. Evaluation splits and rows of [`build_rated_rows`] are checked and returned unchanged."""
        if is_split(dataset) and dataset_name == "train":
            return training_lists(dataset, self.rated_format, args)
        if is_split(dataset):
            # Raise errors before training rather than at the first evaluation.
            ranked_lists(at_most(args.max_users, dataset), self.rated_format, args)
            return dataset

        if dataset_name != "train" or not set(dataset.column_names) >= RATED:
            raise ValueError(
                f"the {dataset_name} dataset has the columns {', '.join(dataset.column_names)}; pass a split of a "
                "RecDataset" + (", or rows of build_rated_rows" if dataset_name == "train" else "")
            )
        self.rated_format.check_lengths(split_rows(dataset, "candidates"), args.max_length)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = sorted(RATED)

    def rank(self, split: Dataset, *, keep_in: str | Path | None = None) -> RankedLists:
        """Ranks the candidates of a split. Returns the result of [`rank_rated_rows`] for the rows that
        [`~CandidateOrderingMixin.rows_of`] returns.

        Args:
            split: The split.
            keep_in (*optional*): Output folder in which finished rows are kept, so that an interrupted call can be
                resumed.
        """
        if self.is_fsdp_enabled:
            raise ValueError(NO_RANKING_UNDER_FSDP)
        with unwrapped_for_generation(self.model_wrapped, self.accelerator) as model:
            return rank_rated_rows(
                model,
                self.rows_of(split),
                self.rated_format,
                pad_token_id=self.processing_class.pad_token_id,
                num_orders=self.args.eval_num_orders,
                single_pass=self.args.eval_single_pass,
                batch_size=self.args.per_device_eval_batch_size,
                max_length=self.args.max_length,
                finished=None if keep_in is None else FinishedRows.of_model(keep_in, model),
            )

    def seconds_per_user(self, split: Dataset) -> SecondsPerUser:
        """Estimates how many seconds it takes to rank the candidates of one user."""
        rows = self.rows_of(split)
        numbers = rows.with_format("numpy")[:]["row"]
        lengths = split_rows(rows, "history").lengths
        passes = [lambda some: self.rank(split.select(numbers[some]))]
        batch_size = max(self.args.per_device_eval_batch_size // self.args.eval_num_orders, 1)
        (seconds,) = seconds_per_user(passes, lengths, batch_size)
        return SecondsPerUser(final=seconds, during_training=seconds)

    def rows_of(self, split: Dataset) -> Dataset:
        """Returns the rated lists of a validation or test split. Users whose candidates all have the same rating are
        left out."""
        return ranked_lists(split, self.rated_format, self.args)

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Ranks the candidates of at most `max_users` users of a split and returns the metrics."""
        split = at_most(self.args.max_users, split)
        return evaluate_orders(self.rank(split), self.rows_of(split), ks=self.args.eval_ks).metrics

    def save_settings(self, folder: Path) -> None:
        """Writes the catalogue and `ranker.json`, which [`CandidateRanker`] needs to load the model."""
        settings = {
            "prompt": self.args.prompt_options,
            "ratings": self.ratings,
            "max_length": self.args.max_length,
            "max_history": self.args.max_history,
            "num_candidates": self.args.num_candidates,
            "single_pass": self.args.eval_single_pass,
        }
        save_ranker(folder, self.catalog, settings)

    def card_example(self) -> Sequence[str]:
        """Returns example code that loads the run folder and orders candidates."""
        return (
            "from trl_rec import CandidateRanker",
            "",
            self.card_place,
            "ranker = CandidateRanker.from_pretrained(folder)",
            "ids = ranker.catalog.ids  # replace the ids and ratings by those of a user, oldest first",
            "for item in ranker.rank(history=ids[:2], ratings=[5.0, 1.0], candidates=ids[2:5]):",
            "    print(item.item_id, item.title, item.score)",
        )
