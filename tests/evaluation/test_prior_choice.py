"""The choice of a prior on validation against a ranking per setting, and what `trl-rec evaluate` does with it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import make_model, make_tokenizer
from trl_rec import Recommender
from trl_rec.data import PromptFormat, RecDataset, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.decoding import PopularityPrior, TransitionPrior
from trl_rec.decoding.priors import fit_prior
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.evaluation import Policy, closing_verdict, prior_choice, read_evaluation
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.prior_choice import Setting, choose_prior, ndcg_by_setting, search_grid, with_setting
from trl_rec.items import TokenTrie
from trl_rec.models import make_model as make_scratch_model
from trl_rec.models import make_tokenizer as make_scratch_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.scripts import evaluate


NUM_ITEMS = 48


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    path = tmp_path_factory.mktemp("data") / "toy"
    prepared = prepare("toy", path, toy_users=30, toy_items=NUM_ITEMS, split="leave_last", num_held_out=2)
    codes = [[f"<a_{item % 4}>", f"<b_{item // 4 % 4}>", f"<c_{item // 16}>"] for item in range(NUM_ITEMS)]
    return replace(prepared, catalog=prepared.catalog.with_surface("semantic_id", Ragged.from_lists(codes, object)))


def make_policy(dataset: RecDataset, list_length: int | None = None) -> Policy:
    tokenizer = make_tokenizer(["a b"], vocab_size=300)
    tokenizer.add_tokens(dataset.catalog.new_tokens)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, list_length=list_length)
    trie = TokenTrie.from_catalog(dataset.catalog, tokenizer, lists=list_length is not None)
    model = make_model("llama", vocab_size=len(tokenizer), seed=0)
    return Policy(model, prompt_format, trie, pad_token_id=0, batch_size=11)


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_by_setting_equals_a_ranking_per_setting(seed: int) -> None:
    """With several targets, repeated targets, excluded items, padded candidates and ties."""
    rng = np.random.default_rng(seed)
    items = torch.from_numpy(np.stack([rng.permutation(12)[:9] for _ in range(7)]))
    items[2, 5:] = -1
    scores = torch.from_numpy(rng.integers(0, 4, (7, 9)).astype(np.float32))
    scores[0, :4] = -torch.inf
    scores[2, 5:] = -torch.inf
    targets = torch.from_numpy(rng.integers(0, 12, (7, 3)))
    targets[1, 1:] = -1
    weights = {0.5: torch.from_numpy(rng.integers(-3, 0, (7, 9)).astype(np.float32))}
    settings = [Setting(0, None), Setting(0.5, 0.5), Setting(2, 0.5)]
    got = ndcg_by_setting(scores, items, targets, settings, weights, k=4)
    for number, setting in enumerate(settings):
        total = scores + setting.strength * weights[0.5] if setting.strength else scores
        ranked = np.full((7, 4), -1)
        for row in range(7):
            keys = [(-total[row, c].item(), items[row, c].item()) for c in range(9) if scores[row, c] > -torch.inf]
            listed = [item for _, item in sorted(keys)][:4]
            ranked[row, : len(listed)] = listed
        relevant = Ragged.from_lists([[one for one in row if one >= 0] for row in targets.tolist()])
        expected = per_user_metrics(ranked, relevant, ks=[4])["ndcg@4"]
        np.testing.assert_allclose(got[:, number], expected, err_msg=str(setting))


def test_prompts_without_a_target_near_the_top_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with a few strong items first changes no value."""
    generator = torch.Generator().manual_seed(0)
    items = torch.arange(300).expand(40, -1)
    scores = torch.randn(40, 300, generator=generator).round(decimals=1)
    scores[:, 7] = -torch.inf
    targets = torch.stack([scores.argsort(1, descending=True)[:, 8], torch.randint(0, 300, (40,))], 1)
    weights = {eps: torch.randn(40, 300, generator=generator) for eps in (0.1, 1.0)}
    settings = [Setting(0, None), *(Setting(strength, eps) for strength in (0.3, 2.0) for eps in (0.1, 1.0))]
    monkeypatch.setattr(prior_choice, "NUM_STRONG", 12)
    quick = ndcg_by_setting(scores, items, targets, settings, weights, k=5)
    monkeypatch.setattr(prior_choice, "NUM_STRONG", 1000)
    np.testing.assert_array_equal(quick, ndcg_by_setting(scores, items, targets, settings, weights, k=5))
    assert 0 < (quick > 0).mean() < 1


