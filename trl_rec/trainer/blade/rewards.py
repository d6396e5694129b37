"""Computes rewards for the lists of a training batch, and the policy's learning targets from these rewards.

If only rewards of this package are used, they are computed on the device. Additional reward functions take NumPy
arrays. If there are such functions, all rewards are computed on the host. Each call of `BatchRewards.score` then
copies the lists, the targets and the histories to the host in one transfer.

Legend: B prompts, G rollouts per prompt, M reference lists per prompt, K items per list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.evaluation.metrics import unit_vectors
from trl_rec.evaluation.rewards import ListBatch, ListReward, ListRewards, score_lists, score_split
from trl_rec.evaluation.torch_rewards import (
    TORCH_REWARDS,
    ListTensors,
    RewardTensors,
    reward_dtype,
    rounded,
    score_tensors,
)
from trl_rec.items import ItemCatalog
from trl_rec.losses.blade import best_of_n_reward, posterior_cdf
from trl_rec.ragged import Ragged
from trl_rec.trainer.blade.collator import as_rows
from trl_rec.trainer.blade.config import BladeConfig


@dataclass
class BatchRewards:
    """Computes the rewards of lists for the batches of [`ListPromptCollator`].

    Args:
        catalog (`ItemCatalog`): The items. Rewards that use groups of items, such as genres, need a catalogue with
            groups.
        weights (`Mapping[str, float]`): The weight of each reward, by name.
        functions (`Mapping[str, ListReward]`): Additional reward functions, by name.
    """

    catalog: ItemCatalog
    weights: Mapping[str, float]
    functions: Mapping[str, ListReward]

    def __post_init__(self) -> None:
        self._tables: list[Tensor] = []
        self.group_shares = None if self.catalog.group_column is None else self.catalog.group_shares()[1]

    @cached_property
    def on_device(self) -> bool:
        """Whether all rewards are computed on the device."""
        return self.weights.keys() <= TORCH_REWARDS.keys() - self.functions.keys()

    def score(self, items: Tensor, inputs: dict[str, Tensor]) -> RewardTensors:
        """Returns the rewards of the lists `items`, `(B, number of lists per prompt, K)`.

        If scoring raises ValueError, the message also lists which training rows the batch contains.
        """
        if self.on_device:
            tables = self._tables_on(items.device)
            return score_tensors(ListTensors(items, inputs["targets"], inputs["history"], *tables), self.weights)
        try:
            rewards = self._score(items, inputs)
        except ValueError as error:
            raise ValueError(f"{error} (in the batch of the training rows {inputs['row'].tolist()})") from error
        parts = {name: _moved(values, items.device) for name, values in rewards.parts.items()}
        return RewardTensors(_moved(rewards.total, items.device), parts)

    def of_references(self, inputs: dict[str, Tensor]) -> Tensor:
        """Returns the rewards of the reference lists of a batch, `(B, M)`. M is 0 if no reference lists were drawn."""
        if "references" not in inputs:
            device = inputs["row"].device
            return torch.empty(len(inputs["row"]), 0, dtype=reward_dtype(device), device=device)
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

    def check_targets(self, targets: Ragged) -> None:
        """Raises ValueError if a reward needs targets but a row has none. Call this before any list is sampled."""
        needed = self.weights.keys() & {"ndcg", "recall", "hit"} - self.functions.keys()
        if needed and not targets.lengths.all():
            row = int(np.flatnonzero(targets.lengths == 0)[0])
            raise ValueError(f"targets, row {row}: the user has no targets; leave such users out")

    def _score(self, items: Tensor, inputs: dict[str, Tensor]) -> ListRewards:
        lists, targets, history = _on_host(items, inputs["targets"], inputs["history"])
        return score_lists(
            ListBatch(lists, as_rows(targets), as_rows(history), self.group_shares), self.weights, self.functions
        )

    def _tables_on(self, device: torch.device) -> list[Tensor]:
        """Returns two tables, `(num_items, num_groups)` each: the group shares, and their rows scaled to unit length.

        An item in k groups has the share 1 / k in each of these groups. The returned list is empty if the catalogue
        has no groups. The tables are moved to the device only once.
        """
        if self.group_shares is None:
            return []
        if not self._tables or self._tables[0].device != device:
            units = unit_vectors(self.group_shares).astype(self.group_shares.dtype)
            self._tables = [torch.from_numpy(table).to(device) for table in (self.group_shares, units)]
        return self._tables


def _on_host(*tensors: Tensor) -> list[np.ndarray]:
    """Returns integer tensors as arrays, copied to the host in one transfer."""
    flat = torch.cat([tensor.flatten().long() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).numpy() for part, tensor in zip(parts, tensors, strict=True)]


def _moved(values: np.ndarray, device: torch.device) -> Tensor:
    """Returns rewards as a tensor on the device, in float64 if the device supports it, else in float32. The values are
    rounded so that equally good lists have equal rewards."""
    rewards = rounded(torch.from_numpy(values).to(reward_dtype(device)))
    return rewards.to(device, non_blocking=True)


def reward_target(rewards: Tensor, references: Tensor, config: BladeConfig) -> Tensor:
    """Returns the learning target of each rollout, `(B, G)` in the dtype of the rewards, without the KL penalty.

    Args:
        rewards: `(B, G)`, the rewards of the rollouts.
        references: `(B, M)`, the rewards of the reference lists.
        config: The configuration, which contains `target` and its options.
    """
    if config.target == "reward":
        return rewards
    at_most, below = posterior_cdf(rewards, references, dynamic_coefficient=config.rollout_share, prior=config.prior)
    return best_of_n_reward(at_most, below, best_of=config.best_of)
