"""Computes the current policy's recommendations for each training prefix (the history before a training target).

The recommendations are found by beam search, and are also called beams. Self-play negatives are selected from them.
The prefixes are processed in parts of a few thousand. If a folder is given, the recommendations for each finished part
are saved to a file. If the process is killed, a later call with the same arguments computes only the parts that are
missing (see `parts.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.evaluation.rank import rank_histories
from trl_rec.items.trie import TokenTrie
from trl_rec.parts import PartStore
from trl_rec.ranges import COUNT
from trl_rec.schedule.prefixes import check_prefixes


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def self_play_beams(
    model: PreTrainedModel,
    prefixes: Dataset,
    prompt_format: PromptFormat,
    trie: TokenTrie,
    *,
    pad_token_id: int,
    num_beams: int = 40,
    folder: str | Path | None = None,
    key: str | None = None,
    part_size: int = 4096,
    **options: Any,
) -> np.ndarray:
    """Returns the policy's recommendations for each prefix: `(num_prefixes, num_beams)`, best first, padded with -1.

    Prefixes are divided among the processes, and every process returns the recommendations for all prefixes.

    Args:
        model: The current policy.
        prefixes: Prompts from `training_prefixes`.
        prompt_format: How histories are written.
        trie: Trie of the catalogue.
        pad_token_id: Id of the padding token.
        num_beams (*optional*, defaults to `40`): Number of beams, and of recommendations per prefix.
        folder (*optional*): Folder for the finished parts. A later call with the same prefixes, settings and key reads
            the parts instead of ranking again.
        key (*optional*): Identifies the weights of the model, and must differ between policies. Required if a folder
            is given.
        part_size (*optional*, defaults to `4096`): Number of prefixes per part.
        options: Passed to [`~trl_rec.evaluation.rank_histories`]; `exclude_history` defaults to `True`.
    """
    check_prefixes(prefixes)
    COUNT.check("part_size", part_size)
    COUNT.check("num_beams", num_beams)
    if folder is not None and not key:
        raise ValueError("to store beams in a folder, pass a key that identifies the model's weights")

    histories = split_rows(prefixes, "history")
    users = split_users(prefixes)
    trie = trie.to(model.device)
    ranking = {"pad_token_id": pad_token_id, "top_k": num_beams, **options}

    # 1. Identify each part by everything that its beams depend on: its histories, and a digest of the model's key, the
    # settings, the prompts and the catalogue. The batch size is left out, because it affects only rounding.
    digest = ""
    if folder is not None:
        settings = {name: value for name, value in options.items() if name != "batch_size"} | {"num_beams": num_beams}
        digest = _digest(repr((key, sorted(settings.items()))), prompt_format, trie, users)

    def _fingerprint(part: range) -> str:
        """Returns a hash of everything that the beams of a part depend on."""
        part_histories = histories.take(np.asarray(part))
        return _hash(digest, part_histories.offsets, part_histories.values)

    def _rank(part: range) -> np.ndarray:
        """Computes the beams of a part, `(len(part), num_beams)`."""
        rows = np.asarray(part)
        return rank_histories(model, histories.take(rows), prompt_format, trie, users=users[rows], **ranking).items

    # 2. Read the stored parts, and rank the prefixes of the missing parts.
    store = PartStore(None if folder is None else Path(folder), len(histories), part_size, _fingerprint)
    beams = np.empty((len(histories), num_beams), np.int32)
    hidden = not PartialState().is_local_main_process
    with tqdm(total=len(beams), desc="self-play", unit="prompt", disable=hidden) as progress:
        for part in store.parts:
            beams[part.start : part.stop] = _read_or_rank(store, part, _rank)
            progress.update(len(part))
    return beams


def _read_or_rank(store: PartStore, part: range, rank: Callable[[range], np.ndarray]) -> np.ndarray:
    """Returns the beams of a part, `(len(part), num_beams)`.

    If the part is not stored, all processes compute its beams together. Only the main process reads and writes files.
    """
    is_main = PartialState().is_main_process
    stored: np.ndarray | None = broadcast_object_list([store.read(part) if is_main else None])[0]
    if stored is not None:
        return stored
    ranked = rank(part)
    if is_main:
        store.write(part, ranked)
    return ranked


def _digest(settings: str, prompt_format: PromptFormat, trie: TokenTrie, users: np.ndarray) -> str:
    """Returns a hash of the settings, the prompt format and the trie, and of the users if the prompts contain the
    users' semantic IDs."""
    texts = [array for part in (prompt_format.pieces, prompt_format.paths) for array in (part.offsets, part.values)]
    if prompt_format.users is not None:  # the prompts contain the semantic IDs of users
        texts += [users, prompt_format.users.offsets, prompt_format.users.values]
    if len(prompt_format.separator):
        texts.append(prompt_format.separator)
    # The tokens of the trie and the items at its leaves identify the catalogue and its surface.
    tree = [tensor.cpu().numpy() for tensor in (trie.row_offsets, trie.child_tokens, trie.items)]
    return _hash(settings, prompt_format.prompt_head, prompt_format.prompt_tail, *texts, *tree)


def _hash(text: str, *arrays: np.ndarray) -> str:
    """Returns a hash of a text and of arrays of integers."""
    digest = hashlib.sha256(text.encode())
    # The lengths separate the arrays. Without them, moving a value to the next array would not change the hash.
    for array in arrays:
        digest.update(f"|{len(array)}|".encode() + np.ascontiguousarray(array, np.int64).tobytes())
    return digest.hexdigest()
