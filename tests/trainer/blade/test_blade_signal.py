"""Tests the benchmark that compares settings of BLADE by their logs: its tables, its choice of a setting, and the
reward when the KL divergence first reaches a given level."""

import json
from pathlib import Path

import pytest

from tests.programs import load_program


blade_signal = load_program("benchmarks/blade_signal.py")


def write_run(folder: Path, ndcg: float, log: list[dict[str, float]] | None = None) -> None:
    folder.mkdir(parents=True)
    content = {"split": "validation", "recommender": "X", "results": {"X": {"metrics": {"ndcg@10": ndcg}}}}
    (folder / "metrics.json").write_text(json.dumps(content))
    lines = [json.dumps(entry) for entry in log or [{"loss": 1.0}]]
    (folder / "eval.jsonl").write_text("\n".join(lines))


def entries(tied: list[float], kl: list[float], reward: list[float]) -> list[dict[str, float]]:
    others = {"blade/dead_groups": 0.1, "blade/target_std": 2.0}
    steps = zip(tied, kl, reward, strict=True)
    return [{"blade/tied_pairs": a, "kl": b, "reward": c, **others} for a, b, c in steps]


def test_the_setting_with_most_ties_is_chosen_among_those_that_keep_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    write_run(study / "runs/sft/seed-0", 0.2)
    log = [0.0, 1.0, 2.0, 3.0]
    write_run(study / "runs/mgu/beta=1/seed-0", 0.19, entries([0.9, 0.9, 0.9, 0.1], log, log))
    write_run(study / "runs/mgu/beta=.1/seed-0", 0.18, entries([0, 0, 0, 0.3], log, log))
    write_run(study / "runs/ndcg/seed-0", 0.1, entries([0, 0, 0, 0.7], log, log))
    blade_signal.main([str(study), "--choose", "--kl", "1.5", "9"])
    text = capsys.readouterr().out
    content = json.loads((study / "setting.json").read_text())
    assert content["chosen"] == "mgu/beta=.1" and list(content["settings"]) == ["mgu/beta=.1", "mgu/beta=1", "ndcg"]
    assert content["settings"]["mgu/beta=1"]["tied pairs"] == 0.1
    assert content["settings"]["mgu/beta=1"]["kept"] == pytest.approx(0.95)
    assert (
        "mgu/beta=.1 has the most tied pairs of all settings that keep at least 90% of the supervised ndcg@10" in text
    )
    at_kl = next(line.split() for line in text.splitlines()[7:] if line.startswith("ndcg"))
    assert at_kl == ["ndcg", "2.0000", "-"]
    blade_signal.main([str(study), "--choose", "--keep", "0.99"])
    assert json.loads((study / "setting.json").read_text())["chosen"] is None


def test_a_study_without_blade_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/sft/seed-0", 0.2)
    with pytest.raises(SystemExit, match="has no finished run of BLADE"):
        blade_signal.main([str(tmp_path)])


def test_a_run_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    for name in ("sft", "mgu"):
        write_run(tmp_path / f"runs/{name}/seed-0", 0.2, entries([0.5], [1.0], [2.0]) if name == "mgu" else [])
    (tmp_path / "runs/sft/seed-0/metrics.json").unlink()
    with pytest.raises(SystemExit, match="sft/seed-0 is not a finished run; complete the study"):
        blade_signal.main([str(tmp_path)])


def test_the_reward_at_a_kl_level_is_a_moving_average_over_a_tenth_of_the_log() -> None:
    log = entries([0.0] * 20, [float(step) for step in range(20)], [float(step) for step in range(20)])
    assert blade_signal.reward_at(log, 2.5) == 2.5 and blade_signal.reward_at(log, 18.6) is None
