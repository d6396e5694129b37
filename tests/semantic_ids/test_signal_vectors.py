"""Tests item vectors from two signals: the items' texts, and behaviour (which items users choose near each other)."""

from __future__ import annotations

import pytest
import torch

from trl_rec import RecDataset, prepare
from trl_rec.semantic_ids import signal_vectors


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    return prepare("toy", tmp_path_factory.mktemp("toy") / "toy", toy_users=40, toy_items=50)


def test_both_signals_are_the_concatenation_of_the_two(toy: RecDataset) -> None:
    text = signal_vectors(toy, "text")
    behaviour = signal_vectors(toy, "behaviour", width=16)
    assert torch.equal(signal_vectors(toy, "both", width=16), torch.cat([behaviour, text], dim=1))
    assert (toy.path / "vectors").is_dir()  # text vectors are cached

    for part in (text, behaviour):
        norms = part.norm(dim=1)
        assert ((norms - 1).abs() < 1e-5).logical_or(norms == 0).all()


def test_unknown_signals_are_refused(toy: RecDataset) -> None:
    with pytest.raises(ValueError, match="must be one of text, behaviour, both"):
        signal_vectors(toy, "images")
