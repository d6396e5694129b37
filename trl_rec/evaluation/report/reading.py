"""Reads the run folders, evaluation folders or study folder that a report is about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trl_rec.data.dataset import load
from trl_rec.evaluation.beam_gap import BeamGap
from trl_rec.evaluation.comparison.arms import read_arms
from trl_rec.evaluation.comparison.compare import Comparison
from trl_rec.evaluation.kept.reading import KeptEvaluation, check_comparable, read_evaluation
from trl_rec.evaluation.kept.rows import describe_rows
from trl_rec.evaluation.report.material import Arm, Material, Run, Study, is_rated
from trl_rec.items import ItemCatalog


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

STUDY = "study.json"
REMEDY = "restore it from a copy of the folder, or delete it"


def read_material(
    sources: Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    dataset: str | Path | None = None,
    show_users: bool = False,
) -> Material:
    """Reads run folders or a study folder, and the dataset that was used in the evaluation.

    Args:
        sources: Run folders and evaluation folders with evaluations of the same users, or one study folder.
        names: A name per folder, as in [`write_report`].
        dataset: The dataset folder. Defaults to the folder that is recorded in the evaluation, if that folder still
            contains the same dataset.
        show_users: Whether the headings of the recommendation lists in the report show user ids.
    """
    folders = [Path(source) for source in sources]
    if not folders:
        raise ValueError("there is nothing to report on; give run folders or a study folder")
    studies = [folder for folder in folders if (folder / STUDY).is_file()]
    if studies and names is not None:
        raise ValueError(
            f"{studies[0]} is a study folder, and the arms of a study already have names; leave out the names"
        )
    if studies and len(folders) > 1:
        raise ValueError(f"{studies[0]} is a study folder; give only one study folder, or only run folders")

    if studies:
        arms, study = _read_study(folders[0])
    else:
        arms, study = _read_runs(folders, names), None
    kept = [run.kept for arm in arms for run in arm.runs]
    for one in kept[1:]:
        check_comparable(kept[0], one)
    return Material(arms, _dataset(kept[0], dataset), study, show_users)


# Runs


def _read_runs(folders: Sequence[Path], names: Sequence[str] | None) -> list[Arm]:
    """Returns the arms of the folders. [`read_arms`] decides which runs of models together form an arm. Every other
    recommender, such as a baseline or a prior, is an arm of its own, read from the first folder that contains it."""
    if names is not None and len(names) != len(folders):
        raise ValueError(
            f"the number of names ({len(names)}) differs from the number of runs ({len(folders)}); give one name per "
            "run"
        )
    short = dict(zip((folder.absolute() for folder in folders), _short_names(folders), strict=True))
    runs = {folder: _read_run(folder, folder, name) for folder, name in short.items()}
    arms: dict[str, Arm] = {}
    for run in runs.values():
        for name in run.kept.results:
            if name != run.kept.recommender:
                arms.setdefault(name, Arm(name, [run], [name], is_own=False))

    # Group the runs of models.
    own = [folder for folder, run in runs.items() if run.kept.recommender is not None]
    named = None if names is None else [name for name, folder in zip(names, runs, strict=True) if folder in own]
    if len(own) == 1 and named is None:
        named = [runs[own[0]].name]  # `read_arms` compares recipes, which a single run may lack
    groups = [
        (name, [runs[kept.folder] for kept in group.values()], [str(kept.recommender) for kept in group.values()])
        for name, group in (read_arms(own, named) if own else {}).items()
    ]

    # Without `names`, an arm has the name of its model in the results. If this name is not unique, a suffix in
    # parentheses is added: for a single run, the name of its folder; for several runs, the name that `read_arms` gives
    # to the arm.
    firsts = [rows[0] for _, _, rows in groups]
    for name, members, rows in groups:
        if names is None:
            is_unique = firsts.count(rows[0]) == 1 and rows[0] not in arms
            name = rows[0] if is_unique else f"{rows[0]} ({name if len(members) > 1 else members[0].name})"
        if name in arms:
            raise ValueError(
                f"{name!r} is the name of another recommender; give another name to {members[0].kept.folder}"
            )
        arms[name] = Arm(name, members, rows, is_own=True)
    return list(arms.values())


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Returns a short name for each folder: the end of its path, just long enough that all names differ."""
    parts = [folder.absolute().parts for folder in folders]
    if len(set(parts)) < len(parts):
        repeated = next(folder for folder, part in zip(folders, parts, strict=True) if parts.count(part) > 1)
        raise ValueError(f"{repeated} is given twice; give each folder once")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _read_run(evaluated: Path, trained: Path, name: str) -> Run:
    """Reads a run. Only its evaluation is required.

    Args:
        evaluated: The folder of the evaluation, which may also contain beam gaps.
        trained: The run folder, which may contain the log, the recipe, the environment and the catalogue.
        name: Name of the run.
    """
    kept = read_evaluation(evaluated)
    log = trained / "eval.jsonl"
    recipe = trained / "recipe.yaml"
    environment = trained / "environment.json"
    gaps = evaluated / "beam_gap.json"

    catalog = None
    if (trained / "catalog").is_dir():
        catalog = ItemCatalog.load(trained / "catalog", remedy="restore it from a copy of the run folder")
        if catalog.fingerprint != kept.identity["catalog"]:
            raise ValueError(f"{trained / 'catalog'} is not the catalogue that was evaluated; evaluate again")
    return Run(
        name,
        kept,
        log=_read_lines(log) if log.is_file() else [],
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else "",
        environment=_read_environment(environment) if environment.is_file() else [],
        beam_gaps=_read_gaps(gaps) if gaps.is_file() else {},
        catalog=catalog,
    )


