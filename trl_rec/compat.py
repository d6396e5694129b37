"""Collects all uses of undocumented parts of dependencies.

`tests/test_compat.py` looks for each part in the installed versions. If a new release changes a part, a failing test
names this part. Then adapt this file to the new release. If the part is a member of a parent class, also adapt the
classes that override or use it.

The module was written against torch 2.13, transformers 5.23, TRL 1.16, accelerate 1.15, DeepSpeed 0.19, PEFT 0.21 and
bitsandbytes 0.50, unless a docstring names other versions. Heavy libraries are imported inside the functions, so that
the import of this module is fast.

There are three kinds of parts. `UNDOCUMENTED` lists the names that are imported from modules without documentation.
`MEMBERS` lists the members of parent classes that our classes override or use. Every other part has a function or a
context manager here, whose docstring says why the part is needed.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar


if TYPE_CHECKING:
    from argparse import ArgumentParser

    import torch
    from accelerate import Accelerator
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import Cache, PreTrainedModel, Trainer, TrainingArguments
    from transformers.hf_argparser import string_to_bool
    from transformers.integrations import is_deepspeed_zero3_enabled
    from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler
    from transformers.trainer_utils import EvalLoopOutput, TrainOutput, rotate_checkpoints
    from trl.models import prepare_deepspeed

__all__ = [
    "BatchRebalanceSampler",
    "EvalLoopOutput",
    "LengthGroupedSampler",
    "TrainOutput",
    "is_deepspeed_zero3_enabled",
    "prepare_deepspeed",
    "rotate_checkpoints",
    "string_to_bool",
]

Model = TypeVar("Model", bound="nn.Module")

REF_ADAPTER = "ref"  # DPOTrainer's name for the frozen copy of an adapter


# Other modules import these names from this module. Each name is loaded when it is first imported.
UNDOCUMENTED = {
    "BatchRebalanceSampler": "transformers.trainer_pt_utils",  # we seed this sampler with the run's seed
    "LengthGroupedSampler": "transformers.trainer_pt_utils",  # we seed this sampler with the run's seed
    "EvalLoopOutput": "transformers.trainer_utils",  # what `evaluation_loop` returns
    "TrainOutput": "transformers.trainer_utils",  # what `train` returns
    "rotate_checkpoints": "transformers.trainer_utils",  # deletes old checkpoints once the new one is complete
    "is_deepspeed_zero3_enabled": "transformers.integrations",  # whether training uses ZeRO-3
    "prepare_deepspeed": "trl.models",  # wraps the reference model in a DeepSpeed engine
    "string_to_bool": "transformers.hf_argparser",  # converts "yes", "true", ... to a bool
}


def __getattr__(name: str) -> Any:
    if name not in UNDOCUMENTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(UNDOCUMENTED[name]), name)


class Member(NamedTuple):
    """A member of a parent class that our classes override or use through `self`.

    Args:
        owners: The parent classes, separated by spaces.
        name: Name of the member.
        parameters: Names of a method's parameters, `self` first, separated by spaces. Empty for an attribute.
        without: What breaks if the member is removed or renamed.
    """

    owners: str
    name: str
    parameters: str
    without: str


SFT, DPO = "trl.SFTTrainer", "trl.DPOTrainer"
TRAINERS = f"{SFT} {DPO}"
MEMBERS = (
    Member(
        SFT,
        "_prepare_dataset",
        "self dataset processing_class args packing formatting_func dataset_name",
        "TRL tokenizes the splits as texts, and fails because they have no text column",
    ),
    Member(
        DPO,
        "_prepare_dataset",
        "self dataset processing_class args dataset_name",
        "TRL tokenizes preferences as pairs of texts",
    ),
    Member(TRAINERS, "_set_signature_columns_if_needed", "self", "the columns that our collators read are dropped"),
    Member(TRAINERS, "_signature_columns", "", "the columns that our collators read are dropped"),
    Member(TRAINERS, "_get_train_sampler", "self train_dataset", "a resumed run reads its rows in another order"),
    Member(TRAINERS, "_save_checkpoint", "self model trial", "no checkpoint is marked as complete, so no run resumes"),
    Member(
        TRAINERS,
        "_run_epoch",
        "self model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval "
        "start_time resume_from_checkpoint epochs_trained steps_trained_in_current_epoch",
        "a finished run that is resumed trains one more step",
    ),
    Member(
        TRAINERS,
        "_load_from_checkpoint",
        "self resume_from_checkpoint model",
        "a resumed policy starts over (see `load_active_adapter`)",
    ),
    Member(
        TRAINERS,
        "save_model",
        "self output_dir _internal_call",
        "a saved model lacks the files that `Recommender` needs",
    ),
    Member(
        TRAINERS,
        "_push_from_checkpoint",
        "self checkpoint_folder",
        "rankings and per-user metric values are uploaded with a checkpoint",
    ),
    Member(
        DPO,
        "_precompute_ref_logps",
        "self dataset name batch_size",
        "TRL's method expects pairs of one chosen and one rejected completion",
    ),
    Member(DPO, "_precompute_engine", "", "the DeepSpeed engine of the reference stays in memory during training"),
    Member(TRAINERS, "_metrics", "", "the metrics of a loss are not logged"),
    Member(TRAINERS, "_total_train_tokens", "", "num_tokens is not logged"),
    Member(TRAINERS, "aux_loss_enabled", "", "mixtures of experts are trained without their load-balancing loss"),
    Member(
        TRAINERS,
        "router_aux_loss_coef",
        "",
        "mixtures of experts are trained with the wrong weight for their load-balancing loss",
    ),
    Member(TRAINERS, "_tag_names", "", "a pushed model lacks our tags"),
    Member("trl.SFTConfig trl.DPOConfig", "_VALID_DICT_FIELDS", "", "--tasks and --rewards are not read as JSON"),
)


# Messages of other libraries that need no action from the user

# Beginnings of the log messages that are hidden, by logger. Every other message of these loggers is shown.
NOTICES = {
    # On some CPUs, bitsandbytes 0.50 looks for a faster kernel in the package `kernels`. The package is optional.
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward from kernels-community",),
    # DeepSpeed 0.19 looks for a device when it is imported, even if no run uses DeepSpeed.
    "DeepSpeed": ("Setting accelerator to CPU.",),
    # After training, the Trainer of transformers 5.23 loads the best checkpoint. If the model's input embeddings are
    # also its output layer, the checkpoint contains them only once, and the Trainer reports a missing output layer.
    "transformers.trainer": ("There were missing keys in the checkpoint model loaded: ['lm_head.weight'].",),
}
# Beginnings of the warnings that are hidden, with their categories.
WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # TRL 1.16 and PEFT 0.21 use names that transformers 5.23 has deprecated.
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),
    ("`gradient_checkpointing_disable` is deprecated", FutureWarning),
    ("`gradient_checkpointing_enable` is deprecated", FutureWarning),
    # bitsandbytes below 0.50 uses a name that torch 2.13 has deprecated.
    ("_check_is_size will be removed", FutureWarning),
    # PEFT 0.21 warns that it saves the embeddings, which is necessary because tokens were added.
    ("Setting `save_embedding_layers` to `True`", UserWarning),
)


class _Unless(logging.Filter):
    """Drops log messages that begin with one of the given texts. Errors are never dropped."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether the message is shown."""
        return record.levelno >= logging.ERROR or not str(record.msg).startswith(self.beginnings)


