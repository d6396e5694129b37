"""Runs small studies, and tests their results, the arms that they leave out, and the changes that they refuse."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.processes import run_alone
from tests.schedule.studies.study_runs import ARMS, make_data, run_study, study
from trl_rec import load
from trl_rec.schedule import sequence_rule
from trl_rec.schedule.studies.results import recommendation
from trl_rec.schedule.studies.study import Study


ONE_ARM = {"arms": {"counter": ARMS["counter"], "sft": ARMS["sft"]}, "seeds": [0], "comparisons": None}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_data(folder / "data")
    run_alone(partial(run_study, folder / "data", **ONE_ARM), folder / "study")
    return folder / "study"


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Study:
    """Returns a copy of the finished study, which a test can change and run again. All runs of the copy count as
    finished."""
    output = finished.with_name(f"{finished.name}-{tmp_path.name}")
    shutil.copytree(finished, output)
    return study(finished.with_name("data"), output, **ONE_ARM)


@pytest.mark.slow
def test_a_finished_study_contains_its_figures_and_names_their_runs(finished: Path) -> None:
    content = json.loads((finished / "study.json").read_text())
    assert (content["status"], content["against"], content["seeds"]) == ("complete", "counter", [0])
    arm = content["arms"]["sft"]
    run = arm["runs"]["0"]
    assert json.loads((finished / run["run"] / "metrics.json").read_text())["split"] == "validation"
    test = json.loads((finished / run["test"] / "metrics.json").read_text())
    assert test["split"] == "test"
    assert arm["figures"]["ndcg@10"]["mean"] == pytest.approx(test["results"][run["row"]]["metrics"]["ndcg@10"])
    assert [one["name"] for one in content["comparisons"]] == ["sft"] and "verdict" in content["comparisons"][0]
    assert "<html" in (finished / "report.html").read_text() and "ndcg@10" in (finished / "table.txt").read_text()
    assert content["recommendation"] == "no difference from counter" or content["recommendation"].startswith("use sft")


@pytest.mark.slow
def test_a_study_is_refused_if_its_runs_contradict_the_recorded_choice(again: Study) -> None:
    path = again.folder / "choice.json"
    choice = json.loads(path.read_text())
    choice["arms"]["sft"]["chosen"] = {"bear_weight": 2}
    path.write_text(json.dumps(choice))
    with pytest.raises(ValueError, match="bear_weight=2 was chosen for sft, but the runs now lead to the recipe"):
        again.run()


@pytest.mark.slow
def test_the_test_split_is_not_measured_twice(again: Study) -> None:
    again.evaluation["num_beams"] = 7
    with pytest.raises(ValueError, match=r"a measurement on the test split that was made with different inputs"):
        again.run()


@pytest.mark.slow
def test_another_study_in_the_same_folder_is_refused(again: Study) -> None:
    with pytest.raises(ValueError, match="contains a study that differs in primary"):
        study(Path(again.dataset_folder), again.folder, **ONE_ARM, primary="recall@10").run()


@pytest.mark.slow
def test_arms_with_unmet_needs_or_too_little_headroom_are_not_run(finished: Path, tmp_path: Path) -> None:
    sft = ARMS["sft"]
    arms = {
        "counter": ARMS["counter"],
        "big": {**sft, "needs": {"users": 10_000}},
        "after big": {**sft, "start": "big"},
        "hopeless": {**sft, "headroom": 0.0001},
        "theirs": {"lists": str(write_lists(finished.with_name("data"), tmp_path / "lists.csv"))},
    }
    lines: list[str] = []
    one = study(finished.with_name("data"), tmp_path / "study", arms=arms, seeds=[0], comparisons=None)
    one.say = lines.append
    content = one.run()
    assert "big is left out: the test split has 60 users, but the arm needs 10000" in lines
    assert "after big is left out: it starts from big, which is left out" in lines
    assert any(line.startswith("hopeless is left out: it can gain at most 0.0001") for line in lines)
    assert [arm["status"] for arm in content["arms"].values()] == ["measured", *["left out"] * 3, "measured"]
    assert content["arms"]["theirs"]["figures"]["recall@10"]["mean"] == 1
    assert content["recommendation"].startswith("use theirs (better")


@pytest.mark.slow
def test_the_arm_that_others_are_compared_with_cannot_be_left_out(finished: Path, tmp_path: Path) -> None:
    arms = {"counter": ARMS["counter"], "hopeless": {**ARMS["sft"], "headroom": 0.0001}}
    options = {"arms": arms, "seeds": [0], "comparisons": None, "against": "hopeless"}
    one = study(finished.with_name("data"), tmp_path / "study", **options)
    with pytest.raises(ValueError, match=r"against: 'hopeless' is left out \(it can gain at most 0.0001"):
        one.run()


@pytest.mark.slow
def test_rated_baselines_need_a_ranker(finished: Path, tmp_path: Path) -> None:
    ranker = {"verb": "alro", "config": "alro/toy", "needs": {"users": 10_000}}
    options = {"arms": {"mean": {"baseline": "item mean"}, "alro": ranker}, "seeds": [0], "comparisons": None}
    options |= {"against": "mean", "primary": "graded_ndcg@10", "metrics": []}
    one = study(finished.with_name("data"), tmp_path / "study", **options)
    with pytest.raises(ValueError, match="every arm with the verb alro is left out"):
        one.run()


@pytest.mark.slow
def test_an_arm_may_be_the_sequence_baseline(finished: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sequence_rule, "MIN_STEPS", 2)
    monkeypatch.setattr(sequence_rule, "MAX_STEPS", 2)
    arms = {"counter": ARMS["counter"], "trained": {"baseline": "sequence"}}
    content = study(finished.with_name("data"), tmp_path / "study", arms=arms, seeds=[0], comparisons=None).run()
    assert [arm["status"] for arm in content["arms"].values()] == ["measured", "measured"]
    results = json.loads((tmp_path / "study/test/baselines/all/metrics.json").read_text())["results"]
    assert list(results) == ["random", "popularity", "transition", "sequence"]
    assert content["comparisons"][0]["name"] == "trained" and list((tmp_path / "cache/trl-rec/sequence").iterdir())


@pytest.mark.slow
def test_a_policy_is_measured_again_with_other_keys(finished: Path, tmp_path: Path) -> None:
    """`sft` is trained once per seed. Further arms measure the product of its models and their prior, the prior alone,
    and the models with other `evaluation` settings."""
    arms = {
        "counter": ARMS["counter"],
        "sft": {**ARMS["sft"], "set": {"bear_weight": 0, "prior": "popularity"}},
        "x prior": {"policy": "sft", "row": "product"},
        "prior": {"policy": "sft", "row": "prior"},
        "again": {"policy": "sft", "evaluation": {"num_beams": 20, "prior": "none"}},
        "gone": {**ARMS["sft"], "needs": {"users": 10_000}},
        "gone too": {"policy": "gone", "row": "prior"},
    }
    one = study(
        finished.with_name("data"),
        tmp_path / "study",
        arms=arms,
        seeds=[0, 1],
        comparisons=["x prior against sft", "prior against counter"],
        metrics=["pruned@10"],
        evaluation={"ks": [5, 10], "batch_size": 64, "exhaustive": 40},  # baselines ignore `exhaustive`
    )
    content = one.run()
    assert one.progress.remaining() == "nothing remains"
    folders = {name: arm["runs"]["0"]["test"] for name, arm in content["arms"].items() if "0" in arm.get("runs", {})}
    assert folders["sft"] == folders["x prior"] == folders["prior"] == "test/sft/seed-0"
    assert folders["again"] == "test/again/seed-0"
    rows = [content["arms"][name]["runs"]["1"]["row"] for name in ("sft", "x prior", "prior")]
    assert rows == ["model seed-1", "model seed-1 x prior", "prior"]
    assert "run" not in content["arms"]["x prior"]["runs"]["0"] and content["arms"]["again"]["kind"] == "policy"
    figures = {name: arm.get("figures") for name, arm in content["arms"].items()}
    assert figures["again"]["ndcg@10"]["by_seed"] == pytest.approx(figures["sft"]["ndcg@10"]["by_seed"])
    assert figures["x prior"]["ndcg@10"]["mean"] != figures["sft"]["ndcg@10"]["mean"]
    assert figures["again"]["pruned@10"]["num_users"] == figures["sft"]["pruned@10"]["num_users"] == 40
    assert "pruned@10" not in figures["counter"] and "pruned@10" not in figures["x prior"]
    assert content["arms"]["gone too"]["reason"] == "it measures the policies of gone, which is left out"
    assert not (tmp_path / "study/test/gone-too").exists()


@pytest.mark.slow
def test_a_study_of_validation_alone_never_reads_the_test_split(finished: Path, tmp_path: Path) -> None:
    arms = {"counter": ARMS["counter"], "bear": ARMS["bear"]}
    content = study(
        finished.with_name("data"),
        tmp_path / "study",
        arms=arms,
        seeds=[0],
        comparisons=None,
        primary="recall@10",
        choose_by="ndcg@10",
        only_validation=True,
    ).run()
    assert content["split"] == "validation" and not (tmp_path / "study" / "test").exists()
    run = content["arms"]["bear"]["runs"]["0"]
    assert run["test"] == run["run"] and "validation users" in (tmp_path / "study" / "table.txt").read_text()
    metrics = json.loads((tmp_path / "study" / run["run"] / "metrics.json").read_text())["results"]["BEAR"]["metrics"]
    assert content["arms"]["bear"]["figures"]["recall@10"]["mean"] == pytest.approx(metrics["recall@10"])
    assert content["arms"]["bear"]["validation"] == metrics["ndcg@10"]
    choice = json.loads((tmp_path / "study" / "choice.json").read_text())
    assert (choice["primary"], choice["chosen by"]) == ("recall@10", "ndcg@10")
    values = {point["point"]["bear_weight"]: point["value"] for point in choice["arms"]["bear"]["grid"]}
    assert values[choice["arms"]["bear"]["chosen"]["bear_weight"]] == max(values.values()) == metrics["ndcg@10"]


def write_lists(data: Path, path: Path) -> Path:
    """Writes one list of ten items per test user. The first item of the list is the user's target."""
    dataset = load(data)
    users, ids = dataset.users["user_id"].to_pylist(), dataset.catalog.ids
    lines = ["user_id,rank,item_id"]
    for row in dataset.test:
        target = row["targets"][0]
        others = [item for item in range(len(ids)) if item not in {*row["history"], target}]
        for rank, item in enumerate([target, *others[:9]], 1):
            lines.append(f"{users[row['user']]},{rank},{ids[item]}")
    path.write_text("\n".join(lines))
    return path


def test_the_recommended_arm_beats_the_baseline_and_is_the_best_on_validation() -> None:
    class Compared:
        def __init__(self, name: str, mean: float, verdict: str) -> None:
            self.name, self.mean, self.verdict = name, mean, verdict
            self.against, self.metric, self.reference = "counter", "ndcg@10", 0.1

    arms = {name: {"validation": value} for name, value in (("a", 0.3), ("b", 0.2), ("c", 0.4))}
    compared = [Compared("a", 0.2, "better"), Compared("b", 0.25, "better"), Compared("c", 0.3, "no difference")]
    assert recommendation("counter", compared, arms).startswith("use a (better than counter: ndcg@10 0.2000")
    assert recommendation("counter", compared[2:], arms) == "no difference from counter"
    worse = [Compared("d", 0.01, "worse"), *compared[2:]]
    assert recommendation("counter", worse, arms) == "use counter (no arm is better, and these are worse: d)"
    for one in compared:
        one.metric = "disliked@10"  # lower is better
    assert recommendation("counter", compared, arms).startswith("use b (better than counter: disliked@10 0.2500")
    arms["b"] = {}
    assert recommendation("counter", compared, arms).startswith("use one of a, b: not all of them have a validation")
