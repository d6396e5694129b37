"""Makes the recipe of the baseline `sequence`, by a rule that depends on the number of items and the interaction log.

Apart from the loss, the rule gives roughly the settings of the recipe `bear/ml-100k` for MovieLens-100k (1,682 items,
long histories), and roughly those of `bear/beauty` for Amazon Beauty (12,101 items, short histories). These two
recipes were tuned on the validation splits.

- **Size.** The model has two layers. It is `SMALL` if the catalogue has fewer than `MANY_ITEMS` items, and `LARGE`
  otherwise.
- **Start.** The item embeddings start from vectors computed from the co-occurrence of items. A few passes over the log
  then suffice. If no two different items follow each other in a training row, the embeddings start from random
  vectors.
- **Row length.** The length of a row is the smallest power of two into which 99 % of the training sequences fit, but
  at least 16 and at most 128. Longer sequences are cut into overlapping rows.
- **Batch.** The number of rows is chosen so that a batch contains about `STEP_TOKENS` items. It is rounded to a power
  of two, and is at most `MAX_BATCH`.
- **Steps.** The steps suffice for about `NUM_PASSES` passes over the log, but are at least `MIN_STEPS` and at most
  `MAX_STEPS`. The upper limit bounds the training time for long logs. The learning rate always falls to 0 at the last
  step.
- **Loss.** The loss is cross-entropy over all items, at every position. If there are more than `MOST_SCORED` items, it
  is computed over the target and `NUM_SAMPLED` sampled items instead.
- **Checkpoint.** Of 20 checkpoints, the one with the highest NDCG@10 on at most `MAX_USERS` validation users is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trl_rec.data.dataset import RecDataset, split_rows
from trl_rec.ragged import join


MANY_ITEMS = 5_000
SMALL: dict[str, Any] = {"hidden_size": 64, "dropout": 0.3, "learning_rate": 3e-3}
LARGE: dict[str, Any] = {"hidden_size": 128, "dropout": 0.5, "learning_rate": 2e-3}

SHORTEST_ROW = 16  # tokens
LONGEST_ROW = 128
WHOLE = 0.99  # share of the training sequences that fit into a row
STEP_TOKENS = 1_024
MAX_BATCH = 256  # rows
NUM_PASSES = 10
MIN_STEPS = 200
MAX_STEPS = 20_000

MOST_SCORED = 20_000
NUM_SAMPLED = 1_024
MAX_USERS = 5_000
MOST_LOGITS = 1 << 24  # maximum number of logits of an evaluation batch (64 MB)


def sequence_recipe(dataset: RecDataset, *, seed: int = 0, exclude_history: bool = True) -> dict[str, Any]:
    """Returns the settings with which `trl-rec bear` trains the baseline `sequence`, except `dataset` and
    `output_dir`.

    Args:
        dataset (`RecDataset`): The dataset. Only its training split and the number of its items are used.
        seed (`int`, *optional*, defaults to `0`): Seed of the weights, of the dropout and of the order of the rows.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether the items of a user's history are excluded
            from the recommendations when checkpoints are compared on the validation split.
    """
    num_items = len(dataset.catalog)
    num_targets = split_rows(dataset.train, "targets").lengths
    lengths = (split_rows(dataset.train, "history").lengths + num_targets)[num_targets > 0]
    if not len(lengths):
        raise ValueError(
            "the baseline 'sequence' has nothing to learn, because no user has two interactions in the training "
            "split; remove 'sequence' from `baselines`, or use more data"
        )

    # 1. Choose the length of a row and the number of rows in a batch. A row also contains BOS.
    max_length = int(np.clip(_power_of_two(np.quantile(lengths, WHOLE) + 1, np.ceil), SHORTEST_ROW, LONGEST_ROW))
    num_rows = STEP_TOKENS / np.minimum(lengths, max_length).mean()
    batch_size = int(np.clip(_power_of_two(num_rows, np.round), 1, MAX_BATCH))

    # 2. Choose the number of steps. If a sequence is cut, its rows overlap by half, so together they contain
    # `2 * length - max_length` items.
    num_tokens = lengths.sum() + np.maximum(lengths - max_length, 0).sum()
    num_steps = int(np.clip(NUM_PASSES * num_tokens // STEP_TOKENS, MIN_STEPS, MAX_STEPS))

    recipe = {
        "num_layers": 2,
        "num_heads": 2,
        **(SMALL if num_items < MANY_ITEMS else LARGE),
        "embedding_dropout": 0.3,
        "item_vectors": "behaviour" if _has_pairs(dataset) else "random",
        "bear_weight": 0.0,  # plain cross-entropy
        "softmax": "legal",
        "targets": "all",
        "max_length": max_length,
        "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": batch_size,
        "max_steps": num_steps,
        "warmup_steps": min(200, num_steps // 20),
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.1,
        "seed": seed,
        "eval_ks": [10],
        "eval_exclude_history": exclude_history,
        "max_users": MAX_USERS,
        "per_device_eval_batch_size": int(np.clip(MOST_LOGITS // num_items, 8, 256)),
        "metric_for_best_model": "eval_ndcg@10",
        "load_best_model_at_end": True,
        "save_total_limit": 1,
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    for what in ("eval", "save", "logging"):
        recipe |= {f"{what}_strategy": "steps", f"{what}_steps": 0.05}
    return recipe if num_items <= MOST_SCORED else {**recipe, "sampled_items": NUM_SAMPLED}


def _has_pairs(dataset: RecDataset) -> bool:
    """Returns whether two different items follow each other in a training row. Co-occurrence needs such pairs."""
    rows = join(split_rows(dataset.train, "history"), split_rows(dataset.train, "targets"))
    differs = rows.values[1:] != rows.values[:-1]
    same_row = rows.row_ids[1:] == rows.row_ids[:-1]
    return bool((differs & same_row).any())


def _power_of_two(value: float, rounded: np.ufunc | Any) -> int:
    """Returns a power of two near `value`. Its exponent is the base-2 logarithm of `value`, rounded by `rounded`."""
    return int(2 ** rounded(np.log2(value)))
