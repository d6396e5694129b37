"""What a model from scratch learns before it ranks: which ratings to expect (see `data.rating_rows`).

The stage is a run of its own in a folder of its own. A checkpoint is left after each epoch and a mark at the end, so
that a run that was killed goes on where it was.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.dataset import RecDataset
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.models.loading import load_model
from trl_rec.trainer.alro.rating_rows import build_rating_rows
from trl_rec.trainer.base.checkpoints import MARK
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.trainer import BearTrainer


if TYPE_CHECKING:
    from trl_rec.trainer.alro.config import AlroConfig


# Fields that the rating stage takes from the configuration of the ranking.
SHARED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_steps",
    "seed",
    "data_seed",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "warmup_steps",
    "logging_steps",
    "disable_tqdm",
    "report_to",
    "use_cpu",
    "bf16",
    "fp16",
    "activation_checkpointing",
    "torch_compile",
)
logger = logging.getLogger(__name__)


@dataclass
class RatingStageConfig:
    """The stage in a recipe; the fields that `SHARED` names are those of [`AlroConfig`].

    Args:
        rating_epochs (`float`, *optional*, defaults to `0.0`): Epochs. 0 leaves the stage out, as a pretrained model
            has to.
        rating_learning_rate (`float`, *optional*, defaults to `3e-3`): Learning rate.
        rating_max_length (`int`, *optional*, defaults to `128`): Most tokens of a row.
    """

    rating_epochs: float = field(
        default=0.0, metadata={"help": "epochs in which a model from scratch first learns to rate"}
    )
    rating_learning_rate: float = field(default=3e-3, metadata={"help": "learning rate of these epochs"})
    rating_max_length: int = field(default=128, metadata={"help": "most tokens of a row in these epochs"})

    def __post_init__(self) -> None:
        if self.rating_epochs < 0:
            raise ValueError(f"rating_epochs must be at least 0, not {self.rating_epochs}")

    def options(self, args: AlroConfig) -> dict[str, Any]:
        """What [`learn_ratings`] takes, beside what is learned and by whom."""
        own = {"num_train_epochs": self.rating_epochs, "learning_rate": self.rating_learning_rate}
        resume = bool(args.resume_from_checkpoint)
        return {
            **{name: getattr(args, name) for name in SHARED},
            **own,
            "max_length": self.rating_max_length,
            "resume": resume,
        }


def learn_ratings(
    model: PreTrainedModel,
    processing_class: PreTrainedTokenizerBase,
    prompt_format: RatedPromptFormat,
    dataset: RecDataset,
    output_dir: str | Path,
    *,
    max_length: int = 128,
    resume: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """The model once it has learned which rating comes after an item, as it also lies in `output_dir`.

    Args:
        model: A model from scratch, all of whose parameters are trained.
        processing_class: Its tokenizer.
        prompt_format: How rated histories are written.
        dataset: Its training split is learned from.
        output_dir: A folder of the stage's own.
        max_length (*optional*, defaults to `128`): Most tokens of a row.
        resume (*optional*, defaults to `False`): Whether a stage that ended here is taken as it is, and one that was
            killed goes on; else it begins anew.
        options: Fields of [`BearConfig`]. By default 8 epochs, a learning rate of 3e-3, and a checkpoint an epoch.
    """
    folder = Path(output_dir)
    if resume and (folder / MARK).is_file():
        logger.info("the model in %s has learned to rate already", folder)
        return load_model(folder)
    logger.info("the model first learns to rate, and is kept in %s", folder)
    trained = {
        "num_train_epochs": 8,
        "learning_rate": 3e-3,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        **options,
    }
    trainer = BearTrainer(
        model,
        BearConfig(str(folder), bear_weight=0, softmax="vocabulary", **trained),  # plain supervised fine-tuning
        train_dataset=build_rating_rows(dataset.train, prompt_format, max_length=max_length),
        processing_class=processing_class,
        catalog=dataset.catalog,
    )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError("a model from scratch learns to rate on whole processes; launch it with cpu or ddp")
    if trainer.is_world_process_zero():
        (folder / MARK).unlink(missing_ok=True)
    trainer.train(resume_from_checkpoint=resume)
    save_run(trainer, {"dataset": str(dataset.path)})
    if trainer.is_world_process_zero():
        (folder / MARK).touch()
        for checkpoint in folder.glob("checkpoint-*"):  # a stage that ended never resumes
            shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    return load_model(folder)
