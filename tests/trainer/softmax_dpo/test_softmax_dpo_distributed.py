"""With the same global batch size, two processes give the same results as one. The tests run DDP, ZeRO-2 and ZeRO-3
with the shipped accelerate recipes, on the CPU."""

from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.trainer.runs import Trained, assert_same, make_folder, trained
from tests.trainer.softmax_dpo.preference_runs import run
from trl_rec.models import load_tokenizer, make_model


pytestmark = pytest.mark.slow
FIGURES = ("losses", "margins", "ndcg")


def options(batch_size: int, **others: object) -> dict[str, object]:
    return {"per_device_train_batch_size": batch_size, **others}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preferences")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained("alone", partial(run, folder, options(4)), tmp_path_factory.mktemp("runs") / "alone")


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("name", ["ddp", pytest.param("zero2", marks=pytest.mark.long), "zero3"])
def test_two_processes_equal_one(name: str, precompute: bool, folder: Path, alone: Trained, tmp_path: Path) -> None:
    """If the log-probabilities of the reference are precomputed, two processes compute them in batches of 5, which do
    not divide the 24 rows evenly."""
    halved = options(2, precompute_ref_log_probs=precompute, precompute_ref_batch_size=5)
    if name == "zero3" and not precompute:
        halved["ref_model"] = "loaded"
    assert_same(trained(name, partial(run, folder, halved), tmp_path / name), alone, FIGURES)
    files = list((tmp_path / name).glob("reference-*.parquet"))
    assert len(files) == precompute and all(pq.read_metadata(path).num_rows == 24 for path in files)


def test_under_zero3_a_policy_is_not_copied(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a policy cannot be copied under ZeRO-3; pass ref_model"):
        trained("zero3", partial(run, folder, options(2)), tmp_path / "zero3")


def test_the_legal_softmax_in_two_processes(folder: Path, tmp_path: Path) -> None:
    legal = {"normalize": "catalogue", "sft_weight": 0.5}
    one = trained("alone", partial(run, folder, options(4, **legal)), tmp_path / "one")
    assert_same(trained("ddp", partial(run, folder, options(2, **legal)), tmp_path / "two"), one, FIGURES)


def test_under_zero3_each_model_has_its_own_precomputed_reference(
    folder: Path, alone: Trained, tmp_path: Path
) -> None:
    """The precomputed log-probabilities of the reference are in a file whose name depends on the model's weights.
    Under ZeRO-3, the parameters of the model are empty tensors, and each process holds its share of the weights
    elsewhere. Two models must still get different file names."""
    for seed in range(2):
        tokenizer, model = load_tokenizer(folder / "model"), tmp_path / str(seed)
        make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=256, seed=seed).save_pretrained(model)
        one_step = options(2, precompute_ref_log_probs=True, max_steps=1, model=str(model))
        told, _ = trained("zero3", partial(run, folder, one_step), tmp_path / "run")
        assert told["losses"][0] == pytest.approx(alone[0]["losses"][0], abs=1e-5)
    assert len(list((tmp_path / "run").glob("reference-*.parquet"))) == 2
