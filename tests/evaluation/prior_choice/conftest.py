"""Provides a dataset with semantic IDs to the tests in this folder."""

from dataclasses import replace

import pytest

from trl_rec.data import RecDataset, prepare
from trl_rec.ragged import Ragged


NUM_ITEMS = 48


@pytest.fixture(scope="package")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    path = tmp_path_factory.mktemp("data") / "toy"
    prepared = prepare("toy", path, toy_users=30, toy_items=NUM_ITEMS, split="leave_last", num_held_out=2)
    codes = [[f"<a_{item % 4}>", f"<b_{item // 4 % 4}>", f"<c_{item // 16}>"] for item in range(NUM_ITEMS)]
    return replace(prepared, catalog=prepared.catalog.with_surface("semantic_id", Ragged.from_lists(codes, object)))
