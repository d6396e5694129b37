"""`SoftmaxDPOTrainer`: its loss (compared with TRL's DPO and with a slow loop), its reference, its evaluations, and
its errors for invalid arguments and data."""

import inspect
import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from tests.conftest import make_model as make_family
from tests.trainer.runs import QUIET, losses, make_folder, with_known_names
from tests.trainer.softmax_dpo.preference_runs import (
    CHAT,
    DEFAULTS,
    TEXT_TOKENIZER,
    first_loss,
    loss_of_equals,
    make_trainer,
    preference_table,
    text_rows,
)
from trl_rec import RecDataset, Recommender, load
from trl_rec.models import load_model, load_tokenizer
from trl_rec.trainer import SoftmaxDPOConfig, SoftmaxDPOTrainer


ALL = {"per_device_train_batch_size": 24}  # every row in one batch
MESSAGES = [{"role": "user", "content": "which one?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preferences")
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


def other_model(folder: Path) -> Any:
    """Returns a model whose weights differ from those of the folder's model."""
    model = load_model(folder / "model")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def text_trainer(output: Path, rows: Dataset, **options: Any) -> SoftmaxDPOTrainer:
    model = make_family("llama", vocab_size=len(TEXT_TOKENIZER))
    config = SoftmaxDPOConfig(str(output), **{**DEFAULTS, **options})
    return SoftmaxDPOTrainer(model, args=config, train_dataset=rows, processing_class=deepcopy(TEXT_TOKENIZER))


@pytest.mark.parametrize("kind", ["full", "adapter", "ref adapter"])
def test_one_negative_is_trls_dpo(kind: str, tmp_path: Path) -> None:
    told = []
    for trainer, config in ((DPOTrainer, DPOConfig), (SoftmaxDPOTrainer, SoftmaxDPOConfig)):
        model = make_family("llama", vocab_size=len(TEXT_TOKENIZER))
        ref_model = deepcopy(model) if kind == "full" else None
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        options = {"processing_class": TEXT_TOKENIZER, "peft_config": lora if kind == "adapter" else None}
        model = get_peft_model(model, lora) if kind == "ref adapter" else model
        args = config(str(tmp_path), **with_known_names(DEFAULTS), beta=0.5, gradient_accumulation_steps=2)
        one = trainer(model, ref_model, args, train_dataset=text_rows(several=False), **options)
        one.train()
        told.append([entry for entry in one.state.log_history if "loss" in entry])
    names = {"loss", "grad_norm", "logps/chosen", "logps/rejected"}
    names |= {name for name in told[0][0] if name.startswith("rewards/")}
    assert len(names) == 8 and len(told[0]) == len(told[1]) == 4
    for name in names:
        tolerance = 1e-4 if name == "grad_norm" else 1e-5
        assert [one[name] for one in told[1]] == pytest.approx(
            [one[name] for one in told[0]], rel=tolerance, abs=tolerance
        ), name
    assert max(abs(one["rewards/margins"]) for one in told[0]) > 0.1


def test_the_first_loss_is_that_of_a_policy_that_equals_its_reference(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, **ALL)
    assert first_loss(trainer) == pytest.approx(loss_of_equals(trainer), abs=1e-5)
    # The weights of `other_model` differ from those in the folder that it was loaded from. The reference must copy
    # the weights of `other_model`.
    changed = make_trainer(folder, tmp_path, model=other_model(folder), **ALL)
    assert first_loss(changed) == pytest.approx(loss_of_equals(changed), abs=1e-5)
    loaded = make_trainer(folder, tmp_path, model=str(folder / "model"), **ALL)  # TRL loads the reference
    assert first_loss(loaded) == pytest.approx(loss_of_equals(loaded), abs=1e-5)


def test_dropout_does_not_make_policy_and_reference_differ(folder: Path, tmp_path: Path) -> None:
    """Attention stores its dropout rate as a number, not in a module, so TRL's `disable_dropout` does not find it. Our
    trainer therefore sets this number to 0. With `disable_dropout=False`, the policy keeps its dropout, but the
    reference is computed without dropout."""
    model = load_model(folder / "model", attention_dropout=0.5).train()
    trainer = make_trainer(folder, tmp_path, model=model, beta=20.0, **ALL)
    assert first_loss(trainer) == pytest.approx(loss_of_equals(trainer), abs=1e-4)
    model = load_model(folder / "model", attention_dropout=0.5).train()
    trainer = make_trainer(folder, tmp_path, model=model, disable_dropout=False, **ALL)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    again = [trainer.compute_ref_log_probs(trainer.ref_model, batch) for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(*(trainer._logps(trainer.model, batch) for _ in range(2)))
    precomputed = make_trainer(folder, tmp_path, model=model, disable_dropout=False, precompute_ref_log_probs=True)
    assert precomputed.train_dataset["ref_logps"][3] == pytest.approx(
        make_trainer(folder, tmp_path / "again", model=model.eval(), precompute_ref_log_probs=True).train_dataset[
            "ref_logps"
        ][3]
    )


@pytest.mark.parametrize("options", [{}, {"normalize": "catalogue"}, {"sft_weight": 0.5}, {"loss": "dmpo", **ALL}])
def test_training_moves_every_tensor_of_the_policy_and_none_of_the_reference(
    folder: Path, tmp_path: Path, options: dict
) -> None:
    trainer = make_trainer(folder, tmp_path, **options)
    before, reference = weights(trainer.model), weights(trainer.ref_model)
    trainer.train()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())
    assert_close(trainer.ref_model, reference, tolerance=0)
    assert losses(trainer)[-1] < losses(trainer)[0]
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"} <= logged
    assert {"logps/chosen", "logps/rejected", "softmax_dpo/num_rejected", "softmax_dpo/nll", "num_tokens"} <= logged


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
@pytest.mark.parametrize("sft_weight", [0.0, 0.7])
@pytest.mark.parametrize("loss", ["softmax", "dmpo"])
def test_the_loss_equals_that_of_single_completions(
    folder: Path, tmp_path: Path, normalize: str, sft_weight: float, loss: str
) -> None:
    """The expected loss is computed from the logits of one completion at a time, without padding."""
    options = {
        "ref_model": other_model(folder),
        "beta": 0.3,
        "normalize": normalize,
        "sft_weight": sft_weight,
        "loss": loss,
    }
    trainer = make_trainer(folder, tmp_path, **options, **ALL)
    paths = [path.tolist() for path in (trainer.prompt_format.paths[item] for item in range(len(trainer.catalog)))]

    def logp(model: Any, prompt: list[int], completion: list[int]) -> float:
        logits = model.eval()(input_ids=torch.tensor([prompt + completion])).logits[0].detach()
        total = 0.0
        for depth, token in enumerate(completion):
            legal = sorted({path[depth] for path in paths if path[:depth] == completion[:depth]})
            scores = logits[len(prompt) - 1 + depth]
            total += float(scores[token] - (scores[legal] if normalize == "catalogue" else scores).logsumexp(0))
        return total

    expected = 0.0
    for row in trainer.train_dataset:
        texts = [row["chosen_ids"], *row["rejected_ids"]]
        policy, reference = (
            [logp(model, row["prompt_ids"], text) for text in texts] for model in (trainer.model, options["ref_model"])
        )
        rewards = [0.3 * (ours - theirs) for ours, theirs in zip(policy, reference, strict=True)]
        if loss == "softmax":
            preference = math.log(math.fsum(map(math.exp, rewards))) - rewards[0]
        else:
            preference = math.log1p(math.exp(math.fsum(rewards[1:]) / len(rewards[1:]) - rewards[0]))
        expected += preference - sft_weight * policy[0] / len(texts[0])
    assert first_loss(trainer) == pytest.approx(expected / len(trainer.train_dataset), abs=1e-5)
    assert abs(expected / len(trainer.train_dataset) - loss_of_equals(trainer)) > 0.01


def test_neither_padding_nor_the_order_of_negatives_matters(folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(folder, tmp_path, ref_model=other_model(folder), **ALL)
    rows = [dict(row) for row in trainer.train_dataset]
    assert len({len(row["rejected_ids"]) for row in rows}) > 2 and len({len(row["prompt_ids"]) for row in rows}) > 2

    def loss(some: list[dict]) -> float:
        return float(trainer.compute_loss(trainer.model, trainer.data_collator(some)))

    together = loss(rows)
    assert math.fsum(loss([row]) for row in rows) / len(rows) == pytest.approx(together, abs=1e-5)
    assert loss([{**row, "rejected_ids": row["rejected_ids"][::-1]} for row in rows]) == pytest.approx(
        together, abs=1e-6
    )
    # If each rejected item occurs twice, the loss changes.
    assert loss([{**row, "rejected_ids": row["rejected_ids"] * 2} for row in rows]) > together + 0.1


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


def test_rows_may_be_texts_conversations_or_tokens(tmp_path: Path) -> None:
    text = text_trainer(tmp_path, text_rows())
    tokens = text_trainer(tmp_path, text.train_dataset)
    text.train(), tokens.train()
    assert losses(text) == losses(tokens) and losses(text)[-1] < losses(text)[0]
    tokenizer = deepcopy(TEXT_TOKENIZER)
    tokenizer.chat_template = CHAT
    answers = [[{"role": "assistant", "content": text}] for text in ("the cat", "a dog", "red pens")]
    rows = Dataset.from_dict({"prompt": [MESSAGES] * 4, "chosen": [answers[0]] * 4, "rejected": [answers[1:]] * 4})
    config = SoftmaxDPOConfig(str(tmp_path), **DEFAULTS)
    chat = SoftmaxDPOTrainer(
        make_family("llama", vocab_size=len(tokenizer)), args=config, train_dataset=rows, processing_class=tokenizer
    )
    chat.train()
    assert losses(chat)[0] == pytest.approx(math.log(3), abs=1e-5) and losses(chat)[-1] < losses(chat)[0]


@pytest.mark.parametrize("surface", ["item_token", "semantic_id", "title"])
@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
def test_tables_train_on_every_surface(dataset: RecDataset, surface: str, normalize: str, tmp_path: Path) -> None:
    catalog, tokenizer = dataset.catalog.with_surface(surface), deepcopy(TEXT_TOKENIZER)
    tokenizer.add_tokens(catalog.new_tokens)
    trainer = SoftmaxDPOTrainer(
        make_family("llama", vocab_size=len(tokenizer)),
        args=SoftmaxDPOConfig(str(tmp_path), **{**DEFAULTS, "max_length": 400, "max_steps": 2}, normalize=normalize),
        train_dataset=preference_table(dataset, most=2).select(range(4)),
        processing_class=tokenizer,
        catalog=catalog,
    )
    assert first_loss(trainer) == pytest.approx(loss_of_equals(trainer), abs=1e-4)
    before = weights(trainer.model)
    trainer.train()
    assert any(not torch.equal(parameter, before[name]) for name, parameter in trainer.model.named_parameters())


def test_a_tokenizer_without_a_pad_token_pads_with_eos(tmp_path: Path) -> None:
    tokenizer = deepcopy(TEXT_TOKENIZER)
    tokenizer.pad_token = None
    config = SoftmaxDPOConfig(str(tmp_path), **DEFAULTS)
    model = make_family("llama", vocab_size=len(tokenizer))
    trainer = SoftmaxDPOTrainer(model, args=config, train_dataset=text_rows(), processing_class=tokenizer)
    padded = text_trainer(tmp_path, text_rows())
    trainer.train(), padded.train()
    assert losses(trainer) == losses(padded)


@pytest.mark.parametrize("options", [{}, {"ref_model": "loaded", "normalize": "catalogue"}])
def test_a_precomputed_reference_changes_nothing(folder: Path, tmp_path: Path, options: dict) -> None:
    options |= {"learning_rate": 0.5}
    at_once = make_trainer(folder, tmp_path, **options)
    before = make_trainer(folder, tmp_path, **options, precompute_ref_log_probs=True, precompute_ref_batch_size=5)
    assert [len(row) for row in before.train_dataset["ref_logps"]] == [
        1 + len(row) for row in before.train_dataset["rejected_ids"]
    ]
    at_once.train(), before.train()
    assert losses(before) == pytest.approx(losses(at_once), abs=1e-5)
    # The policy now differs from its reference.
    assert max(abs(entry.get("rewards/margins", 0)) for entry in before.state.log_history) > 0.02
    assert_close(before.model, weights(at_once.model))


def test_a_precomputed_reference_is_reused_only_for_the_same_rows_and_weights(
    folder: Path, dataset: RecDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    compute = SoftmaxDPOTrainer._all_ref_logps
    monkeypatch.setattr(
        SoftmaxDPOTrainer, "_all_ref_logps", lambda *given: computed.append(given[2]) or compute(*given)
    )
    table = preference_table(dataset)

    def make(**options: Any) -> tuple[int, SoftmaxDPOTrainer]:
        before = len(computed)
        trainer = make_trainer(folder, tmp_path, precompute_ref_log_probs=True, **options)
        return len(computed) - before, trainer

    first, again = make()[1], make()
    assert computed == ["train"] and again[0] == 0
    assert again[1].train_dataset["ref_logps"] == first.train_dataset["ref_logps"]
    assert make(eval_dataset=preference_table(dataset, seed=1))[0] == 1  # only for the evaluation rows
    assert make(train_dataset=table.select(range(23)))[0] == 1
    assert make(train_dataset=table.select(range(23, -1, -1)))[0] == 1
    assert make(model=other_model(folder))[0] == 1
    assert make(normalize="catalogue")[0] == 1
    assert make(normalize="catalogue", beta=0.1)[0] == 0
    assert len(list(tmp_path.glob("reference-*.parquet"))) == 6 and not list(tmp_path.glob("*.tmp"))


def test_a_run_that_reuses_its_reference_has_the_same_losses(folder: Path, tmp_path: Path) -> None:
    told = []
    for _ in range(2):
        model = load_model(folder / "model", attention_dropout=0.2)
        told.append(make_trainer(folder, tmp_path, model=model, disable_dropout=False, precompute_ref_log_probs=True))
        told[-1].train()
    assert losses(told[0]) == losses(told[1]) and losses(told[0])[0] != pytest.approx(
        loss_of_equals(told[0]), abs=1e-5
    )


def test_preferences_are_evaluated(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    held_out = Dataset(preference_table(dataset, seed=1).data.table, split="validation")
    options = {"eval_strategy": "steps", "eval_steps": 4, "per_device_eval_batch_size": 5}
    trainer = make_trainer(folder, tmp_path, eval_dataset=held_out, **options)
    told = trainer.evaluate()
    assert told["eval_loss"] == pytest.approx(
        loss_of_equals(make_trainer(folder, tmp_path, train_dataset=preference_table(dataset, seed=1))), abs=1e-5
    )
    trainer.train()
    told = next(entry for entry in trainer.state.log_history if entry.get("step") == 4 and "eval_loss" in entry)
    assert {"eval_rewards/margins", "eval_rewards/accuracies", "eval_logps/chosen"} <= told.keys()
    assert trainer.evaluate(held_out)["eval_loss"] == pytest.approx(told["eval_loss"], abs=1e-6)
    assert "ndcg" not in " ".join(told)


def test_evaluations_during_training_rank_the_split_and_choose_the_best_model(
    folder: Path, dataset: RecDataset, tmp_path: Path
) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "eval_ks": [5]}
    options |= {
        "metric_for_best_model": "eval_ndcg@5",
        "load_best_model_at_end": True,
        "learning_rate": 0.5,
        "max_steps": 6,
    }
    trainer = make_trainer(folder, tmp_path, eval_dataset=dataset.validation, max_users=7, **options)
    trainer.train()
    told = {entry["step"]: entry for entry in trainer.state.log_history if "eval_ndcg@5" in entry}
    assert list(told) == [2, 4, 6] and all(
        entry["eval_num_users"] == 7 and "eval_loss" not in entry for entry in told.values()
    )
    best = max(entry["eval_ndcg@5"] for entry in told.values())
    assert trainer.state.best_metric == pytest.approx(best)
    assert trainer.evaluate()["eval_ndcg@5"] == pytest.approx(best)  # the best weights were loaded
    assert {"test_ndcg@5"} <= trainer.evaluate(dataset.test, metric_key_prefix="test").keys()


def test_a_ranking_does_not_change_the_training_metrics(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 4, "eval_ks": [5]}
    trainer = make_trainer(folder, tmp_path, eval_dataset=dataset.validation, **options)
    trainer.train()
    ranked, logged = trainer.state.log_history[:2]
    assert "eval_ndcg@5" in ranked and {name for name in ranked if not name.startswith("eval_")} == {"epoch", "step"}
    assert "loss" in logged and logged["rewards/margins"] != 0
    whole = make_trainer(folder, tmp_path, logging_steps=4)
    whole.train()
    told = whole.state.log_history[0]
    names = ("rewards/margins", "logps/chosen", "softmax_dpo/num_rejected")  # each is the mean over four steps
    assert [logged[name] for name in names] == pytest.approx([told[name] for name in names])


@pytest.mark.parametrize("precompute", [False, True])
def test_each_of_several_evaluation_sets_has_its_own_metrics(
    folder: Path, dataset: RecDataset, tmp_path: Path, precompute: bool
) -> None:
    sets = {"pairs": preference_table(dataset, seed=1), "users": dataset.validation}
    options = {
        "eval_ks": [5],
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 2,
        "precompute_ref_log_probs": precompute,
    }
    trainer = make_trainer(folder, tmp_path, eval_dataset=sets, metric_for_best_model="eval_users_ndcg@5", **options)
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_pairs_loss", "eval_users_ndcg@5"} <= logged and not {"eval_users_loss", "eval_pairs_ndcg@5"} & logged
    ranked = trainer.evaluate(dataset.validation)["eval_ndcg@5"]
    assert trainer.evaluate()["eval_users_ndcg@5"] == pytest.approx(ranked)
    assert trainer.evaluate({"these": dataset.validation})["eval_these_ndcg@5"] == pytest.approx(ranked)


@pytest.mark.parametrize("normalize", ["vocabulary", "catalogue"])
def test_a_run_folder_recommends_what_the_trainer_ranks(
    folder: Path, dataset: RecDataset, tmp_path: Path, normalize: str
) -> None:
    trainer = make_trainer(folder, tmp_path, eval_ks=[5], normalize=normalize, learning_rate=0.5)
    trainer.train()
    trainer.save_model()
    recommender, ranked = Recommender.from_pretrained(tmp_path), trainer.rank(dataset.test).items
    assert recommender.settings["renormalize"] == (normalize == "catalogue")
    for row in range(8):
        history = [dataset.catalog.ids[item] for item in dataset.test["history"][row]]
        assert [one.item_id for one in recommender.recommend(history, k=5)] == [
            dataset.catalog.ids[item] for item in ranked[row]
        ]


@pytest.mark.parametrize("options", [{}, {"precompute_ref_log_probs": True}])
def test_resuming_skips_an_incomplete_checkpoint_and_ends_the_same(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict
) -> None:
    options |= {"max_steps": 6, "optim": "adamw_torch", "learning_rate": 0.01}
    whole = make_trainer(folder, tmp_path / "whole", **options)
    whole.train()
    cut = make_trainer(folder, tmp_path / "cut", **options, save_strategy="steps", save_steps=2)
    cut.train()
    for name in ("checkpoint-4", "checkpoint-6"):
        (tmp_path / "cut" / name / "complete").unlink()
    resumed = make_trainer(folder, tmp_path / "cut", **options, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-6 is skipped: it was not written completely" in caplog.text
    assert losses(resumed) == losses(whole)
    assert_close(resumed.model, weights(whole.model), tolerance=0)


def test_a_prior_without_a_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prior=transition multiplies the model's .*, but there is no catalogue"):
        text_trainer(tmp_path, text_rows(), prior="transition")


def test_a_run_without_a_catalogue_saves_a_plain_model(tmp_path: Path) -> None:
    trainer = text_trainer(tmp_path, text_rows(), save_strategy="steps", save_steps=4)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    written = {path.name for path in [*tmp_path.iterdir(), *(tmp_path / "checkpoint-4").iterdir()]}
    assert {"model.safetensors", "tokenizer.json", "README.md", "complete"} <= written
    assert not {"catalog", "recommender.json"} & written
    card = (tmp_path / "README.md").read_text()
    assert "Trained with Softmax-DPO" in card and "Recommender" not in card and "| beta | 1.0 |" in card
    tags = next(line for line in card.splitlines() if line.startswith("tags: "))
    assert json.loads(tags.removeprefix("tags: ")) == ["trl", "trl-rec", "softmax_dpo"]
    assert load_model(tmp_path).config.vocab_size == len(load_tokenizer(tmp_path))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL warns about its own deprecated options
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": ["hinge"]}, r"loss_type=\['hinge'\] has no effect"),
        ({"loss_weights": [0.5]}, r"loss_weights=\[0.5\] has no effect"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5 has no effect"),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 has no effect"),
        ({"ref_model_mixup_alpha": 0.9}, "ref_model_mixup_alpha=0.9 has no effect, because sync_ref_model is off"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type='js_divergence' has no effect"),
        ({"use_weighting": True}, "use_weighting=True has no effect"),
        ({"list_length": 10}, "list_length=10 has no effect"),
        ({"padding_free": True}, "padding_free=True has no effect"),
        ({"truncation_mode": "keep_end"}, "truncation_mode='keep_end' has no effect"),
        ({"pad_to_multiple_of": 64}, "pad_to_multiple_of=64 has no effect"),
        ({"pad_to_multiple_of": "8"}, "pad_to_multiple_of='8' has no effect"),
        ({"pad_token": "<eos>"}, "pad_token='<eos>' has no effect"),
        ({"normalize": "items"}, "normalize must be 'vocabulary' or 'catalogue', not 'items'"),
        ({"loss": "ipo"}, "loss must be one of softmax, dmpo, not 'ipo'"),
        ({"beta": 0.0}, "beta must be above 0, not 0.0"),
        ({"beta": math.nan}, "beta must be above 0, not nan"),
        ({"eval_ks": []}, r"eval_ks is empty"),
        ({"eval_ks": [5, 0]}, r"eval_ks must be at least 1, not 0"),
        ({"max_users": 0}, "max_users must be at least 1, not 0; leave it out"),
        ({"sft_weight": -1.0}, "sft_weight must be at least 0, not -1.0"),
        ({"sft_weight": math.nan}, "sft_weight must be at least 0, not nan"),
    ],
)
def test_options_without_effect_and_wrong_values_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        SoftmaxDPOConfig(str(tmp_path), **QUIET, **options)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's config still sets the deprecated `gradient_checkpointing`
def test_defaults_that_differ_from_trls(tmp_path: Path) -> None:
    config = SoftmaxDPOConfig(str(tmp_path), **QUIET)
    assert (config.learning_rate, config.pad_to_multiple_of) == (1e-5, None)
    # If this fails, TRL has changed its default learning rate. SoftmaxDPOConfig may then no longer need its own.
    assert DPOConfig(str(tmp_path), **QUIET).learning_rate == 1e-6
    assert SoftmaxDPOConfig(str(tmp_path), pad_to_multiple_of="none", **QUIET).pad_to_multiple_of is None


@pytest.mark.parametrize("name", ["data_collator", "compute_metrics"])
def test_arguments_without_use_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"SoftmaxDPOTrainer does not support {name}, because .*; leave it out"):
        make_trainer(folder, tmp_path, **{name: lambda given: given})
    trainer = make_trainer(folder, tmp_path, **{name: None})
    with pytest.raises(ValueError, match="keeps no logits; call rank"):
        trainer.predict(trainer.train_dataset)


def test_a_model_with_nothing_to_train_is_refused(folder: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules="all-linear")
    for model in (load_model(folder / "model"), get_peft_model(load_model(folder / "model"), lora)):
        with pytest.raises(
            ValueError, match="no parameter of the model is trainable; load an adapter with .*load_policy"
        ):
            make_trainer(folder, tmp_path, model=model.requires_grad_(False))


def token_rows(**changed: Any) -> Dataset:
    rows = {"prompt_ids": [[1], [1]], "chosen_ids": [[5], [6]], "rejected_ids": [[[7], [8]], [[9], [3]]]}
    return Dataset.from_dict({**rows, **changed})


def test_wrong_rows_are_refused_before_training(folder: Path, dataset: RecDataset, tmp_path: Path) -> None:
    table = preference_table(dataset)
    paths = [dataset.catalog.paths(load_tokenizer(folder / "model"))[item].tolist() for item in range(3)]
    cases: list[tuple[str, Any, dict]] = [
        ("the training split contains no rejected items", dataset.train, {}),
        ("the train dataset has the columns input_ids; it needs prompt", Dataset.from_dict({"input_ids": [[1]]}), {}),
        ("the train dataset has the columns user, history, chosen, rejected", table, {"catalog": None}),
        ("the train dataset must be a Dataset", table.to_iterable_dataset(), {}),
        ("the train dataset has no rows; pass a dataset with preferences", text_rows().select([]), {}),
        ("no row of the eval dataset has a rejected completion", table, {"eval_dataset": text_rows().select([])}),
        ("the column rejected_ids has the type list", token_rows(rejected_ids=[[7], [9]]), {}),
        (
            "row 1: chosen_ids contains the token 999, but the model's tokens are 0 to",
            token_rows(chosen_ids=[[5], [999]]),
            {},
        ),
        (
            "row 1: chosen_ids contains the token 999",
            token_rows(chosen_ids=[[5], [999]]),
            {"model": str(folder / "model")},
        ),
        ("row 1: chosen_ids contains the token 999", table, {"eval_dataset": token_rows(chosen_ids=[[5], [999]])}),
        ("no row of the train dataset has a rejected completion", token_rows(rejected_ids=[[], []]), {}),
        ("row 1: prompt_ids contains an empty list of tokens", token_rows(prompt_ids=[[1], []]), {}),
        ("row 1: rejected_ids contains an empty list of tokens", token_rows(rejected_ids=[[[7]], [[9], []]]), {}),
        ("normalize='catalogue' needs the catalogue", table, {"catalog": None, "normalize": "catalogue"}),
        ("row 0: a completion is not an item of the catalogue", token_rows(), {"normalize": "catalogue"}),
        (
            "row 1: a completion is not an item of the catalogue",  # only the beginning of an item
            token_rows(chosen_ids=[paths[0]] * 2, rejected_ids=[[paths[1]], [paths[2], paths[1][:2]]]),
            {"normalize": "catalogue"},
        ),
    ]
    for message, rows, options in cases:
        with pytest.raises(ValueError, match=message):
            make_trainer(folder, tmp_path, train_dataset=rows, **options)
    right = token_rows(chosen_ids=[paths[0]] * 2, rejected_ids=[[paths[1]], [paths[2], paths[1]]])
    assert len(make_trainer(folder, tmp_path, train_dataset=right, normalize="catalogue").train_dataset) == 2


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder / "model")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"of 4 rows is not finite at step 0 \(on this process: rows \[0, 1, 2, 3\]"):
        make_trainer(folder, tmp_path, model=model).train()
    rows = Dataset.from_dict({**token_rows().to_dict(), "ref_logps": [[0.0, 0.0, 0.0], [math.inf, 0.0, 0.0]]})
    with pytest.raises(ValueError, match="the loss of 1 row is not finite at step 0"):
        make_trainer(folder, tmp_path, train_dataset=rows).train()


