"""Tests that a run whose folder or results were removed is repeated, although the record beside the folder says that
the run is finished.

Also tests that a study refuses semantic IDs that were replaced after its start, ends its processes if another process
cannot be started, and counts a process that an earlier call left running as one of its jobs.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from trl_rec import cli, make_semantic_ids, prepare
from trl_rec.schedule.studies import Study, StudyConfig
from trl_rec.schedule.studies.arms import Arm
from trl_rec.schedule.studies.data import make_dataset, make_ids
from trl_rec.schedule.studies.processes import Lock
from trl_rec.schedule.studies.progress import progress_of
from trl_rec.schedule.studies.runs import Run, finish_all


class Ended:
    """A process that has ended without an error."""

    def poll(self) -> int:
        return 0


def finish(run: Run) -> int:
    """Finishes a run with a verb that only writes `metrics.json`. Returns how often the verb was started."""
    started = []

    def launch(words: Sequence[str], log: Path, lock: int | None, threads: int) -> Ended:
        started.append(words)
        run.path.mkdir(parents=True, exist_ok=True)
        (run.path / "metrics.json").write_text("{}")
        return Ended()

    finish_all(lambda finished: [run], launch, jobs=1, threads=1, say=print, done=lambda run, seconds: None)
    return len(started)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("sft, seed 0", "bear", {"seed": 0}, tmp_path / "runs" / "sft" / "seed-0")


def place(run: Run) -> str:
    """Returns how many runs of a study are finished, such as "1/3". The study consists of this training and two
    measurements on the test split: of the trained model, and of the baselines."""
    study = SimpleNamespace(
        folder=run.path.parents[2],
        trainings={"sft": Arm("sft", verb="bear", seeds=(0,))},
        arms={},
        left_out={},
        config=SimpleNamespace(jobs=1, only_validation=False),
    )
    return progress_of(study).place


@pytest.mark.parametrize("removed", ["", "metrics.json"])
def test_a_training_that_was_removed_is_repeated(run: Run, removed: str) -> None:
    assert [finish(run), finish(run)] == [1, 0] and place(run) == "1/3"
    path = run.path / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert place(run) == "0/3"
    assert [finish(run), finish(run)] == [1, 0] and place(run) == "1/3"


def test_a_measurement_that_was_removed_is_repeated_only_with_the_same_inputs(run: Run) -> None:
    run = replace(run, once=True)
    other = replace(run, keys={"seed": 1})
    finish(run)
    shutil.rmtree(run.path)
    with pytest.raises(ValueError, match=r"made with different inputs \(keys\); a study measures each arm and seed"):
        finish(other)
    assert finish(run) == 1

    # The same holds if the study is interrupted while the measurement is repeated.
    shutil.rmtree(run.path)
    with pytest.raises(KeyboardInterrupt):
        finish_all(lambda finished: [run], interrupted, jobs=1, threads=1, say=print, done=lambda run, seconds: None)
    with pytest.raises(ValueError, match=r"made with different inputs \(keys\)"):
        finish(other)
    assert finish(run) == 1


def interrupted(*_: object) -> Ended:
    raise KeyboardInterrupt


def test_semantic_ids_of_a_removed_copy_are_made_again(tmp_path: Path) -> None:
    """An arm with its own IDs trains on a copy of the dataset. The record of the run that makes the IDs is beside this
    copy. If the copy is removed, the record must not prevent a new run."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "card.json").write_text("{}")
    has_record = []

    def note(runs: Sequence[Run], kind: str) -> None:
        has_record.append(runs[0].record.is_file())
        runs[0].record.write_text(json.dumps({"seconds": 1}))

    study = SimpleNamespace(
        folder=tmp_path / "study",
        trainings={"ids": Arm("ids", verb="bear", tokenize={"codes": 8})},
        dataset_of=lambda arm: str(tmp_path / "study" / "copy"),
        dataset_folder=str(tmp_path / "data"),
        finish=note,
    )
    make_ids(study)
    make_ids(study)
    shutil.rmtree(tmp_path / "study" / "copy")
    make_ids(study)
    assert has_record == [False, True, False] and (tmp_path / "study" / "copy" / "card.json").is_file()


