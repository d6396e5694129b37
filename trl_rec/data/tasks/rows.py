"""Rows of several tasks: the next item, and what ties items and users to words (Align3GR's behaviour level).

A row keeps what fills the slots of its task's prompt, and its answer, both as token ids; which template they go into
is drawn for every epoch, when the batch is made. All of it comes from the catalogue, the users' columns and the
training split: what a row says of a user's taste was chosen before the row's target. Profiles and users' IDs alone
tell of the whole training sequence.

`item_to_id` and `id_to_item` have a row an item, `profile_to_user` and `user_to_profile` a row a user with a profile,
the others one a training target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset

from trl_rec.data.dataset import RecDataset
from trl_rec.data.profiles import item_labels, item_texts, user_profiles
from trl_rec.data.prompts import PromptFormat, newest_that_fit
from trl_rec.data.rows import build_rows
from trl_rec.data.tasks.material import Material, Words, drawn, make_material
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

WRITTEN_AS_TITLES = (
    "item_to_id",
    "id_to_item",
    "history_to_title",
    "titles_to_id",
)  # they would ask a title for itself
HISTORIES = ("history", "titles")
NAMED = ("user", "item")  # slots that are never cut
# Why a task may have no rows, for the error message.
NO_PROFILES = "users have no columns, and chose nothing with groups or a title"
NO_WORDS = "items have no groups, and no words in their titles"
WANTS = {
    "profile_to_user": NO_PROFILES,
    "user_to_profile": NO_PROFILES,
    "query_to_item": NO_WORDS,
    "history_to_preference": NO_WORDS,
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
    """Training rows of the tasks named, mixed.

    Args:
        dataset: Its catalogue, users and training split are read; nothing of validation and test.
        tokenizer: Knows the catalogue's tokens.
        prompt_format: How the next item is asked for, which is one of the tasks. Where it names users, so do the
            prompts of the others; else their place stays empty.
        tasks: For each task its number of rows, beside those that [`build_rows`] makes for the next item. A task with
            too few of its own has them more than once, one with too many a sample. Drawn targets before which nothing
            was chosen that has a group (or, in a catalogue without groups, a word in its title) are left out of
            `history_to_preference` and `query_to_item`; a task without any row is refused.
        cap (*optional*): Most rows of any task but the next item.
        targets, max_length, max_history: As in [`build_rows`], for the next item. No row of another task is longer
            than `max_length` either: the oldest history goes first, then the end of a text in the prompt.
        longest_history (*optional*, defaults to `20`): Most items that the other tasks tell of.
        chat_template (*optional*, defaults to `False`): Whether prompts are a user's turn in the tokenizer's chat
            template.
        seed (*optional*, defaults to `0`): Chooses the samples.

    Returns:
        `datasets.Dataset` with `task`; `slots`, a list of lists of token ids; `input_ids` and `labels`, of the answer,
        or for the next item of the whole row; `user`, -1 in rows about an item; `length`, the most tokens it comes to,
        for samplers that go by it; and `row`, by which templates are drawn.
    """
    _check_senseless(tasks, dataset.catalog.surface)
    lengths = {"max_length": max_length, "max_history": max_history}
    next_item = build_rows(dataset.train, prompt_format, targets=targets, **lengths)
    templates = template_ids(tokenizer, dataset.catalog.surface, chat_template=chat_template)
    words = Words(dataset, tokenizer, prompt_format, longest_history)
    parts = []
    for name, weight in tasks.items():
        count = max(1, round(weight * len(next_item)))
        count = count if cap is None or name == NEXT_ITEM else min(count, cap)
        key = [seed, TASK_NAMES.index(name)]
        if name == NEXT_ITEM:
            rows = next_item.select(drawn(len(next_item), count, key)).with_format("arrow")[:]
            tokens, labels = (Ragged.from_arrow(rows[part]) for part in ("input_ids", "labels"))
            parts.append(_table(name, [], tokens, labels, rows["user"], tokens.lengths))
        else:
            parts.append(_rows(name, count, key, words, templates[name], max_length))
            if not parts[-1].num_rows:
                raise ValueError(
                    f"the task {name} has no row: {WANTS.get(name, 'the data have nothing for it')}; leave it out"
                )
    whole = pa.concat_tables(parts)
    return Dataset(whole.append_column("row", pa.array(np.arange(whole.num_rows))), split="train")


def task_texts(dataset: RecDataset) -> list[str]:
    """All that the tasks say in words: what a tokenizer from scratch has to know."""
    names = item_labels(dataset.catalog)[0]
    return [*template_texts(), *item_texts(dataset.catalog), *user_profiles(dataset), *names, '"']


def _rows(
    name: str, count: int, key: list[int], words: Words, templates: list[TemplateIds], max_length: int | None
) -> pa.Table:
    made, fixed = make_material(name, count, key, words), longest_template(templates)
    slots, room = made.slots, None
    if max_length is not None:
        slots, room = _fitted(name, made, fixed, max_length)
    if made.before is not None:
        slots = {**slots, **_history(name, made.before, words, room)}
    filled = [slots[slot] for slot in TASKS[name].slots]
    lengths = fixed + sum((slot.lengths for slot in filled), made.answers.lengths)
    return _table(name, filled, made.answers, made.answers, made.users, lengths)


def _fitted(name: str, made: Material, fixed: int, max_length: int) -> tuple[dict[str, Ragged], int]:
    """The slots, their texts without the ends that would be too long in the longest template, and the tokens left for
    a history. Beside a history a template may hold all of the texts, else one of them."""
    never_cut = [made.answers, *(made.slots[slot] for slot in NAMED if slot in made.slots)]
    room = max_length - fixed - sum(map(_longest, never_cut))
    if room < 0:
        raise ValueError(
            f"max_length {max_length} is too small for the task {name}, which takes up to {-room} tokens more"
        )
    texts = {slot: ids for slot, ids in made.slots.items() if slot not in NAMED}
    share = room if made.before is None else room // (1 + len(texts))
    cut = {slot: ids.slice(0 * ids.lengths, np.minimum(ids.lengths, share)) for slot, ids in texts.items()}
    return {**made.slots, **cut}, room - sum(map(_longest, cut.values()))


def _longest(rows: Ragged) -> int:
    return int(rows.lengths.max(initial=0))


def _history(name: str, before: Ragged, words: Words, room: int | None) -> dict[str, Ragged]:
    """The task's history, without the oldest items where it would be too long."""
    slot = next(slot for slot in TASKS[name].slots if slot in HISTORIES)
    pieces = words.prompt_format.pieces if slot == "history" else words.listed_titles
    if room is not None:
        if room < int(pieces.lengths.max()):
            raise ValueError(
                f"the task {name} has room for {room} tokens of a history, too few for one item; raise max_length"
            )
        before = newest_that_fit(before, pieces.lengths, room)
    return {slot: before.flatten(pieces)}


