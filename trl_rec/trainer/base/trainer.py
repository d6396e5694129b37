"""The base of this package's trainers: a mixin that goes before a TRL trainer among a class's bases.

A method defines four things: what the loss of a batch is (`batch_loss`), how a split is ranked and measured
(`rank_and_measure`), what a run folder contains beside the model (`save_settings`), and its names and paper (`method`,
`display_name`, `paper`). The mixin does the rest: it reduces and logs the metrics, measures splits at each evaluation,
writes model cards, and resumes only from checkpoints that are complete.

Two capabilities build on it: `CatalogRankingMixin` ranks the whole catalogue, `CandidateOrderingMixin` (ALRO) orders a
few rated candidates.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from trl_rec.compat import (
    BatchRebalanceSampler,
    EvalLoopOutput,
    LengthGroupedSampler,
    TrainOutput,
    checkpoint_folder,
    load_active_adapter,
    name_or_path,
    rotate_checkpoints,
)
from trl_rec.files import clean_up, exclusive
from trl_rec.items import ItemCatalog
from trl_rec.models.loading import load_tokenizer
from trl_rec.trainer.base.checkpoints import write_mark
from trl_rec.trainer.base.checks import check_parallelism
from trl_rec.trainer.base.fingerprint import catalog_entries, model_entries, row_entries, run_entries
from trl_rec.trainer.base.metrics import BatchLoss, Mean, describe_broken, reduce_batch
from trl_rec.trainer.base.model_card import ModelCard, Paper, shown_settings, write_model_card
from trl_rec.trainer.base.output import RunStart, check_not_source, describe_interrupt, find_start, writing
from trl_rec.trainer.base.processes import on_main_process
from trl_rec.trainer.base.sampling import EpochOrder, LengthGroups
from trl_rec.trainer.base.shutdown import end_processes


if TYPE_CHECKING:
    Base = Trainer
else:
    Base = object

EvalSets: TypeAlias = "Dataset | dict[str, Dataset]"
NO_RANKING_UNDER_FSDP = (
    "FSDP cannot rank lists during training: set eval_strategy to no, and evaluate the saved model with "
    "trl-rec evaluate"
)


class RecTrainerMixin(ABC, Base):
    """What all trainers share. The mixin goes before a TRL trainer among a class's bases.

    Attributes:
        method (`str`): One stem for verb, recipes, tags and metric names, such as `"bear"`.
        display_name (`str`): Name of the method in tables and model cards.
        paper (`Paper`): The paper that the model card cites.
        catalog (`ItemCatalog` or `None`): The items.
        measures_loss_on_splits (`bool`): Whether the loss is defined on a split of a `RecDataset`; otherwise
            an evaluation only ranks the split.
    """

    method: ClassVar[str]
    paper: Paper
    display_name: str = ""
    measures_loss_on_splits: ClassVar[bool] = True
    # Columns of training rows that follow from the others and from what the fingerprint contains anyway.
    derived_columns: ClassVar[frozenset[str]] = frozenset()

    args: Any  # a RecConfig that is a config of TRL too
    model: Any
    processing_class: Any
    catalog: ItemCatalog | None = None
    _eval_sets: EvalSets | None = None
    _ranked_split: Dataset | None = None
    _metrics: Any  # TRL's values by mode and name; `log` averages those appended since it was last called
    _total_train_tokens: int
    aux_loss_enabled: bool  # TRL's: whether the model is a mixture of experts, and the term below has a weight
    router_aux_loss_coef: float
    _tag_names: list[str]  # TRL tags models with it
    _signature_columns: Any
    _run_models: dict[str, Any] | None = None  # entries of the fingerprint: the models before the first step
    _run_rows: dict[str, Any] | None = None  # the training rows

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "method"):
            cls._tag_names = ["trl", "trl-rec", cls.method]

    # What a method defines

    @abstractmethod
    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> BatchLoss:
        """Returns the loss of a batch and what is logged about it.

        Args:
            model: The model to call, as DDP or DeepSpeed wraps it.
            inputs: The collator's batch, on the model's device.
            num_items_in_batch: Number of target tokens in the whole accumulated batch, if the trainer counts them.
        """

    @abstractmethod
    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Returns metrics of the model's recommendations to a split's users, at most `max_users` of them."""

    @abstractmethod
    def save_settings(self, folder: Path) -> None:
        """Writes the files that a saved model needs to recommend. Only the main process calls this."""

    def card_example(self) -> Sequence[str]:
        """Lines of Python for the model card that use a saved run; none by default."""
        return ()

    @property
    def ranks_splits(self) -> bool:
        """Whether splits of a `RecDataset` can be ranked."""
        return self.catalog is not None

    # Training

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss from [`batch_loss`], whose metrics are recorded for the log. Raises if a loss is not finite."""
        batch = self.batch_loss(model, inputs, num_items_in_batch)
        if batch.aux_loss is not None:
            batch = self._with_aux_loss(batch, batch.aux_loss, scaled=num_items_in_batch is not None)
        self._record(batch)
        outputs = {"loss": batch.loss} if batch.outputs is None else batch.outputs
        return (batch.loss, outputs) if return_outputs else batch.loss

    def _with_aux_loss(self, batch: BatchLoss, aux_loss: Tensor, *, scaled: bool) -> BatchLoss:
        """The batch with TRL's term for mixtures of experts in its loss, and in what is logged."""
        # The term is a mean over batches, so it is divided here where the loss is divided already.
        scaled = scaled if self.loss_is_scaled_for_ga is None else self.loss_is_scaled_for_ga
        steps = self.current_gradient_accumulation_steps if scaled else 1
        loss = batch.loss + self.router_aux_loss_coef * aux_loss.to(batch.loss.device) / steps
        return batch._replace(loss=loss, means={**batch.means, "aux_loss": Mean(aux_loss.detach(), 1)})

    def _record(self, batch: BatchLoss) -> None:
        """Appends a batch's means to TRL's metrics, which the next `log` averages."""
        mode = "train" if self.model.training else "eval"
        reduced = reduce_batch(batch, self.accelerator)
        if reduced.num_broken:
            raise ValueError(
                f"the loss of {reduced.num_broken} rows is not finite at step {self.state.global_step}, "
                f"{describe_broken(batch)}; lower the learning rate, or look at the data"
            )
        for name, value in reduced.means.items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            self._total_train_tokens += reduced.num_tokens
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def bare(self, model: nn.Module) -> Any:
        """The model itself, without what a distributed engine or `torch.compile` wraps around it. Its class, its
        layers and its adapters can be read and switched, which a wrapper may hide."""
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: dict[str, Any] | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains like the parent, except that nothing of another run is continued or lost.

        Args:
            resume_from_checkpoint: `True` for the newest whole checkpoint of this run in `output_dir`; without any,
                training starts from scratch. Or the folder of a checkpoint. Raises if the checkpoint is of another
                run (see `fingerprint.py`). If nothing is given, `output_dir` may contain neither checkpoints nor
                weights, unless `args.overwrite` is set.
            trial, ignore_keys_for_eval: As in `Trainer`.
        """
        check_parallelism(self.accelerator)
        self._check_ranking()
        output_dir = Path(str(self.args.output_dir))
        self.describe_run(resumes=bool(resume_from_checkpoint))

        with ExitStack() as held:
            # 1. Find where training starts from. No other run may write to the folder meanwhile.
            def find() -> Path | None:
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

            # 2. Train. What an earlier run left is removed only when the first step is about to begin.
            replaced = output_dir if self.args.overwrite and start is None else None
            self.remove_callback(RunStart)  # of an earlier call
            self.add_callback(RunStart(replaced))
            try:
                self._prepare_run()
                return super().train(None if start is None else str(start), trial, ignore_keys_for_eval)
            except KeyboardInterrupt as interrupt:
                raise KeyboardInterrupt(describe_interrupt(output_dir, self.state.global_step)) from interrupt

    def _check_ranking(self) -> None:
        """Refuses to rank under FSDP before the first step rather than at the first evaluation."""
        sets = self._eval_sets.values() if isinstance(self._eval_sets, dict) else [self._eval_sets]
        ranks = self.args.eval_strategy != "no" and self.ranks_splits and any(map(is_split, sets))
        if self.is_fsdp_enabled and ranks:
            raise ValueError(NO_RANKING_UNDER_FSDP)

    def _prepare_run(self) -> None:
        """Work before the first step of a run that may start; none by default."""

    # The fingerprint of a run

    def describe_run(self, *, resumes: bool = False) -> None:
        """Notes the parts of the fingerprint that training may change. The main process alone needs them."""
        self._run_rows = None
        if not self.is_world_process_zero() or (resumes and self._run_models is not None):
            return  # the model has been trained since, but the run that is resumed started from what it was before

        self._run_models = model_entries(self.accelerator.unwrap_model(self.model), "model")
        reference = getattr(self, "ref_model", None)
        if reference is not None:
            self._run_models |= model_entries(self.accelerator.unwrap_model(reference), "reference")

    def fingerprint(self) -> dict[str, Any]:
        """What decides the weights of this run, on the main process."""
        # The rows are hashed once, and only for a run that has checkpoints.
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
        """How processes share the work, as far as checkpoints depend on it."""
        sharding = "none"
        if self.is_deepspeed_enabled:
            sharding = f"ZeRO-{self.accelerator.state.deepspeed_plugin.zero_stage}"
        elif self.is_fsdp_enabled:
            sharding = "FSDP"
        return {"sharding": sharding, "number of processes": self.accelerator.num_processes}

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """The parent's sampler, except that an order by length depends only on the seed, so that it can be resumed."""
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.seed = self._data_seed
        if isinstance(sampler, LengthGroupedSampler):
            sampler = LengthGroups(sampler, self._data_seed)
        return self._following_epochs(sampler)

    def _following_epochs(self, sampler: Sampler[int] | None) -> Sampler[int] | None:
        """Returns the sampler. A callback will tell it which epoch begins."""
        self.remove_callback(EpochOrder)  # of an earlier dataloader
        self.add_callback(EpochOrder(sampler))
        return sampler

    @property
    def _data_seed(self) -> int:
        seed: int = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return seed

    def end(self) -> None:
        """Ends the process group and the trackers. Call it once, at the very end of a script."""
        end_processes(super().end)

    # Evaluation

    def evaluate(
        self,
        eval_dataset: EvalSets | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The parent's metrics and, for a split of a `RecDataset`, those of the ranked lists (`eval_ndcg@10`)."""
        dataset = self._eval_sets if eval_dataset is None else eval_dataset
        if isinstance(dataset, dict):
            # Evaluate one by one, as any of them may be a split. The parent knows those given to `__init__` by name.
            named: dict[str, Any] = dataset if eval_dataset is not None else {name: name for name in dataset}
            return self._evaluate_each(named, metric_key_prefix)

        if isinstance(dataset, str):
            dataset = self._eval_sets[dataset] if isinstance(self._eval_sets, dict) else None
        self._ranked_split = dataset if self.ranks_splits and is_split(dataset) else None
        if self._ranked_split is not None and not self.measures_loss_on_splits:
            # TRL's own `evaluate` would prepare the split for a loss.
            return Trainer.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[arg-type]
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # type: ignore[arg-type]

    def _evaluate_each(self, datasets: dict[str, Any], prefix: str) -> dict[str, float]:
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
        """Adds the ranking metrics to the loss, so that logs, callbacks and `metric_for_best_model` see them."""
        split = self._ranked_split
        if split is None or self.measures_loss_on_splits:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        else:
            self.model.eval()  # as in the parent's loop; `log` tells training from evaluation by the model's mode
            output = EvalLoopOutput(None, None, {}, len(split))  # type: ignore[arg-type]  # no predictions are kept
        if split is None:
            return output

        ranking = {f"{metric_key_prefix}_{name}": value for name, value in self.rank_and_measure(split).items()}
        return output._replace(metrics={**(output.metrics or {}), **ranking})

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> Any:
        """Raises, because the logits that the parent would return are never computed as a whole."""
        raise ValueError("this trainer keeps no logits to predict with; call rank for lists, or evaluate for metrics")

    # Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, and beside it the files that it needs to recommend."""
        folder = Path(output_dir or str(self.args.output_dir))
        with writing(folder, Path(str(self.args.output_dir))):
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                self.save_settings(folder)

    def create_model_card(  # type: ignore[override]  # TRL's signature, not that of transformers
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Writes a card with method, paper, catalogue, settings and metrics. TRL's own card shows how to chat."""
        if not self.is_world_process_zero():
            return
        folder = Path(str(self.args.output_dir))
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
        )
        write_model_card(folder, card)

    def _save_checkpoint(self, model: nn.Module, trial: dict[str, Any] | None) -> None:
        """Saves a checkpoint into an empty folder. Older checkpoints are deleted only when this one is complete."""
        # 1. Clear what an earlier run left under the same name: its mark would vouch for a half-written checkpoint.
        folder = checkpoint_folder(self, trial)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()

        # 2. Save. Without a limit, as the parent would delete older checkpoints before this one has its mark.
        limit = self.args.save_total_limit
        self.args.save_total_limit = None
        try:
            with writing(folder, folder.parent):
                super()._save_checkpoint(model, trial)

                # 3. Every process has written: mark the checkpoint as complete.
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_mark(folder, self.fingerprint(), self.launch)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)  # makes room on a full disk
            raise
        finally:
            self.args.save_total_limit = limit

        # 4. Delete older ones.
        if self.args.should_save:
            rotate_checkpoints(str(folder.parent), limit, self.state.best_model_checkpoint, use_mtime=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Loads the model like the parent, then the trained adapter, which older releases skip beside a frozen one."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if isinstance(self.model, PeftModel):
            load_active_adapter(self.model, resume_from_checkpoint)


def is_split(dataset: object) -> bool:
    """Whether this is a split of a `RecDataset`."""
    return isinstance(dataset, Dataset) and {"history", "targets"} <= set(dataset.column_names)


def find_tokenizer(
    model: str | PreTrainedModel | PeftModel, given: PreTrainedTokenizerBase | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The tokenizer that a trainer was given, or else the model's own. Without a padding token, it pads with EOS."""
    if given is not None:
        if given.pad_token is None and given.eos_token is not None:
            given.pad_token = given.eos_token  # as TRL does, but before there is a collator
        return given
    name = model if isinstance(model, str) else name_or_path(model)
    if not name:
        raise ValueError("the model was made in memory, so its tokenizer is unknown; pass processing_class")
    return load_tokenizer(name, trust_remote_code=trust_remote_code or None)
