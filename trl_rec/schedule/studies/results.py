"""Concludes a study: compares its arms (recommenders), and writes the table, `study.json` and the results page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trl_rec.evaluation.comparison.compare import Comparison, adjust, compare
from trl_rec.evaluation.intervals import bootstrap_interval
from trl_rec.evaluation.kept.environment import environment
from trl_rec.evaluation.kept.reading import KeptEvaluation, check_comparable
from trl_rec.evaluation.report import write_report
from trl_rec.evaluation.tables import aligned
from trl_rec.files import write_json, write_text
from trl_rec.schedule.studies.choice import best
from trl_rec.schedule.studies.measuring import Measured
from trl_rec.schedule.studies.resolution import Resolution
from trl_rec.schedule.studies.runs import seconds_if_finished
from trl_rec.schedule.studies.training import validation_value


if TYPE_CHECKING:
    from trl_rec.schedule.studies.study import Study

RESULTS = "study.json"
TABLE = "table.txt"
REPORT = "report.html"
PerUser = Mapping[str, np.ndarray]


def conclude(
    study: Study, resolved: Resolution, chosen: Mapping[str, int], measured: Mapping[str, Measured]
) -> dict[str, Any]:
    """Compares the arms, prints and writes the results, and returns the content of `study.json`.

    Args:
        study: The study.
        resolved: The smallest difference that the study can detect, and the headroom of its arms, which is an upper
            bound on how much each arm can gain.
        chosen: Maps the name of each arm that is a training to the index of its chosen settings in `Arm.grid`.
        measured: The measurements of each arm.
    """
    # 1. Read the evaluations, and compare the arms.
    evaluations = {name: one.read() for name, one in measured.items()}
    everything = [kept for by_seed in evaluations.values() for kept, _ in by_seed.values()]
    for kept in everything[1:]:
        check_comparable(everything[0], kept)
    runs = {
        name: {seed: kept.results[row].per_user for seed, (kept, row) in by_seed.items()}
        for name, by_seed in evaluations.items()
    }
    comparisons = compare_pairs(study.comparisons, runs, study.config.primary)

    # 2. Write the results.
    arms = {
        name: {
            **_arm_entry(study, name, chosen, resolved),
            **(_figures(runs[name], measured[name], evaluations[name], study) if name in runs else {}),
        }
        for name in study.arms
    }
    state = environment()
    content: dict[str, Any] = {
        "status": "complete",
        "command": study.command,
        "commit": _commit(state["git"]),
        "version": state["versions"]["trl-rec"],
        "versions": state["versions"],
        "device": state["device"],
        "finished": datetime.now(UTC).strftime("%Y-%m-%d"),
        "dataset": study.dataset_folder,
        "identity": everything[0].identity,
        "split": everything[0].split,
        "num_users": everything[0].num_users,
        "exclude_history": everything[0].exclude_history,
        "seeds": study.config.seeds,
        "primary": study.config.primary,
        "metrics": study.config.metrics,
        "against": study.config.against,
        "smallest_difference": resolved.smallest,
        "comparisons": [asdict(one) for one in comparisons],
        "arms": arms,
    }
    if study.config.recommend:
        content["recommendation"] = recommendation(
            study.config.against, comparisons, arms, choose_by=study.config.choice_measure
        )
    write_json(study.folder / RESULTS, content, ensure_ascii=False)

    # 3. Print the table and write the results page.
    metrics = [*study.config.metrics, study.config.primary]
    table = study_table(arms, comparisons, metrics=metrics, against=study.config.against, split=content["split"])
    write_text(study.folder / TABLE, table + "\n")
    study.say(f"\n{table}\n")
    _write_page(study)
    if study.config.recommend:
        study.say(content["recommendation"])
    return content


def compare_pairs(
    pairs: Sequence[tuple[str, str]], runs: Mapping[str, Mapping[int | None, PerUser]], metric: str
) -> list[Comparison]:
    """Compares the two arms of each pair, if both were measured. The p-values are adjusted for the number of these
    pairs."""
    found = []
    for name, against in pairs:
        if name in runs and against in runs:
            found += compare({name: runs[name], against: runs[against]}, against=against, metric=metric)
    return adjust(found)


def recommendation(
    against: str,
    comparisons: Sequence[Comparison],
    arms: Mapping[str, Mapping[str, Any]],
    *,
    choose_by: str | None = None,
) -> str:
    """Returns "use ARM", where ARM is better than X, the arm named by `against`.

    If no arm is better than X, returns "use X" if some arms are worse, and "no difference from X" otherwise.

    If several arms are better, ARM is the one with the best value of `choose_by` (by default the primary measure) on
    validation. The test split is not used to choose, because the measure of the chosen arm would then be
    overestimated. Only trainings have a value on validation. If one of the better arms has none, the result names all
    better arms instead.
    """
    better = [one for one in comparisons if one.against == against and one.verdict.startswith("better")]
    worse = [one.name for one in comparisons if one.against == against and one.verdict.startswith("worse")]
    if not better and worse:
        return f"use {against} (no arm is better, and these are worse: {', '.join(worse)})"
    if not better:
        return f"no difference from {against}"
    validation = {one.name: arms[one.name].get("validation") for one in better}
    known = {name: value for name, value in validation.items() if value is not None}
    if len(better) > 1 and len(known) < len(better):
        return f"use one of {', '.join(validation)}: not all of them have a validation measure to choose by"
    name = best(known, choose_by or better[0].metric) if known else better[0].name
    one = next(one for one in better if one.name == name)
    return f"use {name} ({one.verdict} than {against}: {one.metric} {one.mean:.4f} against {one.reference:.4f})"


def _commit(git: Mapping[str, Any] | None) -> str | None:
    """Returns the commit of the current directory, followed by `+` if files differ from the commit."""
    return None if git is None else f"{git['commit'][:12]}{'+' if git['dirty'] else ''}"


def _arm_entry(study: Study, name: str, chosen: Mapping[str, int], resolved: Resolution) -> dict[str, Any]:
    """Returns an arm's entry in `study.json` without the figures: what the arm is, and whether it was measured."""
    arm = study.arms[name]
    entry: dict[str, Any] = {"status": "measured"}
    if arm.baseline is not None:
        entry |= {"kind": "baseline", "baseline": arm.baseline}
    elif arm.lists is not None:
        entry |= {"kind": "lists", "lists": arm.lists}
    elif arm.policy is not None:
        entry |= {"kind": "policy", "policy": arm.policy, "evaluation": arm.evaluation, "row": arm.row}
    else:
        entry |= {"kind": "training", "verb": arm.verb, "recipe": arm.recipe, "start": arm.start}
        entry["headroom"] = resolved.headroom(arm)
        if len(arm.grid) > 1 and name in chosen:
            entry["chosen"] = arm.grid[chosen[name]]
    if name in study.left_out:
        entry |= {"status": "left out", "reason": study.left_out[name]}
    return entry


