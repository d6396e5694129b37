"""Fine-tuning that puts a list of rated candidates in order, the most preferred first.

Each list is shown in two orders of its candidates, in one forward pass: both share the rated history, which is read
once (see `models.completions`), and only the answers reach the output embedding.

Legend: B lists, S orders of the same candidates, m candidates of the longest list, V vocabulary; k an answer position.
"""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from trl_rec.compat import name_or_path, unwrapped_for_generation
from trl_rec.data.dataset import at_most, split_rows
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.decoding.candidates.ranker import save_ranker
from trl_rec.evaluation.graded.ranking import RankedLists, rank_rated_rows
from trl_rec.evaluation.graded.results import evaluate_orders
from trl_rec.items import ItemCatalog
from trl_rec.losses.alro import permutation_loss, soft_lambda_loss
from trl_rec.models.completions import read_completions
from trl_rec.models.loading import load_tokenizer
from trl_rec.trainer.alro.collator import RatedListCollator
from trl_rec.trainer.alro.config import AlroConfig
from trl_rec.trainer.alro.gradients import gradient_norms
from trl_rec.trainer.alro.lists import ranked_lists, training_lists
from trl_rec.trainer.alro.rows import RATED, rating_values
from trl_rec.trainer.alro.tables import AnswerTable, answer_table
from trl_rec.trainer.base.checks import NOT_TAKEN_BY_SFT, check_arguments, check_trainable
from trl_rec.trainer.base.trainer import FSDP, RecTrainerMixin, is_split


