"""A compiled model (`torch_compile=True`) gives the same losses, weights and recommendations as an uncompiled model.

`torch.compile` wraps a model. The wrapper hides the class, the layers and the adapters of the model, so each trainer
must unwrap the model before it reads them. The wrapper also raises an error if its truth value is tested, as in
`if model:`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from tests.trainer import runs
from tests.trainer.alro import alro_runs
from tests.trainer.bear import task_runs
from tests.trainer.blade import blade_runs
from tests.trainer.kinds import make_folders
from tests.trainer.softmax_dpo import preference_runs
from trl_rec import load
from trl_rec.models import attention, load_model


Make = Callable[..., Any]  # makes a trainer from a folder, an output folder and options

# A second step is needed: its batch has another shape than the first batch, so torch compiles code that accepts any
# length.
SHORT = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_ks": [3]}
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["qkv_proj"])


def one_layer(folder: Path) -> Any:
    """Returns the folder's model with only its first layer, so that it compiles in less time."""
    model = load_model(folder / "model")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return model


def with_adapter(folder: Path) -> PeftModel:
    """Returns the one-layer model with an adapter that is not zero, so that the model differs from its base."""
    torch.manual_seed(0)
    model = get_peft_model(one_layer(folder), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    return model


def trained(make: Make, folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Trains for a short time. Returns the log, the weights, the saved weights and the recommended lists."""
    torch.manual_seed(0)
    trainer = make(folder, output, **{**SHORT, **options})
    trainer.train()
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule) == trainer.args.torch_compile
    ranked = trainer.rank(load(folder / "data").validation)
    trainer.save_model(str(output))
    (saved,) = output.glob("*model.safetensors")
    return {
        "saved": load_file(saved),
        "log": [entry for entry in trainer.state.log_history if "loss" in entry],
        "weights": {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()},
        "lists": ranked[0],
    }


def assert_same(compiled: dict[str, Any], plain: dict[str, Any]) -> None:
    for mine, other in zip(compiled["log"], plain["log"], strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    for kind in ("weights", "saved"):
        assert compiled[kind].keys() == plain[kind].keys()
        for name, tensor in plain[kind].items():
            assert torch.allclose(compiled[kind][name], tensor, atol=1e-5), name
    assert np.array_equal(compiled["lists"], plain["lists"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The datasets and models that the tests of single trainers use."""
    return make_folders(tmp_path_factory)


@pytest.fixture(autouse=True)
def compiled_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discards the compiled code of earlier tests, and lets `warn_once` repeat warnings from earlier tests."""
    torch._dynamo.reset()
    attention.warn_once.cache_clear()


CASES = {
    "bear": ("items", runs.make_trainer, {}),
    "bear-tasks": ("tasks", task_runs.make_trainer, {}),
    "alro": ("rated", alro_runs.make_trainer, {}),
    "blade": ("items", blade_runs.make_trainer, {"num_iterations": 2}),
    "blade-adapter": ("items", blade_runs.make_trainer, {"peft_config": LORA}),
    "softmax_dpo": ("items", preference_runs.make_trainer, {}),
    "softmax_dpo-precomputed": ("items", preference_runs.make_trainer, {"precompute_ref_log_probs": True}),
    "softmax_dpo-adapter": ("items", preference_runs.make_trainer, {"peft_config": LORA}),
    "softmax_dpo-two-adapters": ("items", preference_runs.make_trainer, {"model": with_adapter}),
}


def both(case: str, backend: str, folders: dict[str, Path], output: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the results of a run that compiles its model with `backend`, and of the same run uncompiled."""
    kind, make, options = CASES[case]
    make_model = options.get("model", one_layer)
    compile_options = {"torch_compile": True, "torch_compile_backend": backend}
    results = []
    for added in (compile_options, {}):
        given = {**options, **added, "model": make_model(folders[kind])}
        results.append(trained(make, folders[kind], output / str(len(added)), **given))
    compiled, plain = results
    return compiled, plain


LONG = {*CASES} - {"bear", "blade"}


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(case, marks=[pytest.mark.long] * (case in LONG)) for case in CASES])
def test_a_compiled_model_learns_and_recommends_the_same(
    case: str, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled, plain = both(case, "eager", folders, tmp_path)
    assert_same(compiled, plain)
    assert "separate row" not in caplog.text and "its own cache row" not in caplog.text
    if case.startswith("softmax_dpo"):  # the reference must not be the policy itself
        assert plain["log"][1]["rewards/margins"] != 0


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++")
def test_inductor_learns_and_recommends_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    assert_same(*both("bear", "inductor", folders, tmp_path))
