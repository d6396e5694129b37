"""Tests reward functions that a recipe names by their import paths."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.trainer.blade.blade_runs import DEFAULTS, logged
from tests.trainer.runs import make_folder
from trl_rec import BladeConfig, BladeTrainer, load
from trl_rec.scripts import blade
from trl_rec.scripts.options.parsing import parse
from trl_rec.trainer.blade import building
from trl_rec.trainer.blade.reward_functions import import_rewards


MODULE = """
import numpy as np

SIZE = 3


def novelty(batch):
    return -np.asarray(batch.lists, float).mean(-1) / 100
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Writes a module with a reward function, and returns the module's name. Also writes a module that fails when
    imported."""
    name = f"rewards_of_{re.sub('[^a-z]', '', tmp_path.name)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"broken_{name}.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_run_learns_from_the_users_own_reward_function(module: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    options = {"reward_functions": {"novelty": f"{module}.novelty"}, "rewards": {"ndcg": 1.0, "novelty": 0.5}}
    config = BladeConfig(str(tmp_path / "out"), **{**DEFAULTS, "max_steps": 1, **options})
    dataset = load(tmp_path / "data")
    model = str(tmp_path / "model")
    trainer = BladeTrainer(model, args=config, train_dataset=dataset.train, catalog=dataset.catalog)
    trainer.train()
    (total,), (ndcg,), (novelty,) = (logged(trainer, name) for name in ("reward", "rewards/ndcg", "rewards/novelty"))
    assert novelty < 0 and np.isclose(total, ndcg + 0.5 * novelty, atol=1e-6)


def test_functions_are_named_in_a_recipe_or_on_the_command_line(module: str, tmp_path: Path) -> None:
    path = f"{module}.novelty"
    recipe = {"dataset": "d", "model_name_or_path": "m", "output_dir": "o", "use_cpu": True, "bf16": False}
    recipe |= {"rewards": {"novelty": 2.0}, "reward_functions": {"novelty": path}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    *_, config = parse(blade.KINDS, ["--config", str(tmp_path / "mine.yaml")], "blade")
    assert config.reward_paths == {"novelty": path} and config.given["reward_functions"] == {"novelty": path}
    words = ["--dataset", "d", "--rewards", '{"novelty": 2}', "--reward_functions", f'{{"novelty": "{path}"}}']
    *_, config = parse(blade.KINDS, [*words, "--use_cpu", "true", "--bf16", "false"], "blade")
    assert import_rewards(config.reward_paths)["novelty"].__name__ == "novelty"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("novelty", "'novelty' is not an import path; write module.function"),
        ("no_such_module.novelty", "no_such_module.novelty cannot be imported (ModuleNotFoundError: No module named"),
        (
            "MODULE.no_such_name",
            "cannot be imported (AttributeError: module 'MODULE' has no attribute",
        ),
        ("broken_MODULE.novelty", "cannot be imported (ZeroDivisionError: division by zero)"),
        ("MODULE.SIZE", "MODULE.SIZE is 3, which is not callable; name a function that takes a ListBatch"),
    ],
)
def test_a_wrong_path_is_refused_before_a_model_is_loaded(
    path: str, message: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, message = (text.replace("MODULE", module) for text in (path, message))
    options = {"rewards": {"novelty": 1.0}, "reward_functions": {"novelty": path}, "use_cpu": True, "bf16": False}
    monkeypatch.setattr(building, "build_policy", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(ValueError, match=f"reward_functions: novelty: .*{re.escape(message)}"):
        building.build_blade_trainer(None, BladeConfig("o", **options), None)


def test_a_function_needs_a_weight() -> None:
    with pytest.raises(ValueError, match="reward_functions: novelty has no weight; add it to rewards"):
        BladeConfig("o", reward_functions={"novelty": "m.f"}, use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="reward_functions must map names to import paths"):
        BladeConfig("o", reward_functions=["m.f"], use_cpu=True, bf16=False)
