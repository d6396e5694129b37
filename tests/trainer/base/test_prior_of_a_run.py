"""Tests `--prior` of the training verbs: the results have rows for the model, the prior and their product. The run
saves the prior for later commands, and records how it was chosen."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from trl_rec import BearConfig, Recommender, load, prepare
from trl_rec.decoding import ArrayPrior, TransitionPrior
from trl_rec.decoding.priors import fit_prior, load_prior
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.evaluation import read_evaluation
from trl_rec.files import write_json
from trl_rec.ragged import Ragged
from trl_rec.scripts import align3gr, bear, blade, evaluate, recommend, softmax_dpo
from trl_rec.trainer.base.prior import check_run_prior, continue_prior
from trl_rec.trainer.base.prior_config import wants_prior
from trl_rec.trainer.blade import building as blade_building


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior") / "data"
    prepare("toy", folder, toy_users=24, toy_items=60)
    return folder


def train(data: Path, folder: Path, *more: str) -> None:
    options = {"dataset": data, "output_dir": folder, "hidden_size": 16, "max_steps": 1, "eval_strategy": "no"}
    options |= {"save_strategy": "no", "load_best_model_at_end": "false"}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    bear.main(["--config", "bear/toy", *words, *more])


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(data, folder, "--prior", "transition", "--prior_strength", "1.5")
    return folder


def test_a_run_saves_its_prior_and_reports_three_rows(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = read_evaluation(run)
    assert list(kept.results)[-3:] == ["BEAR", "prior", "BEAR x prior"] and kept.recommender == "BEAR"
    choice = json.loads((run / "choice.json").read_text())
    assert (choice["prior"], choice["strength"], choice["eps"], choice["how"]) == ("transition", 1.5, 0.5, "given")
    assert json.loads((run / "recommender.json").read_text())["prior"] == {
        "kind": "transition",
        "strength": 1.5,
        "eps": 0.5,
    }

    # `Recommender` and `trl-rec recommend` use the prior by default.
    saved = Recommender.from_pretrained(run)
    assert isinstance(saved.prior, TransitionPrior) and saved.prior.strength == 1.5
    dataset = load(data)
    history = [dataset.catalog.ids[item] for item in dataset.test[0]["history"]]
    best = [one.item_id for one in saved.recommend(history, 5)]
    assert best == [dataset.catalog.ids[item] for item in kept.rankings_of("BEAR x prior").items[0][:5]]
    alone = Recommender.from_pretrained(run, prior=None).recommend(history, 5)
    assert [one.item_id for one in alone] == [
        dataset.catalog.ids[item] for item in kept.rankings_of("BEAR").items[0][:5]
    ]
    user = dataset.users["user_id"][0].as_py()
    printed = []
    for words in ([], ["--prior", "none"]):
        recommend.main(["--model", str(run), "--dataset", str(data), "--user", user, *words])
        printed.append(capsys.readouterr().out)
    assert printed[0] != printed[1]


def test_evaluate_uses_the_prior_of_a_run(run: Path, data: Path, tmp_path: Path) -> None:
    words = ["--model", str(run), "--dataset", str(data), "--recall_at", "0"]
    evaluate.main([*words, "--output_dir", str(tmp_path / "with")])
    kept = read_evaluation(tmp_path / "with")
    expected = read_evaluation(run)
    for name, of_run in (("model run", "BEAR"), ("prior", "prior"), ("model run x prior", "BEAR x prior")):
        assert kept.results[name].metrics["ndcg@10"] == expected.results[of_run].metrics["ndcg@10"]
    assert not (tmp_path / "with/choice.json").exists()  # nothing was chosen

    evaluate.main([*words, "--output_dir", str(tmp_path / "without"), "--prior", "none"])
    assert list(read_evaluation(tmp_path / "without").results)[3:] == ["model run"]


def test_a_given_strength_of_a_saved_prior_is_recorded_as_a_choice(run: Path, data: Path, tmp_path: Path) -> None:
    words = ["--model", str(run), "--dataset", str(data), "--recall_at", "0", "--output_dir", str(tmp_path / "out")]
    evaluate.main([*words, "--prior_strength", "0.5"])
    choice = json.loads((tmp_path / "out/choice.json").read_text())
    assert (choice["prior"], choice["strength"], choice["eps"], choice["how"]) == ("transition", 0.5, 0.5, "given")
    with pytest.raises(ValueError, match="records another choice, transition with strength 0.5 and eps 0.5"):
        evaluate.main([*words, "--prior_strength", "2"])

    # "auto" chooses the strength again.
    words[-1] = str(tmp_path / "chosen")
    evaluate.main([*words, "--prior", "saved", "--prior_strength", "auto"])
    choice = json.loads((tmp_path / "chosen/choice.json").read_text())
    assert choice["how"] == "exact" and len(choice["grid"]) > 50

    # For an array of weights, "auto" is refused.
    shutil.copytree(run, tmp_path / "copy")
    save_run_prior(tmp_path / "copy", ArrayPrior(np.ones(60)))
    words[1] = str(tmp_path / "copy")
    with pytest.raises(ValueError, match="is an array of weights; give prior_strength a number, or leave it out"):
        evaluate.main([*words, "--prior_strength", "auto"])


CHOICE = {"prior": "transition", "strength": 2.0, "eps": 0.1, "split": "test"}


@pytest.mark.parametrize(
    ("words", "recorded", "message"),
    [
        (["popularity"], {}, "this run asks for popularity, so choose another output_dir, or set prior to transition "
         "and prior_strength to 2.0, as recorded"),
        (["transition", "--prior_strength", "1"], {}, "this run asks for transition with strength 1.0, so choose"),
        (["transition"], {"strength": 1.5}, "prior_strength=auto never chooses this setting, so choose another "
         "output_dir, or set prior to transition and prior_strength to 1.5, as recorded"),
        (["popularity"], {"prior": "popularity"}, "prior_strength=auto never chooses this setting"),
    ],
)  # fmt: skip
def test_another_choice_in_a_run_folder_is_refused_before_training(
    words: list[str], recorded: dict[str, object], message: str, data: Path, tmp_path: Path
) -> None:
    write_json(tmp_path / "run/choice.json", CHOICE | recorded)
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "run", "--prior", *words)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["choice.json"]


def test_a_recorded_choice_that_may_be_chosen_again_is_accepted(data: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "choice.json", CHOICE)
    check_run_prior(load(data), BearConfig(str(tmp_path), use_cpu=True, bf16=False, prior="transition"))


def test_the_recorded_choice_can_be_given(data: Path, tmp_path: Path) -> None:
    """The run takes eps (the weight of the popularity in the prior) from the recorded choice, because no option sets
    eps."""
    write_json(tmp_path / "run/choice.json", CHOICE)
    train(data, tmp_path / "run", "--prior", "transition", "--prior_strength", "2", "--final_split", "none")
    saved = Recommender.from_pretrained(tmp_path / "run").prior
    assert isinstance(saved, TransitionPrior) and (saved.strength, saved.eps) == (2.0, 0.1)
    assert json.loads((tmp_path / "run/choice.json").read_text())["split"] == "test"


def test_a_recorded_choice_that_the_run_will_replace_is_accepted(data: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "choice.json", CHOICE)
    options = {"use_cpu": True, "bf16": False, "prior": "popularity"}
    check_run_prior(load(data), BearConfig(str(tmp_path), overwrite=True, **options))
    with pytest.raises(ValueError, match="records another choice"):
        check_run_prior(
            load(data), BearConfig(str(tmp_path), overwrite=True, resume_from_checkpoint="true", **options)
        )


@pytest.mark.parametrize(
    ("prior", "strength", "known", "message"),
    [
        ("transition", "auto", False, "on the validation split, which has no rows; give prior_strength a number"),
        ("transition", "1", False, None),
        ("mixture", "1", False, "a mixture cannot be fitted, because the validation split has no target outside"),
        ("mixture", "auto", True, "a mixture cannot be fitted, because the validation split has no target outside"),
        (None, "auto", False, None),
    ],
)
def test_a_validation_split_that_cannot_choose_the_prior_is_refused_before_training(
    prior: str | None, strength: str, known: bool, message: str | None, data: Path, tmp_path: Path
) -> None:
    dataset = load(data)
    rows = dataset.validation.select(range(4 * known))
    if known:
        rows = rows.map(lambda row: {"targets": row["history"][:1]}, load_from_cache_file=False, keep_in_memory=True)
    dataset = replace(dataset, validation=rows)
    config = BearConfig(str(tmp_path), use_cpu=True, bf16=False, prior=prior, prior_strength=strength)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_run_prior(dataset, config)


def test_a_prior_of_none_in_python_means_no_prior(tmp_path: Path) -> None:
    config = BearConfig(str(tmp_path), use_cpu=True, bf16=False, prior=None)
    assert config.prior == "none" and not wants_prior(config)
    with pytest.raises(ValueError, match="prior_strength=2 has no effect without a prior"):
        BearConfig(str(tmp_path), use_cpu=True, bf16=False, prior=None, prior_strength="2")


def test_a_prior_is_kept_without_a_final_split(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "run", "--final_split", "none", "--prior", "popularity")
    assert json.loads((tmp_path / "run/choice.json").read_text())["split"] == "none"
    assert Recommender.from_pretrained(tmp_path / "run").prior is not None
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "neural"}, "there is no prior 'neural'; choose 'none', 'popularity', 'transition' or 'mixture'"),
        ({"prior": "mixture", "prior_strength": "x"}, "prior_strength must be 'auto' or a number, not 'x'"),
        ({"prior_strength": "2"}, "prior_strength=2 has no effect without a prior"),
    ],
)
def test_invalid_priors_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BearConfig(str(tmp_path), use_cpu=True, bf16=False, **options)


def test_a_run_that_continues_fits_the_prior_again(run: Path, data: Path, tmp_path: Path, caplog) -> None:
    """The run continues as with `trl-rec bear --model_name_or_path runs/yesterday --dataset data/today`."""
    caplog.set_level("INFO", "trl_rec")
    today = prepare("toy", tmp_path / "today", toy_users=24, toy_items=60, seed=1)
    (run / "recipe.yaml").write_text("prior: transition\nprior_strength: '1.5'\n")
    train(tmp_path / "today", tmp_path / "next", "--model_name_or_path", str(run))
    assert (
        f"{run} has a transition prior, so this run fits a prior of this kind to its own data (strength 1.5)"
        in caplog.text
    )
    assert list(read_evaluation(tmp_path / "next").results)[-3:] == ["BEAR", "prior", "BEAR x prior"]
    prior = load_prior(tmp_path / "next")
    fitted = fit_prior("transition", today)
    histories = Ragged.from_lists([[3, 7], [11]])
    weights = [one.weights(histories).dense(2, 60) for one in (prior, replace(fitted, strength=1.5), load_prior(run))]
    assert np.allclose(weights[0], weights[1]) and not np.allclose(weights[0], weights[2])
    # The new run's recipe names the prior, so training with this recipe repeats the run.
    assert yaml.safe_load((tmp_path / "next/recipe.yaml").read_text())["prior"] == "transition"

    # If the earlier run has no recipe with a strength, the strength is chosen again. A prior that the user names takes
    # precedence.
    (run / "recipe.yaml").unlink()
    config = BearConfig(str(tmp_path), use_cpu=True, bf16=False)
    continue_prior(config, run)
    assert (config.prior, config.prior_strength) == ("transition", "auto")
    for prior_name in ("none", "popularity"):
        config = BearConfig(str(tmp_path), use_cpu=True, bf16=False, prior=prior_name)
        continue_prior(config, run)
        assert config.prior == prior_name

    # An array of weights cannot be fitted.
    shutil.copytree(run, tmp_path / "array")
    save_run_prior(tmp_path / "array", ArrayPrior(np.ones(60)))
    config = BearConfig(str(tmp_path), use_cpu=True, bf16=False)
    continue_prior(config, tmp_path / "array")
    assert config.prior == "none" and "which cannot be fitted again; this run has no prior" in caplog.text


class Stop(Exception):
    """Ends a script before it trains."""


def test_other_verbs_continue_a_prior_or_say_that_there_is_none(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trl_rec")
    run = shutil.copytree(run, tmp_path / "run")
    (run / "recipe.yaml").write_text("prior: transition\nprior_strength: '1.5'\n")
    words = ["--model_name_or_path", str(run), "--output_dir", str(tmp_path / "next"), "--use_cpu", "--bf16", "false"]
    on_data = ["--dataset", str(data), "--surface", "item_token"]
    seen: list[tuple[str, str, bool]] = []

    def stop(*given: object) -> None:
        """Records the priors of the configurations that a script passes to its check, and stops the script."""
        for one in given:
            config = getattr(one, "config", one)
            if hasattr(config, "is_prior_open"):
                seen.append((config.prior, config.prior_strength, config.is_prior_open))
        raise Stop

    # 1. `softmax_dpo` and the stages of `align3gr` fit the prior again. The supervised part of `align3gr` does not.
    monkeypatch.setattr(softmax_dpo, "check_run_prior", stop)
    monkeypatch.setattr(align3gr, "check_pipeline", stop)
    with pytest.raises(Stop):
        softmax_dpo.main(["--preferences", "p.jsonl", *on_data, *words])
    with pytest.raises(Stop):
        align3gr.main([*on_data, *words, "--supervised", "{}"])
    taken = ("transition", "1.5", False)
    assert seen == [taken, taken, ("none", "auto", False)]
    assert caplog.text.count("so this run fits a prior of this kind to its own data (strength 1.5)") == 2

    # 2. Without a dataset, or with BLADE, the new run has no prior. A warning says so.
    def no_model(*given: object, **options: object) -> None:
        raise Stop

    monkeypatch.setattr(softmax_dpo, "read_preferences", no_model)
    monkeypatch.setattr(blade_building, "build_policy", no_model)
    with pytest.raises(Stop):
        softmax_dpo.main(["--preferences", "p.jsonl", *words])
    assert "this run has none, because a prior is fitted to a dataset, but no dataset is given; to" in caplog.text
    with pytest.raises(Stop):
        blade.main([*on_data, *words, "--list_length", "10"])
    assert f"{run} has a transition prior, but this run has none, because the method BLADE makes no pr" in caplog.text
