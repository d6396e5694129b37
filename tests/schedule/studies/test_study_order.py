"""Tests the order in which a study trains its arms."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from trl_rec.schedule.studies import StudyConfig
from trl_rec.schedule.studies.arms import Arm
from trl_rec.schedule.studies.runs import Run, finish_all
from trl_rec.schedule.studies.training import train_arms


def test_arms_are_trained_seed_by_seed(tmp_path: Path) -> None:
    order = trained_in_order(tmp_path, a=Arm("a", verb="bear", seeds=(0, 1, 2)), b=Arm("b", verb="bear", seeds=(0, 1)))
    assert order == ["a 0", "b 0", "a 1", "b 1", "a 2"]


def test_a_training_waits_only_for_the_runs_that_it_needs(tmp_path: Path) -> None:
    """While one process trains the last grid point of `a`, the other process trains `b` and `d`, which do not start
    from `a`."""
    grid = ({"lr": 1}, {"lr": 2}, {"lr": 3})
    arms = {
        "a": Arm("a", verb="bear", seeds=(0, 1), grid=grid),
        "b": Arm("b", verb="bear", seeds=(0, 1)),
        "c": Arm("c", verb="bear", seeds=(0, 1), start="a"),
        "d": Arm("d", verb="bear", seeds=(0, 1), start="b"),
    }
    order = trained_in_order(tmp_path, slow="a 0 lr=3", **arms)
    begin = ["a 0 lr=1", "a 0 lr=2", "a 0 lr=3", "b 0", "d 0", "b 1", "d 1"]
    assert order == [*begin, "c 0 lr=2", "a 1 lr=2", "c 1 lr=2"]


def trained_in_order(tmp_path: Path, slow: str = "", **arms: Arm) -> list[str]:
    """Lets a study train arms with two simulated processes, and returns the runs in the order in which they started.

    The grid point lr=2 has the best metric. The process of the run `slow` ends only when no other run has been started
    for a while.
    """
    started: list[str] = []

    def training(arm: Arm, number: int, seed: int, chosen: dict[str, int]) -> Run:
        names = [f"{key}={value}" for key, value in arm.grid[number].items()]
        if arm.start is not None:
            names += [f"{key}={value}" for key, value in arms[arm.start].grid[chosen[arm.start]].items()]
        title = " ".join([arm.name, str(seed), *names])
        return Run(title, "bear", {}, tmp_path / title)

    def launch(words: Sequence[str], log: Path, lock: int | None, threads: int) -> Ended:
        started.append(log.stem)
        log.with_suffix("").mkdir()
        value = float("lr=2" in log.stem)
        results = {"bear": {"metrics": {"ndcg@10": value}}}
        (log.with_suffix("") / "metrics.json").write_text(json.dumps({"split": "validation", "results": results}))
        return Slow(started) if log.stem == slow else Ended()

    study = SimpleNamespace(
        config=StudyConfig(output_dir=str(tmp_path), arms={}, against="a", seeds=[0, 1, 2]),
        folder=tmp_path,
        arms=arms,
        trainings=arms,
        left_out={},
        training=training,
        say=print,
    )
    study.finish_ready = lambda ready, kind_of: finish_all(
        ready, launch, jobs=2, threads=1, say=print, done=lambda run, seconds: kind_of(run)
    )
    chosen, trained = train_arms(study, SimpleNamespace(smallest=0.01))
    assert chosen == {name: 1 if len(arm.grid) > 1 else 0 for name, arm in arms.items()}
    assert {name: tuple(by_seed) for name, by_seed in trained.items()} == {n: arm.seeds for n, arm in arms.items()}
    assert {run.path.name for by_seed in trained.values() for run in by_seed.values()} <= {*started}
    return started


class Ended:
    """A process that has ended without an error."""

    def poll(self) -> int | None:
        return 0


class Slow(Ended):
    """A process that ends when no other run has been started between two checks."""

    def __init__(self, started: list[str]) -> None:
        self.started = started
        self.before = -1

    def poll(self) -> int | None:
        if self.before == len(self.started):
            return 0
        self.before = len(self.started)
        return None
