"""Evaluates Best-of-N at inference: N lists are drawn from a policy, and the list with the highest reward is kept.

Rewards such as NDCG use the items that the users chose next, so Best-of-N cannot be used to make recommendations. It
shows what training can aim for. BLADE can train the same policy to imitate Best-of-N: in [`BladeConfig`], set
`target="best_of_n"`, the same `rewards` and `best_of`, and leave `beta` at its default.

By default, N lists are drawn per user. If more are drawn, the result is the mean over all ways to choose N of them.

Legend: U: users, S: lists drawn per user, K: items per list, N: `best_of`.
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
from trl_rec.decoding.lists.sampling import sample_item_lists
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.kept.finished_rows import FinishedRows
from trl_rec.evaluation.rank import map_histories
from trl_rec.evaluation.results import Evaluation, held_out
from trl_rec.evaluation.rewards import ListReward, score_split
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged
from trl_rec.ranges import COUNT, POSITIVE


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
    """Draws lists for each row of a split, and evaluates both the mean over all drawn lists and the best of N lists.

    Args:
        model, tokenizer, dataset, prompt_format: As in [`rank_split`]; the policy must write lists.
        rewards: As in [`evaluate_best_of`].
        best_of: N, the number of lists to choose the best from. By default, N lists are drawn per user.
        split (*optional*, defaults to `"test"`): `"validation"` or `"test"`.
        seed (*optional*, defaults to `0`): Seed of the drawn lists and of the bootstrap.
        options: Passed to [`draw_lists`]. Set `num_lists` to draw more than N lists per user.

    Returns:
        Two evaluations by name: `"drawn"` for the mean over all drawn lists, and `"best of N"`, with N replaced by its
        value, for the best list.
    """
    if prompt_format.list_length is None:
        raise ValueError("best_of requires a policy that writes lists; set list_length")

    rows = held_out(dataset, split)
    lists = draw_lists(
        model,
        split_rows(rows, "history"),
        prompt_format,
        TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=True),
        users=split_users(rows),
        **{"num_lists": best_of, "seed": seed, "pad_token_id": tokenizer.pad_token_id, **options},
    )

    # Both evaluations use the same lists. With `best_of=1`, the result is the mean over all lists.
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
    finished: FinishedRows | None = None,
    **options: Any,
) -> np.ndarray:
    """Returns `num_lists` lists for each history, drawn from the policy, as item indices `(U, S, K)`.

    Args:
        model: A causal language model that writes lists.
        histories: Item indices, oldest first.
        prompt_format: Encodes histories as prompts. It must have a `list_length`.
        trie: Trie of the catalogue, built with `lists=True`.
        num_lists: S, the number of lists per user.
        temperature (*optional*, defaults to `1.0`): Sampling temperature, which divides the logits.
        seed (*optional*, defaults to `0`): Seed of the lists. The random numbers for a history depend only on the
            seed and the index of the history, not on the batch.
        finished (*optional*): Stores the finished lists, so that an interrupted call can be resumed.
        options: `pad_token_id`, `users`, `exclude_history`, `batch_size` and `max_length`, as in [`rank_histories`].
    """
    COUNT.check("num_lists", num_lists)
    POSITIVE.check("temperature", temperature)
    list_length = prompt_format.list_length or 1
    trie = trie.to(model.device)

    def _draw(prompts: dict[str, Tensor], rows: np.ndarray, exclude: Tensor | None) -> np.ndarray:
        drawn = sample_item_lists(
            model,
            prompts,
            trie,
            rows=torch.from_numpy(rows),
            exclude=exclude,
            num_lists=num_lists,
            list_length=list_length,
            temperature=temperature,
            seed=seed,
        )
        items: np.ndarray = drawn.items.flatten(1).cpu().numpy()  # (B, S * K)
        return items

    width = num_lists * list_length
    if finished is not None:
        options["finished"] = finished.of(trie, num_lists, list_length, temperature, seed)
    flat = map_histories(_draw, histories, prompt_format, width=width, desc="sampling lists", **options)
    return flat.reshape(len(histories), num_lists, list_length)


def expected_best(values: np.ndarray, rewards: np.ndarray, best_of: int) -> np.ndarray:
    """Returns the expected value of the best of N lists, `(U,)`, over all ways to choose N of the S lists.

    The best list is the one with the highest reward. If several lists have the highest reward, their values are
    averaged. With N = 1, the result is the mean over all lists.

    Args:
        values (`np.ndarray` of shape `(U, S)`): The value of each list, for example its NDCG.
        rewards (`np.ndarray` of shape `(U, S)`): The reward of each list, which determines the best list.
        best_of (`int`): N, at most S.
    """
    num_lists = rewards.shape[1]
    if not 1 <= best_of <= num_lists:
        raise ValueError(
            f"best_of={best_of} is not between 1 and the number of sampled lists, {num_lists}; sample more lists, or "
            "change best_of"
        )

    # For each list, count the lists with a lower reward, and those with a lower or equal reward, (U, S) each.
    below = (rewards[:, None] < rewards[..., None]).sum(-1)
    at_most = (rewards[:, None] <= rewards[..., None]).sum(-1)

    # `chosen_from[c]` is the probability that all N chosen lists are among c given lists. So
    # `chosen_from[at_most] - chosen_from[below]` is the probability that the highest reward among the N lists
    # equals the reward of this list. Lists with equal rewards share this probability equally.
    ways = np.array([comb(count, best_of) for count in range(num_lists + 1)], np.float64)
    chosen_from = ways / comb(num_lists, best_of)
    chance = (chosen_from[at_most] - chosen_from[below]) / (at_most - below)
    expected: np.ndarray = (chance * values).sum(1)
    return expected


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
    """Evaluates the best of N lists, in expectation over all ways to choose N of the drawn lists.

    Args:
        lists: Lists `(U, S, K)` for the rows of the split, as returned by [`draw_lists`].
        dataset: The dataset.
        rewards: Weights of the rewards that determine the best list, as in [`score_lists`].
        best_of: N, the number of lists to choose the best from; 1 gives the mean over all drawn lists.
        split (*optional*, defaults to `"test"`): `"validation"` or `"test"`.
        reward_functions (*optional*): Additional reward functions by name.
        seed (*optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        The metrics `reward`, `reward/NAME` for each reward, `ndcg@K` and `recall@K`.
    """
    rows = held_out(dataset, split)
    scored = score_split(lists, rows, dataset.catalog, {"ndcg": 0.0, "recall": 0.0, **rewards}, reward_functions)

    # Collect the value of each metric for every list, (U, S) each.
    k = lists.shape[-1]
    values = {"reward": scored.total}
    values |= {f"reward/{name}": part for name, part in scored.parts.items()}
    values |= {f"{name}@{k}": scored.parts[name] for name in ("ndcg", "recall")}

    per_user = {name: expected_best(value, scored.total, best_of) for name, value in values.items()}
    intervals = {name: bootstrap_interval(value, seed=seed) for name, value in per_user.items()}
    metrics = {"num_users": len(lists), **{name: float(value.mean()) for name, value in per_user.items()}}
    return Evaluation(metrics, intervals, per_user)
