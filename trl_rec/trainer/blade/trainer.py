"""Trains a policy that writes lists. The policy learns by policy gradient, by default from BLADE's Best-of-N rewards.

In each step, the policy samples several lists per prompt (the rollouts). By default, the reference policy samples
further lists per prompt before training (the reference lists). The Best-of-N reward of a rollout then depends on the
rank of the rollout's reward, such as NDCG, among the rewards of the prompt's reference lists and rollouts.

Each prompt is processed once to sample all of its lists (see `decoding.lists`). The policy and the reference then
compute the log-probabilities of the lists. Each of them processes the prompt once more, or once per list if the model
cannot read several lists in one row (see `models.completions`). The log-probabilities are those of the softmax over
legal tokens that sampling uses.

Legend: B prompts, G rollouts per prompt, M reference lists per prompt, K items per list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from trl_rec.compat import (
    TrainOutput,
    complete_ref_adapter,
    drop_plain_dropout,
    prepare_deepspeed,
    train_batch_size,
    unwrapped_for_generation,
    without_step_hook,
)
from trl_rec.data.dataset import at_most, split_rows
from trl_rec.data.list_rows import build_list_prompts, complete_list_prompts
from trl_rec.decoding.lists.constraint import ListChoices, ListTokens, choice_logps, find_choices, list_tokens
from trl_rec.decoding.lists.sampling import sample_item_lists
from trl_rec.evaluation.rewards import ListReward
from trl_rec.items import ItemCatalog
from trl_rec.losses.blade import leave_one_out, list_policy_loss, standardized
from trl_rec.models.completions import CompletionLogits, Layout, read_completions
from trl_rec.models.experts import balance_on_request
from trl_rec.models.loading import find_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
from trl_rec.trainer.base.checks import NOT_TAKEN, check_arguments, check_trainable
from trl_rec.trainer.base.metrics import BatchLoss, Mean
from trl_rec.trainer.base.reference import ReferenceMixin, copy_of_policy, hash_weights, not_training
from trl_rec.trainer.base.sampling import RepeatedBatches
from trl_rec.trainer.base.saving.fingerprint import run_entries
from trl_rec.trainer.base.saving.model_card import Paper
from trl_rec.trainer.base.saving.output import default_output
from trl_rec.trainer.base.trainer import EvalSets, is_split
from trl_rec.trainer.blade.collator import ListPromptCollator, check_enough_items
from trl_rec.trainer.blade.config import TARGETS, BladeConfig
from trl_rec.trainer.blade.reference_lists import draw_reference_lists, reference_store, with_reference_lists
from trl_rec.trainer.blade.reward_functions import import_rewards
from trl_rec.trainer.blade.rewards import BatchRewards, reward_target
from trl_rec.trainer.blade.rollouts import Rollouts, rollout_metrics


NO_DRAWING_UNDER_FSDP = "lists cannot be sampled under FSDP; use DDP or DeepSpeed"
# Combined with args.seed, so that reference lists and rollouts use different random numbers.
REFERENCE_SEED = 0
ROLLOUT_SEED = 1


class BladeTrainer(CatalogRankingMixin, ReferenceMixin, DPOTrainer):
    """[`~trl.DPOTrainer`] that samples lists and learns from their rewards.

    `args.target` selects BLADE or a simpler learning target.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The policy. It must have been fine-tuned to write
            lists. If items are written as item tokens or semantic IDs, it may instead have been fine-tuned on the
            item sequences of users, with all items as targets.
        ref_model (`PreTrainedModel`, *optional*): The reference. By default, it is the initial policy. For policies
            with an adapter, see [`SoftmaxDPOTrainer`].
        args (`BladeConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): `RecDataset.train`.
        eval_dataset (`Dataset`, *optional*): `RecDataset.validation`. At each evaluation, lists are generated for its
            users.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer. By default, the tokenizer of the
            model.
        catalog (`ItemCatalog`): The catalogue. The rewards `ild` and `mgu` use its groups of items, such as genres.
        reward_functions (`Mapping[str, ListReward]`, *optional*): Additional reward functions by name; see
            [`score_lists`]. They are used together with the functions of `args.reward_functions`, and replace those
            of the same name. Their weights are in `args.rewards`.
        kwargs: Passed to `DPOTrainer`.

    Example:

    ```python
    trainer = BladeTrainer(
        load_policy("runs/sft"),
        args=BladeConfig("runs/blade", rewards={"ndcg": 1.0, "mgu": 4.0}),
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        catalog=dataset.catalog,
    )
    trainer.train()
    ```
    """

    method = "blade"
    display_name = "BLADE"
    paper = Paper("Bayesian List-wise Alignment via Dynamic Estimation for LLM-based Recommendation", "2605.04559")
    # The column of reference lists is left out of the run's fingerprint (see `fingerprint.py`), because other entries
    # of the fingerprint determine the lists.
    derived_columns = frozenset({"references"})
    measures_loss_on_splits = False  # the loss needs rollouts; evaluation generates lists for the users of a split

    args: BladeConfig
    catalog: ItemCatalog
    train_dataset: Any

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: BladeConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: EvalSets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        catalog: ItemCatalog,
        reward_functions: Mapping[str, ListReward] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or BladeConfig(default_output(model, "BLADE"))
        kwargs = check_arguments(kwargs, NOT_TAKEN, "BladeTrainer")
        tokenizer = find_tokenizer(model, processing_class, args.trust_remote_code)
        self._set_catalog(catalog, tokenizer, args, eval_dataset)
        self.trie = self.trie.to(args.device)
        self.display_name = TARGETS[args.target]
        self.reward_weights = args.reward_weights
        functions = {**import_rewards(args.reward_paths), **(reward_functions or {})}
        self.rewards = BatchRewards(catalog, args.reward_weights, functions)
        # `_rollouts` maps the row indices of a batch to its rollouts. `_drawn_at` is the value of
        # `global_step // num_iterations` at which these rollouts were sampled.
        self._rollouts: dict[tuple[int, ...], Rollouts] = {}
        self._drawn_at = -1
        # The reference lists of all rows are drawn `reference_draws` times. Draw 0 takes place before training, and
        # samples the lists from the reference. Later draws take place at regular intervals during training, and sample
        # the lists from the current policy. `_redraw_number` is the number of the newest draw. If it is above 0,
        # `_redrawn` contains the lists of this draw, `(num_rows, M, K)`. The lists of draw 0 are in `train_dataset`.
        # `_reference_key` contains everything that the lists of draw 0 depend on, except the rows.
        self._redrawn = np.empty((0, 0, 0), np.int64)
        self._redraw_number = 0
        self._reference_key: tuple[Any, ...] = ()
        super().__init__(
            model,
            copy_of_policy(model, kwargs.get("peft_config")) if ref_model is None else ref_model,
            args,
            ListPromptCollator(tokenizer.pad_token_id, self._exclusions(args)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            **kwargs,
        )

        complete_ref_adapter(self.model)
        check_trainable(self.model)
        balance_on_request(self.model)
        drop_plain_dropout(self.model)
        few_rows = self.data_collator([self.train_dataset[row] for row in range(min(2, len(self.train_dataset)))])
        self.rewards.check(few_rows, self.args.num_list_items)

    # Rows

    def _prepare_dataset(  # type: ignore[override]  # narrower types than TRL's
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: BladeConfig,
        dataset_name: str,
    ) -> Dataset:
        """Converts the training split to prompts. Evaluation splits are returned unchanged."""
        if not is_split(dataset):
            raise ValueError(
                f"the {dataset_name} dataset is not a split of a RecDataset; pass dataset.train or dataset.validation"
            )
        if dataset_name != "train":
            return dataset

        prompts = build_list_prompts(
            dataset, self.prompt_format, every_position=args.every_position, max_length=args.max_length
        )
        rows = at_most(args.max_prompts, prompts)
        self.rewards.check_targets(split_rows(rows, "targets"))
        if args.eval_exclude_history:
            num_recommendable = self.catalog.num_recommendable
            check_enough_items(rows, self.prompt_format, args.num_list_items, num_recommendable=num_recommendable)
        return rows.add_column("row", np.arange(len(rows))).flatten_indices()

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["prompt_ids", "history", "targets", "row", "references"]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """Returns a sampler that yields each batch for `num_iterations` successive steps."""
        if self.args.num_iterations == 1:
            return super()._get_train_sampler(train_dataset)
        rows = len(self.train_dataset if train_dataset is None else train_dataset)
        batch_size = train_batch_size(self) * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        return self._following_epochs(RepeatedBatches(rows, batch_size, self.args.num_iterations, self._data_seed))

    # Reference lists

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: dict[str, Any] | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Same as `DPOTrainer.train`, except that missing reference lists are sampled first."""
        if self.is_fsdp_enabled:
            raise ValueError(NO_DRAWING_UNDER_FSDP)
        # Discard the rollouts and the redrawn reference lists of an earlier call, which came from another policy.
        self._drawn_at = -1
        self._redraw_number = 0
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _prepare_run(self) -> None:
        if self.args.num_references:
            self.draw_references()

    def draw_references(self) -> None:
        """Adds M reference lists to each training row. Lists on disk are read, and missing lists are sampled.
        `train` calls this method."""
        rows = self.train_dataset
        args = self.args
        if "references" in rows.column_names:
            return

        # 1. Open the store. Its name contains a hash of everything that the lists depend on.
        settings = (args.num_references, args.list_length, args.temperature, args.eval_exclude_history, args.seed)
        weights = hash_weights(self.bare(self.reference_of(self.model)))
        self._reference_key = (weights, settings, self.catalog.fingerprint)
        store = reference_store(args.reference_dir or str(args.output_dir), rows, *self._reference_key)

        # 2. Get the reference: a separate model, or the policy, whose adapter is switched off or replaced below.
        model = self.reference_of(self.model)
        engine = None
        if self.ref_model is None and self.is_deepspeed_enabled:  # DeepSpeed has not prepared the policy yet
            engine = prepare_deepspeed(self.model, self.accelerator)
            model = engine

        # 3. Sample the missing lists in parts, divided among the processes.
        with self._generating(model) as drawing, self.switched_to_reference(model):

            def draw(batch: dict[str, Tensor]) -> Tensor:
                """Samples the reference lists of a batch of prompts."""
                return self._draw(
                    drawing, batch, args.num_references, (args.seed, REFERENCE_SEED), batch["row"].tolist()
                )

            draw_reference_lists(
                store, rows, draw, self.data_collator, self.accelerator, batch_size=args.reference_batch_size
            )
        if engine is not None:
            engine.destroy()  # otherwise its hooks would interfere with the engine used for training
        self.train_dataset = with_reference_lists(rows, store)

    def _with_current_references(
        self, inputs: dict[str, Tensor], number: int, rows: Sequence[int]
    ) -> dict[str, Tensor]:
        """Returns the inputs of a step with the reference lists of the newest draw.

        Args:
            inputs: The inputs, with the lists of the first draw.
            number: Index of the global batch that the inputs belong to, from 0. Each global batch is used for
                `num_iterations` steps.
            rows: The row indices in `inputs["row"]`, on the host.
        """
        args = self.args
        step = number * args.num_iterations
        draw_number = step * args.reference_draws // max(self.state.max_steps, 1)
        if draw_number == 0:
            return inputs
        if draw_number != self._redraw_number:
            self._redrawn = self._redraw(draw_number, step)
            self._redraw_number = draw_number
        references = torch.from_numpy(self._redrawn[rows]).to(inputs["references"].device)
        return {**inputs, "references": references}

    def _redraw(self, number: int, step: int) -> np.ndarray:
        """Returns the reference lists of a later draw, `(num_rows, M, K)`. Lists on disk are read, and missing lists
        are sampled."""
        # 1. Open the store. The lists depend on the policy, and the policy depends on the settings of the run.
        # Therefore the name of the store contains a hash of these settings.
        args = self.args
        rows = self.train_dataset
        of_run = run_entries(args, self.accelerator.num_processes)
        store = reference_store(str(args.output_dir), rows, *self._reference_key, number, of_run)

        # 2. Missing lists can be sampled only at the first step that uses them. A run that resumes later no longer has
        # the policy of that step.
        first = -(-number * self.state.max_steps // args.reference_draws)
        first = -(-first // args.num_iterations) * args.num_iterations
        if step != first and store.missing():
            raise ValueError(
                f"the reference lists that were drawn at step {first} are missing in {store.folder}, and the policy "
                f"of that step is gone; remove the checkpoints after step {first}, or start the run again"
            )

        # 3. Sample the missing lists.
        with self._generating(self.model_wrapped) as drawing:

            def draw(batch: dict[str, Tensor]) -> Tensor:
                """Samples the lists of a batch of prompts from the current policy."""
                seed = (args.seed, REFERENCE_SEED, number)
                return self._draw(drawing, batch, args.num_references, seed, batch["row"].tolist())

            draw_reference_lists(
                store, rows, draw, self.data_collator, self.accelerator, batch_size=args.reference_batch_size
            )
        return store.read_all()

    def best_reference_rows(self) -> Dataset:
        """Returns training rows for [`BearTrainer`]. The completion of each prompt is the prompt's reference list with
        the highest reward. Training on these rows is an offline form of Best-of-N."""
        self.draw_references()
        best_lists: list[np.ndarray] = []
        for start in range(0, len(self.train_dataset), self.args.reference_batch_size):
            numbers = range(start, min(start + self.args.reference_batch_size, len(self.train_dataset)))
            batch = self.data_collator([self.train_dataset[row] for row in numbers])
            best = self.rewards.of_references(batch).argmax(1)  # (B,)
            best_lists.append(batch["references"][torch.arange(len(best)), best].numpy())
        lists = np.concatenate(best_lists)  # (num_rows, K)
        items = Ragged.from_lengths(lists.ravel(), np.full(len(lists), lists.shape[1]))
        return complete_list_prompts(self.train_dataset, items, self.prompt_format)

    # Loss

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> BatchLoss:
        """Computes the policy gradient loss, averaged over all rollouts."""
        # 1. Sample lists in the first of the `num_iterations` steps on a batch, and reuse them in the other steps.
        number = self.state.global_step // self.args.num_iterations
        rows = inputs["row"].tolist()
        if number != self._drawn_at:
            self._rollouts = {}
            self._drawn_at = number
        if self.args.reference_draws > 1 and (*rows,) not in self._rollouts:
            inputs = self._with_current_references(inputs, number, rows)
        rollouts = self._rollouts.get((*rows,))
        if rollouts is None:
            seed = (self.args.seed, ROLLOUT_SEED, number)
            with self._generating(self.model_wrapped) as drawing:
                items = self._draw(drawing, inputs, self.args.num_generations, seed, rows)  # (B, G, K)
        else:
            items = rollouts.items

        # 2. Compute the log-probabilities of the lists. New lists also get their rewards and advantages.
        lists = list_tokens(self.trie, items)
        read = self._read(model, inputs, lists, balanced=self.aux_loss_enabled)
        choices = self._choices(read, inputs, items, lists)
        logps = self._list_logps(read, choices)  # (B, G)
        if rollouts is None:
            # Pass on `read.layout`, the packing of the lists into rows, so that it is not computed again for the
            # reference.
            ref_logps = self._ref_logps(model, inputs, lists, choices, read.layout)
            rollouts = self._valued(inputs, items, logps.detach(), ref_logps)
            self._rollouts[(*rows,)] = rollouts

        # 3. Compute the policy gradient loss.
        output = list_policy_loss(logps, rollouts.old_logps, rollouts.advantages, clip=self.args.clip)

        values = rollout_metrics(rollouts, self.catalog.num_recommendable)
        values.update({f"blade/{name}": value.mean(1) for name, value in output.metrics.items()})
        means = {name: Mean.of(value) for name, value in values.items()}
        num_tokens = inputs["prompt_mask"].sum() + lists.mask.sum()
        row_losses = output.loss.detach().sum(1)  # (B,)
        loss = output.loss.mean()
        return BatchLoss(loss, row_losses, means, num_tokens, row_ids=inputs["row"], aux_loss=read.aux_loss)

    def _valued(self, inputs: dict[str, Tensor], items: Tensor, logps: Tensor, ref_logps: Tensor) -> Rollouts:
        """Returns the rollouts with their rewards and advantages.

        The value of a list is the list's learning target minus its KL penalty. The advantage of the list compares this
        value with the values of the prompt's other lists.
        """
        rewards = self.rewards.score(items, inputs)
        references = self.rewards.of_references(inputs)
        targets = reward_target(rewards.total, references, self.args).to(logps.dtype)  # (B, G)
        values = targets - self.beta * (logps - ref_logps)
        advantages = standardized(values) if self.args.standardize else leave_one_out(values)
        return Rollouts(items, rewards, references, targets, ref_logps, logps, advantages)

    def _read(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        lists: ListTokens,
        layout: Layout | None = None,
        *,
        balanced: bool = False,
    ) -> CompletionLogits:
        """Runs one forward pass over lists, and returns the logits of all tokens that are not forced. A token is
        forced if it is the only continuation of the trie node before it."""
        return read_completions(
            self.bare(model),
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            lists.token_ids,
            lists.mask,
            scored=lists.branches,
            tokens=self.trie.tokens,
            wrapped=model,
            balanced=balanced,
            layout=layout,
        )

    def _choices(
        self, read: CompletionLogits, inputs: dict[str, Tensor], items: Tensor, lists: ListTokens
    ) -> ListChoices:
        """Returns the tokens that each list token is chosen from. These tokens are the same as in sampling."""
        return find_choices(self.trie, items, lists, read.places_in(lists.branches), self._excluded(inputs))

    def _list_logps(self, read: CompletionLogits, choices: ListChoices) -> Tensor:
        """Returns the log-probability of each list, `(B, G)`, at the temperature of sampling."""
        return choice_logps(read, choices, temperature=self.args.temperature).sum(-1)

    def _logps(self, model: nn.Module, inputs: dict[str, Tensor], items: Tensor) -> Tensor:
        """Runs a forward pass and returns the log-probability of each list of `items`, `(B, G)`."""
        lists = list_tokens(self.trie, items)
        read = self._read(model, inputs, lists)
        return self._list_logps(read, self._choices(read, inputs, items, lists))

    def _ref_logps(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        lists: ListTokens,
        choices: ListChoices,
        layout: Layout | None = None,
    ) -> Tensor:
        """Returns the log-probability of each list under the reference, `(B, G)`."""
        reference = self.reference_of(model)
        with self.computing_reference(reference):
            return self._list_logps(self._read(reference, inputs, lists, layout), choices)

    # Drawing

    @contextmanager
    def _generating(self, wrapped: nn.Module) -> Iterator[PreTrainedModel]:
        """Yields the unwrapped model without dropout. Sharded weights are gathered inside the block."""
        with (
            unwrapped_for_generation(wrapped, self.accelerator) as model,
            without_step_hook(wrapped),  # the number of decoding steps may differ between processes
            not_training(model),
        ):
            yield model

    def _draw(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        num_lists: int,
        seed: tuple[int, ...],
        rows: Sequence[int],
    ) -> Tensor:
        """Samples lists, `(B, num_lists, K)`. `rows` are the row indices in `inputs["row"]`, on the host."""
        prompts = {"input_ids": inputs["prompt_ids"], "attention_mask": inputs["prompt_mask"].long()}
        return sample_item_lists(
            model,
            prompts,
            self.trie,
            num_lists=num_lists,
            list_length=self.args.num_list_items,
            temperature=self.args.temperature,
            exclude=self._excluded(inputs),
            seed=seed,
            rows=rows,
        ).items

    def _excluded(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """Returns the items that the lists of each prompt must not contain, `(B, E)`, padded with -1, or None if all
        items are allowed."""
        return inputs.get("excluded", inputs["history"]) if self.args.eval_exclude_history else None

    def _exclusions(self, args: BladeConfig) -> Callable[[Ragged], Ragged] | None:
        """Returns a function that maps histories to excluded items.

        Returns None if no items are excluded, or if exactly the items of the history are excluded.
        """
        needed = args.eval_exclude_history and self.prompt_format.twins is not None
        return self.prompt_format.exclusions if needed else None

    # Evaluation

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Generates lists for at most `max_users` users of a split, and returns metrics of the lists. The metrics are
        the ranking metrics, the mean of the weighted sum of the rewards, and the mean of each reward. Each metric can
        be used to select a checkpoint.
        """
        split = at_most(self.args.max_users, split)
        ranked = self.rank(split)
        scored = self.rewards.of_split(ranked.items, split)
        metrics = {**self.measure(ranked, split), **self.measure_preferences(split)}
        metrics["reward"] = float(scored.total.mean())
        metrics.update({f"reward/{name}": float(values.mean()) for name, values in scored.parts.items()})
        return metrics