@pytest.mark.parametrize("surface", ["item_token", "semantic_id"])
def test_each_value_of_the_grid_is_that_of_a_ranking(surface: str, dataset: RecDataset) -> None:
    """Also among candidates, which are the whole of this small catalogue."""
    dataset = replace(dataset, catalog=dataset.catalog.with_surface(surface))
    policy = make_policy(dataset)
    prior = TransitionPrior.fit(dataset.train, NUM_ITEMS)
    chosen, choice = choose_prior(policy, dataset, prior, k=5)
    assert choice.how == {"item_token": "exact", "semantic_id": "candidates"}[surface] and choice.num_users == 30
    assert len(choice.grid) >= 1 + 8 * 7
    targets = split_rows(dataset.validation, "targets")
    for one in choice.grid[::9]:
        setting = Setting(one["strength"], one["eps"])
        own = replace(policy, prior=with_setting(prior, setting) if setting.strength else None)
        ranked = own.rank_exhaustively(dataset.validation, 5)
        expected = per_user_metrics(ranked.items, targets, ks=[5])["ndcg@5"].mean()
        assert one["value"] == pytest.approx(expected, abs=1e-9), one
    best = max(one["value"] for one in choice.grid)
    found = next(one for one in choice.grid if one["value"] == best)
    assert (choice.strength, choice.eps) == (found["strength"], found["eps"])
    assert chosen.strength == choice.strength and (choice.eps is None or chosen.eps == choice.eps)


def test_lists_are_written_for_one_axis_after_the_other(dataset: RecDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_choice, "MOST_USERS_WRITTEN", 3)
    _, choice = choose_prior(make_policy(dataset, 3), dataset, TransitionPrior.fit(dataset.train, NUM_ITEMS), k=3)
    assert choice.how == "lists" and choice.num_users == 3
    assert 8 + 7 - 1 <= len(choice.grid) - 1 < 8 * 7


@pytest.mark.parametrize(
    ("best", "has_eps", "at_limit"),
    [((1.0, 0.1), True, False), ((11.0, 0.0003), True, False), ((0.05, 60.0), True, False), ((1e9, 1e9), True, True),
     ((0.06, None), False, False)],
)  # fmt: skip
def test_the_grid_is_extended_until_the_best_is_inside(best, has_eps: bool, at_limit: bool) -> None:
    def measure(settings: Sequence[Setting]) -> list[float]:
        return [
            -abs(np.log((one.strength or 1e-9) / best[0])) - (abs(np.log(one.eps / best[1])) if one.eps else 0)
            for one in settings
        ]

    values, limited = search_grid(measure, has_eps=has_eps)
    found = prior_choice.best_setting(values)
    assert limited == at_limit
    if not at_limit:
        strengths = sorted({one.strength for one in values if one.strength})
        assert strengths[0] < found.strength < strengths[-1] and abs(np.log2(found.strength / best[0])) < 0.3
    if has_eps and not at_limit:
        epsilons = sorted({one.eps for one in values if one.eps})
        assert epsilons[0] < found.eps < epsilons[-1]


def test_no_strength_is_chosen_if_the_prior_does_not_help() -> None:
    """After the grid was extended down to the weakest prior."""
    values, limited = search_grid(lambda settings: [-one.strength for one in settings], has_eps=True)
    assert prior_choice.best_setting(values) == Setting(0.0, None) and not limited
    assert min(one.strength for one in values if one.strength) == 0.031


@pytest.mark.parametrize("one_axis", [False, True])
def test_a_weak_prior_is_found_although_none_is_better_than_the_first_grid(one_axis: bool) -> None:
    def measure(settings: Sequence[Setting]) -> list[float]:
        """The best setting has the strength 0.06 and eps 1. It is 0.0101 better than no prior."""
        far = [abs(np.log(one.strength / 0.06)) + abs(np.log(one.eps)) if one.eps else 1.01 for one in settings]
        return [-one / 100 for one in far]

    values, limited = search_grid(measure, has_eps=True, one_axis_at_a_time=one_axis)
    assert prior_choice.best_setting(values).strength == 0.062 and not limited


