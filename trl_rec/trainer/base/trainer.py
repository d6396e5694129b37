"""What all trainers of this package share, as a mixin over a TRL trainer.

Lists are ranked and measured at each evaluation, each checkpoint is a run folder that recommends by itself, and a run
that was killed resumes from a checkpoint that was written to its end.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer

from trl_rec.compat import (
    BatchRebalanceSampler,
    EvalLoopOutput,
    LengthGroupedSampler,
    checkpoint_folder,
    rotate_checkpoints,
    unwrapped_for_generation,
)
from trl_rec.data.dataset import at_most, split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation import evaluate_rankings, rank_histories
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.trainer.base.checkpoints import MARK, newest_complete
from trl_rec.trainer.base.model_card import write_model_card
from trl_rec.trainer.base.sampling import EpochOrder, LengthGroups
from trl_rec.trainer.base.shutdown import end_processes


if TYPE_CHECKING:
    Base = Trainer
else:
    Base = object


FSDP = "FSDP cannot rank lists during training: set eval_strategy to no, and evaluate the saved model with trl-rec evaluate"


class RecTrainerMixin(Base):
    """Goes before a TRL trainer among a class's bases. The class calls `_set_catalog` before its parent's `__init__`.

    Attributes:
        catalog (`ItemCatalog` or `None`): The items. Without them, which a trainer may allow, nothing is ranked.
        renormalizes (`bool`): Whether ranking scores are over the legal tokens.
        measures_loss_on_splits (`bool`): Whether the loss has a meaning on a split of a `RecDataset`; else it is only
            ranked.
    """

    args: Any
    model: Any
    processing_class: Any
    catalog: ItemCatalog | None
    trie: Any = None
    renormalizes = True
    measures_loss_on_splits = True

    def _set_catalog(
        self, catalog: ItemCatalog | None, processing_class: PreTrainedTokenizerBase, args: Any, eval_dataset: Any
    ) -> None:
        """What follows from a catalogue and a tokenizer, and the split whose users are ranked at each evaluation."""
        self.catalog, self._eval_split = catalog, eval_dataset
        self._ranked_split: Dataset | None = None
        if catalog is not None:
            self.prompt_format = PromptFormat.for_catalog(catalog, processing_class, **args.prompt_options)
            self.trie = TokenTrie.from_catalog(catalog, processing_class, lists=args.list_length is not None)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The parent's metrics and, for a split of a `RecDataset`, those of the ranked lists (`eval_ndcg@10`)."""
        split = self._eval_split if eval_dataset is None else eval_dataset
        if isinstance(split, dict):  # one by one, as any of them may be ranked; those of `__init__` go by name
            return self._evaluate_each(
                split if eval_dataset is not None else {name: name for name in split}, metric_key_prefix
            )
        split = self._eval_split[split] if isinstance(split, str) else split
        self._ranked_split = split if self.catalog is not None and is_split(split) else None
        if self._ranked_split is not None and not self.measures_loss_on_splits:
            return Trainer.evaluate(
                self, eval_dataset, ignore_keys, metric_key_prefix
            )  # TRL's would prepare it for a loss
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def _evaluate_each(self, datasets: dict[str, Any], prefix: str) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for name, one in datasets.items():
            metrics |= self.evaluate(one, metric_key_prefix=f"{prefix}_{name}")
        return metrics

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds the ranking metrics where the loss is, so that logs, callbacks and `metric_for_best_model` all see
        them."""
        if self._ranked_split is None or self.measures_loss_on_splits:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        else:
            self.model.eval()  # as the parent's loop does: log() tells by it whose metrics it has
            output = EvalLoopOutput(None, None, {}, len(self._ranked_split))  # type: ignore[arg-type]
        if self._ranked_split is not None:
            ranking = self.rank_and_measure(self._ranked_split)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in ranking.items()}
            output = output._replace(metrics={**(output.metrics or {}), **metrics})
        return output

    def predict(self, test_dataset: Any, ignore_keys: Any = None, metric_key_prefix: str = "test") -> Any:
        """Refused: the logits that the parent returns are never built in one piece here."""
        raise ValueError("this trainer keeps no logits to predict with; call rank for lists, or evaluate for metrics")

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Metrics of the model's lists for a split's users, at most `max_users` of them."""
        split = at_most(self.args.max_users, split)
        return self.measure(self.rank(split), split)

    def measure(self, ranked: np.ndarray, split: Dataset) -> dict[str, float]:
        """Metrics of lists `(num_rows, max(eval_ks))` for the users of a split."""
        histories, targets = split_rows(split, "history"), split_rows(split, "targets")
        return evaluate_rankings(ranked, targets, ks=self.args.eval_ks, catalog=self.catalog, histories=histories)

    def rank(self, split: Dataset) -> np.ndarray:
        """The model's lists `(num_rows, max(eval_ks))` for a split's users."""
        if self.is_fsdp_enabled:
            raise ValueError(FSDP)
        with unwrapped_for_generation(self.model_wrapped, self.accelerator) as model:
            return rank_histories(
                model,
                split_rows(split, "history"),
                self.prompt_format,
                self.trie,
                pad_token_id=self.processing_class.pad_token_id,
                users=split_users(split) if self.prompt_format.users is not None else None,
                top_k=max(self.args.eval_ks),
                num_beams=self.args.eval_num_beams,
                exclude_history=self.args.eval_exclude_history,
                renormalize=self.renormalizes,
                length_penalty=self.args.eval_length_penalty,
                batch_size=self.args.per_device_eval_batch_size,
                max_length=self.args.max_length,
            )

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """As the parent's; `resume_from_checkpoint=True` takes the newest checkpoint that was written to its end, if
        any."""
        sets = self._eval_split.values() if isinstance(self._eval_split, dict) else [self._eval_split]
        ranks = self.args.eval_strategy != "no" and self.catalog is not None and any(map(is_split, sets))
        if self.is_fsdp_enabled and ranks:
            raise ValueError(FSDP)  # before any step, rather than at the first evaluation
        if resume_from_checkpoint is True:
            folder = newest_complete(self.args.output_dir)
            resume_from_checkpoint = None if folder is None else str(folder)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        """As the parent's, but an order by lengths follows the seed, and is the same when a run is resumed."""
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.seed = self._data_seed
        return self._following_epochs(
            LengthGroups(sampler, self._data_seed) if isinstance(sampler, LengthGroupedSampler) else sampler
        )

    def _following_epochs(self, sampler: Any) -> Any:
        self.remove_callback(EpochOrder)  # of a dataloader before
        self.add_callback(EpochOrder(sampler))
        return sampler

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def end(self) -> None:
        """As the parent's; call it once, at the very end of a script."""
        end_processes(super().end)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model, and beside it what [`Recommender`] needs."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save and self.catalog is not None:
            settings = {
                "prompt": self.args.prompt_options,
                "max_length": self.args.max_length,
                "renormalize": self.renormalizes,
                "length_penalty": self.args.eval_length_penalty,
                "num_beams": self.args.eval_num_beams
                or (max(self.args.eval_ks) if self.args.list_length is None else 1),
            }
            save_recommender(output_dir or self.args.output_dir, self.catalog, settings)

    def create_model_card(  # type: ignore[override]  # TRL's signature, not transformers'
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None
    ) -> None:
        """A card that tells method, catalogue, settings and metrics; TRL's own is a chat quick-start."""
        if self.is_world_process_zero():
            write_model_card(self, model_name or Path(self.args.output_dir).name)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the parent's, but into an empty folder, and older checkpoints go only when this one has its mark."""
        folder = checkpoint_folder(self, trial)
        if self.args.should_save:
            shutil.rmtree(
                folder, ignore_errors=True
            )  # of an earlier run, whose mark would vouch for a half-written one
        self.accelerator.wait_for_everyone()
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # the parent would delete before the mark
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (folder / MARK).touch()
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True)


def is_split(dataset: Any) -> bool:
    """Whether this is a split of a `RecDataset`."""
    return isinstance(dataset, Dataset) and {"history", "targets"} <= set(dataset.column_names)
