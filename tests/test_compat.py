"""Checks that the non-public parts of dependencies that `trl_rec.compat` uses still exist. Also checks that no other
module of the package uses non-public parts, except the members of parent classes that the table `compat.MEMBERS`
lists.

If a test fails after an upgrade, its name or message says what must be changed in `trl_rec.compat`: a function, or a
row of the table `MEMBERS` or `UNDOCUMENTED`.
"""

import ast
import configparser
import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    DynamicCache,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Trainer,
    TrainingArguments,
)
from trl import TrlParser

import trl_rec
from tests.conftest import make_model
from tests.oldest import oldest
from trl_rec import (
    AlroConfig,
    AlroTrainer,
    BearConfig,
    BearTrainer,
    BladeConfig,
    BladeTrainer,
    SoftmaxDPOConfig,
    SoftmaxDPOTrainer,
    compat,
)


ROOT = Path(trl_rec.__file__).parent
QUIET = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
OURS = [AlroTrainer, BearTrainer, BladeTrainer, SoftmaxDPOTrainer]
OURS += [AlroConfig, BearConfig, BladeConfig, SoftmaxDPOConfig]
DECLARED = {(owner, member.name): member for member in compat.MEMBERS for owner in member.owners.split()}


def adapted(seed: int = 0) -> Any:
    return get_peft_model(make_model(seed=seed), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=3, use_cpu=True, report_to="none")
    return Trainer(make_model(), args)


# The tables `MEMBERS` and `UNDOCUMENTED`


@pytest.mark.parametrize("name", compat.UNDOCUMENTED)
def test_undocumented_names_can_still_be_imported(name: str) -> None:
    assert callable(getattr(compat, name)) and name in compat.__all__


def test_an_unknown_name_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        compat.nothing  # noqa: B018


@pytest.mark.parametrize(("owner", "name"), DECLARED, ids=".".join)
def test_declared_members_are_still_there(owner: str, name: str) -> None:
    module, kind = owner.split(".")
    parent, member = getattr(import_module(module), kind), DECLARED[owner, name]
    if member.parameters:
        found = list(inspect.signature(getattr(parent, name)).parameters)
        assert found == member.parameters.split(), f"{owner}.{name}: {member.without}"
    else:
        sets = re.compile(rf"\bself\.{name}\b[^=\n]*=[^=]")
        known = hasattr(parent, name) or any(sets.search(source(base)) for base in parent.__mro__[:-1])
        assert known, f"{owner} has no {name}: {member.without}"


def source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # the class is compiled
        return ""


@pytest.mark.parametrize("kind", OURS)
def test_private_members_that_are_overridden_are_declared(kind: type) -> None:
    ours = [base for base in kind.__mro__ if base.__module__.startswith("trl_rec.")]
    theirs = [base for base in kind.__mro__ if base not in ours and base is not object]
    own = {name for base in ours for name in (*vars(base), *inspect.get_annotations(base))}
    private = {name for name in own if name.startswith("_") and not name.startswith("__") and "abc" not in name}
    overridden = {name for name in private if any(name in vars(base) for base in theirs)}
    assert overridden <= {name for _, name in DECLARED}


# Only compat.py uses private names

ROOTS = {"accelerate", "bitsandbytes", "deepspeed", "peft", "transformers", "trl"}
DOCUMENTED = {"accelerate", "accelerate.utils", "peft", "transformers", "trl"}
# Every module may import these names from transformers.trainer_utils, although that module is not in `DOCUMENTED`: the
# documentation of transformers uses the names as types of fields.
TYPES = {"IntervalStrategy", "SaveStrategy"}
ATTRIBUTES = {"ds_tensor", "ds_id", "fwd_pre_hook", "parameter_offload", "support_avx512bf16_for_cpu", "hf_quantizer"}
PYTHON = {"_replace", "_asdict", "_fields", "_make", "_exit"}  # documented, although their names look private


