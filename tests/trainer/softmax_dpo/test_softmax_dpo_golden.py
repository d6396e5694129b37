"""Ten steps of Softmax-DPO must give the values that are stored in `golden/softmax_dpo.json`."""

from pathlib import Path

import pytest

from tests.trainer.golden import NUM_STEPS, assert_golden, compare, trajectory
from tests.trainer.runs import make_folder
from tests.trainer.softmax_dpo.preference_runs import make_trainer
from trl_rec.trainer import SoftmaxDPOTrainer


RUNS = {
    "vocabulary": {"learning_rate": 0.2, "beta": 0.5},
    "catalogue": {"learning_rate": 0.2, "normalize": "catalogue", "sft_weight": 0.3},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden")
    make_folder(path)
    return path


def make(run: str, folder: Path, output: Path) -> SoftmaxDPOTrainer:
    """Makes a trainer that accumulates two batches per step."""
    return make_trainer(folder, output, max_steps=NUM_STEPS, gradient_accumulation_steps=2, **RUNS[run])


@pytest.mark.parametrize("run", RUNS)
def test_ten_steps_equal_the_stored_ones(run: str, folder: Path, tmp_path: Path) -> None:
    assert_golden("softmax_dpo", run, trajectory(make(run, folder, tmp_path)))


@pytest.mark.parametrize(("run", "name", "value"), [("vocabulary", "beta", 0.505), ("catalogue", "sft_weight", 0.303)])
def test_a_small_change_of_the_loss_is_detected(
    run: str, name: str, value: float, folder: Path, tmp_path: Path
) -> None:
    """One factor in the loss changes by one percent."""
    trainer = make(run, folder, tmp_path)
    setattr(trainer if name == "beta" else trainer.args, name, value)
    with pytest.raises(AssertionError, match="to write the file again"):
        compare("softmax_dpo", run, trajectory(trainer))
