"""Tests the two benchmarks of beam search. `beam_trap` uses a synthetic log with a trap: many unlikely items share a
likely code in their semantic IDs, so a beam search can lose the likely items. `beam_gap` measures the NDCG that is
lost because the beam searches of saved policies prune items."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.programs import load_program
from trl_rec.models import RecModelConfig
from trl_rec.trainer import BearConfig, build_bear_trainer, conclude


beam_trap = load_program("benchmarks/beam_trap.py")
beam_gap = load_program("benchmarks/beam_gap.py")


@pytest.mark.parametrize("strength", [0.25, 1.0, 4.0])
def test_the_true_probabilities_have_a_trap_of_the_given_strength(strength: float) -> None:
    probabilities = beam_trap.truth(strength)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    unlikely = probabilities[:, : beam_trap.NUM_UNLIKELY]
    second = unlikely[0].reshape(beam_trap.NUM_SECOND, -1).sum(1)
    likely = probabilities[0, beam_trap.NUM_UNLIKELY :][: beam_trap.PER_TASTE]
    np.testing.assert_allclose(second, strength * likely.mean())
    assert likely.min() > unlikely.max()
    # The second codes in the semantic IDs of the unlikely items have 16 different values, all equally probable. If the
    # model has the true probabilities, a beam search of at most 16 beams keeps a likely item only if the item is more
    # probable than each of these values.
    assert (likely > second[0]).any() == (strength < 1.45) and (likely > second[0]).all() == (strength < 0.55)


def test_the_figures_are_exact_probabilities() -> None:
    probabilities = np.array([[0.4, 0.3, 0.2, 0.1]])
    found = beam_trap.figures(probabilities, np.array([[0, 3]]), np.array([[0, 2]]), 2)
    expected = {"recall": 0.5, "every item": 0.6, "best": 0.7, "pruning_rate": 0.2 / 0.6}
    assert found == pytest.approx(expected)


@pytest.mark.slow
def test_a_measurement_of_the_trap_continues_with_more_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "trap"), "--strengths", "4", "--users", "60", "--steps", "2", "--num_beams", "3"]
    beam_trap.main([*words, "--seeds", "0"])
    path = tmp_path / "trap" / "beam_trap.json"
    first = json.loads(path.read_text())
    assert [run["arm"] for run in first["runs"]] == list(beam_trap.ARMS)
    beam_trap.main([*words, "--seeds", "0", "1"])
    content = json.loads(path.read_text())
    assert content["runs"][:3] == first["runs"] and len(content["runs"]) == 6
    assert [entry["seeds"] for entry in content["means"]] == [2, 2, 2]
    assert "PruningRate@3" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="was made with the settings"):
        beam_trap.main([*words, "--steps", "3"])


@pytest.mark.slow
def test_the_beam_gaps_of_runs_are_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = beam_trap.make_world(tmp_path / "world", 2.0, 40)
    for seed in (0, 1):
        config = BearConfig(
            str(tmp_path / "runs" / "msl" / f"seed-{seed}"),
            max_steps=2,
            bear_weight=0.0,
            final_split="validation",
            eval_exclude_history=False,
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            seed=seed,
        )
        trainer = build_bear_trainer(dataset, config, RecModelConfig(hidden_size=16))
        trainer.train()
        conclude(trainer, dataset, {})
        trainer.end()
    words = ["--output", str(tmp_path / "gaps.json"), "--beams", "1", "3", "--max_users", "20"]
    beam_gap.main([str(tmp_path / "runs"), *words])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("msl")]
    assert [line.split()[1:3] for line in lines] == [["2", "1"], ["2", "3"]]
    content = json.loads((tmp_path / "gaps.json").read_text())
    assert len(content["runs"]) == 2 and content["smallest"] == {str(dataset.path): pytest.approx(0.1, abs=0.1)}

    # The gaps of runs that were already measured are read from the file.
    for run, share in zip(content["runs"].values(), (0.25, 0.5), strict=True):
        run["gaps"][0]["pruning_rate"] = 0.987654
        run["gaps"][1]["lost_share"] = share
    (tmp_path / "gaps.json").write_text(json.dumps(content))
    beam_gap.main([str(tmp_path / "runs"), *words])
    printed = capsys.readouterr().out
    assert "0.9877" in printed and "0.3750" in printed  # the mean over the seeds
    with pytest.raises(SystemExit, match="no run folder of a model that recommends"):
        beam_gap.main([str(tmp_path / "world"), *words])
