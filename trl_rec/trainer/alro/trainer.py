"""Fine-tunes a model to order a list of rated candidates from most to least preferred.

Each list is presented with its candidates in two orders by default. One forward pass covers all orders. The orders of
a list share a history, which is read only once if the model supports this (see `models.completions`). Logits are
computed only for the tokens of the answers. An answer names the candidates of a list from best to worst.

Legend: B lists, S orders of the same candidates, m candidates of the longest list.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from trl_rec.items import ItemCatalog
from trl_rec.losses.alro import permutation_loss, soft_lambda_loss
from trl_rec.models.completions import read_completions
from trl_rec.models.embedding_dropout import add_embedding_dropout
from trl_rec.models.experts import balance_on_request
from trl_rec.models.loading import find_tokenizer
from trl_rec.trainer.alro.collator import RatedListCollator
from trl_rec.trainer.alro.config import AlroConfig
from trl_rec.trainer.alro.given_order import GivenOrder
from trl_rec.trainer.alro.ordering import CandidateOrderingMixin
from trl_rec.trainer.alro.tables import AnswerTable, answer_table
from trl_rec.trainer.base.checks import NOT_TAKEN_BY_SFT, check_arguments, check_trainable
from trl_rec.trainer.base.metrics import BatchLoss, Mean
from trl_rec.trainer.base.saving.model_card import Paper
from trl_rec.trainer.base.saving.output import default_output
from trl_rec.trainer.base.trainer import is_split


class AlroTrainer(CandidateOrderingMixin, SFTTrainer):
    """[`~trl.SFTTrainer`] for lists of rated candidates, with ALRO's soft lambda and permutation-sensitive losses.

    To train with another list-wise loss, override [`~AlroTrainer.loss_parts`] and [`~AlroTrainer.loss_weights`].

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): Same as in `SFTTrainer`.
        args (`AlroConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): `RecDataset.train`, with ratings, or rows of [`build_rated_rows`].
        eval_dataset (`Dataset`, *optional*): `RecDataset.validation`. At each evaluation, the model orders the rated
            targets of each user.
        processing_class (`PreTrainedTokenizerBase`, *optional*): Tokenizer that contains the tokens of the catalogue
            and of [`rated_tokens`]. By default, the tokenizer of the model.
        catalog (`ItemCatalog`): The catalogue, with the surface to use in prompts.
        kwargs: Passed to `SFTTrainer`.

    Example:

    ```python
    dataset = prepare("ml-100k", "data/rated", split="leave_last", num_held_out=10).with_surface("item_token")
    tokenizer = make_tokenizer(dataset.catalog)
    tokenizer.add_tokens(rated_tokens(dataset.catalog, rating_values(dataset.train)))
    trainer = AlroTrainer(
        make_model(tokenizer),
        AlroConfig("runs/alro", max_length=128),
        train_dataset=dataset.train,
        eval_dataset=dataset.validation,
        processing_class=tokenizer,
        catalog=dataset.catalog,
    )
    trainer.train()
    ```
    """

    method = "alro"
    display_name = "ALRO"
    paper = Paper("Make Large Language Model a Better Ranker", "2403.19181")
    measures_loss_on_splits = False  # evaluation ranks the candidates and computes no loss
    # The loss is the mean over one micro-batch, so `Trainer` must divide it by the number of accumulated batches.
    loss_is_scaled_for_ga: Any = False

    args: AlroConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: AlroConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        catalog: ItemCatalog,
        **kwargs: Any,
    ) -> None:
        args = args or AlroConfig(default_output(model, "ALRO"))
        kwargs = check_arguments(kwargs, NOT_TAKEN_BY_SFT, "AlroTrainer")
        if train_dataset is None:
            raise ValueError(
                "AlroTrainer needs train_dataset, because the ratings in it define the rating tokens; pass "
                "train_dataset"
            )
        tokenizer = find_tokenizer(model, processing_class, args.trust_remote_code)
        self._set_candidates(catalog, tokenizer, args, train_dataset, eval_dataset)
        self.display_name = _display_name(args)
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=tokenizer, **kwargs
        )

        check_trainable(self.model)
        add_embedding_dropout(self.model)
        balance_on_request(self.model)
        if args.log_gradient_norms and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                "log_gradient_norms does not support DeepSpeed or FSDP, which may shard gradients; set "
                "log_gradient_norms to false"
            )
        self.data_collator = RatedListCollator(
            self.rated_format,
            tokenizer.pad_token_id,
            num_orders=args.num_orders,
            ends=args.softmax == "vocabulary",
            max_length=args.max_length,
            seed=self._data_seed,
            given_order=_given_order(args, train_dataset, len(catalog)),
        )
        self.add_callback(self.data_collator)

    def _prepare_dataset(  # type: ignore[override]  # narrower types than TRL's
        self,
        dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        args: AlroConfig,
        packing: bool,
        formatting_func: None,
        dataset_name: str,
    ) -> Dataset:
        return self._rated_rows(dataset, args, dataset_name)

    def batch_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None
    ) -> BatchLoss:
        """Returns the weighted sum of [`~AlroTrainer.loss_parts`], averaged over lists."""
        table = self._answers(model, inputs)
        parts = self.loss_parts(table, inputs)
        weights = self.loss_weights()
        losses = torch.stack([weights[name] * part for name, part in parts.items()]).sum(0)  # (B,)

        means = {f"alro/{name}": Mean.of(part) for name, part in parts.items()}
        if "soft_lambda" in parts:
            means["alro/lambda_weight"] = Mean(weights["soft_lambda"], 1)
        if self.args.log_gradient_norms and self._is_logging_step(model):
            norms = _gradient_norms(parts, model)
            means.update({f"alro/grad_norm_{name}": Mean(norm, 1) for name, norm in norms.items()})
        num_tokens = inputs["prompt_mask"].sum() + inputs["completion_mask"].sum()
        # These losses are unweighted, because they only serve to find rows with a non-finite loss.
        row_losses = torch.stack(list(parts.values())).detach().sum(0)
        return BatchLoss(losses.mean(), row_losses, means, num_tokens, aux_loss=table.aux_loss)

    def loss_parts(self, table: AnswerTable, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Computes the unweighted parts of the loss, `(B,)` each. `sft` and `soft_lambda` are averaged over the orders
        of a list."""
        mask = inputs["candidate_mask"]  # (B, m)
        parts = {"sft": table.sft.mean(1)}
        if self.args.lambda_weight:
            num_orders = table.logps.shape[1]
            labels = (inputs["ratings"], inputs["gold_rank"], mask)
            repeated = [label.repeat_interleave(num_orders, 0) for label in labels]  # (B S, m) each
            soft_lambda = soft_lambda_loss(
                table.logps.flatten(0, 1),
                *repeated,
                gamma=self.args.sharpness,
                sigma=self.args.pair_sharpness,
                score=self.args.score,
                delta=self.args.delta,
            ).loss
            parts["soft_lambda"] = soft_lambda.view_as(table.sft).mean(1)
        if self.args.permutation_weight:
            first, second = table.logps.unbind(1)
            parts["permutation"] = permutation_loss(first, second, mask, distance=self.args.distance).loss
        return parts

    def loss_weights(self) -> dict[str, float]:
        """Returns the weight of each part in the current step."""
        # The soft lambda loss is not meaningful until the model has learned to answer with candidate names. Therefore
        # the weight of this loss rises linearly from 0 over the first `lambda_warmup` fraction of the steps.
        warmup_steps = self.args.lambda_warmup * self.state.max_steps
        risen = min(1.0, (self.state.global_step + 1) / max(warmup_steps, 1))
        return {
            "sft": 1.0,
            "soft_lambda": self.args.lambda_weight * risen,
            "permutation": self.args.permutation_weight,
        }

    def _answers(self, model: nn.Module, inputs: dict[str, Tensor]) -> AnswerTable:
        """Runs one forward pass and returns the answer tables."""
        over_vocabulary = self.args.softmax == "vocabulary"
        read = read_completions(
            self.bare(model),
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            inputs["completion_ids"],
            inputs["completion_mask"],
            scored=inputs["answer_mask"],
            tokens=None if over_vocabulary else inputs["names"].unique(),
            wrapped=model,
            balanced=self.aux_loss_enabled,
        )
        return answer_table(read, inputs, vocabulary=over_vocabulary)

    def _is_logging_step(self, model: nn.Module) -> bool:
        return model.training and (self.state.global_step + 1) % self.state.logging_steps == 0


def _given_order(args: AlroConfig, train_dataset: Dataset, num_items: int) -> GivenOrder | None:
    """Returns the order of the candidates in training prompts, or None if they are shuffled."""
    if args.candidate_order == "shuffled":
        return None
    if not is_split(train_dataset):
        raise ValueError(
            "the candidate_order 'given' sorts candidates by their mean rating in the training split; pass "
            "RecDataset.train as train_dataset, or leave candidate_order out"
        )
    return GivenOrder.from_split(train_dataset, num_items)


def _display_name(args: AlroConfig) -> str:
    """Returns "ALRO" if both list-wise losses have nonzero weights. Otherwise returns the names of the parts that are
    used, as in "SFT + SLL". SLL is the soft lambda loss, and PSL is the permutation-sensitive loss."""
    if args.lambda_weight and args.permutation_weight:
        return "ALRO"
    weights = {"SLL": args.lambda_weight, "PSL": args.permutation_weight}
    return " + ".join(["SFT", *(name for name, weight in weights.items() if weight)])


def _gradient_norms(parts: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns the gradient norm of each unweighted part of the loss. Each part is first averaged over lists. The graph
    is kept for the backward pass."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = {}
    for name, part in parts.items():
        gradients = torch.autograd.grad(part.mean(), trained, retain_graph=True, allow_unused=True)
        squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        norms[name] = torch.stack(squares).sum().sqrt()
    return norms
