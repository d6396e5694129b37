"""Fixtures for real datasets. Tests that use them are skipped on machines that do not have the data."""

import os
from pathlib import Path

import datasets
import pytest

from trl_rec.data.readers.fetching import cache_folder, find_ml_100k


datasets.disable_progress_bars()


@pytest.fixture
def ml_100k_folder():
    folder = Path(os.environ.get("TRL_REC_ML100K") or cache_folder() / "ml-100k")
    if not find_ml_100k(folder):
        pytest.skip(f"{folder} does not contain ml-100k; set TRL_REC_ML100K, or prepare ml-100k once")
    return folder


@pytest.fixture
def shared_data():
    def folder(name):
        default = Path(__file__).parents[2].parent / "shared" / "data"
        path = Path(os.environ.get("TRL_REC_DATA") or default) / name
        if not path.is_dir():
            pytest.skip(f"there is no folder {path}; set TRL_REC_DATA to the folder that contains {name}")
        return path

    return folder
