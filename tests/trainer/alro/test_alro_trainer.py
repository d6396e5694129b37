"""Compares `AlroTrainer` with slow loops and separate forward passes. Also tests what every trainer of this package
must do, such as resuming a run, saving it, and refusing options without effect."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from trl import SFTTrainer

from tests.conftest import make_model as make_family
from tests.decoding.candidates.test_rank_candidates import counted
from tests.oracles import alro as oracle
from tests.trainer.alro.alro_runs import DEFAULTS, first_batch, make_folder, make_trainer
from tests.trainer.runs import QUIET, losses
from trl_rec import AlroConfig, AlroTrainer, CandidateRanker, RecDataset, load, prepare
from trl_rec.evaluation import read_evaluation
from trl_rec.models import load_model, make_tokenizer
from trl_rec.trainer import build_rated_rows, conclude_ranking


WHOLE = {"per_device_train_batch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alro")
    make_folder(path)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> RecDataset:
    return load(folder / "data")


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_close(model: torch.nn.Module, expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=tolerance), name


@torch.no_grad()
def slow_table(trainer: AlroTrainer, batch: dict[str, Tensor], row: int, shown: int) -> tuple[Tensor, list[int]]:
    """Reads one list of a batch in a separate forward pass. A batch contains each list with its candidates in one or
    more orders; `shown` is the index of the order to read. Returns the log-probabilities from which each of the n
    answer tokens (which may include EOS) is predicted, `(n, V)`, and the tokens that name the candidates."""
    answer, mask = batch["answer_mask"][row, shown], batch["completion_mask"][row, shown]
    prompt, tokens = batch["prompt_ids"][row][batch["prompt_mask"][row]], batch["completion_ids"][row, shown]
    text = torch.cat([prompt, tokens[mask]])
    count = int(answer.sum())
    logits = trainer.model(input_ids=text.unsqueeze(0)).logits[0, -count - 1 : -1]
    names = batch["names"][row, shown, : int(batch["candidate_mask"][row].sum())]
    return logits.log_softmax(-1), names.tolist()


def slow_parts(trainer: AlroTrainer, batch: dict[str, Tensor]) -> dict[str, float]:
    """Returns the parts of the loss, computed for one list and one answer token at a time."""
    sft, soft_lambda, permutation = [], [], []
    for row in range(len(batch["ratings"])):
        count = int(batch["candidate_mask"][row].sum())
        rank, ratings = batch["gold_rank"][row, :count].tolist(), batch["ratings"][row, :count].tolist()
        tables = []
        for shown in range(trainer.args.num_orders):
            logps, names = slow_table(trainer, batch, row, shown)
            order = np.argsort(rank).tolist()
            if trainer.args.softmax == "vocabulary":
                wanted = [*(names[one] for one in order), trainer.processing_class.eos_token_id]
                losses_ = [-float(logps[k, token]) for k, token in enumerate(wanted)]
            else:
                left = [logps[k, [names[one] for one in order[k:]]] for k in range(count - 1)]
                losses_ = [float(one.logsumexp(0) - one[0]) for one in left]
            sft.append(np.mean(losses_))
            table = logps[:count, names].log_softmax(-1).tolist()
            settings = {"gamma": trainer.args.sharpness, "sigma": trainer.args.pair_sharpness}
            ranked = oracle.soft_lambda(
                table, ratings, rank, [True] * count, score=trainer.args.score, delta=trainer.args.delta, **settings
            )
            soft_lambda.append(ranked.loss)
            tables.append(table)
        if len(tables) == 2:
            permutation.append(oracle.permutation(*tables, [True] * count, distance=trainer.args.distance).loss)
    return {"sft": np.mean(sft), "soft_lambda": np.mean(soft_lambda), "permutation": np.mean(permutation or [0.0])}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softmax": "vocabulary"},
        {"score": "prob", "sharpness": 8.0, "pair_sharpness": 0.5, "delta": "model", "distance": "symkl"},
        {"permutation_weight": 0.0},
        {"distance": "ce", "lambda_weight": 0.0},
    ],
)
def test_the_loss_equals_a_loop_over_separate_rows(folder: Path, tmp_path: Path, options: dict) -> None:
    """The loop reads each list, in each order of its candidates, in a separate forward pass without padding. The test
    compares the parts of the loss and their weighted sum."""
    trainer = make_trainer(folder, tmp_path, lambda_warmup=0.0, **WHOLE, **options)
    batch = first_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    trainer.read_metrics()
    expected, args, logged = slow_parts(trainer, batch), trainer.args, trainer._metrics["train"]
    for name, weight in {"sft": 1, "soft_lambda": args.lambda_weight, "permutation": args.permutation_weight}.items():
        assert (f"alro/{name}" in logged) == bool(weight)
        if weight:
            assert logged[f"alro/{name}"][-1] == pytest.approx(expected[name], abs=1e-5)
    total = (
        expected["sft"]
        + args.lambda_weight * expected["soft_lambda"]
        + args.permutation_weight * expected["permutation"]
    )
    assert loss.item() == pytest.approx(total, abs=1e-4)


def test_lists_of_different_length_do_not_affect_each_other(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    """The parts of the loss of a list do not change if the batch contains longer lists."""
    rows = build_rated_rows(dataset.train, num_candidates=4, max_history=20)
    counts = np.array([len(row) for row in rows["candidates"]])
    chosen = [int(np.flatnonzero(counts == count)[0]) for count in sorted(set(counts))]
    assert len(chosen) > 1
    trainer = make_trainer(folder, tmp_path)
    trainer.model.eval()
    together = trainer.data_collator([rows[row] for row in chosen])
    table = trainer._answers(trainer.model, together)
    parts = trainer.loss_parts(table, together)
    for place, row in enumerate(chosen):
        alone = trainer.data_collator([rows[row]])
        for name, part in trainer.loss_parts(trainer._answers(trainer.model, alone), alone).items():
            torch.testing.assert_close(part[0], parts[name][place], atol=1e-5, rtol=1e-4)


def test_both_orders_take_one_forward_pass_that_reads_a_history_once(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    batch = first_batch(trainer)
    tokens = batch["prompt_mask"].sum(1) + batch["completion_mask"].sum((1, 2))
    with counted(trainer.model) as calls:
        trainer.compute_loss(trainer.model, batch)
    assert calls == [int(tokens.max())]


def test_ranking_costs_the_same_as_after_supervised_fine_tuning(
    folder: Path, dataset: RecDataset, tmp_path: Path
) -> None:
    """Ranking after ALRO takes as many forward passes as after SFT, each with as many tokens."""
    calls = []
    for options in ({}, {"lambda_weight": 0.0, "permutation_weight": 0.0}):
        trainer = make_trainer(folder, tmp_path, **options)
        trainer.train()
        with counted(trainer.model) as seen:
            trainer.rank(dataset.test)
        calls.append(seen)
    assert calls[0] == calls[1] and len(calls[0]) > 0


def test_each_letter_of_an_answer_is_one_token_scored_at_the_token_before_it(tokenizer_copy, tmp_path: Path) -> None:
    """In a prompt with titles, letters name the candidates, and the answer consists of these letters. Each letter is
    one token, even if it is tokenized together with the text before the answer. The log-probability of each letter
    comes from the logits at the token before it."""
    dataset = prepare("toy", tmp_path / "data", toy_users=24, toy_items=60, split="leave_last", num_held_out=4)
    model = make_family("llama", vocab_size=len(tokenizer_copy))
    config = AlroConfig(str(tmp_path), **{**DEFAULTS, "max_length": 512, "max_history": 4})
    given = {"train_dataset": dataset.train, "processing_class": tokenizer_copy}
    trainer = AlroTrainer(model, config, catalog=dataset.catalog.with_surface("title"), **given)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    trainer.model.eval()
    table = trainer._answers(trainer.model, batch)
    for row, shown in np.ndindex(3, 2):
        mask, answer = batch["completion_mask"][row, shown], batch["answer_mask"][row, shown]
        tokens = batch["completion_ids"][row, shown]
        listed, written = tokens[mask & ~answer].tolist(), tokens[answer].tolist()
        names = batch["names"][row, shown, : len(written)].tolist()
        for name in names:
            # The end of the fixed text after the titles. The titles were tokenized separately, so they are left out.
            tail = listed[-5:]
            text = tokenizer_copy.decode([*tail, name])
            assert tokenizer_copy(text, add_special_tokens=False)["input_ids"] == [*tail, name]
        assert sorted(written) == sorted(set(names))
        logps, _ = slow_table(trainer, batch, row, shown)
        expected = logps[:, names].log_softmax(-1)
        count = len(names)
        torch.testing.assert_close(table.logps[row, shown, :count, :count], expected, atol=1e-4, rtol=1e-4)


def test_the_permutation_loss_compares_the_same_candidate_in_both_orders(folder: Path, tmp_path: Path) -> None:
    """The permutation loss compares the same candidate in both orders, so it changes if the letters of the two
    orders are swapped."""
    trainer = make_trainer(folder, tmp_path, lambda_weight=0.0, **WHOLE)
    batch = first_batch(trainer)
    right = trainer.loss_parts(trainer._answers(trainer.model, batch), batch)["permutation"]
    swapped = {**batch, "names": batch["names"].flip(1)}
    wrong = trainer.loss_parts(trainer._answers(trainer.model, swapped), swapped)["permutation"]
    assert (wrong - right).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options", [{}, {"softmax": "vocabulary"}, {"lambda_weight": 0.0}, {"permutation_weight": 0.0}]
)
def test_training_moves_every_tensor_and_logs_the_parts_of_the_loss(
    folder: Path, tmp_path: Path, options: dict
) -> None:
    trainer = make_trainer(folder, tmp_path, **options)
    before = weights(trainer.model)
    trainer.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"alro/sft", "num_tokens"} <= logged
    assert ("alro/soft_lambda" in logged) == ("lambda_weight" not in options)
    assert ("alro/permutation" in logged) == ("permutation_weight" not in options)


def test_the_lambda_weight_rises_during_its_warmup(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, max_steps=6, lambda_warmup=0.5)
    trainer.train()
    rising = [entry["alro/lambda_weight"] for entry in trainer.state.log_history if "loss" in entry]
    assert rising == pytest.approx([10 / 3, 20 / 3, 10, 10, 10, 10])


def test_gradient_norms_are_those_of_each_part_alone(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, max_steps=2, logging_steps=2, log_gradient_norms=True, lambda_warmup=0.0)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {name: entry[f"alro/grad_norm_{name}"] for name in ("sft", "soft_lambda", "permutation")}
    assert all(norm > 0 for norm in found.values())
    again = make_trainer(folder, tmp_path, max_steps=1)
    again.train()
    torch.manual_seed(again.args.seed)  # so that the sampler shuffles the rows as in `trainer`
    _, batch, *_ = make_trainer(folder, tmp_path).get_train_dataloader()
    again.model.train()
    for name, norm in found.items():
        again.model.zero_grad()
        again.loss_parts(again._answers(again.model, batch), batch)[name].mean().backward()
        gradients = [parameter.grad for parameter in again.model.parameters() if parameter.grad is not None]
        assert torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item() == pytest.approx(
            norm, rel=1e-4
        )


def test_accumulating_changes_nothing(folder: Path, tmp_path: Path) -> None:
    whole = make_trainer(folder, tmp_path)
    parts = make_trainer(folder, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole.train(), parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert_close(parts.model, weights(whole.model))


def test_checkpointing_changes_nothing(folder: Path, tmp_path: Path) -> None:
    plain, other = make_trainer(folder, tmp_path), make_trainer(folder, tmp_path, activation_checkpointing=True)
    plain.train(), other.train()
    assert losses(other) == pytest.approx(losses(plain), abs=1e-5)
    assert_close(other.model, weights(plain.model))


def test_a_run_resumed_within_an_epoch_ends_at_the_same_weights(folder: Path, tmp_path: Path, caplog) -> None:
    options = {"max_steps": 12, "save_strategy": "steps", "save_steps": 3, "per_device_train_batch_size": 24}
    whole = make_trainer(folder, tmp_path / "whole", **options | {"save_strategy": "no"})
    # The run resumes at step 3, within the first epoch, and continues into later ones.
    assert 3 < len(whole.get_train_dataloader()) < 9
    whole.train()
    cut = make_trainer(folder, tmp_path / "cut", **options)
    cut.train()
    for step in (6, 9, 12):
        (tmp_path / "cut" / f"checkpoint-{step}" / "complete").unlink()
    resumed = make_trainer(folder, tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-12 is skipped: it was not written completely" in caplog.text
    assert_close(resumed.model, weights(whole.model), tolerance=0)


def test_evaluations_during_training_measure_the_orders_and_choose_the_best_model(
    folder: Path, dataset: RecDataset, tmp_path: Path
) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "load_best_model_at_end": True,
    }
    trainer = make_trainer(
        folder,
        tmp_path,
        eval_dataset=dataset.validation,
        max_users=7,
        metric_for_best_model="eval_graded_ndcg@4",
        **options,
    )
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_graded_ndcg@4" in entry]
    assert len(evaluations) == 2 and evaluations[0]["eval_num_users"] <= 7
    assert {"eval_tau", "eval_consistency", "eval_slot_bias", "eval_graded_ndcg@1"} <= evaluations[0].keys()
    assert trainer.state.best_metric == max(entry["eval_graded_ndcg@4"] for entry in evaluations)
    assert {"test_graded_ndcg@4", "test_tau"} <= trainer.evaluate(dataset.test, metric_key_prefix="test").keys()
    alone = make_trainer(folder, tmp_path, eval_num_orders=1).rank_and_measure(dataset.validation)
    assert "consistency" not in alone and "tau" in alone


def test_a_saved_run_orders_candidates_like_its_trainer(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, max_history=5)
    trainer.train()
    trainer.save_model()
    ranker, rows = CandidateRanker.from_pretrained(tmp_path), trainer.rows_of(dataset.test)
    ranked, ids = trainer.rank(dataset.test), dataset.catalog.ids
    for number, row in enumerate(rows.select(range(6)).to_list()):
        slots = ranked.slots[number, 0][: len(row["candidates"])].argsort()
        listed = ranker.rank(
            [ids[item] for item in dataset.test[row["row"]]["history"]],
            dataset.test[row["row"]]["history_ratings"],
            [ids[row["candidates"][candidate]] for candidate in slots],
        )
        order = ranked.places[number, 0][: len(row["candidates"])].argsort()
        assert [one.item_id for one in listed] == [ids[row["candidates"][candidate]] for candidate in order]
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "CandidateRanker.from_pretrained" in card and "lambda_weight" in card and "ALRO" in card
    with pytest.raises(ValueError, match="must contain at least two ids"):
        ranker.rank([], [], [ids[0], ids[0]])
    with pytest.raises(ValueError, match="history has 1 items, but ratings has 0 values"):
        ranker.rank([ids[0]], [], ids[1:3])
    with pytest.raises(ValueError, match="is not a run folder of AlroTrainer"):
        CandidateRanker.from_pretrained(folder / "model")


def test_the_final_evaluation_contains_the_baselines(
    folder: Path, dataset: RecDataset, tmp_path: Path, capsys
) -> None:
    trainer = make_trainer(folder, tmp_path)
    results = conclude_ranking(trainer, dataset, {"dataset": "toy"})
    assert list(results) == ["random", "popularity", "item mean", "bias", "ALRO"]
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["results"]["ALRO"]["metrics"]["graded_ndcg@4"] == results["ALRO"].metrics["graded_ndcg@4"]
    kept = read_evaluation(tmp_path)
    assert (kept.recommender, kept.seed) == ("ALRO", trainer.args.seed)
    rows = trainer.rows_of(dataset.test)
    assert kept.users["row"].tolist() == rows["row"][:]
    for name in ("ALRO", "bias"):
        np.testing.assert_array_equal(kept.results[name].per_user["tau"], results[name].per_user["tau"])
        for ordered, candidates in zip(kept.rankings_of(name).items.tolist(), rows["candidates"], strict=True):
            assert sorted(ordered[: len(candidates)]) == sorted(candidates)
    told = capsys.readouterr().out
    assert "graded_ndcg@4" in told and "consistency" in told and "item mean" in told
    assert (tmp_path / "recipe.yaml").is_file() and (tmp_path / "ranker.json").is_file()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "ALRO"),
        ({"lambda_weight": 0.0}, "SFT + PSL"),
        ({"permutation_weight": 0.0}, "SFT + SLL"),
        ({"lambda_weight": 0.0, "permutation_weight": 0.0}, "SFT"),
    ],
)
def test_the_weights_determine_the_name_of_the_run_and_the_number_of_orders(
    folder: Path, tmp_path: Path, options, name
) -> None:
    trainer = make_trainer(folder, tmp_path, **options)
    assert trainer.display_name == name
    assert first_batch(trainer)["names"].shape[1] == (2 if "permutation_weight" not in options else 1)


@pytest.mark.parametrize("surface", ["item_token", "title"])
def test_training_and_ranking_work_with_other_surfaces(surface: str, tokenizer_copy, tmp_path: Path) -> None:
    if surface == "item_token":
        dataset = make_folder(tmp_path, surface)
        trainer = make_trainer(tmp_path, tmp_path / "run")
    else:
        dataset = prepare("toy", tmp_path / "data", toy_users=24, toy_items=60, split="leave_last", num_held_out=4)
        model = make_family("llama", vocab_size=len(tokenizer_copy))
        config = AlroConfig(
            str(tmp_path / "run"), **{**DEFAULTS, "max_length": 512, "max_history": 4, "learning_rate": 0.01}
        )
        given = {"train_dataset": dataset.train, "processing_class": tokenizer_copy}
        trainer = AlroTrainer(model, config, catalog=dataset.catalog.with_surface("title"), **given)
    before = trainer.rank(dataset.validation)
    trainer.train()
    after = trainer.rank(dataset.validation)
    assert (after.slots == before.slots).all() and (np.sort(after.places, -1) == np.sort(before.places, -1)).all()
    assert all(np.isfinite(losses(trainer)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True}, "packing=True has no effect"),
        ({"list_length": 5}, "list_length=5 has no effect, because AlroTrainer ranks candidates"),
        ({"eval_exclude_history": False}, "eval_exclude_history=False has no effect"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect"),
        ({"shuffle_dataset": True}, "shuffle_dataset=True has no effect"),
        ({"eos_token": "<bos>"}, "eos_token='<bos>' would change the tokenizer"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8 has no effect"),
        ({"distance": "wasserstein"}, "distance must be one of jsd, symkl, ce"),
        ({"softmax": "both"}, "softmax must be one of legal, vocabulary"),
        ({"lambda_weight": -1.0}, "lambda_weight must be at least 0"),
        ({"lambda_warmup": 2.0}, "lambda_warmup must be from 0 to 1, not 2.0"),
        ({"eval_num_orders": 0}, "eval_num_orders must be at least 1"),
    ],
)
def test_options_without_effect_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        AlroConfig(str(tmp_path), **QUIET, **options)


@pytest.mark.parametrize("name", ["data_collator", "compute_metrics", "compute_loss_func", "formatting_func"])
def test_arguments_without_use_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"AlroTrainer does not support {name}, because .*; leave it out"):
        make_trainer(folder, tmp_path, **{name: lambda given: given})


def test_wrong_rows_are_refused(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must use only the training split, not the test split"):
        make_trainer(folder, tmp_path, train_dataset=dataset.test)
    with pytest.raises(ValueError, match="max_length 20 is too small: list \\d+ of the train split takes"):
        make_trainer(folder, tmp_path, max_length=20)
    with pytest.raises(ValueError, match="the eval dataset has the columns"):
        make_trainer(folder, tmp_path, eval_dataset=build_rated_rows(dataset.train, num_candidates=4))
    unrated = dataset.validation.map(lambda row: {"history_ratings": [], "target_ratings": []})
    with pytest.raises(ValueError, match="the validation split has no ratings to rank by"):
        make_trainer(folder, tmp_path, eval_dataset=unrated)
    with pytest.raises(ValueError, match="the validation split has no ratings to rank by"):
        make_trainer(folder, tmp_path, eval_dataset={"whole": dataset.validation, "unrated": unrated})
    short = {"train_dataset": build_rated_rows(dataset.train, num_candidates=2), "max_length": 20}
    assert len(make_trainer(folder, tmp_path, **short).train_dataset)
    with pytest.raises(ValueError, match="max_length 20 is too small: list 0 of the validation split takes up to"):
        make_trainer(folder, tmp_path, eval_dataset=dataset.validation, **short)
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        make_trainer(folder, tmp_path, model=load_model(folder / "model").requires_grad_(False))
    with pytest.raises(ValueError, match="keeps no logits; call rank"):
        make_trainer(folder, tmp_path).predict(dataset.test)
    ready = make_trainer(
        folder, tmp_path, train_dataset=build_rated_rows(dataset.train, num_candidates=4, max_history=20)
    )
    assert ready.train_dataset.to_list() == make_trainer(folder, tmp_path).train_dataset.to_list()


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder / "model")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"of 4 rows is not finite at step 0 \(on this process: rows \[0, 1, 2, 3\]"):
        make_trainer(folder, tmp_path, model=model).train()


def test_fsdp_refuses_to_rank(folder: Path, dataset: RecDataset, tmp_path: Path, monkeypatch) -> None:
    trainer = make_trainer(folder, tmp_path)
    monkeypatch.setattr(trainer, "is_fsdp_enabled", True)
    with pytest.raises(ValueError, match="evaluation during training does not work under FSDP"):
        trainer.evaluate(dataset.validation)


@pytest.mark.parametrize("name", ["compute_loss", "_prepare_dataset", "save_model"])
def test_overridden_methods_still_have_trls_signature(name: str) -> None:
    theirs = list(inspect.signature(getattr(SFTTrainer, name)).parameters)
    ours = inspect.signature(getattr(AlroTrainer, name)).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values()):
        assert theirs == ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
    else:
        assert list(ours) == theirs


def test_a_tokenizer_that_lacks_tokens_is_refused(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    model, config = load_model(folder / "model"), AlroConfig(str(tmp_path), **QUIET)
    common = {"processing_class": make_tokenizer(dataset.catalog), "catalog": dataset.catalog}
    with pytest.raises(ValueError, match="the tokenizer lacks 33 tokens of the prompts"):
        AlroTrainer(model, config, train_dataset=dataset.train, **common)
    with pytest.raises(ValueError, match="AlroTrainer needs train_dataset"):
        AlroTrainer(model, config, **common)
