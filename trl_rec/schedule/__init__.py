"""Preference training in stages: where its negatives come from, and what must not be among them; and the parts of
Align3GR before it."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "PreferenceStage",
    "Schedule",
    "align",
    "align3gr_stages",
    "bucket_report",
    "conclude_stages",
    "feedback_candidates",
    "give_ids",
    "learn_supervised",
    "random_candidates",
    "read_stages",
    "check_early",
    "check_candidate_leaks",
    "run_stages",
    "self_play_beams",
    "self_play_buckets",
    "self_play_candidates",
    "stage_table",
    "training_prefixes",
]

if TYPE_CHECKING:
    from trl_rec.schedule.candidate_leaks import check_candidate_leaks
    from trl_rec.schedule.candidates import bucket_report, random_candidates, self_play_candidates
    from trl_rec.schedule.difficulty import self_play_buckets
    from trl_rec.schedule.feedback import feedback_candidates
    from trl_rec.schedule.loop import run_stages
    from trl_rec.schedule.pipeline import align, check_early, give_ids, learn_supervised
    from trl_rec.schedule.prefixes import training_prefixes
    from trl_rec.schedule.reporting import conclude_stages, stage_table
    from trl_rec.schedule.self_play import self_play_beams
    from trl_rec.schedule.settings import Schedule
    from trl_rec.schedule.stages import PreferenceStage, align3gr_stages, read_stages
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "candidate_leaks": ["check_candidate_leaks"],
            "candidates": ["bucket_report", "random_candidates", "self_play_candidates"],
            "difficulty": ["self_play_buckets"],
            "feedback": ["feedback_candidates"],
            "loop": ["run_stages"],
            "pipeline": ["align", "give_ids", "learn_supervised", "check_early"],
            "settings": ["Schedule"],
            "prefixes": ["training_prefixes"],
            "reporting": ["conclude_stages", "stage_table"],
            "self_play": ["self_play_beams"],
            "stages": ["PreferenceStage", "align3gr_stages", "read_stages"],
        },
    )
