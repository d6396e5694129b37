"""Ten steps of SFT, MSL and both variants of BEAR must give the values that are stored in `golden/bear.json`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.golden import NUM_STEPS, assert_golden, compare, trajectory
from tests.trainer.runs import make_folder, make_trainer
from trl_rec import BearTrainer


RUNS = {
    "sft": {"bear_weight": 0.0, "softmax": "vocabulary"},
    "msl": {"bear_weight": 0.0},
    "paper": {"variant": "paper"},
    "survival": {"variant": "survival"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden")
    make_folder(path)
    return path


@pytest.fixture
def other_threads() -> Iterator[None]:
    """Runs the test with one thread if torch uses several, and with two threads if it uses one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if before > 1 else 2)
    yield
    torch.set_num_threads(before)


def make(run: str, folder: Path, output: Path) -> BearTrainer:
    """Makes a trainer that accumulates two batches per step. Its beam term has fewer beams than there are legal
    tokens, so that a target can be outside the beam."""
    shape = {"max_steps": NUM_STEPS, "targets": "all", "num_beams": 3, "gradient_accumulation_steps": 2}
    return make_trainer(folder, output, **shape, **RUNS[run])


@pytest.mark.parametrize("run", RUNS)
def test_ten_steps_equal_the_stored_ones(run: str, folder: Path, tmp_path: Path) -> None:
    assert_golden("bear", run, trajectory(make(run, folder, tmp_path)))


@pytest.mark.long  # on a busy machine, threads wait for each other
@pytest.mark.usefixtures("other_threads")
def test_another_number_of_threads_stays_within_the_tolerance(folder: Path, tmp_path: Path) -> None:
    compare("bear", "paper", trajectory(make("paper", folder, tmp_path)))


@pytest.mark.parametrize(
    ("run", "other"), [("msl", {}), ("paper", {"bear_weight": 0.6875 * 1.01}), ("survival", {"num_beams": 4})]
)
def test_a_small_change_of_the_loss_is_detected(run: str, other: dict, folder: Path, tmp_path: Path) -> None:
    """The changes are one percent of the whole loss, one percent of the beam term, and one more beam."""
    trainer = make(run, folder, tmp_path)
    for name, value in other.items():
        setattr(trainer.args, name, value)
    if not other:
        loss = trainer.compute_loss
        trainer.compute_loss = lambda *inputs, **options: 1.01 * loss(*inputs, **options)
    with pytest.raises(AssertionError, match="to write the file again"):
        compare("bear", run, trajectory(trainer))
