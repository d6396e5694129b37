"""Ten steps of SFT and of ALRO must give the values that are stored in `golden/alro.json`."""

from pathlib import Path

import pytest

from tests.trainer.alro.alro_runs import make_folder, make_trainer
from tests.trainer.golden import NUM_STEPS, assert_golden, compare, trajectory
from trl_rec import AlroTrainer


RUNS = {
    "sft": {"lambda_weight": 0.0, "permutation_weight": 0.0},
    "alro": {"permutation_weight": 10.0},
    "vocabulary": {"softmax": "vocabulary", "score": "prob", "sharpness": 8.0, "distance": "symkl", "delta": "model"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden")
    make_folder(path)
    return path


def make(run: str, folder: Path, output: Path) -> AlroTrainer:
    """Makes a trainer that accumulates two batches per step."""
    return make_trainer(folder, output, max_steps=NUM_STEPS, gradient_accumulation_steps=2, **RUNS[run])


@pytest.mark.parametrize("run", RUNS)
def test_ten_steps_equal_the_stored_ones(run: str, folder: Path, tmp_path: Path) -> None:
    assert_golden("alro", run, trajectory(make(run, folder, tmp_path)))


@pytest.mark.parametrize(
    ("run", "other"),
    [
        ("alro", {"lambda_weight": 10.1}),
        ("alro", {"permutation_weight": 10.5}),
        ("vocabulary", {"pair_sharpness": 1.01}),
    ],
)
def test_a_small_change_of_the_loss_is_detected(run: str, other: dict, folder: Path, tmp_path: Path) -> None:
    trainer = make(run, folder, tmp_path)
    for name, value in other.items():
        setattr(trainer.args, name, value)
    with pytest.raises(AssertionError, match="to write the file again"):
        compare("alro", run, trajectory(trainer))
