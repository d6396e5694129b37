"""Tests how preference stages are read from recipes: which keys a stage may have, and what is refused."""

import pytest

from trl_rec.schedule import PreferenceStage, align3gr_stages, read_stages


def test_align3gr_runs_from_easy_beams_to_hard_feedback() -> None:
    stages = align3gr_stages(max_prompts=7)
    names = ["self_play-easy", "self_play-medium", "self_play-hard", "feedback-easy", "feedback-hard"]
    assert [stage.name for stage in stages] == names
    assert {stage.max_prompts for stage in stages} == {7}


def test_a_stage_replaces_only_the_settings_it_contains() -> None:
    stage = read_stages([{"source": "feedback", "difficulty": "easy", "beta": 0.5, "liked": [4, 5]}])[0]
    assert stage.training == {"beta": 0.5}
    assert stage.liked == (4, 5) and stage.disliked == (1, 2)


def test_numbers_may_be_written_as_text() -> None:
    """YAML 1.1 reads `1e-5` as text, so text is converted to a number."""
    stage = read_stages(
        [{"source": "feedback", "learning_rate": "1e-5", "max_prompts": "1e3", "max_steps": -1, "sft_weight": 0}]
    )[0]
    assert stage.training == {"learning_rate": 1e-5, "max_steps": -1, "sft_weight": 0.0}
    assert stage.max_prompts == 1000 and isinstance(stage.max_prompts, int)


def test_the_default_difficulty_is_the_last_one_that_the_source_has() -> None:
    assert [PreferenceStage(source).difficulty for source in ("self_play", "feedback", "random")] == [
        "any",
        "hard",
        "any",
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no stages"),
        ([{"difficulty": "easy"}], "stage 1 has no source"),
        ([{"source": "random"}, {"source": "random", "lr": 1}], "stage 2 has the unknown key 'lr'"),
        ([{"source": "beams"}], "unknown source 'beams'"),
        (
            [{"source": "feedback", "difficulty": "medium"}],
            "the difficulty of feedback negatives must be one of easy, hard, not 'medium'",
        ),
        (["self_play"], "stage 1 must be a mapping with a source"),
        ([{"source": "random"}, {"source": 3}], "stage 2: source must be a string, not 3"),
        ([{"source": "feedback", "liked": 5}], "stage 1: liked must be a lowest and a highest rating"),
        ([{"source": "feedback", "liked": [5, 4]}], "stage 1: liked must be a lowest and a highest rating"),
        ([{"source": "feedback", "neutral": [3, "x"]}], "stage 1: neutral must be a"),
        ([{"source": "random", "learning_rate": "fast"}], "stage 1: learning_rate must be a number, not 'fast'"),
        ([{"source": "random", "learning_rate": 0}], "stage 1: learning_rate must be above 0"),
        ([{"source": "random", "beta": -1}], "stage 1: beta must be above 0"),
        ([{"source": "random", "sft_weight": -1}], "stage 1: sft_weight must be at least 0"),
        ([{"source": "random", "num_negatives": 0}], "stage 1: num_negatives must be at least 1, not 0"),
        ([{"source": "random", "num_negatives": None}], "stage 1: num_negatives must be a whole number, not None"),
        ([{"source": "self_play", "num_beams": 2.5}], "stage 1: num_beams must be a whole number, not 2.5"),
        ([{"source": "random", "max_prompts": True}], "stage 1: max_prompts must be a whole number, not True"),
    ],
)
def test_malformed_stages_are_refused_in_one_sentence(entries: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_stages(entries)
