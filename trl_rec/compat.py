"""Every part of a dependency that we use although its authors have not promised to keep it.

The rest of the package goes through here, so that a release which moves such a part is mended in one file.
`tests/test_compat.py` looks for each part in the installed versions, and fails with the name of what to mend.

Written against torch 2.13, transformers 5.23, TRL 1.16, accelerate 1.15, DeepSpeed 0.19, PEFT 0.21 and bitsandbytes
0.50, unless a docstring names others. Heavy libraries are imported inside the functions, so this module stays light.

Three kinds of parts: names that are imported from modules without documentation (`UNDOCUMENTED`), members of parent
classes that our classes override or use (`MEMBERS`), and all others, behind a function or context manager each.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar


if TYPE_CHECKING:
    from argparse import ArgumentParser

    from accelerate import Accelerator
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import Cache, PreTrainedModel, Trainer, TrainingArguments
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
]

Model = TypeVar("Model", bound="nn.Module")

REF_ADAPTER = "ref"  # what DPOTrainer calls the frozen copy of an adapter


# Imported by name from here, and loaded only then.
UNDOCUMENTED = {
    "BatchRebalanceSampler": "transformers.trainer_pt_utils",  # to give it the run's seed
    "LengthGroupedSampler": "transformers.trainer_pt_utils",  # to give it the run's seed
    "EvalLoopOutput": "transformers.trainer_utils",  # what `evaluation_loop` returns
    "TrainOutput": "transformers.trainer_utils",  # what `train` returns
    "rotate_checkpoints": "transformers.trainer_utils",  # deletes old checkpoints once the new one is complete
    "is_deepspeed_zero3_enabled": "transformers.integrations",  # documented for integrators alone
    "prepare_deepspeed": "trl.models",  # an engine for a reference pass before training
}


def __getattr__(name: str) -> Any:
    if name not in UNDOCUMENTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(UNDOCUMENTED[name]), name)


class Member(NamedTuple):
    """A member of a parent class that our classes override, or use by `self`.

    Args:
        owners: The parent classes, separated by a space.
        name: The member.
        parameters: Names of a method's parameters, `self` first and separated by spaces; empty for an attribute.
        without: What breaks when it is gone or renamed.
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
        "TRL tokenizes the splits as texts, and finds no text column",
    ),
    Member(DPO, "_prepare_dataset", "self dataset processing_class args dataset_name", "TRL tokenizes pairs of texts"),
    Member(TRAINERS, "_set_signature_columns_if_needed", "self", "the columns that our collators read are dropped"),
    Member(TRAINERS, "_signature_columns", "", "the same: that method sets it"),
    Member(TRAINERS, "_get_train_sampler", "self train_dataset", "a resumed run orders its rows otherwise"),
    Member(TRAINERS, "_save_checkpoint", "self model trial", "no checkpoint is marked as complete, so no run resumes"),
    Member(TRAINERS, "_load_from_checkpoint", "self resume_from_checkpoint model", "see `load_active_adapter`"),
    Member(TRAINERS, "save_model", "self output_dir _internal_call", "a saved model cannot recommend by itself"),
    Member(DPO, "_precompute_ref_logps", "self dataset name batch_size", "TRL computes those of pairs of texts"),
    Member(DPO, "_precompute_engine", "", "DeepSpeed's engine of the reference outlives the pass that needs it"),
    Member(TRAINERS, "_metrics", "", "what a loss reports is not logged"),
    Member(TRAINERS, "_total_train_tokens", "", "num_tokens is not logged"),
    Member(TRAINERS, "_tag_names", "", "a pushed model has none of our tags"),
    Member("trl.SFTConfig trl.DPOConfig", "_VALID_DICT_FIELDS", "", "--tasks and --rewards are not read as JSON"),
)


# transformers


def name_or_path(model: PreTrainedModel | PeftModel) -> str:
    """The hub id or folder that a model was loaded from; empty if it was made in memory. Without it, a trainer that is
    given a model has to be given its tokenizer too."""
    name: str = model.config._name_or_path
    return name


def attention_kind(model: PreTrainedModel) -> str:
    """`"sdpa"`, `"eager"`, `"flash_attention_2"` or another implementation. Without it, a mask of ours could be given
    in a form that the model misreads."""
    kind: str = model.config.get_text_config()._attn_implementation
    return kind


def is_stateful(model: PreTrainedModel) -> bool:
    """Whether the model keeps a recurrent state, as Mamba does. Without it, texts that share a row would leak
    into each other."""
    return model._is_stateful


def cache_arguments(model: PreTrainedModel, cache: Cache) -> dict[str, Any]:
    """What a model's `forward` takes to use a key-value cache: as `cache` from transformers 5.24 on, as
    `past_key_values` before (removal announced for 5.40) and in models with code of their own."""
    base = getattr(model, "get_base_model", lambda: model)()
    name = "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


def mark_unquantized(model: PreTrainedModel) -> None:
    """Lets a model that was read from a GGUF file be trained. transformers has turned its weights into floats, but
    still marks it as quantised, which `Trainer` refuses."""
    vars(model).update(is_quantized=False, hf_quantizer=None)
    del model.config.quantization_config


# Fields of newer transformers that our configs declare for older ones; they are inherited all the same.
BACKPORTED_FIELDS = ("activation_checkpointing", "activation_checkpointing_kwargs")


