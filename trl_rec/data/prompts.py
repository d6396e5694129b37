"""How a history becomes a prompt: a head, a piece for each item, a tail, all as token ids.

Each piece is tokenised once for the whole catalogue and rows are put together from ids, so neither a prompt nor its
boundary to the completion depends on how a tokenizer merges across pieces, and a too long history loses its oldest
items without tokenising again. Item tokens and semantic IDs are written compactly, nothing but the items; titles stand
in a plain instruction, one a line. A head with `{user}` in it names the user by semantic ID.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged, join


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The default prompts. They stand here alone; configs, recipes and run folders hold None where they use them.
TITLE_PROMPT = {
    "prompt_head": "A user has chosen these items, oldest first:\n",
    "prompt_item": "{surface}\n",
    "prompt_tail": "The item that the user chooses next:\n",
}
COMPACT_PROMPT = {"prompt_head": "", "prompt_item": "{surface}", "prompt_tail": ""}  # item tokens and semantic IDs
TITLE_LIST_TAIL = "The items that the user chooses next, one a line:\n"


@dataclass(frozen=True, eq=False)
class PromptFormat:
    """Token ids of the parts of a prompt. Make it with `for_catalog`.

    Args:
        prompt_head (`np.ndarray`): What comes first.
        pieces (`Ragged`): Row `i`: item `i` as it stands in a history.
        prompt_tail (`np.ndarray`): What comes between the history and the completion.
        paths (`Ragged`): Row `i`: the completion that recommends item `i`, or what a list of items holds for it.
        list_length (`int`, *optional*): Items of a completion, where it is a list.
        end (`np.ndarray`, *optional*): What ends a list: EOS.
        users (`Ragged`, *optional*): Row `u`: what follows the head in a prompt for user `u`, where prompts name
            users.
    """

    prompt_head: np.ndarray
    pieces: Ragged
    prompt_tail: np.ndarray
    paths: Ragged
    list_length: int | None = None
    end: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    users: Ragged | None = None

    @classmethod
    def for_catalog(
        cls,
        catalog: ItemCatalog,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_head: str | None = None,
        prompt_item: str | None = None,
        prompt_tail: str | None = None,
        chat_template: bool = False,
        list_length: int | None = None,
    ) -> PromptFormat:
        """The format for a catalogue's surface.

        Args:
            catalog: The items, whose `surface` decides the defaults.
            tokenizer: Its BOS (or, where it has none and the prompt would be empty, EOS) begins the prompt.
            prompt_head (*optional*): Text before the history. It may hold `{user}` once, which becomes the user's
                semantic ID.
            prompt_item (*optional*): Text of an item in the history, with `{surface}` in it.
            prompt_tail (*optional*): Text between the history and the completion.
            chat_template (*optional*, defaults to `False`): Whether the prompt is a user's turn in the tokenizer's
                chat template.
            list_length (*optional*): Makes completions lists of so many distinct items, which end in EOS.
        """
        defaults = TITLE_PROMPT if catalog.surface == "title" else COMPACT_PROMPT
        if list_length is not None:
            _check_list_length(list_length, catalog, tokenizer)
            defaults = {**defaults, "prompt_tail": TITLE_LIST_TAIL if catalog.surface == "title" else ""}
        prompt_head = defaults["prompt_head"] if prompt_head is None else prompt_head
        prompt_item = defaults["prompt_item"] if prompt_item is None else prompt_item
        prompt_tail = defaults["prompt_tail"] if prompt_tail is None else prompt_tail

        if "{surface}" not in prompt_item:
            raise ValueError(f"the prompt's item text {prompt_item!r} must hold {{surface}}")
        if prompt_head.count("{user}") > 1 or "{user}" in prompt_item + prompt_tail:
            raise ValueError("a prompt names its user once, in the head; take {user} out of the other texts")

        if chat_template:
            prompt_head, prompt_tail = in_chat(tokenizer, prompt_head, prompt_tail)
        start = [] if chat_template else beginning(tokenizer, catalog.surface)
        before, user, after = prompt_head.partition("{user}")
        return cls(
            prompt_head=np.array(start + token_ids(tokenizer, before), np.int64),
            pieces=item_pieces(catalog, tokenizer, prompt_item),
            prompt_tail=np.array(token_ids(tokenizer, prompt_tail), np.int64),
            paths=catalog.paths(tokenizer) if list_length is None else catalog.list_paths(tokenizer),
            list_length=list_length,
            end=np.array([] if list_length is None else [tokenizer.eos_token_id], np.int64),
            users=_followed(catalog.user_token_ids(tokenizer), token_ids(tokenizer, after)) if user else None,
        )

    @property
    def is_compact(self) -> bool:
        """Whether a history is written as its items' completions in a row, so that every item in it can be a
        target."""
        same_values = np.array_equal(self.pieces.values, self.paths.values)
        return not len(self.prompt_tail) and same_values and np.array_equal(self.pieces.offsets, self.paths.offsets)

    def room(self, max_length: int | None) -> int | None:
        """Tokens left for the history when prompt and longest completion have to fit `max_length`."""
        if max_length is None:
            return None
        longest = np.sort(self.paths.lengths)[-(self.list_length or 1) :].sum() + len(self.end)
        users = 0 if self.users is None else int(self.users.lengths.max())
        fixed = len(self.prompt_head) + users + len(self.prompt_tail) + int(longest)
        if fixed + int(self.pieces.lengths.max()) > max_length:
            what = "item" if self.list_length is None else "list"
            raise ValueError(
                f"max_length {max_length} is too small: the prompt without a history and the longest {what} take {fixed} "
                f"tokens, an item in a history up to {int(self.pieces.lengths.max())}; raise max_length or shorten the titles"
            )
        return max_length - fixed

    def encode(self, histories: Ragged, users: np.ndarray | None = None, *, max_length: int | None = None) -> Ragged:
        """Row `i`: the prompt for `histories[i]` (item indices, oldest first) of user `users[i]` (rows of
        `RecDataset.users`), who plays a part only where prompts name users. Prompt and longest completion fit
        `max_length`; what does not fit is the oldest part of the history."""
        room = self.room(max_length)
        if room is not None:
            histories = newest_that_fit(histories, self.pieces.lengths, room)
        tail = Ragged.repeated(self.prompt_tail, len(histories))
        return join(self.heads(len(histories), users), histories.flatten(self.pieces), tail)

    def heads(self, count: int, users: np.ndarray | None = None) -> Ragged:
        """Row `i`: what comes before the history in a prompt for user `users[i]`."""
        head = Ragged.repeated(self.prompt_head, count)
        if self.users is None:
            return head
        if users is None:
            raise ValueError(
                "the prompt names the user, and nobody was named; give the user's number, its row in the users"
            )
        unknown = np.flatnonzero((users < 0) | (users >= len(self.users)))
        if len(unknown):
            raise ValueError(
                f"user {users[unknown[0]]} is unknown: there are semantic IDs of the users 0 to {len(self.users) - 1}; name "
                "one of these, or make the IDs again"
            )
        return join(head, self.users.take(users))


def newest_that_fit(histories: Ragged, piece_lengths: np.ndarray, room: int) -> Ragged:
    """Each history without its oldest items, so that the pieces of those left have at most `room` tokens."""
    ends = np.concatenate([[0], np.cumsum(piece_lengths[histories.values])])
    to_the_end = np.repeat(ends[histories.offsets[1:]], histories.lengths) - ends[:-1]
    dropped = np.bincount(histories.row_ids[to_the_end > room], minlength=len(histories))
    return histories.slice(dropped, histories.lengths)


def _check_list_length(list_length: int, catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase) -> None:
    if not 1 <= list_length <= len(catalog):
        raise ValueError(
            f"a list of {list_length} distinct items cannot come from {len(catalog)}; choose another list_length"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to end a list with; set tokenizer.eos_token")


def _followed(rows: Ragged, tokens: list[int]) -> Ragged:
    """Each row with the tokens after it."""
    return join(rows, Ragged.repeated(np.array(tokens, np.int64), len(rows)))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's tokens, nothing before and nothing after."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def beginning(tokenizer: PreTrainedTokenizerBase, surface: str) -> list[int]:
    """What the tokenizer begins a text with; a compact prompt needs a beginning even where the tokenizer has none."""
    if tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        return [tokenizer.bos_token_id]
    if surface == "title":
        return []
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError(
            "the tokenizer has neither a BOS nor an EOS token to begin a prompt with; set tokenizer.bos_token"
        )
    return [start]


def in_chat(tokenizer: PreTrainedTokenizerBase, head: str, tail: str) -> tuple[str, str]:
    """Head and tail with the chat template's text around them."""
    if tokenizer.chat_template is None:
        raise ValueError("chat_template is on, but the tokenizer has no chat template; turn it off")
    mark = "\N{OBJECT REPLACEMENT CHARACTER}"
    turn = [{"role": "user", "content": head + mark + tail}]
    before, after = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)).split(mark)
    return before, after


def item_pieces(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase, item: str) -> Ragged:
    """Row `i`: the token ids of the text `item`, item `i`'s surface in place of `{surface}`."""
    if item == "{surface}":
        return catalog.surface_ids(tokenizer)
    texts = [item.replace("{surface}", surface) for surface in catalog.surfaces]
    # a title may hold the text of a control token, which must not become one
    special = catalog.surface == "title"
    return Ragged.from_lists(tokenizer(texts, add_special_tokens=False, split_special_tokens=special)["input_ids"])
