"""The items that the current policy recommends after each training prefix, from which self-play takes its negatives.

The prefixes are ranked in parts of a few thousand. With a folder, each finished part becomes a file, so that a call
that was killed resumes where it stopped. A file records a fingerprint of the prompts, settings and weights that its
beams depend on; a part whose file does not match, or cannot be read, is computed again.
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
    """The policy's recommendations after each prefix: `(num_prefixes, num_beams)`, best first, -1 for a missing one.

    The work is divided over the processes, and each of them returns all beams.

    Args:
        model: The current policy.
        prefixes: Prompts from `training_prefixes`.
        prompt_format: How histories are written.
        trie: The catalogue.
        pad_token_id: Token that pads the prompts.
        num_beams (*optional*, defaults to `40`): Width of the beam search.
        folder (*optional*): Folder for the finished parts. A later call with the same prefixes, settings and key reads
            them instead of ranking again.
        key (*optional*): Identifies the model's weights, and must be a new one for every policy. Required with a
            folder.
        part_size (*optional*, defaults to `4096`): Number of prefixes per part.
        options: As in [`~trl_rec.evaluation.rank_histories`]; `exclude_history` is on by default.
    """
    check_prefixes(prefixes)
    if part_size < 1 or num_beams < 1:
        raise ValueError(f"part_size={part_size}, num_beams={num_beams}: both must be at least 1")
    if folder is not None and not key:
        raise ValueError("beams that are kept in a folder need a key that identifies the model's weights; give one")
    histories = split_rows(prefixes, "history")
    users = split_users(prefixes)
    trie = trie.to(model.device)

    # The files of finished parts. The batch size does not change beams, so it is not in the fingerprint.
    files = None
    if folder is not None:
        settings = {name: value for name, value in options.items() if name != "batch_size"} | {"num_beams": num_beams}
        files = _PartFiles(Path(folder), _digest(repr((key, sorted(settings.items()))), prompt_format, trie, users))

    # A part comes from its file, or is ranked and then written.
    def _rank_part(number: int, part: Ragged, part_users: np.ndarray) -> np.ndarray:
        beams = None if files is None else files.read(number, part)
        if beams is None:
            settings = {"pad_token_id": pad_token_id, "top_k": num_beams, **options}
            beams = rank_histories(model, part, prompt_format, trie, users=part_users, **settings)
            if files is not None:
                files.write(number, part, beams)
        return beams

    # Parts follow the order of the prefixes, as their numbers are the names of their files.
    beams = np.empty((len(histories), num_beams), np.int32)
    is_quiet = not PartialState().is_local_main_process
    with tqdm(total=len(beams), desc="self-play", unit="prompt", disable=is_quiet) as progress:
        for number, start in enumerate(range(0, len(beams), part_size)):
            rows = np.arange(start, min(start + part_size, len(beams)))
            beams[rows] = _rank_part(number, histories.take(rows), users[rows])
            progress.update(len(rows))
    return beams


@dataclass(frozen=True)
class _PartFiles:
    """Reads and writes the parts of one call. Only the main process uses the files; the others receive its results.

    Args:
        folder (`Path`): Folder of the files.
        digest (`str`): Hash of everything that the beams depend on, except the histories.
    """

    folder: Path
    digest: str

    def read(self, number: int, histories: Ragged) -> np.ndarray | None:
        """The beams of a part, or None if they have to be computed. Every process returns the same."""
        beams = self._read_file(number, histories) if PartialState().is_main_process else None
        return broadcast_object_list([beams])[0]

    def write(self, number: int, histories: Ragged, beams: np.ndarray) -> None:
        """Writes a part atomically."""
        if not PartialState().is_main_process:
            return

        # One fixed-size list per prefix. The fingerprint is in the file's metadata, so that one write saves both.
        column = pa.FixedSizeListArray.from_arrays(pa.array(beams.ravel(), pa.int32()), beams.shape[1])
        table = pa.table({"beams": column}).replace_schema_metadata({"fingerprint": self._fingerprint(histories)})
        with atomic_file(self._path(number)) as temporary:
            pq.write_table(table, temporary)

    def _read_file(self, number: int, histories: Ragged) -> np.ndarray | None:
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s cannot be read (%s); its part is computed again", path, error)
            return None

        fingerprint = (table.schema.metadata or {}).get(b"fingerprint")
        if fingerprint != self._fingerprint(histories).encode():
            logger.warning("%s belongs to other prompts, settings or weights; its part is computed again", path)
            return None
        return table["beams"].combine_chunks().flatten().to_numpy().reshape(len(histories), -1)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def _fingerprint(self, histories: Ragged) -> str:
        return _hash(self.digest, histories.offsets, histories.values)


def _digest(settings: str, prompt_format: PromptFormat, trie: TokenTrie, users: np.ndarray) -> str:
    """A hash of the settings, of how prompts are written, and of the catalogue's tokens."""
    texts = [array for part in (prompt_format.pieces, prompt_format.paths) for array in (part.offsets, part.values)]
    if prompt_format.users is not None:  # prompts name users, so the users of the prefixes matter
        texts += [users, prompt_format.users.offsets, prompt_format.users.values]
    # With the tokens and the items at its leaves, the trie stands for the catalogue and its surface.
    tree = [tensor.cpu().numpy() for tensor in (trie.row_offsets, trie.child_tokens, trie.items)]
    return _hash(settings, prompt_format.prompt_head, prompt_format.prompt_tail, *texts, *tree)


def _hash(text: str, *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(text.encode())
    # The lengths separate the arrays: otherwise two of them could trade values at their border unnoticed.
    for array in arrays:
        digest.update(f"|{len(array)}|".encode() + np.ascontiguousarray(array, np.int64).tobytes())
    return digest.hexdigest()
