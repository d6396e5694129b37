"""Tests the setting `item_vectors`. With it, the item embeddings are initialized from vectors of the items' texts
("text"), from vectors of how items occur together in the training split ("behaviour"), or from both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trl_rec import BearConfig, RecDataset, build_bear_trainer, prepare
from trl_rec.models import RecModelConfig
from trl_rec.semantic_ids import signal_vectors


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    return prepare("toy", tmp_path_factory.mktemp("toy") / "toy", toy_users=40, toy_items=50)


def cosines(vectors: Tensor) -> Tensor:
    """Returns the cosine similarity of each pair of centred vectors."""
    centred = torch.nn.functional.normalize(vectors - vectors.mean(0))
    rows, columns = torch.triu_indices(len(vectors), len(vectors), offset=1)
    return (centred @ centred.T)[rows, columns]


@pytest.mark.parametrize("start", ["text", "behaviour", "both"])
def test_items_with_similar_vectors_start_alike(toy: RecDataset, tmp_path: Path, start: str) -> None:
    config = BearConfig(str(tmp_path), targets="all", max_length=32, use_cpu=True, bf16=False, report_to="none")
    dataset = toy.with_surface("item_token")
    expected = cosines(signal_vectors(dataset, start))
    for choice in ("random", start):
        trainer = build_bear_trainer(dataset, config, RecModelConfig(hidden_size=64, item_vectors=choice))
        tokens = trainer.processing_class.convert_tokens_to_ids(dataset.catalog.new_tokens)
        found = cosines(trainer.model.get_input_embeddings().weight[tokens].detach())
        correlation = torch.corrcoef(torch.stack([expected, found]))[0, 1]
        assert (correlation > 0.5) == (choice == start)


def test_vectors_are_refused_for_titles(toy: RecDataset, tmp_path: Path) -> None:
    config = BearConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    with pytest.raises(ValueError, match="titles consist of words"):
        build_bear_trainer(toy.with_surface("title"), config, RecModelConfig("some-model", item_vectors="behaviour"))
