"""The rating stage: a model from scratch first learns which rating follows an item (see `rating_rows`).

The stage is a run of its own, in a folder of its own. It leaves a checkpoint after each epoch and a mark at its end,
so that it resumes after a kill.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.dataset import RecDataset
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.models.loading import load_model
from trl_rec.ranges import COUNT, NOT_NEGATIVE, check_ranges
from trl_rec.trainer.alro.rating_rows import build_rating_rows
from trl_rec.trainer.base.checkpoints import check_same_run, find_changed, read_mark, write_mark
from trl_rec.trainer.base.processes import on_main_process
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.trainer import BearTrainer


if TYPE_CHECKING:
    from trl_rec.trainer.alro.config import AlroConfig


# Fields of the ranking's configuration that the stage takes over.
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
    "overwrite",
)
logger = logging.getLogger(__name__)


@dataclass
class RatingStageConfig:
    """The options of the stage in a recipe. It takes the fields named in `SHARED` from [`AlroConfig`].

    Args:
        rating_epochs (`float`, *optional*, defaults to `0.0`): Epochs. 0 leaves the stage out, as is right for
            a pretrained model.
        rating_learning_rate (`float`, *optional*, defaults to `3e-3`): Learning rate.
        rating_max_length (`int`, *optional*, defaults to `128`): Most tokens per row.
    """

    rating_epochs: Annotated[float, NOT_NEGATIVE] = field(
        default=0.0,
        metadata={"help": "epochs in which a model from scratch first learns to rate"},
    )
    rating_learning_rate: Annotated[float, NOT_NEGATIVE] = field(
        default=3e-3, metadata={"help": "learning rate of these epochs"}
    )
    rating_max_length: Annotated[int, COUNT] = field(
        default=128, metadata={"help": "most tokens per row in these epochs"}
    )

    def __post_init__(self) -> None:
        check_ranges(self)

    def options(self, args: AlroConfig) -> dict[str, Any]:
        """The keyword arguments of [`learn_ratings`] for a ranking with the configuration `args`."""
        return {
            **{name: getattr(args, name) for name in SHARED},
            "num_train_epochs": self.rating_epochs,
            "learning_rate": self.rating_learning_rate,
            "max_length": self.rating_max_length,
            "resume": bool(args.resume_from_checkpoint),
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
    """Trains the model to predict the rating of an item, and returns it. It is also saved in `output_dir`.

    Args:
        model: A model from scratch. All its parameters are trained.
        processing_class: Its tokenizer.
        prompt_format: How rated histories are written.
        dataset: The data, of which the training split is used.
        output_dir: A folder for this stage alone.
        max_length (*optional*, defaults to `128`): Most tokens per row.
        resume (*optional*, defaults to `False`): Whether to use the model of a finished stage in this folder, or to
            continue from its newest checkpoint. Otherwise the stage begins anew.
        options: Fields of [`BearConfig`]. By default there are 8 epochs with a learning rate of 3e-3, and one
            checkpoint per epoch.
    """
    # 1. Plain supervised fine-tuning.
    folder = Path(output_dir)
    settings = {
        "num_train_epochs": 8,
        "learning_rate": 3e-3,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        **options,
    }
    trainer = BearTrainer(
        model,
        BearConfig(str(folder), bear_weight=0, softmax="vocabulary", **settings),
        train_dataset=build_rating_rows(dataset.train, prompt_format, max_length=max_length),
        processing_class=processing_class,
        catalog=dataset.catalog,
    )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError("a model from scratch learns to rate on whole processes; launch it with cpu or ddp")

    # 2. A finished stage is used again if it is this one.
    if resume and on_main_process(lambda: is_finished(trainer)):
        logger.info("the model in %s has learned to rate already", folder)
        return load_model(folder)

    # 3. Train. The mark comes once everything is saved, when the stage never resumes any more.
    logger.info("the model first learns to rate; it is saved in %s", folder)
    trainer.train(resume_from_checkpoint=resume)
    save_run(trainer, {"dataset": str(dataset.path)})
    if trainer.is_world_process_zero():
        write_mark(folder, trainer.fingerprint(), trainer.launch)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    return load_model(folder)


def is_finished(trainer: BearTrainer) -> bool:
    """Whether the trainer's folder contains the model of a finished stage; raises if the stage is another one."""
    folder = Path(str(trainer.args.output_dir))
    mark = read_mark(folder)
    if mark is None:
        return False
    changed = find_changed(folder, mark)
    if changed is not None:
        raise ValueError(f"the model in {folder} is damaged: {changed}; delete the folder to let a model learn again")
    trainer.describe_run()
    check_same_run(folder, mark, trainer.fingerprint(), trainer.launch)
    return True
