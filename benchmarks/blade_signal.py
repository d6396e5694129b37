"""Compares settings of BLADE by their training logs: the share of tied pairs of lists, and the reward at a given KL.

    python benchmarks/blade_signal.py runs/study-ml-100k-blade-setting --choose
    python benchmarks/blade_signal.py runs/study-ml-100k-blade-frozen --kl 6 8 10

In training, BLADE samples several lists per prompt. Each list has a learning target, usually computed from the rank of
its reward among other lists of the prompt. The static target Best-of-N ranks a list only among lists of the supervised
policy (the model before this training). BLADE's moving target ranks it also among the lists sampled in the same step.

The argument is the folder of a study. The program reads its logs and metrics, and trains nothing. The first table has
one row per setting (an arm, or one combination of values in an arm's `grid`), averaged over its seeds. It describes
the last quarter of each run: tied pairs (share of pairs of lists of a prompt with equal learning targets), dead groups
(share of prompts whose lists all have the same learning target), the standard deviation of the learning target, the KL
divergence from the supervised policy, and the reward of the lists sampled in training. The column "kept" contains
NDCG@10 on validation, divided by that of the supervised policy (the arm `--against`) with the same seed.

`--choose` applies a rule that is fixed beforehand: of the settings that keep at least `--keep` of the supervised NDCG,
the one with the largest share of tied pairs is chosen. The rule is meant for runs with the static target: where this
target ties many pairs, the moving target should help most. The rule uses means over the seeds. The chosen setting is
written to `setting.json` in the folder of the study.

`--kl` prints the reward of the lists sampled in training at the step where the KL divergence first reaches each given
level. The reward and the KL divergence are moving averages over a tenth of the log. "-" means that at least one run
never reaches the level.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trl_rec.evaluation.kept.files import METRICS
from trl_rec.evaluation.tables import aligned
from trl_rec.files import write_json


SIGNALS = {
    "tied pairs": "blade/tied_pairs",
    "dead groups": "blade/dead_groups",
    "target std": "blade/target_std",
    "KL": "kl",
    "reward": "reward",
}
NDCG = "ndcg@10"


def main(words: list[str] | None = None) -> None:
    """Prints the tables. With `--choose`, also chooses a setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--against", default="sft", help="name of the arm with the supervised policy")
    parser.add_argument("--choose", action="store_true", help="choose a setting, and write it to setting.json")
    parser.add_argument(
        "--keep", type=float, default=0.9, help="minimum share of the supervised NDCG that the chosen setting keeps"
    )
    parser.add_argument(
        "--kl", type=float, nargs="*", default=[], help="also print the reward at these levels of the KL divergence"
    )
    arguments = parser.parse_args(words)

    # 1. Read the runs by setting (an arm, or one combination of values in its `grid`). A setting has one run per seed.
    runs: dict[str, list[tuple[dict[str, float], list[dict[str, float]]]]] = {}
    top = arguments.study / "runs"
    for path in sorted(top.rglob("eval.jsonl")):
        log = [json.loads(line) for line in path.read_text().splitlines()]
        log = [entry for entry in log if SIGNALS["tied pairs"] in entry]
        setting = path.parent.parent.relative_to(top).as_posix()
        if log:
            reference = top / arguments.against / path.parent.name
            for run in (path.parent, reference):
                if not (run / METRICS).exists():
                    raise SystemExit(f"{run} is not a finished run; complete the study, or change --against")
            kept = validation_ndcg(path.parent) / validation_ndcg(reference)
            runs.setdefault(setting, []).append(({**last_quarter(log), "kept": kept}, log))
    if not runs:
        raise SystemExit(f"{top} has no finished run of BLADE")

    # 2. Print the tables, and choose a setting.
    means = {
        setting: {name: float(np.mean([one[name] for one, _ in of_setting])) for name in of_setting[0][0]}
        for setting, of_setting in runs.items()
    }
    rows = [["setting", "seeds", *SIGNALS, "kept"]]
    rows += [[name, str(len(runs[name])), *(f"{one[key]:.4f}" for key in rows[0][2:])] for name, one in means.items()]
    print("\n".join(aligned(rows)))
    if arguments.kl:
        head = ["reward at KL", *(f"{level:g}" for level in arguments.kl)]
        at_kl = {name: [_mean_at(of_setting, level) for level in arguments.kl] for name, of_setting in runs.items()}
        print("\n" + "\n".join(aligned([head, *([name, *values] for name, values in at_kl.items())])))
    if arguments.choose:
        chosen = choose(means, arguments.keep)
        content = {"rule": {"keep": arguments.keep, "of": NDCG}, "chosen": chosen, "settings": means}
        write_json(arguments.study / "setting.json", content)
        enough = f"at least {arguments.keep:.0%} of the supervised {NDCG}"
        if chosen:
            print(f"\n{chosen} has the most tied pairs of all settings that keep {enough}")
        else:
            print(f"\nno setting keeps {enough}")


def last_quarter(log: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean of each signal over the last quarter of the log."""
    last = log[-max(1, len(log) // 4) :]
    return {name: float(np.mean([entry[key] for entry in last])) for name, key in SIGNALS.items()}


def choose(settings: Mapping[str, Mapping[str, float]], keep: float) -> str | None:
    """Returns the setting with the largest share of tied pairs among those that keep enough NDCG, or None."""
    enough = [name for name, one in settings.items() if round(one["kept"], 9) >= keep]
    return max(enough, key=lambda name: settings[name]["tied pairs"], default=None)


def reward_at(log: Sequence[Mapping[str, float]], level: float) -> float | None:
    """Returns the reward where the KL divergence first reaches a level, or None if it never does."""
    width = max(1, len(log) // 10)
    kernel = np.ones(width) / width
    kl, reward = (np.convolve([entry[name] for entry in log], kernel, "valid") for name in ("kl", "reward"))
    reached = np.flatnonzero(kl >= level)
    return float(reward[reached[0]]) if len(reached) else None


def _mean_at(runs: Sequence[tuple[Any, Sequence[Mapping[str, float]]]], level: float) -> str:
    values = [reward_at(log, level) for _, log in runs]
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.4f}" if len(known) == len(values) else "-"


def validation_ndcg(run: Path) -> float:
    """Returns NDCG@10 of a run on validation."""
    content = json.loads((run / METRICS).read_text())
    if content["split"] != "validation":
        raise SystemExit(f"{run} was measured on the {content['split']} split, not on validation")
    return float(content["results"][content["recommender"]]["metrics"][NDCG])


if __name__ == "__main__":
    main()
