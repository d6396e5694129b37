"""Tests which candidates and ratings `CandidateRanker` accepts: how many candidates can have a name (the token that
identifies a candidate in the answer), how many fit into the prompt, and which ratings are refused."""

import pyarrow as pa
import pytest

from tests.decoding.candidates.test_rank_candidates import counted
from trl_rec import CandidateRanker, ItemCatalog
from trl_rec.decoding import RatedPromptFormat, rated_tokens
from trl_rec.models import make_model, make_tokenizer


IDS = [f"item-{number}" for number in range(40)]


def make_ranker(*, letters: bool, max_length: int | None = 128) -> CandidateRanker:
    catalog = ItemCatalog(pa.table({"item_id": IDS, "title": IDS}), surface="item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.add_tokens(rated_tokens(catalog, [1, 3, 5], letters=letters))
    prompt_format = RatedPromptFormat.for_catalog(catalog, tokenizer, [1, 3, 5], letters=letters)
    model = make_model(tokenizer, hidden_size=16, max_length=256).eval()
    settings = {"max_length": max_length, "max_history": None, "single_pass": False}
    return CandidateRanker(model, tokenizer, catalog, prompt_format, settings)


def test_letters_limit_the_number_of_candidates_but_item_tokens_do_not() -> None:
    with pytest.raises(ValueError, match="there are 27 candidates, but only 26 letters to name them; give fewer"):
        make_ranker(letters=True).rank([], [], IDS[:27])
    assert len(make_ranker(letters=True).rank([], [], IDS[:26])) == 26
    assert {one.item_id for one in make_ranker(letters=False).rank([], [], IDS[:27])} == {*IDS[:27]}


def test_candidates_must_leave_room_for_a_rated_item() -> None:
    """With one rated item, the prompt and the answer have 15 tokens: <bos>, the item, its rating, <candidates>, five
    candidates, <answer> and five names. Without a history, they have 13."""
    ranker = make_ranker(letters=False, max_length=15)
    with counted(ranker.model) as calls:
        ranker.rank(IDS[:3], [1, 3, 5], IDS[10:15])
    assert calls == [10, 1, 1, 1]
    message = (
        "with 5 candidates and no history, the prompt and the answer take 13 tokens, so max_length {} {}; give fewer "
        "candidates"
    )
    ranker.settings["max_length"] = 14
    with pytest.raises(ValueError, match=message.format(14, "leaves too little room for a rated item")):
        ranker.rank(IDS[:3], [1, 3, 5], IDS[10:15])
    ranker.settings["max_length"] = 13
    assert len(ranker.rank([], [], IDS[10:15])) == 5
    ranker.settings["max_length"] = 12
    with pytest.raises(ValueError, match=message.format(12, "is too small")):
        ranker.rank([], [], IDS[10:15])


@pytest.mark.parametrize("rating", [float("nan"), float("inf"), None])
def test_ratings_that_are_not_finite_are_refused(rating: float | None) -> None:
    with pytest.raises(
        ValueError, match=f"the rating of 'item-1' is {rating}, which is not a finite number; leave out items"
    ):
        make_ranker(letters=False).rank(IDS[:2], [3, rating], IDS[10:12])


def test_a_rating_that_did_not_occur_in_training_is_written_as_the_nearest_known_rating() -> None:
    ranker = make_ranker(letters=False)
    found, nearest, other = (ranker.rank(IDS[:1], [rating], IDS[10:15]) for rating in (9.5, 5, 3))
    assert found == nearest != other
