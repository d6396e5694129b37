"""Turns a rated history and a list of candidates into the token ids of a prompt and its answer.

The prompt has two parts. The first part contains a fixed text (the head) and the rated history, and does not depend on
the order of the candidates. The second part is the list of candidates, with a fixed text before and after it. Each
position in that list is a slot, and each slot has a one-token name. The answer consists of these names, most preferred
candidate first. The default names depend on the surface (the text that represents an item). If each item is a single
token, a slot has the token of its item as its name. Otherwise, the names are letters: the first slot is always called
A, whichever candidate it contains. Small models trained from scratch learn to rank with item tokens as names, but do
not learn which item a letter refers to. With item tokens as names, the order in which the prompt lists the candidates
has little influence on the ranking.

As in `trl_rec/data/prompts.py`, texts are split into pieces, such as one item or one rating. Each piece is tokenised
once, and prompts are assembled from the pieces' token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.data.prompt_texts import with_chat_template
from trl_rec.data.prompts import beginning_ids, item_pieces, newest_that_fit, token_ids
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
# If items are written as titles, these alphabets are tried in this order. Some tokenizers have letters as single
# tokens only with a leading space, others only without it.
ALPHABETS = [
    [f"{space}{letter}" for letter in letters] for space in (" ", "") for letters in (LETTERS, LETTERS.lower())
]


def rated_tokens(catalog: ItemCatalog, ratings: Sequence[float], *, letters: bool | None = None) -> list[str]:
    """Returns the tokens that a prompt with item tokens or semantic IDs needs in addition to the tokens of the
    surface. Prompts with titles need no additional tokens, so the list is then empty.

    Args:
        catalog (`ItemCatalog`): The items.
        ratings (list of `float`): The ratings that prompts can contain.
        letters (`bool`, *optional*): Whether letters name the candidates, as in [`RatedPromptFormat.for_catalog`].
    """
    if catalog.surface == "title":
        return []
    names = [f"<{letter}>" for letter in LETTERS] if _has_letters(catalog, letters) else []
    separators = [COMPACT_PROMPT["prompt_candidates"], COMPACT_PROMPT["prompt_tail"]]
    return [*separators, *(f"<rating_{rating:g}>" for rating in ratings), *names]


@dataclass(frozen=True, eq=False)
class RatedPromptFormat:
    """The token ids of the parts of a prompt and its answer. Make a format with `for_catalog`.

    Args:
        prompt_head (`np.ndarray`): The text before the history.
        items (`Ragged`): Row `i` contains the text of item `i` in a history, without its rating.
        ratings (`Ragged`): Row `v` contains the rating `values[v]`, as it is written after an item.
        values (`np.ndarray`): The ratings that prompts can contain, in ascending order. Any other rating is replaced
            by the nearest of them.
        prompt_candidates (`np.ndarray`): The text between the history and the candidates.
        candidates (`Ragged`): Row `i` contains the text of item `i` as a candidate, without the letter before it.
        letters (`np.ndarray`): The letters that name the slots; empty if the items' own tokens are the names.
        prompt_tail (`np.ndarray`): The text between the candidates and the answer.
        eos (`int`): The token that ends an answer.
    """

    prompt_head: np.ndarray
    items: Ragged
    ratings: Ragged
    values: np.ndarray
    prompt_candidates: np.ndarray
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
        """Returns the format for a catalogue's surface.

        Args:
            catalog (`ItemCatalog`): The items. The default texts depend on `catalog.surface`.
            tokenizer (`PreTrainedTokenizerBase`): A tokenizer with the tokens of the surface and of [`rated_tokens`].
            ratings (list of `float`): The ratings that prompts can contain, in any order.
            prompt_head (`str`, *optional*): Text before the history.
            prompt_item (`str`, *optional*): Text of a rated item. Must contain `{surface}` and, after it, `{rating}`.
            prompt_candidates (`str`, *optional*): Text between the history and the candidates.
            prompt_tail (`str`, *optional*): Text between the candidates and the answer.
            chat_template (`bool`, *optional*, defaults to `False`): Whether to apply the tokenizer's chat template
                to the prompt.
            letters (`bool`, *optional*): Whether letters name the candidates. By default they do, unless each item is
                a single token.
        """
        # 1. Sort the ratings, because `nearest` needs `values` in ascending order. Choose the texts.
        ratings = sorted(set(ratings))
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token to end answers with; set tokenizer.eos_token")
        defaults = TITLE_PROMPT if catalog.surface == "title" else COMPACT_PROMPT
        prompt_head = defaults["prompt_head"] if prompt_head is None else prompt_head
        prompt_item = defaults["prompt_item"] if prompt_item is None else prompt_item
        prompt_candidates = defaults["prompt_candidates"] if prompt_candidates is None else prompt_candidates
        prompt_tail = defaults["prompt_tail"] if prompt_tail is None else prompt_tail
        if "{user}" in prompt_head + prompt_item + prompt_candidates + prompt_tail:
            raise ValueError("prompts with rated candidates cannot name users; remove {user} from the prompt's texts")

        # 2. Tokenise each piece once.
        _check_known_tokens(tokenizer, rated_tokens(catalog, ratings, letters=letters))
        if chat_template:
            prompt_head, prompt_tail = with_chat_template(tokenizer, prompt_head, prompt_tail)
        start = [] if chat_template else beginning_ids(tokenizer, catalog.surface)
        item_text, rating_texts = _split(prompt_item, catalog, ratings)
        has_letters = _has_letters(catalog, letters)
        letter_ids = _letter_ids(tokenizer, prompt_tail, catalog.surface) if has_letters else []
        return cls(
            prompt_head=np.array(start + token_ids(tokenizer, prompt_head), np.int64),
            items=item_pieces(catalog, tokenizer, item_text),
            ratings=Ragged.from_lists([token_ids(tokenizer, text) for text in rating_texts]),
            values=np.array(ratings, np.float64),
            prompt_candidates=np.array(token_ids(tokenizer, prompt_candidates), np.int64),
            candidates=item_pieces(catalog, tokenizer, ". {surface}\n" if catalog.surface == "title" else "{surface}"),
            letters=np.array(letter_ids, np.int64),
            prompt_tail=np.array(token_ids(tokenizer, prompt_tail), np.int64),
            eos=int(tokenizer.eos_token_id),
        )

    def encode_histories(self, histories: Ragged, ratings: Ragged, room: np.ndarray | None = None) -> Ragged:
        """Returns the first part of each prompt: the head and the rated history.

        Args:
            histories (`Ragged`): Item indices of each history, oldest first.
            ratings (`Ragged`): The rating of each of these items.
            room (`np.ndarray` of shape `(num_rows,)`, *optional*): Maximum number of tokens of each first part,
                including the head. The oldest items are left out until the rest fits.
        """
        # 1. Drop the oldest items until the rest fits. `places` are indices into the flat histories, so that items
        # and ratings stay together.
        nearest = self.nearest(ratings.values)
        places = Ragged(np.arange(len(nearest)), histories.offsets)
        if room is not None:
            lengths = self.items.lengths[histories.values] + self.ratings.lengths[nearest]
            left = np.repeat(room - len(self.prompt_head), histories.lengths)
            places = newest_that_fit(places, lengths, left)

        # 2. Join each item with its rating, concatenate the rated items of each row, and prepend the head.
        pieces = join(self.items.take(histories.values[places.values]), self.ratings.take(nearest[places.values]))
        written = Ragged(pieces.values, pieces.offsets[places.offsets])
        return join(Ragged.repeated(self.prompt_head, len(places)), written)

    def nearest(self, ratings: np.ndarray) -> np.ndarray:
        """Returns, for each rating, the index of the nearest rating in `values`."""
        return np.searchsorted((self.values[1:] + self.values[:-1]) / 2, ratings)

    def encode_candidates(self, candidates: Ragged, slots: Ragged) -> tuple[Ragged, Ragged]:
        """Returns the second part of each prompt: the candidates in their slots, and the texts before and after them.

        Args:
            candidates (`Ragged`): Item indices of the candidates of each prompt.
            slots (`Ragged`): For each slot of a prompt, the index of its candidate in the same row of `candidates`.

        Returns:
            The token ids, and the names of the candidates. Each name is one token id. The names are in the order of
            `candidates`, not in the order of the slots.
        """
        # 1. Put the items into their slots, find the slots' names, and map the names back to the candidates.
        place = slots.values + np.repeat(slots.offsets[:-1], slots.lengths)
        items = Ragged(candidates.values[place], slots.offsets)
        slot_names = self._slot_names(items)
        names = np.empty_like(slot_names)
        names[place] = slot_names

        # 2. Write each slot: its letter, if there are letters, and its candidate.
        pieces = self.candidates.take(items.values)
        if len(self.letters):
            pieces = join(Ragged.from_lengths(slot_names, np.ones_like(slot_names)), pieces)
        written = Ragged(pieces.values, pieces.offsets[slots.offsets])

        before = Ragged.repeated(self.prompt_candidates, len(slots))
        after = Ragged.repeated(self.prompt_tail, len(slots))
        return join(before, written, after), Ragged(names, slots.offsets)

    def check_lengths(self, candidates: Ragged, max_length: int | None, where: str = "row {row}") -> None:
        """Raises ValueError if a list of candidates, its answer and one rated item do not fit into `max_length`.

        Args:
            candidates (`Ragged`): Item indices of each list of candidates.
            max_length (`int` or `None`): Maximum number of tokens of prompt and answer together; `None` for no limit.
            where (`str`, *optional*, defaults to `"row {row}"`): How the error message refers to a list. `{row}`
                is replaced by the list's row number.
        """
        if max_length is None:
            return

        # `fixed` is the number of tokens of the longest rated item, the fixed texts and EOS. `each` is the number of
        # tokens of a candidate's text, its letter, and its name in the answer.
        item = int(self.items.lengths.max()) + int(self.ratings.lengths.max())
        fixed = len(self.prompt_head) + item + len(self.prompt_candidates) + len(self.prompt_tail) + 1
        each = 1 + bool(len(self.letters)) + self.candidates.lengths[candidates.values]
        lengths = fixed + np.bincount(candidates.row_ids, each, len(candidates)).astype(int)

        if len(lengths) and lengths.max() > max_length:
            row = int(lengths.argmax())
            raise ValueError(
                f"max_length {max_length} is too small: {where.format(row=row)} takes up to {lengths[row]} tokens "
                f"for its {candidates.lengths[row]} candidates, the answer and one rated item; raise max_length"
            )

    def _slot_names(self, items: Ragged) -> np.ndarray:
        """Returns the name of each slot, given the items in the slots."""
        if len(self.letters):
            letters: np.ndarray = self.letters[within(items.lengths)]
            return letters
        surfaces: np.ndarray = self.candidates.values[self.candidates.offsets[items.values]]
        return surfaces


def _has_letters(catalog: ItemCatalog, letters: bool | None) -> bool:
    """Returns whether letters name the candidates."""
    if letters is False and catalog.surface != "item_token":
        raise ValueError(
            "letters=False requires the surface 'item_token' (one token per item), but the surface is "
            f"{catalog.surface!r}; leave out letters=False"
        )
    return catalog.surface != "item_token" if letters is None else letters


def _split(item: str, catalog: ItemCatalog, ratings: Sequence[float]) -> tuple[str, list[str]]:
    """Returns the text of a rated item up to the rating, and the rest of the text for each possible rating."""
    before, placeholder, after = item.partition("{rating}")
    if not placeholder or "{surface}" not in before:
        raise ValueError(f"the prompt's item text {item!r} must contain {{surface}} and, after it, {{rating}}")

    # A space in front of the rating becomes part of the rating's text, because most tokenizers merge a space with the
    # text that follows.
    space = before[len(before.rstrip(" ")) :]
    write = "{:g}" if catalog.surface == "title" else "<rating_{:g}>"
    return before.rstrip(" "), [f"{space}{write.format(rating)}{after}" for rating in ratings]


def _letter_ids(tokenizer: PreTrainedTokenizerBase, tail: str, surface: str) -> list[int]:
    """Returns the token ids of the letters that name slots.

    If items are written as titles, returns the first of the `ALPHABETS` whose letters are distinct single tokens after
    the prompt's tail, where an answer starts.
    """
    if surface != "title":
        return [tokenizer.get_vocab()[f"<{letter}>"] for letter in LETTERS]

    before = token_ids(tokenizer, tail)
    for alphabet in ALPHABETS:
        texts = [token_ids(tokenizer, tail + letter) for letter in alphabet]
        names = {ids[-1] for ids in texts if ids[:-1] == before}
        if len(names) == len(alphabet):
            return [ids[-1] for ids in texts]
    raise ValueError(
        f"the tokenizer does not write the letters of any alphabet as single tokens after {tail[-20:]!r}; change "
        "prompt_tail, or choose another model"
    )


def _check_known_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Raises ValueError if the tokenizer lacks one of the tokens."""
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ValueError(
            f"the tokenizer lacks {len(missing)} tokens of the prompts, such as {missing[0]!r}; add them with "
            "tokenizer.add_tokens(rated_tokens(catalog, ratings, letters=letters)) before creating or resizing the "
            "model"
        )
