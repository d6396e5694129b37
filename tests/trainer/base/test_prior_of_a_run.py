"""`--prior` of the training verbs: three rows, a prior in the run folder that everything else uses, and one choice."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trl_rec import BearConfig, Recommender, load, prepare
from trl_rec.decoding import ArrayPrior, TransitionPrior
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.evaluation import read_evaluation
from trl_rec.files import write_json
from trl_rec.scripts import bear, evaluate, recommend
from trl_rec.trainer.base.prior import check_run_prior
from trl_rec.trainer.base.prior_config import wants_prior


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


def test_a_run_keeps_its_prior_and_three_rows(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = read_evaluation(run)
    assert list(kept.results)[-3:] == ["BEAR", "prior", "BEAR x prior"] and kept.recommender == "BEAR"
    choice = json.loads((run / "choice.json").read_text())
    assert (choice["prior"], choice["strength"], choice["eps"], choice["how"]) == ("transition", 1.5, 0.5, "given")
    assert json.loads((run / "recommender.json").read_text())["prior"] == {
        "kind": "transition",
        "strength": 1.5,
        "eps": 0.5,
    }

    # `Recommender` and `recommend` use it unless told not to.
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


def test_a_given_strength_of_a_saved_prior_is_a_choice(run: Path, data: Path, tmp_path: Path) -> None:
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

    # The strength of an array of weights is not chosen.
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


def test_a_recorded_choice_that_may_be_chosen_again_is_no_obstacle(data: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "choice.json", CHOICE)
    check_run_prior(load(data), BearConfig(str(tmp_path), use_cpu=True, bf16=False, prior="transition"))


def test_the_recorded_choice_can_be_given(data: Path, tmp_path: Path) -> None:
    """With its eps, which no option gives."""
    write_json(tmp_path / "run/choice.json", CHOICE)
    train(data, tmp_path / "run", "--prior", "transition", "--prior_strength", "2", "--final_split", "none")
    saved = Recommender.from_pretrained(tmp_path / "run").prior
    assert isinstance(saved, TransitionPrior) and (saved.strength, saved.eps) == (2.0, 0.1)
    assert json.loads((tmp_path / "run/choice.json").read_text())["split"] == "test"


def test_a_choice_that_the_run_will_replace_is_no_obstacle(data: Path, tmp_path: Path) -> None:
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
def test_a_validation_split_that_does_not_suffice_is_refused_before_training(
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


def test_no_prior_is_none(tmp_path: Path) -> None:
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
        ({"prior": "neural"}, "there is no prior 'neural'; choose none, popularity, transition or mixture"),
        ({"prior": "mixture", "prior_strength": "x"}, "prior_strength must be auto or a number, not 'x'"),
        ({"prior_strength": "2"}, "prior_strength=2 has no effect without a prior"),
    ],
)
def test_invalid_priors_are_refused(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BearConfig(str(tmp_path), use_cpu=True, bf16=False, **options)
