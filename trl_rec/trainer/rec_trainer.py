"""What all trainers of this package share, as a mixin over a TRL trainer.

Lists are ranked and measured at each evaluation, each checkpoint is a run folder that recommends by itself, and a run that was
killed resumes from a checkpoint that was written to its end.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl.models import unwrap_model_for_generation

from trl_rec.data.dataset import split_rows
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.recommender import save_recommender
from trl_rec.evaluation import evaluate_rankings, rank_histories
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.trainer.checkpoints import MARK, newest_complete
from trl_rec.trainer.model_card import write_model_card


if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object


class RecTrainerMixin(Base):
    """Goes before a TRL trainer among a class's bases. The class calls `_set_catalog` before its parent's `__init__`.

    Attributes:
        catalog (`ItemCatalog`): The items.
        renormalizes (`bool`): Whether ranking scores are over the legal tokens.
    """

    args: Any
    model: Any
    processing_class: Any
    catalog: ItemCatalog
    renormalizes = True

    def _set_catalog(
        self, catalog: ItemCatalog, processing_class: PreTrainedTokenizerBase, args: Any, eval_dataset: Any
    ) -> None:
        """What follows from a catalogue and a tokenizer, and the split whose users are ranked at each evaluation."""
        self.catalog, self._eval_split = catalog, eval_dataset
        self.prompt_format = PromptFormat.for_catalog(catalog, processing_class, **args.prompt_options)
        self.trie = TokenTrie.from_catalog(catalog, processing_class)
        self._ranked_split: Dataset | None = None

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The parent's metrics and, for a split of a `RecDataset`, those of the ranked lists (`eval_ndcg@10`)."""
        split = self._eval_split if eval_dataset is None else eval_dataset
        self._ranked_split = split if is_split(split) else None
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds the ranking metrics where the loss is, so that logs, callbacks and `metric_for_best_model` all see them."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self._ranked_split is not None:
            ranking = self.rank_and_measure(self._ranked_split)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in ranking.items()}
            output = output._replace(metrics={**(output.metrics or {}), **metrics})
        return output

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Metrics of the model's lists for a split's users, at most `max_eval_users` of them."""
        most = self.args.max_eval_users
        if most is not None and most < len(split):
            split = split.select(np.linspace(0, len(split) - 1, most).round().astype(int))
        ranked = self.rank(split)
        histories, targets = split_rows(split, "history"), split_rows(split, "targets")
        return evaluate_rankings(ranked, targets, ks=self.args.eval_ks, catalog=self.catalog, histories=histories)

    def rank(self, split: Dataset) -> np.ndarray:
        """The model's lists `(num_rows, max(eval_ks))` for a split's users."""
        if self.is_fsdp_enabled:
            raise ValueError("FSDP cannot rank lists during training; evaluate the saved model with trl-rec evaluate")
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            return rank_histories(
                model,
                split_rows(split, "history"),
                self.prompt_format,
                self.trie,
                pad_token_id=self.processing_class.pad_token_id,
                top_k=max(self.args.eval_ks),
                num_beams=self.args.eval_num_beams,
                exclude_history=self.args.eval_exclude_history,
                renormalize=self.renormalizes,
                length_penalty=self.args.eval_length_penalty,
                batch_size=self.args.per_device_eval_batch_size,
                max_length=self.args.max_length,
            )

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """As the parent's; `resume_from_checkpoint=True` takes the newest checkpoint that was written to its end, if any."""
        if resume_from_checkpoint is True:
            folder = newest_complete(self.args.output_dir)
            resume_from_checkpoint = None if folder is None else str(folder)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model, and beside it what [`Recommender`] needs."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            settings = {
                "prompt": self.args.prompt_options,
                "max_length": self.args.max_length,
                "renormalize": self.renormalizes,
                "length_penalty": self.args.eval_length_penalty,
                "num_beams": self.args.eval_num_beams or max(self.args.eval_ks),
            }
            save_recommender(output_dir or self.args.output_dir, self.catalog, settings)

    def create_model_card(  # type: ignore[override]  # TRL's signature, not transformers'
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """A card that tells method, catalogue, settings and metrics; TRL's own is a chat quick-start."""
        if self.is_world_process_zero():
            write_model_card(self, model_name or Path(self.args.output_dir).name)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / MARK).touch()


def is_split(dataset: Any) -> bool:
    """Whether this is a split of a `RecDataset`."""
    return isinstance(dataset, Dataset) and {"history", "targets"} <= set(dataset.column_names)
