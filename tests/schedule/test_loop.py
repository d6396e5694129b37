"""Runs the stages of a schedule, and tests where each stage starts, which policy is kept, and how a killed run
resumes."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import log_of, run_alone, run_in_two, start
from tests.schedule.loops import STAGES, make_schedule, make_start, run, run_as_one_of_two
from trl_rec import PreferenceStage, Recommender, load, prepare, run_stages
from trl_rec.decoding import PopularityPrior, TransitionPrior
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.evaluation import Policy, read_evaluation
from trl_rec.evaluation.policy import preference_accuracy
from trl_rec.files import write_json
from trl_rec.schedule import conclude_stages, loop, stage_table
from trl_rec.schedule.prefixes import column
from trl_rec.schedule.stages import read_stages
from trl_rec.scripts.options.recipe_files import read_recipe


NAMES = ["1-self_play-easy", "2-feedback-hard", "3-random-any"]

# Files that a schedule, or the training of a single policy, writes to its output folder beside the policy.
WRITTEN = {"metrics.json", "rankings.parquet", "recipe.yaml", "environment.json", "eval.jsonl", "stages.json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schedule")
    make_start(folder)
    return folder


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The output folder of a complete run with every step logged, and the reports of its stages."""
    output = folder / "finished"
    return output, run(folder, output)


def weights(folder: Path) -> dict[str, list[float]]:
    name = "adapter_model.safetensors" if (folder / "adapter_config.json").is_file() else "model.safetensors"
    return {key: value.flatten().tolist() for key, value in load_file(folder / name).items()}


def losses(folder: Path) -> list[float]:
    entries = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_each_stage_starts_from_the_last_policy_and_uses_it_as_reference(finished: Any, folder: Path) -> None:
    output, reports = finished
    assert [report["kept"] for report in reports] == [True] * 3
    for name, report in zip(NAMES, reports, strict=True):
        first = losses(output / name)[0]
        # At the first step, the policy equals its reference, so three negatives give the loss log(4). Self-play may
        # find fewer or more than three.
        if report["name"] != "self_play-easy":
            assert first == pytest.approx(math.log(4), abs=1e-5)
        assert losses(output / name)[-1] != pytest.approx(first, abs=1e-3)
    assert all(one["after"] == two["before"] for one, two in zip(reports, reports[1:], strict=False))
    assert weights(output) == weights(output / NAMES[-1])
    assert len({str(weights(output / name)) for name in NAMES}) == 3


def test_finished_stages_are_not_run_again(finished: Any, folder: Path) -> None:
    output, reports = finished
    before = {path: path.stat().st_mtime_ns for path in output.glob("*-*/*")}
    assert run(folder, output) == reports
    assert {path: path.stat().st_mtime_ns for path in output.glob("*-*/*")} == before
    assert not list(output.rglob("checkpoint-*"))


def test_the_last_policy_recommends_from_the_output_folder(finished: Any) -> None:
    output, _ = finished
    items = Recommender.from_pretrained(output).catalog.ids
    assert len(Recommender.from_pretrained(output).recommend(items[:3], k=5)) == 5


