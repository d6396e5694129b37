"""Describes the keys of every verb for `trl-rec VERB --help`, from the dataclasses that the verb parses.

Importing these dataclasses takes seconds, so the descriptions are stored in `keys.json`, from which the help is
printed. A test compares `keys.json` with the dataclasses. After changing a key, write `keys.json` again:

    python -m trl_rec.scripts.options.keys
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from trl_rec.files import write_text
from trl_rec.scripts.options.help_pages import KEYS, Groups, Key
from trl_rec.scripts.verbs import OWN_HELP, SCRIPTS, VERBS


# One group for all fields of a dataclass, or a mapping from groups to the names of their fields, separated by spaces.
Titles: TypeAlias = "str | dict[str, str]"

OF_OTHERS = "TRL and Transformers"
# The groups in the order of the help.
ORDER = (
    "data",
    "source",
    "filtering and split",
    "prompts",
    "model",
    "parts",
    "BEAR",
    "BLADE",
    "ALRO",
    "Softmax-DPO",
    "method",
    "method kmeans",
    "method dual",
    "existing IDs",
    "prior",
    "training",
    "users",
    "lists",
    "evaluation",
    "measures",
    "server",
    "output",
    "toy log",
    "keys",
)
# The groups of the fields that each dataclass declares. If there are several groups, the fields that are not named
# here belong to the first group.
PLACES: dict[str, Titles] = {
    "DataArguments": "data",
    "RatedDataArguments": "data",
    "PreferenceArguments": "data",
    "ScheduleArguments": {"parts": "", "data": "dataset surface"},
    "RecModelConfig": "model",
    "BearConfig": "BEAR",
    "AlroConfig": {"ALRO": "", "evaluation": "eval_ks eval_num_orders eval_single_pass"},
    "RatingStageConfig": "ALRO",
    "BladeConfig": {"BLADE": "", "training": "learning_rate", "prompts": "list_length"},
    "SoftmaxDPOConfig": {"Softmax-DPO": "", "training": "learning_rate"},
    "RecConfig": {
        "evaluation": "",
        "prompts": "prompt_head prompt_item prompt_tail prompt_separator chat_template list_length",
        "training": "activation_checkpointing activation_checkpointing_kwargs logging_nan_inf_filter",
        "output": "overwrite include_catalog",
    },
    "PriorConfig": {"prior": "", "output": "include_prior"},
    "PrepareArguments": {
        "source": "",
        "filtering and split": "split num_held_out min_user_interactions min_item_interactions empty_ratings "
        "unknown_items repeats",
        "output": "output_dir license overwrite",
        "toy log": "seed toy_users toy_items",
    },
    "TokenizeArguments": {
        "data": "",
        "method": "method",
        "method kmeans": "width window iterations",
        "existing IDs": "import_index known",
        "output": "export_index overwrite",
    },
    "DualIdsConfig": {"method dual": "", "method": "levels codes collisions seed"},
    "EvaluateArguments": {"data": "", "output": "output_dir slices"},
    "EvaluationConfig": {
        "measures": "",
        "data": "split max_users",
        "model": "model surface list_length max_length dtype batch_size num_beams length_penalty renormalize "
        "num_orders prior prior_strength",
        "lists": "lists name",
    },
    "CompareArguments": "keys",
    "RecommendArguments": {
        "users": "",
        "model": "model prior batch_size",
        "lists": "k exclude_history where max_per",
        "output": "output overwrite",
    },
    "ServingConfig": {"server": "", "model": "model lists dataset prior device dtype batch_size batch_ms"},
    "ExportArguments": "keys",
    "StudyConfig": "keys",
}
# Keys of TRL and Transformers that users often set. They are shown among the keys of this package.
COMMON: dict[str, dict[str, str]] = {
    "model": {
        "model_name_or_path": "model to start from: hub id, folder or GGUF file",
        "dtype": "data type of the weights",
        "use_peft": "train an adapter (LoRA) instead of all weights",
        "lora_r": "with use_peft: rank of the adapter",
        "lora_alpha": "with use_peft: the output of the adapter is multiplied by lora_alpha / lora_r",
        "lora_target_modules": "with use_peft: names of the layers that get an adapter",
        "load_in_4bit": "quantise the base model to 4 bits (QLoRA, with use_peft)",
    },
    "training": {
        "max_length": "maximum number of tokens of a prompt with its completion; if there are more, the oldest items "
        "are left out",
        "num_train_epochs": "number of passes over the training rows",
        "max_steps": "number of optimizer steps, instead of num_train_epochs; -1 to use num_train_epochs",
        "learning_rate": "initial learning rate",
        "lr_scheduler_type": "how the learning rate changes during training",
        "warmup_steps": "number of steps over which the learning rate rises from 0",
        "weight_decay": "weight decay of the optimizer",
        "per_device_train_batch_size": "rows per device and forward pass",
        "gradient_accumulation_steps": "forward passes per optimizer step",
        "seed": "seed of the initial weights, of dropout and of the order of the rows",
        "use_cpu": "train on the CPU even if there is an accelerator",
        "bf16": "compute in bfloat16; set it to false on a CPU that does not support bfloat16",
    },
    "evaluation": {
        "eval_strategy": "when to evaluate on the validation split: no, steps or epoch",
        "eval_steps": "with eval_strategy=steps: number of steps between two evaluations",
        "per_device_eval_batch_size": "prompts per device and forward pass of an evaluation",
        "load_best_model_at_end": "end with the best checkpoint (see metric_for_best_model) instead of the last",
        "metric_for_best_model": "metric that compares checkpoints, such as eval_ndcg@10",
    },
    "output": {
        "output_dir": "run folder; if unset, named after model and method, such as Qwen2.5-0.5B-BEAR",
        "save_strategy": "when to save a checkpoint: no, steps or epoch",
        "save_steps": "with save_strategy=steps: number of steps between two checkpoints",
        "save_total_limit": "number of checkpoints to keep",
        "resume_from_checkpoint": "true to continue from the newest complete checkpoint, or a checkpoint folder",
        "logging_steps": "number of steps between two lines of the log",
        "report_to": "trackers that get the log, such as wandb; none for no tracker",
        "push_to_hub": "push the run to the Hugging Face hub at its end",
    },
}


def describe_verb(verb: str, *, everything: bool = False) -> Groups:
    """Returns the keys of a verb by group, in the order of the help.

    Args:
        verb: A verb that is not in `OWN_HELP` (the verbs that print their own help).
        everything: Whether to add a group with all other keys of TRL and Transformers.
    """
    common = {name: (title, text) for title, texts in COMMON.items() for name, text in texts.items()}
    found: Groups = {}
    others: dict[str, Key] = {}
    for kind in import_module(f"trl_rec.scripts.{SCRIPTS.get(verb, verb)}").KINDS:
        hints = get_type_hints(kind)
        for field, owner in _fields(kind):
            title = _title(owner, field.name)
            text = str(field.metadata.get("help", "")).replace("%%", "%")  # argparse needs percent signs twice
            if title is None and field.name in common:
                title, text = common[field.name]
            place = others if title is None else found.setdefault(title, {})
            place[field.name] = Key(value=_value(hints[field.name]), default=_default(field), help=text)

    groups = {title: found[title] for title in ORDER if title in found}
    return {**groups, OF_OTHERS: others} if everything and others else groups


def _fields(kind: type) -> Iterator[tuple[Field[Any], type]]:
    """Yields the fields of a dataclass that the command line can set, each with the class that declares it."""
    for field in fields(kind):
        if field.init:
            yield field, next(one for one in kind.__mro__ if field.name in vars(one).get("__annotations__", {}))


def _title(owner: type, name: str) -> str | None:
    """Returns the group of a field, or None if the field is declared by TRL or Transformers."""
    if not owner.__module__.startswith("trl_rec."):
        return None
    place = PLACES[owner.__name__]
    if isinstance(place, str):
        return place
    return next((title for title, names in place.items() if name in names.split()), next(iter(place)))


def _default(field: Field[Any]) -> str | None:
    """Returns the default of a field as it is written on the command line.

    Returns "" if the default is `None` or empty, and returns None if the key is required.
    """
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return None if default is MISSING else _shown(default)


def _shown(value: Any) -> str:
    """Returns a default value as it is written on the command line."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(_shown, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else str(value)


def _value(hint: Any) -> str:
    """Returns the placeholder that the help shows for a value of this type, such as `N` for a whole number."""
    origin = get_origin(hint)
    parts = [part for part in get_args(hint) if part is not NoneType]
    if origin in (Union, UnionType):
        return next((one for one in map(_value, parts) if one == "JSON"), _value(parts[0]))
    if origin is Literal:
        return "|".join(map(str, parts))
    if origin is list:
        item = _value(parts[0])
        return f"{item} [{item} ...]"
    if origin is dict or hint is dict:
        return "JSON"
    return {bool: "true|false", int: "N", float: "X"}.get(hint, "TEXT")


def main() -> None:
    """Writes `keys.json`."""
    described = {verb: describe_verb(verb) for verb in VERBS if verb not in OWN_HELP}
    write_text(Path(KEYS), json.dumps(described, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
