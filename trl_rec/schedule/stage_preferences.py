"""Builds the preference table of a stage: one chosen item and up to `num_negatives` rejected items per prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rec.data.prompts import PromptFormat
from trl_rec.items.trie import TokenTrie
from trl_rec.schedule.difficulty import self_play_buckets
from trl_rec.schedule.feedback import feedback_preferences
from trl_rec.schedule.plan import weights_digest
from trl_rec.schedule.preference_leaks import check_preference_leaks
from trl_rec.schedule.preferences import bucket_report, random_preferences, self_play_preferences
from trl_rec.schedule.prefixes import training_prefixes
from trl_rec.schedule.self_play import self_play_beams
from trl_rec.schedule.settings import Schedule
from trl_rec.schedule.stages import PreferenceStage


def stage_preferences(
    number: int,
    stage: PreferenceStage,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    start: Path,
    schedule: Schedule,
) -> tuple[Dataset, dict[str, Any]]:
    """Builds the preference table of a stage, and computes statistics of it (see [`bucket_report`]).

    Args:
        number: Number of the stage, starting at 1. Added to the seed, so that the stages sample different prompts and
            negatives.
        stage: The stage.
        policy, tokenizer: The policy that the stage starts from, and its tokenizer. Only a stage with the source
            `self_play` uses them.
        start: Folder of this policy.
        schedule: The settings that all stages share.
    """
    # 1. Build the table of a feedback stage from the ratings.
    if stage.source == "feedback":
        table = feedback_table(number, stage, schedule)
        return table, bucket_report(table)

    # 2. For the other sources, sample prefixes (each is the history before a training target), and find negatives for
    # each prefix.
    dataset = schedule.dataset
    seed = schedule.config.seed + number
    prefixes = training_prefixes(dataset.train, max_prompts=stage.max_prompts, seed=seed)
    if stage.source == "random":
        buckets = None
        table = random_preferences(
            prefixes,
            len(dataset.catalog),
            train=dataset.train,
            num_negatives=stage.num_negatives,
            seed=seed,
            catalog=dataset.catalog,
        )
    else:
        beams = _self_play(number, stage, prefixes, policy, tokenizer, start, schedule)
        buckets = self_play_buckets(prefixes, beams, dataset.catalog, train=dataset.train)
        table = self_play_preferences(
            prefixes,
            beams,
            dataset.catalog,
            train=dataset.train,
            difficulty=stage.difficulty,
            num_negatives=stage.num_negatives,
        )

    # 3. Check the table, and compute its statistics.
    check_preference_leaks(table, dataset, feedback=False)
    return table, bucket_report(table, buckets)


def feedback_table(number: int, stage: PreferenceStage, schedule: Schedule) -> Dataset:
    """Builds the preference table of a feedback stage. The table does not depend on the policy."""
    table = feedback_preferences(
        schedule.dataset.train,
        catalog=schedule.dataset.catalog,
        difficulty=stage.difficulty,
        liked=stage.liked,
        neutral=stage.neutral,
        disliked=stage.disliked,
        num_negatives=stage.num_negatives,
        max_prompts=stage.max_prompts,
        seed=schedule.config.seed + number,
    )
    check_preference_leaks(table, schedule.dataset, feedback=True)
    return table


def _self_play(
    number: int,
    stage: PreferenceStage,
    prefixes: Dataset,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    start: Path,
    schedule: Schedule,
) -> np.ndarray:
    """Returns the beams for each prefix, `(num_prefixes, num_beams)`, and saves them in the folder of the stage."""
    config = schedule.config
    catalog = schedule.dataset.catalog
    return self_play_beams(
        policy,
        prefixes,
        PromptFormat.for_catalog(catalog, tokenizer, **config.prompt_options),
        TokenTrie.from_catalog(catalog, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        num_beams=stage.num_beams,
        folder=schedule.folder(number, stage) / "self-play",
        key=weights_digest(start),  # so that beams of another policy are not reused
        exclude_history=config.eval_exclude_history,
        renormalize=config.normalize == "catalogue",
        batch_size=config.per_device_eval_batch_size,
        max_length=config.max_length,
    )
