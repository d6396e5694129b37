"""Runs a study, which compares several recommenders (its arms) on the test split.

An arm that is trained can have a grid. Each point of the grid is one combination of settings. A study has these steps:

1. Make the dataset.
2. Leave out the arms whose needs the data does not meet. Estimate the smallest difference that the study can detect,
and leave out the arms whose possible gain is smaller.
3. Train every point of every grid with the first seed, choose the best point of each grid on validation, train the
chosen points with the other seeds, and write down the choice.
4. Measure each arm on the test split, once per seed (or, with `only_validation`, read its measurement on validation),
and make the table of results.

Every run (the execution of one verb, such as a training or a measurement) is a separate process, and a finished run is
not repeated. So the same call continues a study that was killed, and ends with the same table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trl_rec.data import RecDataset
from trl_rec.files import clean_up, exclusive, write_json
from trl_rec.schedule.studies.arms import (
    SET_OF_EVALUATION,
    Arm,
    point_name,
    read_arms,
    read_comparisons,
    slug,
    with_recipe,
)
from trl_rec.schedule.studies.choice import check_primary
from trl_rec.schedule.studies.config import StudyConfig
from trl_rec.schedule.studies.data import make_dataset, make_ids
from trl_rec.schedule.studies.left_out import leave_out_undecidable, leave_out_unmet
from trl_rec.schedule.studies.measuring import measure, measure_on_validation
from trl_rec.schedule.studies.processes import Launch, launch
from trl_rec.schedule.studies.progress import TEST, progress_of
from trl_rec.schedule.studies.results import conclude
from trl_rec.schedule.studies.runs import Ready, Run, finish_all
from trl_rec.schedule.studies.training import train_arms, validation_value
from trl_rec.semantic_ids.storage import read_ids_card
from trl_rec.trainer.base.saving.fingerprint import as_json


PLAN = "plan.json"
IDS = "semantic IDs"  # key of the plan
MAY_CHANGE = ("output_dir", "threads", "jobs")  # fields of the configuration that do not affect the results


class Study:
    """A study that is ready to run. Raises `ValueError` if the configuration is not consistent.

    Args:
        config (`StudyConfig`): The configuration.
        read_recipe (`Callable`): Returns the keys and values of a recipe, given its name or file.
        say (`Callable`): Receives the lines that the user reads.
        command (`str`, *optional*): The command that runs the study, recorded in `study.json`.
        start (`Launch`, *optional*): Function that starts a verb as a process. Defaults to [`launch`].
    """

    def __init__(
        self,
        config: StudyConfig,
        *,
        read_recipe: Callable[[str], dict[str, Any]],
        say: Callable[[str], None],
        command: str = "",
        start: Launch = launch,
    ) -> None:
        self.config = config
        self.folder = Path(config.output_dir)
        self.say = say
        self.command = command
        self._launch = start

        # 1. Find the dataset folder, which is given or will be made by `trl-rec prepare`.
        self.made = {}  # maps each verb (subcommand) that makes the data to its keys
        for verb in ("prepare", "tokenize"):
            self.made[verb] = with_recipe(getattr(config, verb) or {}, read_recipe)
        if config.dataset is None and not self.made["prepare"].get("output_dir"):
            raise ValueError(
                "the study has no dataset; set the key 'dataset' to a folder made by trl-rec prepare, or set the key "
                "'prepare' to the keys of trl-rec prepare, including output_dir"
            )
        self.dataset_folder = config.dataset or str(self.made["prepare"]["output_dir"])

        # 2. Read the arms, the comparisons, and the keys of the measurements on the test split.
        self.arms = read_arms(config, read_recipe)
        self.comparisons = read_comparisons(config, self.arms)
        check_primary(config.choice_measure, self.arms, recommend=config.recommend)
        check_primary(config.primary, {}, recommend=config.recommend)  # the verdicts are about this measure
        self.evaluation = dict(config.evaluation or {})
        for key in SET_OF_EVALUATION:
            if key in self.evaluation:
                raise ValueError(f"evaluation: the study sets {key} itself; leave it out")
        self.left_out: dict[str, str] = {}  # maps each arm that is left out to the reason
        self.measured_trainings: dict[Path, Run] = {}  # maps an evaluation folder to the run that trained the model

    @property
    def trainings(self) -> dict[str, Arm]:
        """The arms that are trained and not left out, by name."""
        return {name: arm for name, arm in self.arms.items() if arm.verb is not None and name not in self.left_out}

    def recipes(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yields the title, the verb and the keys of some runs, so that the keys can be checked before the first run.

        Every key that the study's configuration sets for a verb occurs in at least one of these runs.
        """
        if self.config.dataset is None:
            yield "prepare", "prepare", self.made["prepare"]
        for title, keys in [
            ("tokenize", self.made["tokenize"]),
            *((name, arm.tokenize) for name, arm in self.arms.items()),
        ]:
            if keys:
                yield f"{title}, semantic IDs", "tokenize", {**keys, "dataset": self.dataset_folder}
        folders = {"dataset": self.dataset_folder, "output_dir": str(self.folder)}
        yield "evaluation", "evaluate", {**self.evaluation, **folders, "split": "test"}
        for arm in self.arms.values():
            if arm.policy is not None:
                yield arm.name, "evaluate", {**self.evaluation, **arm.evaluation, **folders, "model": "POLICY"}
            for point in arm.grid if arm.verb is not None else ():
                run = self._training(arm, point, arm.seeds[0], start=None)
                yield run.title, run.verb, {**run.keys, "output_dir": str(run.path)}

    def run(self) -> dict[str, Any]:
        """Runs the study, without repeating finished runs, and returns the content of `study.json`."""
        with exclusive(self.folder):
            clean_up(self.folder)
            dataset = make_dataset(self)
            self._check_plan(dataset)

            # Leave out the arms whose needs are not met or whose gain cannot be detected. Report how many runs remain.
            leave_out_unmet(self, dataset)
            resolved = leave_out_undecidable(self, dataset)
            make_ids(self)
            self.progress = progress_of(self)
            self.say(f"study in {self.folder}: {self.progress.place} runs finished, {self.progress.remaining()}")

            # Choose points on validation, and then measure each arm on the test split, once per seed.
            chosen, trained = train_arms(self, resolved)
            measured = measure_on_validation(self, trained) if self.config.only_validation else measure(self, trained)
            return conclude(self, resolved, chosen, measured)

    def _check_plan(self, dataset: RecDataset) -> None:
        """Writes the study's plan to its folder. Raises `ValueError` if the folder already has a different plan.

        The plan contains the configuration, the recipes of the arms, and fingerprints of the data.
        """
        plan: dict[str, Any] = as_json(
            {
                **{name: value for name, value in asdict(self.config).items() if name not in MAY_CHANGE},
                "data": hashlib.sha256(json.dumps(dataset.card, sort_keys=True).encode()).hexdigest()[:16],
                "recipes": {name: arm.recipe for name, arm in self.arms.items() if arm.verb is not None},
                IDS: self._fingerprint_of_ids(),
            }
        )
        path = self.folder / PLAN
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if before.get(IDS) is None and plan[IDS] is not None:  # the IDs were made after the first call
                before[IDS] = plan[IDS]
                write_json(path, before)
            differing = [name for name in {**before, **plan} if before.get(name) != plan.get(name)]
            if differing:
                raise ValueError(
                    f"{self.folder} contains a study that differs in {differing[0]}; a study cannot be changed once "
                    "it has started, so choose another output_dir for the changed study"
                )
        else:
            write_json(path, plan)

    def _fingerprint_of_ids(self) -> str | None:
        """Returns the fingerprint of the dataset's semantic IDs, or None if there are none or no arm reads them."""
        readers = [arm for arm in self.arms.values() if arm.reads_ids and not arm.tokenize]
        card = read_ids_card(self.dataset_folder) if readers else None
        return None if card is None else str(card["fingerprint"])

    def dataset_of(self, arm: Arm) -> str:
        """Returns the dataset folder of an arm: that of the study, or that of a copy with the arm's semantic IDs."""
        if not arm.tokenize:
            return self.dataset_folder
        digest = hashlib.sha256(json.dumps(arm.tokenize, sort_keys=True).encode()).hexdigest()[:8]
        return str(self.folder / "data" / f"dataset-{digest}")

    def training(self, arm: Arm, number: int, seed: int, chosen: Mapping[str, int]) -> Run:
        """Returns the run that trains an arm with one point of its grid and one seed.

        If the arm starts from another arm, the run starts from the policy that was trained with the other arm's chosen
        point and the same seed.

        Args:
            arm: The arm.
            number: The index of the point in `Arm.grid`.
            seed: The seed.
            chosen: Maps each arm whose point has been chosen to the index of this point in `Arm.grid`.
        """
        start = None
        if arm.start is not None:
            start = self.training(self.arms[arm.start], chosen[arm.start], seed, chosen)
        return self._training(arm, arm.grid[number], seed, start)

    def _training(self, arm: Arm, point: Mapping[str, Any], seed: int, start: Run | None) -> Run:
        assert arm.verb is not None
        keys = {
            **arm.recipe,
            **point,
            "dataset": self.dataset_of(arm),
            "seed": seed,
            "final_split": "validation",
            "resume_from_checkpoint": True,
        }
        if arm.start is not None:
            keys["model_name_or_path"] = str(start.path) if start is not None else "START"
        name = point_name(point)
        folder = self.folder / "runs" / arm.slug / (slug(name) if name else "")
        title = f"{arm.name}{f' ({name})' if name else ''}, seed {seed}"
        return Run(title, arm.verb, keys, folder / f"seed-{seed}", study=self.folder)

    def finish(self, runs: Sequence[Run], kind: str) -> None:
        """Finishes runs of the same kind (see [`Progress`]) that do not depend on each other. Reports each run, unless
        it was finished before."""
        self.finish_ready(lambda finished: runs, lambda run: kind)

    def finish_ready(self, ready: Ready, kind_of: Callable[[Run], str]) -> None:
        """Finishes runs until no run is ready (see [`finish_all`]). Reports each run, unless it was finished before.

        Args:
            ready: Returns the runs that can be started.
            kind_of: Returns the kind of a run.
        """

        def _report(run: Run, seconds: float) -> None:
            """Reports how long a run took. For trainings and measurements, also reports how many runs remain."""
            name = kind_of(run)
            if run.verb in ("prepare", "tokenize"):
                self.say(f"{run.verb}: {seconds:.0f} s")
                return
            self.progress.done(name, seconds)
            measure_name = self.config.choice_measure
            value = None if name == TEST else validation_value(run, measure_name)
            shown = "" if value is None else f"{measure_name} {value:.4f} on validation, "
            self.say(f"[{self.progress.place}] {run.title}: {shown}{seconds:.0f} s; {self.progress.remaining()}")

        config = self.config
        finish_all(ready, self._launch, jobs=config.jobs, threads=config.threads, say=self.say, done=_report)
