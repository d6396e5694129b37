"""Makes the datasets and models for tests that run every trainer. They are the same as in the tests of single
trainers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.bear import task_runs


MAKERS = {"items": runs.make_folder, "rated": alro_runs.make_folder, "tasks": task_runs.make_folder}


def make_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Makes one folder per kind of data: items, rated candidates, and several tasks. Each folder contains a dataset
    and a model."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MAKERS}
    for name, make_folder in MAKERS.items():
        make_folder(folders[name])
    return folders