def hide_notices() -> None:
    """Hides exactly the messages in `NOTICES` and `WARNINGS`, because none of them needs an action from the user.

    Without this function, most runs would show some of these messages.
    """
    for name, beginnings in NOTICES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Unless) for one in logger.filters):
            logger.addFilter(_Unless(beginnings))
    for beginning, category in WARNINGS:
        warnings.filterwarnings("ignore", re.escape(beginning), category)


# torch


def cpu_computes_in(dtype: torch.dtype) -> bool:
    """Returns whether the CPU has instructions for `dtype`, which is bfloat16 or float16.

    Returns True if PyTorch was built without oneDNN, and so cannot tell. Without this function, users would not learn
    why a model is twenty times slower than in float32.
    """
    import torch

    name = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    return not torch.backends.mkldnn.is_available() or bool(getattr(torch.ops.mkldnn, name)())


# transformers


def name_or_path(model: PreTrainedModel | PeftModel) -> str:
    """Returns the hub id or folder that a model was loaded from, or an empty string for a model made in memory.

    Trainers load the model's tokenizer from the same place. Without this function, callers would also have to pass the
    tokenizer.
    """
    name: str = model.config._name_or_path
    return name


def attention_kind(model: PreTrainedModel) -> str:
    """Returns the attention implementation of a model, such as `"sdpa"`, `"eager"` or `"flash_attention_2"`.

    Without this function, our attention mask could have a format that the implementation misinterprets.
    """
    kind: str = model.config.get_text_config()._attn_implementation
    return kind


