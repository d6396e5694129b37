"""Fine-tuning that keeps each target token inside the beam that will decode it."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from trl_rec.compat import name_or_path
from trl_rec.data.dataset import at_most
from trl_rec.data.list_evaluation import evaluation_list_rows
from trl_rec.data.list_rows import build_list_rows
from trl_rec.data.rows import IGNORED, build_rows, evaluation_rows
from trl_rec.data.task_templates import template_ids
from trl_rec.decoding.list_constraint import legal_children, taken_places
from trl_rec.items import ItemCatalog
from trl_rec.losses.bear import bear_loss
from trl_rec.losses.output import LossOutput
from trl_rec.models.loading import load_tokenizer
from trl_rec.models.selection import logits_at
from trl_rec.trainer.base.checks import NOT_TAKEN_BY_SFT, check_arguments, check_trainable
from trl_rec.trainer.base.trainer import RecTrainerMixin, is_split
from trl_rec.trainer.bear.collator import NextItemCollator, with_trie_nodes
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.list_labels import check_lists
from trl_rec.trainer.bear.task_collator import TaskCollator
from trl_rec.trainer.bear.task_losses import free_rows, item_places, task_means, task_sums, with_texts


CHOICES = ("trie_nodes", "ranks", "items", "excluded")  # what a batch says of its labels, besides what they are


class BearTrainer(RecTrainerMixin, SFTTrainer):
    """[`~trl.SFTTrainer`] with BEAR's loss, on next-item or list rows of a catalogue; everything else is inherited.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): As in `SFTTrainer`.
        args (`BearConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): `RecDataset.train`, or rows with `input_ids` and `labels` whose labels are catalogue
            items, or rows of lists as [`build_list_rows`] makes them, or of several tasks as [`build_training_rows`]
            does.
        eval_dataset (`Dataset`, *optional*): `RecDataset.validation`, whose users are then also ranked, or rows.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer, which knows the catalogue's tokens;
            the model's own otherwise.
        catalog (`ItemCatalog`): The items, whose surface says how they are written.
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

    args: BearConfig
    model: Any
    _tag_names = ["trl", "trl-rec", "bear"]
    _name = "BEAR"
    _paper = {"title": "BEAR", "id": "2601.22925"}
    loss_is_scaled_for_ga = None  # as in SFTTrainer: scaled exactly when `num_items_in_batch` is given

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: BearConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        catalog: ItemCatalog,
        **kwargs: Any,
    ) -> None:
        args = args or BearConfig("bear")
        kwargs = check_arguments(kwargs, NOT_TAKEN_BY_SFT, "BearTrainer")
        processing_class = processing_class or load_tokenizer(
            model if isinstance(model, str) else name_or_path(model),
            trust_remote_code=args.trust_remote_code or None,
        )
        self._set_catalog(catalog, processing_class, args, eval_dataset)
        self.renormalizes = args.softmax == "legal"
        if not args.bear_weight:
            self._name = "MSL" if self.renormalizes else "SFT"
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_trainable(self.model)
        self.data_collator = self._collator(processing_class, args)
        self.trie = self.trie.to(self.args.device)  # not the model's: DeepSpeed and FSDP move that later

    def _collator(self, tokenizer: PreTrainedTokenizerBase, args: BearConfig) -> NextItemCollator:
        """For rows of several tasks one that also learns which epoch begins."""
        common: dict[str, Any] = {
            "pad_token_id": tokenizer.pad_token_id,
            "trie": self.trie if self.renormalizes else None,
            "exclude_history": args.eval_exclude_history,
            "padding_side": tokenizer.padding_side,
            "pad_to_multiple_of": None if args.pad_to_multiple_of is None else int(args.pad_to_multiple_of),
        }
        if "task" not in getattr(self.train_dataset, "column_names", ()) or self.catalog is None:
            return NextItemCollator(**common)
        templates = template_ids(tokenizer, self.catalog.surface, chat_template=args.chat_template)
        collator = TaskCollator(**common, templates=templates, seed=args.seed)
        self.add_callback(collator)
        return collator

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *unused: Any) -> Dataset:
        """Splits become rows; rows stay as they are. Under the legal softmax each label learns its trie node."""
        *_, name = unused
        if is_split(dataset):
            dataset = self._rows(dataset, args) if name == "train" else self._evaluation_rows(dataset, args)
        if not {"input_ids", "labels"} <= set(dataset.column_names):
            raise ValueError(
                f"the {name} dataset has the columns {', '.join(dataset.column_names)}; pass a split of a RecDataset, or rows "
                "with input_ids and labels"
            )
        if not self.renormalizes or "trie_nodes" in dataset.column_names:
            return dataset
        if {"items", "history"} <= set(dataset.column_names):
            check_lists(dataset, self.trie, args.eval_exclude_history)
            return dataset
        return with_trie_nodes(dataset, self.trie, free_rows(dataset))

    def _rows(self, split: Dataset, args: BearConfig) -> Dataset:
        if args.tasks is not None:
            raise ValueError(
                "tasks need more than a split: pass train_dataset=build_training_rows(dataset, tokenizer, args), or leave "
                "tasks out"
            )
        if args.list_length is None or args.targets == "all":
            lengths = {"max_length": args.max_length, "max_history": args.max_history}
            return build_rows(split, self.prompt_format, targets=args.targets, **lengths)
        return build_list_rows(
            split, self.prompt_format, every_position=args.every_position, max_length=args.max_length
        )

    def _evaluation_rows(self, split: Dataset, args: BearConfig) -> Dataset:
        split = at_most(args.max_users, split)
        if args.list_length is not None:
            return evaluation_list_rows(split, self.prompt_format, max_length=args.max_length)
        return evaluation_rows(split, self.prompt_format, max_length=args.max_length, max_history=args.max_history)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["input_ids", "labels", "trie_nodes", "history", "items"]
        self._signature_columns += ["task", "slots", "row", "length"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of BEAR's loss over the target tokens that are not forced, over their number in the whole accumulated,
        all-process batch. Target tokens that are no item's have plain cross-entropy over the vocabulary."""
        inputs = dict(inputs)
        labels, tasks = inputs.pop("labels"), inputs.pop("tasks", None)
        choices = {name: inputs.pop(name) for name in CHOICES if name in inputs}
        learned = torch.zeros_like(labels, dtype=torch.bool)
        learned[:, :-1] = labels[:, 1:] != IGNORED  # a position predicts the token after it
        with logits_at(self.model, learned):
            outputs = model(**inputs, use_cache=False)
        output = self._loss(outputs.logits[0], labels[:, 1:][learned[:, :-1]], choices, learned, tasks)
        count = learned.sum() if num_items_in_batch is None else num_items_in_batch
        loss = output.loss.sum() / torch.as_tensor(count, device=labels.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = (
                loss * self.accelerator.num_processes
            )  # the count is over all processes, and DDP averages their gradients
        self._append_metrics(output, learned, inputs["attention_mask"], tasks)
        return (loss, outputs) if return_outputs else loss

    def _loss(
        self, logits: Tensor, targets: Tensor, choices: dict[str, Tensor], learned: Tensor, tasks: Tensor | None
    ) -> LossOutput:
        items = item_places(learned, tasks)
        if tasks is None:
            return self._bear(logits, targets, choices, items)
        return with_texts(logits, targets, items[learned], lambda of, to: self._bear(of, to, choices, items))

    def _bear(self, logits: Tensor, targets: Tensor, choices: dict[str, Tensor], learned: Tensor) -> LossOutput:
        """The loss `(N,)` of the N target tokens from their logits `(N, V)`."""
        legal = None
        if choices:
            tokens, legal = self._legal(choices, learned)
            if len(tokens) == 1:  # as with item tokens: all are chosen among the same ones
                targets, logits = torch.searchsorted(tokens[0], targets), logits.index_select(1, tokens[0])
            else:
                hit = (tokens == targets.unsqueeze(1)) & legal  # type: ignore[operator]
                targets, logits = hit.long().argmax(1), logits.gather(1, tokens)
        return bear_loss(
            logits,
            targets,
            legal,
            num_beams=self.args.num_beams,
            weight=self.args.bear_weight,
            sharpness=self.args.sharpness,
            temperature=self.args.temperature,
            variant=self.args.variant,
        )

    def _legal(self, choices: dict[str, Tensor], learned: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens `(N, C)` that each target token is chosen among, and which of them count: all, if that is None.
        The tokens are `(1, C)` where all have the same."""
        nodes = choices["trie_nodes"][:, 1:][learned[:, :-1]]
        alike, place = nodes.unique(return_inverse=True)
        width = None if len(alike) else 1
        if "items" not in choices:
            tokens, _, legal = self.trie.children(alike, width)
            return (tokens, None) if len(alike) == 1 else (tokens[place], legal[place])
        owner, ranks = learned.nonzero()[:, 0], choices["ranks"][:, 1:][learned[:, :-1]]
        taken = taken_places(self.trie, choices["items"][owner], ranks, choices["excluded"][owner])
        tokens, _, legal = legal_children(self.trie, alike if len(alike) == 1 else nodes, taken, width)
        return tokens, legal

    def _append_metrics(
        self, output: LossOutput, learned: Tensor, attention_mask: Tensor, tasks: Tensor | None = None
    ) -> None:
        """Means over the items' target tokens of all processes; `rows_pruned` is the share of rows with any token
        pruned. Of several tasks, each has a mean of its own."""
        mode = "train" if self.model.training else "eval"
        rows, items = learned.nonzero()[:, 0], item_places(learned, tasks)
        pruned = torch.zeros(len(learned), device=learned.device)
        pruned.index_put_((rows,), output.metrics["pruned"].to(pruned), accumulate=True)
        watched = (output.metrics[name][items[learned]].sum() for name in ("ce", "margin", "pruned"))
        sums = [output.loss.detach().sum(), *watched]
        sums += [(pruned > 0).sum(), items.sum(), items.any(1).sum(), attention_mask.sum()]
        local = torch.stack([value.to(torch.float32) for value in sums])
        if tasks is not None:
            local = torch.cat([local, task_sums(output.metrics["ce"], tasks[rows])])
        total = (
            self.accelerator.gather(local.unsqueeze(0)).sum(0).tolist()
        )  # one row a process, none of them a padded sample
        loss, ce, margin, num_pruned, rows_pruned, tokens, num_rows, seen, *by_task = total
        if not loss - loss == 0:
            raise ValueError(f"the loss is {loss} at step {self.state.global_step}: {self._broken_row(output, rows)}")
        means = {"ce": ce / max(tokens, 1), "margin": margin / max(tokens, 1), "pruned": num_pruned / max(tokens, 1)}
        means = {
            f"bear/{name}": value for name, value in {**means, "rows_pruned": rows_pruned / max(num_rows, 1)}.items()
        }
        if by_task:  # a step may have none of a task, and no item
            means = {**(means if tokens else {}), **task_means(by_task)}
        for name, value in means.items():
            self._metrics[mode][name].append(value)
        if mode == "train":
            self._total_train_tokens += int(seen)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    @staticmethod
    def _broken_row(output: LossOutput, rows: Tensor) -> str:
        broken = rows[~output.loss.isfinite()].unique().tolist()
        return (
            f"rows {broken} of this process's batch; lower the learning rate, or look at the data"
            if broken
            else "elsewhere"
        )
