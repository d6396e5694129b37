"""Writes a history as a prompt: a head, one piece per item, and a tail, all as token ids.

Each piece is tokenised once for the whole catalogue, and prompts are joined from token ids. So neither a prompt nor
its boundary with the completion depends on how a tokenizer merges text across pieces, and a history that is too long
loses its oldest items without being tokenised again.

By default item tokens and semantic IDs are written compactly, as nothing but the items, and titles as a plain
instruction with one title per line. A head that contains `{user}` names the user by semantic ID.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.items.catalog import ItemCatalog
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged, join


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The default prompts, which are written down only here. Configs, recipes and run folders contain None for a default.
TITLE_PROMPT = {
    "prompt_head": "A user has chosen these items, oldest first:\n",
    "prompt_item": "{surface}\n",
    "prompt_tail": "The item that the user chooses next:\n",
}
TITLE_LIST_TAIL = "The items that the user chooses next, one a line:\n"
COMPACT_PROMPT = {"prompt_head": "", "prompt_item": "{surface}", "prompt_tail": ""}  # item tokens and semantic IDs


@dataclass(frozen=True, eq=False)
class PromptFormat:
    """The token ids of all parts of prompts and completions. [`PromptFormat.for_catalog`] makes a format.

    Args:
        prompt_head (`np.ndarray`): Begins every prompt.
        pieces (`Ragged`): Row `i` is item `i` as written in a history.
        prompt_tail (`np.ndarray`): Follows the history.
        paths (`Ragged`): Row `i` is the completion that recommends item `i` or, in a list, the item's part of it.
        list_length (`int`, *optional*): Number of items in a completion, if completions are lists.
        end (`np.ndarray`, *optional*): Ends a list: EOS.
        users (`Ragged`, *optional*): Row `u` follows the head in prompts for user `u`. None if prompts name no users.
        twins (`Twins`, *optional*): Items with the same title, if items are written as titles.
    """

    prompt_head: np.ndarray
    pieces: Ragged
    prompt_tail: np.ndarray
    paths: Ragged
    list_length: int | None = None
    end: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    users: Ragged | None = None
    twins: Twins | None = None

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
            tokenizer: Prompts begin with its BOS. A compact prompt begins with its EOS if there is no BOS.
            prompt_head (*optional*): Text before the history. It may contain `{user}` once, which becomes the user's
                semantic ID.
            prompt_item (*optional*): Text of an item in the history, with `{surface}` in it.
            prompt_tail (*optional*): Text between the history and the completion.
            chat_template (*optional*, defaults to `False`): Whether the prompt is a user's turn in the tokenizer's
                chat template.
            list_length (*optional*): Makes completions lists of that many distinct items, which end in EOS.
        """
        # 1. Choose the texts.
        defaults = TITLE_PROMPT if catalog.surface == "title" else COMPACT_PROMPT
        if list_length is not None:
            _check_list_length(list_length, catalog, tokenizer)
            defaults = {**defaults, "prompt_tail": TITLE_LIST_TAIL if catalog.surface == "title" else ""}
        prompt_head = defaults["prompt_head"] if prompt_head is None else prompt_head
        prompt_item = defaults["prompt_item"] if prompt_item is None else prompt_item
        prompt_tail = defaults["prompt_tail"] if prompt_tail is None else prompt_tail
        if "{surface}" not in prompt_item:
            raise ValueError(f"prompt_item must contain {{surface}}, unlike {prompt_item!r}")
        if prompt_head.count("{user}") > 1 or "{user}" in prompt_item + prompt_tail:
            raise ValueError("a prompt names its user once, in prompt_head; take {user} out of the other texts")

        # 2. Tokenise them. A chat template brings its own BOS.
        start: list[int] = []
        if chat_template:
            prompt_head, prompt_tail = with_chat_template(tokenizer, prompt_head, prompt_tail)
        else:
            start = beginning_ids(tokenizer, catalog.surface)
        before_user, user, after_user = prompt_head.partition("{user}")
        users = None
        if user:
            user_ids = catalog.user_token_ids(tokenizer)
            after = np.array(token_ids(tokenizer, after_user), np.int64)
            users = join(user_ids, Ragged.repeated(after, len(user_ids)))
        return cls(
            prompt_head=np.array(start + token_ids(tokenizer, before_user), np.int64),
            pieces=item_pieces(catalog, tokenizer, prompt_item),
            prompt_tail=np.array(token_ids(tokenizer, prompt_tail), np.int64),
            paths=catalog.paths(tokenizer) if list_length is None else catalog.list_paths(tokenizer),
            list_length=list_length,
            end=np.array([] if list_length is None else [tokenizer.eos_token_id], np.int64),
            users=users,
            twins=catalog.twins,
        )

    @property
    def is_compact(self) -> bool:
        """Whether a history is just its items' completions in a row, so that each of them can be a target."""
        # Equal tables mean that items are written alike in histories and completions.
        same_values = np.array_equal(self.pieces.values, self.paths.values)
        return not len(self.prompt_tail) and same_values and np.array_equal(self.pieces.offsets, self.paths.offsets)

    def room(self, max_length: int | None) -> int | None:
        """Tokens left for the history if the prompt and the longest completion have to fit `max_length`.

        None if there is no limit; raises if the room is too small for some item.
        """
        if max_length is None:
            return None
        # A list has distinct items, so the longest list consists of the longest paths.
        longest_completion = int(np.sort(self.paths.lengths)[-(self.list_length or 1) :].sum()) + len(self.end)
        longest_user = 0 if self.users is None else int(self.users.lengths.max())
        longest_piece = int(self.pieces.lengths.max())
        fixed = len(self.prompt_head) + longest_user + len(self.prompt_tail) + longest_completion
        if fixed + longest_piece > max_length:
            completion = "item" if self.list_length is None else "list"
            raise ValueError(
                f"max_length {max_length} is too small: the prompt without a history and the longest {completion} "
                f"take {fixed} tokens, an item in a history up to {longest_piece}; raise max_length or shorten the "
                "titles"
            )
        return max_length - fixed

    def encode(self, histories: Ragged, users: np.ndarray | None = None, *, max_length: int | None = None) -> Ragged:
        """Row `i`: the prompt for `histories[i]`.

        Args:
            histories: Item indices, oldest first.
            users (*optional*): The user of each history, a row in `RecDataset.users`; needed if prompts name users.
            max_length (*optional*): Limit on the tokens of a prompt and the longest completion together. A history
                that is too long loses its oldest items.
        """
        room = self.room(max_length)
        if room is not None:
            histories = newest_that_fit(histories, self.pieces.lengths, room)
        heads = self.encode_heads(len(histories), users)
        tails = Ragged.repeated(self.prompt_tail, len(histories))
        return join(heads, histories.flatten(self.pieces), tails)

    def exclusions(self, histories: Ragged) -> Ragged:
        """Row `i`: the items that are excluded after `histories[i]`: those of the history and, where items are written
        as titles, all other items with one of the history's titles."""
        return histories if self.twins is None else self.twins.complete(histories)

    def encode_heads(self, count: int, users: np.ndarray | None = None) -> Ragged:
        """`count` prompts, up to where the history begins; row `i` names `users[i]` if prompts name users."""
        heads = Ragged.repeated(self.prompt_head, count)
        if self.users is None:
            return heads
        if users is None:
            raise ValueError("the prompt names the user, but no user was given; give the user's row in the users")
        unknown = np.flatnonzero((users < 0) | (users >= len(self.users)))
        if len(unknown):
            raise ValueError(
                f"user {users[unknown[0]]} is unknown: there are semantic IDs of the users 0 to {len(self.users) - 1}"
                "; give one of these, or make the IDs again"
            )
        return join(heads, self.users.take(users))


