"""Executes the runs of a study, such as trainings and measurements.

Each run executes one verb (a subcommand such as `trl-rec bear`). The run of a training or measurement writes to a
folder of its own, `NAME`. Beside this folder are three files: `NAME.yaml` (the recipe given to the verb), `NAME.log`
(what the verb printed) and `NAME.json` (the record, written once the run is finished). A run that makes data has the
same three files, but writes to the dataset folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trl_rec.evaluation.kept.files import METRICS
from trl_rec.files import write_json, write_text
from trl_rec.schedule.plan import weights_digest
from trl_rec.schedule.studies.processes import Busy, Launch, Lock, Process, last_lines
from trl_rec.trainer.base.saving.fingerprint import as_json


POLL = 0.1  # seconds between two checks of whether processes have ended


@dataclass(frozen=True)
class Run:
    """One execution of a verb with its keys.

    Args:
        title: Title of the run in messages, such as `bear (bear_weight=2.75), seed 0`.
        verb: The verb.
        keys: Maps each key of the recipe to its value. If `has_folder` is True, `output_dir` is not among the keys.
        path: The run folder. If `has_folder` is False, this folder is not created, and its name is used only for the
            recipe, the log and the record of the run.
        once: Whether the run must never be repeated with other inputs. True for measurements on the test split.
        has_folder: Whether the verb writes to the run folder, rather than to a dataset folder.
        study (*optional*): The folder of the study. The record of the run contains paths relative to it, so that a
            study can be moved to another folder.
    """

    title: str
    verb: str
    keys: dict[str, Any]
    path: Path
    once: bool = False
    has_folder: bool = True
    study: Path | None = None

    @property
    def recipe(self) -> Path:
        """The recipe file that is given to the verb."""
        return self.path.with_name(f"{self.path.name}.yaml")

    @property
    def log(self) -> Path:
        """The file with everything that the verb printed."""
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def record(self) -> Path:
        """The record, which is written when the run is finished."""
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def has_results(self) -> bool:
        """Whether the run folder contains the results of the verb. Always True if the verb writes to a
        dataset folder instead."""
        return not self.has_folder or (self.path / METRICS).is_file()

    @property
    def command(self) -> list[str]:
        """The words after `trl-rec`."""
        return [self.verb, "--config", str(self.recipe)]


def write_recipe(run: Run) -> None:
    """Writes the recipe file that is given to the verb.

    The file contains the run's keys. If the verb writes to the run folder, the file also contains `output_dir`.
    """
    keys = {**run.keys, "output_dir": str(run.path)} if run.has_folder else run.keys
    write_text(run.recipe, yaml.safe_dump(keys, sort_keys=False, allow_unicode=True))


def seconds_if_finished(run: Run) -> float | None:
    """Returns the seconds that a run took, or None if the run must be started.

    A run must be started if it is not finished, was finished with other inputs, or has lost its results because its
    folder was removed. The inputs are the command, the keys, and the weights of the model folder that the run loads,
    if any. Raises `ValueError` if a run that must not be repeated (see `Run.once`) was finished with other inputs.
    """
    if not run.record.is_file():
        return None
    record = _relative_to(run.study, json.loads(run.record.read_text(encoding="utf-8")))
    now = _asked(run)
    if {name: record.get(name) for name in now} == now:
        return float(record["seconds"]) if run.has_results else None
    if run.once:
        differing = next(name for name in now if record.get(name) != now[name])
        raise ValueError(
            f"{run.path} contains a measurement on the test split that was made with different inputs ({differing}); "
            "a study measures each arm and seed only once on the test split, so choose another output_dir for a new "
            "study"
        )
    return None


# Given the folders of the finished runs, returns the runs that do not need any unfinished run. The runs that should be
# started first come first. The result may include runs that have already been started or finished.
Ready = Callable[[Collection[Path]], Sequence[Run]]


def finish_all(
    ready: Ready,
    launch: Launch,
    *,
    jobs: int,
    threads: int,
    say: Callable[[str], None],
    done: Callable[[Run, float], None],
) -> None:
    """Finishes runs, `jobs` of them at a time, until no run is ready. Finished runs are not repeated.

    A training that was interrupted continues from its newest checkpoint. If a verb fails, the processes of the other
    runs are ended, and [`RunFailedError`] is raised.

    Args:
        ready: Returns the runs that can be started. It is called repeatedly, so a run may become ready when the runs
            that it needs are finished.
        launch: Starts a process.
        jobs: Number of processes at the same time.
        threads: Number of threads of each process.
        say: Receives lines for the user.
        done: Called after each run that was not finished before, with the run and the seconds that it took.
    """
    finished: set[Path] = set()
    active: list[_Active] = []
    has_said: set[Path] = set()
    try:
        while True:
            # 1. Start runs.
            known = finished | {one.run.path for one in active}
            waiting = [run for run in ready(finished) if run.path not in known]
            if not waiting and not active:
                return
            _start_some(waiting[: jobs - len(active)], active, finished, launch, threads, say, has_said)

            # 2. Conclude the runs whose processes have ended.
            for one in [one for one in active if one.process.poll() is not None]:
                active.remove(one)
                done(one.run, one.conclude())
                finished.add(one.run.path)
            time.sleep(POLL if active else 0)
    finally:
        for one in active:
            one.process.terminate()
        for one in active:
            one.process.wait()
            one.lock.release()


def _start_some(
    runs: Sequence[Run],
    active: list[_Active],
    finished: set[Path],
    launch: Launch,
    threads: int,
    say: Callable[[str], None],
    has_said: set[Path],
) -> None:
    """Starts the runs. A run that was finished by an earlier call of the study is added to `finished` instead.

    A run is added to `active` as soon as it is started, so that `active` contains it even if the start of a later run
    fails. If a process that an interrupted call of the study left behind is still working on a run, the run is not
    started. The user is told about each such run only once. For this purpose, `has_said` contains the folders of the
    runs that the user has been told about.
    """
    for run in runs:
        try:
            process = _start(run, launch, threads)
        except Busy:
            if run.path not in has_said:
                say(f"{run.title}: waiting for a process that an interrupted call of the study left running")
            has_said.add(run.path)
            time.sleep(POLL)
            continue
        if process is None:
            finished.add(run.path)
        else:
            active.append(process)


def _start(run: Run, launch: Launch, threads: int) -> _Active | None:
    """Starts the process of a run. Returns None if the run is already finished."""
    lock = Lock(run.path)
    try:
        if seconds_if_finished(run) is not None:
            lock.release()
            return None
        # An earlier call may have left a record, for example if only the run folder was removed since then. Keep the
        # record of a measurement on the test split, so that a later call refuses other inputs even if this run is
        # killed.
        if not run.once:
            run.record.unlink(missing_ok=True)
        write_recipe(run)
        return _Active(run, lock, launch(run.command, run.log, lock.descriptor, threads), time.monotonic())
    except BaseException:
        lock.release()
        raise


@dataclass
class _Active:
    """A run whose process has been started."""

    run: Run
    lock: Lock
    process: Process
    begin: float

    def conclude(self) -> float:
        """Writes the record of the run after its process has ended, and returns the seconds that the process took.

        Raises [`RunFailedError`] if the process has failed.
        """
        seconds = round(time.monotonic() - self.begin, 1)
        status = self.process.poll()
        try:
            if status != 0:
                raise RunFailedError(
                    f"{self.run.title} ended with status {status}: {last_lines(self.run.log)}; see {self.run.log}, "
                    "correct the cause, and start the study again to continue from here"
                )
            write_json(self.run.record, {**_asked(self.run), "seconds": seconds})
        finally:
            self.lock.release()
        return seconds


class RunFailedError(ValueError):
    """Raised if a verb of a study fails. The message contains the title of the run and the path of its log."""


def _asked(run: Run) -> dict[str, Any]:
    """Returns the inputs of a run: its command, its keys, and a digest of the weights that it loads.

    The digest is None if the run does not load a model from a folder.
    """
    model = run.keys.get("model_name_or_path") or run.keys.get("model")
    weights = weights_digest(model) if isinstance(model, str) and Path(model).is_dir() else None
    asked = as_json({"command": run.command, "keys": run.keys, "model weights": weights})
    relative: dict[str, Any] = _relative_to(run.study, asked)
    return relative


def _relative_to(study: Path | None, value: Any) -> Any:
    """Returns a JSON value in which each path below the folder of the study begins with `STUDY` instead of this
    folder."""
    if isinstance(value, dict):
        return {name: _relative_to(study, one) for name, one in value.items()}
    if isinstance(value, list):
        return [_relative_to(study, one) for one in value]
    if study is not None and isinstance(value, str) and value.startswith((f"{study}/", f"{study}\\")):
        return f"STUDY{value.removeprefix(str(study))}"
    return value
