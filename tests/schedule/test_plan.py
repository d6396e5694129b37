"""Tests `plan.json`, in which a schedule of preference stages records its settings. Once a stage has started, a later
call for the same folder may change only settings of speed, logging and the final evaluation."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BitsAndBytesConfig
from trl import DPOConfig, SFTConfig

from tests.schedule.loops import STAGES, make_schedule
from tests.trainer.runs import make_folder
from trl_rec import BearConfig, Schedule, SoftmaxDPOConfig, load
from trl_rec.compat import BACKPORTED_FIELDS
from trl_rec.files import write_json
from trl_rec.models import RecModelConfig, load_model
from trl_rec.ragged import Ragged
from trl_rec.schedule.plan import INHERITED, _config_entries, check_same_plan, check_same_policy, weights_digest
from trl_rec.trainer.base.config import RecConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    make_folder(folder)
    check_same_plan(STAGES, folder / "model", make_schedule(folder, folder / "out"))
    (folder / "out" / "1-easy").mkdir()
    return folder


def now(folder: Path, **options: Any) -> Schedule:
    return make_schedule(folder, folder / "out", **options)


def test_a_plan_without_any_work_may_change(folder: Path, tmp_path: Path) -> None:
    """The supervised policy, which the pipeline trains before the stages, does not count as work of the stages."""
    for beta in (0.1, 0.3):
        check_same_plan(STAGES, folder / "model", make_schedule(folder, tmp_path / "out", beta=beta))
        (tmp_path / "out" / "supervised").mkdir(exist_ok=True)


def test_settings_of_speed_and_logging_may_change(folder: Path) -> None:
    free: dict[str, Any] = {
        "per_device_eval_batch_size": 2,
        "resume_from_checkpoint": True,
        "activation_checkpointing": True,
        "save_total_limit": 1,
        "logging_steps": 7,
        "dataloader_num_workers": 1,
        "run_name": "again",
        "final_split": "none",
        "eval_recall_at": 0,
        "prior": "transition",
        "prior_strength": "2",
    }
    check_same_plan(STAGES, folder / "model", now(folder, **free))


def test_a_setting_that_an_older_plan_lacks_had_its_default(folder: Path, tmp_path: Path) -> None:
    """An older plan may also contain a setting that plans no longer record."""
    shutil.copytree(folder / "out", tmp_path / "out")
    plan = json.loads((tmp_path / "out/plan.json").read_text())
    assert (plan.pop("beta"), plan.pop("eval_ks")) == (1.0, [1, 5, 10])
    older = {**plan, "prior": "mixture"}
    write_json(tmp_path / "out/plan.json", older)
    check_same_plan(STAGES, folder / "model", make_schedule(folder, tmp_path / "out"))
    for name, value, there in (("beta", 0.3, "1.0"), ("eval_ks", [1, 10], r"\[1, 5, 10\]")):
        write_json(tmp_path / "out/plan.json", older)
        with pytest.raises(ValueError, match=rf"differs in {name} \({there} there, "):
            check_same_plan(STAGES, folder / "model", make_schedule(folder, tmp_path / "out", **{name: value}))

    # A plan that lacks a stage belongs to a different schedule.
    write_json(tmp_path / "out/plan.json", {name: value for name, value in older.items() if name != "stage 2"})
    with pytest.raises(ValueError, match=r"differs in stage 2 \(None there"):
        check_same_plan(STAGES, folder / "model", make_schedule(folder, tmp_path / "out"))


def test_the_settings_of_a_supervised_policy_have_defaults_too(folder: Path, tmp_path: Path) -> None:
    """If an older plan of a supervised policy lacks a setting, the policy counts as trained with the default. The next
    call adds the setting to the plan."""
    dataset, model = load(folder / "data"), RecModelConfig()
    config = BearConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    check_same_policy(tmp_path, dataset, config, vars(model))
    plan = json.loads((tmp_path / "plan.json").read_text())
    model_options = ("embedding_dropout", "item_vectors", "text_encoder")
    newer = [f"model option {name}" for name in model_options]
    newer += ("target_smoothing", "sampled_items", "sampled_from", "target_age_decay")
    write_json(tmp_path / "plan.json", {name: value for name, value in plan.items() if name not in newer})
    (tmp_path / "model.safetensors").touch()
    check_same_policy(tmp_path, dataset, config, vars(model))
    assert json.loads((tmp_path / "plan.json").read_text()) == plan


def test_a_prior_is_not_among_the_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "model")
    (tmp_path / "model/prior.safetensors").write_bytes(b"prior")
    assert weights_digest(tmp_path / "model") == weights_digest(folder / "model")


@pytest.mark.parametrize("kind", [BearConfig, SoftmaxDPOConfig])
def test_a_plan_contains_all_our_fields_and_the_listed_inherited_fields(kind: type, tmp_path: Path) -> None:
    config = kind(str(tmp_path), report_to="none", use_cpu=True, bf16=False)
    ours = {name for base in (kind, RecConfig) for name in base.__annotations__ if name in vars(config)}
    ours -= {*BACKPORTED_FIELDS, "overwrite", "final_split", "max_test_users", "eval_recall_at", "include_catalog"}
    ours.discard("logging_nan_inf_filter")  # only affects logging
    listed = {field.name for field in fields(kind)} & set(INHERITED)
    assert _config_entries(config).keys() == ours | listed


def test_the_listed_inherited_fields_exist() -> None:
    assert set(INHERITED) <= {field.name for base in (SFTConfig, DPOConfig) for field in fields(base)}
    assert len(set(INHERITED)) == len(INHERITED)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", 0.3), ("eval_ks", [1, 10]), ("seed", 1), ("max_length", 64), ("per_device_train_batch_size", 4)],
)
def test_settings_of_weights_and_reports_may_not_change(name: str, value: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"differs in {name} \(.* there, .* now\)"):
        check_same_plan(STAGES, folder / "model", now(folder, **{name: value}))


def test_stages_and_models_may_not_change(folder: Path) -> None:
    plain = now(folder)
    with pytest.raises(ValueError, match="differs in stage 3"):
        check_same_plan(STAGES[:2], folder / "model", plain)
    with pytest.raises(ValueError, match="differs in keep"):
        check_same_plan(STAGES, folder / "model", replace(plain, keep="best"))
    with pytest.raises(ValueError, match="differs in adapter"):
        check_same_plan(STAGES, folder / "model", now(folder, lora=True))
    with pytest.raises(ValueError, match="differs in model option dtype"):
        check_same_plan(STAGES, folder / "model", replace(plain, model_options={"dtype": "float16"}))


def test_the_policy_is_identified_by_its_weights(folder: Path, tmp_path: Path) -> None:
    """The folder of the policy may be moved, but its weights must not change."""
    moved = Path(shutil.copytree(folder / "model", tmp_path / "elsewhere"))
    (moved / "training_args.bin").write_bytes(b"another call's")
    check_same_plan(STAGES, moved, now(folder))
    model = load_model(moved)
    model.get_output_embeddings().weight.data[0, 0] += 1e-3
    model.save_pretrained(moved)
    with pytest.raises(ValueError, match="differs in weights of the policy"):
        check_same_plan(STAGES, moved, now(folder))


def test_the_data_may_not_change(folder: Path) -> None:
    plain = now(folder)
    dataset, catalog = plain.dataset, plain.dataset.catalog
    ids = Ragged.from_lists([[f"<a_{item}>"] for item in range(len(catalog))], object)
    for name, other in {
        "surface": replace(dataset, catalog=catalog.with_surface("title")),
        "semantic_ids": replace(dataset, catalog=catalog.with_surface("semantic_id", ids)),
        "splits": replace(dataset, train=dataset.train.select(range(len(dataset.train) - 1))),
        "items": replace(
            dataset,
            catalog=replace(catalog, items=catalog.items.take([*range(1, len(catalog)), 0])),
        ),
    }.items():
        with pytest.raises(ValueError, match=f"differs in {name} "):
            check_same_plan(STAGES, folder / "model", replace(plain, dataset=other))


def test_adapter_and_quantisation_are_written_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    def schedule(width: int) -> Schedule:
        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        options = {"dtype": torch.bfloat16, "quantization_config": quantization, "device_map": {"": width}}
        adapter = LoraConfig(r=width, target_modules=["q_proj", "k_proj", "v_proj", "up_proj", "o_proj"])
        return replace(make_schedule(folder, tmp_path / "out"), adapter=adapter, model_options=options)

    check_same_plan(STAGES, folder / "model", schedule(4))
    (tmp_path / "out" / "1-easy").mkdir()
    other = schedule(4)
    check_same_plan(
        STAGES, folder / "model", replace(other, model_options={**(other.model_options or {}), "device_map": {"": 7}})
    )
    with pytest.raises(ValueError, match="differs in adapter"):
        check_same_plan(STAGES, folder / "model", schedule(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_strategy": "no"}, "save_strategy 'no' does not save at every evaluation of eval_strategy 'steps'"),
        ({"save_strategy": "epoch"}, "save_strategy 'epoch' does not save"),
        ({"save_steps": 3}, "save_steps must be equal to eval_steps, but they are 3 and 2"),
        ({"save_steps": 4}, "they are 4 and 2"),  # the best evaluation may be at step 2, which is not saved
        ({"metric_for_best_model": "eval_loss"}, "not known whether high or low values of 'eval_loss' are better"),
    ],
)
def test_keeping_the_best_policy_needs_its_checkpoint(options: dict[str, Any], message: str, folder: Path) -> None:
    measured: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, **options}
    with pytest.raises(ValueError, match=message):
        now(folder, keep="best", **measured)
    now(folder, keep="last", **measured)
    now(folder, keep="best", eval_strategy="steps", eval_steps=0.5, save_steps=0.5)


def test_stages_are_not_pushed_one_by_one(folder: Path) -> None:
    with pytest.raises(ValueError, match="push_to_hub would push every stage"):
        now(folder, push_to_hub=True)


def test_an_unknown_value_of_keep_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="keep must be"):
        now(folder, keep="all")
