"""Measures the arms of a study on the test split, once per seed, or finds their measurements on validation.

The measurements on validation are those that the trainings made at their end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_rec.evaluation.kept.reading import KeptEvaluation, read_evaluation
from trl_rec.evaluation.prior_rows import PRIOR_ROW, product_row
from trl_rec.evaluation.results import BASELINES
from trl_rec.schedule.studies.arms import Arm
from trl_rec.schedule.studies.progress import TEST
from trl_rec.schedule.studies.runs import Run


if TYPE_CHECKING:
    from trl_rec.schedule.studies.study import Study


# Keys of `trl-rec evaluate` that need a model. They are left out when baselines or lists are measured.
OF_MODELS = ("exhaustive", "best_of")


def measure(study: Study, trained: Mapping[str, Mapping[int, Run]]) -> dict[str, Measured]:
    """Measures every arm on the test split, once per seed. Returns the folders of the measurements by arm.

    Args:
        study: The study.
        trained: The run that trained each arm with each seed, by arm and seed.
    """
    common = {**study.evaluation, "dataset": study.dataset_folder, "split": "test"}
    without_model = {name: value for name, value in common.items() if name not in OF_MODELS}
    runs: dict[tuple[str, int | None], Run] = {}
    for name, by_seed in trained.items():
        for seed, run in by_seed.items():
            keys = {**common, "dataset": study.dataset_of(study.arms[name]), "model": str(run.path)}
            test = _test(study, f"{name}, seed {seed}", keys, f"{study.arms[name].slug}/seed-{seed}")
            runs[name, seed] = test
            study.measured_trainings[test.path] = run
    for name, arm in study.arms.items():
        if arm.lists is not None and name not in study.left_out:
            runs[name, None] = _test(
                study, name, {**without_model, "lists": arm.lists, "name": name}, f"{arm.slug}/lists"
            )
        if arm.policy is not None and name not in study.left_out:
            runs |= {(name, seed): run for seed, run in _measure_again(study, arm, runs).items()}
    # Baselines that order rated candidates are measured only together with a model of `trl-rec alro`. A study that
    # trains such models takes the results of the baselines from the first measurement of such a model. Any other study
    # measures the baselines in a separate run.
    rated = next((runs[name, arm.seeds[0]] for name, arm in study.trainings.items() if arm.verb == "alro"), None)
    baselines = rated or _test(study, "baselines", {**without_model, **_further_baselines(study)}, "baselines/all")
    study.finish(list({run.path: run for run in (baselines, *runs.values())}.values()), TEST)

    measured: dict[str, Measured] = {}
    for name, arm in study.arms.items():
        if arm.baseline is not None:
            measured[name] = Measured({None: baselines.path}, arm.baseline)
        elif arm.policy is not None and name not in study.left_out:
            measured[name] = Measured({seed: runs[name, seed].path for seed in arm.seeds}, None, arm.row)
        elif name not in study.left_out:
            measured[name] = Measured({seed: run.path for (of, seed), run in runs.items() if of == name}, None)
    return measured


def measure_on_validation(study: Study, trained: Mapping[str, Mapping[int, Run]]) -> dict[str, Measured]:
    """Returns the measurements on validation that the trainings made at their end. The test split is not read.

    The arguments are those of [`measure`]. The results of the baselines are taken from the measurement of the first
    training.
    """
    if not trained:
        raise ValueError("only_validation: the study has no training to measure; leave only_validation out")
    measured = {
        name: Measured({seed: run.path for seed, run in by_seed.items()}, None) for name, by_seed in trained.items()
    }
    study.measured_trainings |= {run.path: run for by_seed in trained.values() for run in by_seed.values()}
    first = next(iter(next(iter(trained.values())).values()))
    for name, arm in study.arms.items():
        if arm.baseline is not None:
            measured[name] = Measured({None: first.path}, arm.baseline)
    return {name: measured[name] for name in study.arms if name in measured}


@dataclass(frozen=True)
class Measured:
    """The folders that contain the measurements of an arm.

    Args:
        folders: The evaluation folder of each seed; the seed is None for an arm without seeds.
        row: The name of the baseline in these evaluations, if the arm is a baseline. Otherwise None.
        part (*optional*): If the arm measures the policies of another arm, which results of each evaluation to use:
            those of the `"model"`, of the `"prior"`, or of their `"product"`. If `row` and `part` are None, each
            evaluation was made for the arm itself, and the results of the evaluated recommender are used.
    """

    folders: Mapping[int | None, Path]
    row: str | None
    part: str | None = None

    def read(self) -> dict[int | None, tuple[KeptEvaluation, str]]:
        """Returns, for each seed, an evaluation and the name under which it contains the results of the arm."""
        found = {}
        for seed, folder in self.folders.items():
            kept = read_evaluation(folder)
            model = kept.recommender or ""
            row = self.row or {"prior": PRIOR_ROW, "product": product_row(model)}.get(self.part or "", model)
            if row not in kept.results:
                raise ValueError(f"{folder} has no results of {row!r}, only of {', '.join(kept.results)}")
            found[seed] = (kept, row)
        return found


def _measure_again(study: Study, arm: Arm, runs: Mapping[tuple[str, int | None], Run]) -> dict[int, Run]:
    """Returns the measurement of each seed of an arm that measures the policies of another arm, named by `policy`.

    If the arm does not set `evaluation`, the measurements of the other arm are returned, and nothing is measured
    again.
    """
    assert arm.policy is not None
    of_policy = {seed: runs[arm.policy, seed] for seed in arm.seeds}
    if not arm.evaluation:
        return of_policy
    return {
        seed: _test(study, f"{arm.name}, seed {seed}", {**run.keys, **arm.evaluation}, f"{arm.slug}/seed-{seed}")
        for seed, run in of_policy.items()
    }


def _further_baselines(study: Study) -> dict[str, list[str]]:
    """Returns the key `baselines` of `trl-rec evaluate`, or no key if every baseline of the study is evaluated by
    default."""
    named = [arm.baseline for arm in study.arms.values() if arm.baseline is not None]
    further = [name for name in dict.fromkeys(named) if name not in BASELINES]
    return {"baselines": [*BASELINES, *further]} if further else {}


def _test(study: Study, title: str, keys: dict[str, Any], path: str) -> Run:
    place = study.folder / "test" / path
    return Run(f"{title}, test split", "evaluate", keys, place, once=True, study=study.folder)
