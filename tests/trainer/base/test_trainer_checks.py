"""What trainers refuse when they are made: several GPUs in one process, tensor parallelism."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.trainer.alro import alro_runs
from tests.trainer.runs import QUIET, make_folder, make_trainer
from trl_rec import AlroConfig, AlroTrainer, BearConfig, BearTrainer, load
from trl_rec.models import load_model, load_tokenizer


SEVERAL = "2 GPUs are visible to one process; start the run with accelerate launch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checks")
    make_folder(path)
    return path


def test_several_gpus_in_one_process_are_refused(folder: Path, tmp_path: Path) -> None:
    dataset = load(folder / "data")
    config = BearConfig(str(tmp_path), **QUIET)
    config._n_gpu = 2
    with pytest.raises(ValueError, match=SEVERAL):
        BearTrainer(
            load_model(folder / "model"),
            config,
            train_dataset=dataset.train,
            processing_class=load_tokenizer(folder / "model"),
            catalog=dataset.catalog,
        )


def test_several_gpus_are_refused_for_rated_lists_too(tmp_path: Path) -> None:
    dataset = alro_runs.make_folder(tmp_path)
    config = AlroConfig(str(tmp_path / "run"), **QUIET)
    config._n_gpu = 2
    with pytest.raises(ValueError, match=SEVERAL):
        AlroTrainer(
            load_model(tmp_path / "model"),
            config,
            train_dataset=dataset.train,
            processing_class=load_tokenizer(tmp_path / "model"),
            catalog=dataset.catalog,
        )


def test_tensor_parallelism_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(folder, tmp_path)
    monkeypatch.setattr(
        type(trainer.accelerator), "parallelism_config", property(lambda self: SimpleNamespace(tp_size=2))
    )
    with pytest.raises(ValueError, match="tensor parallelism is not supported; use DDP, ZeRO or FSDP"):
        trainer.train()
