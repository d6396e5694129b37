"""`trl-rec compare`: compares runs over the same users, with intervals, p-values and a verdict for each comparison.

Runs that differ only in the seed form an arm. With `--names`, runs with the same name form an arm instead. All arms
are compared with one arm or baseline (see `--against`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from trl_rec.evaluation import Comparison, KeptEvaluation, compare, comparison_table, slices
from trl_rec.evaluation.comparison.arms import Arms, prior_arms, read_arms, runs_of
from trl_rec.evaluation.comparison.closing import main_metrics, strongest_baseline
from trl_rec.evaluation.comparison.compare import adjust
from trl_rec.evaluation.comparison.pairing import PerUser
from trl_rec.files import write_json
from trl_rec.printing import printable
from trl_rec.scripts.options.parsing import parse


# A slice (a part of the users) is compared if at least this many of its users have a value of the metric in every run.
SMALLEST_SLICE = 2
SliceRuns: TypeAlias = dict[str, dict[int | None, PerUser]]  # the users' values in a slice, by arm and by seed


@dataclass
class CompareArguments:
    """Arguments for the runs to compare and for what to print."""

    runs: list[str] = field(
        metadata={"help": "output folders of trl-rec evaluate, or of training commands such as trl-rec bear"}
    )
    against: str | None = field(
        default=None,
        metadata={
            "help": "what to compare with: a run, the name of a recommender, or a baseline such as transition; if "
            "unset, the recommender of the first run, or the strongest baseline if all runs belong to one recommender"
        },
    )
    names: list[str] | None = field(
        default=None,
        metadata={
            "help": "a name for each run; runs with the same name are seeds of one recommender. If unset, runs whose "
            "recipes differ only in the seed are grouped"
        },
    )
    metric: str | None = field(
        default=None,
        metadata={"help": "metric to compare; if unset, NDCG (or graded NDCG) at the largest k, or else the reward"},
    )
    slices: bool = field(
        default=False,
        metadata={
            "help": "also compare within slices of the users: by target frequency, by history length, and by the "
            "target's group, such as a genre"
        },
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for the comparisons"})


KINDS = (CompareArguments,)


def main(argv: list[str]) -> None:
    """Prints a table of comparisons and, if requested, another table for each slice of the users."""
    arguments = parse(CompareArguments, _with_runs(argv), "compare")

    # 1. Read the runs. `against` may name a run that is not among `runs`.
    folders = list(arguments.runs)
    names = arguments.names
    if arguments.against is not None and _is_other_run(arguments.against, folders):
        folders.append(arguments.against)
        name = Path(arguments.against).name
        if names is not None:  # the run must not become another seed of an arm that has the same name by chance
            names = [*names, arguments.against if name in names else name]
    arms = read_arms(folders, names)

    # 2. Choose the metric, and the arm or baseline to compare with.
    first = next(iter(next(iter(arms.values())).values()))
    metric = arguments.metric or _metric(arms)
    default = next(iter(arms)) if len(arms) > 1 else None
    arms = prior_arms(arms)
    runs = {name: runs_of(arm) for name, arm in arms.items()}
    against = _reference(arguments.against, default, arms, first, metric)
    if against not in runs:
        runs[against] = {None: first.results[against].per_user}

    # 3. Compare, and print.
    compared = compare(runs, against=against, metric=metric)
    history = "excluded" if first.exclude_history else "not excluded"
    print(printable(f"{first.settings.get('dataset', '')}, {first.split} split, history {history}"), end="\n\n")
    print(comparison_table(runs, compared))

    # 4. Compare within each slice, and print.
    by_slice = _compare_slices(runs, against, metric, slices(first)) if arguments.slices else {}
    for name, (of_slice, comparisons) in by_slice.items():
        print(f"\n{printable(name)}: {comparisons[0].num_users:,} users\n")
        print(comparison_table(of_slice, comparisons, legend=False))
    if by_slice:
        print("\nthe p-values are adjusted for the number of comparisons in all slices together")

    # 5. Write all comparisons.
    if arguments.output is not None:
        _write(Path(arguments.output), arms, first, compared, {name: found for name, (_, found) in by_slice.items()})
        print(f"\nthe comparisons are in {arguments.output}")


def _with_runs(argv: Sequence[str]) -> list[str]:
    """Returns the words of the command line, with `--runs` in front if the first word is not an option."""
    return ["--runs", *argv] if argv and not argv[0].startswith("-") else list(argv)


def _is_other_run(against: str, folders: Sequence[str]) -> bool:
    """Returns whether `against` is a folder that is not among the runs."""
    return Path(against).is_dir() and Path(against).resolve() not in [Path(folder).resolve() for folder in folders]


def _metric(arms: Arms) -> str:
    """Returns the first metric that is among the [`main_metrics`] of every run."""
    of_runs = [main_metrics(run) for arm in arms.values() for run in runs_of(arm).values()]
    common = [metric for metric in of_runs[0] if all(metric in others for others in of_runs)]
    if not common:
        raise ValueError(
            "the runs have neither NDCG at the same largest k nor a reward in common; choose a metric with --metric"
        )
    return common[0]


def _reference(against: str | None, default: str | None, arms: Arms, first: KeptEvaluation, metric: str) -> str:
    """Returns the name of the arm or baseline to compare with.

    If `against` is None, returns `default`. If `default` is None as well, returns the strongest baseline.
    """
    if against is None:
        return default or strongest_baseline(first.results, metric)
    if against in arms:
        return against
    for name, arm in arms.items():
        if any(Path(against).resolve() == kept.folder.resolve() for kept in arm.values()):
            return name
    if against in first.results and against != first.recommender:
        return against
    known = [*arms, *(name for name in first.results if name != first.recommender)]
    raise ValueError(f"there is no run, name or baseline {against!r}; choose one of {', '.join(known)}")


def _compare_slices(
    runs: Mapping[str, Mapping[int | None, PerUser]], against: str, metric: str, masks: Mapping[str, np.ndarray]
) -> dict[str, tuple[SliceRuns, list[Comparison]]]:
    """Returns the runs and the comparisons of each slice. The p-values of all slices are adjusted together.

    A slice is left out if fewer than `SMALLEST_SLICE` of its users have a value of the metric in every run.
    """
    values = [per_user[metric] for by_seed in runs.values() for per_user in by_seed.values()]
    applies = ~np.isnan(values).any(0)  # (num_users,)
    found: list[tuple[str, SliceRuns, list[Comparison]]] = []
    for name, mask in masks.items():
        of_slice: SliceRuns = {
            arm: {seed: {metric: per_user[metric][mask]} for seed, per_user in by_seed.items()}
            for arm, by_seed in runs.items()
        }
        if (mask & applies).sum() >= SMALLEST_SLICE:
            found.append((name, of_slice, compare(of_slice, against=against, metric=metric)))

    adjusted = iter(adjust([comparison for *_, comparisons in found for comparison in comparisons]))
    return {name: (of_slice, [next(adjusted) for _ in comparisons]) for name, of_slice, comparisons in found}


def _write(
    path: Path,
    arms: Arms,
    first: KeptEvaluation,
    compared: Sequence[Comparison],
    by_slice: Mapping[str, Sequence[Comparison]],
) -> None:
    """Writes the comparisons, over all users and by slice, to a JSON file."""
    content = {
        "split": first.split,
        "exclude_history": first.exclude_history,
        "identity": first.identity,
        "runs": {
            name: [{"seed": seed, "folder": str(kept.folder)} for seed, kept in arm.items()]
            for name, arm in arms.items()
        },
        "comparisons": [asdict(comparison) for comparison in compared],
        "slices": {name: [asdict(comparison) for comparison in comparisons] for name, comparisons in by_slice.items()},
    }
    write_json(path, content, ensure_ascii=False, allow_nan=False)
