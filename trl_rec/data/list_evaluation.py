"""Rows that measure the loss of a policy of lists on a validation or test split; nothing may be trained on them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.list_rows import complete_list_prompts, list_targets
from trl_rec.data.prompts import PromptFormat


def evaluation_list_rows(split: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None) -> Dataset:
    """One row a user: the list of the first new items that the user goes on to choose, at most
    `prompt_format.list_length`.

    Args:
        split: A split of a `RecDataset`. Users who only come back to known items have no row.
        prompt_format: How histories and lists are written, made with a `list_length`.
        max_length (*optional*): As in [`build_list_rows`], and so are the columns of the rows.
    """
    items = list_targets(split, prompt_format.list_length or 1)
    rows = np.flatnonzero(items.lengths > 0)
    if not len(rows):
        raise ValueError(
            f"no user of the {split.split} split goes on to choose a new item; there is no list to measure"
        )
    histories, users = split_rows(split, "history").take(rows), split_users(split)[rows]
    columns = {
        "prompt_ids": prompt_format.encode(histories, users, max_length=max_length).to_arrow(),
        "user": pa.array(users),
        "history": histories.to_arrow(),
    }
    return complete_list_prompts(Dataset(pa.table(columns), split=split.split), items.take(rows), prompt_format)
