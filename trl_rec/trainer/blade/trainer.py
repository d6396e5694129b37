"""Alignment of whole lists with a Best-of-N target that moves with the policy.

Each step the policy draws several lists a prompt, and learns from how their rewards rank among lists of the reference
policy and among themselves. All lists of a prompt are drawn from one cache and scored in one row (see `decoding.lists`
and `models.completions`), under the softmax over legal tokens that they were drawn from.

Legend: B prompts, G rollouts a prompt, M reference lists a prompt, K items a list, T tokens of the longest list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from trl_rec.compat import (
    complete_ref_adapter,
    drop_attention_dropout,
    name_or_path,
    prepare_deepspeed,
    train_batch_size,
)
from trl_rec.data.dataset import at_most
from trl_rec.data.list_rows import build_list_prompts, complete_list_prompts
from trl_rec.decoding.list_constraint import list_logps, list_tokens
from trl_rec.decoding.lists import sample_item_lists
from trl_rec.evaluation.rewards import ListBatch, ListReward, ListRewards, score_lists, score_split
from trl_rec.items import ItemCatalog
from trl_rec.losses.blade import best_of_n_reward, leave_one_out, list_policy_loss, posterior_cdf, standardized
from trl_rec.losses.output import LossOutput
from trl_rec.models.completions import read_completions
from trl_rec.models.loading import load_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.trainer.base.checks import NOT_TAKEN, check_arguments, check_trainable
from trl_rec.trainer.base.generation import whole_model
from trl_rec.trainer.base.reference import (
    as_reference,
    copy_of_policy,
    hash_weights,
    not_training,
)
from trl_rec.trainer.base.sampling import RepeatedBatches
from trl_rec.trainer.base.trainer import RecTrainerMixin, is_split
from trl_rec.trainer.blade.collator import ListPromptCollator, as_rows, check_enough_items
from trl_rec.trainer.blade.config import TARGETS, BladeConfig
from trl_rec.trainer.blade.reference_lists import draw_reference_lists, reference_folder, with_reference_lists
from trl_rec.trainer.blade.rollouts import Rollouts, rollout_metrics


FSDP = "FSDP cannot draw lists during training; use DDP or DeepSpeed"
REFERENCE_SEED, ROLLOUT_SEED = 0, 1  # after args.seed: two streams of noise


class BladeTrainer(RecTrainerMixin, DPOTrainer):
    """[`~trl.DPOTrainer`] that learns from lists of its own, by BLADE's target or one of its limits.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The policy, which writes lists already: fine-tuned on them,
            or, with item tokens or semantic IDs, on whole sequences.
        ref_model (`PreTrainedModel`, *optional*): The reference, by default as in [`SoftmaxDPOTrainer`].
        args (`BladeConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): `RecDataset.train`.
        eval_dataset (`Dataset`, *optional*): `RecDataset.validation`, whose users are given lists at each evaluation.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; the model's own otherwise.
        catalog (`ItemCatalog`): The items. Its groups are what the rewards `ild` and `mgu` go by.
        reward_functions (`Mapping[str, ListReward]`, *optional*): Rewards besides the named ones; see [`score_lists`].
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

    args: BladeConfig
    catalog: Any  # an ItemCatalog always
    model: Any
    ref_model: Any
    train_dataset: Any
    _tag_names = ["trl", "trl-rec", "blade"]
    _name = "BLADE"
    _paper = {
        "title": "Bayesian List-wise Alignment via Dynamic Estimation for LLM-based Recommendation",
        "id": "2605.04559",
    }
    measures_loss_on_splits = False  # rewards are of lists drawn in training; a split's users are ranked

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: BladeConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        catalog: ItemCatalog,
        reward_functions: Mapping[str, ListReward] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or BladeConfig("blade")
        kwargs = check_arguments(kwargs, NOT_TAKEN, "BladeTrainer")
        processing_class = processing_class or load_tokenizer(
            model if isinstance(model, str) else name_or_path(model),
            trust_remote_code=args.trust_remote_code or None,
        )
        if processing_class.pad_token is None:
            processing_class.pad_token = (
                processing_class.eos_token
            )  # as DPOTrainer does, but before there is a collator
        self._set_catalog(catalog, processing_class, args, eval_dataset)
        self.reward_weights: Any = args.rewards
        self.reward_functions = dict(reward_functions or {})
        self._name = TARGETS[args.target]
        self._shares = None if catalog.group_column is None else catalog.group_shares()[1]
        self.trie = self.trie.to(args.device)
        super().__init__(
            model,
            copy_of_policy(model, kwargs.get("peft_config")) if ref_model is None else ref_model,
            args,
            ListPromptCollator(processing_class.pad_token_id),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        complete_ref_adapter(self.model)
        check_trainable(self.model)
        drop_attention_dropout(self.model)
        self._try_rewards()
        self._rollouts: dict[tuple[int, ...], Rollouts] = {}  # of the present batch of rollouts, by their rows
        self._drawn_at = -1

    def _try_rewards(self) -> None:
        """Scores any lists for the first rows, so that a wrong reward is refused before anything is drawn."""
        inputs = self.data_collator([self.train_dataset[row] for row in range(min(2, len(self.train_dataset)))])
        length = self.args.list_length or 1
        lists = torch.arange(length).expand(len(inputs["row"]), length + 1, -1)  # no two sizes alike, as a rule
        score_lists(self._list_batch(lists, inputs), self.reward_weights, self.reward_functions)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *unused: Any) -> Dataset:
        """The training split becomes prompts; the splits that are ranked stay as they are."""
        *_, name = unused
        if not is_split(dataset):
            raise ValueError(
                f"the {name} dataset is no split of a RecDataset; pass dataset.train, or dataset.validation"
            )
        if name != "train":
            return dataset
        lengths = {"every_position": args.every_position, "max_length": args.max_length}
        rows = at_most(args.max_prompts, build_list_prompts(dataset, self.prompt_format, **lengths))
        if args.eval_exclude_history:
            check_enough_items(rows, len(self.prompt_format.paths), args.list_length)
        return rows.add_column("row", np.arange(len(rows))).flatten_indices()

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = ["prompt_ids", "history", "targets", "row", "references"]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        """With several steps on the same rollouts, batches come as often in a row."""
        if self.args.num_iterations == 1:
            return super()._get_train_sampler(train_dataset)
        rows = len(self.train_dataset if train_dataset is None else train_dataset)
        batch_size = train_batch_size(self) * self.args.gradient_accumulation_steps * self.accelerator.num_processes
        return self._following_epochs(RepeatedBatches(rows, batch_size, self.args.num_iterations, self._data_seed))

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """As the parent's, after the reference lists have been drawn."""
        if self.is_fsdp_enabled:
            raise ValueError(FSDP)
        if self.args.num_references:
            self.draw_references()
        self._drawn_at = -1  # what an earlier training drew was another policy's
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def draw_references(self) -> None:
        """Gives the training rows M lists of the reference policy each, drawn now or found on disk. `train` does
        it."""
        rows, args = self.train_dataset, self.args
        if "references" in rows.column_names:
            return
        settings = (args.num_references, args.list_length, args.temperature, args.eval_exclude_history, args.seed)
        weights = hash_weights(self.ref_model or self.model)
        folder = reference_folder(str(args.output_dir), rows, weights, settings, self.catalog.fingerprint)
        model, engine = self.ref_model or self.model, None
        if self.ref_model is None and self.is_deepspeed_enabled:  # not prepared before training begins
            model = engine = prepare_deepspeed(self.model, self.accelerator)

        with self._generating(model) as drawing, as_reference(drawing) if self.ref_model is None else nullcontext():

            def draw(batch: dict[str, Tensor]) -> Tensor:
                return self._draw(drawing, batch, args.num_references, (args.seed, REFERENCE_SEED))

            draw_reference_lists(
                folder, rows, draw, self.data_collator, self.accelerator, batch_size=args.reference_batch_size
            )
        if engine is not None:
            engine.destroy()  # its hooks would stay beside those of training's engine
        self.train_dataset = with_reference_lists(rows, folder)

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """As the parent's, and the reward of the ranked lists with its parts, so that a checkpoint can be chosen by
        it."""
        split = at_most(self.args.max_users, split)
        ranked = self.rank(split)
        scored = score_split(ranked[:, None], split, self.catalog, self.reward_weights, self.reward_functions)
        parts = {f"reward/{name}": float(values.mean()) for name, values in scored.parts.items()}
        return {**self.measure(ranked, split), "reward": float(scored.total.mean()), **parts}

    def best_reference_rows(self) -> Dataset:
        """Rows for [`BearTrainer`], each prompt with the best of its reference lists: Best-of-N learned offline, a
        control."""
        self.draw_references()
        found: list[np.ndarray] = []
        for start in range(0, len(self.train_dataset), self.args.reference_batch_size):
            some = range(start, min(start + self.args.reference_batch_size, len(self.train_dataset)))
            batch = self.data_collator([self.train_dataset[row] for row in some])
            best = self._reference_rewards(batch).argmax(1)
            found.append(batch["references"].numpy()[np.arange(len(best)), best])
        lists = np.concatenate(found)
        return complete_list_prompts(
            self.train_dataset,
            Ragged.from_lengths(lists.ravel(), np.full(len(lists), lists.shape[1])),
            self.prompt_format,
        )

    @contextmanager
    def _generating(self, wrapped: Any) -> Iterator[Any]:
        """Inside, the model itself, whole and without dropout."""
        with whole_model(wrapped, self.accelerator) as model, not_training(model), self.accelerator.autocast():
            yield model

    def _draw(self, model: Any, inputs: dict[str, Tensor], num_lists: int, seed: tuple[int, ...]) -> Tensor:
        """Lists `(B, num_lists, K)`."""
        prompts = {"input_ids": inputs["prompt_ids"], "attention_mask": inputs["prompt_mask"].long()}
        return sample_item_lists(
            model,
            prompts,
            self.trie,
            num_lists=num_lists,
            list_length=self.prompt_format.list_length or 1,
            temperature=self.args.temperature,
            exclude=self._excluded(inputs),
            seed=seed,
            rows=inputs["row"],
        ).items

    def _excluded(self, inputs: dict[str, Tensor]) -> Tensor | None:
        return inputs["history"] if self.args.eval_exclude_history else None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over all rollouts of the policy-gradient loss."""
        number, key = self.state.global_step // self.args.num_iterations, tuple(inputs["row"].tolist())
        if number != self._drawn_at:
            self._rollouts, self._drawn_at = {}, number
        rollouts = self._rollouts.get(key)
        if rollouts is None:
            with self._generating(self.model_wrapped) as drawing:
                items = self._draw(drawing, inputs, self.args.num_generations, (self.args.seed, ROLLOUT_SEED, number))
        else:
            items = rollouts.items
        logps = self._logps(model, inputs, items)
        if rollouts is None:
            rollouts = self._rollouts[key] = self._valued(model, inputs, items, logps.detach())
        output = list_policy_loss(logps, rollouts.old_logps, rollouts.advantages, clip=self.args.clip)
        loss = output.loss.mean()
        self._append_metrics(rollouts, output, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _logps(self, model: Any, inputs: dict[str, Any], items: Tensor) -> Tensor:
        """Log-probability `(B, G)` of each list."""
        lists, unwrapped = list_tokens(self.trie, items), self.accelerator.unwrap_model(model)
        prompts = (inputs["prompt_ids"], inputs["prompt_mask"])
        read = read_completions(unwrapped, *prompts, lists.token_ids, lists.mask, scored=lists.branches, wrapped=model)
        exclude = self._excluded(inputs)
        return list_logps(read, items, self.trie, exclude=exclude, temperature=self.args.temperature).sum(-1)

    def _valued(self, model: Any, inputs: dict[str, Any], items: Tensor, logps: Tensor) -> Rollouts:
        """What the rollouts are worth: the target, less the KL's share, against the other lists of the prompt."""
        rewards = self._score(items, inputs)
        references = self._reference_rewards(inputs)
        targets = self._target(rewards.total, references).to(items.device, logps.dtype)
        ref_logps = self._ref_logps(model, inputs, items)
        values = targets - self.beta * (logps - ref_logps)
        advantages = standardized(values) if self.args.standardize else leave_one_out(values)
        return Rollouts(items, rewards, references, targets, ref_logps, logps, advantages)

    def _ref_logps(self, model: Any, inputs: dict[str, Any], items: Tensor) -> Tensor:
        reference = self.ref_model or model
        other = nullcontext() if self.ref_model is not None else as_reference(self.accelerator.unwrap_model(model))
        with torch.no_grad(), not_training(reference), other, self.accelerator.autocast():
            return self._logps(reference, inputs, items)

    def _list_batch(self, items: Tensor, inputs: dict[str, Any]) -> ListBatch:
        return ListBatch(items.cpu().numpy(), as_rows(inputs["targets"]), as_rows(inputs["history"]), self._shares)

    def _score(self, items: Tensor, inputs: dict[str, Any]) -> ListRewards:
        """Rewards of lists `(B, any number, K)`."""
        try:
            return score_lists(self._list_batch(items, inputs), self.reward_weights, self.reward_functions)
        except ValueError as error:
            raise ValueError(f"{error} (of a batch of the training rows {inputs['row'].tolist()})") from error

    def _reference_rewards(self, inputs: dict[str, Any]) -> np.ndarray:
        """`(B, M)`, with M 0 where no references were drawn."""
        if "references" not in inputs:
            return np.empty((len(inputs["row"]), 0))
        return self._score(inputs["references"], inputs).total

    def _target(self, rewards: np.ndarray, references: np.ndarray) -> Tensor:
        """What is learned from, `(B, G)` in float64."""
        if self.args.target == "reward":
            return torch.from_numpy(rewards)
        at_most_, below = posterior_cdf(
            torch.from_numpy(rewards),
            torch.from_numpy(references),
            dynamic_coefficient=self.args.rollout_share,
            prior=self.args.prior,
        )
        return best_of_n_reward(at_most_, below, best_of=self.args.best_of)

    def _append_metrics(self, rollouts: Rollouts, output: LossOutput, inputs: dict[str, Any]) -> None:
        """Means over the prompts of all processes."""
        columns = rollout_metrics(rollouts, len(self.catalog))
        columns |= {f"blade/{name}": value.mean(1) for name, value in output.metrics.items()}
        broken = ~output.loss.isfinite().all(1)
        tokens = inputs["prompt_mask"].sum() + list_tokens(self.trie, rollouts.items).mask.sum()
        sums = [*(value.sum() for value in columns.values()), broken.sum(), tokens, len(broken)]
        local = torch.stack([torch.as_tensor(value, dtype=torch.float32).to(broken.device) for value in sums])
        *totals, num_broken, seen, rows = self.accelerator.gather(local.unsqueeze(0)).sum(0).tolist()
        if num_broken:
            own = inputs["row"][broken].tolist()
            raise ValueError(
                f"the loss of {num_broken:.0f} prompts is not finite at step {self.state.global_step}, among them the training "
                f"rows {own}; lower the learning rate, or look at the data"
            )
        for name, value in zip(columns, totals, strict=True):
            self._metrics["train"][name].append(value / rows)
        self._total_train_tokens += int(seen)
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
