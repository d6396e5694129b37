"""What the current policy would recommend after each training prefix: the raw material of self-play.

The work goes in parts of a few thousand prefixes. In a folder each part is a file that appears when it is done, so
that a call that was killed goes on where it stopped. A part's fingerprint tells which prompts, settings and weights it
belongs to; one that does not match, or cannot be read, is made again.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm

from trl_rec.data.dataset import split_rows, split_users
from trl_rec.data.prompts import PromptFormat
from trl_rec.evaluation.rank import rank_histories
from trl_rec.files import atomic_file
from trl_rec.items.trie import TokenTrie
from trl_rec.ragged import Ragged
from trl_rec.schedule.prefixes import check_prefixes


if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


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
    """The policy's beams after each prefix, `(num_prefixes, num_beams)`, best first, -1 where there is none.

    Runs on several processes, each of which returns the whole.

    Args:
        model: The current policy.
        prefixes: What `training_prefixes` made.
        prompt_format: How histories are written.
        trie: The catalogue.
        pad_token_id: What prompts are padded with.
        num_beams: Width of the beam search.
        folder (*optional*): Where parts are kept, to be taken up by a later call with the same prefixes, settings and
            key.
        key (*optional*): Stands for the model's weights, a new one for every policy; needed with a folder.
        part_size: Prefixes of a part.
        options: As in [`~trl_rec.evaluation.rank_histories`]; `exclude_history` is on by default.
    """
    check_prefixes(prefixes)
    if part_size < 1 or num_beams < 1:
        raise ValueError(f"part_size={part_size}, num_beams={num_beams}: both must be at least 1")
    if folder is not None and not key:
        raise ValueError("beams that are kept in a folder need a key that stands for the model's weights; give one")
    histories, users, trie, parts = split_rows(prefixes, "history"), split_users(prefixes), trie.to(model.device), None
    if folder is not None:
        settings = {name: value for name, value in options.items() if name != "batch_size"} | {"num_beams": num_beams}
        parts = _Parts(Path(folder), _digest(repr((key, sorted(settings.items()))), prompt_format, trie, users))

    def made(number: int, part: Ragged, whose: np.ndarray) -> np.ndarray:
        """The beams of a part, from its file where there is one."""
        done = None if parts is None else parts.read(number, part)
        if done is None:
            settings = {"pad_token_id": pad_token_id, "top_k": num_beams, **options}
            done = rank_histories(model, part, prompt_format, trie, users=whose, **settings)
            if parts is not None:
                parts.write(number, part, done)
        return done

    beams = np.empty((len(histories), num_beams), np.int32)
    with tqdm(
        total=len(beams), desc="self-play", unit="prompt", disable=not PartialState().is_local_main_process
    ) as progress:
        for number, start in enumerate(range(0, len(beams), part_size)):
            rows = np.arange(start, min(start + part_size, len(beams)))
            part = histories.take(rows)
            beams[start : start + part_size] = made(number, part, users[rows])
            progress.update(len(part))
    return beams


@dataclass(frozen=True)
class _Parts:
    """The files of a call. Only the main process touches them, and the others do as it does.

    Args:
        folder (`Path`): Where they are.
        digest (`str`): Of all that decides the beams but the histories.
    """

    folder: Path
    digest: str

    def read(self, number: int, histories: Ragged) -> np.ndarray | None:
        """The beams of a part, or None where they have to be made; the same on every process."""
        found = self._read(number, histories) if PartialState().is_main_process else None
        return broadcast_object_list([found])[0]

    def write(self, number: int, histories: Ragged, beams: np.ndarray) -> None:
        """Writes a part, whole or not at all."""
        if not PartialState().is_main_process:
            return
        column = pa.FixedSizeListArray.from_arrays(pa.array(beams.ravel(), pa.int32()), beams.shape[1])
        table = pa.table({"beams": column}).replace_schema_metadata({"fingerprint": self._fingerprint(histories)})
        with atomic_file(self._path(number)) as temporary:
            pq.write_table(table, temporary)

    def _read(self, number: int, histories: Ragged) -> np.ndarray | None:
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s cannot be read (%s); it is made again", path, error)
            return None
        if (table.schema.metadata or {}).get(b"fingerprint") != self._fingerprint(histories).encode():
            logger.warning("%s belongs to other prompts, settings or weights; it is made again", path)
            return None
        return table["beams"].combine_chunks().flatten().to_numpy().reshape(len(histories), -1)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def _fingerprint(self, histories: Ragged) -> str:
        return _hash(self.digest, histories.offsets, histories.values)


def _digest(settings: str, prompt_format: PromptFormat, trie: TokenTrie, users: np.ndarray) -> str:
    rows = [array for part in (prompt_format.pieces, prompt_format.paths) for array in (part.offsets, part.values)]
    if prompt_format.users is not None:
        rows += [users, prompt_format.users.offsets, prompt_format.users.values]
    tree = [tensor.cpu().numpy() for tensor in (trie.row_offsets, trie.child_tokens, trie.items)]
    return _hash(settings, prompt_format.prompt_head, prompt_format.prompt_tail, *rows, *tree)


def _hash(text: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(f"|{len(array)}|".encode() + np.ascontiguousarray(array, np.int64).tobytes())
    return digest.hexdigest()
