"""Downloads MovieLens-100k once into the cache folder of the user. This package does not contain the data.

The files are first requested from GroupLens, with a short timeout. If this fails, pip downloads the wheel of recbole
1.2.1, which contains the same ratings. The wheel is opened as a zip file and not installed. Either download is
verified by its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path

from trl_rec.data.readers.files import find_file
from trl_rec.files import atomic_folder
from trl_rec.printing import first_line


logger = logging.getLogger(__name__)

GROUPLENS = {"interactions": "u.data", "items": "u.item", "users": "u.user"}
RECBOLE = {"interactions": "ml-100k.inter", "items": "ml-100k.item", "users": "ml-100k.user"}

URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
ZIP_SHA256 = "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
# SHA-256 of u.data. ml-100k.inter without its header has the same content.
RATINGS_SHA256 = "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"


class FetchError(ValueError):
    """Raised if a dataset cannot be downloaded, verified or cached."""


def ml_100k_folder() -> Path:
    """Returns the cached folder with MovieLens-100k, downloaded if necessary. Raises FetchError if that fails."""
    folder = cache_folder() / "ml-100k"
    if _is_cached(folder):
        return folder

    reasons = []
    for origin, fetch in (("GroupLens", _from_grouplens), ("the wheel of recbole", _from_wheel)):
        try:
            logger.info("downloading ml-100k from %s", origin)
            _keep(fetch(), folder)
            return folder
        except (OSError, HTTPException, subprocess.SubprocessError, zipfile.BadZipFile, KeyError, FetchError) as error:
            reasons.append(f"{origin}: {first_line(error)}")
    remedy = "download it yourself, and pass the folder with u.data, u.item and u.user as the source"
    raise FetchError(f"ml-100k cannot be downloaded from GroupLens or as a wheel ({'; '.join(reasons)}); {remedy}")


def find_ml_100k(folder: Path) -> dict[str, Path]:
    """Returns a dict that maps the table names `interactions`, `items` and `users` to their files.

    The files must have the names that GroupLens or RecBole uses. The dict is empty unless all three files exist.
    """
    for names in (GROUPLENS, RECBOLE):
        found = {kind: find_file(folder, [name]) for kind, name in names.items()}
        files = {kind: path for kind, path in found.items() if path is not None}
        if len(files) == len(names):
            return files
    return {}


def cache_folder() -> Path:
    """Returns the folder `trl-rec` in the cache folder of the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trl-rec"


def _from_grouplens() -> dict[str, bytes]:
    """Downloads the three files of GroupLens. Returns a dict that maps each file name to its content."""
    with urllib.request.urlopen(URL, timeout=5) as response:
        content = response.read()
    _verify(content, ZIP_SHA256, "ml-100k.zip")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(f"ml-100k/{name}") for name in GROUPLENS.values()}


def _from_wheel() -> dict[str, bytes]:
    """Downloads the three files of RecBole. Returns a dict that maps each file name to its content."""
    with tempfile.TemporaryDirectory() as folder:
        options = "--quiet --retries 1 --no-deps --only-binary=:all: --dest".split()
        command = [sys.executable, "-m", "pip", "download", *options, folder, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last_line = (done.stderr.strip().splitlines() or [""])[-1]
            raise FetchError(f"pip download failed with exit status {done.returncode}: {last_line}")
        content = wheels[0].read_bytes()

    _verify(content, WHEEL_SHA256, wheels[0].name)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(f"recbole/dataset_example/ml-100k/{name}") for name in RECBOLE.values()}


def _verify(content: bytes, expected: str, name: str) -> None:
    """Raises FetchError if the content does not have the expected SHA-256."""
    actual = hashlib.sha256(content).hexdigest()
    if actual != expected:
        raise FetchError(f"{name} has the sha256 {actual}, not {expected}")


def _ratings_sha256(content: bytes) -> str:
    """Returns the SHA-256 of a ratings file without its header."""
    if content.startswith(b"user_id:"):  # RecBole's header
        content = content.partition(b"\n")[2]
    return hashlib.sha256(content).hexdigest()


def _keep(contents: dict[str, bytes], folder: Path) -> None:
    """Writes the files to the folder atomically. Raises FetchError if the ratings are not those of MovieLens-100k."""
    ratings = contents.get(GROUPLENS["interactions"]) or contents[RECBOLE["interactions"]]
    if _ratings_sha256(ratings) != RATINGS_SHA256:
        raise FetchError("the ratings differ from the published ratings")

    try:
        with atomic_folder(folder, check_old=_check_cached) as temporary:
            for name, content in contents.items():
                (temporary / name).write_bytes(content)
    except (OSError, ValueError):
        # Ignore the error if another process has written the same files in the meantime.
        if not _is_cached(folder):
            raise


def _is_cached(folder: Path) -> bool:
    """Returns whether the folder contains the three files, with undamaged ratings."""
    files = find_ml_100k(folder)
    return bool(files) and _ratings_sha256(files["interactions"].read_bytes()) == RATINGS_SHA256


def _check_cached(folder: Path) -> None:
    """Raises FetchError if the cached folder contains other files, because replacing the folder would delete them."""
    others = {path.name for path in folder.iterdir()} - {*GROUPLENS.values(), *RECBOLE.values()}
    if others:
        raise FetchError(
            f"the cached folder also contains {min(others)}, which a new download would delete; move it elsewhere"
        )
