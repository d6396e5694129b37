"""`--prior` of the training verbs: three rows, a prior in the run folder that everything else uses, and one choice."""

import json
from pathlib import Path

import pytest

from trl_rec import BearConfig, Recommender, load, prepare
from trl_rec.decoding import TransitionPrior
from trl_rec.evaluation import read_evaluation
from trl_rec.files import write_json
from trl_rec.scripts import bear, evaluate, recommend


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


def test_another_choice_in_a_run_folder_is_refused(data: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "run/choice.json", {"prior": "mixture", "strength": 1.0, "eps": 0.5, "split": "test"})
    with pytest.raises(ValueError, match="records another choice, mixture with strength 1.0 and eps 0.5"):
        train(data, tmp_path / "run", "--prior", "popularity", "--prior_strength", "2")
    assert (tmp_path / "run/model.safetensors").is_file()  # the model was saved before
    assert not (tmp_path / "run/metrics.json").exists()


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
