"""Preferences given as texts or conversations become token ids.

Prompt and completions are tokenised apart, so that the boundary between them never depends on a merge. Unlike TRL's, a
row may reject several completions.
"""

from __future__ import annotations

import json
import logging
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, List, Value

from trl_rec.trainer.softmax_dpo.tokens import fit_preferences, leave_out_empty_prompts


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXT = {"prompt", "chosen", "rejected"}
IDS = List(Value("int64"))
FEATURES = {"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": List(IDS)}
REPEATED = "num_repeated"  # a column that is summed up and taken away
A_TEXT, MESSAGES = "a text", "a list of messages"
logger = logging.getLogger(__name__)


def tokenize_preferences(
    texts: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, num_proc: int | None = None
) -> Dataset:
    """Token rows of texts or conversations. Rejected ones that have the chosen one's tokens, or those of an earlier
    one of the row, are left out, and their number is logged.

    Args:
        texts: `prompt` and `chosen` are texts, or both lists of messages, `rejected` is one or a list of such.
            Conversations may come with `tools` (a list, or JSON) and `chat_template_kwargs`, which their chat template
            is given. Where the prompt stands only as the beginning of `chosen` and `rejected`,
            `texts.map(trl.extract_prompt)` takes it out of one chosen and one rejected.
        tokenizer: Ends every text with its EOS; conversations end as its chat template says.
        max_length (*optional*): Most tokens of a prompt and its longest completion: longer prompts lose their
            beginning, and rows without room for any of the prompt are left out, as are those without a prompt; both
            numbers are logged.
        num_proc (*optional*): Processes to tokenise with.

    Returns:
        `datasets.Dataset` with `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).
    """
    if not len(texts):  # which `map` would leave as it is
        return Dataset.from_dict({name: [] for name in FEATURES}, Features(FEATURES))
    rows = texts.map(
        _tokenize,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=texts.column_names,
        features=Features({**FEATURES, REPEATED: Value("int64")}),
        num_proc=num_proc,
        desc="tokenizing preferences",
    )
    repeated = sum(rows[REPEATED][:])
    if repeated:
        logger.warning(
            "left out %d rejected completions: they have the tokens of the chosen one, or of an earlier one of their "
            "row",
            repeated,
        )
    return fit_preferences(leave_out_empty_prompts(rows.remove_columns(REPEATED)), max_length)


def _tokenize(row: dict[str, Any], number: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    several = row["rejected"]
    if not isinstance(several, list) or (several and isinstance(several[0], dict)):  # one text, or the messages of one
        several = [several]
    _check_mixed(
        [("prompt", row["prompt"]), ("chosen", row["chosen"]), *(("rejected", one) for one in several)], number
    )
    if isinstance(row["prompt"], str):
        prompt = tokenizer(row["prompt"])["input_ids"]
        chosen, *rejected = (_ended(text, tokenizer) for text in (row["chosen"], *several))
    else:
        tools = row.get("tools")
        options = {
            "tools": json.loads(tools) if isinstance(tools, str) else tools,
            **(row.get("chat_template_kwargs") or {}),
        }
        prompt, chosen, *rejected = _chat(row["prompt"], [row["chosen"], *several], tokenizer, options)
    distinct = [list(ids) for ids in dict.fromkeys(map(tuple, rejected)) if list(ids) != chosen]
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen,
        "rejected_ids": distinct,
        REPEATED: len(rejected) - len(distinct),
    }


def _check_mixed(values: list[tuple[str, Any]], number: int) -> None:
    """Refuses a row whose values, each with the name of its column, are not all texts or all lists of messages."""
    kinds = [(name, _kind(value)) for name, value in values]
    for name, kind in kinds:
        if kind not in (A_TEXT, MESSAGES):
            raise ValueError(
                f"row {number}: {name} holds {kind}; give a text or a list of messages, or leave the row out"
            )
        if kind != kinds[0][1]:
            raise ValueError(f"row {number}: prompt holds {kinds[0][1]}, {name} {kind}; write both in the same way")


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return A_TEXT
    messages = isinstance(value, list) and all(isinstance(message, dict) for message in value)
    return MESSAGES if messages else "a null" if value is None else f"{value!r:.40}"


def _ended(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to end a text with; set tokenizer.eos_token")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _chat(
    prompt: list[dict[str, Any]],
    completions: list[list[dict[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any],
) -> list[list[int]]:
    """The prompt's ids and each completion's. A template may write a prompt that is to be answered otherwise than one
    that has been answered: the prompt ends where they part."""
    asked: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **options)
    answered: list[Any] = [
        tokenizer.apply_chat_template(prompt + completion, tokenize=False, **options) for completion in completions
    ]
    shared = commonprefix([asked, *answered])
    texts = [shared, *(text[len(shared) :] for text in answered)]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
