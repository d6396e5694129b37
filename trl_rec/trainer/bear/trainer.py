"""Trains a model with BEAR's loss, so that beam search keeps each target token.

Legend: B rows, T tokens of the longest row, N target tokens, C tokens that a target is chosen from, U distinct tokens
of the trie, V vocabulary, L items drawn per row as negatives (with `sampled_items`).
"""

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
from trl_rec.decoding.lists.constraint import legal_children, taken_places
from trl_rec.items import ItemCatalog
from trl_rec.losses.bear import bear_loss
from trl_rec.losses.output import LossOutput
from trl_rec.losses.sampled import sampled_softmax_loss
from trl_rec.models.branches import prepare_branches
from trl_rec.models.embedding_dropout import add_embedding_dropout
from trl_rec.models.experts import attending_by, balance_on_request, balancing_loss, routing
from trl_rec.models.loading import find_tokenizer
from trl_rec.models.sampled_columns import SampledColumns, collect_rows, collecting_rows
from trl_rec.models.selection import logits_at, places_of
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
from trl_rec.trainer.base.checks import NOT_TAKEN_BY_SFT, check_arguments, check_trainable
from trl_rec.trainer.base.metrics import BatchLoss, Mean
from trl_rec.trainer.base.saving.model_card import Paper
from trl_rec.trainer.base.saving.output import default_output
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
from trl_rec.trainer.bear.tasks import TaskCollator, answers_item, free_rows, task_means, with_texts


# Entries of a batch that determine which tokens are legal at each label.
CHOICES = ("trie_nodes", "ranks", "items", "excluded")


