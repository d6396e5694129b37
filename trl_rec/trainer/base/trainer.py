"""Defines the mixin on which all trainers of this package are based. It extends a trainer of TRL.

Subclasses define:

- `batch_loss`: computes the loss of a batch,
- `rank_and_measure`: ranks items for the users of a split, and computes metrics of the rankings,
- `seconds_per_user`: estimates how long the ranking takes per user,
- `save_settings`: writes the files that a saved model needs to recommend items, such as the catalogue,
- `method`, `display_name`, `paper`: the short name of the method, its name in tables, and its paper.

The mixin does the rest: it averages metrics over all processes and logs them, calls `rank_and_measure` at each
evaluation, writes model cards, and resumes only from complete checkpoints.

Two mixins build on this one: `CatalogRankingMixin` ranks the whole catalogue, and `CandidateOrderingMixin` (ALRO)
orders a few rated candidates.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from trl_rec.compat import (
    BatchRebalanceSampler,
    EvalLoopOutput,
    LengthGroupedSampler,
    TrainOutput,
    checkpoint_folder,
    load_active_adapter,
    name_or_path,
    rotate_checkpoints,
    uploading_copies,
)
from trl_rec.files import clean_up, exclusive, resolved, temporary_folder
from trl_rec.items import ItemCatalog
from trl_rec.models.cpu import adapt_to_cpu
from trl_rec.trainer.base.checks import check_parallelism
from trl_rec.trainer.base.early_stopping import EarlyStopping, check_metric
from trl_rec.trainer.base.metrics import BatchLoss, KeptMetrics, Mean, RowLosses
from trl_rec.trainer.base.prior_config import wants_prior
from trl_rec.trainer.base.processes import on_main_process
from trl_rec.trainer.base.progress import shorten_evaluations
from trl_rec.trainer.base.sampling import EpochOrder, LengthGroups
from trl_rec.trainer.base.saving.checkpoints import write_mark
from trl_rec.trainer.base.saving.fingerprint import catalog_entries, model_entries, row_entries, run_entries
from trl_rec.trainer.base.saving.model_card import ModelCard, Paper, shown_settings, write_model_card
from trl_rec.trainer.base.saving.output import RunStart, check_not_source, describe_interrupt, find_start, writing
from trl_rec.trainer.base.saving.published import REPLACED, announce_deleted, copy_published
from trl_rec.trainer.base.saving.recipe import RECIPE
from trl_rec.trainer.base.shutdown import end_processes


if TYPE_CHECKING:
    Base = Trainer
else:
    Base = object

EvalSets: TypeAlias = "Dataset | dict[str, Dataset]"
MOST_KEPT = 1000  # maximum number of batches whose metrics are kept on the device, to limit memory
NO_RANKING_UNDER_FSDP = (
    "evaluation during training does not work under FSDP; set eval_strategy to 'no', and evaluate the saved model "
    "with trl-rec evaluate"
)


class SecondsPerUser(NamedTuple):
    """Wall-clock time to rank items for the users of a split, which are divided among all processes.

    Args:
        final (`float`): Seconds per user in the final evaluation.
        during_training (`float`): Seconds per user in an evaluation during training.
    """

    final: float
    during_training: float


class RecTrainerMixin(ABC, Base):
    """Mixin with the methods that all trainers share. List it before a TRL trainer among the bases of a class.

    Attributes:
        method (`str`): Short name, such as `"bear"`, which is used for the verb, recipes, tags and metrics.
        display_name (`str`): Name of the method in tables and model cards.
        paper (`Paper`): The paper that the model card cites.
        catalog (`ItemCatalog` or `None`): The items.
        measures_loss_on_splits (`bool`): Whether the loss is defined on a split of a `RecDataset`. If not, an
            evaluation on a split computes only ranking metrics.
        card_data (`Mapping`, *optional*): The card of the dataset, for the model card.
        card_results (`str`, *optional*): For the model card: the table of the final evaluation, followed by lines that
            compare the model with the strongest baseline.
        derived_columns (`frozenset[str]`): Columns of the training rows that the run's fingerprint leaves out, because
            other entries of the fingerprint determine their values. The fingerprint describes what affects the trained
            weights. Checkpoints record it, so that no other run resumes from them (see `fingerprint.py`).
    """

    method: ClassVar[str]
    paper: Paper
    display_name: str = ""
    measures_loss_on_splits: ClassVar[bool] = True
    derived_columns: ClassVar[frozenset[str]] = frozenset()
    card_data: Mapping[str, Any] | None = None
    card_results: str | None = None

    args: Any  # a RecConfig that is a config of TRL too
    model: Any
    processing_class: Any
    catalog: ItemCatalog | None = None
    _eval_sets: EvalSets | None = None
    _ranked_split: Dataset | None = None
    _metrics: Any  # TRL's lists of values by mode and name; `log` averages the lists and empties them
    _total_train_tokens: int
    aux_loss_enabled: bool  # from TRL: whether the auxiliary loss of a mixture of experts is added
    router_aux_loss_coef: float
    _tag_names: list[str]  # TRL adds these tags to the model
    _signature_columns: Any
    _run_models: dict[str, Any] | None = None  # fingerprint entries of the models before the first step
    _run_rows: dict[str, Any] | None = None  # fingerprint entries of the training rows

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            adapt_to_cpu(self.model, torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None)
        shorten_evaluations(self)

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "method"):
            cls._tag_names = ["trl", "trl-rec", cls.method]

    # Members that subclasses define or override

    @abstractmethod
    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> BatchLoss:
        """Returns the loss of a batch and the metrics to log.

        Args:
            model: The model to call, possibly wrapped by DDP or DeepSpeed.
            inputs: The collator's batch, on the model's device.
            num_items_in_batch: Number of target tokens in the whole accumulated batch, or the sum of their weights.
                None if the trainer does not count them.
        """

    @abstractmethod
    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Ranks items for at most `args.max_users` users of a split, and returns metrics of the rankings."""

    @abstractmethod
    def seconds_per_user(self, split: Dataset) -> SecondsPerUser:
        """Estimates how long it takes to rank items for one user of a split, by ranking items for a few users.

        Every process must call this method.
        """

    @abstractmethod
    def save_settings(self, folder: Path) -> None:
        """Writes the files that a saved model needs to recommend items. Only the main process calls this method."""

    def card_example(self) -> Sequence[str]:
        """Returns lines of Python for the model card that show how to use a saved run. Empty by default."""
        return ()

    @property
    def card_place(self) -> str:
        """The line of Python that names the saved run: its repository if it is pushed, else its folder."""
        if self.args.push_to_hub:
            return f"folder = {getattr(self, 'hub_model_id', None) or Path(self.args.output_dir).name!r}"
        return f"folder = {str(self.args.output_dir)!r}  # or the id of its repository"

    @property
    def ranks_splits(self) -> bool:
        """Whether items can be ranked for the users of a split of a `RecDataset`."""
        return self.catalog is not None

    @property
    def ranked_splits(self) -> list[Dataset]:
        """The splits for which items are ranked at each evaluation during training."""
        if self.args.eval_strategy == "no" or not self.ranks_splits:
            return []
        sets = self._eval_sets.values() if isinstance(self._eval_sets, dict) else [self._eval_sets]
        return [split for split in sets if isinstance(split, Dataset) and is_split(split)]

    # Training

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss from `batch_loss`, and records the metrics of the batch.

        Raises `ValueError` if at least one row of the optimizer step, on this or another process, has a loss that is
        not finite.
        """
        batch = self.batch_loss(model, inputs, num_items_in_batch)
        if batch.aux_loss is not None:
            batch = self._with_aux_loss(batch, batch.aux_loss, scaled=num_items_in_batch is not None)
        self._record(batch)
        outputs = {"loss": batch.loss} if batch.outputs is None else batch.outputs
        return (batch.loss, outputs) if return_outputs else batch.loss

    def _with_aux_loss(self, batch: BatchLoss, aux_loss: Tensor, *, scaled: bool) -> BatchLoss:
        """Adds TRL's auxiliary loss for mixtures of experts to the loss and to the metrics of a batch."""
        # `Trainer` divides the loss by the number of accumulated batches, unless the loss is already normalised over
        # all of them. In that case, divide the auxiliary loss here, because it is a mean over one batch.
        scaled = scaled if self.loss_is_scaled_for_ga is None else self.loss_is_scaled_for_ga
        steps = self.current_gradient_accumulation_steps if scaled else 1
        loss = batch.loss + self.router_aux_loss_coef * aux_loss.to(batch.loss.device) / steps
        return batch._replace(loss=loss, means={**batch.means, "aux_loss": Mean(aux_loss.detach(), 1)})

    def _record(self, batch: BatchLoss) -> None:
        """Keeps the metrics of a batch until they are logged, and checks the losses of rows once per optimizer step.

        The check is made in the forward pass of the last accumulated batch, because DeepSpeed makes the optimizer's
        step within the backward pass.
        """
        mode = "train" if self.model.training else "eval"
        kept = self._kept_metrics[mode]
        kept.add(batch)
        self._row_losses.add(batch)
        if mode == "eval" or self.accelerator.sync_gradients:
            self._row_losses.check(self.accelerator, self.state.global_step)
        if len(kept) >= MOST_KEPT:
            self.read_metrics()

    @cached_property
    def _kept_metrics(self) -> dict[str, KeptMetrics]:
        """The metrics that have not been read yet, by mode."""
        return {"train": KeptMetrics(), "eval": KeptMetrics()}

    @cached_property
    def _row_losses(self) -> RowLosses:
        """The losses of the rows of the current optimizer step."""
        return RowLosses()

    def read_metrics(self) -> None:
        """Reads the metrics of all batches since the last call, and appends them to TRL's metrics. All processes must
        call this method."""
        for mode, kept in self._kept_metrics.items():
            for reduced in kept.read(self.accelerator):
                for name, value in reduced.means.items():
                    self._metrics[mode][name].append(value)
                if mode == "train":
                    self._total_train_tokens += reduced.num_tokens
                self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Reads the metrics that are still on the device. TRL's `log` then averages and logs all metrics."""
        self.read_metrics()
        super().log(logs, start_time)

    def bare(self, model: nn.Module) -> Any:
        """Returns the model without the wrappers of a distributed engine or of `torch.compile`.

        A wrapper may hide the class, the layers and the adapters of the model.
        """
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: dict[str, Any] | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Same as `Trainer.train`, except that the work of another run is neither continued nor replaced by mistake.

        Raises `ValueError` if the checkpoint belongs to another run (see `fingerprint.py`), or if a run from scratch
        would write to a folder that contains the work of an earlier run.

        Args:
            resume_from_checkpoint: The folder of a checkpoint, or `True` for the newest complete checkpoint in
                `output_dir`. With `True`, training starts from scratch if no checkpoint was ever completed, and a
                `ValueError` is raised if all completed ones are damaged. By default, training starts from scratch, and
                `output_dir` must contain neither checkpoints nor weights unless `args.overwrite` is set.
            trial, ignore_keys_for_eval: Same as in `Trainer.train`.
        """
        check_parallelism(self.accelerator)
        check_metric(self.args)
        self._check_ranking()
        output_dir = Path(str(self.args.output_dir))
        self.describe_run(resumes=bool(resume_from_checkpoint))

        with ExitStack() as held:
            # 1. Find the checkpoint to start from. The output folder stays locked, so that no other run writes to it.
            def find() -> Path | None:
                """Locks the output folder, removes temporary files that killed processes left, and returns the
                checkpoint to resume from, or None."""
                held.enter_context(exclusive(output_dir))
                clean_up(output_dir)
                found = find_start(
                    output_dir,
                    resume_from_checkpoint,
                    overwrite=self.args.overwrite,
                    run=self.fingerprint,
                    launch=self.launch,
                )
                if found is None and self.args.overwrite:
                    check_not_source(output_dir, name_or_path(self.model))
                return found

            start = on_main_process(find)

            # 2. Train. The work of an earlier run is removed only just before the first step.
            replaced = output_dir if self.args.overwrite and start is None else None
            for callback in (RunStart, EarlyStopping):
                self.remove_callback(callback)  # which an earlier call of `train` may have added
            self.add_callback(RunStart(replaced))
            if self.args.early_stopping_patience is not None:
                patience = self.args.early_stopping_patience
                self.add_callback(EarlyStopping(patience, self.args.early_stopping_threshold))
            self._row_losses = RowLosses()  # discard the losses that an earlier call left
            try:
                self._prepare_run()
                return super().train(None if start is None else str(start), trial, ignore_keys_for_eval)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(describe_interrupt(output_dir, self.state.global_step)) from interrupt

    def _run_epoch(self, *args: object, **kwargs: object) -> None:
        """Same as `Trainer._run_epoch`, except that a finished run that is resumed trains no further step.

        `Trainer` compares the number of steps with the maximum only after a step. So if the run had ended in the
        middle of an epoch, `Trainer` would train a further step, and the weights would change.
        """
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _check_ranking(self) -> None:
        """Raises `ValueError` before the first step if an evaluation would have to rank items under FSDP."""
        if self.is_fsdp_enabled and self.ranked_splits:
            raise ValueError(NO_RANKING_UNDER_FSDP)

    def _prepare_run(self) -> None:
        """Called before training, after the checks of the run have passed. Does nothing by default."""

    # The fingerprint of a run

    def describe_run(self, *, resumes: bool = False) -> None:
        """Stores the fingerprint entries of the models before training changes the models.

        Only the main process stores them.

        Args:
            resumes: Whether a run is being resumed. The entries of an earlier call are then kept.
        """
        self._run_rows = None
        if not self.is_world_process_zero() or (resumes and self._run_models is not None):
            return  # keep the earlier entries, because training may have changed the model since they were stored

        self._run_models = model_entries(self.accelerator.unwrap_model(self.model), "model")
        reference = getattr(self, "ref_model", None)
        if reference is not None:
            self._run_models |= model_entries(self.accelerator.unwrap_model(reference), "reference")

    def fingerprint(self) -> dict[str, Any]:
        """Returns the fingerprint of the run (see `fingerprint.py`). Only the main process calls this method."""
        # The rows are hashed once, and only if the run writes checkpoints or resumes from one.
        if self._run_rows is None and isinstance(self.train_dataset, Dataset):
            self._set_signature_columns_if_needed()
            self._run_rows = row_entries(self.train_dataset, set(self._signature_columns) - self.derived_columns)
        return {
            "trainer": type(self).__name__,
            **(self._run_rows or {}),
            **({} if self.catalog is None else catalog_entries(self.catalog)),
            **(self._run_models or {}),
            **run_entries(self.args, self.accelerator.num_processes),
        }

    @property
    def launch(self) -> dict[str, Any]:
        """The sharding and the number of processes, on which the content of checkpoints depends."""
        sharding = "none"
        if self.is_deepspeed_enabled:
            sharding = f"ZeRO-{self.accelerator.state.deepspeed_plugin.zero_stage}"
        elif self.is_fsdp_enabled:
            sharding = "FSDP"
        return {"sharding": sharding, "number of processes": self.accelerator.num_processes}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """Returns the parent's sampler, or a sampler that uses the seed of the run if rows are sampled by length.

        In `Trainer`, a `BatchRebalanceSampler` always has the seed 42, so this seed is replaced. A
        `LengthGroupedSampler` has no seed. It draws the order of the rows from the global random state, so a resumed
        run would continue in another order. It is replaced by [`LengthGroups`].
        """
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.seed = self._data_seed
        if isinstance(sampler, LengthGroupedSampler):
            sampler = LengthGroups(sampler, self._data_seed)
        return self._following_epochs(sampler)

    def _following_epochs(self, sampler: Sampler[int] | None) -> Sampler[int] | None:
        """Adds a callback that sets the epoch of the sampler when an epoch begins. Returns the sampler."""
        self.remove_callback(EpochOrder)  # which may have been added for an earlier dataloader
        self.add_callback(EpochOrder(sampler))
        return sampler

    @property
    def _data_seed(self) -> int:
        """The seed of the order of the rows."""
        seed: int = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return seed

    def end(self) -> None:
        """Ends the process group and the trackers. Call this method once, at the very end of a script."""
        end_processes(super().end)

    # Evaluation

    def evaluate(
        self,
        eval_dataset: EvalSets | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Returns the parent's metrics and, for a split of a `RecDataset`, ranking metrics such as `eval_ndcg@10`."""
        dataset = self._eval_sets if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            # Evaluate the datasets one by one, because any of them may be a split. Datasets that were given to
            # `__init__` are passed by name, because the parent looks them up by name.
            named: dict[str, Any] = dataset if eval_dataset is not None else {name: name for name in dataset}
            return self._evaluate_each(named, metric_key_prefix)

        if isinstance(dataset, str):
            dataset = self._eval_sets[dataset] if isinstance(self._eval_sets, dict) else None
        self._ranked_split = dataset if self.ranks_splits and is_split(dataset) else None
        if self._ranked_split is not None and not self.measures_loss_on_splits:
            # Skip TRL's own `evaluate`, which would prepare the split for computing a loss.
            return Trainer.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[arg-type]
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[arg-type]

    def _evaluate_each(self, datasets: dict[str, Any], prefix: str) -> dict[str, float]:
        """Evaluates several datasets, and adds the name of each to the names of its metrics."""
        metrics: dict[str, float] = {}
        for name, dataset in datasets.items():
            metrics.update(self.evaluate(dataset, metric_key_prefix=f"{prefix}_{name}"))
        return metrics

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Adds the ranking metrics to the output, so that logs, callbacks and `metric_for_best_model` see them."""
        split = self._ranked_split
        if split is None or self.measures_loss_on_splits:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        else:
            self.model.eval()  # as in the parent's loop; `log` uses the model's mode to recognise an evaluation
            output = EvalLoopOutput(None, None, {}, len(split))  # type: ignore[arg-type]  # no predictions are kept
        if split is None:
            return output

        ranking = {f"{metric_key_prefix}_{name}": value for name, value in self.rank_and_measure(split).items()}
        return output._replace(metrics={**(output.metrics or {}), **ranking})

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> Any:
        """Raises `ValueError`, because the complete logits that the parent would return are never computed."""
        raise ValueError(
            "predict is not supported, because this trainer keeps no logits; call rank() for lists, or evaluate() for "
            "metrics"
        )

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model together with the files that it needs to recommend items."""
        folder = Path(output_dir or str(self.args.output_dir))
        with writing(folder, Path(str(self.args.output_dir))):
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                self.save_settings(folder)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Same as `Trainer.push_to_hub`, except that only files which may be published are uploaded.

        These files are the model, its tokenizer, its settings, its card, and the files that describe the run, such as
        the recipe and `metrics.json`. The catalogue is uploaded if the recorded licence of the data allows
        redistribution, or if `include_catalog` is set. The prior is uploaded if `include_prior` is set. Files with
        data about single users stay in the run folder. See [`copy_published`]. A catalogue or prior that an earlier
        push has uploaded is deleted from the repository if it is not uploaded again.
        """
        with uploading_copies(self._published, replaced=REPLACED, announce=announce_deleted):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing. `Trainer` calls this method before the checkpoint is marked as complete. The pushed checkpoint
        would have no mark, so `resume_from_checkpoint=True` would skip it. `_save_checkpoint` pushes the checkpoint
        when it is marked."""

    def _push_marked_checkpoint(self, folder: Path) -> None:
        """Same as `Trainer._push_from_checkpoint`, except that only files which may be published are uploaded."""
        with uploading_copies(self._published, replaced=REPLACED, announce=announce_deleted):
            super()._push_from_checkpoint(str(folder))

    @contextmanager
    def _published(self, folder: Path) -> Iterator[Path]:
        """Yields a copy of a run folder or checkpoint that contains only the files that may be published."""
        with temporary_folder(resolved(folder)) as copy:
            copy_published(
                folder,
                copy,
                include_catalog=self.args.include_catalog,
                include_prior=wants_prior(self.args) and self.args.include_prior,
                link=True,
            )
            yield copy

    def create_model_card(  # type: ignore[override]  # TRL's signature, not that of transformers
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes a model card with the method, the data, the results, the recipe and the settings of the run.

        The card replaces TRL's own, which shows how to chat with the model.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
        recipe = folder / RECIPE
        card = ModelCard(
            name=model_name or folder.name,
            tags=self._tag_names,
            method=self.display_name,
            paper=self.paper,
            base_model=name_or_path(self.model),
            settings=shown_settings(self.args),
            log=self.state.log_history,
            catalog=self.catalog,
            example=self.card_example(),
            data=self.card_data,
            results=self.card_results,
            recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
        )
        write_model_card(folder, card)

    def _save_checkpoint(self, model: nn.Module, trial: dict[str, Any] | None) -> None:
        """Saves a checkpoint into an empty folder. Older checkpoints are deleted only when this one is complete."""
        # 1. Remove a checkpoint of the same name that an earlier run left. Otherwise, the old mark would make the new
        # checkpoint count as complete while it is being written.
        folder = checkpoint_folder(self, trial)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()

        # 2. Save. Meanwhile, unset `save_total_limit`, because the parent would delete older checkpoints before this
        # one is marked as complete.
        limit = self.args.save_total_limit
        self.args.save_total_limit = None
        try:
            with writing(folder, folder.parent):
                super()._save_checkpoint(model, trial)

                # 3. Once every process has written its files, mark the checkpoint as complete.
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_mark(folder, self.fingerprint(), self.launch)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # makes room on a full disk
            raise
        finally:
            self.args.save_total_limit = limit

        # 4. Push the checkpoint, and delete older ones.
        if self.args.push_to_hub:
            self._push_marked_checkpoint(folder)
        if self.args.should_save:
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the model as the parent does, and then loads the trained adapter (see [`load_active_adapter`])."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if isinstance(self.model, PeftModel):
            load_active_adapter(self.model, resume_from_checkpoint)


def is_split(dataset: object) -> bool:
    """Returns whether `dataset` is a split of a `RecDataset`."""
    return isinstance(dataset, Dataset) and {"history", "targets"} <= set(dataset.column_names)