def _table(
    name: str, slots: list[Ragged], tokens: Ragged, labels: Ragged, users: np.ndarray, lengths: np.ndarray
) -> pa.Table:
    """Rows as a table, `slots` in the task's order."""
    count, width = len(tokens), len(slots)
    values = join(*slots).values if slots else np.empty(0, np.int64)
    sizes = np.stack([slot.lengths for slot in slots], 1).ravel() if slots else np.empty(0, np.int64)
    inner = Ragged.from_lengths(values.astype(np.int64), sizes).to_arrow()
    columns = {
        "task": pa.array([name] * count, pa.string()),
        "slots": pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * width, pa.int32()), inner),
        "input_ids": Ragged(tokens.values.astype(np.int64), tokens.offsets).to_arrow(),
        "labels": Ragged(labels.values.astype(np.int64), labels.offsets).to_arrow(),
        "user": pa.array(np.asarray(users), pa.int64()),
        "length": pa.array(lengths, pa.int64()),
    }
    return pa.table(columns)


def _check_senseless(tasks: Mapping[str, float], surface: str) -> None:
    unknown = sorted(set(tasks) - set(TASK_NAMES))
    if unknown:
        raise ValueError(f"there is no task {unknown[0]!r}; the tasks are {', '.join(TASK_NAMES)}")
    pointless = [name for name in WRITTEN_AS_TITLES if name in tasks and surface == "title"]
    if pointless:
        raise ValueError(f"the task {pointless[0]} needs items that are not written as titles; choose another surface")
