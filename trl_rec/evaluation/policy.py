"""Defines and evaluates a policy: a model together with its prompt format and its decoding settings.

`evaluate_policy` ranks the catalogue and computes the metrics of [`evaluate_split`]. Where they apply, it adds three
kinds of metrics:

- recall far down the ranking, usually from a separate pass with more beams;
- preference accuracy, which is how often a held-out item that a user liked scores above one that the user disliked;
- expected recall and NDCG over random orders of the items that share a leaf of the trie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.exact import rank_scores, score_catalog, score_items
from trl_rec.decoding.priors import Prior
from trl_rec.decoding.trie_weights import log_weights
from trl_rec.evaluation.cost import seconds_per_user
from trl_rec.evaluation.kept.finished_rows import FinishedRows
from trl_rec.evaluation.preferences import RatedTargets
from trl_rec.evaluation.rank import as_ranks, map_histories, map_rows, rank_histories
from trl_rec.evaluation.rankings import RANK, Rankings
from trl_rec.evaluation.results import Evaluation, evaluate_split, further_cutoff, held_out, recall_far_down
from trl_rec.evaluation.rewards import ListReward
from trl_rec.evaluation.shared_leaves import expected_metrics, leaf_of_items
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT


PREFERENCES = "preference_accuracy"


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trl_rec.data.dataset import RecDataset

# Takes padded prompts, their row numbers and the items to exclude, and returns values, as `map_histories` expects.
BatchFunction: TypeAlias = Callable[[dict[str, Tensor], np.ndarray, Tensor | None], np.ndarray]


@dataclass(frozen=True, eq=False)
class Policy:
    """A model with its prompt format and its decoding settings.

    Args:
        model (`PreTrainedModel`): The model.
        prompt_format (`PromptFormat`): Encodes histories as prompts.
        trie (`TokenTrie`): Trie of the catalogue, built with `lists=True` if the prompt format has a `list_length`.
        pad_token_id (`int`): Id of the padding token.
        num_beams, exclude_history, renormalize, length_penalty, batch_size, max_length (*optional*): As in
            [`rank_histories`].
        prior (*optional*): A prior whose item weights multiply the model's probabilities, as in [`rank_histories`].
        finished (*optional*): Stores the finished rows of [`rank`] and [`score`], so that an interrupted evaluation
            can be resumed.
    """

    model: PreTrainedModel
    prompt_format: PromptFormat
    trie: TokenTrie
    pad_token_id: int
    num_beams: int | None = None
    exclude_history: bool = True
    renormalize: bool = True
    length_penalty: float = 0.0
    batch_size: int = 16
    max_length: int | None = None
    prior: Prior | None = None
    finished: FinishedRows | None = None

    @property
    def writes_lists(self) -> bool:
        """Whether the model writes lists. Otherwise it scores single items."""
        return self.prompt_format.list_length is not None

    def rank(self, rows: Dataset, top_k: int, *, num_beams: int | None = None) -> Rankings:
        """Ranks items for the rows of a split: items and scores `(len(rows), top_k)`.

        `num_beams` defaults to that of the policy.
        """
        return rank_histories(
            self.model,
            split_rows(rows, "history"),
            self.prompt_format,
            self.trie,
            pad_token_id=self.pad_token_id,
            users=self._users(rows),
            top_k=top_k,
            num_beams=self.num_beams if num_beams is None else num_beams,
            exclude_history=self.exclude_history,
            renormalize=self.renormalize,
            length_penalty=self.length_penalty,
            batch_size=self.batch_size,
            max_length=self.max_length,
            prior=self.prior,
            finished=self.finished,
        )

    def rank_exhaustively(self, rows: Dataset, top_k: int) -> Rankings:
        """Same as [`rank`], but ranks all items by their exact scores instead of using a beam search.

        The model must not write lists.
        """
        COUNT.check("top_k", top_k)
        trie = self.trie.to(self.model.device)
        histories = split_rows(rows, "history")

        def _rank(prompts: dict[str, Tensor], numbers: np.ndarray, exclude: Tensor | None) -> np.ndarray:
            scores = score_catalog(
                self.model, prompts, trie, renormalize=self.renormalize, length_penalty=self.length_penalty
            )
            weights = None if self.prior is None else self.prior.weights(histories.take(numbers))
            return as_ranks(rank_scores(scores, trie, top_k, exclude, weights))

        return Rankings.from_ranks(self.map_rows(_rank, rows, top_k, RANK, "scoring every item"))

    def score(self, rows: Dataset, items: Ragged) -> np.ndarray:
        """Computes the exact scores of given items, `(len(items.values),)` in float32.

        If the model writes lists, an item is scored as the first item of a list.

        Args:
            rows (`Dataset`): Rows of a split.
            items (`Ragged`): The items to score for each row, at least one in total.
        """
        trie = self.trie.to(self.model.device)
        given = items.padded()  # (N, K)
        histories = split_rows(rows, "history")

        def _score(prompts: dict[str, Tensor], numbers: np.ndarray, exclude: Tensor | None) -> np.ndarray:
            # If the model writes lists, excluded items are removed before the softmax, which changes the scores of the
            # other items. If the model scores single items, exclusion does not change the scores of other items, so
            # nothing is excluded here.
            scores = score_items(
                self.model,
                prompts,
                trie,
                torch.from_numpy(given[numbers]),
                exclude=exclude if self.writes_lists else None,
                renormalize=self.renormalize or self.writes_lists,
                length_penalty=0.0 if self.writes_lists else self.length_penalty,
            )
            if self.prior is not None:
                weights = self.prior.weights(histories.take(numbers))
                scores = scores + log_weights(trie, weights, torch.from_numpy(given[numbers]).to(scores.device))
            values: np.ndarray = scores.float().cpu().numpy()
            return values

        finished = self._finished(given, self.writes_lists, self.renormalize, self.length_penalty)
        scores = self.map_rows(_score, rows, given.shape[1], np.dtype(np.float32), "scoring items", finished=finished)
        return scores[given >= 0]

    def rank_by_prior(self, rows: Dataset, top_k: int) -> Rankings:
        """Ranks items by the weights of the prior alone: items and scores `(len(rows), top_k)`.

        The score is `log(w / W)`, where w is the weight of the item and W the sum of the weights of all items.
        The same items are excluded as in [`rank`]. The strength of the prior has no effect.
        """
        COUNT.check("top_k", top_k)
        assert self.prior is not None, "the policy has no prior"
        prior = self.prior
        histories = split_rows(rows, "history")
        excluded = self.excluded(rows)

        def _rank(numbers: np.ndarray) -> np.ndarray:
            weights = replace(prior.weights(histories.take(numbers)), strength=1.0)
            exclude = None if excluded is None else torch.from_numpy(excluded.take(numbers).padded())
            scores = torch.zeros(len(numbers), len(self.trie.item_positions), device=self.trie.items.device)
            return as_ranks(rank_scores(scores, self.trie, top_k, exclude, weights))

        ranks = map_rows(
            _rank, histories.lengths, width=top_k, dtype=RANK, desc="ranking by the prior", batch_size=self.batch_size
        )
        return Rankings.from_ranks(ranks)

    def excluded(self, rows: Dataset) -> Ragged | None:
        """Returns, for each row, the items that must not be recommended, or None if histories are not excluded."""
        return self.prompt_format.exclusions(split_rows(rows, "history")) if self.exclude_history else None

    def seconds_per_user(self, rows: Dataset, passes: Sequence[RankingPass]) -> list[float]:
        """Estimates how many seconds each pass takes per user, by ranking a few of the rows.

        All processes must call this method.
        """

        def _rank(one: RankingPass) -> Callable[[Policy, Dataset], object]:
            return lambda policy, some: policy.rank(some, one.top_k, num_beams=one.num_beams)

        return self.seconds_of([_rank(one) for one in passes], rows)

    def seconds_of(self, steps: Sequence[Callable[[Policy, Dataset], object]], rows: Dataset) -> list[float]:
        """Estimates how many seconds each step takes per user, by running it on a few of the rows.

        All processes must call this method.

        Args:
            steps: Functions to time. Each is called with a copy of this policy and with some of the rows. The copy has
                no `finished`, so that every row is computed.
            rows (`Dataset`): Rows of a split.
        """
        policy = replace(self, finished=None)
        prompts = self.prompt_format.encode(split_rows(rows, "history"), self._users(rows), max_length=self.max_length)

        def _run(step: Callable[[Policy, Dataset], object]) -> Callable[[np.ndarray], object]:
            return lambda numbers: step(policy, rows.select(numbers))

        return seconds_per_user([_run(step) for step in steps], prompts.lengths, self.batch_size)

    def map_rows(
        self,
        compute: BatchFunction,
        rows: Dataset,
        width: int,
        dtype: np.dtype[Any],
        desc: str,
        *,
        finished: FinishedRows | None = None,
    ) -> np.ndarray:
        """Applies a function to the prompts of the rows in batches, as in [`map_histories`]."""
        return map_histories(
            compute,
            split_rows(rows, "history"),
            self.prompt_format,
            width=width,
            dtype=dtype,
            desc=desc,
            pad_token_id=self.pad_token_id,
            users=self._users(rows),
            exclude_history=self.exclude_history,
            batch_size=self.batch_size,
            max_length=self.max_length,
            finished=finished,
        )

    def _finished(self, *content: Any) -> FinishedRows | None:
        """Returns the object that stores the finished rows of a pass, or None if rows are not stored. `content`
        describes the pass."""
        return None if self.finished is None else self.finished.of(self.trie, self.prior, *content)

    def _users(self, rows: Dataset) -> np.ndarray | None:
        return split_users(rows) if self.prompt_format.users is not None else None


class RankingPass(NamedTuple):
    """One pass over the rows of an evaluation.

    Args:
        top_k (`int`): Number of items to rank for each row.
        num_beams (`int`, *optional*): Number of beams. Defaults to that of the policy.
    """

    top_k: int
    num_beams: int | None = None


def ranking_passes(policy: Policy, ks: Sequence[int], recall_at: int | None, num_items: int) -> list[RankingPass]:
    """Returns the passes that [`evaluate_policy`] makes: one for recall at `recall_at`, and one for all other metrics.

    A single pass is enough if recall at `recall_at` is not needed. It is also enough if a ranking of `recall_at` items
    needs no more beams than the ranking for the other metrics. The longer ranking then begins with the shorter one.
    """
    further = None if policy.writes_lists else further_cutoff(recall_at, ks, num_items)
    if further is None:
        return [RankingPass(max(ks))]
    num_beams = max(policy.num_beams or 0, further)
    # If all paths have one token, one step scores every item, so the number of beams has no effect.
    one_pass = policy.trie.max_depth == 1 or policy.num_beams == num_beams
    return [RankingPass(further, num_beams)] if one_pass else [RankingPass(further, num_beams), RankingPass(max(ks))]


def evaluate_policy(
    policy: Policy,
    dataset: RecDataset,
    *,
    split: str = "test",
    ks: Sequence[int] = (1, 5, 10),
    recall_at: int | None = None,
    rewards: Mapping[str, float] | None = None,
    reward_functions: Mapping[str, ListReward] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Ranks the catalogue for the rows of a split with a policy, and computes all metrics.

    Args:
        policy (`Policy`): The policy.
        dataset (`RecDataset`): The dataset.
        split (`str`, *optional*, defaults to `"test"`): `"validation"` or `"test"`.
        ks (`Sequence[int]`, *optional*, defaults to `(1, 5, 10)`): The cutoffs k of the metrics.
        recall_at (`int`, *optional*): A further cutoff above `ks`, for recall alone. Usually, this recall is computed
            in a separate pass over the users, with `recall_at` beams, which does not affect the other metrics. There
            is no separate pass if every item is a single token, or if the policy has at least `recall_at` beams. This
            recall is left out if the model writes lists, or if a ranking of `recall_at` items would contain the whole
            catalogue.
        rewards, reward_functions, seed (*optional*): As in [`evaluate_split`].

    Returns:
        [`Evaluation`]: The metrics of [`evaluate_split`] and, where they apply:

        - `recall@k` with k equal to `recall_at`;
        - `preference_accuracy`, if users have held-out items that they liked and others that they disliked;
        - `expected_recall@k` and `expected_ndcg@k`, if items share a leaf of the trie and the policy has no prior.
          With a prior, the order of the items of a leaf is not arbitrary, because it depends on their weights.
    """
    rows = held_out(dataset, split)
    further = None if policy.writes_lists else further_cutoff(recall_at, ks, len(dataset.catalog))

    # 1. Rank.
    passes = ranking_passes(policy, ks, recall_at, len(dataset.catalog))
    rankings = [policy.rank(rows, one.top_k, num_beams=one.num_beams) for one in passes]
    further_ranked = rankings[0]
    ranked = rankings[-1].head(max(ks))
    evaluation = evaluate_split(
        ranked, dataset, split=split, ks=ks, rewards=rewards, reward_functions=reward_functions, seed=seed
    )

    # 2. Add the metrics that `evaluate_split` does not compute.
    values = recall_far_down(further_ranked, rows, further)
    values |= preference_accuracy(policy, rows)
    if policy.trie.max_shared > 1 and policy.prior is None:
        leaves = leaf_of_items(policy.trie)
        relevant = split_rows(rows, "targets")
        values |= expected_metrics(ranked.items, relevant, leaves, ks=ks, excluded=policy.excluded(rows))
    return evaluation.with_values(values, seed=seed)


def preference_accuracy(policy: Policy, rows: Dataset) -> dict[str, np.ndarray]:
    """Returns a mapping from `preference_accuracy` to its values per user. The mapping is empty if no user has both a
    liked and a disliked held-out item."""
    rated = RatedTargets.from_split(rows)
    if rated is None or not rated.has_pairs.any():
        return {}
    with_pairs = np.flatnonzero(rated.has_pairs)
    values = np.full(len(rows), np.nan)
    some = rated.take(with_pairs)
    values[with_pairs] = some.accuracy(policy.score(rows.select(with_pairs), some.items))
    return {PREFERENCES: values}
