"""Defines the tasks on which Align3GR fine-tunes a model, and the prompt templates of all tasks except `next_item`.

Each of these other tasks has several templates. In every epoch, one of them is drawn for each training row.

A template is a text with slots (placeholders) in braces. The segments between the slots are tokenised once, and a
prompt is the concatenation of segments and slots as token ids. Deviation: the templates are our own; the paper
Align3GR uses LC-Rec's templates, 5 to 19 per task.

The task `next_item` has no templates, because it is trained with the prompt that decoding uses. With several wordings,
fewer training rows would have that prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.data.prompt_texts import with_chat_template
from trl_rec.data.prompts import beginning_ids, token_ids


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEXT_ITEM = "next_item"
SLOT = r"{(\w+)}"  # because of the group, `re.split` returns the names of the slots between the segments


@dataclass(frozen=True)
class Task:
    """A task: its slots, the kind of its answer, and its templates.

    Args:
        slots (`tuple[str, ...]`): Names of the slots, in the order of the column `slots` of task rows.
        answer (`str`): Kind of the answer: `"item"`, `"user"` (the semantic ID of a user) or `"text"`.
        templates (`tuple[str, ...]`): The texts. A template contains some of the slots, each at most once.
    """

    slots: tuple[str, ...]
    answer: str
    templates: tuple[str, ...]


# The position of a task in this dict is part of the seed with which its training rows are sampled, so add new tasks
# at the end.
TASKS = {
    NEXT_ITEM: Task((), "item", ()),
    "item_to_id": Task(
        ("title", "text"),
        "item",
        (
            "An item is described as follows.\n{text}\nWhich item is it?\n",
            "Find the item called {title}.\nItem: ",
            "Title: {title}\nIts place in the catalogue: ",
            "Write the item that these words belong to: {text}\n",
        ),
    ),
    "id_to_item": Task(
        ("item",),
        "text",
        (
            "What is the item {item} called?\n",
            "Item: {item}\nTitle: ",
            "Write out the title of {item}.\n",
        ),
    ),
    "history_to_title": Task(
        ("user", "history"),
        "text",
        (
            "User {user} has chosen {history}\nThe title of what comes next: ",
            "Items chosen so far, oldest first: {history}\nName the title that user {user} chooses now.\n",
            "After {history} user {user} goes on to an item. What is it called?\n",
            "User: {user}\nHistory: {history}\nNext title: ",
        ),
    ),
    "titles_to_id": Task(
        ("user", "titles"),
        "item",
        (
            "User {user} has chosen these titles:\n{titles}The next item: ",
            "Titles, oldest first:\n{titles}Which item does user {user} choose after them?\n",
            "User: {user}\nTitles so far:\n{titles}Next item: ",
            "Here is what user {user} picked.\n{titles}Continue with one item.\n",
        ),
    ),
    "profile_to_user": Task(
        ("profile",),
        "user",
        (
            "A user is described like this: {profile}\nWho is it?\n",
            "Profile: {profile}\nUser: ",
            "Name the user whom these words fit: {profile}\n",
        ),
    ),
    "user_to_profile": Task(
        ("user",),
        "text",
        (
            "Describe user {user}.\n",
            "User: {user}\nProfile: ",
            "What is known of user {user}?\n",
        ),
    ),
    "query_to_item": Task(
        ("user", "history", "preference", "query"),
        "item",
        (
            "User {user} has chosen {history}\nNow they search for: {query}\nItem: ",
            "Search: {query}\nUser {user} had {history}\nThe best match: ",
            "User {user} mostly likes {preference}\nHistory: {history}\nSearch: {query}\nItem: ",
            "User {user} asks for something with {query}\nWhich item do they take after {history}?\n",
        ),
    ),
    "history_to_preference": Task(
        ("user", "history"),
        "text",
        (
            "User {user} has chosen {history}\nWhat do they like?\n",
            "History of user {user}: {history}\nPreference: ",
            "Sum up the taste of user {user} after {history}\n",
        ),
    ),
}
TASK_NAMES = tuple(TASKS)


@dataclass(frozen=True, eq=False)
class TemplateIds:
    """One template as token ids: `segments[0]`, the slot `Task.slots[places[0]]`, `segments[1]`, and so on."""

    segments: list[np.ndarray]
    places: list[int]

    def fill(self, slots: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns the prompt, given the token ids of each slot of the task."""
        parts = [self.segments[0]]
        for place, segment in zip(self.places, self.segments[1:], strict=True):
            parts += [np.asarray(slots[place], np.int64), segment]
        return np.concatenate(parts)


def template_ids(
    tokenizer: PreTrainedTokenizerBase, surface: str, *, chat_template: bool = False
) -> dict[str, list[TemplateIds]]:
    """Returns the tokenised templates of each task.

    Args:
        tokenizer: Tokenises the segments.
        surface: Surface of the catalogue. Whether prompts begin with a special token depends on it; see
            `beginning_ids`.
        chat_template (*optional*, defaults to `False`): Whether to apply the tokenizer's chat template to the
            prompts.
    """
    before, after = with_chat_template(tokenizer, "", "") if chat_template else ("", "")
    start = [] if chat_template else beginning_ids(tokenizer, surface)
    templates = {}
    for name, task in TASKS.items():
        texts = [f"{before}{text}{after}" for text in task.templates]
        templates[name] = [_make_template(tokenizer, start, text, task.slots) for text in texts]
    return templates


def longest_template(templates: Sequence[TemplateIds]) -> int:
    """Returns the number of tokens of the longest template, not counting the contents of its slots."""
    return max(sum(map(len, template.segments)) for template in templates)


def template_texts() -> list[str]:
    """Returns the texts of all templates, without the slots. A tokenizer's vocabulary can be built from them."""
    return [re.sub(SLOT, " ", text) for task in TASKS.values() for text in task.templates]


def _make_template(
    tokenizer: PreTrainedTokenizerBase, start: list[int], text: str, slots: tuple[str, ...]
) -> TemplateIds:
    """Tokenises the segments of a template."""
    pieces = re.split(SLOT, text)  # alternating segments and names of slots
    segments = [np.array(token_ids(tokenizer, piece), np.int64) for piece in pieces[::2]]
    # Put `start` (BOS, EOS or nothing) at the beginning of the first segment.
    segments[0] = np.concatenate([np.array(start, np.int64), segments[0]])
    return TemplateIds(segments, [slots.index(name) for name in pieces[1::2]])
