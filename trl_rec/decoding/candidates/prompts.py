"""How a rated history and a list of candidates become a prompt, and an order of the candidates its answer, as token
ids.

The prompt falls in two: a head and the rated history, which any order of the candidates shares, and the candidates in
slots, each with a name of one token. The answer is those names, the most preferred first. Letters name the slots,
whatever stands there. Where an item is one token, that token is its name by default: a small model from scratch learns
to rank by it, and does not learn to look up letters; but then little is left for the order of the slots to change.

As in `prompts.py`, all is put together from pieces that were tokenised once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.data.prompts import beginning_ids, item_pieces, newest_that_fit, token_ids, with_chat_template
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged, join, within


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TITLE_PROMPT = {
    "prompt_head": "A user has rated these items, oldest first:\n",
    "prompt_item": "{surface}: {rating}\n",
    "prompt_candidates": "Candidates:\n",
    "prompt_tail": "The candidates in the order in which this user would rate them, best first:",
}
COMPACT_PROMPT = {
    "prompt_head": "",
    "prompt_item": "{surface}{rating}",
    "prompt_candidates": "<candidates>",
    "prompt_tail": "<answer>",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ALPHABETS = [
    [f"{space}{letter}" for letter in letters] for space in (" ", "") for letters in (LETTERS, LETTERS.lower())
]


def rated_tokens(catalog: ItemCatalog, ratings: Sequence[float], *, letters: bool | None = None) -> list[str]:
    """The tokens beside the surface's own that a tokenizer must learn before it can write compact prompts; none for
    titles."""
    if catalog.surface == "title":
        return []
    names = [f"<{letter}>" for letter in LETTERS] if _has_letters(catalog, letters) else []
    separators = [COMPACT_PROMPT["prompt_candidates"], COMPACT_PROMPT["prompt_tail"]]
    return [*separators, *(f"<rating_{rating:g}>" for rating in ratings), *names]


@dataclass(frozen=True, eq=False)
class RatedPromptFormat:
    """Token ids of the parts of a prompt and of its answer. Make it with `for_catalog`.

    Args:
        prompt_head (`np.ndarray`): What comes first.
        items (`Ragged`): Row `i`: item `i` as it stands in a history, before its rating.
        ratings (`Ragged`): Row `v`: the rating `values[v]`, after an item.
        values (`np.ndarray`): The ratings that can be written, ascending. Any other is written as the nearest.
        middle (`np.ndarray`): What comes between the history and the candidates.
        candidates (`Ragged`): Row `i`: item `i` as a candidate, after the letter where there is one.
        letters (`np.ndarray`): The names of the slots. Empty where an item's own token is its name.
        prompt_tail (`np.ndarray`): What comes between the candidates and the answer.
        eos (`int`): What ends an answer.
    """

    prompt_head: np.ndarray
    items: Ragged
    ratings: Ragged
    values: np.ndarray
    middle: np.ndarray
    candidates: Ragged
    letters: np.ndarray
    prompt_tail: np.ndarray
    eos: int

    @classmethod
    def for_catalog(
        cls,
        catalog: ItemCatalog,
        tokenizer: PreTrainedTokenizerBase,
        ratings: Sequence[float],
        *,
        prompt_head: str | None = None,
        prompt_item: str | None = None,
        prompt_candidates: str | None = None,
        prompt_tail: str | None = None,
        chat_template: bool = False,
        letters: bool | None = None,
    ) -> RatedPromptFormat:
        """The format for a catalogue's surface.

        Args:
            catalog: The items, whose `surface` decides the defaults.
            tokenizer: It knows the surface's tokens and those of [`rated_tokens`].
            ratings: The ratings that can be written.
            prompt_head (*optional*): Text before the history.
            prompt_item (*optional*): Text of a rated item: `{surface}` and, after it, `{rating}`.
            prompt_candidates (*optional*): Text between the history and the candidates.
            prompt_tail (*optional*): Text between the candidates and the answer.
            chat_template (*optional*, defaults to `False`): Whether the prompt is a user's turn in the tokenizer's
                chat template.
            letters (*optional*): Whether letters name the candidates. By default they do unless each item is one
                token.
        """
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token to end an answer with; set tokenizer.eos_token")
        defaults = TITLE_PROMPT if catalog.surface == "title" else COMPACT_PROMPT
        prompt_head = defaults["prompt_head"] if prompt_head is None else prompt_head
        prompt_item = defaults["prompt_item"] if prompt_item is None else prompt_item
        prompt_candidates = defaults["prompt_candidates"] if prompt_candidates is None else prompt_candidates
        prompt_tail = defaults["prompt_tail"] if prompt_tail is None else prompt_tail
        if "{user}" in prompt_head + prompt_item + prompt_candidates + prompt_tail:
            raise ValueError("prompts of rated lists do not name users; take {user} out of them")
        _check_unknown(tokenizer, rated_tokens(catalog, ratings, letters=letters))
        if chat_template:
            prompt_head, prompt_tail = with_chat_template(tokenizer, prompt_head, prompt_tail)
        start = [] if chat_template else beginning_ids(tokenizer, catalog.surface)
        before, texts = _split(prompt_item, catalog, ratings)
        names = _names(tokenizer, prompt_tail, catalog.surface) if _has_letters(catalog, letters) else []
        return cls(
            prompt_head=np.array(start + token_ids(tokenizer, prompt_head), np.int64),
            items=item_pieces(catalog, tokenizer, before),
            ratings=Ragged.from_lists([token_ids(tokenizer, text) for text in texts]),
            values=np.array(ratings, np.float64),
            middle=np.array(token_ids(tokenizer, prompt_candidates), np.int64),
            candidates=item_pieces(catalog, tokenizer, ". {surface}\n" if catalog.surface == "title" else "{surface}"),
            letters=np.array(names, np.int64),
            prompt_tail=np.array(token_ids(tokenizer, prompt_tail), np.int64),
            eos=int(tokenizer.eos_token_id),
        )

    def encode_histories(self, histories: Ragged, ratings: Ragged, room: np.ndarray | None = None) -> Ragged:
        """Row `i`: the head, and `histories[i]` (item indices, oldest first) with its ratings. What does not fit
        `room[i]` tokens is the oldest part of the history."""
        nearest = self.nearest(ratings.values)
        places = Ragged(np.arange(len(nearest)), histories.offsets)
        if room is not None:
            lengths = self.items.lengths[histories.values] + self.ratings.lengths[nearest]
            left = np.repeat(room - len(self.prompt_head), histories.lengths)
            places = newest_that_fit(places, lengths, left)
        pieces = join(self.items.take(histories.values[places.values]), self.ratings.take(nearest[places.values]))
        return join(
            Ragged.repeated(self.prompt_head, len(places)), Ragged(pieces.values, pieces.offsets[places.offsets])
        )

    def nearest(self, ratings: np.ndarray) -> np.ndarray:
        """Which of `values` stands for each rating."""
        return np.searchsorted((self.values[1:] + self.values[:-1]) / 2, ratings)

    def show(self, candidates: Ragged, slots: Ragged) -> tuple[Ragged, Ragged]:
        """What stands between history and answer, and the name of each candidate there.

        Args:
            candidates: Item indices.
            slots: Row `i`: which of `candidates[i]` is in each slot.
        """
        place = slots.values + np.repeat(slots.offsets[:-1], slots.lengths)
        items = Ragged(candidates.values[place], slots.offsets)
        in_slots = self._names(items)
        names = np.empty_like(in_slots)
        names[place] = in_slots
        pieces = self.candidates.take(items.values)
        if len(self.letters):
            pieces = join(Ragged.from_lengths(in_slots, np.ones_like(in_slots)), pieces)
        shown = Ragged(pieces.values, pieces.offsets[slots.offsets])
        middle, tail = (Ragged.repeated(part, len(slots)) for part in (self.middle, self.prompt_tail))
        return join(middle, shown, tail), Ragged(names, slots.offsets)

    def check_lengths(self, candidates: Ragged, max_length: int | None, where: str = "row {row}") -> None:
        """Refuses a list that does not fit `max_length` together with its answer and one rated item; `where` names
        it."""
        if max_length is None:
            return
        item = int(self.items.lengths.max()) + int(self.ratings.lengths.max())
        fixed = len(self.prompt_head) + item + len(self.middle) + len(self.prompt_tail) + 1
        each = 1 + bool(len(self.letters)) + self.candidates.lengths[candidates.values]
        lengths = fixed + np.bincount(candidates.row_ids, each, len(candidates)).astype(int)
        if len(lengths) and lengths.max() > max_length:
            row = int(lengths.argmax())
            raise ValueError(
                f"max_length {max_length} is too small: {where.format(row=row)} takes up to {lengths[row]} tokens with "
                f"its {candidates.lengths[row]} candidates, their order and one rated item; raise max_length"
            )

    def _names(self, items: Ragged) -> np.ndarray:
        """The token that names the item in each slot."""
        if len(self.letters):
            return self.letters[within(items.lengths)]
        return self.candidates.values[self.candidates.offsets[items.values]]


def _has_letters(catalog: ItemCatalog, letters: bool | None) -> bool:
    if letters is False and catalog.surface != "item_token":
        raise ValueError(f"letters=False needs items of one token, and the surface is {catalog.surface}; leave it out")
    return catalog.surface != "item_token" if letters is None else letters


def _split(item: str, catalog: ItemCatalog, ratings: Sequence[float]) -> tuple[str, list[str]]:
    """The text of an item up to its rating, and from there for each rating. A space before the rating goes with it, as
    most tokenizers would have it."""
    before, found, after = item.partition("{rating}")
    if not found or "{surface}" not in before:
        raise ValueError(f"the prompt's item text {item!r} must hold {{surface}} and, after it, {{rating}}")
    space = before[len(before.rstrip(" ")) :]
    write = "{:g}" if catalog.surface == "title" else "<rating_{:g}>"
    return before.rstrip(" "), [f"{space}{write.format(rating)}{after}" for rating in ratings]


def _names(tokenizer: PreTrainedTokenizerBase, tail: str, surface: str) -> list[int]:
    """The tokens of the first alphabet each letter of which is one token where the answer begins, all of them
    different."""
    if surface != "title":
        return [tokenizer.get_vocab()[f"<{letter}>"] for letter in LETTERS]
    before = token_ids(tokenizer, tail)
    for alphabet in ALPHABETS:
        found = [token_ids(tokenizer, tail + letter) for letter in alphabet]
        names = {ids[-1] for ids in found if ids[:-1] == before}
        if len(names) == len(alphabet):
            return [ids[-1] for ids in found]
    raise ValueError(
        f"no alphabet has letters of one token each after {tail[-20:]!r} in this tokenizer; change prompt_tail, or choose "
        "another model"
    )


def _check_unknown(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ValueError(
            f"the tokenizer lacks {len(missing)} tokens of the prompts, {missing[0]!r} first; add them with "
            "tokenizer.add_tokens(rated_tokens(catalog, ratings)) before the model is made or widened"
        )
