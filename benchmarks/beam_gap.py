"""Measures the NDCG that is lost because the beam search of a saved policy prunes items, for several numbers of beams.

    OMP_NUM_THREADS=1 python benchmarks/beam_gap.py runs/study-ml-100k-beam --output runs/beam-gap-ml-100k.json

Each positional argument is a run folder, or a folder that contains run folders, such as that of a study. Run folders
that are named `seed-N` and have the same parent folder are seeds of one policy. For each run, all items are scored
once, and a beam search is run with each number of beams. With B beams, NDCG@min(10, B) is measured for the items that
the search finds, and for the items with the best scores among all items. The gap is the second value minus the first.

The figures of every measured run are kept in the output file, so an interrupted command can be run again to continue.
The program prints a table. Its column "detectable" contains the smallest difference in NDCG@10 that a study on the
test split can detect. The word "above" follows if the absolute mean gap over the seeds is at least as large, so that a
study is worthwhile. With fewer than 10 beams, the gap is in NDCG@B, so "above" is only a rough guide. As in
`trl-rec study`, the smallest difference is estimated from the transition and the popularity baseline on validation.
The column "PruningRate" considers the targets that are among the B items with the best scores. It contains the share
of these targets that the beam search does not find. The column "lost" considers all B items with the best scores,
whether they are targets or not. It contains the share of these items that the beam search does not find. The column
"seconds" contains the time of the beam search.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_rec.data import RecDataset, load
from trl_rec.decoding.run_folder import settings_of_run
from trl_rec.evaluation import (
    EvaluationConfig,
    evaluate_baselines,
    evaluation_settings,
    measure_beam_gaps,
    smallest_difference,
)
from trl_rec.evaluation.kept.files import METRICS
from trl_rec.evaluation.saved_model.model import load_policy
from trl_rec.evaluation.tables import aligned
from trl_rec.files import write_json


K = 10


def main(words: list[str] | None = None) -> None:
    """Measures every run that the output file lacks, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folders", type=Path, nargs="+", help="run folders, or folders that contain run folders")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20, 50])
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--max_users", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=32)
    arguments = parser.parse_args(words)

    # 1. Measure the runs that the output file lacks.
    settings = {name: getattr(arguments, name) for name in ("beams", "split", "max_users")}
    content: dict[str, Any] = {"settings": settings, "smallest": {}, "runs": {}}
    if arguments.output.is_file():
        content = json.loads(arguments.output.read_text())
        if content["settings"] != settings:
            raise SystemExit(
                f"{arguments.output} was made with the settings {content['settings']}, not with those given; choose "
                "another file"
            )
    runs = list(run_folders(arguments.folders))
    if not runs:
        names = ", ".join(map(str, arguments.folders))
        raise SystemExit(
            f"{names}: there is no run folder of a model that recommends; give one that 'trl-rec bear' wrote"
        )
    for run in runs:
        if str(run) not in content["runs"]:
            content["runs"][str(run)] = measure(run, arguments, content["smallest"])
            write_json(arguments.output, content)

    # 2. Print the table.
    found = {name: one for name, one in content["runs"].items() if Path(name) in runs}
    print("\n".join(aligned(table(found, content["smallest"], arguments.beams))))


def run_folders(folders: Sequence[Path]) -> Iterator[Path]:
    """Yields the run folders of models that recommend, in the order of `folders`."""
    for folder in folders:
        inside = [folder] if settings_of_run(str(folder)) else sorted(path.parent for path in folder.rglob(METRICS))
        yield from (path for path in inside if settings_of_run(str(path)))


def measure(run: Path, arguments: argparse.Namespace, smallest: dict[str, float]) -> dict[str, Any]:
    """Returns the figures of a run. Adds the detectable difference of its dataset to `smallest`."""
    folder = json.loads((run / METRICS).read_text())["settings"]["dataset"]
    config = evaluation_settings(EvaluationConfig(model=str(run), batch_size=arguments.batch_size))
    assert config.surface is not None
    dataset = load(folder).with_surface(config.surface)
    if folder not in smallest:
        smallest[folder] = detectable(dataset)
    gaps = measure_beam_gaps(
        load_policy(str(run), dataset, config),
        dataset,
        beams=arguments.beams,
        num_users=arguments.max_users,
        split=arguments.split,
        k=K,
    )
    return {"dataset": folder, "gaps": [gap.to_dict() for gap in gaps]}


def detectable(dataset: RecDataset) -> float:
    """Returns the smallest difference in NDCG@10 that a study on the test split can detect."""
    pilot = evaluate_baselines(dataset, split="validation", ks=[K], baselines=["transition", "popularity"])
    of_transition, of_popularity = ([pilot[name].per_user] for name in ("transition", "popularity"))
    return smallest_difference(of_transition, of_popularity, metric=f"ndcg@{K}", num_users=len(dataset.test))


def table(
    runs: Mapping[str, Mapping[str, Any]], smallest: Mapping[str, float], beams: Sequence[int]
) -> list[list[str]]:
    """Returns the rows of the table: one per policy and number of beams, averaged over the seeds."""
    names = [
        "policy",
        "seeds",
        "beams",
        "ndcg",
        "every item",
        "gap",
        "by seed",
        "detectable",
        "PruningRate",
        "lost",
        "seconds",
    ]
    rows = [names]
    policies: dict[str, list[str]] = {}
    for run in runs:
        path = Path(run)
        policies.setdefault(str(path.parent if path.name.startswith("seed-") else path), []).append(run)
    for policy, own in policies.items():
        least = smallest[runs[own[0]]["dataset"]]
        for place, num_beams in enumerate(beams):
            gaps = [runs[run]["gaps"][place] for run in own]
            name = f"ndcg@{min(K, num_beams)}"
            by_seed = [gap["gaps"][name]["difference"] for gap in gaps]
            rates = [gap["pruning_rate"] for gap in gaps if gap["pruning_rate"] is not None]
            lost = [gap["lost_share"] for gap in gaps if gap.get("lost_share") is not None]
            mark = " above" if abs(np.mean(by_seed)) >= least else ""
            rows.append(
                [
                    Path(policy).name,
                    str(len(own)),
                    str(num_beams),
                    f"{np.mean([gap['beam'][name] for gap in gaps]):.4f}",
                    f"{np.mean([gap['exhaustive'][name] for gap in gaps]):.4f}",
                    f"{np.mean(by_seed):+.4f}",
                    " ".join(f"{value:+.4f}" for value in by_seed),
                    f"{least:.4f}{mark}",
                    f"{np.mean(rates):.4f}" if rates else "-",
                    f"{np.mean(lost):.4f}" if lost else "-",
                    f"{np.mean([gap['beam_seconds'] for gap in gaps]):.1f}",
                ]
            )
    return rows


if __name__ == "__main__":
    main()
