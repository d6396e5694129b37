"""Tests `BearTrainer`: its loss (against TRL's and a slow loop), its checkpoints, its run folders, and what it
refuses."""

import inspect
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

from tests.conftest import make_model as make_family
from tests.trainer.runs import QUIET, losses, make_folder, make_trainer, with_known_names
from trl_rec import BearConfig, BearTrainer, RecDataset, Recommender, bear_loss, prepare
from trl_rec.data import PromptFormat, build_rows
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer


@pytest.fixture(scope="module")
def dataset(folder: Path) -> RecDataset:
    from trl_rec import load

    return load(folder / "data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bear")
    make_folder(path)
    return path


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_close(model: torch.nn.Module, expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=tolerance), name


def one_batch(trainer: BearTrainer) -> dict[str, Tensor]:
    return next(iter(trainer.get_train_dataloader()))


def test_weight_zero_over_the_vocabulary_is_trls_sft(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    rows = build_rows(dataset.train, PromptFormat.for_catalog(dataset.catalog, tokenizer), max_length=96)
    common = {
        "max_steps": 3,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "max_length": 96,
        "save_strategy": "no",
    }
    common |= {"gradient_accumulation_steps": 2, "activation_checkpointing": False, **QUIET}
    theirs = SFTTrainer(
        load_model(folder / "model"),
        SFTConfig(str(tmp_path), **with_known_names(common)),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    ours = BearTrainer(
        load_model(folder / "model"),
        BearConfig(str(tmp_path), bear_weight=0, softmax="vocabulary", **common),
        train_dataset=dataset.train,
        processing_class=tokenizer,
        catalog=dataset.catalog,
    )
    theirs.train(), ours.train()
    expected = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert losses(ours) == pytest.approx(expected, abs=1e-5)
    assert_close(ours.model, weights(theirs.model))


def test_weight_zero_is_cross_entropy_over_the_legal_tokens(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    """With weight 0, BEAR is MSL (masked softmax loss): the softmax contains only the legal tokens, which are those
    that continue the path of an item. The expected loss is computed token by token from the model's logits. A target
    token does not count if it is forced, that is, if no other token is legal."""
    trainer = make_trainer(folder, tmp_path, bear_weight=0, targets="all")
    paths = [dataset.catalog.paths(trainer.processing_class)[item].tolist() for item in range(len(dataset.catalog))]
    batch = one_batch(trainer)
    loss = trainer.compute_loss(trainer.model, batch)
    logits = trainer.model.eval()(
        **{name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    ).logits
    rows = [
        {"input_ids": ids[mask.bool()].tolist()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    total, count = torch.zeros(()), 0
    for row, one in enumerate(rows):
        tokens, pad = one["input_ids"], int((batch["attention_mask"][row] == 0).sum())
        begin = 4  # <bos> and the history's single item of three tokens
        for start in range(begin, len(tokens), 3):
            for depth in range(3):
                prefix, target = tokens[start : start + depth], tokens[start + depth]
                legal = sorted({path[depth] for path in paths if path[:depth] == prefix})
                if len(legal) > 1:
                    scores = logits[row, pad + start + depth - 1]
                    total, count = total + scores[legal].logsumexp(0) - scores[target], count + 1
    assert count > 0 and count < sum(len(one["input_ids"]) for one in rows)
    assert loss.item() == pytest.approx(total.item() / count, abs=1e-5)


@pytest.mark.parametrize(
    "options", [{"targets": "last"}, {"targets": "all"}, {"variant": "survival"}, {"softmax": "vocabulary"}]
)
def test_training_moves_every_tensor_and_logs_the_metrics_of_bear(folder: Path, tmp_path: Path, options: dict) -> None:
    trainer = make_trainer(folder, tmp_path, **options)
    before = weights(trainer.model)
    trainer.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"bear/ce", "bear/margin", "bear/pruned", "bear/rows_pruned", "num_tokens"} <= logged


def test_accumulating_changes_nothing(folder: Path, tmp_path: Path) -> None:
    whole, parts = (
        make_trainer(folder, tmp_path),
        make_trainer(folder, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4),
    )
    whole.train(), parts.train()
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    assert_close(parts.model, weights(whole.model))


@pytest.mark.parametrize(
    "options", [{"padding_side": "right"}, {"activation_checkpointing": True}, {"pad_to_multiple_of": 64}]
)
def test_padding_and_checkpointing_change_nothing(folder: Path, tmp_path: Path, options: dict) -> None:
    plain, other = make_trainer(folder, tmp_path), make_trainer(folder, tmp_path, **options)
    plain.train(), other.train()
    assert losses(other) == pytest.approx(losses(plain), abs=1e-5)
    assert_close(other.model, weights(plain.model))


def test_a_batch_of_forced_tokens_has_the_loss_0_and_zero_gradients(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path)
    batch = one_batch(trainer)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trainer.model.parameters())


def test_evaluations_during_training_choose_the_best_model_and_stop_early(
    folder: Path, dataset: RecDataset, tmp_path: Path
) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "eval_ks": [5]}
    options |= {
        "metric_for_best_model": "eval_ndcg@5",
        "load_best_model_at_end": True,
        "max_steps": 20,
        "learning_rate": 1e-9,
    }
    trainer = make_trainer(
        folder, tmp_path, eval_dataset=dataset.validation, callbacks=[EarlyStoppingCallback(2)], max_users=7, **options
    )
    trainer.train()
    assert trainer.state.global_step == 6  # the evaluations at steps 4 and 6 are no better than the one at step 2
    assert trainer.state.best_metric == trainer.state.log_history[-2]["eval_ndcg@5"]
    evaluations = [entry for entry in trainer.state.log_history if "eval_ndcg@5" in entry]
    assert len(trainer.eval_dataset) == 7  # the loss is computed for the same users as the rankings
    assert (
        evaluations[0]["eval_num_users"] == 7
        and "eval_loss" in evaluations[0]
        and "eval_bear/pruned" in evaluations[0]
    )
    tested = trainer.evaluate(dataset.test, metric_key_prefix="test")
    assert {"test_loss", "test_ndcg@5"} <= tested.keys()


def test_a_run_folder_recommends_what_the_trainer_ranks(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, eval_ks=[5])
    trainer.train()
    trainer.save_model()
    recommender = Recommender.from_pretrained(tmp_path)
    ranked = trainer.rank(dataset.test).items
    for row in range(5):
        history = [dataset.catalog.ids[item] for item in dataset.test["history"][row]]
        listed = recommender.recommend(history, k=5)
        assert [one.item_id for one in listed] == [dataset.catalog.ids[item] for item in ranked[row]]
        assert [one.title for one in listed] == [dataset.catalog.titles[item] for item in ranked[row]]
    with pytest.raises(ValueError, match="'nothing', which is not in the catalogue"):
        recommender.recommend(["nothing"], unknown="refuse")
    with pytest.raises(ValueError, match="is not a run folder"):
        Recommender.from_pretrained(folder / "model")


def test_resuming_skips_an_incomplete_checkpoint_and_ends_at_the_same_weights(
    folder: Path, tmp_path: Path, caplog
) -> None:
    whole = make_trainer(folder, tmp_path / "whole", max_steps=6)
    whole.train()
    cut = make_trainer(folder, tmp_path / "cut", max_steps=6, save_strategy="steps", save_steps=2)
    cut.train()
    for name in ("checkpoint-4", "checkpoint-6"):
        (tmp_path / "cut" / name / "complete").unlink()
    resumed = make_trainer(folder, tmp_path / "cut", max_steps=6, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-6 is skipped: it was not written completely" in caplog.text
    assert_close(resumed.model, weights(whole.model), tolerance=0)
    assert (tmp_path / "cut" / "checkpoint-2" / "README.md").is_file() or (tmp_path / "cut" / "README.md").is_file()


def test_a_resume_without_a_checkpoint_starts_from_scratch(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, max_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 1


def test_a_model_trains_on_titles_with_a_pretrained_tokenizer(tokenizer_copy, titles, tmp_path: Path) -> None:
    import pyarrow as pa

    from trl_rec import ItemCatalog

    catalog = ItemCatalog(
        pa.table(
            {
                "item_id": [str(row) for row in range(8)],
                "title": [f"{title} {row}" for row, title in enumerate(titles)],
            }
        )
    )
    split = Dataset(
        pa.table({"user": pa.array([0, 1], pa.int32()), "history": [[0], [3]], "targets": [[1, 2, 3], [4, 5]]}),
        split="train",
    )
    model = make_family("llama", vocab_size=len(tokenizer_copy))
    config = BearConfig(
        str(tmp_path), max_steps=2, max_length=256, save_strategy="no", activation_checkpointing=False, **QUIET
    )
    trainer = BearTrainer(model, config, train_dataset=split, processing_class=tokenizer_copy, catalog=catalog)
    labels = one_batch(trainer)["labels"]
    assert len(trainer.train_dataset) == 5
    assert 0 < int((labels != -100).sum()) < 5 * 6  # a title has 6 to 10 tokens, most of which are forced
    trainer.train()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL warns about its own deprecated options
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True}, "packing=True has no effect"),
        ({"loss_type": "dft"}, "loss_type='dft' has no effect"),
        ({"softmax": "both"}, "softmax must be 'legal' or 'vocabulary'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect"),
        ({"shuffle_dataset": True}, "shuffle_dataset=True has no effect"),
        ({"dataset_text_field": "body"}, "dataset_text_field='body' has no effect"),
        ({"packing_strategy": "wrapped"}, "packing_strategy='wrapped' has no effect"),
        ({"truncation_mode": "keep_end"}, "truncation_mode='keep_end' has no effect"),
        ({"pad_token": "<eos>"}, "pad_token='<eos>' has no effect"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "dataset_kwargs=.* has no effect"),
        (
            {"eos_token": "<bos>"},
            "eos_token='<bos>' would change the tokenizer after the catalogue has been tokenized",
        ),
        ({"chat_template_path": "chat"}, "chat_template_path='chat' would change the tokenizer after"),
    ],
)
def test_options_without_effect_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        BearConfig(str(tmp_path), **QUIET, **options)


REFUSED = ["data_collator", "compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func", "formatting_func"]


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_without_use_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"BearTrainer does not support {name}, because .*; leave it out"):
        make_trainer(folder, tmp_path, **{name: lambda given: given})