def test_only_compat_uses_private_names() -> None:
    paths = [path for path in ROOT.rglob("*.py") if path.name != "compat.py"]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    own = PYTHON | {name for _, name in DECLARED} | {name for tree in trees.values() for name in defined(tree)}
    found = [f"{path.relative_to(ROOT)}:{line}" for path, tree in trees.items() for line in touched(tree, own)]
    assert len(paths) > 150 and not found, f"these lines use private names; move them to trl_rec/compat.py: {found}"


def test_uses_of_private_names_are_found() -> None:
    lines = ["model._hidden", "getattr(model, '_hidden')", "vars(model)['ds_tensor']", "from trl.models import x"]
    lines += ["from transformers.trainer_utils import rotate_checkpoints", "import deepspeed", "parser._actions"]
    for line in [*lines, "from torch import _C"]:
        assert list(touched(ast.parse(line), set())) == [1], line
    for line in ["model._ours", "x.__class__", "from transformers.trainer_utils import SaveStrategy", "import torch"]:
        assert not list(touched(ast.parse(line), {"_ours"})), line


def defined(tree: ast.AST) -> set[str]:
    """Returns the names of the functions, classes, attributes and variables that a module defines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    made = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    stored = [node for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store)]
    made |= {node.attr for node in stored if isinstance(node, ast.Attribute)}
    return made | {node.id for node in stored if isinstance(node, ast.Name)}


def touched(tree: ast.AST, own: set[str]) -> list[int]:
    """Returns the lines that use a private name other than our own, or that import from an undocumented module."""
    lines = []
    for node in ast.walk(tree):
        names, modules = [], []
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            names = [str(getattr(node.args[1], "value", ""))]
        elif isinstance(node, ast.Constant) and node.value in ATTRIBUTES:
            names = [node.value]
        elif isinstance(node, ast.ImportFrom):
            names, modules = [name.name for name in node.names], [node.module or ""]
        elif isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        private = {name for name in names if re.match("_[^_]", name)} - own | ATTRIBUTES.intersection(names)
        hidden = {name for name in modules if name.split(".")[0] in ROOTS} - DOCUMENTED
        if private or hidden and not (hidden == {"transformers.trainer_utils"} and TYPES.issuperset(names)):
            lines.append(node.lineno)
    return lines


# torch


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize(("dtype", "op"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_onednn_says_in_which_types_the_cpu_computes(
    dtype: torch.dtype, op: str, available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(compat.cpu_computes_in(dtype), bool)
    asked = []
    ops = {f"_is_mkldnn_{kind}_supported": lambda kind=kind: asked.append(kind) for kind in ("bf16", "fp16")}
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**ops))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    assert compat.cpu_computes_in(dtype) is not available  # without oneDNN, nothing is known, and the answer is True
    assert asked == [op] * available


# transformers


def test_name_or_path_is_where_a_model_was_loaded_from(tmp_path: Path) -> None:
    made = make_model()
    made.save_pretrained(tmp_path)
    assert compat.name_or_path(made) == "" and compat.name_or_path(type(made).from_pretrained(tmp_path)) == str(
        tmp_path
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_kind_returns_the_attention_of_the_model(attention: str) -> None:
    assert compat.attention_kind(make_model(attention=attention)) == attention


def test_a_recurrent_model_is_stateful() -> None:
    small = {"vocab_size": 8, "hidden_size": 8, "state_size": 2, "num_hidden_layers": 1}
    assert compat.is_stateful(MambaForCausalLM(MambaConfig(**small))) and not compat.is_stateful(make_model())


@pytest.mark.parametrize("make", [make_model, adapted])
def test_the_cache_is_passed_under_the_argument_name_of_the_model(make: Any) -> None:
    model, cache = make(), DynamicCache()
    tokens = torch.arange(3, 8).unsqueeze(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=tokens[:, :4], **compat.cache_arguments(model, cache))
        assert cache.get_seq_length() == 4
        last = model(input_ids=tokens[:, 4:], **compat.cache_arguments(model, cache)).logits
    torch.testing.assert_close(last[:, -1], model(input_ids=tokens).logits[:, -1])


def test_a_custom_model_takes_its_cache_as_past_key_values() -> None:
    class Own(nn.Module):
        def forward(self, input_ids: Any, past_key_values: Any = None) -> None: ...

    assert compat.cache_arguments(Own(), None) == {"past_key_values": None, "use_cache": True}


def test_a_model_that_is_no_longer_quantized_can_be_trained(tmp_path: Path) -> None:
    model, args = make_model(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model.is_quantized, model.hf_quantizer = True, SimpleNamespace(is_trainable=False, is_qat_trainable=False)
    model.config.quantization_config = {"quant_method": "gguf"}
    with pytest.raises(ValueError, match="quantized"):
        Trainer(model, args)
    compat.mark_unquantized(model)
    Trainer(model, args)


def test_a_dequantised_model_can_be_saved(tmp_path: Path) -> None:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    make_model().save_pretrained(tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=nf4).save_pretrained(tmp_path / "nf4")
    with pytest.raises(NotImplementedError):  # if this works, `compat.dequantized` can be removed
        AutoModelForCausalLM.from_pretrained(tmp_path / "nf4").dequantize().save_pretrained(tmp_path / "none")
    model = compat.dequantized(AutoModelForCausalLM.from_pretrained(tmp_path / "nf4"))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert not getattr(again, "is_quantized", False)
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("kind", [AlroConfig, BearConfig, BladeConfig, SoftmaxDPOConfig])
@pytest.mark.parametrize(("given", "expected"), [(None, True), (True, True), (False, False)])
def test_checkpointing_can_be_set_by_its_new_name_with_any_transformers(
    kind: Any, given: bool | None, expected: bool, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        config = kind(str(tmp_path), activation_checkpointing=given, **QUIET)
    assert config.activation_checkpointing is config.gradient_checkpointing is expected
    options = {"use_reentrant": False}
    config = BearConfig(str(tmp_path), activation_checkpointing_kwargs=options, **QUIET)
    assert config.gradient_checkpointing_kwargs == options


def test_checkpointing_can_still_be_set_by_its_old_name(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        config = BearConfig(str(tmp_path), gradient_checkpointing=False, **QUIET)
    assert config.activation_checkpointing is False


def enable_checkpointing(model: Any) -> None:
    options = {"use_reentrant": False}
    new = getattr(model, "activation_checkpointing_enable", None)  # added in transformers 5.23
    (model.gradient_checkpointing_enable if new is None else new)(options, every_n_layers=2)


def checkpointed(model: nn.Module) -> list[bool]:
    layers = [module for module in model.modules() if "_gradient_checkpointing_func" in vars(module)]
    return [bool(layer.gradient_checkpointing) for layer in layers]


def test_checkpointing_of_each_layer_is_restored_after_generation() -> None:
    model = make_model()
    enable_checkpointing(model)
    before = checkpointed(model)
    assert sorted(set(before)) == [False, True]
    with pytest.raises(RuntimeError, match="stopped"), compat.without_checkpointing(model):
        assert not any(checkpointed(model))
        raise RuntimeError("stopped")
    assert checkpointed(model) == before


def test_checkpoint_folder_is_where_a_trainer_saves(trainer: Trainer, tmp_path: Path) -> None:
    trainer.state.global_step = 7
    trainer.create_optimizer_and_scheduler(1)
    trainer._save_checkpoint(trainer.model, None)
    folder = compat.checkpoint_folder(trainer, None)
    assert folder == tmp_path / "checkpoint-7" and (folder / "trainer_state.json").is_file()


def test_train_batch_size_is_read_from_the_arguments(trainer: Trainer) -> None:
    assert compat.train_batch_size(trainer) == 3


def test_attention_dropout_is_turned_off() -> None:
    model = make_model().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    tokens = torch.arange(3, 12).unsqueeze(0)
    assert not torch.equal(*(model(input_ids=tokens).logits for _ in range(2)))
    compat.drop_plain_dropout(model)
    torch.testing.assert_close(*(model(input_ids=tokens).logits for _ in range(2)))


def test_dropout_that_a_layer_stores_as_a_number_is_turned_off() -> None:
    """OPT stores its dropout rates as numbers instead of modules, so TRL's `disable_dropout` does not find them."""
    config = OPTConfig(
        vocab_size=20,
        hidden_size=16,
        word_embed_proj_dim=16,
        ffn_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        dropout=0.5,
        attention_dropout=0.5,
    )
    model = OPTForCausalLM(config).train()
    ids = torch.arange(8)[None] + 2
    assert not torch.equal(model(ids).logits, model(ids).logits)
    compat.drop_plain_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


