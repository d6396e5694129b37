"""The preference table of a stage, from whichever source the stage names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from trl_rec.data.prompts import PromptFormat
from trl_rec.items.trie import TokenTrie
from trl_rec.schedule.candidate_leaks import check_candidate_leaks
from trl_rec.schedule.candidates import bucket_report, random_candidates, self_play_candidates
from trl_rec.schedule.difficulty import self_play_buckets
from trl_rec.schedule.feedback import feedback_candidates
from trl_rec.schedule.plan import weights_digest
from trl_rec.schedule.prefixes import training_prefixes
from trl_rec.schedule.self_play import self_play_beams
from trl_rec.schedule.settings import Schedule
from trl_rec.schedule.stages import PreferenceStage


def stage_candidates(
    number: int, stage: PreferenceStage, policy: Any, tokenizer: Any, start: Path, schedule: Schedule
) -> tuple[Dataset, dict[str, Any]]:
    """The table, and figures on it.

    Args:
        number: The stage's place, from 1; its prompts are drawn by it and the seed.
        stage: The stage.
        policy, tokenizer: What self-play decodes with.
        start: The policy's folder.
        schedule: What all stages share.
    """
    if stage.source == "feedback":
        table = stage_feedback(number, stage, schedule)
        return table, bucket_report(table)
    dataset, seed = schedule.dataset, schedule.config.seed + number
    prefixes = training_prefixes(dataset.train, max_prompts=stage.max_prompts, seed=seed)
    if stage.source == "random":
        chosen: dict[str, Any] = {"num_negatives": stage.num_negatives, "seed": seed}
        table = random_candidates(
            prefixes, len(dataset.catalog), train=dataset.train, catalog=dataset.catalog, **chosen
        )
        buckets = None
    else:
        folder = schedule.folder(number, stage) / "self-play"
        beams = self_play_beams(
            policy,
            prefixes,
            PromptFormat.for_catalog(dataset.catalog, tokenizer, **schedule.config.prompt_options),
            TokenTrie.from_catalog(dataset.catalog, tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            num_beams=stage.num_beams,
            folder=folder,
            key=weights_digest(start),
            exclude_history=schedule.config.eval_exclude_history,
            renormalize=schedule.config.normalize == "catalogue",
            batch_size=schedule.config.per_device_eval_batch_size,
            max_length=schedule.config.max_length,
        )
        buckets = self_play_buckets(prefixes, beams, dataset.catalog, train=dataset.train)
        chosen = {"difficulty": stage.difficulty, "num_negatives": stage.num_negatives}
        table = self_play_candidates(prefixes, beams, dataset.catalog, train=dataset.train, **chosen)
    check_candidate_leaks(table, dataset, feedback=False)
    return table, bucket_report(table, buckets)


def stage_feedback(number: int, stage: PreferenceStage, schedule: Schedule) -> Dataset:
    """The table of a stage that learns from ratings; no policy is needed for it."""
    table = feedback_candidates(
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
    check_candidate_leaks(table, schedule.dataset, feedback=True)
    return table