def is_stateful(model: PreTrainedModel) -> bool:
    """Returns whether the model has a recurrent state, as Mamba does.

    Without this check, texts that share a row of a batch would influence each other.
    """
    return model._is_stateful


def cache_arguments(model: PreTrainedModel, cache: Cache) -> dict[str, Any]:
    """Returns the arguments that make a model's `forward` use a key-value cache.

    transformers 5.24 renamed the argument `past_key_values` to `cache`, and will remove the old name in 5.40. Models
    with custom code keep the old name.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    name = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


def mark_unquantized(model: PreTrainedModel) -> None:
    """Makes a model that was loaded from a GGUF file trainable.

    transformers converts the weights to floats on loading, but still marks the model as quantised, and `Trainer` does
    not accept quantised models.
    """
    vars(model).update(is_quantized=False, hf_quantizer=None)
    del model.config.quantization_config


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """Converts the weights of a quantised model to ordinary ones, and returns the model, which can then be saved.

    `dequantize` keeps a record of the steps that turned the saved weights into quantised ones. `save_pretrained` then
    tries to undo these steps and fails (seen in transformers 5.23). This function removes the record, so that
    `save_pretrained` saves the weights as they are.
    """
    model = model.dequantize()
    vars(model).pop("_weight_conversions", None)
    return model


# Fields that transformers added in 5.23. Our configs declare them too, so that they also exist with older releases.
BACKPORTED_FIELDS = ("activation_checkpointing", "activation_checkpointing_kwargs")


def settle_checkpointing(args: TrainingArguments) -> None:
    """Makes the options of activation checkpointing agree under their old and new names.

    Call this function before `TrainingArguments.__post_init__`. transformers 5.23 renamed `gradient_checkpointing` to
    `activation_checkpointing`, and warns if only the old name is set. TRL 1.16 still sets its own default, True, under
    the old name. If the old name still has this default and the new name is not set, this function copies the default
    to the new name. An older transformers reads only the old name. With such a release, this function copies the value
    of the new name to the old name, or, if only the old name is set, the value of the old name to the new name. This
    function can be removed once TRL uses the new name and transformers 5.23 is the oldest release allowed.
    """
    default = next(one.default for one in fields(args) if one.name == "gradient_checkpointing")
    if args.activation_checkpointing is None and args.gradient_checkpointing == default:
        args.activation_checkpointing = args.gradient_checkpointing
    if not knows_activation_checkpointing():
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if getattr(args, new) is None:
                setattr(args, new, getattr(args, old))
            setattr(args, old, getattr(args, new))


def knows_activation_checkpointing() -> bool:
    """Returns whether the installed transformers has `activation_checkpointing` (added in 5.23)."""
    from transformers import TrainingArguments

    return any(one.name == "activation_checkpointing" for one in fields(TrainingArguments))


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Switches activation checkpointing off inside the block, and restores the setting of every layer afterwards.

    TRL's `unwrap_model_for_generation` also switches checkpointing off, but it loses `every_n_layers` and `offload`
    when it switches checkpointing on again, and it uses methods that transformers 5.23 has deprecated. If
    checkpointing is off in all layers, TRL's function leaves it off, and can be used inside this block.
    """
    settings = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = {
        module: {name: vars(module)[name] for name in settings if name in vars(module)} for module in model.modules()
    }
    try:
        for module in before:
            if "gradient_checkpointing" in vars(module):
                vars(module)["gradient_checkpointing"] = False
        yield
    finally:
        for module, kept in before.items():
            vars(module).update(kept)