def newest_that_fit(histories: Ragged, piece_lengths: np.ndarray, room: int | np.ndarray) -> Ragged:
    """Drops the oldest items of each history until the pieces of the rest have at most `room` tokens.

    Args:
        histories: Indices into `piece_lengths`, oldest first.
        piece_lengths: Number of tokens of each piece.
        room: Number of tokens available, or an array with one number for each value of `histories`.
    """
    # Tokens before each item, counted over all histories; their differences are lengths of stretches.
    ends = np.concatenate([[0], np.cumsum(piece_lengths[histories.values])])
    to_the_end = np.repeat(ends[histories.offsets[1:]], histories.lengths) - ends[:-1]  # tokens from an item on
    num_dropped = np.bincount(histories.row_ids[to_the_end > room], minlength=len(histories))
    return histories.slice(num_dropped, histories.lengths)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, without special tokens around them."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def beginning_ids(tokenizer: PreTrainedTokenizerBase, surface: str) -> list[int]:
    """The tokens that begin a prompt: BOS if the tokenizer adds it to texts, else nothing.

    A compact prompt may have no other token before the first item, so it begins with BOS or EOS in any case.
    """
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][:1] == [bos]:
        return [bos]
    if surface == "title":
        return []
    start = bos if bos is not None else tokenizer.eos_token_id
    if start is None:
        raise ValueError(
            "the tokenizer has neither a BOS nor an EOS token to begin a prompt with; set tokenizer.bos_token"
        )
    return [start]


def with_chat_template(tokenizer: PreTrainedTokenizerBase, head: str, tail: str) -> tuple[str, str]:
    """Head and tail with the chat template's text around them, as one turn of a user."""
    if tokenizer.chat_template is None:
        raise ValueError("chat_template is on, but the tokenizer has no chat template; turn it off")
    history = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands where the history will be
    turn = [{"role": "user", "content": head + history + tail}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    before, after = text.split(history)
    return before, after


def item_pieces(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase, item: str) -> Ragged:
    """Row `i`: the token ids of the text `item` with item `i`'s surface in place of `{surface}`."""
    if item == "{surface}":
        return catalog.surface_ids(tokenizer)
    texts = [item.replace("{surface}", surface) for surface in catalog.surfaces]
    # A title may contain the text of a control token, which must not become one.
    special = catalog.surface == "title"
    return Ragged.from_lists(tokenizer(texts, add_special_tokens=False, split_special_tokens=special)["input_ids"])


def _check_list_length(list_length: int, catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises if the catalogue has too few items for a list, or the tokenizer no token to end one with."""
    if not 1 <= list_length <= len(catalog):
        raise ValueError(
            f"a list of {list_length} distinct items cannot come from {len(catalog)}; choose another list_length"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to end a list with; set tokenizer.eos_token")