def test_prediction_and_a_frozen_model_are_refused(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, data_collator=None)
    with pytest.raises(ValueError, match="keeps no logits; call rank"):
        trainer.predict(trainer.train_dataset)
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        make_trainer(folder, tmp_path, model=load_model(folder / "model").requires_grad_(False))


def test_wrong_rows_are_refused(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    common = {"processing_class": load_tokenizer(folder / "model"), "catalog": dataset.catalog}
    config = BearConfig(str(tmp_path), max_length=96, **QUIET)
    with pytest.raises(ValueError, match="must use only the training split, not the test split"):
        BearTrainer(load_model(folder / "model"), config, train_dataset=dataset.test, **common)
    with pytest.raises(ValueError, match="the train dataset has the columns text"):
        BearTrainer(load_model(folder / "model"), config, train_dataset=Dataset.from_dict({"text": ["a"]}), **common)
    rows = Dataset.from_dict({"input_ids": [[1, 5, 2]], "labels": [[-100, -100, 2]]})
    with pytest.raises(ValueError, match="row 0: label 2 does not continue the path of any item"):
        BearTrainer(load_model(folder / "model"), config, train_dataset=rows, **common)


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder / "model")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"of 4 rows is not finite at step 0 \(on this process: rows \[0, 1, 2, 3\]"):
        make_trainer(folder, tmp_path, model=model).train()


