"""Vectors of texts, from a sentence encoder or from the words alone.

Vectors are cached in chunks of texts, under a hash of encoder and texts, so a call that was interrupted goes on where
it stopped.
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
from trl_rec.semantic_ids.storage import cached_tensor


WORDS = "words"
CHUNK = 1 << 11  # texts per file of the cache
BUCKETS = 1 << 15  # the number that words are hashed to
WIDTH = 256  # of the vectors that are made from words


class TextEncoder(Protocol):
    """Makes vectors of texts. `fingerprint` changes with everything that the vectors depend on."""

    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Float32 vectors of length 1 or 0, `(len(texts), width)`."""
        ...


def load_text_encoder(name_or_path: str, *, batch_size: int = 64) -> TextEncoder:
    """Loads a text encoder. The encoder is not trained.

    Args:
        name_or_path (`str`): `"words"`, or a sentence-transformers model: its hub id or a folder.
        batch_size (`int`, *optional*, defaults to `64`): Texts that a sentence encoder reads at a time.
    """
    return WordEncoder() if name_or_path == WORDS else SentenceEncoder(name_or_path, batch_size=batch_size)


def text_vectors(texts: Sequence[str], encoder: TextEncoder, *, cache: Path | None = None) -> Tensor:
    """The vectors of texts.

    Args:
        texts (`Sequence[str]`): The texts.
        encoder (`TextEncoder`): What [`load_text_encoder`] returned.
        cache (`Path`, *optional*): A folder that stores the vectors. They are read from there if it contains them.

    Returns:
        `torch.Tensor` of shape `(len(texts), width)`, float32: The vectors.
    """
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    progress = tqdm(chunks, desc="encoding texts", unit=f" x {CHUNK} texts", disable=len(chunks) < 2)
    vectors = [cached_tensor(cache, "text", _cache_key(encoder, chunk), partial(encoder, chunk)) for chunk in progress]
    return torch.cat(vectors)


class WordEncoder:
    """Sums one random direction per distinct word of a text, and one per distinct beginning of four letters.

    Texts that share words get similar vectors. This encoder learns nothing and needs no file. It is meant for tests,
    for first looks, and for catalogues whose words say enough. Words are hashed, so two words may get the same
    direction.
    """

    fingerprint = f"{WORDS}-{BUCKETS}-{WIDTH}"

    def __init__(self) -> None:
        self._directions = torch.randn(BUCKETS, WIDTH, generator=torch.Generator().manual_seed(0))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The vectors of texts, `(len(texts), WIDTH)`; zeros for a text without words."""
        rows: list[Any] = [self._buckets(text) for text in texts]
        words = Ragged.from_lists(rows)
        total = torch.nn.functional.embedding_bag(
            torch.from_numpy(words.values),
            self._directions,
            torch.from_numpy(words.offsets),
            mode="sum",
            include_last_offset=True,
        )
        return torch.nn.functional.normalize(total)

    @staticmethod
    def _buckets(text: str) -> np.ndarray:
        words = re.findall(r"\w+", text.lower())
        # The hyphen distinguishes a beginning from a word of four letters.
        parts = {*words, *(f"{word[:4]}-" for word in words if len(word) > 4)}
        return np.unique([zlib.crc32(part.encode()) % BUCKETS for part in parts]).astype(np.int64)


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        name_or_path (`str`): Hub id or folder.
        batch_size (`int`, *optional*, defaults to `64`): Texts per forward pass.
    """

    def __init__(self, name_or_path: str, *, batch_size: int = 64) -> None:
        try:
            from sentence_transformers import SentenceTransformer  # an extra, and slow to import
        except ImportError as error:
            raise ValueError(
                f"text_encoder={name_or_path!r} needs the package sentence-transformers; pip install "
                f"'trl-rec[semantic-ids]', or choose {WORDS!r}"
            ) from error
        try:
            self._model = SentenceTransformer(name_or_path)
        except Exception as error:  # whatever the files of a folder provoke in the libraries that read them
            problem = (str(error).splitlines() or [repr(error)])[0]
            raise ValueError(
                f"text_encoder={name_or_path!r} is neither a folder nor the hub id of a sentence encoder that can be "
                f"read: {problem}"
            ) from error
        self._batch_size = batch_size

        # Structure, tokenizer, prompts and weights determine the vectors; the name does not.
        digest = hashlib.sha256(f"{self._model} {self._model.tokenizer} {self._model.prompts}".encode())
        for name, weight in sorted(self._model.state_dict().items()):
            digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The vectors of texts, `(len(texts), width)`."""
        vectors: Tensor = self._model.encode(
            list(texts), batch_size=self._batch_size, convert_to_tensor=True, normalize_embeddings=True
        )
        return vectors.float().cpu()


def _cache_key(encoder: TextEncoder, texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join([encoder.fingerprint, *texts]).encode()).hexdigest()[:16]
