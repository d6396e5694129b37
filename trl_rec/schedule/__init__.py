"""Trains on preferences in stages: builds preference tables, checks them for leaks, and runs the stages in a loop.

`pipeline.py` runs the three parts of Align³GR: semantic IDs, supervised fine-tuning, and the stages.

The modules `sequence*.py` and the package `studies` have other purposes. `sequence.py` contains the baseline
`sequence` of `trl-rec evaluate`, a small model that is trained on the interaction log. `studies` trains and compares
several recommenders.
"""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "PreferenceStage",
    "Schedule",
    "SequenceBaseline",
    "align",
    "align3gr_stages",
    "bucket_report",
    "check_pipeline",
    "check_preference_leaks",
    "conclude_stages",
    "feedback_preferences",
    "give_ids",
    "learn_supervised",
    "random_preferences",
    "read_stages",
    "run_stages",
    "self_play_beams",
    "self_play_buckets",
    "self_play_preferences",
    "sequence_recipe",
    "stage_table",
    "training_prefixes",
]

if TYPE_CHECKING:
    from trl_rec.schedule.checks import check_pipeline
    from trl_rec.schedule.difficulty import self_play_buckets
    from trl_rec.schedule.feedback import feedback_preferences
    from trl_rec.schedule.loop import run_stages
    from trl_rec.schedule.pipeline import align, give_ids, learn_supervised
    from trl_rec.schedule.preference_leaks import check_preference_leaks
    from trl_rec.schedule.preferences import bucket_report, random_preferences, self_play_preferences
    from trl_rec.schedule.prefixes import training_prefixes
    from trl_rec.schedule.reporting import conclude_stages, stage_table
    from trl_rec.schedule.self_play import self_play_beams
    from trl_rec.schedule.sequence import SequenceBaseline
    from trl_rec.schedule.sequence_rule import sequence_recipe
    from trl_rec.schedule.settings import Schedule
    from trl_rec.schedule.stages import PreferenceStage, align3gr_stages, read_stages
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "checks": ["check_pipeline"],
            "difficulty": ["self_play_buckets"],
            "feedback": ["feedback_preferences"],
            "loop": ["run_stages"],
            "pipeline": ["align", "give_ids", "learn_supervised"],
            "preference_leaks": ["check_preference_leaks"],
            "preferences": ["bucket_report", "random_preferences", "self_play_preferences"],
            "prefixes": ["training_prefixes"],
            "reporting": ["conclude_stages", "stage_table"],
            "self_play": ["self_play_beams"],
            "sequence": ["SequenceBaseline"],
            "sequence_rule": ["sequence_recipe"],
            "settings": ["Schedule"],
            "stages": ["PreferenceStage", "align3gr_stages", "read_stages"],
        },
    )
