"""Computes the rewards of the lists of a training batch, and the learning targets of the policy from these rewards.

Legend: B prompts, G rollouts per prompt, M reference lists per prompt, K items per list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.evaluation.rewards import ListBatch, ListReward, ListRewards, score_lists, score_split
from trl_rec.items import ItemCatalog
from trl_rec.losses.blade import best_of_n_reward, posterior_cdf
from trl_rec.trainer.blade.collator import as_rows
from trl_rec.trainer.blade.config import BladeConfig


@dataclass
class BatchRewards:
    """Computes the rewards of lists for the batches of [`ListPromptCollator`].

    Args:
        catalog (`ItemCatalog`): The items. Rewards that use groups of items need a catalogue with groups.
        weights (`Mapping[str, float]`): The weight of each reward, by name.
        functions (`Mapping[str, ListReward]`): Additional reward functions, by name.
    """

    catalog: ItemCatalog
    weights: Mapping[str, float]
    functions: Mapping[str, ListReward]

    def __post_init__(self) -> None:
        self.group_shares = None if self.catalog.group_column is None else self.catalog.group_shares()[1]

    def score(self, items: Tensor, inputs: dict[str, Tensor]) -> ListRewards:
        """Returns the rewards of the lists `items`, `(B, number of lists per prompt, K)`.

        If scoring raises ValueError, the numbers of the training rows in the batch are added to the message.
        """
        try:
            return self._score(items, inputs)
        except ValueError as error:
            raise ValueError(f"{error} (in the batch of the training rows {inputs['row'].tolist()})") from error

    def of_references(self, inputs: dict[str, Tensor]) -> np.ndarray:
        """Returns the rewards of the reference lists of a batch, `(B, M)`. M is 0 if no reference lists were drawn."""
        if "references" not in inputs:
            return np.empty((len(inputs["row"]), 0))
        return self.score(inputs["references"], inputs).total

    def of_split(self, ranked: np.ndarray, split: Dataset) -> ListRewards:
        """Returns the rewards, `(num_rows, 1)`, of the lists `ranked`, `(num_rows, K)`, one per user of a split."""
        return score_split(ranked[:, None], split, self.catalog, self.weights, self.functions)

    def check(self, inputs: dict[str, Tensor], list_length: int) -> None:
        """Scores some lists, so that a wrong reward function raises its error before any list is sampled."""
        # The trainer passes at most two rows, so the shape is usually (2, K + 1, K). The sizes differ on purpose: a
        # reward function that mixes up the axes then fails.
        lists = torch.arange(list_length).expand(len(inputs["row"]), list_length + 1, -1)
        self._score(lists, inputs)

    def _score(self, items: Tensor, inputs: dict[str, Tensor]) -> ListRewards:
        batch = ListBatch(
            items.cpu().numpy(), as_rows(inputs["targets"]), as_rows(inputs["history"]), self.group_shares
        )
        return score_lists(batch, self.weights, self.functions)


def reward_target(rewards: np.ndarray, references: np.ndarray, config: BladeConfig) -> Tensor:
    """Returns the learning target of each rollout, `(B, G)` in float64, without the KL penalty.

    Args:
        rewards: `(B, G)`, the rewards of the rollouts.
        references: `(B, M)`, the rewards of the reference lists.
        config: The configuration, which contains `target` and its options.
    """
    if config.target == "reward":
        return torch.from_numpy(rewards)
    at_most, below = posterior_cdf(
        torch.from_numpy(rewards),
        torch.from_numpy(references),
        dynamic_coefficient=config.rollout_share,
        prior=config.prior,
    )
    return best_of_n_reward(at_most, below, best_of=config.best_of)