def settle_checkpointing(args: TrainingArguments) -> None:
    """Gives `activation_checkpointing` its meaning; call it before `TrainingArguments.__post_init__`.

    It is the name of `gradient_checkpointing` from transformers 5.23 on, which warns of the old one; TRL 1.16 still
    sets its default, True, by the old one. Here that default moves to the new name, and with an older transformers a
    value under the new name moves to the old one. This can go once TRL uses the new name, and 5.23 is the oldest
    transformers allowed.
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
    """Whether the installed transformers has `activation_checkpointing` (5.23)."""
    from transformers import TrainingArguments

    return any(one.name == "activation_checkpointing" for one in fields(TrainingArguments))


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Inside, no layer recomputes its activations; afterwards, each does as before.

    TRL switches checkpointing off for generation, too, but it switches it on again without `every_n_layers` and
    `offload`, and by methods that transformers 5.23 has deprecated. It leaves alone what is off already.
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
    """Where the trainer saves the checkpoint of its present step. Without it, the folder cannot be emptied before, nor
    marked as complete after."""
    return Path(trainer._get_output_dir(trial)) / f"checkpoint-{trainer.state.global_step}"


def load_active_adapter(model: nn.Module, folder: str) -> None:
    """Loads the adapter that a checkpoint has beside others in subfolders, such as "ref".

    transformers below 5.23 loads those in subfolders alone (huggingface/transformers#30478), so a resumed policy would
    start over. This can go once 5.23 is the oldest transformers allowed.
    """
    if not knows_activation_checkpointing() and (Path(folder) / "adapter_config.json").is_file():
        peft_model: Any = model
        active = peft_model.active_adapter
        peft_model.load_adapter(folder, active, is_trainable=True)
        peft_model.set_adapter(active)


def train_batch_size(trainer: Trainer) -> int:
    """Rows of one process's training batch. Without it, a batch that was made smaller to fit the memory
    (`auto_find_batch_size`) would not be counted."""
    return trainer._train_batch_size


def drop_plain_dropout(model: nn.Module) -> None:
    """Turns off what TRL's `disable_dropout` leaves on: dropout that a layer keeps as a number, as Llama's attention
    and all of OPT do. With it, a policy differs from its reference before anything is learned."""
    for module in model.modules():
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                vars(module)[name] = 0.0


# TRL, PEFT and argparse


def dict_fields(config: type[TrainingArguments], *names: str) -> list[str]:
    """A value for `_VALID_DICT_FIELDS`: the parent's mappings, and fields of our own that may be JSON as well."""
    return [*config._VALID_DICT_FIELDS, *names]


def read_mappings(parser: ArgumentParser, read: Callable[[str], Any]) -> None:
    """Reads every option that holds a mapping by `read`: TRL's parser calls `dict` on the text, which no text
    suits."""
    for action in parser._actions:
        if getattr(action.type, "__name__", None) == "dict":
            action.type = read


@contextmanager
def unwrapped_for_generation(wrapped: Any, accelerator: Accelerator) -> Iterator[Any]:
    """Inside, the model itself with all its weights, no layer checkpointed; afterwards, it trains as before."""
    from trl.models import unwrap_model_for_generation

    model = keep_differentiable(accelerator.unwrap_model(wrapped))
    with without_checkpointing(model), unwrap_model_for_generation(wrapped, accelerator) as whole:
        yield whole


def complete_ref_adapter(model: nn.Module) -> None:
    """Copies the whole adapter into "ref", by the names that PEFT gives parameters. TRL leaves out trained new tokens
    and embeddings (huggingface/trl#6975), and on a quantised base the dtype; this can go once that is released."""
    if REF_ADAPTER not in getattr(model, "peft_config", {}):
        return
    tensors = {f"{name}.": tensor for name, tensor in model.named_parameters()}
    for name, tensor in tensors.items():
        if ".default." in name:
            tensors[name.replace(".default.", f".{REF_ADAPTER}.")].data = tensor.detach().clone()


# accelerate


def reset_accelerator_state() -> None:
    """Lets the next trainer of this process make an `Accelerator`. Without it, the second stage of a schedule fails
    under DeepSpeed, which allows one Accelerator per process (huggingface/transformers#35073)."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def launched_with_fsdp() -> bool:
    """Whether `accelerate launch` was asked for FSDP. Without it, stages start that need a whole model on each
    process."""
    from accelerate.utils import parse_flag_from_env

    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def accelerate_launch(argv: list[str]) -> None:
    """`accelerate launch` in this process, without its warnings about options that were not given. Without it,
    training verbs would have to find and start the program `accelerate`."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
    launch_command(launch_command_parser().parse_args(argv))


# DeepSpeed


def held_weights(parameter: nn.Parameter) -> Tensor:
    """The share of a parameter that this process holds: all of it, but under ZeRO-3, where the parameter itself is
    empty. Without it, all models that ZeRO-3 has loaded look the same."""
    held: Tensor = vars(parameter).get("ds_tensor", parameter)
    return held


@contextmanager
def without_step_hook(wrapped: Any) -> Iterator[None]:
    """Inside, a ZeRO-3 engine's forward passes ask nothing of other processes; the weights have to be gathered.

    TRL's `unwrap_model_for_generation` (huggingface/trl#1617) leaves one hook: at the start of a forward pass it
    compares notes with the other processes, and waits forever for one that has fewer batches to decode.
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


# bitsandbytes


def keep_differentiable(model: Model) -> Model:
    """The model, whose 4-bit layers will still pass gradients after they have been used in evaluation mode on a CPU.

    bitsandbytes repacks their weights then, on processors with AVX-512 for bfloat16, into a form without a backward
    pass (bitsandbytes-foundation/bitsandbytes#1804). This can go once it unpacks them for training.
    """
    for layer in model.modules():
        if "support_avx512bf16_for_cpu" in vars(layer):
            vars(layer)["support_avx512bf16_for_cpu"] = False
    return model


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether this is a layer of bitsandbytes, which must stay in training mode: in evaluation on a CPU it would
    repack its weights for good (see `keep_differentiable`)."""
    return type(module).__module__.startswith("bitsandbytes")
