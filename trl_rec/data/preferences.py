"""Preferences as token ids: one prompt, one chosen and any number of rejected completions a row.

They come as items (a preference table: `user history chosen rejected`), as text, or as conversations. Prompt and completions
are tokenised apart, so that the boundary between them never depends on a merge. A prompt that is too long loses its oldest
part; a completion is never cut.
"""

from __future__ import annotations

from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value, load_dataset

from trl_rec.data.dataset import refuse_unless_train, split_rows
from trl_rec.data.prompts import PromptFormat
from trl_rec.items.catalog import ItemCatalog
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
TABLE = {"history", "chosen", "rejected"}
TEXT = {"prompt", "chosen", "rejected"}
TOKENS = {"prompt_ids", "chosen_ids", "rejected_ids"}
IDS = List(Value("int64"))


def read_preferences(source: str, catalog: ItemCatalog | None = None) -> Dataset:
    """Preferences from a JSONL, JSON, Parquet or CSV file, or the training split of a dataset on the hub.

    Args:
        source: The file, or the hub id.
        catalog (*optional*): With it, and with a column `history`, the rows are a preference table whose items are given by
            their ids.
    """
    kind = FILES.get(Path(source).suffix)
    if kind is not None and not Path(source).is_file():
        raise ValueError(f"there is no file {source}; name a file of preferences, or a dataset on the hub")
    rows = load_dataset(source, split="train") if kind is None else load_dataset(kind, data_files=source, split="train")
    if catalog is None or "history" not in rows.column_names:
        return rows
    table = rows.with_format("arrow")[:]
    columns = {name: _indices(table[name].combine_chunks(), catalog) for name in ("history", "chosen", "rejected")}
    return Dataset(pa.table(columns), split="train")


def preference_rows(
    table: Dataset, prompt_format: PromptFormat, *, max_length: int | None = None, training: bool = True
) -> Dataset:
    """Token rows of a preference table.

    Args:
        table: `history` and `rejected` are lists of item indices, `chosen` is one.
        prompt_format: How histories and items are written.
        max_length (*optional*): Most tokens of a prompt and its longest completion; the oldest history goes first.
        training (*optional*, defaults to `True`): Whether something learns from the rows; a table of a validation or test
            split is then refused.

    Returns:
        `datasets.Dataset` with `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).
    """
    if training and table.split is not None:
        refuse_unless_train(table, "a preference")
    chosen = table.select_columns(["chosen"]).with_format("numpy")[:]["chosen"].astype(np.int64)
    history, rejected = _items(table, "history"), _items(table, "rejected")
    for name, items in (("history", history), ("chosen", Ragged.from_lengths(chosen, chosen * 0 + 1)), ("rejected", rejected)):
        _refuse_unknown(name, items, len(prompt_format.paths))
    clash = rejected.row_ids[rejected.values == chosen[rejected.row_ids]]
    if len(clash):
        raise ValueError(f"row {clash[0]}: item {chosen[clash[0]]} is both chosen and rejected; take it out of one of the two")
    columns = {
        "prompt_ids": prompt_format.encode(history, max_length=max_length).to_arrow(),
        "chosen_ids": prompt_format.paths.take(chosen).to_arrow(),
        "rejected_ids": pa.ListArray.from_arrays(
            pa.array(rejected.offsets, pa.int32()), prompt_format.paths.take(rejected.values).to_arrow()
        ),
    }
    return Dataset(pa.table(columns), split=table.split)


def _items(table: Dataset, column: str) -> Ragged:
    """The column's rows; where all are empty, Arrow does not know that they would hold numbers."""
    rows = split_rows(table, column)
    return Ragged(rows.values.astype(np.int64), rows.offsets)


def _refuse_unknown(name: str, items: Ragged, num_items: int) -> None:
    outside = np.flatnonzero((items.values < 0) | (items.values >= num_items))
    if len(outside):
        raise ValueError(
            f"row {items.row_ids[outside[0]]}: {name} has the item {items.values[outside[0]]}, but the catalogue's are 0 to "
            f"{num_items - 1}; give the indices of its items"
        )


def refuse_empty(rows: Dataset) -> None:
    """Refuses token rows in which a prompt or a completion has no token."""
    table = rows.select_columns(sorted(TOKENS)).with_format("arrow")[:]
    columns = {name: (table[name], np.arange(len(rows))) for name in ("prompt_ids", "chosen_ids")}
    several = Ragged.from_lengths(np.arange(0), pc.list_value_length(table["rejected_ids"]).to_numpy())
    columns["rejected_ids"] = pc.list_flatten(table["rejected_ids"]), several.row_ids
    for name, (texts, numbers) in columns.items():
        if not pa.types.is_null(texts.type) and (place := pc.index(pc.list_value_length(texts), 0).as_py()) >= 0:
            raise ValueError(f"row {numbers[place]}: {name} holds a text without any token; leave it out")


def tokenize_preferences(
    texts: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None, num_proc: int | None = None
) -> Dataset:
    """Token rows of texts or conversations.

    Args:
        texts: `prompt` and `chosen` are texts or lists of messages, `rejected` is one or a list of such.
        tokenizer: Ends every text with its EOS; conversations end as its chat template says.
        max_length (*optional*): Most tokens of a prompt and its longest completion: longer prompts lose their beginning, and
            rows without room for any of the prompt are left out.
        num_proc (*optional*): Processes to tokenise with.

    Returns:
        `datasets.Dataset` with `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).
    """
    rows = texts.map(
        _tokenize,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=texts.column_names,
        features=Features({"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": List(IDS)}),
        num_proc=num_proc,
        desc="tokenizing preferences",
    )
    return rows.filter(len, input_columns="prompt_ids", num_proc=num_proc, desc="leaving out what is too long")


def _indices(ids: pa.Array, catalog: ItemCatalog) -> pa.Array:
    """Indices in place of ids, in lists of them too."""
    if not pa.types.is_list(ids.type):
        return pa.array(catalog.index_of(ids.cast(pa.string())), pa.int32())
    rows = Ragged.from_arrow(ids)
    return Ragged(catalog.index_of(pa.array(rows.values).cast(pa.string())), rows.offsets).to_arrow()


def _tokenize(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> dict[str, Any]:
    several = row["rejected"]
    if isinstance(several, str) or (several and isinstance(several[0], dict)):  # one text, or the messages of one
        several = [several]
    if isinstance(row["prompt"], str):
        prompt = tokenizer(row["prompt"])["input_ids"]
        chosen, *rejected = (_ended(text, tokenizer) for text in (row["chosen"], *several))
    else:
        prompt, chosen, *rejected = _chat(row["prompt"], [row["chosen"], *several], tokenizer)
    if max_length is not None:
        room = max_length - max(map(len, (chosen, *rejected)))
        prompt = prompt[-room:] if room > 0 else []
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}


def _ended(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _chat(
    prompt: list[dict[str, Any]], completions: list[list[dict[str, Any]]], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The prompt's ids and each completion's. A template may write a prompt that is to be answered otherwise than one that
    has been answered: the prompt ends where they part."""
    asked: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    answered: list[Any] = [tokenizer.apply_chat_template(prompt + completion, tokenize=False) for completion in completions]
    shared = commonprefix([asked, *answered])
    texts = [shared, *(text[len(shared) :] for text in answered)]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]