# TRL, PEFT and argparse


def test_mappings_in_our_configs_may_be_json(tmp_path: Path) -> None:
    assert BladeConfig(str(tmp_path), rewards='{"ndcg": 2.0}', list_length=3, eval_ks=[3], **QUIET).rewards == {
        "ndcg": 2
    }


@dataclass
class Options:
    sizes: dict = field(default_factory=dict)
    name: str = ""


def test_mappings_are_read_by_the_function_given() -> None:
    parser = TrlParser((Options,))
    compat.read_mappings(parser, lambda text: {"read": text})
    assert parser.parse_args_and_config(["--sizes", "a", "--name", "b"])[0] == Options({"read": "a"}, "b")


def test_a_model_generates_without_checkpointing_and_trains_as_before() -> None:
    model = make_model().train()
    enable_checkpointing(model)
    before = checkpointed(model)
    with warnings.catch_warnings():
        # If checkpointing were still on, TRL would call deprecated methods of the model.
        warnings.filterwarnings("error", "`gradient_checkpointing")
        with compat.unwrapped_for_generation(model, Accelerator(cpu=True)) as whole:
            assert whole is model and not any(checkpointed(model))
    assert checkpointed(model) == before


def test_an_uploaded_copy_is_kept_until_its_upload_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import trainer

    asked: list[dict[str, Any]] = []
    events: list[str] = []

    @contextmanager
    def copy(folder: Path) -> Iterator[Path]:
        yield folder / "copy"
        events.append("removed")

    def upload(**options: Any) -> Any:
        asked.append(options)
        return SimpleNamespace(add_done_callback=waiting.append)

    waiting: list[Any] = []

    def list_files(**place: Any) -> list[str]:
        return [f"file of {place['repo_id']}"]

    announced: list[tuple[Path, list[str]]] = []
    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_files)
    hub = SimpleNamespace(upload_folder=upload, create_repo=lambda: "made", list_repo_files=list_files)
    options = {"replaced": ["old/*"], "announce": lambda *given: announced.append(given)}
    for name, usual in (("hf_api", lambda: hub), ("upload_folder", hub.upload_folder)):
        with monkeypatch.context() as patched:
            patched.delattr(trainer, "hf_api", raising=False)
            patched.setattr(trainer, name, usual, raising=False)
            with compat.uploading_copies(copy, **options):
                api = trainer.hf_api() if name == "hf_api" else trainer
                api.upload_folder(repo_id="mine", folder_path="run", ignore_patterns=["_*"])
                assert events == ["removed"]
                api.upload_folder(folder_path="run", run_as_future=True)
                assert name != "hf_api" or api.create_repo() == "made"
            assert getattr(trainer, name) is usual and events == ["removed"]
            waiting.pop()("the future")
            assert events == ["removed"] * 2
            events.clear()
    first = {"repo_id": "mine", "ignore_patterns": ["_*"]}
    assert asked[0] == {"folder_path": Path("run/copy"), "delete_patterns": ["old/*"], **first} and len(asked) == 4
    assert announced == [(Path("run/copy"), ["file of mine"])] * 2  # uploads in the background are not announced


