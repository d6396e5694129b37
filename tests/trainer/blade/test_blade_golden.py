"""Ten steps of BLADE must give the values that are stored in `golden/blade.json`. The loss is not among these values,
because it is 0 except for rounding if each rollout is used for one step, as in the first of the two runs."""

from pathlib import Path

import pytest

from tests.trainer.blade.blade_runs import logged, make_trainer
from tests.trainer.golden import NUM_STEPS, Trajectory, assert_golden, compare
from tests.trainer.runs import make_folder
from trl_rec.trainer import BladeTrainer


RUNS = {
    "blade": {"rewards": {"ndcg": 1.0, "ild": 0.5}},
    "two iterations": {
        "target": "best_of_n",
        "num_iterations": 2,
        "max_prompts": 20,
        "standardize": True,
        "temperature": 0.8,
    },
}
KEPT = ("reward", "kl", "blade/ratio", "grad_norm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden")
    make_folder(path)
    return path


def make(run: str, folder: Path, output: Path, **options: object) -> BladeTrainer:
    """Makes a trainer that accumulates two batches per step."""
    shape = {"max_steps": NUM_STEPS, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    return make_trainer(folder, output, **{**shape, **RUNS[run], **options})


def trajectory(trainer: BladeTrainer) -> Trajectory:
    trainer.train()
    return {name: [float(f"{value:.8g}") for value in logged(trainer, name)] for name in KEPT}


@pytest.mark.parametrize("run", RUNS)
def test_ten_steps_equal_the_stored_ones(run: str, folder: Path, tmp_path: Path) -> None:
    told = trajectory(make(run, folder, tmp_path))
    assert all(len(values) == NUM_STEPS for values in told.values())
    assert_golden("blade", run, told)


@pytest.mark.slow
@pytest.mark.parametrize(("run", "changed"), [("blade", {"beta": 1.01}), ("two iterations", {"best_of": 8.08})])
def test_a_small_change_of_the_target_is_detected(run: str, changed: dict, folder: Path, tmp_path: Path) -> None:
    """One setting changes by one percent."""
    with pytest.raises(AssertionError, match="to write the file again"):
        compare("blade", run, trajectory(make(run, folder, tmp_path, **changed)))
