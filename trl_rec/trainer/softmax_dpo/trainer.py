"""Preference training with one chosen and any number of rejected completions a prompt.

All completions of a prompt are scored in one row after it (see `models.completions`), by the policy and by the
reference. Without a catalogue this is a list-wise DPO for any text; with one, lists are ranked and measured at each
evaluation.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from trl_rec.compat import complete_ref_adapter, drop_attention_dropout, name_or_path, prepare_deepspeed
from trl_rec.items import ItemCatalog
from trl_rec.losses.output import LossOutput
from trl_rec.losses.softmax_dpo import softmax_dpo_loss
from trl_rec.models.completions import completion_logps, legal_completion_logps, read_completions
from trl_rec.models.loading import load_tokenizer
from trl_rec.trainer.base.checks import NOT_TAKEN, check_arguments, check_trainable
from trl_rec.trainer.base.reference import (
    as_reference,
    copy_of_policy,
    hash_weights,
    not_training,
    reference_file,
    with_reference,
    write_reference,
)
from trl_rec.trainer.base.trainer import RecTrainerMixin, is_split
from trl_rec.trainer.softmax_dpo.collator import PreferenceCollator, check_on_catalogue
from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
from trl_rec.trainer.softmax_dpo.rows import TABLE, preference_rows
from trl_rec.trainer.softmax_dpo.texts import TEXT, tokenize_preferences
from trl_rec.trainer.softmax_dpo.tokens import (
    TOKENS,
    check_known_tokens,
    check_not_empty,
    check_well_formed,
    fit_preferences,
)


class SoftmaxDPOTrainer(RecTrainerMixin, DPOTrainer):
    """[`~trl.DPOTrainer`] with a softmax over the chosen and all rejected completions.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The policy, as in `DPOTrainer`.
        ref_model (`PreTrainedModel`, *optional*): The reference. Without it: a policy with an adapter is its own
            reference, without the adapter when `peft_config` made it here, else with a frozen copy of it; any other
            policy is copied.
        args (`SoftmaxDPOConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): A preference table (`history chosen rejected`, items of the catalogue); texts or
            conversations (`prompt chosen rejected`, one rejected or a list); or token ids (`prompt_ids chosen_ids
            rejected_ids`). Rows with nothing rejected teach nothing and are left out.
        eval_dataset (`Dataset`, *optional*): The same, or `RecDataset.validation`, whose users are then ranked.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer; the model's own otherwise.
        catalog (`ItemCatalog`, *optional*): The items, where completions are such.
        kwargs: Passed to `DPOTrainer`.

    Example:

    ```python
    rows = Dataset.from_dict({"prompt": ["2 + 2 ="], "chosen": [" 4"], "rejected": [[" 3", " 5", " 22"]]})
    trainer = SoftmaxDPOTrainer("Qwen/Qwen2.5-0.5B", args=SoftmaxDPOConfig("runs/dpo"), train_dataset=rows)
    trainer.train()
    ```
    """

    args: SoftmaxDPOConfig
    model: Any
    ref_model: Any
    _tag_names = ["trl", "trl-rec", "softmax_dpo"]
    _name = "Softmax-DPO"
    _paper = {"title": "On Softmax Direct Preference Optimization for Recommendation", "id": "2406.09215"}
    measures_loss_on_splits = False  # the users of a split have chosen items, but rejected none

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: SoftmaxDPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        catalog: ItemCatalog | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or SoftmaxDPOConfig("softmax_dpo")
        kwargs = check_arguments(kwargs, NOT_TAKEN, "SoftmaxDPOTrainer")
        if isinstance(train_dataset, Dataset) and not len(train_dataset):
            raise ValueError("the train dataset has no row; give one with preferences")
        processing_class = processing_class or load_tokenizer(
            _origin(model), trust_remote_code=args.trust_remote_code or None
        )
        self._vocab_size = _vocab_size(model, args)
        self.renormalizes = args.normalize == "catalogue"
        if self.renormalizes and catalog is None:
            raise ValueError("normalize='catalogue' needs the catalogue; pass catalog")
        if processing_class.pad_token is None:
            if processing_class.eos_token is None:
                raise ValueError("the tokenizer has neither a padding nor an EOS token; set tokenizer.pad_token")
            processing_class.pad_token = (
                processing_class.eos_token
            )  # as DPOTrainer does, but before there is a collator
        self._set_catalog(catalog, processing_class, args, eval_dataset)
        if ref_model is None and not args.precompute_ref_log_probs:
            ref_model = copy_of_policy(model, kwargs.get("peft_config"))
        collator = PreferenceCollator(processing_class.pad_token_id, self.trie if self.renormalizes else None)
        self.trie = self.trie and self.trie.to(
            args.device
        )  # the reference may be computed before there is a model to ask
        super().__init__(
            model,
            ref_model,
            args,
            collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        complete_ref_adapter(self.model)
        check_trainable(self.model)
        if self.args.disable_dropout:
            drop_attention_dropout(self.model)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *unused: Any) -> Dataset:
        """Preferences of any kind become rows of token ids; a split is left for ranking."""
        *_, name = unused
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"the {name} dataset is a stream, whose rows cannot be checked beforehand; pass a Dataset"
            )
        columns, catalog = set(dataset.column_names), self.catalog
        if catalog is not None and is_split(dataset):
            if name == "train":
                raise ValueError(
                    "the training split holds no rejected items; make preferences of it (trl_rec.schedule) first"
                )
            return dataset
        if catalog is not None and columns >= TABLE:
            rows = preference_rows(dataset, self.prompt_format, max_length=args.max_length, training=name == "train")
        elif columns >= TEXT:
            with PartialState().main_process_first():
                rows = tokenize_preferences(
                    dataset, processing_class, max_length=args.max_length, num_proc=args.dataset_num_proc
                )
        elif columns >= TOKENS:
            check_well_formed(dataset)
            rows = fit_preferences(dataset, args.max_length)
        else:
            raise ValueError(
                f"the {name} dataset has the columns {', '.join(dataset.column_names)}; it needs prompt, chosen and rejected, "
                "or prompt_ids, chosen_ids and rejected_ids, or with a catalogue history, chosen and rejected"
            )
        check_not_empty(rows)
        check_known_tokens(rows, self._vocab_size)
        if self.renormalizes and not columns >= TABLE:
            check_on_catalogue(rows, self.trie)
        kept = rows.filter(any, input_columns="rejected_ids", desc="leaving out rows with nothing rejected")
        if not len(kept):
            raise ValueError(
                f"no row of the {name} dataset has a rejected completion that fits; there is nothing to learn from"
            )
        return kept

    def _set_signature_columns_if_needed(self) -> None:
        # a split keeps its history, as Trainer refuses a dataset of which nothing is left
        self._signature_columns: Any = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_logps", "history"]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the rows of the softmax loss, and `sft_weight` times the chosen's mean token loss."""
        mask = inputs["completion_mask"]
        logps = self._logps(model, inputs)
        ref_logps = inputs.get("ref_logps")
        if ref_logps is None:
            ref_logps = self.compute_ref_log_probs(self.ref_model or model, inputs)
        present = mask.any(-1)[:, 1:]
        totals = logps.sum(-1)
        logratios = totals - ref_logps.to(totals.dtype)
        output = softmax_dpo_loss(logratios[:, 0], logratios[:, 1:], present, beta=self.beta)
        nll = -totals[:, 0] / mask[:, 0].sum(-1)
        if self.args.sft_weight:
            output = output._replace(loss=output.loss + self.args.sft_weight * nll)
        loss = output.loss.mean()
        self._append_metrics(output, totals.detach(), nll.detach(), present, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _logps(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Log-probability of each completion token, `(B, K, C)`, 0 where there is none."""
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        unwrapped = self.accelerator.unwrap_model(model)
        read = read_completions(unwrapped, inputs["prompt_ids"], inputs["prompt_mask"], ids, mask, wrapped=model)
        if self.renormalizes:
            return legal_completion_logps(read, ids, mask, self.trie, inputs["trie_nodes"])
        return completion_logps(read, ids, mask)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The reference's log-probability of each completion, `(B, K)`, by `model`, which may be the policy with an
        adapter."""
        other = nullcontext() if self.ref_model is not None else as_reference(self.accelerator.unwrap_model(model))
        with torch.no_grad(), not_training(model), other, self.accelerator.autocast():
            return self._logps(model, inputs).sum(-1)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """The rows with `ref_logps`, which each process computes for its share, once for these rows and weights."""
        if is_split(dataset):
            return dataset
        if self.state.global_step == 0:  # later, the policy is another
            complete_ref_adapter(self.model)
        weights = hash_weights(self.ref_model or self.model)
        path = [reference_file(str(self.args.output_dir), dataset, weights, self.renormalizes)]
        broadcast_object_list(path)
        if not path[0].is_file():
            with torch.random.fork_rng([]):  # the loader draws a seed, which a run that finds the file does not
                ref_logps = self._all_ref_logps(dataset, name, batch_size)
            if self.accelerator.is_main_process:
                write_reference(path[0], ref_logps)
            self.accelerator.wait_for_everyone()
        return with_reference(dataset, path[0])

    def _all_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> list[list[float]]:
        if self.is_fsdp_enabled:
            raise ValueError("precompute_ref_log_probs does not work with FSDP; leave it out")
        model = self.ref_model or self.model
        if self.ref_model is None and self.is_deepspeed_enabled:  # not prepared before training begins
            self._precompute_engine = self._precompute_engine or prepare_deepspeed(self.model, self.accelerator)
            model = self._precompute_engine
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator))
        found: list[list[float]] = []
        for batch in tqdm(
            loader, desc=f"reference of the {name} rows", disable=not self.accelerator.is_local_main_process
        ):
            logps = self.compute_ref_log_probs(model, batch)
            counts = batch["completion_mask"].any(-1).sum(1)
            logps = self.accelerator.pad_across_processes(logps, dim=1)
            for row, count in zip(*self.accelerator.gather_for_metrics((logps, counts)), strict=True):
                found.append(row[: int(count)].tolist())
        return found

    def _append_metrics(
        self, output: LossOutput, totals: Tensor, nll: Tensor, present: Tensor, inputs: dict[str, Any]
    ) -> None:
        """Means over the rows of all processes, under TRL's names."""
        mode = "train" if self.model.training else "eval"
        counts = present.sum(1)
        rejected = (totals[:, 1:] * present).sum(1) / counts.clamp(min=1)
        columns = {f"rewards/{name.removeprefix('rewards_')}": value for name, value in output.metrics.items()}
        columns |= {"logps/chosen": totals[:, 0], "logps/rejected": rejected, "softmax_dpo/num_rejected": counts}
        columns |= {"softmax_dpo/nll": nll}
        tokens = inputs["prompt_mask"].sum() + inputs["completion_mask"].sum()
        sums = [*(value.sum() for value in columns.values()), (~output.loss.isfinite()).sum(), tokens, len(totals)]
        local = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=totals.device) for value in sums])
        *means, broken, seen, rows = self.accelerator.gather(local.unsqueeze(0)).sum(0).tolist()
        if broken:
            own = (~output.loss.isfinite()).nonzero().flatten().tolist()
            raise ValueError(
                f"the loss of {broken:.0f} rows is not finite at step {self.state.global_step}, among them rows {own} of this "
                "process's batch; lower the learning rate, or look at the data"
            )
        for name, value in zip(columns, means, strict=True):
            self._metrics[mode][name].append(value / rows)
        if mode == "train":
            self._total_train_tokens += int(seen)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]


def _origin(model: Any) -> str:
    """Where the model came from, and its tokenizer may lie."""
    name = model if isinstance(model, str) else name_or_path(model)
    if not name:
        raise ValueError("the model was made in memory, and no folder tells its tokenizer; pass processing_class")
    return name


def _vocab_size(model: Any, args: SoftmaxDPOConfig) -> int:
    """How many tokens the model knows; of one that `DPOTrainer` loads by name, its configuration tells it
    beforehand."""
    if isinstance(model, str):
        given: Any = args.model_init_kwargs or {}
        trusted = given.get("trust_remote_code", args.trust_remote_code)
        return AutoConfig.from_pretrained(model, trust_remote_code=trusted).get_text_config().vocab_size
    return model.config.get_text_config().vocab_size
