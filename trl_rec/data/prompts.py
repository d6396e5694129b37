"""Converts histories to prompts of token ids.

A prompt consists of a head, one piece per item of the history, and a tail. The head, the tail and the piece of each
item are tokenised separately, and only once. Prompts are then concatenated from token ids. This has two advantages:

- The tokenizer cannot merge text across pieces, so the boundary between prompt and completion is always the same.
- The oldest items of a long history can be dropped without tokenising the remaining items again.

By default, a prompt of item tokens or semantic IDs contains only the items, and a prompt of titles is an instruction
with one title per line. `{user}` in the head is replaced by the user's semantic ID. A prompt may have a separator
between the items of a history. The separator is tokenised separately as well, so dropping the oldest items does not
change the tokens of the remaining items.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.data.prompt_texts import PromptTexts
from trl_rec.items.catalog import ItemCatalog
from trl_rec.items.twins import Twins
from trl_rec.ragged import Ragged, join, within


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class PromptFormat:
    """The token ids of all parts of prompts and completions. Use [`PromptFormat.for_catalog`] to make a format.

    Args:
        prompt_head (`np.ndarray`): Tokens at the beginning of every prompt. They end before `{user}`, if the head
            contains it.
        pieces (`Ragged`): Row `i` contains the tokens of item `i` in a history.
        prompt_tail (`np.ndarray`): Tokens after the history.
        paths (`Ragged`): Row `i` contains the tokens of item `i` in a completion.
        list_length (`int`, *optional*): Number of items in a completion, if completions are lists.
        end (`np.ndarray`, *optional*): Tokens at the end of a list: EOS. Empty if completions are single items.
        users (`Ragged`, *optional*): Row `u` contains the tokens between `prompt_head` and the history in prompts of
            user `u`: the user's semantic ID and the text after `{user}`. None if prompts name no users.
        separator (`np.ndarray`, *optional*): Tokens before every item of a history except the first. Empty by default.
        twins (`Twins`, *optional*): Groups of items with the same title, if items are written as titles.
    """

    prompt_head: np.ndarray
    pieces: Ragged
    prompt_tail: np.ndarray
    paths: Ragged
    list_length: int | None = None
    end: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    users: Ragged | None = None
    separator: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
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
        prompt_separator: str | None = None,
        chat_template: bool = False,
        list_length: int | None = None,
    ) -> PromptFormat:
        """Returns the prompt format for the surface of a catalogue.

        Args:
            catalog: The items. The defaults of the texts below depend on `catalog.surface`.
            tokenizer: The tokenizer. Without a chat template, prompts begin with BOS, EOS or no special token,
                depending on the tokenizer and the surface (see [`beginning_ids`]).
            prompt_head (*optional*): Text before the history. It may contain `{user}` once, which is replaced by the
                user's semantic ID.
            prompt_item (*optional*): Text of an item in the history. It must contain `{surface}`.
            prompt_tail (*optional*): Text between the history and the completion.
            prompt_separator (*optional*): Text before every item of the history except the first, such as `", "`.
            chat_template (*optional*, defaults to `False`): Whether prompts are formatted as a user message with the
                tokenizer's chat template.
            list_length (*optional*): If set, a completion is a list of this many distinct items, followed by EOS. By
                default, a completion is a single item.
        """
        # 1. Choose the texts.
        if list_length is not None:
            _check_list_length(list_length, catalog, tokenizer)
        texts = PromptTexts.choose(
            catalog.surface,
            tokenizer,
            prompt_head=prompt_head,
            prompt_item=prompt_item,
            prompt_tail=prompt_tail,
            prompt_separator=prompt_separator,
            chat_template=chat_template,
            list_length=list_length,
        )

        # 2. Tokenise them. A chat template contains BOS itself if the model needs it.
        start = [] if chat_template else beginning_ids(tokenizer, catalog.surface)
        before_user, user, after_user = texts.head.partition("{user}")
        users = None
        if user:
            user_ids = catalog.user_token_ids(tokenizer)
            after = np.array(token_ids(tokenizer, after_user), np.int64)
            users = join(user_ids, Ragged.repeated(after, len(user_ids)))
        return cls(
            prompt_head=np.array(start + token_ids(tokenizer, before_user), np.int64),
            pieces=item_pieces(catalog, tokenizer, texts.item),
            prompt_tail=np.array(token_ids(tokenizer, texts.tail), np.int64),
            paths=catalog.paths(tokenizer) if list_length is None else catalog.list_paths(tokenizer),
            list_length=list_length,
            end=np.array([] if list_length is None else [tokenizer.eos_token_id], np.int64),
            users=users,
            separator=np.array(token_ids(tokenizer, texts.separator), np.int64),
            twins=catalog.twins,
        )

    @property
    def is_compact(self) -> bool:
        """Whether items have the same tokens in histories and completions, and no text is between or after the items.

        In such a format, one row of items is enough to train a model to predict every item of a history.
        """
        if len(self.prompt_tail) or len(self.separator):
            return False
        # Items have the same tokens in histories and completions if `pieces` and `paths` are equal.
        same_values = np.array_equal(self.pieces.values, self.paths.values)
        return same_values and np.array_equal(self.pieces.offsets, self.paths.offsets)

    @property
    def piece_lengths(self) -> np.ndarray:
        """`(num_items,)`: the number of tokens of each item in a history, with the separator before it.

        The first item of a history has no separator, so a history is one separator shorter than the sum of these
        lengths. [`PromptFormat.room`] takes this into account.
        """
        lengths: np.ndarray = self.pieces.lengths + len(self.separator)
        return lengths

    def room(self, max_length: int | None) -> int | None:
        """Returns how many tokens a history may have, so that prompt and completion together fit into `max_length`.

        Here, the length of a history counts as the sum of its `piece_lengths`, although its first item is written
        without a separator. The returned number therefore exceeds the tokens that are actually available by the length
        of one separator. The completion is assumed to be as long as the longest possible completion.

        Returns None if `max_length` is None. Raises ValueError if a history of only the longest item would not fit.
        """
        if max_length is None:
            return None
        # The items of a list are distinct, so the longest list consists of the `list_length` longest paths.
        longest_completion = int(np.sort(self.paths.lengths)[-(self.list_length or 1) :].sum()) + len(self.end)
        longest_user = 0 if self.users is None else int(self.users.lengths.max())
        longest_piece = int(self.pieces.lengths.max())
        fixed = len(self.prompt_head) + longest_user + len(self.prompt_tail) + longest_completion
        if fixed + longest_piece > max_length:
            completion = "item" if self.list_length is None else "list"
            raise ValueError(
                f"max_length {max_length} is too small: the longest {completion} and a prompt without a history "
                f"take {fixed} tokens, and one item of a history takes up to {longest_piece}; raise "
                "max_length, or shorten the texts of items and of the prompt"
            )
        return max_length - fixed + len(self.separator)

    def encode(self, histories: Ragged, users: np.ndarray | None = None, *, max_length: int | None = None) -> Ragged:
        """Returns the prompt of each history, one per row.

        Args:
            histories: Item indices, oldest first.
            users (*optional*): The user of each history, as a row number in `RecDataset.users`. Required if prompts
                name users.
            max_length (*optional*): Maximum number of tokens of a prompt and the longest completion together. The
                oldest items of a history that is too long are dropped.
        """
        room = self.room(max_length)
        if room is not None:
            histories = newest_that_fit(histories, self.piece_lengths, room)
        heads = self.encode_heads(len(histories), users)
        tails = Ragged.repeated(self.prompt_tail, len(histories))
        return join(heads, self.encode_histories(histories), tails)

    def encode_histories(self, histories: Ragged) -> Ragged:
        """Returns the tokens of each history, one per row: the pieces of its items, and the separators between them.

        Args:
            histories: Item indices, oldest first.
        """
        if not len(self.separator):
            return histories.flatten(self.pieces)
        is_later = within(histories.lengths) > 0
        rows = histories.values + np.where(is_later, len(self.pieces), 0)
        return Ragged(rows, histories.offsets).flatten(self._first_and_later)

    @cached_property
    def _first_and_later(self) -> Ragged:
        """The pieces of all items, then all pieces again with a separator before each: `2 * num_items` rows."""
        later = join(Ragged.repeated(self.separator, len(self.pieces)), self.pieces)
        values = np.concatenate([self.pieces.values, later.values])
        return Ragged.from_lengths(values, np.concatenate([self.pieces.lengths, later.lengths]))

    def exclusions(self, histories: Ragged) -> Ragged:
        """Returns the items that must not be recommended after each history, one row per history.

        These are the items of the history and their twins.
        """
        return histories if self.twins is None else self.twins.complete(histories)

    def encode_heads(self, count: int, users: np.ndarray | None = None) -> Ragged:
        """Returns the tokens before the history for each of `count` prompts, one prompt per row.

        If prompts name users, prompt `i` contains the semantic ID of `users[i]`.
        """
        heads = Ragged.repeated(self.prompt_head, count)
        if self.users is None:
            return heads
        if users is None:
            raise ValueError(
                "the prompt names the user, but no user was given; pass the user's row number in RecDataset.users"
            )
        unknown = np.flatnonzero((users < 0) | (users >= len(self.users)))
        if len(unknown):
            raise ValueError(
                f"user {users[unknown[0]]} has no semantic ID; choose a user from 0 to {len(self.users) - 1}, or "
                "run trl-rec tokenize again"
            )
        return join(heads, self.users.take(users))


def newest_that_fit(histories: Ragged, piece_lengths: np.ndarray, room: int | np.ndarray) -> Ragged:
    """Drops the oldest items of each history until the remaining pieces have at most `room` tokens.

    Args:
        histories: Indices into `piece_lengths`, oldest first.
        piece_lengths: Number of tokens of each piece.
        room: Maximum number of tokens of a history. Either one number for all histories, or an array with one number
            per entry of `histories.values`, which must be the same for all entries of a history.
    """
    # ends[i] is the number of tokens before entry i of `histories.values`.
    ends = np.concatenate([[0], np.cumsum(piece_lengths[histories.values])])
    # Number of tokens from each item to the end of its history.
    to_the_end = np.repeat(ends[histories.offsets[1:]], histories.lengths) - ends[:-1]
    num_dropped = np.bincount(histories.row_ids[to_the_end > room], minlength=len(histories))
    return histories.slice(num_dropped, histories.lengths)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the tokens of a text, without special tokens around them."""
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def beginning_ids(tokenizer: PreTrainedTokenizerBase, surface: str) -> list[int]:
    """Returns the tokens that every prompt without a chat template begins with.

    This is BOS if the tokenizer adds BOS to texts. Otherwise, prompts of titles begin with no special token, and
    prompts of item tokens and semantic IDs begin with BOS, or with EOS if there is no BOS. By default, such prompts
    contain only items, so without this token the prompt of an empty history would be empty.
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


def item_pieces(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase, item: str) -> Ragged:
    """Replaces `{surface}` in the text `item` by each item's surface. Returns the token ids, one row per item."""
    if item == "{surface}":
        return catalog.surface_ids(tokenizer)
    texts = [item.replace("{surface}", surface) for surface in catalog.surfaces]
    # A title may contain the text of a special token, which must be split into ordinary tokens.
    special = catalog.surface == "title"
    return Ragged.from_lists(tokenizer(texts, add_special_tokens=False, split_special_tokens=special)["input_ids"])


def _check_list_length(list_length: int, catalog: ItemCatalog, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError if the catalogue has too few items for a list, or if the tokenizer has no EOS."""
    if not 1 <= list_length <= len(catalog):
        raise ValueError(f"list_length must be from 1 to {len(catalog)} (the number of items), not {list_length}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to end a list with; set tokenizer.eos_token")