def test_the_report_names_stages_and_baselines(finished: Any, folder: Path, capsys: pytest.CaptureFixture) -> None:
    output, reports = finished
    results = conclude_stages(reports, folder / "sft", make_schedule(folder, output))
    assert list(results) == ["random", "popularity", "transition", "before", "after"]
    printed = capsys.readouterr().out
    assert "1 self_play-easy" in printed and "transition" in printed
    assert json.loads((output / "stages.json").read_text()) == reports
    kept = read_evaluation(output)
    np.testing.assert_array_equal(kept.rankings_of("after").items, results["after"].rankings.items)
    assert (kept.recommender, kept.settings["start"]) == ("after", str(folder / "sft"))
    recipe = read_recipe(output / "recipe.yaml")
    assert recipe["stages"][2] == {"source": "random", "difficulty": "any", **recipe["stages"][2]}
    assert recipe["stages"][2]["learning_rate"] == 0.05 and recipe["surface"] == "semantic_id"
    assert read_stages(recipe["stages"]) == [*STAGES]
    logged = [json.loads(line) for line in (output / "eval.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in logged if entry["stage"] == 2 and "loss" in entry] == losses(output / NAMES[1])
    assert stage_table(reports, "eval_ndcg@10").splitlines()[0].split()[:3] == ["stage", "prompts", "none"]


@pytest.mark.parametrize("is_run_folder", [True, False])
def test_the_prior_of_the_first_policy_is_not_that_of_the_last(
    is_run_folder: bool, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Neither the prior nor `choice.json`, which records how the prior was chosen, is copied from the policy that the
    first stage starts from. A copy of this `choice.json` would say that the last policy had been measured on the test
    split."""
    dataset = load(folder / "data")
    shutil.copytree(folder / "sft", tmp_path / "start", ignore=shutil.ignore_patterns("checkpoint-*"))
    save_run_prior(tmp_path / "start", TransitionPrior.fit(dataset.train, len(dataset.catalog)))
    write_json(tmp_path / "start/choice.json", {"prior": "transition", "strength": 1.0, "eps": 0.5, "split": "test"})
    if not is_run_folder:
        (tmp_path / "start/recommender.json").unlink()
        shutil.rmtree(tmp_path / "start/catalog")

    # Make a schedule whose only stage is finished and was not kept.
    report = {"stage": 1, "name": "random-any", "num_prompts": 1, "without_negatives": 1.0, "mean_negatives": 0.0}
    options = {"prior": "popularity", "prior_strength": "2", "final_split": "none"}
    schedule = make_schedule(folder, tmp_path / "out", **options)
    (tmp_path / "out/1-random-any").mkdir(parents=True)
    write_json(tmp_path / "out/1-random-any/stage.json", {**report, "before": {}, "after": {}, "kept": False})
    reports = run_stages(STAGES[2:], tmp_path / "start", schedule)
    assert not {"choice.json", "prior.safetensors"} & {path.name for path in (tmp_path / "out").iterdir()}
    if is_run_folder:
        assert Recommender.from_pretrained(tmp_path / "out").prior is None

    conclude_stages(reports, tmp_path / "start", schedule)
    saved = Recommender.from_pretrained(tmp_path / "out")
    assert isinstance(saved.prior, PopularityPrior) and saved.prior.strength == 2
    assert len(saved.recommend(saved.catalog.ids[:3], k=5)) == 5


def test_a_stage_that_lowers_the_metric_is_undone(folder: Path, tmp_path: Path) -> None:
    stage = PreferenceStage("random", num_negatives=3, max_prompts=24, learning_rate=5.0)  # far too high
    report = run_stages([stage], folder / "sft", make_schedule(folder, tmp_path, keep="best"))[0]
    assert report["after"]["eval_ndcg@10"] < report["before"]["eval_ndcg@10"] and not report["kept"]
    assert weights(tmp_path) == weights(folder / "sft") != weights(tmp_path / "1-random-any")


def test_the_best_checkpoint_of_a_stage_is_kept(folder: Path, tmp_path: Path) -> None:
    schedule = make_schedule(folder, tmp_path, keep="best", eval_strategy="steps", eval_steps=2, learning_rate=0.2)
    report = run_stages(STAGES[2:], folder / "sft", schedule)[0]
    entries = [json.loads(line) for line in (tmp_path / "1-random-any" / "eval.jsonl").read_text().splitlines()]
    seen = [entry["eval_ndcg@10"] for entry in entries if "eval_ndcg@10" in entry]
    assert report["after"]["eval_ndcg@10"] == max(seen)


def test_policies_can_be_compared_by_preference_accuracy(folder: Path, tmp_path: Path) -> None:
    """A stage may lower NDCG, and still raise the share of pairs of a liked and a disliked item in which the liked one
    has the higher score."""
    metric = "eval_preference_accuracy"
    options = {"metric_for_best_model": "preference_accuracy", "eval_strategy": "steps", "eval_steps": 2}
    schedule = make_schedule(folder, tmp_path / "out", keep="best", learning_rate=0.2, **options)
    several = prepare("toy", tmp_path / "data", toy_users=24, toy_items=60, split="leave_last", num_held_out=6)
    assert several.catalog.ids == schedule.dataset.catalog.ids
    schedule = replace(schedule, dataset=replace(several, catalog=schedule.dataset.catalog))
    report = run_stages([PreferenceStage("feedback", "easy", num_negatives=3)], folder / "sft", schedule)[0]

    entries = [
        json.loads(line) for line in (tmp_path / "out" / "1-feedback-easy" / "eval.jsonl").read_text().splitlines()
    ]
    seen = [entry[metric] for entry in entries if metric in entry]
    assert report["after"][metric] == max(seen)
    assert report["kept"] == (report["after"][metric] > report["before"][metric])
    start = Recommender.from_pretrained(folder / "sft")
    policy = Policy(start.model, start.prompt_format, start.trie, start.tokenizer.pad_token_id, max_length=96)
    with_pairs = preference_accuracy(policy, several.validation)["preference_accuracy"]
    assert report["before"][metric] == pytest.approx(np.nanmean(with_pairs))


def test_comparing_by_preference_accuracy_needs_liked_and_disliked_items(folder: Path, tmp_path: Path) -> None:
    schedule = make_schedule(folder, tmp_path, keep="best", metric_for_best_model="preference_accuracy")
    with pytest.raises(ValueError, match="no user of the validation split has both"):
        run_stages([PreferenceStage("random", num_negatives=3, max_prompts=8)], folder / "sft", schedule)


def test_a_metric_that_is_not_measured_is_refused(folder: Path, tmp_path: Path) -> None:
    schedule = make_schedule(folder, tmp_path, keep="best", metric_for_best_model="eval_recall@7")
    with pytest.raises(ValueError, match="evaluations do not measure eval_recall@7, only .*eval_recall@10"):
        run_stages([PreferenceStage("random", num_negatives=3, max_prompts=8)], folder / "sft", schedule)


@pytest.mark.parametrize(("metric", "is_better"), [(None, True), ("eval_recall@5", True), ("disliked@10", False)])
def test_the_better_policy_has_the_lower_value_if_lower_is_better(
    metric: str | None, is_better: bool, folder: Path, tmp_path: Path
) -> None:
    schedule = make_schedule(folder, tmp_path, keep="best", metric_for_best_model=metric)
    assert schedule.metric == f"eval_{(metric or 'ndcg@10').removeprefix('eval_')}"
    some, other = {schedule.metric: 0.3}, {schedule.metric: 0.2}
    assert schedule.is_better(some, other) == is_better and schedule.is_better(other, some) != is_better
    assert not schedule.is_better(some, some)


def test_an_adapter_is_trained_in_all_stages(folder: Path, tmp_path: Path) -> None:
    reports = run(folder, tmp_path, lora=True)
    assert [report["kept"] for report in reports] == [True] * 3
    for name in NAMES[1:]:  # the first stage starts with a random adapter that its reference lacks
        assert losses(tmp_path / name)[0] == pytest.approx(math.log(4), abs=1e-5)
    assert (tmp_path / "adapter_config.json").is_file() and not (tmp_path / "ref").exists()
    assert len(Recommender.from_pretrained(tmp_path).recommend([], k=5)) == 5


def test_a_stage_without_negatives_is_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The policy recommends only the target of each prompt, so nothing that it recommends can be rejected."""

    def targets_alone(policy: Any, prefixes: Any, *arguments: Any, **options: Any) -> np.ndarray:
        return column(prefixes, "target")[:, None]

    monkeypatch.setattr("trl_rec.schedule.stage_preferences.self_play_beams", targets_alone)
    stage = PreferenceStage("self_play", num_beams=1, max_prompts=3)
    report = run_stages([stage], folder / "sft", make_schedule(folder, tmp_path))[0]
    assert (report["num_prompts"], report["without_negatives"], report["kept"]) == (3, 1, False)
    assert "stage 1 (self_play-any) is skipped, because it has no negatives" in caplog.text
    assert [path.name for path in (tmp_path / "1-self_play-any").iterdir()] == ["stage.json"]
    assert weights(tmp_path) == weights(folder / "sft")


@pytest.mark.parametrize(
    ("stage", "remedy"),
    [
        (PreferenceStage("self_play", "any"), "raise num_beams of the stage"),
        (PreferenceStage("self_play", "hard"), "raise num_beams of the stage, or choose another difficulty"),
        (PreferenceStage("feedback", "easy"), "widen the range 'disliked' of the stage"),
        (PreferenceStage("feedback", "hard"), "widen the range 'neutral' of the stage"),
        (PreferenceStage("random"), "leave out the stage"),
    ],
    ids=lambda value: value.name if isinstance(value, PreferenceStage) else "",
)
def test_a_skipped_stage_has_a_remedy(
    stage: PreferenceStage, remedy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    figures = {"num_prompts": 3, "without_negatives": 1.0, "mean_negatives": 0.0}
    monkeypatch.setattr(loop, "stage_preferences", lambda *given: (None, figures))
    monkeypatch.setattr(loop, "load_on_device", lambda *given: None)
    monkeypatch.setattr(loop, "load_tokenizer", lambda *given: None)
    assert not loop._run_stage(1, stage, Path("sft"), None, None)["kept"]
    skipped = f"stage 1 ({stage.name}) is skipped, because it has no negatives for any prompt"
    assert caplog.messages == [f"{skipped}; {remedy}"]


def test_a_stage_without_improvement_is_undone(folder: Path, tmp_path: Path) -> None:
    schedule = make_schedule(folder, tmp_path, keep="best", learning_rate=0.0, max_steps=1)
    report = run_stages([PreferenceStage("random", num_negatives=3, max_prompts=8)], folder / "sft", schedule)[0]
    assert report["after"] == report["before"] and not report["kept"]
    assert weights(tmp_path) == weights(folder / "sft")


def test_only_the_policy_is_copied(folder: Path, tmp_path: Path) -> None:
    """If no stage is kept, the first policy is copied to the output folder. The reports, checkpoints and stages of the
    run that trained it are not copied."""
    start, output = tmp_path / "sft", tmp_path / "out"
    shutil.copytree(folder / "sft", start)
    for name in ("checkpoint-5", "2-random-any"):
        (start / name).mkdir()
    for name in (*WRITTEN, "plan.json"):
        (start / name).write_text("{}")
    schedule = make_schedule(folder, output, keep="best", learning_rate=0.0, max_steps=1)
    run_stages([PreferenceStage("random", num_negatives=3, max_prompts=8)], start, schedule)
    assert weights(output) == weights(start)
    assert {path.name for path in output.iterdir() if path.is_dir()} == {"1-random-any", "catalog"}
    assert WRITTEN.isdisjoint(path.name for path in output.iterdir())


def test_models_are_freed_before_the_next_stage(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref] = []
    alive: list[int] = []

    def load_and_count(load: Any, *arguments: Any) -> Any:
        alive.append(sum(known() is not None for known in loaded))
        loaded.append(weakref.ref(model := on_device(load, *arguments)))
        return model

    on_device = loop.load_on_device
    monkeypatch.setattr(loop, "load_on_device", load_and_count)
    short = PreferenceStage("random", num_negatives=3, max_prompts=8, max_steps=1)
    run_stages([short] * 2, folder / "sft", make_schedule(folder, tmp_path))
    assert alive == [0, 1, 0, 1]  # each stage loads a policy, then its reference


@pytest.mark.slow
@pytest.mark.long
def test_a_schedule_that_is_killed_five_times_ends_with_the_same_weights(
    finished: Any, folder: Path, tmp_path: Path
) -> None:
    """Each run is killed after it has written some more files of any kind: beams, checkpoints, models or reports."""
    whole, _ = finished
    output, draw = tmp_path / "killed", random.Random(0)
    for _ in range(5):
        known = written(output)
        enough = len(known) + draw.randint(1, 30)
        process = start(partial(run, folder), output)
        while len(known) < enough and process.is_alive():
            known |= written(output)
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, log_of(output)
    run_alone(partial(run, folder), output)
    assert weights(output) == weights(whole)


def written(folder: Path) -> set[str]:
    """Returns all files and folders below a folder. `rglob` could raise if a folder is deleted while it runs."""
    return {os.path.join(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in ("ddp", "zero2")])
def test_two_processes_equal_one(name: str, finished: Any, folder: Path, tmp_path: Path) -> None:
    whole, _ = finished
    run_in_two(name, partial(run_as_one_of_two, folder), tmp_path / "out")
    one, two = load_file(whole / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert one.keys() == two.keys() - {"lm_head.weight"}  # DeepSpeed also saves the tied output embedding
    if "lm_head.weight" in two:
        assert torch.equal(two["lm_head.weight"], two["model.embed_tokens.weight"])
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5)