class BearTrainer(CatalogRankingMixin, SFTTrainer):
    """[`~trl.SFTTrainer`] with BEAR's loss, for rows that predict the next item or a list of items.

    To use another loss for item tokens, override [`~BearTrainer.token_loss`]. In training with `sampled_items`, this
    method is not called.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): Same as in `SFTTrainer`.
        args (`BearConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): `RecDataset.train`, list rows from [`build_list_rows`], rows of several tasks from
            [`build_training_rows`], or other rows with `input_ids` and `labels`. The labels of rows of this last
            kind must be items of the catalogue if `softmax` is `"legal"` or `target_age_decay` is below 1.
        eval_dataset (`Dataset`, *optional*): Rows as in `train_dataset`, or a split such as `RecDataset.validation`.
            For the users of a split, evaluation also ranks the catalogue.
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
    # None, as in SFTTrainer, lets `Trainer` decide: if it passes `num_items_in_batch`, it assumes that the loss is
    # already scaled for gradient accumulation.
    loss_is_scaled_for_ga: Any = None

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
        # 1. Check the arguments.
        args = args or BearConfig(default_output(model, "BEAR"))
        kwargs = check_arguments(kwargs, NOT_TAKEN_BY_SFT, "BearTrainer")
        if args.sampled_items is not None and catalog.surface != "item_token":
            raise ValueError(
                f"sampled_items requires the surface 'item_token', not '{catalog.surface}', because an item must be a "
                "single token; leave sampled_items out, or change the surface"
            )

        # 2. Prepare the catalogue, which the parent's __init__ needs to build the rows.
        tokenizer = find_tokenizer(model, processing_class, args.trust_remote_code)
        self._set_catalog(catalog, tokenizer, args, eval_dataset)
        self.renormalizes = args.softmax == "legal"
        if not args.bear_weight:
            self.display_name = "MSL" if self.renormalizes else "SFT"
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=tokenizer, **kwargs
        )

        # 3. Complete the model and the collator.
        check_trainable(self.model)
        add_embedding_dropout(self.model)
        balance_on_request(self.model)
        self.data_collator = self._collator(tokenizer, args)
        self.trie = self.trie.to(self.args.device)  # not the model's device: DeepSpeed and FSDP move the model later

    def _collator(self, tokenizer: PreTrainedTokenizerBase, args: BearConfig) -> NextItemCollator:
        """Builds the collator.

        With several tasks, the collator draws prompt templates anew in each epoch; with sampled items, it draws
        negatives. In these cases, the collator is also added as a callback, so that it is given the current epoch.
        """
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
        """Returns the sampler of negatives, and sets `_log_q`.

        Where sparse gradients are supported, also prepares the embeddings for them (see [`collect_rows`]).
        """
        labels = split_rows(self.train_dataset, "labels").values
        tokens = self.catalog.paths(tokenizer).first(self.catalog.num_recommendable).values
        sampler = ItemSampler(tokens, labels[labels != IGNORED], num_negatives, sampled_from)
        self._log_q = sampler.log_q(int(tokens.max()) + 1).to(self.args.device)
        # DeepSpeed, FSDP, torch.compile, and devices other than CPU and CUDA do not support sparse gradients.
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
        """Builds rows if `dataset` is a split. Otherwise, checks the rows that `dataset` contains.

        With `softmax="legal"`, adds a column with the trie node at which each label is chosen. Also adds this column
        if `target_age_decay` is not 1, because the nodes show where each item begins. List rows get no such column,
        because the collator computes their nodes.
        """
        # 1. Build rows from a split.
        if is_split(dataset):
            dataset = self._rows(dataset, args) if dataset_name == "train" else self._evaluation_rows(dataset, args)
        columns = set(dataset.column_names)
        if not {"input_ids", "labels"} <= columns:
            raise ValueError(
                f"the {dataset_name} dataset has the columns {', '.join(dataset.column_names)}; pass a split of a "
                "RecDataset, or rows with input_ids and labels"
            )

        # 2. Add the columns that the options require.
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
        """Builds the training rows of a split."""
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
        """Builds the rows for evaluating the loss on a split, for at most `max_users` users."""
        split = at_most(args.max_users, split)
        if args.list_length is not None:
            return evaluation_list_rows(split, self.prompt_format, max_length=args.max_length)
        return evaluation_rows(split, self.prompt_format, max_length=args.max_length, max_history=args.max_history)

    def _set_signature_columns_if_needed(self) -> None:
        """Sets the names of the columns that are used. `Trainer` removes all other columns from the rows."""
        rows = ["input_ids", "labels", "trie_nodes", "history", "items", *BRANCH_COLUMNS]
        self._signature_columns: Any = [*rows, "task", "slots", "row", "length"]

    # Loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor | int | None]:
        """Same as `Trainer.get_batch_samples`, except that it sums the weights of target tokens.

        Target tokens have weights if `target_age_decay` is not 1. Otherwise they are counted, as in `Trainer`.
        """
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

        The average is weighted if `target_age_decay` is not 1. Under the softmax over legal tokens, a token that is
        the only legal one (a forced token) does not count as a target token. The loss of target tokens that are not
        part of an item is cross-entropy over the vocabulary. In training with `sampled_items`, the loss is
        [`sampled_softmax_loss`] instead of BEAR's.
        """
        bare = self.bare(model)
        num_rows = len(inputs["labels"])
        inputs, mask, owners = prepare_branches(bare, inputs, self.args.max_length)
        labels = inputs.pop("labels")  # (B, T)
        tasks = inputs.pop("tasks", None)  # (B,)
        target_weights = inputs.pop("target_weights", None)  # (B, T)
        streams = inputs.pop("negatives", None)  # (B, L)
        choices = {name: inputs.pop(name) for name in CHOICES if name in inputs}

        # 1. Compute logits at the N positions that have a target. A position predicts the label of the next position.
        # Under the softmax over legal tokens, item tokens need only the logits of the trie's U tokens. The tokens of
        # texts need the logits of the whole vocabulary.
        tokens = self.trie.tokens if choices and tasks is None else None
        columns = None  # set only in training with sampled items
        learned = torch.zeros_like(labels, dtype=torch.bool)
        learned[:, :-1] = labels[:, 1:] != IGNORED
        places = places_of(learned)  # (N,): indices into all B * T positions
        rows = places // labels.shape[1]  # (N,)
        targets = labels.flatten().index_select(0, places + 1)  # (N,)
        if streams is not None and model.training:
            columns = SampledColumns(rows, targets, streams.clamp(min=0))
        num_tokens = inputs["attention_mask"].sum()
        with ExitStack() as reading:
            if mask is not None and self.aux_loss_enabled:
                reading.enter_context(attending_by(bare, mask))
            elif mask is not None:
                inputs["attention_mask"] = mask
            reading.enter_context(logits_at(bare, places, tokens=columns or tokens))
            reading.enter_context(collecting_rows(bare))
            outputs = model(**inputs, **routing(bare, self.aux_loss_enabled), use_cache=False)
        logits = outputs.logits[0]  # (N, V), (N, U) or (N, 1 + L)

        # 2. Compute the loss of each target token.
        is_item = None if tasks is None else answers_item(tasks)[rows]  # (N,)
        if columns is not None and streams is not None:
            output = self._sampled_loss(logits, streams, columns)
        elif is_item is None:
            output = self._item_loss(logits, targets, choices, places, among=tokens)
        else:
            output = with_texts(
                logits, targets, is_item, lambda of, to, part: self._item_loss(of, to, choices, places[part])
            )

        # 3. Average over target tokens. The count covers all processes, but DDP averages gradients, so the loss is
        # scaled by the number of processes.
        if target_weights is None:
            count = len(places) if num_items_in_batch is None else num_items_in_batch
            count = count.to(labels.device).clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
            loss = output.loss.sum() / count
        else:
            weights = target_weights.flatten().index_select(0, places + 1)  # (N,)
            total = torch.as_tensor(weights.sum() if num_items_in_batch is None else num_items_in_batch)
            loss = (weights * output.loss).sum() / total.to(weights).clamp(min=torch.finfo(weights.dtype).tiny)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes

        originals = rows if owners is None else owners[rows]
        row_losses = torch.zeros(num_rows, device=labels.device).index_add(0, originals, output.loss.detach().float())
        means = self._means(output, rows, learned, tasks)
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
        places: Tensor,
        *,
        among: Tensor | None = None,
    ) -> LossOutput:
        """Computes the loss, `(N,)`, of N item tokens from their logits, `(N, V)`.

        If `among` is given, it contains the trie's U tokens, and `logits` contains only the logits of these tokens,
        `(N, U)`. The softmax is over the legal tokens, or over the vocabulary if `choices` is empty. `places`, `(N,)`,
        are the positions that predict the tokens, as indices into all B * T positions.
        """
        if not choices:
            return self.token_loss(logits, targets, None)
        tokens, nodes, legal = self._legal(choices, places)
        columns = tokens if among is None else self.trie.edge_columns[(nodes - 1).clamp(min=0)]
        if self.trie.only_choice is not None:  # all targets are chosen at one node, as with the surface item_token
            place = torch.searchsorted(tokens[0], targets)
            # The indices in `columns` are distinct and ascending. If there are as many indices as logits, they select
            # all logits in order. In that case, skip the copy, because it would cost as much as the softmax.
            if len(columns[0]) < logits.shape[1]:
                logits = logits.index_select(1, columns[0])
            return self.token_loss(logits, place, legal)
        assert legal is not None  # only None if all targets are chosen at one node
        hit = (tokens == targets.unsqueeze(1)) & legal  # (N, C)
        return self.token_loss(logits.gather(1, columns), hit.long().argmax(1), legal)

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

    def _legal(self, choices: dict[str, Tensor], places: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the tokens that each target is chosen from, the nodes that they lead to, and whether they are legal.

        All have the shape `(N, C)`. If only one node of the trie has several children, tokens and nodes have the shape
        `(1, C)`. If, in addition, the rows are not list rows, all C tokens are legal, and the mask of legal tokens is
        None.
        """
        # Pad to the number of children of the trie's widest node. Padding to the widest node of this batch would need
        # a copy from the device to the host, and would rarely save anything: every batch contains the root, which is
        # nearly always the widest node.
        trie = self.trie
        width = trie.max_width
        nodes = choices["trie_nodes"].flatten().index_select(0, places + 1)  # (N,)
        if trie.only_choice is not None:
            nodes = nodes.new_full((1,), trie.only_choice)
        if "items" not in choices:
            tokens, children, legal = trie.children(nodes, width)
            return tokens, children, None if trie.only_choice is not None else legal

        # Items that a list already contains are illegal, and so are the excluded items of the history.
        owner = places // choices["trie_nodes"].shape[1]
        ranks = choices["ranks"].flatten().index_select(0, places + 1)
        taken = taken_places(trie, choices["items"][owner], ranks, choices["excluded"][owner])
        return legal_children(trie, nodes, taken, width)

    def _means(self, output: LossOutput, rows: Tensor, learned: Tensor, tasks: Tensor | None) -> dict[str, Mean]:
        """Computes the metrics: means over item tokens, the share of rows with a pruned token, and means per task.

        A token is pruned if it is outside the beam. `rows`, `(N,)`, is the row of each target token.
        """
        # 1. Average over item tokens. With tasks, the values of other tokens are set to 0. Leaving them out would make
        # the host wait for the device, which alone knows the number of item tokens.
        of_items = output.metrics
        num_values: Tensor | int = len(rows)
        has_items = learned.any(1)  # (B,)
        if tasks is not None:
            answers = answers_item(tasks)  # (B,)
            of_items = {name: torch.where(answers[rows], values, 0) for name, values in output.metrics.items()}
            num_values = answers[rows].sum()
            has_items = has_items & answers
        means = {f"bear/{name}": Mean(values.sum(), num_values) for name, values in of_items.items()}
        if "pruned" not in output.metrics:  # with sampled items, it is unknown what a beam would prune
            return means

        # 2. Count the rows with a pruned token.
        num_pruned = torch.zeros(len(learned), device=learned.device)
        num_pruned = num_pruned.index_add(0, rows, output.metrics["pruned"].to(num_pruned))
        means["bear/rows_pruned"] = Mean((num_pruned > 0).sum(), has_items.sum())
        if tasks is not None:
            means.update(task_means(output.metrics["ce"], tasks[rows]))
        return means
