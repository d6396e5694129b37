"""Preference training in stages: where its negatives come from, and what must not be among them; and the parts of Align3GR
before it."""

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
    "refuse_early",
    "refuse_leaking_candidates",
    "run_stages",
    "self_play_beams",
    "self_play_buckets",
    "self_play_candidates",
    "stage_table",
    "training_prefixes",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "PreferenceStage": "stages",
        "Schedule": "plan",
        "align": "pipeline",
        "align3gr_stages": "stages",
        "conclude_stages": "conclusion",
        "give_ids": "pipeline",
        "learn_supervised": "pipeline",
        "read_stages": "stages",
        "refuse_early": "pipeline",
        "run_stages": "loop",
        "stage_table": "conclusion",
        "bucket_report": "candidates",
        "feedback_candidates": "feedback",
        "random_candidates": "candidates",
        "refuse_leaking_candidates": "candidate_leaks",
        "self_play_beams": "self_play",
        "self_play_buckets": "difficulty",
        "self_play_candidates": "candidates",
        "training_prefixes": "prefixes",
    },
)