def test_the_reference_copies_the_whole_adapter() -> None:
    model = adapted()
    model.add_adapter(compat.REF_ADAPTER, model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if "lora_B.default" in name:
            nn.init.ones_(parameter)
    compat.complete_ref_adapter(model)
    weights = dict(model.named_parameters())
    pairs = [(name, name.replace(".default.", f".{compat.REF_ADAPTER}.")) for name in weights if ".default." in name]
    assert len(pairs) > 10 and all(torch.equal(weights[one], weights[other]) for one, other in pairs)
    compat.complete_ref_adapter(adapted()), compat.complete_ref_adapter(make_model())  # nothing to copy


def test_dpo_trainer_names_its_frozen_adapter_ref() -> None:
    from trl import DPOTrainer

    assert f'"{compat.REF_ADAPTER}"' in inspect.getsource(DPOTrainer.__init__)


# accelerate


def test_a_process_may_make_another_accelerator() -> None:
    Accelerator(cpu=True)
    before = dict(AcceleratorState._shared_state)
    assert before
    try:
        compat.reset_accelerator_state()
        assert not AcceleratorState._shared_state
    finally:
        AcceleratorState._shared_state.update(before)


def test_the_launcher_asks_for_fsdp_by_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import launch

    assert '"ACCELERATE_USE_FSDP"' in inspect.getsource(launch)
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert compat.launched_with_fsdp() is False
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert compat.launched_with_fsdp() is True


def test_accelerate_is_launched_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Any] = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", launched.append)
    compat.accelerate_launch(["--num_processes", "2", "--module", "some.script", "--own", "3"])
    assert (launched[0].num_processes, launched[0].module) == (2, True)
    assert launched[0].training_script == "some.script" and launched[0].training_script_args == ["--own", "3"]


