"""Tests that trainers refuse two kinds of launches: several GPUs in one process, and tensor parallelism."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainingArguments

from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.blade import blade_runs
from tests.trainer.softmax_dpo import preference_runs


MAKERS: dict[str, Callable[..., Any]] = {
    "bear": runs.make_trainer,
    "alro": alro_runs.make_trainer,
    "blade": blade_runs.make_trainer,
    "softmax_dpo": preference_runs.make_trainer,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rated dataset, which suits all methods."""
    path = tmp_path_factory.mktemp("checks")
    alro_runs.make_folder(path)
    return path


@pytest.mark.parametrize("name", MAKERS)
def test_several_gpus_in_one_process_are_refused(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Trainer` would wrap the model in DataParallel, which splits the batches."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="2 GPUs are visible to one process; start the run with accelerate launch"):
        MAKERS[name](folder, tmp_path)


def test_several_gpus_are_refused_without_a_catalogue_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    texts = {"train_dataset": preference_runs.text_rows(), "processing_class": preference_runs.TEXT_TOKENIZER}
    with pytest.raises(ValueError, match="2 GPUs are visible to one process"):
        preference_runs.make_trainer(folder, tmp_path, catalog=None, **texts)


@pytest.mark.parametrize("name", MAKERS)
def test_tensor_parallelism_is_refused(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = MAKERS[name](folder, tmp_path)
    monkeypatch.setattr(
        type(trainer.accelerator), "parallelism_config", property(lambda self: SimpleNamespace(tp_size=2))
    )
    with pytest.raises(ValueError, match="tensor parallelism is not supported; use DDP, ZeRO or FSDP"):
        trainer.train()
