"""Trains a policy on preferences with one chosen and any number of rejected completions per prompt.

The policy and the reference each read a prompt and all of its completions as one row of tokens, if the model supports
this (see `models.completions`). Without a catalogue, prompts and completions may be any texts. With a catalogue, the
trainer can also rank the items at each evaluation.

Legend: B rows, K maximum number of completions per row (the chosen one first), C tokens of the longest completion.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from trl_rec.compat import complete_ref_adapter, drop_plain_dropout, prepare_deepspeed
from trl_rec.items import ItemCatalog
from trl_rec.losses.dmpo import dmpo_loss
from trl_rec.losses.output import LossOutput
from trl_rec.losses.softmax_dpo import softmax_dpo_loss
from trl_rec.models.completions import (
    CompletionLogits,
    completion_logps,
    legal_completion_logps,
    read_completions,
)
from trl_rec.models.experts import balance_on_request
from trl_rec.models.loading import find_tokenizer
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin
from trl_rec.trainer.base.checks import NOT_TAKEN, check_arguments, check_trainable
from trl_rec.trainer.base.metrics import BatchLoss, Mean
from trl_rec.trainer.base.reference import (
    ReferenceMixin,
    copy_of_policy,
    hash_weights,
    reference_file,
    with_reference,
    write_reference,
)
from trl_rec.trainer.base.saving.model_card import Paper
from trl_rec.trainer.base.saving.output import default_output
from trl_rec.trainer.base.trainer import EvalSets, is_split
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


LOSSES = {"softmax": softmax_dpo_loss, "dmpo": dmpo_loss}


class SoftmaxDPOTrainer(CatalogRankingMixin, ReferenceMixin, DPOTrainer):
    """[`~trl.DPOTrainer`] with a softmax over the chosen and all rejected completions.

    `loss="dmpo"` compares the chosen completion with the mean of the rejected ones. To train with another loss,
    override [`~SoftmaxDPOTrainer.preference_loss`].

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): The policy, as in `DPOTrainer`.
        ref_model (`PreTrainedModel`, *optional*): The reference. By default, it is the initial policy. If the trainer
            makes an adapter from `peft_config`, the reference is the policy with the adapter disabled. If the policy
            already has an adapter, the reference uses a frozen copy of this adapter. Without adapters, the reference
            is a copy of the policy.
        args (`SoftmaxDPOConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): Preferences in one of three forms. A preference table, which requires `catalog`, has
            the columns `history`, `chosen` and `rejected`, which contain item indices. Texts or conversations have the
            columns `prompt`, `chosen` and `rejected` (a single completion or a list). Token ids have the columns
            `prompt_ids`, `chosen_ids` and `rejected_ids`. Rows without rejected completions are dropped.
        eval_dataset (`Dataset`, *optional*): Preferences in the same forms, or `RecDataset.validation` to rank all
            items for its users.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer. By default, it is loaded with the
            model.
        catalog (`ItemCatalog`, *optional*): The items, if the completions are items.
        kwargs: Passed to `DPOTrainer`.

    Example:

    ```python
    rows = Dataset.from_dict({"prompt": ["2 + 2 ="], "chosen": [" 4"], "rejected": [[" 3", " 5", " 22"]]})
    trainer = SoftmaxDPOTrainer("Qwen/Qwen2.5-0.5B", args=SoftmaxDPOConfig("runs/dpo"), train_dataset=rows)
    trainer.train()
    ```
    """

    method = "softmax_dpo"
    display_name = "Softmax-DPO"
    paper = Paper("On Softmax Direct Preference Optimization for Recommendation", "2406.09215")
    measures_loss_on_splits = False  # rows of a split contain no rejected items

    args: SoftmaxDPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        args: SoftmaxDPOConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: EvalSets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        catalog: ItemCatalog | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or SoftmaxDPOConfig(default_output(model, "Softmax-DPO"))
        kwargs = check_arguments(kwargs, NOT_TAKEN, "SoftmaxDPOTrainer")
        if isinstance(train_dataset, Dataset) and not len(train_dataset):
            raise ValueError("the train dataset has no rows; pass a dataset with preferences")
        self.renormalizes = args.normalize == "catalogue"
        if self.renormalizes and catalog is None:
            raise ValueError("normalize='catalogue' needs the catalogue; pass catalog")
        if args.loss == "dmpo":
            self.display_name = "DMPO"
            self.paper = Paper("Finetuning Large Language Model for Personalized Ranking", "2405.16127")

        tokenizer = find_tokenizer(model, processing_class, args.trust_remote_code)
        if tokenizer.pad_token is None:
            raise ValueError("the tokenizer has neither a padding nor an EOS token; set tokenizer.pad_token")
        self._vocab_size = _vocab_size(model, args)
        self._set_catalog(catalog, tokenizer, args, eval_dataset)
        if ref_model is None and not args.precompute_ref_log_probs:
            ref_model = copy_of_policy(model, kwargs.get("peft_config"))
        collator = PreferenceCollator(tokenizer.pad_token_id, self.trie if self.renormalizes else None)
        if catalog is not None:
            self.trie = self.trie.to(args.device)  # `super().__init__` may already compute `ref_logps` with it
        super().__init__(
            model,
            ref_model,
            args,
            collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            **kwargs,
        )

        complete_ref_adapter(self.model)
        check_trainable(self.model)
        balance_on_request(self.model)
        if self.args.disable_dropout:
            drop_plain_dropout(self.model)

    # Rows

    def _prepare_dataset(  # type: ignore[override]  # narrower types than TRL's
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: SoftmaxDPOConfig,
        dataset_name: str,
    ) -> Dataset:
        """Converts preferences of any form to rows of token ids. A validation or test split is returned unchanged."""
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"the {dataset_name} dataset must be a Dataset, because the rows of a stream cannot be checked "
                "before training; load it without streaming"
            )
        if self.catalog is not None and is_split(dataset):
            if dataset_name == "train":
                raise ValueError(
                    "the training split contains no rejected items; make preferences from it first (see "
                    "trl_rec.schedule)"
                )
            return dataset

        # Convert the preferences to token ids. Check that the tokens are in the model's vocabulary and, with
        # `normalize="catalogue"`, that each completion is an item.
        columns = set(dataset.column_names)
        is_table = self.catalog is not None and columns >= TABLE
        if not (is_table or columns >= TEXT or columns >= TOKENS):
            raise ValueError(
                f"the {dataset_name} dataset has the columns {', '.join(dataset.column_names)}; it needs prompt, "
                "chosen and rejected; or prompt_ids, chosen_ids and rejected_ids; or, if a catalogue is passed, "
                "history, chosen and rejected"
            )
        try:
            rows = self._tokenized(dataset, processing_class, args, dataset_name)
            check_not_empty(rows)
            check_known_tokens(rows, self._vocab_size)
            if self.renormalizes and not set(dataset.column_names) >= TABLE:
                check_on_catalogue(rows, self.trie)
        except ValueError as error:
            raise ValueError(f"the {dataset_name} dataset: {error}") from error
        kept = rows.filter(any, input_columns="rejected_ids", desc="dropping rows without rejected completions")
        if not len(kept):
            raise ValueError(
                f"no row of the {dataset_name} dataset has a rejected completion; if completions or rows were "
                "dropped, the log says how many, and why"
            )
        return kept

    def _tokenized(
        self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: SoftmaxDPOConfig, name: str
    ) -> Dataset:
        """Returns rows of token ids, made from a preference table, from texts, or from token ids."""
        columns = set(dataset.column_names)
        if self.catalog is not None and columns >= TABLE:
            return preference_rows(dataset, self.prompt_format, max_length=args.max_length, training=name == "train")
        if columns >= TEXT:
            with PartialState().main_process_first():
                return tokenize_preferences(
                    dataset, tokenizer, max_length=args.max_length, num_proc=args.dataset_num_proc
                )
        check_well_formed(dataset)
        return fit_preferences(dataset, args.max_length)

    def _set_signature_columns_if_needed(self) -> None:
        # Trainer keeps only these columns, and raises an error if a dataset has none of them. The list contains
        # `history`, because validation and test splits have none of the other four columns.
        self._signature_columns: Any = ["prompt_ids", "chosen_ids", "rejected_ids", "ref_logps", "history"]

    # Loss

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> BatchLoss:
        """Computes the loss of each row, and averages over rows. The loss of a row is the preference loss, plus
        `sft_weight` times the negative log-likelihood per token of the chosen completion."""
        # 1. Compute the log-ratio between policy and reference for each completion.
        mask = inputs["completion_mask"]  # (B, K, C)
        read = self._read(model, inputs, balanced=self.aux_loss_enabled)
        logps = self._token_logps(read, inputs).sum(-1)  # (B, K)
        ref_logps = inputs.get("ref_logps")
        if ref_logps is None:
            # Pass on how the texts are arranged in rows, so that this is not computed again for the reference.
            texts: dict[str, Any] = {**inputs, "layout": read.layout}
            ref_logps = self.compute_ref_log_probs(self.reference_of(model), texts)
        logratios = logps - ref_logps.to(logps.dtype)

        # 2. Compute the loss of each row.
        is_rejected = mask.any(-1)[:, 1:]  # (B, K - 1)
        output = self.preference_loss(logratios[:, 0], logratios[:, 1:], is_rejected)
        nll = -logps[:, 0] / mask[:, 0].sum(-1)
        losses = output.loss + self.args.sft_weight * nll if self.args.sft_weight else output.loss  # (B,)

        # 3. Collect metrics under TRL's names.
        num_rejected = is_rejected.sum(1)
        rejected_logps = (logps[:, 1:] * is_rejected).sum(1) / num_rejected.clamp(min=1)
        values = {f"rewards/{name.removeprefix('rewards_')}": value for name, value in output.metrics.items()}
        values["logps/chosen"] = logps[:, 0]
        values["logps/rejected"] = rejected_logps
        values["softmax_dpo/num_rejected"] = num_rejected
        values["softmax_dpo/nll"] = nll
        means = {name: Mean.of(value) for name, value in values.items()}
        num_tokens = inputs["prompt_mask"].sum() + mask.sum()
        return BatchLoss(losses.mean(), losses.detach(), means, num_tokens, aux_loss=read.aux_loss)

    def preference_loss(self, chosen_logratios: Tensor, rejected_logratios: Tensor, mask: Tensor) -> LossOutput:
        """Computes the loss, `(B,)`, from the log-ratios of the chosen completions, `(B,)`, and of the rejected
        completions, `(B, K - 1)`. `mask`, `(B, K - 1)`, is False for padding."""
        return LOSSES[self.args.loss](chosen_logratios, rejected_logratios, mask, beta=self.beta)

    def _read(self, model: nn.Module, inputs: dict[str, Any], *, balanced: bool = False) -> CompletionLogits:
        """Runs one forward pass and returns the logits of all completions."""
        return read_completions(
            self.bare(model),
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            inputs["completion_ids"],
            inputs["completion_mask"],
            tokens=self.trie.tokens if self.renormalizes else None,
            wrapped=model,
            balanced=balanced,
            layout=inputs.get("layout"),
        )

    def _token_logps(self, read: CompletionLogits, inputs: dict[str, Tensor]) -> Tensor:
        """Returns the log-probability of each completion token, `(B, K, C)`, and 0 for padding."""
        ids = inputs["completion_ids"]
        mask = inputs["completion_mask"]
        if self.renormalizes:
            return legal_completion_logps(read, ids, mask, self.trie, inputs["trie_nodes"])
        return completion_logps(read, ids, mask)

    def _logps(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Returns the log-probability of each completion, `(B, K)`."""
        return self._token_logps(self._read(model, inputs), inputs).sum(-1)

    # Reference

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Returns the log-probability of each completion under the reference, `(B, K)`.

        Args:
            model: The reference model. Pass the policy itself if the reference is the policy with another adapter or
                without its adapter.
            inputs: A batch.
        """
        with self.computing_reference(model):
            return self._logps(model, inputs)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Returns the dataset with a column `ref_logps`.

        Each process computes its share of the rows. The result is saved in the output folder. A later run in this
        folder reuses it if the rows, the weights of the reference, and `normalize` are unchanged.
        """
        if is_split(dataset):
            return dataset
        if self.state.global_step == 0:  # a trained adapter must not be copied to the reference
            complete_ref_adapter(self.model)

        # Compute the log-probabilities, unless an earlier run has saved them.
        weights = hash_weights(self.bare(self.reference_of(self.model)))
        path = [reference_file(str(self.args.output_dir), dataset, weights, self.renormalizes)]
        broadcast_object_list(path)
        if not path[0].is_file():
            # The loader advances the random state. Restore it, so that training is the same with and without a saved
            # file.
            with torch.random.fork_rng([]):
                ref_logps = self._all_ref_logps(dataset, name, batch_size)
            if self.accelerator.is_main_process:
                write_reference(path[0], ref_logps)
            self.accelerator.wait_for_everyone()
        return with_reference(dataset, path[0])

    def _all_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> list[list[float]]:
        if self.is_fsdp_enabled:
            raise ValueError("precompute_ref_log_probs does not work under FSDP; leave it out")
        model: Any = self.reference_of(self.model)
        if self.ref_model is None and self.is_deepspeed_enabled:  # DeepSpeed has not prepared the policy yet
            if self._precompute_engine is None:
                self._precompute_engine = prepare_deepspeed(self.model, self.accelerator)
            model = self._precompute_engine

        loader = self.accelerator.prepare(DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator))
        shows_progress = self.accelerator.is_local_main_process
        ref_logps: list[list[float]] = []
        for batch in tqdm(loader, desc=f"reference log-probabilities of the {name} rows", disable=not shows_progress):
            logps = self.compute_ref_log_probs(model, batch)  # (B, K)
            counts = batch["completion_mask"].any(-1).sum(1)  # (B,)
            logps = self.accelerator.pad_across_processes(logps, dim=1)
            for row, count in zip(*self.accelerator.gather_for_metrics((logps, counts)), strict=True):
                ref_logps.append(row[: int(count)].tolist())
        return ref_logps


def _vocab_size(model: str | PreTrainedModel | PeftModel, args: SoftmaxDPOConfig) -> int:
    """Returns the vocabulary size of a model, which may be given by name."""
    if isinstance(model, str):
        options: Any = args.model_init_kwargs or {}
        trusted = options.get("trust_remote_code", args.trust_remote_code)
        config = AutoConfig.from_pretrained(model, trust_remote_code=trusted)
    else:
        config = model.config
    size: int = config.get_text_config().vocab_size
    return size