def test_the_launcher_sets_the_variables_that_identify_it() -> None:
    """`compat.user_environment` recognises a launched process by `ACCELERATE_DYNAMO_MODE`, and ignores the
    `OMP_NUM_THREADS` that the launcher sets for this process."""
    from accelerate.utils import launch

    for prepare in (launch.prepare_simple_launcher_cmd_env, launch.prepare_multi_gpu_env):
        assert 'current_env["ACCELERATE_DYNAMO_MODE"] =' in inspect.getsource(prepare)
    assert 'current_env["OMP_NUM_THREADS"] =' in inspect.getsource(launch.prepare_simple_launcher_cmd_env)


# Messages of other libraries that need no action from the user


@pytest.mark.parametrize("name", compat.NOTICES)
def test_the_hidden_messages_still_exist(name: str) -> None:
    module = {"DeepSpeed": "deepspeed.accelerator.real_accelerator"}.get(name, name)
    pytest.importorskip(module.split(".")[0])
    text = inspect.getsource(import_module(module))
    # `NOTICES` contains messages as they are logged, some with a value such as ['lm_head.weight']. The source code
    # contains only the text before this value.
    assert all(beginning.partition("['")[0] in text for beginning in compat.NOTICES[name])


# DeepSpeed


def test_the_weights_that_a_process_holds_are_found() -> None:
    plain, sharded = nn.Parameter(torch.ones(2)), nn.Parameter(torch.empty(0))
    sharded.ds_tensor = torch.ones(3)  # type: ignore[attr-defined]
    assert compat.held_weights(plain) is plain and compat.held_weights(sharded) is sharded.ds_tensor