def checkpoint_folder(trainer: Trainer, trial: Any) -> Path:
    """Returns the folder to which the trainer saves the checkpoint of the current step.

    Without this function, we could neither empty the folder before saving nor mark it as complete afterwards.
    """
    return Path(trainer._get_output_dir(trial)) / f"checkpoint-{trainer.state.global_step}"


@contextmanager
def uploading_copies(
    copy: Callable[[Path], AbstractContextManager[Path]],
    *,
    replaced: Sequence[str],
    announce: Callable[[Path, list[str]], object],
) -> Iterator[None]:
    """Inside the block, `Trainer` uploads a copy of a folder instead of the folder itself.

    `Trainer` uploads its whole output folder, and has no option to choose files or to change their content. This
    context manager therefore replaces the `upload_folder` that `Trainer` calls. In older versions of transformers, it
    is a function. In newer versions, it is a method of the object that the function `hf_api` returns.

    Args:
        copy: Makes the copy of the folder that `Trainer` wants to upload, and removes the copy when the upload has
            ended, even if the upload ends after the block.
        replaced: Patterns of files that are deleted from the repository if the copy does not contain them.
        announce: Function that receives the copy and the names of the files in the repository. It is called before
            each upload that does not run in the background.
    """
    from huggingface_hub import list_repo_files
    from transformers import trainer

    def _copying(usual: Callable[..., Any], list_files: Callable[..., list[str]]) -> Callable[..., Any]:
        """Returns an `upload_folder` that uploads a copy."""

        def _upload(*, folder_path: str | Path, **options: Any) -> Any:
            with ExitStack() as copies:
                copied = copies.enter_context(copy(Path(folder_path)))
                if not options.get("run_as_future"):
                    place = {name: options.get(name) for name in ("repo_id", "revision", "token")}
                    announce(copied, list_files(**place))
                result = usual(folder_path=copied, delete_patterns=list(replaced), **options)
                if options.get("run_as_future"):
                    kept = copies.pop_all()
                    result.add_done_callback(lambda _: kept.close())
            return result

        return _upload

    class Api:
        """Replaces the object that `hf_api` returns. Only `upload_folder` is different."""

        def __getattr__(self, name: str) -> Any:
            member = getattr(usual(), name)
            return _copying(member, usual().list_repo_files) if name == "upload_folder" else member

    name = "hf_api" if hasattr(trainer, "hf_api") else "upload_folder"
    usual = getattr(trainer, name)
    setattr(trainer, name, Api if name == "hf_api" else _copying(usual, list_repo_files))
    try:
        yield
    finally:
        setattr(trainer, name, usual)


def load_active_adapter(model: nn.Module, folder: str) -> None:
    """With transformers below 5.23, loads the active adapter from the top level of a checkpoint folder.

    If the folder also has subfolders with adapters, such as "ref", these releases load only the adapters in the
    subfolders (huggingface/transformers#30478), and a resumed policy would start over. This function can be removed
    once 5.23 is the oldest transformers allowed.
    """
    if not knows_activation_checkpointing() and (Path(folder) / "adapter_config.json").is_file():
        peft_model: Any = model
        active = peft_model.active_adapter
        peft_model.load_adapter(folder, active, is_trainable=True)
        peft_model.set_adapter(active)


def train_batch_size(trainer: Trainer) -> int:
    """Returns the number of rows in the training batch of one process.

    Without this function, we would not notice that `auto_find_batch_size` has reduced the batch to fit into memory.
    """
    return trainer._train_batch_size


