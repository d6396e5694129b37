"""Tests that `trl-rec evaluate` records the chosen prior in `choice.json`, with its strength and its `eps` (the weight
of popularity). Once a choice has been evaluated on the test split, another choice for the same output folder is
refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trl_rec import Recommender
from trl_rec.data import RecDataset
from trl_rec.data.dataset import split_rows
from trl_rec.decoding import PopularityPrior
from trl_rec.decoding.priors import fit_prior
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation import closing_verdict, read_evaluation
from trl_rec.evaluation.prior_choice import Setting, given_choice, keep_choice, with_setting
from trl_rec.models import make_model, make_tokenizer
from trl_rec.scripts import evaluate


@pytest.fixture(scope="module")
def run(dataset: RecDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an untrained model."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    catalog = dataset.catalog.with_surface("item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained(folder)
    make_model(tokenizer, hidden_size=16).save_pretrained(folder)
    ranking = {"max_length": 64, "renormalize": True, "length_penalty": 0.0, "num_beams": 5}
    save_recommender(folder, catalog, {"prompt": {"prompt_head": None, "list_length": None}, **ranking})
    return folder


def words(run: Path, dataset: RecDataset, output: Path, *more: str) -> list[str]:
    shared = ["--ks", "1", "5", "--recall_at", "0", "--model", str(run), "--dataset", str(dataset.path)]
    return [*shared, "--output_dir", str(output), *more]


def test_evaluate_chooses_on_validation_and_keeps_the_results_of_three_recommenders(
    run: Path, dataset: RecDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(words(run, dataset, tmp_path / "out", "--prior", "transition"))
    printed = capsys.readouterr().out
    choice = json.loads((tmp_path / "out/choice.json").read_text())
    kept = read_evaluation(tmp_path / "out")
    names = ["model model", "prior", "model model x prior"]
    assert list(kept.results)[3:] == names and kept.recommender == names[0]
    assert all(kept.rankings_of(name) is not None and kept.results[name].per_user for name in names)

    # The grid of settings (strength and eps) is printed, and the best setting is marked.
    assert f"chosen, transition with strength {choice['strength']}" in printed
    assert {"prior", "strength", "eps", "metric", "grid", "num_users", "how", "at_limit", "split"} == set(choice)
    assert choice["split"] == "test" and choice["metric"] == "ndcg@5" and choice["num_users"] == 30
    assert "model model x prior" in printed.split("\n\n")[-2] and " prior" in closing_verdict(kept.results)

    # A recommender with the chosen setting gives the same rankings as those that were kept.
    prior = with_setting(fit_prior("transition", dataset), Setting(choice["strength"], choice["eps"]))
    recommender = replace(Recommender.from_pretrained(run), prior=prior)
    history = split_rows(dataset.test, "history")[3]
    best = recommender.recommend([dataset.catalog.ids[item] for item in history], 5)
    ranked = kept.rankings_of("model model x prior").items[3].tolist()
    assert [dataset.catalog.ids[item] for item in ranked[:5]] == [one.item_id for one in best]

    # The same choice may be measured again. A different choice is refused, and no file changes.
    evaluate.main(words(run, dataset, tmp_path / "out", "--prior", "transition"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for other in (["--prior", "popularity"], ["--prior", "transition", "--prior_strength", "77"]):
        with pytest.raises(ValueError, match=r"choice\.json records another choice, transition with"):
            evaluate.main(words(run, dataset, tmp_path / "out", *other))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("words_of_prior", "asked"),
    [
        (["--prior", "popularity"], "this run asks for popularity"),
        (["--prior", "mixture", "--prior_strength", "2"], "this run asks for mixture with strength 2.0"),
        (["--prior", "transition", "--prior_strength", "3"], "this run asks for transition with strength 3.0"),
        (["--prior", "transition"], "prior_strength=auto never chooses this setting"),
        (["--prior", "saved", "--prior_strength", "2"], "this run asks for popularity with strength 2.0"),
    ],
)
def test_another_prior_is_refused_before_the_model_is_loaded(
    words_of_prior: list[str],
    asked: str,
    run: Path,
    dataset: RecDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(run, tmp_path / "run")
    save_run_prior(tmp_path / "run", fit_prior("popularity", dataset))
    choice = {"prior": "transition", "strength": 77.0, "eps": 0.1, "split": "test"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "choice.json").write_text(json.dumps(choice))
    for name in ("model.load_model", "prior.fit_prior"):
        monkeypatch.setattr(f"trl_rec.evaluation.saved_model.{name}", lambda *_, **__: pytest.fail("too late"))
    with pytest.raises(ValueError, match=f"records another choice, transition with strength 77.0 .*{asked}"):
        evaluate.main(words(tmp_path / "run", dataset, tmp_path / "out", *words_of_prior))


def test_the_choice_is_written_before_the_test_split_is_read(
    run: Path, dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_rec.evaluation.saved_model.evaluating.held_out", refuse)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(words(run, dataset, tmp_path / "out", "--prior", "popularity"))
    choice = json.loads((tmp_path / "out/choice.json").read_text())
    assert choice["prior"] == "popularity" and choice["eps"] is None and len(choice["grid"]) >= 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged and cannot be read"),
        ("{", "is damaged and cannot be read"),
        ("[" * 100_000, "is damaged and cannot be read"),
        ("[]", "does not contain the choice of a prior"),
        ('{"split": "test"}', "records another choice"),
        ('{"split": "test", "prior": {}, "strength": [], "eps": "x"}', "records another choice"),
    ],
)
def test_a_damaged_choice_is_refused(text: str, message: str, dataset: RecDataset, tmp_path: Path) -> None:
    (tmp_path / "choice.json").write_text(text)
    _, choice = given_choice(PopularityPrior.fit(dataset.train, len(dataset.catalog)), 1.0, 5)
    with pytest.raises(ValueError, match=message):
        keep_choice(tmp_path, choice, "test")
    assert (tmp_path / "choice.json").read_text() == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["--prior", "neural"],
            "there is no prior 'neural'; choose 'none', 'popularity', 'transition', 'mixture' or 'saved'",
        ),
        (["--prior", "saved"], "does not contain a prior; choose another prior"),
        (["--prior", "transition", "--prior_strength", "strong"], "prior_strength must be 'auto' or a number"),
        (["--prior", "transition", "--prior_strength", "-1"], "prior_strength must be at least 0"),
        (["--prior", "none", "--prior_strength", "1"], "has no effect without a prior"),
    ],
)
def test_invalid_priors_are_refused(
    given: list[str], message: str, run: Path, dataset: RecDataset, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.main(words(run, dataset, tmp_path / "out", *given))


def test_a_prior_without_a_model_is_refused(dataset: RecDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prior=transition multiplies a model.*, but model is not set"):
        evaluate.main(["--dataset", str(dataset.path), "--output_dir", str(tmp_path), "--prior", "transition"])