def test_the_step_hook_is_removed_and_restored() -> None:
    calls: list[int] = []
    module = nn.Linear(2, 2)
    offload = SimpleNamespace(module=module)
    offload.fwd_pre_hook = module.register_forward_pre_hook(lambda *_: calls.append(1))
    for engine in (SimpleNamespace(optimizer=SimpleNamespace(parameter_offload=offload)), nn.Linear(2, 2)):
        with compat.without_step_hook(engine):
            module(torch.ones(1, 2))
        assert len(calls) == (0 if isinstance(engine, SimpleNamespace) else 1)
    with pytest.raises(RuntimeError, match="stopped"), compat.without_step_hook(SimpleNamespace(optimizer=offload)):
        raise RuntimeError("stopped")
    module(torch.ones(1, 2))
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize("chosen_by", ["the launcher", "the option deepspeed"])
def test_deepspeed_compiles_nothing_on_a_cpu(chosen_by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed")
    backend = import_module("deepspeed.comm.torch")
    monkeypatch.setattr(backend.get_accelerator(), "create_op_builder", lambda name: _Builder(name))
    monkeypatch.setattr(import_module("deepspeed.ops"), "__compatible_ops__", {_Builder.NAME: True}, raising=False)
    device = ["cuda"]
    monkeypatch.setattr(backend.get_accelerator(), "device_name", lambda: device[0])

    # 1. Nothing changes on a GPU or without DeepSpeed.
    compat.skip_deepspeed_compilation("zero2.json")
    device[0] = "cpu"
    compat.skip_deepspeed_compilation()
    with pytest.raises(AssertionError, match="compiled ShareMemCommBuilder"):
        backend.build_shm_op()

    # 2. On a CPU with DeepSpeed, nothing is compiled. After `accelerate launch`, making the configuration of a trainer
    # is enough to prevent the compilation.
    if chosen_by == "the launcher":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        BearConfig("run", use_cpu=True, bf16=False, report_to="none")
    else:
        compat.skip_deepspeed_compilation("zero2.json")
    assert backend.build_shm_op() is None


class _Builder:
    NAME = "deepspeed_shm_comm"

    def __init__(self, name: str) -> None:
        self.name = name

    def load(self) -> None:
        raise AssertionError(f"compiled {self.name}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "part"),
    [
        ("deepspeed.runtime.zero.partition_parameters", r"param\.ds_tensor = "),
        (
            "deepspeed.runtime.zero.parameter_offload",
            r"self\.fwd_pre_hook = self\.module\.register_forward_pre_hook\(",
        ),
        ("deepspeed.runtime.zero.parameter_offload", r"self\.module = module"),
        ("deepspeed.runtime.zero.stage3", r"self\.parameter_offload"),
    ],
)
def test_the_source_of_deepspeed_still_contains_the_part(module: str, part: str) -> None:
    pytest.importorskip("deepspeed")
    assert re.search(part, inspect.getsource(import_module(module)))


# bitsandbytes


def test_layers_of_bitsandbytes_are_recognised() -> None:
    modules = pytest.importorskip("bitsandbytes").nn
    layer = modules.Linear4bit(64, 64, quant_type="nf4")
    assert compat.is_quantized_layer(layer) and not compat.is_quantized_layer(nn.Linear(2, 2))
    if "support_avx512bf16_for_cpu" in inspect.getsource(modules.Linear4bit):  # versions that repack weights on a CPU
        layer.support_avx512bf16_for_cpu = True
        assert compat.keep_differentiable(nn.Sequential(layer))[0].support_avx512bf16_for_cpu is False
    else:
        assert "avx512" not in inspect.getsource(modules.Linear4bit).lower()


# vLLM


def test_the_model_runner_of_vllm_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    for value, is_v2 in (("1", True), ("0", False)):
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", value)
        assert compat.uses_v2_model_runner() is is_v2


# setup.cfg


@pytest.mark.parametrize("kind", [FutureWarning, DeprecationWarning])
def test_deprecations_are_errors_in_every_calling_module(kind: type[Warning]) -> None:
    with pytest.raises(kind, match="`old` is deprecated"):
        warnings.warn_explicit("`old` is deprecated", kind, "file.py", 1, module="transformers.some.module")
    with pytest.raises(DeprecationWarning, match="`old` is deprecated"):
        logging.getLogger("trl.some.module").warning("`old` is deprecated")


def test_every_requirement_has_a_lower_bound_and_excludes_a_later_major_version() -> None:
    text = (ROOT.parent / "setup.cfg").read_text(encoding="utf-8")
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    extras = parser["options.extras_require"].values()
    lines = "\n".join([parser["options"]["install_requires"], *extras]).split("\n")
    requirements = [line for line in lines if line and not line.startswith("%")]
    assert len(requirements) > 15
    for requirement in requirements:
        marker = r"(; python_version >= \"3\.\d+\")?"
        assert re.fullmatch(rf"[\w-]+(\[\w+\])?>=\d[\d.]*,<\d+{marker}", requirement), requirement
    assert len(oldest(text)) == len(requirements) - 1 and "trl==1.16" in oldest(text)