@pytest.mark.parametrize(
    "name",
    ["compute_loss", "evaluate", "_prepare_dataset", "_save_checkpoint", "save_model", "train", "predict", "log"],
)
def test_overridden_methods_still_have_trls_signature(name: str) -> None:
    """If a new TRL adds or renames a parameter, this test fails instead of a user's run."""
    theirs = list(inspect.signature(getattr(SFTTrainer, name)).parameters)
    ours = inspect.signature(getattr(BearTrainer, name)).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values()):
        assert theirs == ["self", "dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"]
    else:
        assert list(ours) == theirs


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_softmax_over_item_tokens_contains_only_the_items(tmp_path: Path, weight: float) -> None:
    dataset = prepare("toy", tmp_path / "data", toy_users=12, toy_items=60).with_surface("item_token")
    tokenizer = make_tokenizer(dataset.catalog)
    model = make_model(tokenizer, hidden_size=16, dropout=0.0, max_length=128)
    config = BearConfig(str(tmp_path / "run"), **QUIET, bear_weight=weight, num_beams=3, targets="all", max_length=64)
    trainer = BearTrainer(
        model, config, train_dataset=dataset.train, processing_class=tokenizer, catalog=dataset.catalog
    )
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    found = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(1))
    items = torch.tensor(tokenizer.convert_tokens_to_ids(dataset.catalog.new_tokens))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    labels = batch["labels"][:, 1:]
    logits = model(**inputs).logits[:, :-1][labels != -100][:, items]
    targets = (labels[labels != -100].unsqueeze(1) == items).long().argmax(1)
    expected = bear_loss(logits, targets, None, num_beams=3, weight=weight, sharpness=2.75).loss.sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
