"""What the trainers refuse when they are made, since it would do nothing without a word."""

from __future__ import annotations

from typing import Any


NOT_TAKEN = {
    "data_collator": "its own collator makes the batches that its loss needs",
    "compute_metrics": "no logits are kept for it; lists are measured as the fields eval_* say, and rank returns them",
}
NOT_TAKEN_BY_SFT = {  # nor by a trainer on SFTTrainer
    **NOT_TAKEN,
    "preprocess_logits_for_metrics": NOT_TAKEN["compute_metrics"],
    "compute_loss_func": "the loss is the method's own",
    "formatting_func": "rows are built from items",
}


def check_arguments(given: dict[str, Any], names: dict[str, str], trainer: str) -> dict[str, Any]:
    """What was given without the arguments named, which must be None: `names` says of each why the trainer cannot use
    it."""
    for name, why in names.items():
        if given.get(name) is not None:
            raise ValueError(f"{trainer} cannot use {name}, since {why}; leave it out")
    return {name: value for name, value in given.items() if name not in names}


def check_trainable(model: Any) -> None:
    """Refuses a model of which nothing would be trained."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the model is trainable; load an adapter with trl_rec.models.load_policy, or pass peft_config"
        )
