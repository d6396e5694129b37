"""Measurements before training have the same precision as those after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.blade import blade_runs
from tests.trainer.softmax_dpo import preference_runs
from trl_rec import load


MAKERS: dict[str, Callable[..., Any]] = {
    "bear": runs.make_trainer,
    "alro": alro_runs.make_trainer,
    "blade": blade_runs.make_trainer,
    "softmax_dpo": preference_runs.make_trainer,
}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_lists_are_ranked_in_one_precision(name: str, bf16: bool, tmp_path: Path) -> None:
    """Training in mixed precision leaves the model under autocast. Ranking before training must therefore use autocast
    too."""
    (alro_runs if name == "alro" else runs).make_folder(tmp_path)
    trainer = MAKERS[name](tmp_path, tmp_path / "run", max_steps=1, learning_rate=0.0, bf16=bf16)
    split = load(tmp_path / "data").validation
    rounded: list[bool] = []
    head = trainer.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda *_: rounded.append(torch.is_autocast_enabled("cpu")))

    before = trainer.rank(split)
    assert set(rounded) == {bf16}
    trainer.train()
    rounded.clear()
    after = trainer.rank(split)
    assert set(rounded) == {bf16}
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))
