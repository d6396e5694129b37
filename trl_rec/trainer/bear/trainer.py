"""Fine-tunes a model so that beam search keeps each target token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from trl_rec.data.branches.structure import COLUMNS as BRANCH_COLUMNS
from trl_rec.data.branches.structure import IGNORED
from trl_rec.data.dataset import at_most, split_rows
from trl_rec.data.list_rows import build_list_rows, evaluation_list_rows
from trl_rec.data.rows import build_rows, evaluation_rows
from trl_rec.data.tasks.templates import template_ids
from trl_rec.decoding.list_constraint import legal_children, taken_places
from trl_rec.items import ItemCatalog
from trl_rec.losses.bear import bear_loss
from trl_rec.losses.output import LossOutput
from trl_rec.losses.sampled import sampled_softmax_loss
from trl_rec.models.branches import prepare_branches
from trl_rec.models.embedding_dropout import add_embedding_dropout
from trl_rec.models.experts import attending_by, balance_on_request, balancing_loss, routing
from trl_rec.models.loading import find_tokenizer
from trl_rec.models.sampled_columns import SampledColumns, collect_rows, collecting_rows
from trl_rec.models.selection import logits_at
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
from trl_rec.trainer.base.checks import NOT_TAKEN_BY_SFT, check_arguments, check_trainable
from trl_rec.trainer.base.metrics import BatchLoss, Mean
from trl_rec.trainer.base.model_card import Paper
from trl_rec.trainer.base.trainer import EvalSets, is_split
from trl_rec.trainer.bear.collator import NextItemCollator, with_trie_nodes
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.list_labels import check_lists
from trl_rec.trainer.bear.sampling import (
    ItemSampler,
    SampledFrom,
    SamplingCollator,
    counted_negatives,
    log_probabilities,
    numbered,
)
from trl_rec.trainer.bear.tasks import TaskCollator, free_rows, item_places, task_means, with_texts


# Entries of a batch that determine which tokens are legal at each label.
CHOICES = ("trie_nodes", "ranks", "items", "excluded")


class BearTrainer(CatalogRankingMixin, SFTTrainer):
    """[`~trl.SFTTrainer`] with BEAR's loss, for rows that predict the next item or a list of items.

    To use another loss for item tokens, override [`~BearTrainer.token_loss`].

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): Same as in `SFTTrainer`.
        args (`BearConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): One of the following: `RecDataset.train`; rows with `input_ids` and `labels` (with
            `softmax="legal"` or a `target_age_decay` below 1, the labels must be items of the catalogue); list rows
            from [`build_list_rows`]; rows of several tasks from [`build_training_rows`].
        eval_dataset (`Dataset`, *optional*): Rows as in `train_dataset`, or `RecDataset.validation`. For a split,
            evaluation also ranks the catalogue for the users of the split.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Tokenizer that contains the tokens of the catalogue.
            By default, the tokenizer of the model.
        catalog (`ItemCatalog`): The catalogue, with the surface to train on.
        kwargs: Passed to `SFTTrainer`.

    Example:

    ```python
    dataset = load("data/ml-100k").with_surface("item_token")
    tokenizer = make_tokenizer(dataset.catalog)
    trainer = BearTrainer(
        make_model(tokenizer),
        BearConfig("runs/bear", targets="all", max_length=256),
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=dataset.catalog,
    )
    trainer.train()
    ```
    """

    method = "bear"
    display_name = "BEAR"
    paper = Paper(
        "BEAR: Towards Beam-Search-Aware Optimization for Recommendation with Large Language Models", "2601.22925"
    )
    loss_is_scaled_for_ga: Any = None  # as in SFTTrainer: scaled if and only if `num_items_in_batch` is given

    args: BearConfig
    catalog: ItemCatalog
    _sampler: ItemSampler  # set only with sampled_items
    _log_q: Tensor  # (largest token id of an item + 1,), set only with sampled_items

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: BearConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: EvalSets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        catalog: ItemCatalog,
        **kwargs: Any,
    ) -> None:
        args = args or BearConfig("bear")
        kwargs = check_arguments(kwargs, NOT_TAKEN_BY_SFT, "BearTrainer")
        if args.sampled_items is not None and catalog.surface != "item_token":
            raise ValueError(
                f"sampled_items requires the surface item_token, not {catalog.surface}, because an item must be a "
                "single token; leave sampled_items out, or change the surface"
            )
        tokenizer = find_tokenizer(model, processing_class, args.trust_remote_code)
        self._set_catalog(catalog, tokenizer, args, eval_dataset)
        self.renormalizes = args.softmax == "legal"
        if not args.bear_weight:
            self.display_name = "MSL" if self.renormalizes else "SFT"
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=tokenizer, **kwargs
        )

        check_trainable(self.model)
        add_embedding_dropout(self.model)
        balance_on_request(self.model)
        self.data_collator = self._collator(tokenizer, args)
        self.trie = self.trie.to(self.args.device)  # not the model's device: DeepSpeed and FSDP move the model later

    def _collator(self, tokenizer: PreTrainedTokenizerBase, args: BearConfig) -> NextItemCollator:
        """Builds the collator. With several tasks or sampled items, it is also added as a callback that tracks the
        epoch."""
        common: dict[str, Any] = {
            "pad_token_id": tokenizer.pad_token_id,
            "trie": self.trie if self.renormalizes else None,
            "exclude_history": args.eval_exclude_history,
            "twins": self.catalog.twins,
            "padding_side": tokenizer.padding_side,
            "pad_to_multiple_of": None if args.pad_to_multiple_of is None else int(args.pad_to_multiple_of),
            "age_decay": args.target_age_decay,
        }
        collator: SamplingCollator | TaskCollator
        if args.sampled_items is not None and self.train_dataset is not None:
            self._sampler = self._make_sampler(tokenizer, args.sampled_items, args.sampled_from)
            collator = SamplingCollator(**common, sampler=self._sampler, seed=args.seed)
            self.add_callback(collator)
            return collator
        if "task" not in getattr(self.train_dataset, "column_names", ()):
            return NextItemCollator(**common)
        templates = template_ids(tokenizer, self.catalog.surface, chat_template=args.chat_template)
        collator = TaskCollator(**common, templates=templates, seed=args.seed)
        self.add_callback(collator)
        return collator

    def _make_sampler(
        self, tokenizer: PreTrainedTokenizerBase, num_negatives: int, sampled_from: SampledFrom
    ) -> ItemSampler:
        """Returns the sampler of negatives, and sets `_log_q`. Where sparse gradients are supported, also prepares the
        embeddings for them (see [`collect_rows`])."""
        labels = split_rows(self.train_dataset, "labels").values
        tokens = self.catalog.paths(tokenizer).values
        sampler = ItemSampler(tokens, labels[labels != IGNORED], num_negatives, sampled_from)
        self._log_q = sampler.log_q(int(tokens.max()) + 1).to(self.args.device)
        # DeepSpeed, FSDP, torch.compile, and devices other than CPU and CUDA need a dense gradient from the start.
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if not (is_sharded or self.args.torch_compile) and self.args.device.type in ("cpu", "cuda"):
            collect_rows(self.model)
        return sampler

    # Rows

    def _prepare_dataset(  # type: ignore[override]  # narrower types than TRL's
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: BearConfig,
        packing: bool,
        formatting_func: None,
        dataset_name: str,
    ) -> Dataset:
        """Converts splits to rows, and checks rows.

        With the legal softmax, adds the trie node of each label. Also adds the nodes if `target_age_decay` is not 1,
        because they show where each item begins. List rows get no nodes here, because the collator computes them.
        """
        if is_split(dataset):
            dataset = self._rows(dataset, args) if dataset_name == "train" else self._evaluation_rows(dataset, args)
        columns = set(dataset.column_names)
        if not {"input_ids", "labels"} <= columns:
            raise ValueError(
                f"the {dataset_name} dataset has the columns {', '.join(dataset.column_names)}; pass a split of a "
                "RecDataset, or rows with input_ids and labels"
            )

        if args.sampled_items is not None and dataset_name == "train":
            dataset = numbered(dataset)
        needs_nodes = self.renormalizes or args.target_age_decay != 1
        if not needs_nodes or "trie_nodes" in columns:
            return dataset
        if {"items", "history"} <= columns:
            check_lists(dataset, self.trie, args.eval_exclude_history, self.catalog.twins)
            return dataset
        return with_trie_nodes(dataset, self.trie, free_rows(dataset))

    def _rows(self, split: Dataset, args: BearConfig) -> Dataset:
        if args.tasks is not None:
            raise ValueError(
                "tasks cannot be built from a split alone; pass train_dataset=build_training_rows(dataset, tokenizer, "
                "args), or remove tasks"
            )
        if args.list_length is None or args.targets == "all":
            return build_rows(
                split,
                self.prompt_format,
                targets=args.targets,
                max_length=args.max_length,
                max_history=args.max_history,
                long_histories=args.long_histories,
                max_row_tokens=args.max_row_tokens,
                join_windows=args.join_windows,
                trie=self.trie if self.renormalizes else None,
            )
        return build_list_rows(
            split, self.prompt_format, every_position=args.every_position, max_length=args.max_length
        )

    def _evaluation_rows(self, split: Dataset, args: BearConfig) -> Dataset:
        split = at_most(args.max_users, split)
        if args.list_length is not None:
            return evaluation_list_rows(split, self.prompt_format, max_length=args.max_length)
        return evaluation_rows(split, self.prompt_format, max_length=args.max_length, max_history=args.max_history)

    def _set_signature_columns_if_needed(self) -> None:
        rows = ["input_ids", "labels", "trie_nodes", "history", "items", *BRANCH_COLUMNS]
        self._signature_columns: Any = [*rows, "task", "slots", "row", "length"]

    # Loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """Same as `Trainer.get_batch_samples`, except that the count is the sum of the weights of the target tokens
        if `target_age_decay` is not 1."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if count is None or "target_weights" not in batches[0]:
            return batches, count
        total = torch.stack([batch["target_weights"][:, 1:].sum() for batch in batches]).sum().to(device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            total = self.accelerator.gather(total).sum()
        return batches, total

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> BatchLoss:
        """Computes BEAR's loss, averaged over the target tokens of the accumulated batch on all processes.

        The average is weighted if `target_age_decay` is not 1. Forced tokens are not target tokens. The loss of target
        tokens that are not part of an item is cross-entropy over the vocabulary.
        """
        bare = self.bare(model)
        num_rows = len(inputs["labels"])
        inputs, mask, owners = prepare_branches(bare, inputs, self.args.max_length)
        labels = inputs.pop("labels")  # (B, T)
        tasks = inputs.pop("tasks", None)  # (B,)
        target_weights = inputs.pop("target_weights", None)  # (B, T)
        streams = inputs.pop("negatives", None)  # (B, L)
        choices = {name: inputs.pop(name) for name in CHOICES if name in inputs}

        # 1. Compute logits at the N positions that have a target. A position predicts the token after it. Under a
        # legal softmax, item tokens need only the logits of the trie's U tokens. Texts need those of the whole
        # vocabulary.
        tokens = self.trie.tokens if choices and tasks is None else None
        columns = None  # set only in training with sampled items
        learned = torch.zeros_like(labels, dtype=torch.bool)
        learned[:, :-1] = labels[:, 1:] != IGNORED
        targets = labels[:, 1:][learned[:, :-1]]  # (N,)
        if streams is not None and model.training:
            columns = SampledColumns(learned.nonzero()[:, 0], targets, streams.clamp(min=0))
        num_tokens = inputs["attention_mask"].sum()
        with ExitStack() as reading:
            if mask is not None and self.aux_loss_enabled:
                reading.enter_context(attending_by(bare, mask))
            elif mask is not None:
                inputs["attention_mask"] = mask
            reading.enter_context(logits_at(bare, learned, tokens=columns or tokens))
            reading.enter_context(collecting_rows(bare))
            outputs = model(**inputs, **routing(bare, self.aux_loss_enabled), use_cache=False)
        logits = outputs.logits[0]  # (N, V), (N, U) or (N, 1 + L)

        # 2. Compute the loss of each target token.
        items = item_places(learned, tasks)  # (B, T)
        if columns is not None and streams is not None:
            output = self._sampled_loss(logits, streams, columns)
        elif tasks is None:
            output = self._item_loss(logits, targets, choices, items, among=tokens)
        else:
            output = with_texts(
                logits, targets, items[learned], lambda of, to: self._item_loss(of, to, choices, items)
            )

        # 3. Average over target tokens. The count covers all processes, but DDP averages gradients, so the loss is
        # scaled by the number of processes.
        if target_weights is None:
            count = learned.sum() if num_items_in_batch is None else num_items_in_batch
            loss = output.loss.sum() / torch.as_tensor(count, device=labels.device).clamp(min=1)
        else:
            weights = target_weights[:, 1:][learned[:, :-1]]  # (N,)
            total = torch.as_tensor(weights.sum() if num_items_in_batch is None else num_items_in_batch)
            loss = (weights * output.loss).sum() / total.to(weights).clamp(min=torch.finfo(weights.dtype).tiny)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes

        rows = learned.nonzero()[:, 0]  # (N,)
        rows = rows if owners is None else owners[rows]
        row_losses = torch.zeros(num_rows, device=labels.device).index_add(0, rows, output.loss.detach().float())
        means = self._means(output, items, learned, tasks)
        aux_loss = balancing_loss(bare, outputs) if self.aux_loss_enabled else None
        return BatchLoss(loss, row_losses, means, num_tokens, aux_loss=aux_loss, outputs=outputs)

    def _sampled_loss(self, logits: Tensor, streams: Tensor, columns: SampledColumns) -> LossOutput:
        """Computes the loss, `(N,)`, of N item tokens from the logits `(N, 1 + L)` of targets and sampled items."""
        counted = counted_negatives(streams, columns, self._sampler.num_negatives)
        log_q = log_probabilities(self._log_q, columns)
        return sampled_softmax_loss(logits, log_q, counted, temperature=self.args.temperature)

    def _item_loss(
        self,
        logits: Tensor,
        targets: Tensor,
        choices: dict[str, Tensor],
        items: Tensor,
        *,
        among: Tensor | None = None,
    ) -> LossOutput:
        """Computes the loss, `(N,)`, of N item tokens from their logits, `(N, V)`, or `(N, U)` if `among` contains
        the trie's U tokens. The softmax is over the legal tokens, or over the vocabulary if `choices` is empty."""
        if not choices:
            return self.token_loss(logits, targets, None)
        tokens, legal = self._legal(choices, items)
        columns = tokens if among is None else self.trie.columns(tokens)
        if len(tokens) == 1:  # all targets have the same legal children, as with the item_token surface
            place = torch.searchsorted(tokens[0], targets)
            # The legal columns are distinct and ascending. If there are as many legal columns as columns of the
            # logits, they are the same, and nothing is copied. Copying all columns would cost as much as the softmax.
            if len(columns[0]) < logits.shape[1]:
                logits = logits.index_select(1, columns[0])
            return self.token_loss(logits, place, legal)
        hit = tokens == targets.unsqueeze(1)  # (N, C)
        place = (hit if legal is None else hit & legal).long().argmax(1)
        return self.token_loss(logits.gather(1, columns), place, legal)

    def token_loss(self, logits: Tensor, targets: Tensor, legal: Tensor | None) -> LossOutput:
        """Computes the loss, `(N,)`, of target tokens, and the metrics `ce`, `margin` and `pruned`.

        Args:
            logits: `(N, C)`, the logits of the tokens that each target is chosen from.
            targets: `(N,)`, the column of each target.
            legal: `(N, C)`, True for legal tokens; `None` if all tokens are legal.
        """
        return bear_loss(
            logits,
            targets,
            legal,
            num_beams=self.args.num_beams,
            weight=self.args.bear_weight,
            sharpness=self.args.sharpness,
            temperature=self.args.temperature,
            variant=self.args.variant,
            smoothing=self.args.target_smoothing,
        )

    def _legal(self, choices: dict[str, Tensor], learned: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the tokens that each target is chosen from, `(N, C)`, and a mask of the legal ones, which is None if
        all are legal. If all targets are chosen from the same tokens, these have the shape `(1, C)`."""
        nodes = choices["trie_nodes"][:, 1:][learned[:, :-1]]  # (N,)
        distinct, place = nodes.unique(return_inverse=True)
        width = None if len(distinct) else 1
        if "items" not in choices:
            tokens, _, legal = self.trie.children(distinct, width)
            return (tokens, None) if len(distinct) == 1 else (tokens[place], legal[place])

        # Items that a list already contains are illegal, and so are the excluded items of the history.
        owner = learned.nonzero()[:, 0]
        ranks = choices["ranks"][:, 1:][learned[:, :-1]]
        taken = taken_places(self.trie, choices["items"][owner], ranks, choices["excluded"][owner])
        tokens, _, legal = legal_children(self.trie, distinct if len(distinct) == 1 else nodes, taken, width)
        return tokens, legal

    def _means(self, output: LossOutput, items: Tensor, learned: Tensor, tasks: Tensor | None) -> dict[str, Mean]:
        """Computes the metrics: means over item tokens, the share of rows with a pruned token, and means per task."""
        rows = learned.nonzero()[:, 0]  # (N,)
        is_item = items[learned]
        means = {f"bear/{name}": Mean(values[is_item].sum(), items.sum()) for name, values in output.metrics.items()}
        if "pruned" not in output.metrics:  # with sampled items, it is unknown what a beam would prune
            return means

        num_pruned = torch.zeros(len(learned), device=learned.device)
        num_pruned.index_put_((rows,), output.metrics["pruned"].to(num_pruned), accumulate=True)
        means["bear/rows_pruned"] = Mean((num_pruned > 0).sum(), items.any(1).sum())
        if tasks is not None:
            means.update(task_means(output.metrics["ce"], tasks[rows]))
        return means