@pytest.fixture(scope="module")
def run(dataset: RecDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of an untrained model."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    catalog = dataset.catalog.with_surface("item_token")
    tokenizer = make_scratch_tokenizer(catalog)
    tokenizer.save_pretrained(folder)
    make_scratch_model(tokenizer, hidden_size=16).save_pretrained(folder)
    ranking = {"max_length": 64, "renormalize": True, "length_penalty": 0.0, "num_beams": 5}
    save_recommender(folder, catalog, {"prompt": {"prompt_head": None, "list_length": None}, **ranking})
    return folder


def words(run: Path, dataset: RecDataset, output: Path, *more: str) -> list[str]:
    shared = ["--ks", "1", "5", "--recall_at", "0", "--model", str(run), "--dataset", str(dataset.path)]
    return [*shared, "--output_dir", str(output), *more]


def test_evaluate_chooses_on_validation_and_keeps_three_rows(
    run: Path, dataset: RecDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main(words(run, dataset, tmp_path / "out", "--prior", "transition"))
    printed = capsys.readouterr().out
    choice = json.loads((tmp_path / "out/choice.json").read_text())
    kept = read_evaluation(tmp_path / "out")
    names = ["model model", "prior", "model model x prior"]
    assert list(kept.results)[3:] == names and kept.recommender == names[0]
    assert all(kept.rankings_of(name) is not None and kept.results[name].per_user for name in names)

    # The grid is printed, and the best setting is marked.
    assert f"chosen, transition with strength {choice['strength']}" in printed
    assert {"prior", "strength", "eps", "metric", "grid", "num_users", "how", "at_limit", "split"} == set(choice)
    assert choice["split"] == "test" and choice["metric"] == "ndcg@5" and choice["num_users"] == 30
    assert "model model x prior" in printed.split("\n\n")[-2] and " prior" in closing_verdict(kept.results)

    # The rows are those of the chosen setting.
    prior = with_setting(fit_prior("transition", dataset), Setting(choice["strength"], choice["eps"]))
    recommender = replace(Recommender.from_pretrained(run), prior=prior)
    history = split_rows(dataset.test, "history")[3]
    best = recommender.recommend([dataset.catalog.ids[item] for item in history], 5)
    ranked = kept.rankings_of("model model x prior").items[3].tolist()
    assert [dataset.catalog.ids[item] for item in ranked[:5]] == [one.item_id for one in best]

    # The same choice may be measured again. Another one is refused, and changes nothing.
    evaluate.main(words(run, dataset, tmp_path / "out", "--prior", "transition"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    for other in (["--prior", "popularity"], ["--prior", "transition", "--prior_strength", "77"]):
        with pytest.raises(ValueError, match=r"choice\.json records another choice, transition with"):
            evaluate.main(words(run, dataset, tmp_path / "out", *other))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_the_choice_is_written_before_the_test_split_is_read(
    run: Path, dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trl_rec.evaluation.saved_model.held_out", refuse)
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
    _, choice = prior_choice.given_choice(PopularityPrior.fit(dataset.train, NUM_ITEMS), 1.0, 5)
    with pytest.raises(ValueError, match=message):
        prior_choice.keep_choice(tmp_path, choice, "test")
    assert (tmp_path / "choice.json").read_text() == text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--prior", "neural"], "there is no prior 'neural'; choose none, popularity, transition, mixture or saved"),
        (["--prior", "saved"], "does not contain a prior; choose another prior"),
        (["--prior", "transition", "--prior_strength", "strong"], "prior_strength must be auto or a number"),
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
    with pytest.raises(ValueError, match="prior=transition multiplies a model, but model is not set"):
        evaluate.main(["--dataset", str(dataset.path), "--output_dir", str(tmp_path), "--prior", "transition"])


def test_only_the_strength_of_a_popularity_prior_is_chosen(dataset: RecDataset) -> None:
    dataset = replace(dataset, catalog=dataset.catalog.with_surface("item_token"))
    _, choice = choose_prior(make_policy(dataset), dataset, PopularityPrior.fit(dataset.train, NUM_ITEMS), k=5)
    assert {one["eps"] for one in choice.grid} == {None} and "ndcg@5" in prior_choice.choice_table(choice)