class AlroTrainer(RecTrainerMixin, SFTTrainer):
    """[`~trl.SFTTrainer`] on lists of rated candidates, with ALRO's soft lambda and permutation-sensitive losses.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): As in `SFTTrainer`.
        args (`AlroConfig`, *optional*): Configuration.
        train_dataset (`Dataset`): `RecDataset.train`, with ratings, or rows of [`build_rated_rows`].
        eval_dataset (`Dataset`, *optional*): `RecDataset.validation`; each user's targets are put in order at each
            evaluation.
        processing_class (`PreTrainedTokenizerBase`, *optional*): The tokenizer, which knows the tokens of the
            catalogue and of [`rated_tokens`]; the model's own otherwise.
        catalog (`ItemCatalog`): The items, whose surface says how they are written.
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

    args: AlroConfig
    model: Any
    catalog: ItemCatalog
    _tag_names = ["trl", "trl-rec", "alro"]
    _name = "ALRO"
    _paper = {"title": "Make Large Language Model a Better Ranker", "id": "2403.19181"}
    _card_example = (
        "from trl_rec import CandidateRanker",
        "",
        'ranker = CandidateRanker.from_pretrained("path/to/this/folder")',
        "ranker.rank(history=[...], ratings=[...], candidates=[...])",
    )
    measures_loss_on_splits = False  # the order of the candidates is measured, as it is decoded
    loss_is_scaled_for_ga: Any = False  # a mean over lists

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
        args = args or AlroConfig("alro")
        kwargs = check_arguments(kwargs, NOT_TAKEN_BY_SFT, "AlroTrainer")
        processing_class = processing_class or load_tokenizer(
            model if isinstance(model, str) else name_or_path(model),
            trust_remote_code=args.trust_remote_code or None,
        )
        if train_dataset is None:
            raise ValueError("AlroTrainer needs train_dataset, whose ratings are those that prompts can tell of")
        self.catalog, self._eval_split, self._ranked_split = catalog, eval_dataset, None
        self.ratings = rating_values(train_dataset)
        self.rated_format = RatedPromptFormat.for_catalog(
            catalog, processing_class, self.ratings, **args.prompt_options
        )
        if not args.lambda_weight or not args.permutation_weight:
            parts = {"SLL": args.lambda_weight, "PSL": args.permutation_weight}
            self._name = " + ".join(["SFT", *(name for name, weight in parts.items() if weight)])
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_trainable(self.model)
        if args.log_gradient_norms and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError("log_gradient_norms needs whole gradients; leave it out with DeepSpeed or FSDP")
        self.data_collator = RatedListCollator(
            self.rated_format,
            processing_class.pad_token_id,
            num_orders=args.num_orders,
            ends=args.softmax == "vocabulary",
            max_length=args.max_length,
            seed=args.data_seed if args.data_seed is not None else args.seed,
        )
        self.add_callback(self.data_collator)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, *unused: Any) -> Dataset:
        """The training split becomes rated lists; an evaluation split is left for ranking, if that can be done."""
        *_, name = unused
        if is_split(dataset) and name == "train":
            return training_lists(dataset, self.rated_format, args)
        if is_split(dataset):
            ranked_lists(
                at_most(args.max_users, dataset), self.rated_format, args
            )  # or the first evaluation would fail
            return dataset
        if name != "train" or not set(dataset.column_names) >= RATED:
            raise ValueError(
                f"the {name} dataset has the columns {', '.join(dataset.column_names)}; pass a split of a RecDataset"
                + (", or rows of build_rated_rows" if name == "train" else "")
            )
        self.rated_format.check_lengths(split_rows(dataset, "candidates"), args.max_length)
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = sorted(RATED)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the lists of supervised loss + `lambda_weight` soft lambda loss + `permutation_weight` permutation
        loss."""
        table = self._answers(model, inputs)
        parts = self._parts(table, inputs)
        weights = {"sft": 1.0, "soft_lambda": self._lambda_weight(), "permutation": self.args.permutation_weight}
        loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum(0).mean()
        self._append_metrics(parts, weights, inputs)
        if (
            self.args.log_gradient_norms
            and model.training
            and (self.state.global_step + 1) % self.state.logging_steps == 0
        ):
            for name, norm in gradient_norms(parts, model).items():
                self._metrics["train"][f"alro/grad_norm_{name}"].append(norm)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _answers(self, model: Any, inputs: dict[str, Any]) -> AnswerTable:
        """What the model says at the answer positions, from one forward pass."""
        read = read_completions(
            self.accelerator.unwrap_model(model),
            inputs["prompt_ids"],
            inputs["prompt_mask"],
            inputs["completion_ids"],
            inputs["completion_mask"],
            scored=inputs["answer_mask"],
            wrapped=model,
        )
        return answer_table(read, inputs, vocabulary=self.args.softmax == "vocabulary")

    def _parts(self, table: AnswerTable, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """The unweighted parts of the loss, `(B,)` each; the first two are means over the orders that a list is shown
        in."""
        mask, parts = inputs["candidate_mask"], {"sft": table.sft.mean(1)}
        if self.args.lambda_weight:
            labels = (inputs["ratings"], inputs["gold_rank"], mask)
            repeated = [label.repeat_interleave(table.logps.shape[1], 0) for label in labels]
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

    def _lambda_weight(self) -> float:
        """Rises over the first share of the steps, as the lambda loss means little before the names are learned."""
        steps = self.args.lambda_warmup * self.state.max_steps
        return self.args.lambda_weight * min(1.0, (self.state.global_step + 1) / max(steps, 1))

    def _append_metrics(self, parts: dict[str, Tensor], weights: dict[str, float], inputs: dict[str, Any]) -> None:
        """Means over the lists of all processes, under `alro/`."""
        mode = "train" if self.model.training else "eval"
        broken = torch.stack([~part.isfinite() for part in parts.values()]).any(0)
        tokens = inputs["prompt_mask"].sum() + inputs["completion_mask"].sum()
        sums = [*(part.detach().sum() for part in parts.values()), broken.sum(), tokens, torch.tensor(len(broken))]
        local = torch.stack([value.to(device=tokens.device, dtype=torch.float32) for value in sums]).unsqueeze(0)
        *means, num_broken, seen, rows = self.accelerator.gather(local).sum(0).tolist()
        if num_broken:
            own = broken.nonzero().flatten().tolist()
            raise ValueError(
                f"the loss of {num_broken:.0f} lists is not finite at step {self.state.global_step}, among them lists {own} of "
                "this process's batch; lower the learning rate, or look at the data"
            )
        for name, total in zip(parts, means, strict=True):
            self._metrics[mode][f"alro/{name}"].append(total / rows)
        if "soft_lambda" in parts:
            self._metrics[mode]["alro/lambda_weight"].append(weights["soft_lambda"])
        if mode == "train":
            self._total_train_tokens += int(seen)
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

    def rank(self, split: Dataset) -> RankedLists:  # type: ignore[override]  # of candidates, not of the catalogue
        """The places that the model gives to the candidates of a split, as [`rank_rated_rows`] returns them; the rows
        are those of [`AlroTrainer.rows_of`]."""
        if self.is_fsdp_enabled:
            raise ValueError(FSDP)
        with unwrapped_for_generation(self.model_wrapped, self.accelerator) as model:
            return rank_rated_rows(
                model,
                self.rows_of(split),
                self.rated_format,
                pad_token_id=self.processing_class.pad_token_id,
                num_orders=self.args.eval_num_orders,
                single_pass=self.args.eval_single_pass,
                batch_size=self.args.per_device_eval_batch_size,
                max_length=self.args.max_length,
            )

    def rows_of(self, split: Dataset) -> Dataset:
        """The rated lists of a validation or test split; a user whose candidates are all rated alike has none."""
        return ranked_lists(split, self.rated_format, self.args)

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Metrics of the model's orders for a split's users, at most `max_users` of them."""
        split = at_most(self.args.max_users, split)
        return evaluate_orders(self.rank(split), self.rows_of(split), ks=self.args.eval_ks).metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model, and beside it what [`CandidateRanker`] needs."""
        SFTTrainer.save_model(self, output_dir, _internal_call)
        if self.args.should_save:
            settings = {
                "prompt": self.args.prompt_options,
                "ratings": self.ratings,
                "max_length": self.args.max_length,
                "max_history": self.args.max_history,
                "single_pass": self.args.eval_single_pass,
            }
            save_ranker(output_dir or str(self.args.output_dir), self.catalog, settings)
