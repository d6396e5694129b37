"""Stages as data: what a recipe may say, and what is refused."""

import pytest

from trl_rec.schedule import PreferenceStage, align3gr_stages, read_stages


def test_align3gr_goes_from_easy_beams_to_hard_feedback() -> None:
    stages = align3gr_stages(max_prompts=7)
    names = ["self_play-easy", "self_play-medium", "self_play-hard", "feedback-easy", "feedback-hard"]
    assert [stage.name for stage in stages] == names
    assert {stage.max_prompts for stage in stages} == {7}


def test_a_stage_replaces_only_what_it_says() -> None:
    stage = read_stages([{"source": "feedback", "difficulty": "easy", "beta": 0.5, "liked": [4, 5]}])[0]
    assert stage.training == {"beta": 0.5}
    assert stage.liked == (4, 5) and stage.disliked == (1, 2)


def test_the_difficulty_left_out_is_the_sources_last() -> None:
    assert [PreferenceStage(source).difficulty for source in ("self_play", "feedback", "random")] == ["any", "hard", "any"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no stages"),
        ([{"difficulty": "easy"}], "stage 1 has no source"),
        ([{"source": "random"}, {"source": "random", "lr": 1}], "stage 2: there is no key 'lr'"),
        ([{"source": "beams"}], "unknown source 'beams'"),
        ([{"source": "feedback", "difficulty": "medium"}], "feedback negatives are easy, hard, not 'medium'"),
    ],
)
def test_bad_stages_get_one_clear_sentence(entries: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_stages(entries)
