"""From a recipe to the rows of its tasks."""

from __future__ import annotations

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from trl_rec.data.dataset import RecDataset
from trl_rec.data.prompts import PromptFormat
from trl_rec.data.task_rows import build_task_rows
from trl_rec.trainer.bear.config import BearConfig


def build_training_rows(dataset: RecDataset, tokenizer: PreTrainedTokenizerBase, config: BearConfig) -> Dataset:
    """What [`BearTrainer`] is given to train on: `dataset.train`, or with `config.tasks` the rows of these tasks,
    which need the users and the catalogue as well.

    Args:
        dataset: The data, its catalogue with the surface to train on.
        tokenizer: Knows the catalogue's tokens; one from scratch also the words of [`task_texts`].
        config: Says which tasks, and how rows are built.
    """
    if not isinstance(config.tasks, dict):
        return dataset.train
    return build_task_rows(
        dataset,
        tokenizer,
        PromptFormat.for_catalog(dataset.catalog, tokenizer, **config.prompt_options),
        config.tasks,
        cap=config.task_cap,
        targets=config.targets,
        max_length=config.max_length,
        max_history=config.max_history,
        longest_history=config.task_history,
        chat_template=config.chat_template,
        seed=config.seed,
    )