def drop_plain_dropout(model: nn.Module) -> None:
    """Turns off the kinds of dropout that TRL's `disable_dropout` leaves on.

    One kind is dropout whose rate a layer stores as a number, as Llama's attention and all layers of OPT do. The other
    kind is the random skipping of layers (`layerdrop`). If they stayed on, a policy would differ from its reference
    before the first step, and the log-probabilities of a list that the policy has sampled would change between
    sampling and the training step.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, float) and any(kind in name for kind in ("dropout", "pdrop", "layerdrop")):
                vars(module)[name] = 0.0


# TRL, PEFT and argparse


def dict_fields(config: type[TrainingArguments], *names: str) -> list[str]:
    """Returns a value for `_VALID_DICT_FIELDS`, the names of the fields that may be given as JSON.

    The value contains the names in the parent class `config`, followed by `names`.
    """
    return [*config._VALID_DICT_FIELDS, *names]


def read_mappings(parser: ArgumentParser, read: Callable[[str], Any]) -> None:
    """Makes a parser use `read` to convert the value of every option that takes a mapping.

    Without this function, TRL's parser would call `dict` on the string, which fails.
    """
    for action in parser._actions:
        if getattr(action.type, "__name__", None) == "dict":
            action.type = read


@contextmanager
def unwrapped_for_generation(wrapped: Any, accelerator: Accelerator) -> Iterator[Any]:
    """Yields the unwrapped model with gathered weights, without compilation and without activation checkpointing.

    After the block, the model can be trained as before. Mixed precision applies inside the block as it does in
    training. Otherwise the model would rank items in float32 before training and in bfloat16 afterwards, because
    accelerate wraps the model's `forward` in autocast for training and does not remove the wrapper.
    """
    import torch
    from trl.models import unwrap_model_for_generation

    model = keep_differentiable(accelerator.unwrap_model(wrapped, keep_torch_compile=False))
    with (
        without_checkpointing(model),
        unwrap_model_for_generation(wrapped, accelerator),
        accelerator.autocast(),
        torch.compiler.set_stance("force_eager"),  # DeepSpeed compiles in place, so unwrapping is not enough
    ):
        yield model


def complete_ref_adapter(model: nn.Module) -> None:
    """Copies all parameters of the adapter "default" to the adapter "ref".

    TRL's own copy lacks trainable tokens and embeddings. If the base model is quantised, the dtype of the copy also
    differs from that of "default" (huggingface/trl#6975). The parameters are found by the names that PEFT gives them.
    This function can be removed once a release of TRL fixes the issue.
    """
    if REF_ADAPTER not in getattr(model, "peft_config", {}):
        return
    tensors = {f"{name}.": tensor for name, tensor in model.named_parameters()}
    for name, tensor in tensors.items():
        if ".default." in name:
            tensors[name.replace(".default.", f".{REF_ADAPTER}.")].data = tensor.detach().clone()


# accelerate


def reset_accelerator_state() -> None:
    """Resets the state of accelerate, so that the next trainer of this process can make a new `Accelerator`.

    Without this function, a second trainer in the same process, such as that of the second stage of preference
    training, would fail under DeepSpeed, which allows only one `Accelerator` per process
    (huggingface/transformers#35073).
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def launched_with_fsdp() -> bool:
    """Returns whether `accelerate launch` was configured for FSDP.

    Without this check, preference training in stages would start and then fail, because it needs the complete model in
    every process.
    """
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def accelerate_launch(argv: list[str]) -> None:
    """Runs `accelerate launch` in this process.

    Hides accelerate's warnings about omitted options, and torch's report of failed processes. Without this function,
    subcommands that train, such as `trl-rec bear`, would have to find and start the program `accelerate`.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    launch_command(launch_command_parser().parse_args(argv))


LAUNCHED = "ACCELERATE_DYNAMO_MODE"  # only `accelerate launch` sets this variable


def user_environment() -> Mapping[str, str]:
    """Returns the environment variables that the user has set.

    `accelerate launch` sets OMP_NUM_THREADS in the processes that it starts, and their child processes inherit it. In
    such a process, this function returns the variables of the launcher. Without this function, it would seem that the
    user had chosen the number of threads of every launched process. If the launcher's variables cannot be read, this
    function returns the variables of the current process.
    """
    import psutil

    variables: Mapping[str, str] = os.environ
    try:
        for ancestor in psutil.Process().parents():
            if LAUNCHED not in variables:
                return variables
            variables = ancestor.environ()
    except psutil.Error:
        return os.environ
    return os.environ if LAUNCHED in variables else variables


def child_processes() -> list[int]:
    """Returns the ids of the child processes of this process.

    The ids come from psutil, which is installed because accelerate depends on it. Without this function, a signal
    could not be forwarded to the process that `accelerate launch` has started, and that process would go on running.
    """
    import psutil

    return [child.pid for child in psutil.Process().children()]


# DeepSpeed


def skip_deepspeed_compilation(config: object = None) -> None:
    """On a CPU, lets DeepSpeed communicate through gloo alone.

    Without this function, DeepSpeed first compiles an extension for shared memory. This takes minutes and gigabytes of
    memory, and if it is interrupted, a lock file blocks all later runs.

    Args:
        config (*optional*): The option `deepspeed` of a trainer's configuration. If it is not set, DeepSpeed may still
            have been chosen with `accelerate launch`.
    """
    from accelerate.utils import is_deepspeed_available, parse_flag_from_env

    if (config or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")) and is_deepspeed_available():
        from deepspeed import ops
        from deepspeed.accelerator import get_accelerator

        # On a GPU, there is no such extension, and reading `__compatible_ops__` would examine all other extensions.
        if get_accelerator().device_name() == "cpu":
            ops.__compatible_ops__["deepspeed_shm_comm"] = False


def held_weights(parameter: nn.Parameter) -> Tensor:
    """Returns those values of a parameter that are in the memory of this process.

    Under ZeRO-3, these values are the process's shard, and the parameter itself is empty. Without this function, all
    models would have the same hash under ZeRO-3.
    """
    held: Tensor = vars(parameter).get("ds_tensor", parameter)
    return held


@contextmanager
def without_step_hook(wrapped: Any) -> Iterator[None]:
    """Inside the block, forward passes of a ZeRO-3 engine do not wait for other processes.

    The weights must have been gathered before. TRL's `unwrap_model_for_generation` (huggingface/trl#1617) leaves one
    hook in place, which communicates with the other processes at the start of a forward pass. The hook would wait
    forever for a process that has fewer batches to decode.
    """
    optimizer = getattr(wrapped, "optimizer", None)
    offload: Any = getattr(optimizer, "parameter_offload", optimizer)
    handle = getattr(offload, "fwd_pre_hook", None)
    if handle is None:
        yield
        return
    hooks = offload.module._forward_pre_hooks
    hook = hooks.pop(handle.id)
    try:
        yield
    finally:
        hooks[handle.id] = hook


@contextmanager
def torch_linear() -> Iterator[None]:
    """Inside the block, `F.linear` is torch's own function.

    ZeRO-3 replaces `F.linear` in the entire process. Our `PreciseLinear`, a `TorchFunctionMode`, cannot intercept
    calls of the replacement. The replacement also computes a wrong gradient if its output and inputs differ in dtype.
    """
    import torch
    from torch.nn import functional

    replaced = functional.linear
    own = torch._C._nn.linear
    if replaced is own:
        yield
        return
    functional.linear = own
    try:
        yield
    finally:
        functional.linear = replaced


def num_weights(model: nn.Module) -> int:
    """Returns the number of weights of a model.

    Under ZeRO-3, the parameters themselves are empty. Without this function, every model would seem to be small.
    """
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in model.parameters())


# bitsandbytes


def keep_differentiable(model: Model) -> Model:
    """Returns the model after making sure that its 4-bit layers stay differentiable.

    On CPUs with AVX-512 for bfloat16, a forward pass in evaluation mode makes bitsandbytes repack the weights into a
    format without a backward pass (bitsandbytes-foundation/bitsandbytes#1804). This function can be removed once
    bitsandbytes unpacks the weights for training.
    """
    for layer in model.modules():
        if "support_avx512bf16_for_cpu" in vars(layer):
            vars(layer)["support_avx512bf16_for_cpu"] = False
    return model


def is_quantized_layer(module: nn.Module) -> bool:
    """Returns whether the module is a layer of bitsandbytes.

    Such a layer must stay in training mode, because in evaluation mode on a CPU it would permanently repack its
    weights (see [`keep_differentiable`]).
    """
    return type(module).__module__.startswith("bitsandbytes")


# vLLM


def uses_v2_model_runner() -> bool:
    """Returns whether vLLM 0.32 uses its V2 model runner.

    If the environment variable `VLLM_USE_V2_MODEL_RUNNER` is not set, vLLM's default is returned. The V2 model runner
    refuses our logits processor, [`CatalogProcessor`], with a message that names no remedy. This function lets
    us raise a clearer error first.
    """
    from vllm import envs
    from vllm.triton_utils import HAS_TRITON

    wanted = envs.VLLM_USE_V2_MODEL_RUNNER
    return bool(HAS_TRITON if wanted is None else wanted)
