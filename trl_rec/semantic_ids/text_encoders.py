"""Embeds texts as vectors, with a sentence encoder or with hashed words.

If a cache folder is given, the vectors are cached in chunks, each under a hash of the encoder and the chunk's texts.
After an interruption, the same call therefore computes only the missing chunks.
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
CHUNK = 1 << 11  # number of texts per cache file
BUCKETS = 1 << 15  # number of buckets that words are hashed into
WIDTH = 256  # width of the vectors of WordEncoder


class TextEncoder(Protocol):
    """Maps texts to vectors. `fingerprint` identifies everything that the vectors depend on except the texts."""

    fingerprint: str

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns float32 vectors `(len(texts), width)`, each of norm 1 or 0."""
        ...


def load_text_encoder(name_or_path: str, *, batch_size: int = 64) -> TextEncoder:
    """Loads a text encoder, which is used without further training.

    Args:
        name_or_path (`str`): `"words"` for [`WordEncoder`], or the hub id or folder of a sentence-transformers model.
        batch_size (`int`, *optional*, defaults to `64`): Number of texts per forward pass of a sentence encoder.
    """
    return WordEncoder() if name_or_path == WORDS else SentenceEncoder(name_or_path, batch_size=batch_size)


def text_vectors(texts: Sequence[str], encoder: TextEncoder, *, cache: Path | None = None) -> Tensor:
    """Embeds texts, or reads their vectors from the cache.

    Args:
        texts (`Sequence[str]`): The texts.
        encoder (`TextEncoder`): An encoder from [`load_text_encoder`].
        cache (`Path`, *optional*): Folder in which the vectors are cached.

    Returns:
        `torch.Tensor` of shape `(len(texts), width)`, float32: The vectors.
    """
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    progress = tqdm(chunks, desc="encoding texts", unit=f" x {CHUNK} texts", disable=len(chunks) < 2)
    vectors = [cached_tensor(cache, "text", _cache_key(encoder, chunk), partial(encoder, chunk)) for chunk in progress]
    return torch.cat(vectors)


class WordEncoder:
    """Embeds a text as a normalised sum of random vectors, one for each distinct word and word prefix of the text.

    Each word of more than four characters also contributes its first four characters as a prefix. Texts that share
    words get similar vectors. This encoder is not trained and needs no files. It is meant for tests, quick
    experiments, and catalogues in which related items share words. Words are hashed, so two words may get the same
    random vector.
    """

    fingerprint = f"{WORDS}-{BUCKETS}-{WIDTH}"

    def __init__(self) -> None:
        self._directions = torch.randn(BUCKETS, WIDTH, generator=torch.Generator().manual_seed(0))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns the vectors of texts, `(len(texts), WIDTH)`; zeros for texts without words."""
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
        # The hyphen distinguishes a prefix from a word of four characters.
        parts = {*words, *(f"{word[:4]}-" for word in words if len(word) > 4)}
        return np.unique([zlib.crc32(part.encode()) % BUCKETS for part in parts]).astype(np.int64)


class SentenceEncoder:
    """Embeds texts with a sentence-transformers model.

    Args:
        name_or_path (`str`): Hub id or folder of the model.
        batch_size (`int`, *optional*, defaults to `64`): Number of texts per forward pass.
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
        except Exception as error:  # the libraries that read the files may raise anything
            problem = (str(error).splitlines() or [repr(error)])[0]
            raise ValueError(
                f"text_encoder={name_or_path!r} cannot be loaded as a folder or hub id of a sentence-transformers "
                f"model ({problem}); check the name, or choose {WORDS!r}"
            ) from error
        self._batch_size = batch_size

        # The vectors depend on the model's structure, tokenizer, prompts and weights, but not on its name.
        digest = hashlib.sha256(f"{self._model} {self._model.tokenizer} {self._model.prompts}".encode())
        for name, weight in sorted(self._model.state_dict().items()):
            digest.update(name.encode() + weight.float().cpu().numpy().tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns the vectors of texts, `(len(texts), width)`."""
        vectors: Tensor = self._model.encode(
            list(texts), batch_size=self._batch_size, convert_to_tensor=True, normalize_embeddings=True
        )
        return vectors.float().cpu()


def _cache_key(encoder: TextEncoder, texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join([encoder.fingerprint, *texts]).encode()).hexdigest()[:16]
