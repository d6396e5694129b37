"""Best-of-N at inference: lists drawn from a policy, of which the best by a reward is kept.

The reward looks at what the users chose, so nobody could recommend like this. It is the ceiling of a policy that was
aligned to a static Best-of-N target, and costs N lists for each one shown.

Legend: U users, S lists drawn a user, K items a list, N the `best_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import comb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.decoding.lists import sample_item_lists
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.rank import over_histories
from trl_rec.evaluation.results import Evaluation, held_out
from trl_rec.evaluation.rewards import ListReward, score_split
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from trl_rec.data.dataset import RecDataset


def best_of_split(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: RecDataset,
    prompt_format: PromptFormat,
    rewards: Mapping[str, float],
    *,
    best_of: int,
    split: str = "test",
    seed: int = 0,
    **options: Any,
) -> dict[str, Evaluation]:
    """What a list that the policy draws is worth, `"drawn"`, and the best of N, `"best of N"`, for the rows of a
    split.

    Args:
        model, tokenizer, dataset, prompt_format: As in [`rank_split`], for a policy that writes lists.
        rewards: As in [`evaluate_best_of`].
        best_of: N; as many lists are drawn for each user.
        split: `"validation"` or `"test"`.
        seed: Of the lists and the bootstrap.
        options: As in [`draw_lists`].
    """
    if prompt_format.list_length is None:
        raise ValueError("the best of several lists needs a policy that writes lists; give list_length")
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=True)
    rows = held_out(dataset, split)
    drawing: dict[str, Any] = {"num_lists": best_of, "seed": seed, "pad_token_id": tokenizer.pad_token_id, **options}
    lists = draw_lists(model, split_rows(rows, "history"), prompt_format, trie, users=split_users(rows), **drawing)
    counts = {"drawn": 1, f"best of {best_of}": best_of}
    return {
        name: evaluate_best_of(lists, dataset, rewards, best_of=count, split=split, seed=seed)
        for name, count in counts.items()
    }


def draw_lists(
    model: PreTrainedModel,
    histories: Ragged,
    prompt_format: PromptFormat,
    trie: TokenTrie,
    *,
    num_lists: int,
    temperature: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> np.ndarray:
    """Lists `(U, S, K)` drawn from the policy after each history, S being `num_lists`.

    Args:
        model: A causal language model that writes lists.
        histories: Item indices, oldest first.
        prompt_format: How they are written, made with a `list_length`.
        trie: The catalogue, made with `lists=True`.
        num_lists: Lists a user.
        temperature: Divides the logits.
        seed: A user's lists depend on it and on the user's row.
        options: `pad_token_id`, `users`, `exclude_history`, `batch_size` and `max_length`, as in [`rank_histories`].
    """
    length = prompt_format.list_length or 1

    def draw(prompts: dict[str, Tensor], rows: np.ndarray, exclude: Tensor | None) -> Tensor:
        settings: dict[str, Any] = {
            "num_lists": num_lists,
            "list_length": length,
            "temperature": temperature,
            "seed": seed,
        }
        drawn = sample_item_lists(model, prompts, on_device, rows=torch.from_numpy(rows), exclude=exclude, **settings)
        return drawn.items.flatten(1)

    on_device = trie.to(model.device)
    width = num_lists * length
    flat = over_histories(draw, histories, prompt_format, width=width, desc="drawing lists", **options)
    return flat.reshape(len(histories), num_lists, length)


def expected_best(values: np.ndarray, rewards: np.ndarray, best_of: int) -> np.ndarray:
    """`(U,)`: the mean of `values` `(U, S)` over the best of N lists by `rewards` `(U, S)`, for all ways to choose N
    of the S; the winners of a tie share. N = 1 gives the mean."""
    num_lists = rewards.shape[1]
    if not 1 <= best_of <= num_lists:
        raise ValueError(f"the best of {best_of} cannot be chosen from {num_lists} lists; draw at least best_of lists")
    below = (rewards[:, None] < rewards[..., None]).sum(-1)  # (U, S): lists with less, and with at most as much
    at_most = (rewards[:, None] <= rewards[..., None]).sum(-1)
    ways = np.array([comb(count, best_of) for count in range(num_lists + 1)], np.float64) / comb(num_lists, best_of)
    chance = (ways[at_most] - ways[below]) / (
        at_most - below
    )  # that the best is of this reward, shared among its lists
    return (chance * values).sum(1)


def evaluate_best_of(
    lists: np.ndarray,
    dataset: RecDataset,
    rewards: Mapping[str, float],
    *,
    best_of: int,
    split: str = "test",
    reward_functions: Mapping[str, ListReward] | None = None,
    seed: int = 0,
) -> Evaluation:
    """What the best of N of drawn lists is worth, in expectation: `reward`, `ndcg@K`, `recall@K` and the reward's
    parts.

    Args:
        lists: `(U, S, K)` for the split's rows, as [`draw_lists`] gives them.
        dataset: The dataset.
        rewards: Weights of rewards by name, by which the best is chosen, as in [`score_lists`].
        best_of: N; 1 is what a drawn list is worth.
        split: `"validation"` or `"test"`.
        reward_functions: Rewards besides the named ones.
        seed: Of the bootstrap.
    """
    rows, k = held_out(dataset, split), lists.shape[-1]
    scored = score_split(lists, rows, dataset.catalog, {"ndcg": 0.0, "recall": 0.0, **rewards}, reward_functions)
    values = {"reward": scored.total, **{f"reward/{name}": part for name, part in scored.parts.items()}}
    values |= {f"{name}@{k}": scored.parts[name] for name in ("ndcg", "recall")}
    per_user = {name: expected_best(one, scored.total, best_of) for name, one in values.items()}
    intervals = {name: bootstrap_interval(one, seed=seed) for name, one in per_user.items()}
    metrics = {"num_users": len(lists), **{name: float(one.mean()) for name, one in per_user.items()}}
    return Evaluation(metrics, intervals, per_user)