def _read_gaps(path: Path) -> dict[str, BeamGap]:
    """Reads the beam gaps in a file written by [`write_beam_gaps`]."""
    content = _read_mapping(path)
    try:
        return {name: BeamGap.from_dict(entry) for name, entry in content.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); {REMEDY}") from error


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a file with one JSON mapping per line."""
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} is damaged (a line is not a mapping); {REMEDY}")
    return entries


def _read_environment(path: Path) -> list[tuple[str, str]]:
    """Reads the names and values in `environment.json`."""
    try:
        return _flat(_read_mapping(path))
    except RecursionError as error:
        raise ValueError(f"{path} is damaged (it is nested too deeply); {REMEDY}") from error


def _read_mapping(path: Path) -> dict[str, Any]:
    """Reads a file that contains one JSON mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); {REMEDY}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged (it is not a mapping); {REMEDY}")
    return content


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns the names and values of nested mappings, with names such as `versions.torch`."""
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return found


# Studies


def _read_study(folder: Path) -> tuple[list[Arm], Study]:
    """Returns the measured arms of a study, and the other content of the study file."""
    path = folder / STUDY
    content = _read_mapping(path)
    try:
        arms = [_read_arm(folder, name, arm) for name, arm in content["arms"].items() if arm.get("runs")]
        study = Study(
            name=folder.absolute().name,
            primary=str(content["primary"]),
            comparisons=[_comparison(entry) for entry in content["comparisons"]],
            conclusion=str(content.get("recommendation") or ""),
            left_out=[(name, str(arm["reason"])) for name, arm in content["arms"].items() if arm.get("reason")],
            facts=_facts(content),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); run the study again, which does not repeat finished runs"
        ) from error
    if not arms:
        raise ValueError(f"{path} has no measured arm; run the study again")
    if not any(study.primary in arm.metrics for arm in arms):
        raise ValueError(f"{path}: no arm has the metric {study.primary!r}; run the study again")
    return arms, study


def _read_arm(folder: Path, name: str, arm: Mapping[str, Any]) -> Arm:
    """Reads the runs of an arm, one per seed."""
    runs = []
    for seed, entry in arm["runs"].items():
        evaluated = folder / entry["test"]
        trained = folder / entry["run"] if "run" in entry else evaluated
        run = _read_run(evaluated, trained, name if seed == "none" else f"{name}, seed {seed}")
        if entry["row"] not in run.kept.results:
            raise ValueError(f"{evaluated} has no results of {entry['row']!r}; run the study again")
        runs.append(run)
    rows = [entry["row"] for entry in arm["runs"].values()]
    return Arm(name, runs, rows, is_own=arm["kind"] != "baseline")


def _comparison(entry: Mapping[str, Any]) -> Comparison:
    return Comparison(**{**entry, "by_seed": tuple(entry["by_seed"])})


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the names and values of facts about a study, such as the command, the seeds and the smallest detectable
    difference."""
    smallest = content.get("smallest_difference")
    facts = [
        ("command", content.get("command")),
        ("commit", content.get("commit")),
        ("trl-rec", content.get("version")),
        ("finished", content.get("finished")),
        ("seeds", ", ".join(str(seed) for seed in content.get("seeds", []))),
        (f"smallest detectable difference in {content['primary']}", smallest and f"{smallest:.4f}"),
    ]
    for name, arm in content["arms"].items():
        if isinstance(arm.get("headroom"), int | float):
            facts.append((f"headroom of {name} in {content['primary']}", f"{arm['headroom']:.4f}"))
        if arm.get("chosen"):
            facts.append((f"settings chosen for {name}", json.dumps(arm["chosen"])))
    return [(name, str(value)) for name, value in facts if value]


# The dataset


def _dataset(kept: KeptEvaluation, path: str | Path | None) -> RecDataset | None:
    """Loads the dataset that was used in the evaluation. If no path is given, and the recorded folder is missing or no
    longer contains this dataset, returns None."""
    recorded = kept.settings.get("dataset")
    if path is None and (not isinstance(recorded, str) or not (Path(recorded) / "card.json").is_file()):
        return None
    try:
        dataset = load(str(recorded) if path is None else path)
        _check_same_rows(kept, dataset)
    except ValueError:
        if path is None:  # the recorded folder now contains another dataset, or a damaged one
            return None
        raise
    return dataset


def _check_same_rows(kept: KeptEvaluation, dataset: RecDataset) -> None:
    """Raises `ValueError` if the evaluation used a different dataset."""
    is_same = dataset.catalog.fingerprint == kept.identity["catalog"]
    # With rated items, `identity["rows"]` also depends on the settings of the run, so it cannot be computed here.
    if is_same and not is_rated(kept):
        is_same = describe_rows(dataset, kept.split, rows=kept.users["row"])[1] == kept.identity["rows"]
    if not is_same:
        raise ValueError(
            f"the items or users of {dataset.path} differ from those of the evaluation in {kept.folder}; give the "
            "dataset folder of the run"
        )