def test_a_likelihood_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss of 4 rows is not finite at step 0"):
        # Only the NLL term is infinite; the softmax term is log(1 + number of negatives).
        make_trainer(folder, tmp_path, sft_weight=1e39).train()


def test_a_tokenizer_that_cannot_end_or_pad_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = deepcopy(TEXT_TOKENIZER)
    tokenizer.eos_token = None
    options = {"processing_class": tokenizer, "catalog": None, "train_dataset": text_rows()}
    with pytest.raises(ValueError, match="the tokenizer has no EOS token to end a text with; set tokenizer.eos_token"):
        make_trainer(folder, tmp_path, **options)
    tokenizer.pad_token = None
    with pytest.raises(
        ValueError, match="the tokenizer has neither a padding nor an EOS token; set tokenizer.pad_token"
    ):
        make_trainer(folder, tmp_path, **options)


def test_a_model_that_knows_fewer_tokens_than_its_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenizer = deepcopy(TEXT_TOKENIZER)
    tokenizer.add_tokens(["<new>"])
    rows, size = text_rows().map(lambda row: {"prompt": "<new> " + row["prompt"]}), len(TEXT_TOKENIZER)
    config = SoftmaxDPOConfig(str(tmp_path), **DEFAULTS)
    model = make_family("llama", vocab_size=size)
    with pytest.raises(
        ValueError, match=f"row 0: prompt_ids contains the token {size}, .* resize the model's embeddings"
    ):
        SoftmaxDPOTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)