def test_semantic_ids_are_made_again_with_their_dataset(tmp_path: Path) -> None:
    """The dataset may be removed, or prepared again outside of the study. In both cases, its IDs are lost."""
    started = []

    def launch(words: Sequence[str], log: Path, lock: int | None, threads: int) -> Ended:
        started.append(words[0])
        cli.main(list(words))
        return Ended()

    toy = {"source": "toy", "output_dir": str(tmp_path / "data"), "toy_users": 12, "toy_items": 50}
    config = StudyConfig(
        output_dir=str(tmp_path / "study"),
        prepare=toy,
        tokenize={"levels": 2, "codes": 16},
        arms={"popularity": {"baseline": "popularity"}, "counter": {"baseline": "transition"}},
        against="counter",
    )
    study = Study(config, read_recipe=lambda name: {}, say=print, start=launch)

    def made() -> list[str]:
        """Makes the dataset. Returns the verbs that were started."""
        started.clear()
        assert make_dataset(study).catalog.semantic_ids is not None
        return list(started)

    assert [made(), made()] == [["prepare", "tokenize"], []]
    shutil.rmtree(tmp_path / "data")
    assert [made(), made()] == [["prepare", "tokenize"], []]
    prepare(**toy, overwrite=True)
    assert [made(), made()] == [["tokenize"], []]


@pytest.mark.parametrize(("surface", "refused"), [("semantic_id", True), ("item_token", False)])
def test_ids_that_were_replaced_since_the_study_started_are_refused(
    surface: str, refused: bool, tmp_path: Path
) -> None:
    dataset = prepare("toy", tmp_path / "data", toy_users=12, toy_items=50)
    config = StudyConfig(
        output_dir=str(tmp_path / "study"),
        dataset=str(tmp_path / "data"),
        arms={"counter": {"baseline": "transition"}, "bear": {"verb": "bear", "set": {"surface": surface}}},
        against="counter",
    )
    study = Study(config, read_recipe=lambda name: {}, say=print)
    study._check_plan(dataset)
    make_semantic_ids(dataset, levels=2, codes=16)  # allowed, because the dataset had no IDs before
    study._check_plan(dataset)
    study._check_plan(dataset)
    make_semantic_ids(dataset, levels=2, codes=8, overwrite=True)
    with pytest.raises(ValueError, match="differs in semantic IDs") if refused else nullcontext():
        study._check_plan(dataset)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_started_process_is_ended_if_the_next_one_cannot_be_started(
    error: type[BaseException], tmp_path: Path
) -> None:
    runs = [Run(f"sft, seed {seed}", "bear", {"seed": seed}, tmp_path / f"seed-{seed}") for seed in range(2)]
    running = Running()
    processes = iter([running])

    def launch(words: Sequence[str], log: Path, lock: int | None, threads: int) -> Running:
        process = next(processes, None)
        if process is None:
            raise error
        return process

    with pytest.raises(error):
        finish_all(lambda finished: runs, launch, jobs=2, threads=1, say=print, done=lambda run, seconds: None)
    assert running.has_ended
    for run in runs:
        Lock(run.path).release()  # raises `Busy` if the lock is still held


def test_a_run_that_was_left_running_keeps_its_place(tmp_path: Path) -> None:
    runs = [Run(f"sft, seed {seed}", "bear", {"seed": seed}, tmp_path / f"seed-{seed}") for seed in range(2)]
    left = Lock(runs[0].path)
    started: list[str] = []

    def launch(words: Sequence[str], log: Path, lock: int | None, threads: int) -> Ended:
        started.append(log.stem)
        log.with_suffix("").mkdir(exist_ok=True)
        (log.with_suffix("") / "metrics.json").write_text("{}")
        return Ended()

    def say(line: str) -> None:
        assert "seed 0: waiting for a process" in line and not started
        left.release()

    finish_all(lambda finished: runs, launch, jobs=1, threads=1, say=say, done=lambda run, seconds: None)
    assert started == ["seed-0", "seed-1"]


class Running:
    """A process that runs until it is ended."""

    has_ended = False

    def poll(self) -> int | None:
        return 0 if self.has_ended else None

    def terminate(self) -> None:
        self.has_ended = True

    def wait(self) -> int:
        assert self.has_ended
        return 0
