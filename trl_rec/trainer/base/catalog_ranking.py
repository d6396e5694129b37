"""Defines the mixin for trainers that rank the whole catalogue per user. It adds ranking metrics to evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_rec.compat import unwrapped_for_generation
from trl_rec.data.dataset import at_most, split_rows
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.priors import PRIOR, SavedPrior
from trl_rec.decoding.priors.run_folder import KEY as PRIOR_KEY
from trl_rec.decoding.priors.run_folder import prior_entry
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation import Policy, Rankings, evaluate_rankings
from trl_rec.evaluation.policy import PREFERENCES, preference_accuracy, ranking_passes
from trl_rec.items import ItemCatalog, TokenTrie
from trl_rec.trainer.base.checks import check_processes
from trl_rec.trainer.base.prior_config import wants_prior
from trl_rec.trainer.base.trainer import NO_RANKING_UNDER_FSDP, EvalSets, RecTrainerMixin, SecondsPerUser


if TYPE_CHECKING:
    from trl_rec.trainer.base.config import RecConfig


class CatalogRankingMixin(RecTrainerMixin):
    """Mixin for trainers whose model recommends from the whole catalogue.

    Subclasses must call `_set_catalog` before `super().__init__`.

    Attributes:
        trie (`TokenTrie`): The token paths of the items. Only set if the trainer has a catalogue.
        prompt_format (`PromptFormat`): Converts histories to prompts. Only set if the trainer has a catalogue.
        renormalizes (`bool`): Whether the scores of items use the softmax over the legal tokens, which are the next
            tokens that the trie allows. Otherwise they use the softmax over the vocabulary. Models that write lists
            always use the legal tokens.
        prior (`SavedPrior`, *optional*): The prior that is saved with the model. A [`Recommender`] multiplies the
            model's probabilities by the item weights of the prior, but `policy` and `rank` do not. [`conclude`] sets
            this attribute, and every later save of the model contains the prior.
    """

    trie: TokenTrie
    prompt_format: PromptFormat
    renormalizes: bool = True
    prior: SavedPrior | None = None

    def _set_catalog(
        self,
        catalog: ItemCatalog | None,
        processing_class: PreTrainedTokenizerBase,
        args: RecConfig,
        eval_dataset: EvalSets | None,
    ) -> None:
        """Sets the catalogue, the prompt format, the trie, and the splits to rank at each evaluation."""
        check_processes(args)
        if catalog is None and wants_prior(args):
            raise ValueError(
                f"prior={args.prior} multiplies the model's probabilities by item weights, but there is no catalogue; "
                "give a dataset (in Python: catalog), or leave prior out"
            )
        self.catalog = catalog
        self._eval_sets = eval_dataset
        if catalog is not None:
            self.prompt_format = PromptFormat.for_catalog(catalog, processing_class, **args.prompt_options)
            self.trie = TokenTrie.from_catalog(catalog, processing_class, lists=args.list_length is not None)

    def _check_ranking(self) -> None:
        """Runs the check of the parent class. Also raises `ValueError` if `args.prior` is set under FSDP."""
        super()._check_ranking()
        if self.is_fsdp_enabled and wants_prior(self.args):
            raise ValueError(
                f"prior={self.args.prior} has no effect under FSDP, where a run ends without an evaluation; leave "
                f"prior out, and run trl-rec evaluate --prior {self.args.prior} on the saved model"
            )

    @contextmanager
    def policy(self) -> Iterator[Policy]:
        """Yields the [`Policy`] that is evaluated, with sharded weights gathered.

        Gathering is collective, so every process must enter the `with` block.
        """
        if self.is_fsdp_enabled:
            raise ValueError(NO_RANKING_UNDER_FSDP)
        with unwrapped_for_generation(self.model_wrapped, self.accelerator) as model:
            yield Policy(
                model,
                self.prompt_format,
                self.trie,
                pad_token_id=self.processing_class.pad_token_id,
                num_beams=self.args.eval_num_beams,
                exclude_history=self.args.eval_exclude_history,
                renormalize=self.renormalizes,
                length_penalty=self.args.eval_length_penalty,
                batch_size=self.args.per_device_eval_batch_size,
                max_length=self.args.max_length,
            )

    def rank(self, split: Dataset) -> Rankings:
        """Returns the best items for the users of a split, and their scores, `(num_rows, max(eval_ks))` each."""
        with self.policy() as policy:
            return policy.rank(split, max(self.args.eval_ks))

    def seconds_per_user(self, split: Dataset) -> SecondsPerUser:
        """Estimates the seconds that ranking takes per user, in the final evaluation and in one during training."""
        with self.policy() as policy:
            passes = ranking_passes(policy, self.args.eval_ks, self.args.eval_recall_at, len(policy.trie.items))
            seconds = policy.seconds_per_user(split, passes)
        return SecondsPerUser(final=sum(seconds), during_training=seconds[-1])

    def measure(self, ranked: Rankings, split: Dataset) -> dict[str, float]:
        """Computes the metrics of `ranked`, which [`~CatalogRankingMixin.rank`] returned for the same split."""
        return evaluate_rankings(
            ranked.items,
            split_rows(split, "targets"),
            ks=self.args.eval_ks,
            catalog=self.catalog,
            histories=split_rows(split, "history"),
        )

    def rank_and_measure(self, split: Dataset) -> dict[str, float]:
        """Ranks items for at most `max_users` users of a split, and computes the metrics."""
        split = at_most(self.args.max_users, split)
        return {**self.measure(self.rank(split), split), **self.measure_preferences(split)}

    def measure_preferences(self, split: Dataset) -> dict[str, float]:
        """Computes `preference_accuracy` for the users of a split, if `metric_for_best_model` names this metric.

        Otherwise returns an empty mapping, because the metric takes another pass over the users. Raises `ValueError`
        if no user has both a liked and a disliked held-out item.
        """
        if (self.args.metric_for_best_model or "").removeprefix("eval_") != PREFERENCES:
            return {}
        with self.policy() as policy:
            values = preference_accuracy(policy, split)
        if not values:
            raise ValueError(
                f"metric_for_best_model={PREFERENCES} compares liked with disliked held-out items, but no user of the "
                "validation split has both; choose another metric"
            )
        return {PREFERENCES: float(np.nanmean(values[PREFERENCES]))}

    def save_settings(self, folder: Path) -> None:
        """Writes the files that [`Recommender`] reads besides the model.

        These files are the catalogue, `recommender.json`, and the prior if there is one.
        """
        if self.catalog is None:
            return
        settings = recommender_settings(self.args, renormalize=self.renormalizes)
        if self.prior is not None:
            self.prior.save(folder / PRIOR)
            settings[PRIOR_KEY] = prior_entry(self.prior)
        save_recommender(folder, self.catalog, settings)

    def card_example(self) -> Sequence[str]:
        """Returns lines of Python that load the run folder and recommend items. Empty without a catalogue."""
        if self.catalog is None:
            return ()
        names_users = "{user}" in (self.args.prompt_head or "")
        user = ", user=0" if names_users else ""  # a row number of RecDataset.users
        return (
            "from trl_rec import Recommender",
            "",
            self.card_place,
            "recommender = Recommender.from_pretrained(folder)",
            "history = recommender.catalog.ids[:3]  # the item ids of a user, oldest first",
            f"for item in recommender.recommend(history, k={min(10, self.args.list_length or 10)}{user}):",
            "    print(item.item_id, item.title, item.score)",
        )


def recommender_settings(args: Any, *, renormalize: bool) -> dict[str, Any]:
    """Returns the entries of `recommender.json`, except those for the catalogue and the prior.

    Args:
        args: The configuration of the trainer.
        renormalize: As `renormalizes` in [`CatalogRankingMixin`].
    """
    greedy_list = args.list_length is not None
    return {
        "prompt": args.prompt_options,
        "max_length": args.max_length,
        "renormalize": renormalize,
        "length_penalty": args.eval_length_penalty,
        "num_beams": args.eval_num_beams or (1 if greedy_list else max(args.eval_ks)),
    }