def test_a_model_that_was_not_loaded_from_a_folder_needs_a_tokenizer(tmp_path: Path) -> None:
    model = make_family("llama", vocab_size=len(TEXT_TOKENIZER))
    with pytest.raises(ValueError, match="the model was not loaded from a folder or hub id, .* pass processing_class"):
        SoftmaxDPOTrainer(model, args=SoftmaxDPOConfig(str(tmp_path), **DEFAULTS), train_dataset=text_rows())


OVERRIDDEN = [
    "compute_loss",
    "compute_ref_log_probs",
    "_precompute_ref_logps",
    "_set_signature_columns_if_needed",
    "evaluate",
]
OVERRIDDEN += [
    "evaluation_loop",
    "train",
    "end",
    "save_model",
    "create_model_card",
    "_save_checkpoint",
    "_load_from_checkpoint",
    "_push_from_checkpoint",
    "_prepare_dataset",
    "_get_train_sampler",
    "predict",
    "log",
]


def test_the_list_of_overridden_methods_is_complete() -> None:
    ours = {
        name for kind in SoftmaxDPOTrainer.__mro__ if kind.__module__.startswith("trl_rec.") for name in vars(kind)
    }
    theirs = {name for name in ours if inspect.isfunction(getattr(DPOTrainer, name, None))} - {
        "__init__",
        "__module__",
        "push_to_hub",  # passes all arguments on, as does the next method
        "_run_epoch",
    }
    assert theirs == set(OVERRIDDEN)


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_still_have_trls_signature(name: str) -> None:
    """If a new TRL adds or renames a parameter, this test fails instead of a user's run."""
    theirs = list(inspect.signature(getattr(DPOTrainer, name)).parameters)
    ours = inspect.signature(getattr(SoftmaxDPOTrainer, name)).parameters
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours.values()):
        assert theirs == ["self", "dataset", "processing_class", "args", "dataset_name"]
    else:
        assert list(ours) == theirs


def test_trls_constructor_still_has_the_arguments_that_we_pass() -> None:
    theirs = list(inspect.signature(DPOTrainer).parameters)
    assert theirs[:4] == ["model", "ref_model", "args", "data_collator"]  # they are passed by position
    assert {"train_dataset", "eval_dataset", "processing_class"} <= set(theirs)
