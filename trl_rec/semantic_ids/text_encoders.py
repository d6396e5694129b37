"""Texts of items and users as vectors: by a sentence encoder, or from their words alone.

Vectors are kept by what they were made from, a chunk of texts at a time, so that a long encoding goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.storage import kept_tensor


WORDS = "words"
CHUNK = 1 << 11  # texts that are kept together
BUCKETS = 1 << 15  # of words, by their hash
WIDTH = 256  # of a vector from words


class TextEncoder(Protocol):
    """What makes vectors of texts."""

    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """`(len(texts), width)` float32, of length 1 or 0."""
        ...


def load_text_encoder(name_or_path: str, *, batch_size: int = 64) -> TextEncoder:
    """The encoder: `"words"`, or a sentence-transformers model by hub id or folder, which stays as it is.

    Args:
        name_or_path: What to load.
        batch_size (*optional*, defaults to `64`): Texts that a sentence encoder reads at a time.
    """
    return WordEncoder() if name_or_path == WORDS else SentenceEncoder(name_or_path, batch_size=batch_size)


def text_vectors(texts: Sequence[str], encoder: TextEncoder, *, cache: Path | None = None) -> Tensor:
    """`(len(texts), width)` float32.

    Args:
        texts: One a row.
        encoder: What [`load_text_encoder`] returned.
        cache (*optional*): A folder in which vectors are kept, and looked for first.
    """
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    progress = tqdm(chunks, desc="encoding texts", unit=f" x {CHUNK} texts", disable=len(chunks) < 2)
    return torch.cat([kept_tensor(cache, "text", _key(encoder, chunk), partial(encoder, chunk)) for chunk in progress])


class WordEncoder:
    """A sum over a text's different words and their beginnings of four letters, a random direction each: texts that
    share words are near each other.

    It learns nothing and needs no file, so that it serves tests, first looks, and catalogues in which words say
    enough. Words are told apart by a hash, and two of `BUCKETS` may fall together.
    """

    fingerprint = f"{WORDS}-{BUCKETS}-{WIDTH}"

    def __init__(self) -> None:
        self._directions = torch.randn(BUCKETS, WIDTH, generator=torch.Generator().manual_seed(0))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows: list[Any] = [self._buckets(text) for text in texts]
        words = Ragged.from_lists(rows)
        tokens, offsets = torch.from_numpy(words.values), torch.from_numpy(words.offsets)
        total = torch.nn.functional.embedding_bag(
            tokens, self._directions, offsets, mode="sum", include_last_offset=True
        )
        return torch.nn.functional.normalize(total)

    @staticmethod
    def _buckets(text: str) -> np.ndarray:
        words = re.findall(r"\w+", text.lower())
        parts = {*words, *(f"{word[:4]}-" for word in words if len(word) > 4)}
        return np.unique([zlib.crc32(part.encode()) % BUCKETS for part in parts]).astype(np.int64)


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        name_or_path (`str`): Hub id or folder.
        batch_size (`int`, *optional*, defaults to `64`): Texts a forward pass.
    """

    def __init__(self, name_or_path: str, *, batch_size: int = 64) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # it is an extra, and takes seconds
        except ImportError as error:
            raise ValueError(
                f"text_encoder={name_or_path!r} needs the package sentence-transformers; pip install 'trl-rec[semantic-ids]', "
                f"or choose {WORDS!r}"
            ) from error
        try:
            self._model, self._batch_size = SentenceTransformer(name_or_path), batch_size
        except (OSError, ValueError) as error:
            raise ValueError(
                f"text_encoder={name_or_path!r} is no folder or hub id of a sentence encoder: {error}"
            ) from error
        digest = hashlib.sha256(f"{self._model} {self._model.tokenizer} {self._model.prompts}".encode())
        for name, weight in sorted(self._model.state_dict().items()):
            digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, convert_to_tensor=True, normalize_embeddings=True
        )
        return vectors.float().cpu()


def _key(encoder: TextEncoder, texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join([encoder.fingerprint, *texts]).encode()).hexdigest()[:16]
