"""Runs a study: trains the arms, chooses their settings on validation, and measures the test split once.

A study makes the dataset; estimates the smallest difference that it can detect; trains every point of every grid with
the first seed; writes down the choice; trains the chosen points with the other seeds; measures the test split; and
makes the table. Every run is a process with its own folder, and a finished run is not repeated. So the same call
continues a study that was killed, and ends with the same table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from trl_rec.data import RecDataset, load
from trl_rec.files import atomic_folder, clean_up, exclusive, write_json
from trl_rec.schedule.studies.arms import Arm, point_name, read_arms, read_comparisons, slug, with_recipe
from trl_rec.schedule.studies.choice import choose, write_choice
from trl_rec.schedule.studies.config import StudyConfig
from trl_rec.schedule.studies.processes import Launch, launch
from trl_rec.schedule.studies.progress import Progress
from trl_rec.schedule.studies.resolution import Resolution, resolution
from trl_rec.schedule.studies.results import Measured, conclude
from trl_rec.schedule.studies.runs import Run, finish_all, seconds_if_finished
from trl_rec.trainer.base.fingerprint import as_json


PLAN = "plan.json"
MAY_CHANGE = ("output_dir", "threads", "jobs")  # fields that do not affect the results
TEST = "test split"  # the kind (see `Progress`) of runs that measure the test split


class Study:
    """A study that is ready to run. Raises `ValueError` if the configuration is not consistent.

    Args:
        config (`StudyConfig`): The configuration.
        read_recipe (`Callable`): Returns the keys of a recipe by its name or file.
        say (`Callable`): Receives the lines that the user reads.
        command (`str`, *optional*): The command of the study, for its results.
        start (`Launch`, *optional*): Starts a verb as a process.
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

        # The dataset is given, or made by a recipe.
        self._made = {}
        for verb in ("prepare", "tokenize"):
            self._made[verb] = with_recipe(getattr(config, verb) or {}, read_recipe)
        if config.dataset is None and not self._made["prepare"].get("output_dir"):
            raise ValueError(
                "the study has no dataset; set dataset to a folder made by trl-rec prepare, or set prepare, including "
                "its output_dir"
            )
        self.dataset_folder = config.dataset or str(self._made["prepare"]["output_dir"])

        # The arms, and what is compared.
        self.arms = read_arms(config, read_recipe)
        self.comparisons = read_comparisons(config, self.arms)
        self.evaluation = dict(config.evaluation or {})
        for key in ("dataset", "model", "output_dir", "split", "lists", "name"):
            if key in self.evaluation:
                raise ValueError(f"evaluation: the study sets {key} itself; leave it out")
        self.left_out: dict[str, str] = {}  # reasons by arm
        self._trained: dict[Path, Run] = {}  # trainings by the folder of their test measurement

    @property
    def trainings(self) -> dict[str, Arm]:
        """The trainings that are not left out."""
        return {name: arm for name, arm in self.arms.items() if arm.verb is not None and name not in self.left_out}

    @property
    def _num_candidates(self) -> int:
        """Number of rated candidates per list, which all arms of `trl-rec alro` share."""
        counts = {arm.recipe.get("num_candidates", 10) for arm in self.arms.values() if arm.verb == "alro"}
        if len(counts) > 1:
            raise ValueError(
                f"arms have num_candidates {', '.join(map(str, sorted(counts)))}; all arms of a study must use the "
                "same num_candidates"
            )
        return int(next(iter(counts), 10))

    def recipes(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yields title, verb and keys of every kind of run, so that all keys can be checked before the first run."""
        if self.config.dataset is None:
            yield "prepare", "prepare", self._made["prepare"]
        for title, keys in [
            ("tokenize", self._made["tokenize"]),
            *((name, arm.tokenize) for name, arm in self.arms.items()),
        ]:
            if keys:
                yield f"{title}, semantic IDs", "tokenize", {**keys, "dataset": self.dataset_folder}
        folders = {"dataset": self.dataset_folder, "output_dir": str(self.folder)}
        yield "evaluation", "evaluate", {**self.evaluation, **folders, "split": "test"}
        for arm in self.arms.values():
            for point in arm.grid if arm.verb is not None else ():
                run = self._training(arm, point, arm.seeds[0], start=None)
                yield run.title, run.verb, {**run.keys, "output_dir": str(run.path)}

    def run(self) -> dict[str, Any]:
        """Runs what is not finished, and returns the content of `study.json`."""
        with exclusive(self.folder):
            clean_up(self.folder)
            dataset = self._make_dataset()
            self._check_plan(dataset)
            self._check_needs(dataset)
            resolved = self._say_resolution(dataset)
            self._make_ids()
            self._say_plan()
            chosen = self._choose(resolved)
            trained = self._train(chosen)
            measured = self._measure(trained)
            return conclude(self, resolved, chosen, measured)

    def _check_plan(self, dataset: RecDataset) -> None:
        """Writes the study's plan to its folder. Raises `ValueError` if the folder already has a different plan."""
        plan: dict[str, Any] = as_json(
            {
                **{name: value for name, value in asdict(self.config).items() if name not in MAY_CHANGE},
                "data": hashlib.sha256(json.dumps(dataset.card, sort_keys=True).encode()).hexdigest()[:16],
                "recipes": {name: arm.recipe for name, arm in self.arms.items() if arm.verb is not None},
            }
        )
        path = self.folder / PLAN
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name in {**before, **plan} if before.get(name) != plan.get(name)]
            if differing:
                raise ValueError(
                    f"{self.folder} contains a study that differs in {differing[0]}; a study cannot be changed once "
                    "it has started, so choose another output_dir for the changed study"
                )
        else:
            write_json(path, plan)

    def _make_dataset(self) -> RecDataset:
        """Runs `prepare` and `tokenize` if the configuration has them, and loads the dataset."""
        runs = []
        if self.config.dataset is None:
            keys = {name: value for name, value in self._made["prepare"].items() if name != "output_dir"}
            runs.append(Run("prepare", "prepare", keys, Path(self.dataset_folder)))
        if self._made["tokenize"]:
            runs.append(
                Run("tokenize", "tokenize", {**self._made["tokenize"], "dataset": self.dataset_folder}, Path())
            )
        for run in runs:
            self._prepare(run)
        return load(self.dataset_folder)

    def _prepare(self, run: Run) -> None:
        """Runs a verb that makes data. These verbs recognise finished work themselves."""
        run = replace(run, path=self.folder / "data" / run.verb)
        keys = {"output_dir": self.dataset_folder} if run.verb == "prepare" else {}
        run = replace(run, keys={**run.keys, **keys}, has_folder=False)
        if not (Path(self.dataset_folder) / "card.json").is_file():
            run.record.unlink(missing_ok=True)  # the dataset has been removed since the run finished
        self._finish([run], None, run.verb)

    def _make_ids(self) -> None:
        """Copies the dataset for arms with semantic IDs of their own, and makes these IDs. Arms with the same settings
        share a copy."""
        for arm in self.trainings.values():
            folder = Path(self.dataset_of(arm))
            if not arm.tokenize:
                continue
            if not folder.is_dir():
                with atomic_folder(folder) as copy:
                    shutil.copytree(self.dataset_folder, copy, dirs_exist_ok=True)
            keys = {**arm.tokenize, "dataset": str(folder)}
            run = Run(f"semantic IDs of {arm.name}", "tokenize", keys, folder.with_name(f"{folder.name}-ids"))
            self._finish([replace(run, has_folder=False)], None, "tokenize")

    def dataset_of(self, arm: Arm) -> str:
        """Returns the dataset folder of an arm: the study's, or a copy with the arm's semantic IDs."""
        if not arm.tokenize:
            return self.dataset_folder
        digest = hashlib.sha256(json.dumps(arm.tokenize, sort_keys=True).encode()).hexdigest()[:8]
        return str(self.folder / "data" / f"dataset-{digest}")

    def _check_needs(self, dataset: RecDataset) -> None:
        """Leaves out the arms whose needs the data does not meet, and says why."""
        has = {
            "users": len(dataset.test),
            "ratings": "rating" in dataset.interactions.column_names,
            "titles": dataset.catalog.titles != dataset.catalog.ids,
        }
        reasons = {
            "users": f"the test split has {has['users']} users",
            "ratings": "the log has no ratings",
            "titles": "the items have no titles",
        }
        for name, arm in self.arms.items():
            lacking = [
                reasons[key] + (f", but the arm needs {need}" if key == "users" else "")
                for key, need in arm.needs.items()
                if (has[key] < need if key == "users" else need and not has[key])
            ]
            if arm.start in self.left_out:
                lacking.append(f"it starts from {arm.start}")
            if lacking:
                self.left_out[name] = "; ".join(lacking)
                self.say(f"{name} is left out: {self.left_out[name]}")
        if not has["titles"]:
            self.say("the items have no titles, so the example lists in the results page show item ids")
        if self.config.against in self.left_out:
            raise ValueError(
                f"against: {self.config.against!r} is left out ({self.left_out[self.config.against]}), so the other "
                "arms cannot be compared with it; name another arm"
            )

    def _say_resolution(self, dataset: RecDataset) -> Resolution:
        """Reports the smallest difference that the study can detect, and leaves out the arms that can only gain less.

        Arms that start from an arm that is left out are left out too.
        """
        config = self.config
        found = resolution(
            dataset,
            self.arms[config.against],
            config.primary,
            num_candidates=self._num_candidates,
            evaluation=self.evaluation,
        )
        if found.smallest is None:
            self.say(
                f"the baselines do not have {config.primary}, so the smallest difference that this study can detect "
                "is not known beforehand"
            )
        else:
            self.say(
                f"with {len(dataset.test):,} test users, the study can detect differences in {config.primary} of "
                f"about {found.smallest:.4f} or more (one comparison detects a true difference of "
                f"{found.smallest:.4f} with 80 % probability, if the seeds differ little)"
            )
        self._say_headroom(found)
        for name, arm in self.trainings.items():
            headroom = found.headroom(arm)
            if headroom is None:
                continue
            if not found.is_decidable(arm):
                self.left_out[name] = f"undecidable: it can gain at most {headroom:.4f}, which is too little to detect"
                self.say(f"{name} is {self.left_out[name]}; it is not run")
        for name, arm in self.trainings.items():
            if arm.start in self.left_out:
                self.left_out[name] = f"it starts from {arm.start}, which is left out"
                self.say(f"{name} is left out: {self.left_out[name]}")
        return found

    def _say_headroom(self, found: Resolution) -> None:
        """Reports how much the arms can gain, in one line for all arms with the same bound."""
        arms: dict[float, list[str]] = {}
        for name, arm in self.trainings.items():
            headroom = found.headroom(arm)
            if headroom is not None:
                arms.setdefault(headroom, []).append(name)
        for headroom, names in arms.items():
            self.say(f"{_listed(names)} can gain at most {headroom:.4f} over {self.config.against}")

    def _say_plan(self) -> None:
        """Reports how many runs are finished and how many remain."""
        kinds = [name for name, arm in self.trainings.items() for _ in range(len(arm.grid) + len(arm.seeds) - 1)]
        others = [name for name, arm in self.arms.items() if arm.lists is not None and name not in self.left_out]
        of_baselines = not any(arm.verb == "alro" for arm in self.trainings.values())
        kinds += [TEST] * (of_baselines + len(others) + sum(len(arm.seeds) for arm in self.trainings.values()))
        self.progress = Progress(kinds, self.config.jobs, self._finished())
        self.say(f"study in {self.folder}: {self.progress.place} runs finished, {self.progress.remaining()}")

    def _finished(self) -> list[tuple[str, float]]:
        """Returns the kind and the seconds of each run that an earlier call finished."""
        found = []
        names = {arm.slug: name for name, arm in self.trainings.items()}
        for path in self.folder.glob("[rt]*s*/**/*.json"):
            top, name, *_ = path.relative_to(self.folder).parts
            kind = TEST if top == "test" else names.get(name)
            if kind is not None and path.with_suffix("").is_dir() and path.with_suffix(".yaml").is_file():
                found.append((kind, float(json.loads(path.read_text(encoding="utf-8"))["seconds"])))
        return found

    def _choose(self, resolved: Resolution) -> dict[str, int]:
        """Trains every point of every grid with the first seed, and writes the choice.

        Returns the number of the chosen point of each training.
        """
        primary = self.config.primary
        chosen: dict[str, int] = {}
        values: dict[str, dict[int, float | None]] = {}
        while len(chosen) < len(self.trainings):
            # Train all points of the arms that can start: a point is already chosen for the arm that they start from.
            ready = [
                arm
                for name, arm in self.trainings.items()
                if name not in chosen and (arm.start is None or arm.start in chosen)
            ]
            runs = {
                (arm.name, number): self.training(arm, number, arm.seeds[0], chosen)
                for arm in ready
                for number in range(len(arm.grid))
            }
            self._finish(list(runs.values()), {run.path: name for (name, _), run in runs.items()})
            for arm in ready:
                values[arm.name] = {
                    number: validation_value(runs[arm.name, number], primary) for number in range(len(arm.grid))
                }
                chosen[arm.name] = choose(arm, values[arm.name], primary)
                if len(arm.grid) > 1:
                    self.say(
                        f"{arm.name}: {point_name(arm.grid[chosen[arm.name]])} is chosen, because it has the highest "
                        f"{primary} on validation"
                    )
        decided = {
            "primary": primary,
            "seed": self.config.seeds[0],
            "smallest difference": resolved.smallest,
            "left out": list(self.left_out),
        }
        write_choice(self.folder, self.arms, values, chosen, decided)
        return chosen

    def _train(self, chosen: Mapping[str, int]) -> dict[str, dict[int, Run]]:
        """Trains the chosen points with the other seeds. Returns the runs by arm and seed."""
        trained: dict[str, dict[int, Run]] = {}
        while len(trained) < len(chosen):
            ready = [
                arm
                for name, arm in self.trainings.items()
                if name not in trained and (arm.start is None or arm.start in trained)
            ]
            for arm in ready:
                trained[arm.name] = {seed: self.training(arm, chosen[arm.name], seed, chosen) for seed in arm.seeds}
            later = {run.path: arm.name for arm in ready for run in list(trained[arm.name].values())[1:]}
            runs = [run for arm in ready for run in list(trained[arm.name].values())[1:]]
            self._finish(runs, later)
        return trained

    def _measure(self, trained: Mapping[str, Mapping[int, Run]]) -> dict[str, Measured]:
        """Measures every arm once on the test split. Returns the folders with the measurements, by arm."""
        common = {**self.evaluation, "dataset": self.dataset_folder, "split": "test"}
        runs: dict[tuple[str, int | None], Run] = {}
        for name, by_seed in trained.items():
            for seed, run in by_seed.items():
                keys = {**common, "dataset": self.dataset_of(self.arms[name]), "model": str(run.path)}
                test = self._test(f"{name}, seed {seed}", keys, f"{self.arms[name].slug}/seed-{seed}")
                runs[name, seed] = test
                self._trained[test.path] = run
        for name, arm in self.arms.items():
            if arm.lists is not None and name not in self.left_out:
                runs[name, None] = self._test(name, {**common, "lists": arm.lists, "name": name}, f"{arm.slug}/lists")
        # Every measurement of a model that orders rated candidates contains the baselines of that task. For the other
        # task, the baselines are measured by a run of their own.
        rated = next((runs[name, arm.seeds[0]] for name, arm in self.trainings.items() if arm.verb == "alro"), None)
        baselines = rated or self._test("baselines", common, "baselines/all")
        self._finish(list({run.path: run for run in (baselines, *runs.values())}.values()), None, TEST)

        measured: dict[str, Measured] = {}
        for name, arm in self.arms.items():
            if arm.baseline is not None:
                measured[name] = Measured({None: baselines.path}, arm.baseline)
            elif name not in self.left_out:
                measured[name] = Measured({seed: run.path for (of, seed), run in runs.items() if of == name}, None)
        return measured

    def trained(self, folder: Path) -> dict[str, Any]:
        """Returns the folder of a training, its seconds and its primary measure on validation, for `study.json`.

        Args:
            folder: The folder with the measurement of the trained model on the test split. For the measurement of any
                other arm, the result is empty.
        """
        run = self._trained.get(folder)
        if run is None:
            return {}
        return {
            "run": str(run.path.relative_to(self.folder)),
            "seconds": seconds_if_finished(run),
            "validation": validation_value(run, self.config.primary),
        }

    def _test(self, title: str, keys: dict[str, Any], path: str) -> Run:
        return Run(f"{title}, test split", "evaluate", keys, self.folder / "test" / path, once=True)

    def training(self, arm: Arm, number: int, seed: int, chosen: Mapping[str, int]) -> Run:
        """Returns the run that trains an arm with one point of its grid and one seed.

        If the arm starts from another arm, the run starts from the policy that was trained with the other arm's chosen
        point and the same seed.

        Args:
            arm: The arm.
            number: The number of the point.
            seed: The seed.
            chosen: The number of the chosen point of each arm whose choice is known.
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
        return Run(f"{arm.name}{f' ({name})' if name else ''}, seed {seed}", arm.verb, keys, folder / f"seed-{seed}")

    def _finish(self, runs: Sequence[Run], kinds: Mapping[Path, str] | None, kind: str = "") -> None:
        """Finishes runs that do not depend on each other. Reports what remains after each run.

        Args:
            runs: The runs.
            kinds: The kind (see [`Progress`]) of each run, by run folder. If None, all runs have the kind `kind`.
            kind: The kind of all runs, if `kinds` is None.
        """

        def _report(run: Run, seconds: float) -> None:
            """Reports how long a run took, its primary measure on validation, and what remains."""
            name = kind if kinds is None else kinds[run.path]
            if run.verb in ("prepare", "tokenize"):
                self.say(f"{run.verb}: {seconds:.0f} s")
                return
            self.progress.done(name, seconds)
            value = None if name == TEST else validation_value(run, self.config.primary)
            shown = "" if value is None else f"{self.config.primary} {value:.4f} on validation, "
            self.say(f"[{self.progress.place}] {run.title}: {shown}{seconds:.0f} s; {self.progress.remaining()}")

        config = self.config
        finish_all(runs, self._launch, jobs=config.jobs, threads=config.threads, say=self.say, done=_report)


def validation_value(run: Run, measure: str) -> float | None:
    """Returns a measure of a training on the validation split, or None if the run does not have it."""
    content = json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))
    if content.get("split") != "validation":
        raise ValueError(f"{run.path} was measured on the {content.get('split')} split, not on validation; remove it")
    recommender = content.get("recommender") or list(content["results"])[-1]
    value = content["results"][recommender]["metrics"].get(measure)
    return None if value is None else float(value)


def _listed(names: Sequence[str]) -> str:
    """Returns names in words, such as `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