def _figures(
    runs: Mapping[int | None, PerUser],
    measured: Measured,
    evaluations: Mapping[int | None, tuple[KeptEvaluation, str]],
    study: Study,
) -> dict[str, Any]:
    """Returns the figures of an arm in `study.json`.

    - `figures`: for each measure, the mean over users and seeds, the interval of this mean, the mean of each seed, and
      the number of users. Only users who have a value with every seed are counted;
    - `runs`: for each seed, the folder of the measurement (`test`), the name that the arm's results have in this
      folder (`row`) and, for a training, the result of [`_training_entry`];
    - `validation`: the measure on validation by which the arm's settings are chosen, averaged over the seeds, or None
      if no run has this measure.
    """
    shown = [*study.config.metrics, study.config.primary]
    known = [metric for metric in shown if all(metric in per_user for per_user in runs.values())]
    figures: dict[str, Any] = {}
    for metric in known:
        values = np.stack([per_user[metric] for per_user in runs.values()])  # (seeds, users)
        values = values[:, np.isfinite(values).all(0)]
        if not values.size:
            continue
        figures[metric] = {
            "mean": float(values.mean()),
            "interval": list(bootstrap_interval(values)),
            "by_seed": [float(value) for value in values.mean(1)],
            "num_users": values.shape[1],
        }
    folders = {
        "none" if seed is None else str(seed): {
            "test": str(folder.relative_to(study.folder)),
            "row": evaluations[seed][1],
            # A baseline, or an arm that measures another arm's policies, may have its results in the folder of a
            # training's measurement. Do not record this training for such an arm.
            **({} if measured.row or measured.part else _training_entry(study, folder)),
        }
        for seed, folder in measured.folders.items()
    }
    validation = [one["validation"] for one in folders.values() if one.get("validation") is not None]
    return {
        "figures": figures,
        "runs": folders,
        "validation": float(np.mean(validation)) if validation else None,
    }


