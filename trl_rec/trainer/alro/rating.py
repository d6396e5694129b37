"""Runs the rating stage, in which a model from scratch learns to predict ratings before it learns to order candidates.

The training rows are those of `rating_rows.py` and, optionally, of `letter_rows.py`. The stage is a separate run with
its own folder, and can be resumed after an interruption. It saves a checkpoint after each epoch. When it is finished,
it writes a file that marks it as finished (see `trainer/base/saving/checkpoints.py`).
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.dataset import RecDataset
from trl_rec.decoding.candidates.prompts import RatedPromptFormat
from trl_rec.models.loading import load_model
from trl_rec.ranges import COUNT, COUNT_FROM_0, NOT_NEGATIVE, check_ranges
from trl_rec.trainer.alro.letter_rows import build_letter_rows
from trl_rec.trainer.alro.rating_rows import build_rating_rows
from trl_rec.trainer.base.processes import on_main_process
from trl_rec.trainer.base.reporting import save_run
from trl_rec.trainer.base.saving.checkpoints import check_same_run, find_changed, read_mark, write_mark
from trl_rec.trainer.bear.config import BearConfig
from trl_rec.trainer.bear.trainer import BearTrainer


if TYPE_CHECKING:
    from trl_rec.trainer.alro.config import AlroConfig


# Fields of `AlroConfig` whose values are also used for the rating stage.
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
    """Recipe options of the rating stage. The stage also uses the values of the [`AlroConfig`] fields that `SHARED`
    lists.

    Args:
        rating_epochs (`float`, *optional*, defaults to `0.0`): Number of epochs of the rating stage. 0 skips the
            stage. A pretrained model requires 0. If `max_steps` is set, the stage takes this number of steps instead.
        rating_learning_rate (`float`, *optional*, defaults to `3e-3`): Learning rate of the rating stage.
        rating_max_length (`int`, *optional*, defaults to `128`): Maximum number of tokens per row.
        letter_lists (`int`, *optional*, defaults to `0`): Number of rows, besides those with ratings, that teach which
            item a letter names (see [`build_letter_rows`]). Requires candidates that are named by letters.
    """

    rating_epochs: Annotated[float, NOT_NEGATIVE] = field(
        default=0.0,
        metadata={"help": "number of epochs of the rating stage, for a model from scratch; 0 skips the stage"},
    )
    rating_learning_rate: Annotated[float, NOT_NEGATIVE] = field(
        default=3e-3, metadata={"help": "learning rate of the rating stage"}
    )
    rating_max_length: Annotated[int, COUNT] = field(
        default=128, metadata={"help": "maximum number of tokens per row in the rating stage"}
    )
    letter_lists: Annotated[int, COUNT_FROM_0] = field(
        default=0,
        metadata={
            "help": "number of rows in the rating stage that teach which item a letter names; requires candidates "
            "that are named by letters"
        },
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.letter_lists and not self.rating_epochs:
            raise ValueError(
                "letter_lists adds rows to the rating stage, but rating_epochs=0 skips this stage; set rating_epochs, "
                "or leave letter_lists out"
            )

    def options(self, args: AlroConfig) -> dict[str, Any]:
        """Returns keyword arguments for [`learn_ratings`]. Shared fields are copied from `args`."""
        return {
            **{name: getattr(args, name) for name in SHARED},
            "num_train_epochs": self.rating_epochs,
            "learning_rate": self.rating_learning_rate,
            "max_length": self.rating_max_length,
            "letter_lists": self.letter_lists,
            "num_candidates": args.num_candidates,
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
    letter_lists: int = 0,
    num_candidates: int = 10,
    resume: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Trains a model to predict the ratings of items, saves it in `output_dir`, and returns it.

    Args:
        model: A model from scratch. All its parameters are trained.
        processing_class: The tokenizer of the model.
        prompt_format: Format of rated histories.
        dataset: The dataset. Only its training split is used.
        output_dir: A folder that only this stage writes to.
        max_length (*optional*, defaults to `128`): Maximum number of tokens per row.
        letter_lists (*optional*, defaults to `0`): Number of rows that teach which item a letter names.
        num_candidates (*optional*, defaults to `10`): Number of items in each of these rows.
        resume (*optional*, defaults to `False`): Whether to resume from the newest checkpoint in `output_dir` or, if
            the stage is already finished, to load and return its model. By default, the stage starts at the beginning.
        options: Fields of [`BearConfig`]. By default, the stage trains for 8 epochs with a learning rate of 3e-3 and
            saves one checkpoint per epoch.
    """
    # 1. Build a trainer for plain supervised fine-tuning.
    folder = Path(output_dir)
    settings = {
        "num_train_epochs": 8,
        "learning_rate": 3e-3,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        **options,
    }
    config = BearConfig(str(folder), bear_weight=0, softmax="vocabulary", **settings)
    rows = build_rating_rows(dataset.train, prompt_format, max_length=max_length)
    if letter_lists:
        sizes = {"num_lists": letter_lists, "num_candidates": num_candidates, "max_length": max_length}
        of_letters = build_letter_rows(dataset.train, prompt_format, **sizes, seed=config.seed)
        table = pa.concat_tables([rows.data.table, of_letters.data.table.cast(rows.data.table.schema)])
        rows = Dataset(table, split=rows.split)
    trainer = BearTrainer(
        model,
        config,
        train_dataset=rows,
        processing_class=processing_class,
        catalog=dataset.catalog,
    )
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        raise ValueError(
            "the rating stage does not support DeepSpeed or FSDP, because every process needs the whole model; use "
            "--accelerate_config cpu or ddp"
        )

    # 2. When resuming, load the model of the stage if the stage is already finished. `is_finished` raises an error if
    # the stage was run with other settings or data.
    if resume and on_main_process(lambda: is_finished(trainer)):
        logger.info("the rating stage in %s is already finished; loading its model", folder)
        return load_model(folder)

    # 3. Train. Mark the stage as finished only after everything is saved, because a resumed run does not repeat a
    # marked stage.
    logger.info("starting the rating stage; its model is saved in %s", folder)
    trainer.train(resume_from_checkpoint=resume)
    save_run(trainer)
    if trainer.is_world_process_zero():
        write_mark(folder, trainer.fingerprint(), trainer.launch)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    return load_model(folder)


def is_finished(trainer: BearTrainer) -> bool:
    """Returns whether the output folder contains a finished rating stage. Raises ValueError if that stage was run with
    other settings or data, or if its model is damaged."""
    folder = Path(str(trainer.args.output_dir))
    mark = read_mark(folder)
    if mark is None:
        return False
    changed = find_changed(folder, mark)
    if changed is not None:
        raise ValueError(f"the model in {folder} is damaged: {changed}; delete the folder to repeat the rating stage")
    trainer.describe_run()
    check_same_run(folder, mark, trainer.fingerprint(), trainer.launch)
    return True
