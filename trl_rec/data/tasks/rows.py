"""Builds training rows of several tasks: predicting the next item, and tasks that relate items and users to text.

The method Align3GR trains a model on these tasks before its preference stages. Its paper calls this training the
behaviour level. The rows of the task `next_item` are made by `build_rows`. A row of any other task contains the token
ids of the answer and of the texts that fill the slots (placeholders such as `{title}`) of the prompt. The prompt
template of a row is drawn when a batch is made, and drawn anew in every epoch.

Rows are made from the catalogue, the table of users and the training split. Some tasks use a text about the user's
preferences, such as `Comedy, Drama`. This text describes only the items before the row's target. The profiles (texts
about users) and semantic IDs of users, in contrast, depend on the user's whole training sequence.

The number of distinct rows depends on the task:

- `item_to_id` and `id_to_item`: one per item.
- `profile_to_user` and `user_to_profile`: one per user with a profile.
- `next_item`: as many as `build_rows` makes.
- All other tasks: one per training target.

Distinct rows are repeated or sampled to obtain the requested number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.branches.structure import COLUMNS
from trl_rec.data.dataset import RecDataset
from trl_rec.data.profiles import item_labels, item_texts, user_profiles
from trl_rec.data.prompts import PromptFormat, newest_that_fit
from trl_rec.data.rows import build_rows
from trl_rec.data.tasks.material import Material, TokenTables, make_material, sample_evenly
from trl_rec.data.tasks.templates import (
    NEXT_ITEM,
    TASK_NAMES,
    TASKS,
    TemplateIds,
    longest_template,
    template_ids,
    template_texts,
)
from trl_rec.ragged import Ragged, join


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tasks that are refused if the surface is the title. With that surface, the answers of the first two could be copied
# from the prompt, and the other two would be the same as `next_item`.
TITLE_TASKS = ("item_to_id", "id_to_item", "history_to_title", "titles_to_id")
HISTORY_SLOTS = ("history", "titles")
UNCUT_SLOTS = ("user", "item")
# Why a task has no rows, for error messages.
NO_PREFERENCES = "the items have no groups (or, without a group column, no title words of at least four letters)"
NO_PROFILES = f"no column describes the users, and {NO_PREFERENCES}"
MISSING = {
    "profile_to_user": NO_PROFILES,
    "user_to_profile": NO_PROFILES,
    "query_to_item": NO_PREFERENCES,
    "history_to_preference": NO_PREFERENCES,
}


def build_task_rows(
    dataset: RecDataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt_format: PromptFormat,
    tasks: Mapping[str, float],
    *,
    cap: int | None = None,
    targets: str = "last",
    max_length: int | None = None,
    max_history: int | None = None,
    longest_history: int = 20,
    chat_template: bool = False,
    seed: int = 0,
    **next_item_options: Any,
) -> Dataset:
    """Returns the training rows of several tasks.

    Args:
        dataset: The dataset. Its validation and test splits are not used.
        tokenizer: The tokenizer, with the catalogue's tokens added.
        prompt_format: Prompt format of the task `next_item`. In `user_to_profile`, the slot `user` always contains the
            user's semantic ID. In all other tasks with this slot, it is empty unless `prompt_format` names users.
        tasks: Maps the name of each task to its number of rows, relative to the number of rows that [`build_rows`]
            makes. If a task has fewer distinct rows than requested, they are repeated; if it has more, a sample of
            them is taken. Rows of `history_to_preference` and `query_to_item` are dropped if no item of their history
            has a group, such as a genre (or, in a catalogue without groups, a word of at least four letters in its
            title). Rows of `query_to_item` are also dropped if the target has no group (or no such word). A task
            without any row raises a ValueError.
        cap (*optional*): Maximum number of rows per task. It does not apply to `next_item`.
        targets, max_length, max_history (*optional*): Same as in [`build_rows`], for `next_item`. `max_length` applies
            to the other tasks too: texts in their prompts are truncated, and the oldest items of the history are
            dropped.
        longest_history (*optional*, defaults to `20`): Maximum number of items in a history of the other tasks.
        chat_template (*optional*, defaults to `False`): Whether the prompts of the other tasks are formatted as a user
            message with the tokenizer's chat template. For `next_item`, `prompt_format` determines this.
        seed (*optional*, defaults to `0`): Seed of the samples.
        next_item_options (*optional*): Further arguments of [`build_rows`], for `next_item`.

    Returns:
        `datasets.Dataset` with these columns:

        - `task`: the task's name.
        - `slots`: the token ids of each slot, a list of lists. Empty for `next_item`.
        - `input_ids`, `labels`: token ids and labels of the answer; for `next_item`, of the whole row.
        - `user`: the user, or -1 in rows about an item.
        - `length`: upper limit for the number of tokens of the row, for samplers that group by length. Except for
          `next_item`, it counts the answer, the task's longest template and the texts of all slots of the task. The
          template that is drawn for a batch may be shorter, or have fewer slots.
        - `row`: the row's number, which seeds the choice of templates.
        - `branch_prefixes`, `branch_lengths`: as in [`build_rows`], if the rows of `next_item` have these columns.
          Rows of other tasks have no branches.
    """
    _check_tasks(tasks, dataset.catalog.surface)
    next_item = build_rows(
        dataset.train,
        prompt_format,
        targets=targets,
        max_length=max_length,
        max_history=max_history,
        **next_item_options,
    )
    templates = template_ids(tokenizer, dataset.catalog.surface, chat_template=chat_template)
    tables = TokenTables(dataset, tokenizer, prompt_format, longest_history)

    parts = []
    for name, weight in tasks.items():
        count = max(1, round(weight * len(next_item)))
        key = [seed, TASK_NAMES.index(name)]  # so that the sample of a task does not depend on the other tasks
        if name == NEXT_ITEM:
            part = _sample_next_item(next_item, count, key)
        else:
            count = count if cap is None else min(count, cap)
            part = _task_table(name, count, key, tables, templates[name], max_length)
        if not part.num_rows:
            raise ValueError(
                f"the task {name} has no rows, because {MISSING.get(name, 'the data contain nothing for it')}; leave "
                "the task out"
            )
        if set(COLUMNS) <= set(next_item.column_names):
            part = _with_branch_columns(part)
        parts.append(part)

    table = pa.concat_tables(parts)
    return Dataset(table.append_column("row", pa.array(np.arange(table.num_rows))), split="train")


def task_texts(dataset: RecDataset) -> list[str]:
    """Returns all texts that the tasks may contain, for the vocabulary of a tokenizer made from scratch."""
    names = item_labels(dataset.catalog)[0]
    return [*template_texts(), *item_texts(dataset.catalog), *user_profiles(dataset), *names, '"']


def _check_tasks(tasks: Mapping[str, float], surface: str) -> None:
    """Raises ValueError if a task does not exist, or is refused for the surface."""
    unknown = sorted(set(tasks) - set(TASK_NAMES))
    if unknown:
        raise ValueError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASK_NAMES)}")
    refused = [name for name in TITLE_TASKS if name in tasks and surface == "title"]
    if refused:
        raise ValueError(
            f"the task {refused[0]} does not work with the surface 'title'; choose another surface, or leave "
            "the task out"
        )


def _sample_next_item(next_item: Dataset, count: int, key: list[int]) -> pa.Table:
    """Returns a sample of the rows of `next_item`."""
    rows = next_item.select(sample_evenly(len(next_item), count, key)).with_format("arrow")[:]
    tokens = Ragged.from_arrow(rows["input_ids"])
    labels = Ragged.from_arrow(rows["labels"])
    table = _to_table(NEXT_ITEM, [], tokens, labels, rows["user"], tokens.lengths)
    for name in COLUMNS:
        if name in rows.column_names:
            table = table.append_column(name, Ragged.from_arrow(rows[name]).to_arrow())
    return table


def _with_branch_columns(rows: pa.Table) -> pa.Table:
    """Adds the missing columns of branches to a table, with an empty list in each row."""
    for name in COLUMNS:
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.array([[]] * rows.num_rows, pa.list_(pa.int64())))
    return rows


def _task_table(
    name: str, count: int, key: list[int], tables: TokenTables, templates: list[TemplateIds], max_length: int | None
) -> pa.Table:
    """Returns the rows of one task, cut to `max_length`."""
    material = make_material(name, count, key, tables)
    template_length = longest_template(templates)
    slots = material.slots
    room = None
    if max_length is not None:
        slots, room = _cut_texts(name, material, template_length, max_length)
    if material.histories is not None:
        slots = {**slots, **_history_slot(name, material.histories, tables, room)}

    filled = [slots[slot] for slot in TASKS[name].slots]
    lengths = template_length + material.answers.lengths
    for slot in filled:
        lengths = lengths + slot.lengths
    return _to_table(name, filled, material.answers, material.answers, material.users, lengths)


def _cut_texts(name: str, material: Material, template_length: int, max_length: int) -> tuple[dict[str, Ragged], int]:
    """Truncates texts so that even a row with the longest template fits into `max_length`.

    Returns the slots, and the number of tokens left for a history.
    """
    # 1. Subtract from `max_length` the template, and the slots and answers that are never truncated.
    uncut = [material.answers, *(material.slots[slot] for slot in UNCUT_SLOTS if slot in material.slots)]
    room = max_length - template_length - sum(_longest(part) for part in uncut)
    if room < 0:
        raise ValueError(
            f"max_length {max_length} is {-room} tokens too small for the task {name}; raise max_length, or leave "
            "the task out"
        )

    # 2. Divide the remaining tokens. A template without a history contains only one text, which may use all of them. A
    # template with a history may contain several texts, so each text may use an equal share, and the history the rest.
    texts = {slot: ids for slot, ids in material.slots.items() if slot not in UNCUT_SLOTS}
    share = room if material.histories is None else room // (1 + len(texts))
    cut = {slot: ids.head(share) for slot, ids in texts.items()}
    return {**material.slots, **cut}, room - sum(_longest(part) for part in cut.values())


def _longest(rows: Ragged) -> int:
    """Returns the length of the longest row."""
    return int(rows.lengths.max(initial=0))


def _history_slot(name: str, histories: Ragged, tables: TokenTables, room: int | None) -> dict[str, Ragged]:
    """Fills the slot of the history. The oldest items of a history that does not fit are dropped."""
    slot = next(slot for slot in TASKS[name].slots if slot in HISTORY_SLOTS)
    prompt_format = tables.prompt_format
    pieces = prompt_format.pieces if slot == "history" else tables.listed_titles
    separator = len(prompt_format.separator) if slot == "history" else 0
    if room is not None:
        if room < int(pieces.lengths.max()):
            raise ValueError(
                f"max_length leaves {room} tokens for the history in the task {name}, too few for one item; raise "
                "max_length"
            )
        # Count a separator with every item. The first item has none, so the room grows by one separator.
        histories = newest_that_fit(histories, pieces.lengths + separator, room + separator)
    return {slot: prompt_format.encode_histories(histories) if slot == "history" else histories.flatten(pieces)}


def _to_table(
    name: str, slots: list[Ragged], tokens: Ragged, labels: Ragged, users: Any, lengths: np.ndarray
) -> pa.Table:
    """Returns the rows as an Arrow table. `slots` are in the order of `Task.slots`."""
    count = len(tokens)
    num_slots = len(slots)
    # Build the list of lists from its flat form: the joined slots of all rows, and the length of each slot.
    values = join(*slots).values if slots else np.empty(0, np.int64)
    sizes = np.stack([slot.lengths for slot in slots], 1).ravel() if slots else np.empty(0, np.int64)
    inner = Ragged.from_lengths(values.astype(np.int64), sizes).to_arrow()
    outer = pa.array(np.arange(count + 1) * num_slots, pa.int32())
    columns = {
        "task": pa.array([name] * count, pa.string()),
        "slots": pa.ListArray.from_arrays(outer, inner),
        "input_ids": Ragged(tokens.values.astype(np.int64), tokens.offsets).to_arrow(),
        "labels": Ragged(labels.values.astype(np.int64), labels.offsets).to_arrow(),
        "user": pa.array(np.asarray(users), pa.int64()),
        "length": pa.array(lengths, pa.int64()),
    }
    return pa.table(columns)