def _training_entry(study: Study, folder: Path) -> dict[str, Any]:
    """Returns the folder of a training, its seconds and its validation measure, for `study.json`.

    Args:
        study: The study.
        folder: The folder of a measurement. If a trained model was not measured there, the result is empty.
    """
    run = study.measured_trainings.get(folder)
    if run is None:
        return {}
    return {
        "run": str(run.path.relative_to(study.folder)),
        "seconds": seconds_if_finished(run),
        "validation": validation_value(run, study.config.choice_measure),
    }


def study_table(
    arms: Mapping[str, Mapping[str, Any]],
    comparisons: Sequence[Comparison],
    *,
    metrics: Sequence[str],
    against: str,
    split: str = "test",
) -> str:
    """Makes the table of a study. Each row contains the figures of a measured arm, and its comparison with `against`.

    Below the rows are one line per comparison with an arm other than `against`, one line per arm that is left out, and
    a legend.

    Args:
        arms: The arms, as in `study.json`.
        comparisons: The comparisons.
        metrics: The measures to show. The last one is the primary measure, which is used for the comparisons.
        against: The arm that the columns "difference", "adjusted p" and "verdict" compare with.
        split: The split that was measured.
    """
    # 1. Make one row per measured arm.
    with_reference = {one.name: one for one in comparisons if one.against == against}
    rows = [["", "seeds", *metrics, f"{metrics[-1]} by seed", "validation", "difference", "adjusted p", "verdict"]]
    for name, arm in arms.items():
        if "figures" not in arm:
            continue
        figures = [arm["figures"].get(metric) for metric in metrics]
        cells = [
            "-" if one is None else f"{one['mean']:.4f} \N{PLUS-MINUS SIGN}{_half(one['interval']):.4f}"
            for one in figures
        ]
        by_seed = figures[-1]["by_seed"] if figures[-1] is not None and arm["kind"] in ("training", "policy") else []
        compared = with_reference.get(name)
        verdict = ["-", "-", "reference" if name == against else "-"]
        if compared is not None:
            verdict = [f"{compared.difference:+.4f}", f"{compared.adjusted_p:.4f}", compared.verdict]
        rows.append(
            [
                name,
                str(len(by_seed) or "-"),
                *cells,
                " ".join(f"{value:.4f}" for value in by_seed) or "-",
                "-" if arm["validation"] is None else f"{arm['validation']:.4f}",
                *verdict,
            ]
        )
    width = max(len(row[-1]) for row in rows)
    lines = aligned([[*row[:-1], row[-1].ljust(width)] for row in rows])

    # 2. Add one line for each other comparison and for each arm that is left out.
    lines += [""]
    for one in comparisons:
        if one.against != against:
            lines.append(
                f"{one.name} against {one.against}: {one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f}), "
                f"adjusted p {one.adjusted_p:.4f}: {one.verdict}"
            )
    lines += [f"{name} is left out: {arm['reason']}" for name, arm in arms.items() if arm["status"] == "left out"]
    return "\n".join([*lines, *_legend(comparisons, against, split)])


def _half(interval: Sequence[float]) -> float:
    return (interval[1] - interval[0]) / 2


def _legend(comparisons: Sequence[Comparison], against: str, split: str) -> list[str]:
    if not comparisons:
        return []
    return [
        f"{comparisons[0].num_users:,} {split} users; difference: the arm minus {against}, paired by user and by seed",
        "\N{PLUS-MINUS SIGN}: half the width of the 95 % interval (bootstrap over users; with several seeds, it "
        "also covers the variation between seeds); adjusted p: p-value adjusted by Holm's method for "
        f"{len(comparisons)} comparisons",
    ]


def _write_page(study: Study) -> None:
    """Writes the results page of the study, `report.html`."""
    write_report([study.folder], study.folder / REPORT)
    study.say(f"the results page is {study.folder / REPORT}; the figures are in {study.folder / RESULTS}")
