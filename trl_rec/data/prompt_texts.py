"""Defines the texts that a prompt consists of, and compares ways to tokenise them.

    text = head + item 1 + separator + item 2 + ... + separator + item n + tail

[`PromptFormat`] tokenises the parts separately. A tokenizer that reads the whole text may merge characters of
neighbouring parts, such as a quotation mark and the comma after it. The tokens of the whole text then differ from the
tokens of its parts. [`compare_tokens`] counts the prompts for which this happens. The difference matters if a model
was trained on whole texts, or if a paper's figures were measured with whole texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The default prompts. They are defined only here; None in a config, recipe or run folder selects the default.
TITLE_PROMPT = {
    "prompt_head": "A user has chosen these items, oldest first:\n",
    "prompt_item": "{surface}\n",
    "prompt_tail": "The item that the user chooses next:\n",
}
TITLE_LIST_TAIL = "The items that the user chooses next, one a line:\n"
COMPACT_PROMPT = {"prompt_head": "", "prompt_item": "{surface}", "prompt_tail": ""}  # for item tokens and semantic IDs


@dataclass(frozen=True)
class PromptTexts:
    """The texts of all parts of a prompt.

    Args:
        head (`str`): Text before the history. May contain `{user}` once, which is replaced by the user's semantic ID.
        item (`str`): Text of an item in the history. Contains `{surface}`.
        separator (`str`): Text before every item of the history except the first.
        tail (`str`): Text after the history.
    """

    head: str
    item: str
    separator: str
    tail: str

    @classmethod
    def choose(
        cls,
        surface: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_head: str | None = None,
        prompt_item: str | None = None,
        prompt_tail: str | None = None,
        prompt_separator: str | None = None,
        chat_template: bool = False,
        list_length: int | None = None,
    ) -> PromptTexts:
        """Returns the given texts, with the default in place of each text that is None.

        With `chat_template`, the head and the tail also contain the text of the template.

        Args:
            surface: The surface of the catalogue.
            tokenizer: The tokenizer, which may have a chat template.
            prompt_head, prompt_item, prompt_tail, prompt_separator, chat_template, list_length (*optional*): Same as
                in [`PromptFormat.for_catalog`].
        """
        defaults = TITLE_PROMPT if surface == "title" else COMPACT_PROMPT
        if list_length is not None:
            defaults = {**defaults, "prompt_tail": TITLE_LIST_TAIL if surface == "title" else ""}
        texts = cls(
            head=defaults["prompt_head"] if prompt_head is None else prompt_head,
            item=defaults["prompt_item"] if prompt_item is None else prompt_item,
            separator=prompt_separator or "",
            tail=defaults["prompt_tail"] if prompt_tail is None else prompt_tail,
        )
        if "{surface}" not in texts.item:
            raise ValueError(f"prompt_item must contain {{surface}}, but is {texts.item!r}")
        if texts.head.count("{user}") > 1 or "{user}" in texts.item + texts.separator + texts.tail:
            raise ValueError("{user} may occur only once, in prompt_head; remove the other occurrences")
        if not chat_template:
            return texts
        head, tail = with_chat_template(tokenizer, texts.head, texts.tail)
        return replace(texts, head=head, tail=tail)

    def write(self, surfaces: Sequence[str], user: str = "") -> str:
        """Returns the prompt of a history.

        Args:
            surfaces: The surfaces of the items, oldest first.
            user (*optional*): The text of the user's semantic ID. Required if the head contains `{user}`.
        """
        history = self.separator.join(self.item.replace("{surface}", surface) for surface in surfaces)
        return self.head.replace("{user}", user) + history + self.tail


def with_chat_template(tokenizer: PreTrainedTokenizerBase, head: str, tail: str) -> tuple[str, str]:
    """Returns the head and the tail as parts of a user message in the tokenizer's chat template.

    The template's text before the message is put in front of the head. The template's text after the message, up to
    the beginning of the assistant's reply, is appended to the tail.
    """
    if tokenizer.chat_template is None:
        raise ValueError("chat_template is on, but the tokenizer has no chat template; set chat_template to false")
    history = "\N{OBJECT REPLACEMENT CHARACTER}"  # placeholder for the history
    turn = [{"role": "user", "content": head + history + tail}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    parts = text.split(history)
    if len(parts) != 2:
        raise ValueError(
            "the tokenizer's chat template must contain the user's message exactly once, but contains it "
            f"{len(parts) - 1} times; set chat_template to false"
        )
    return parts[0], parts[1]


@dataclass(frozen=True)
class TokenComparison:
    """The result of comparing the tokens of prompts with the tokens of their whole texts.

    The parts of a prompt are tokenised separately, whereas its whole text is tokenised at once.

    Args:
        num_prompts (`int`): Number of prompts.
        num_different (`int`): Number of prompts whose tokens differ from those of their whole texts.
        num_tokens (`int`): Number of tokens of all prompts, without BOS at their beginning.
        num_whole_tokens (`int`): Number of tokens of all whole texts, without BOS at their beginning.
    """

    num_prompts: int
    num_different: int
    num_tokens: int
    num_whole_tokens: int

    def __str__(self) -> str:
        share = self.num_different / self.num_prompts
        mean = self.num_tokens / self.num_prompts
        whole_mean = self.num_whole_tokens / self.num_prompts
        return (
            f"the parts of a prompt are tokenised separately; if the whole text were tokenised at once, {share:.1%} "
            f"of {self.num_prompts:,} prompts would have other tokens (over all prompts, {whole_mean:.1f} "
            f"tokens on average, instead of {mean:.1f})"
        )


def compare_tokens(prompts: Ragged, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> TokenComparison:
    """Compares the tokens of prompts with the tokens of their whole texts. Ignores BOS at the beginning of both.

    Args:
        prompts: Token ids, one prompt per row. At least one prompt is required.
        texts: The text of each prompt.
        tokenizer: The tokenizer that made the prompts.
    """
    whole = Ragged.from_lists(tokenizer(list(texts), add_special_tokens=False)["input_ids"])
    bos = tokenizer.bos_token_id
    parts = _without_first(prompts, bos)
    whole = _without_first(whole, bos)

    num_different = sum(not np.array_equal(parts[row], whole[row]) for row in range(len(parts)))
    return TokenComparison(len(parts), num_different, len(parts.values), len(whole.values))


def _without_first(rows: Ragged, token: int | None) -> Ragged:
    """Removes `token` from the beginning of each row that begins with it."""
    if token is None:
        return rows
    first = rows.head(1)
    start = np.zeros(len(rows), np.int64)
    start[first.row_ids] = first.values == token
    return rows.slice(start, rows.lengths)
