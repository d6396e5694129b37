"""Tokenizes preferences given as texts or conversations. Unlike in TRL, a row may have several rejected completions.

The prompt and the completions are tokenized separately, so that no token contains text of both.
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
REPEATED = "num_repeated"  # temporary column: number of duplicates that were dropped from the row
A_TEXT = "a text"
MESSAGES = "a list of messages"
logger = logging.getLogger(__name__)


def tokenize_preferences(
    texts: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, num_proc: int | None = None
) -> Dataset:
    """Tokenizes rows of texts or conversations.

    A rejected completion is dropped if it has the same tokens as the chosen completion or an earlier rejected
    completion of the row. A row is dropped if its prompt is empty. The numbers of dropped completions and rows are
    logged.

    Args:
        texts: Rows with the columns `prompt`, `chosen` and `rejected`. `prompt` and `chosen` are both texts or both
            lists of messages. `rejected` is a single completion of the same kind, or a list of several. Conversations
            may have `tools` (a list, or JSON) and `chat_template_kwargs`, which are passed to the chat template. If
            `chosen` and `rejected` contain the prompt, first separate it with `texts.map(trl.extract_prompt)`, which
            supports only one rejected completion per row.
        tokenizer: The tokenizer. EOS is appended to completions that are texts. In conversations, the chat template
            ends the completions.
        max_length (*optional*): Maximum number of tokens of a prompt and its longest completion together. A prompt
            that is too long for this is truncated at the beginning. A row is dropped if a completion leaves no room
            for the prompt.
        num_proc (*optional*): Number of processes.

    Returns:
        `datasets.Dataset` with `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).
    """
    missing = TEXT.difference(texts.column_names)
    if missing:
        raise ValueError(
            f"the preferences have the columns {', '.join(texts.column_names)}; they need prompt, chosen and rejected"
        )
    if not len(texts):  # `map` does not change the columns of an empty dataset
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
            "dropped rejected completions with the same tokens as the chosen completion or an earlier rejected "
            "completion of their row (number: %d)",
            repeated,
        )
    return fit_preferences(leave_out_empty_prompts(rows.remove_columns(REPEATED)), max_length)


def _tokenize(row: dict[str, Any], number: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    # 1. Put a single rejected text or conversation into a list.
    rejected = row["rejected"]
    if not isinstance(rejected, list) or (rejected and isinstance(rejected[0], dict)):
        rejected = [rejected]
    named = [("prompt", row["prompt"]), ("chosen", row["chosen"])]
    _check_alike([*named, *(("rejected", completion) for completion in rejected)], number)

    # 2. Tokenize the prompt and each completion separately.
    if isinstance(row["prompt"], str):
        prompt = tokenizer(row["prompt"])["input_ids"]
        chosen_ids, *rejected_ids = (_ended(text, tokenizer) for text in (row["chosen"], *rejected))
    else:
        options = _template_options(row, number)
        prompt, chosen_ids, *rejected_ids = _chat(
            row["prompt"], [row["chosen"], *rejected], tokenizer, options, number
        )

    # 3. Drop rejected completions that repeat the chosen or an earlier rejected completion.
    distinct = [list(ids) for ids in dict.fromkeys(map(tuple, rejected_ids)) if list(ids) != chosen_ids]
    return {
        "prompt_ids": prompt,
        "chosen_ids": chosen_ids,
        "rejected_ids": distinct,
        REPEATED: len(rejected_ids) - len(distinct),
    }


def _check_alike(values: list[tuple[str, Any]], number: int) -> None:
    """Raises ValueError unless all values of a row are texts, or all are lists of messages.

    Args:
        values: Pairs of a column name and a value.
        number: Index of the row, for error messages.
    """
    kinds = [(name, _kind(value)) for name, value in values]
    for name, kind in kinds:
        if kind not in (A_TEXT, MESSAGES):
            raise ValueError(
                f"row {number}: {name} is {kind}; give a text or a list of messages, or leave the row out"
            )
        if kind != kinds[0][1]:
            raise ValueError(
                f"row {number}: prompt is {kinds[0][1]}, but {name} is {kind}; give texts only, or lists of messages "
                "only"
            )


def _kind(value: object) -> str:
    """Describes the kind of a value, for error messages."""
    if isinstance(value, str):
        return A_TEXT
    messages = isinstance(value, list) and all(isinstance(message, dict) for message in value)
    if messages:
        return MESSAGES
    return "null" if value is None else f"{value!r:.40}"


def _template_options(row: dict[str, Any], number: int) -> dict[str, Any]:
    """Returns the arguments that a row passes to the chat template in addition to its messages."""
    tools = row.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"row {number}: tools is a string that is not JSON ({error}); give a list of tools"
            ) from error
    if not isinstance(tools, list | None):
        raise ValueError(f"row {number}: tools is {tools!r:.40}; give a list of tools")

    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict):
        raise ValueError(f"row {number}: chat_template_kwargs is {options!r:.40}; give a mapping from names to values")
    return {"tools": tools, **options}


def _ended(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens of a text, with EOS at the end."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token to end a text with; set tokenizer.eos_token")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _chat(
    prompt: list[dict[str, Any]],
    completions: list[list[dict[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    options: dict[str, Any],
    number: int,
) -> list[list[int]]:
    """Returns one list of token ids for the prompt, followed by one list for each completion.

    A chat template may write the end of the prompt differently if an answer follows. Therefore the prompt is the
    longest common beginning of the unanswered prompt and all answered conversations.
    """
    # A template is a program that runs on the row's data, so it can raise any error.
    try:
        awaiting: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **options)
        answered: list[Any] = [
            tokenizer.apply_chat_template(prompt + completion, tokenize=False, **options) for completion in completions
        ]
    except Exception as error:
        if not tokenizer.chat_template:
            raise ValueError(
                "the preferences are conversations, but the tokenizer has no chat template; set "
                "tokenizer.chat_template, or give texts"
            ) from error
        raise ValueError(
            f"row {number}: the chat template cannot be applied to the messages ({error}); correct the row or the "
            "template"
        ) from error
    shared = commonprefix([awaiting, *answered])
    texts = [shared, *(text[len(shared) :] for text in answered)]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids
