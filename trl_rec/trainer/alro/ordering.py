"""The capability to order a few rated candidates per user, measured at each evaluation."""

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
from trl_rec.evaluation.graded.ranking import RankedLists, rank_rated_rows
from trl_rec.evaluation.graded.results import evaluate_orders
from trl_rec.items import ItemCatalog
from trl_rec.trainer.alro.config import AlroConfig
from trl_rec.trainer.alro.rows import RATED, ranked_lists, rating_values, training_lists
from trl_rec.trainer.base.checks import check_processes
from trl_rec.trainer.base.trainer import NO_RANKING_UNDER_FSDP, EvalSets, RecTrainerMixin, is_split


class CandidateOrderingMixin(RecTrainerMixin):
    """A trainer whose model orders rated candidates. The class calls `_set_candidates` before its parent's `__init__`.

    Attributes:
        ratings (`list[float]`): The ratings that prompts can contain, ascending.
        rated_format (`RatedPromptFormat`): How rated histories and candidates become prompts.
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
        """Sets the catalogue, the ratings that occur, the prompts, and the splits to order at each evaluation."""
        check_processes(args)
        self.catalog = catalog
        self._eval_sets = eval_dataset
        self.ratings = rating_values(train_dataset)
        self.rated_format = RatedPromptFormat.for_catalog(
            catalog, processing_class, self.ratings, **args.prompt_options
        )

    def _rated_rows(self, dataset: Dataset, args: AlroConfig, dataset_name: str) -> Dataset:
        """The training split becomes rated lists. Evaluation splits stay as they are, once they are known to suit."""
        if is_split(dataset) and dataset_name == "train":
            return training_lists(dataset, self.rated_format, args)
        if is_split(dataset):
            # Raises before training what would otherwise end the run at its first evaluation.
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

    def rank(self, split: Dataset) -> RankedLists:
        """The place of each candidate of a split, as [`rank_rated_rows`] returns them for the rows of
        [`~CandidateOrderingMixin.rows_of`]."""
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
            )

    def rows_of(self, split: Dataset) -> Dataset:
        """The rated lists of a validation or test split. A user whose candidates are all rated alike has no list."""
        return ranked_lists(split, self.rated_format, self.args)

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Metrics of the model's orders for a split's users, at most `max_users` of them."""
        split = at_most(self.args.max_users, split)
        return evaluate_orders(self.rank(split), self.rows_of(split), ks=self.args.eval_ks).metrics

    def save_settings(self, folder: Path) -> None:
        """Writes the catalogue and `ranker.json`, which [`CandidateRanker`] reads."""
        settings = {
            "prompt": self.args.prompt_options,
            "ratings": self.ratings,
            "max_length": self.args.max_length,
            "max_history": self.args.max_history,
            "single_pass": self.args.eval_single_pass,
        }
        save_ranker(folder, self.catalog, settings)

    def card_example(self) -> Sequence[str]:
        """Code that loads the run folder and orders candidates."""
        return (
            "from trl_rec import CandidateRanker",
            "",
            'ranker = CandidateRanker.from_pretrained("path/to/this/folder")',
            "ranker.rank(history=[...], ratings=[...], candidates=[...])",
        )
