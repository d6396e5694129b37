"""Tests every shipped study: the keys of each run are valid for its verb (such as `trl-rec bear`), and the study
writes its table even if each run trains for only two steps."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_alone
from tests.schedule.studies.study_runs import Forked
from tests.stand_ins import save_stand_in
from trl_rec import load, prepare
from trl_rec.schedule.studies import Study, StudyConfig
from trl_rec.scripts.options.parsing import parse
from trl_rec.scripts.options.recipe_files import recipe_names
from trl_rec.scripts.study import check_keys, read_named


STUDIES = [name for name in recipe_names() if name.startswith("study/")]
TOY = {"toy_users": 40, "toy_items": 60}
TWO_STEPS = {"max_steps": 2, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
OF_VERB: dict[str, dict[str, Any]] = {
    "bear": {"hidden_size": 16, "max_length": 128},
    "alro": {"hidden_size": 16, "rating_epochs": 0, "letter_lists": 0},
    "blade": {"max_prompts": 16, "max_length": 128},
    "align3gr": {"max_length": 128, "keep": "last"},
}


def read(name: str, *words: str) -> Study:
    config = parse(StudyConfig, ["--config", name, *words], "study")
    return Study(config, read_recipe=read_named, say=lambda line: None, start=Forked)


@pytest.mark.parametrize("name", STUDIES)
def test_the_keys_of_every_run_are_valid_for_its_verb(name: str) -> None:
    study = read(name)
    assert study.comparisons
    for title, verb, keys in study.recipes():
        check_keys(title, verb, keys)


def run_tiny(name: str, data: Path, output: Path) -> None:
    """Runs a study with one seed. Each arm trains for two steps with the first point of its grid."""
    study = read(name, "--dataset", str(data), "--output_dir", str(output), "--seeds", "0", "--primary", PRIMARY[name])
    for key, arm in study.arms.items():
        if arm.verb is not None:
            recipe = {**arm.recipe, **TWO_STEPS, **OF_VERB[arm.verb]}
            recipe.pop("join_windows", None)  # the toy data has one training row per user, so no rows to join
            if "model_name_or_path" in recipe:
                titles = load(data).catalog.titles
                del recipe["hidden_size"]
                recipe["model_name_or_path"] = str(
                    save_stand_in(recipe["model_name_or_path"], titles, output.parent / "model")
                )
            if "stages" in recipe:
                recipe["stages"] = [{**stage, "max_prompts": 20} for stage in recipe["stages"]]
            if "tasks" in recipe:
                recipe["train_sampling_strategy"] = "random"
            codes = {"codes": 8} if arm.tokenize else {}
            tokenize = {
                **arm.tokenize,
                **codes,
                **({"text_encoder": "words"} if "text_encoder" in arm.tokenize else {}),
            }
            study.arms[key] = replace(arm, recipe=recipe, grid=arm.grid[:1], tokenize=tokenize, needs={}, seeds=(0,))
    study.run()


PRIMARY = {name: read(name).config.primary for name in STUDIES}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.long) for name in STUDIES])
def test_a_study_ends_with_its_table(name: str, tmp_path: Path) -> None:
    is_listed = "blade" in name or "alro" in name or "feedback" in name
    split = {"split": "leave_last", "num_held_out": 10} if is_listed else {}
    prepare("toy", tmp_path / "data", **TOY, **split)
    run_alone(partial(run_tiny, name, tmp_path / "data"), tmp_path / "study")
    assert (tmp_path / "study" / "table.txt").is_file() and (tmp_path / "study" / "report.html").is_file()
