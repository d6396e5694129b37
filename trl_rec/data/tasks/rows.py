"""Rows of several tasks: the next item, and tasks that connect items and users with words.

These are the tasks of Align3GR's behaviour level. A row contains token ids: those that fill the slots of the task's
prompt, and those of the answer. The template is chosen anew in every epoch, when the batch is made.

Rows use the catalogue, the users' columns and the training split. A row describes a user's taste by items chosen
before the row's target. Only profiles and the users' semantic IDs depend on the whole training sequence.

`item_to_id` and `id_to_item` have one row per item, `profile_to_user` and `user_to_profile` one per user with a
profile, and the other tasks one per training target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

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

# With titles as surface, these would ask for a title that the prompt contains.
TITLE_TASKS = ("item_to_id", "id_to_item", "history_to_title", "titles_to_id")
HISTORY_SLOTS = ("history", "titles")
UNCUT_SLOTS = ("user", "item")
# The reason why a task has no row, for messages.
NO_PROFILES = "users have no columns, and chose nothing with groups or a title"
NO_PREFERENCES = "items have no groups, and no words in their titles"
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
) -> Dataset:
    """Training rows of several tasks, mixed.

    Args:
        dataset: The dataset; nothing of its validation and test splits is used.
        tokenizer: The tokenizer, with the catalogue's tokens added.
        prompt_format: How the task `next_item` is prompted. The other tasks' prompts name users if this one does;
            otherwise the place for the user stays empty.
        tasks: Per task the number of its rows, as a multiple of the rows that [`build_rows`] makes for the next item.
            If a task has fewer rows of its own, they are repeated; if it has more, they are sampled. Sampled targets
            are left out of `history_to_preference` and `query_to_item` if no item before them has a group (or, in a
            catalogue without groups, a word in its title). A task without any row is an error.
        cap (*optional*): Largest number of rows per task. The next item has no such limit.
        targets, max_length, max_history: As in [`build_rows`], for the next item. Rows of the other tasks fit
            `max_length` as well: the oldest items of the history are left out, then texts in the prompt are cut.
        longest_history (*optional*, defaults to `20`): Largest number of items in a history of the other tasks.
        chat_template (*optional*, defaults to `False`): Whether prompts are a user's turn in the tokenizer's chat
            template.
        seed (*optional*, defaults to `0`): Seed of the samples.

    Returns:
        `datasets.Dataset` with these columns:

        - `task`: the task's name.
        - `slots`: a list of lists of token ids.
        - `input_ids`, `labels`: those of the answer; for the next item, those of the whole row.
        - `user`: -1 in rows about an item.
        - `length`: number of tokens of the row in its longest template, for samplers that group by length.
        - `row`: the row's number, which seeds the choice of templates.
    """
    _check_tasks(tasks, dataset.catalog.surface)
    next_item = build_rows(
        dataset.train, prompt_format, targets=targets, max_length=max_length, max_history=max_history
    )
    templates = template_ids(tokenizer, dataset.catalog.surface, chat_template=chat_template)
    tables = TokenTables(dataset, tokenizer, prompt_format, longest_history)

    parts = []
    for name, weight in tasks.items():
        count = max(1, round(weight * len(next_item)))
        key = [seed, TASK_NAMES.index(name)]  # a task's sample does not depend on the other tasks
        if name == NEXT_ITEM:
            part = _sample_next_item(next_item, count, key)
        else:
            count = count if cap is None else min(count, cap)
            part = _task_table(name, count, key, tables, templates[name], max_length)
        if not part.num_rows:
            raise ValueError(
                f"the task {name} has no row: {MISSING.get(name, 'the data have nothing for it')}; leave it out"
            )
        parts.append(part)

    table = pa.concat_tables(parts)
    return Dataset(table.append_column("row", pa.array(np.arange(table.num_rows))), split="train")


def task_texts(dataset: RecDataset) -> list[str]:
    """All texts that the tasks may contain, for the vocabulary of a tokenizer made from scratch."""
    names = item_labels(dataset.catalog)[0]
    return [*template_texts(), *item_texts(dataset.catalog), *user_profiles(dataset), *names, '"']


def _check_tasks(tasks: Mapping[str, float], surface: str) -> None:
    """Raises for a task that does not exist, or that has no use with the surface."""
    unknown = sorted(set(tasks) - set(TASK_NAMES))
    if unknown:
        raise ValueError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASK_NAMES)}")
    pointless = [name for name in TITLE_TASKS if name in tasks and surface == "title"]
    if pointless:
        raise ValueError(f"the task {pointless[0]} needs items that are not written as titles; choose another surface")


def _sample_next_item(next_item: Dataset, count: int, key: list[int]) -> pa.Table:
    """A sample of the rows for the next item."""
    rows = next_item.select(sample_evenly(len(next_item), count, key)).with_format("arrow")[:]
    tokens = Ragged.from_arrow(rows["input_ids"])
    labels = Ragged.from_arrow(rows["labels"])
    return _to_table(NEXT_ITEM, [], tokens, labels, rows["user"], tokens.lengths)


def _task_table(
    name: str, count: int, key: list[int], tables: TokenTables, templates: list[TemplateIds], max_length: int | None
) -> pa.Table:
    """The rows of one task, cut to `max_length`."""
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
    """Cuts texts so that a row fits the longest template. Returns the slots, and the tokens left for a history."""
    # 1. Subtract what is never cut.
    uncut = [material.answers, *(material.slots[slot] for slot in UNCUT_SLOTS if slot in material.slots)]
    room = max_length - template_length - sum(_longest(part) for part in uncut)
    if room < 0:
        raise ValueError(
            f"max_length {max_length} is too small for the task {name}, which takes up to {-room} tokens more"
        )

    # 2. Share the rest. Templates with a history may contain all texts; other templates contain one text each.
    texts = {slot: ids for slot, ids in material.slots.items() if slot not in UNCUT_SLOTS}
    share = room if material.histories is None else room // (1 + len(texts))
    cut = {slot: ids.head(share) for slot, ids in texts.items()}
    return {**material.slots, **cut}, room - sum(_longest(part) for part in cut.values())


def _longest(rows: Ragged) -> int:
    """The length of the longest row."""
    return int(rows.lengths.max(initial=0))


def _history_slot(name: str, histories: Ragged, tables: TokenTables, room: int | None) -> dict[str, Ragged]:
    """Fills the slot for the history. The oldest items are left out if they do not fit."""
    slot = next(slot for slot in TASKS[name].slots if slot in HISTORY_SLOTS)
    pieces = tables.prompt_format.pieces if slot == "history" else tables.listed_titles
    if room is not None:
        if room < int(pieces.lengths.max()):
            raise ValueError(
                f"the task {name} has room for {room} tokens of a history, too few for one item; raise max_length"
            )
        histories = newest_that_fit(histories, pieces.lengths, room)
    return {slot: histories.flatten(pieces)}


def _to_table(
    name: str, slots: list[Ragged], tokens: Ragged, labels: Ragged, users: Any, lengths: np.ndarray
) -> pa.Table:
    """Rows as an Arrow table; `slots` are in the task's order."""
    count = len(tokens)
    num_slots = len(slots)
    # A row's slots, joined, and their lengths, row by row: the flat form of a list of lists.
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
