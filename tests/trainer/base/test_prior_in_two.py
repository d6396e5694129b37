"""With `--prior`, two processes give the same results as one. Only the main process writes files, and no process
waits forever."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.processes import run_in_two
from trl_rec import prepare
from trl_rec.evaluation import read_evaluation
from trl_rec.files import write_json
from trl_rec.scripts import bear


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior") / "data"
    prepare("toy", folder, toy_users=24, toy_items=60)
    return folder


def train(data: Path, batch_size: int, output: Path) -> None:
    options = {"dataset": data, "output_dir": output, "prior": "transition", "per_device_train_batch_size": batch_size}
    options |= {"hidden_size": 16, "dropout": 0.0, "max_steps": 4, "optim": "sgd", "learning_rate": 0.1}
    options |= {"warmup_steps": 0, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false"}
    bear.main(["--config", "bear/toy", *(word for key, value in options.items() for word in (f"--{key}", str(value)))])


def train_and_note_files(data: Path, batch_size: int, output: Path) -> None:
    """Trains, and writes `OUTPUT-RANK.json`: the names of the files that this process wrote to the output folder."""
    written = set()

    def note(event: str, arguments: tuple) -> None:
        """Python calls this function before it opens or renames a file."""
        if event == "os.rename" or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            path = arguments[event == "os.rename"]
            if not isinstance(path, int) and output in Path(os.fsdecode(path)).parents:
                written.add(Path(os.fsdecode(path)).name)

    sys.addaudithook(note)
    train(data, batch_size, output)
    write_json(output.with_name(f"{output.name}-{os.environ['RANK']}.json"), sorted(written))


def train_and_be_refused(data: Path, output: Path) -> None:
    with pytest.raises(ValueError, match=r"records another choice, transition with strength 32\.0 and eps 0\.0001"):
        train(data, 4, output)


def test_two_processes_choose_and_measure_like_one(data: Path, tmp_path: Path) -> None:
    train(data, 8, tmp_path / "one")
    run_in_two("ddp", partial(train_and_note_files, data, 4), tmp_path / "two")

    # The choice and the results are the same.
    one, two = (json.loads((tmp_path / name / "choice.json").read_text()) for name in ("one", "two"))
    assert two.pop("grid") == [pytest.approx(setting, abs=1e-6) for setting in one.pop("grid")]
    assert two == one and one["how"] == "exact" and one["strength"] > 0
    expected = read_evaluation(tmp_path / "one").results
    measured = read_evaluation(tmp_path / "two").results
    assert list(measured) == list(expected) and list(measured)[-3:] == ["BEAR", "prior", "BEAR x prior"]
    for name, evaluation in expected.items():
        assert measured[name].metrics == pytest.approx(evaluation.metrics, abs=1e-6), name

    # The main process wrote all files.
    written = [json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in range(2)]
    assert {"choice.json", "prior.safetensors", "recommender.json", "metrics.json"} <= set(written[0])
    assert written[1] == []


def test_two_processes_refuse_another_choice(data: Path, tmp_path: Path) -> None:
    """The output folder records another setting of the prior. A run chooses its setting after training, so the error
    comes after training. Both processes raise the error, so neither waits for the other."""
    recorded = {"prior": "transition", "strength": 32.0, "eps": 0.0001, "split": "test"}
    write_json(tmp_path / "run/choice.json", recorded)
    run_in_two("ddp", partial(train_and_be_refused, data), tmp_path / "run")
    assert json.loads((tmp_path / "run/choice.json").read_text()) == recorded
    assert (tmp_path / "run/model.safetensors").is_file() and not (tmp_path / "run/metrics.json").exists()
