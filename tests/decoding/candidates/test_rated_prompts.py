"""Tests prompts with rated histories and candidates: their texts, the names of the candidates (the tokens that
identify them in the answer), their random order, and which items are left out of long histories. Also tests the rows
of ALRO's rating stage."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trl_rec import ItemCatalog
from trl_rec.decoding import RatedPromptFormat, rated_tokens
from trl_rec.decoding.candidates.orders import draw_gold_rank, draw_slots
from trl_rec.models import make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.trainer import build_rating_rows


RATINGS = [1.0, 3.5, 5.0]
HISTORY = Ragged.from_lists([[2, 0, 1]]), Ragged.from_lists([[5.0, 1.0, 3.4]], float)


def lists(*rows: list[int]) -> Ragged:
    return Ragged.from_lists(rows)


@pytest.fixture
def catalog(titles: list[str]) -> ItemCatalog:
    return ItemCatalog(pa.table({"item_id": [str(row) for row in range(8)], "title": titles}))


def compact(catalog: ItemCatalog, letters: bool | None = None) -> tuple[RatedPromptFormat, PreTrainedTokenizerFast]:
    catalog = catalog.with_surface("item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.add_tokens(rated_tokens(catalog, RATINGS, letters=letters))
    return RatedPromptFormat.for_catalog(catalog, tokenizer, RATINGS, letters=letters), tokenizer


def test_titles_are_written_in_plain_text(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerFast) -> None:
    written = RatedPromptFormat.for_catalog(catalog, tokenizer, RATINGS)
    history = tokenizer.decode(written.encode_histories(*HISTORY)[0])
    expected = (
        "A user has rated these items, oldest first:\n"
        '"Blue Pencil": 5\n"Blue Pen, 12 Pack": 1\n"Blue Pen, 24 Pack": 3.5\n'
    )
    assert history == expected  # 3.4 is written as the nearest known rating
    shown, names = written.encode_candidates(lists([7, 3]), lists([1, 0]))
    letters = tokenizer.convert_ids_to_tokens(written.letters[:2].tolist())
    text = tokenizer.decode(shown[0])
    assert text.startswith("Candidates:\n") and text.endswith("best first:")
    assert '. "Red Pen"\n' in text and text.index("Red Pen") < text.index("Stapler")
    # The names are in the order of the candidates, not in the order of the slots (the places in the prompt).
    assert tokenizer.convert_ids_to_tokens(names[0].tolist()) == [letters[1], letters[0]]


def test_the_order_of_the_ratings_does_not_matter(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerFast) -> None:
    histories = [
        RatedPromptFormat.for_catalog(catalog, tokenizer, ratings).encode_histories(*HISTORY)[0].tolist()
        for ratings in (RATINGS, [5.0, 1.0, 3.5, 1.0])
    ]
    assert histories[0] == histories[1]


def test_a_letter_is_one_token_where_the_answer_begins(
    catalog: ItemCatalog, tokenizer: PreTrainedTokenizerFast
) -> None:
    written = RatedPromptFormat.for_catalog(catalog, tokenizer, RATINGS, prompt_tail="Best first:")
    tail = tokenizer("Best first:", add_special_tokens=False)["input_ids"]
    assert len({*written.letters.tolist()}) == 26
    for name in written.letters.tolist():
        text = tokenizer.decode([*tail, name])
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == [*tail, name]


def test_another_alphabet_is_tried_if_capital_letters_are_not_single_tokens(catalog: ItemCatalog) -> None:
    """The first vocabulary has capital letters, the second has small letters, and the third has none. Each letter has
    a space before it."""
    for letters, found in (("ABCDEFGHIJKLMNOPQRSTUVWXYZ", " A"), ("abcdefghijklmnopqrstuvwxyz", " a"), ("", None)):
        vocabulary = {
            word: row for row, word in enumerate(["<unk>", "<eos>", *(f"\u0120{letter}" for letter in letters)])
        }
        model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<eos>")
        if found is None:
            with pytest.raises(ValueError, match="does not write the letters of any alphabet as single tokens after"):
                RatedPromptFormat.for_catalog(catalog, tokenizer, RATINGS)
        else:
            names = RatedPromptFormat.for_catalog(catalog, tokenizer, RATINGS).letters
            assert names[0] == tokenizer(found, add_special_tokens=False)["input_ids"][0] == 2


def test_item_tokens_are_named_by_themselves_or_by_letters(catalog: ItemCatalog) -> None:
    written, tokenizer = compact(catalog)
    assert tokenizer.decode(written.encode_histories(*HISTORY)[0]) == (
        "<bos> <item_2> <rating_5> <item_0> <rating_1> <item_1> <rating_3.5>"
    )
    shown, names = written.encode_candidates(lists([7, 3]), lists([1, 0]))
    assert tokenizer.decode(shown[0]) == "<candidates> <item_3> <item_7> <answer>"
    assert tokenizer.decode(names[0]) == "<item_7> <item_3>"
    written, tokenizer = compact(catalog, letters=True)
    shown, names = written.encode_candidates(lists([7, 3]), lists([1, 0]))
    assert tokenizer.decode(shown[0]) == "<candidates> <A> <item_3> <B> <item_7> <answer>"
    assert tokenizer.decode(names[0]) == "<B> <A>"


@given(st.lists(st.permutations(range(5)), min_size=1, max_size=4))
def test_names_are_mapped_from_slots_back_to_candidates(orders: list[list[int]]) -> None:
    """Whatever the order of the slots, the name of a candidate is followed by this candidate in the prompt."""
    ids = [str(item) for item in range(8)]
    catalog = ItemCatalog(pa.table({"item_id": ids, "title": ids}))
    written, _ = compact(catalog, letters=True)
    candidates = [7, 3, 0, 5, 2]
    shown, names = written.encode_candidates(lists(*[candidates] * len(orders)), lists(*orders))
    for row, order in enumerate(orders):
        letters = written.letters[:5]
        assert names[row][order].tolist() == letters.tolist()  # the names of the slots, in the order of the slots
        assert names[row].tolist() == letters[np.argsort(order)].tolist()
        in_slots = np.array(candidates)[order]
        stood = {shown[row].tolist()[place]: shown[row].tolist()[place + 1] for place in range(1, 10, 2)}
        by_name = [stood[name] for name in names[row].tolist()]
        assert by_name == [int(written.candidates[item][0]) for item in candidates]
        assert in_slots[np.argsort(order)].tolist() == candidates
    identity = written.encode_candidates(lists(candidates), lists(list(range(5))))[1]
    assert identity[0].tolist() == letters.tolist()


def test_the_oldest_items_are_cut_and_each_row_has_its_own_room(catalog: ItemCatalog) -> None:
    written, tokenizer = compact(catalog)
    histories, ratings = lists([2, 0, 1], [2, 0, 1], [4]), Ragged.from_lists([[5, 1, 5], [5, 1, 5], [3.5]], float)
    told = written.encode_histories(histories, ratings, np.array([4, 5, 1]))
    assert [tokenizer.decode(told[row]) for row in range(3)] == [
        "<bos> <item_1> <rating_5>",
        "<bos> <item_0> <rating_1> <item_1> <rating_5>",
        "<bos>",
    ]


def test_bad_input_is_refused(catalog: ItemCatalog, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="cannot name users"):
        RatedPromptFormat.for_catalog(catalog, tokenizer, [1.0], prompt_head="{user}")
    with pytest.raises(ValueError, match="must contain {surface} and, after it, {rating}"):
        RatedPromptFormat.for_catalog(catalog, tokenizer, RATINGS, prompt_item="{rating}: {surface}")
    with pytest.raises(ValueError, match="lacks 5 tokens of the prompts, such as '<candidates>'"):
        RatedPromptFormat.for_catalog(
            catalog.with_surface("item_token"), make_tokenizer(catalog.with_surface("item_token")), RATINGS
        )
    with pytest.raises(ValueError, match="letters=False requires the surface 'item_token'"):
        RatedPromptFormat.for_catalog(catalog, tokenizer, RATINGS, letters=False)
    written, _ = compact(catalog)
    # Row 1 takes 12 tokens: <bos>, an item, its rating, <candidates>, three candidates, <answer>, three names and EOS.
    written.check_lengths(lists([1, 2], [3, 4, 5]), 12)
    with pytest.raises(
        ValueError, match="max_length 11 is too small: row 1 takes up to 12 tokens for its 3 candidates"
    ):
        written.check_lengths(lists([1, 2], [3, 4, 5]), 11)
    with pytest.raises(ValueError, match="too small: list 1 of the test split takes up to 12 tokens"):
        written.check_lengths(lists([1, 2], [3, 4, 5]), 11, "list {row} of the test split")


def test_orders_depend_only_on_their_key() -> None:
    first = draw_slots(5, 2, (0, 1, 2))
    assert np.array_equal(first, draw_slots(5, 2, (0, 1, 2))) and not np.array_equal(first[0], first[1])
    others = [draw_slots(5, 1, key)[0].tolist() for key in ((0, 1, 3), (0, 2, 2), (1, 1, 2))]
    assert len({tuple(order) for order in [first[0].tolist(), *others]}) == 4
    assert all(not np.array_equal(*draw_slots(2, 2, (row,))) for row in range(20))
    assert draw_slots(1, 2, (0,)).tolist() == [[0], [0]]


def test_slots_are_uniform_and_ties_are_broken_at_random() -> None:
    counts = np.zeros((3, 3), int)
    for row in range(3000):
        counts[np.arange(3), draw_slots(3, 2, (row,))[1]] += 1
    assert np.abs(counts - 1000).max() < 120
    ranks = np.array([draw_gold_rank(np.array([3.0, 5.0, 3.0, 1.0]), (row,)) for row in range(400)])
    assert (ranks[:, 1] == 0).all() and (ranks[:, 3] == 3).all()
    assert 150 < (ranks[:, 0] == 1).sum() < 250


def test_every_rating_of_a_sequence_is_learned_once(catalog: ItemCatalog) -> None:
    written, tokenizer = compact(catalog)
    items, ratings = [3, 1, 4, 1, 5, 7, 2], [5.0, 1.0, 3.5, 5.0, 5.0, 1.0, 3.5]
    table = {"user": [8], "history": [items[:1]], "targets": [items[1:]]}
    split = Dataset.from_dict(
        {**table, "history_ratings": [ratings[:1]], "target_ratings": [ratings[1:]]}, split="train"
    )
    rows = build_rating_rows(split, written, max_length=10)  # room for <bos> and four rated items
    told = [tokenizer.decode(row) for row in rows["input_ids"]]
    assert told[1] == "<bos> <item_4> <rating_3.5> <item_1> <rating_5> <item_5> <rating_5> <item_7> <rating_1>"
    learned = [[token for token in row if token != -100] for row in rows["labels"]]
    assert tokenizer.decode(sum(learned, [])) == " ".join(f"<rating_{rating:g}>" for rating in ratings)
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        assert all(label in (token, -100) for token, label in zip(ids, labels, strict=True))
    assert rows["user"] == [8] * len(rows)
    with pytest.raises(ValueError, match="at least 2 rated items, and max_length=3 leaves room for 1"):
        build_rating_rows(split, written, max_length=3)
    with pytest.raises(ValueError, match="must use only the training split, not the test split"):
        build_rating_rows(Dataset.from_dict(split.to_dict(), split="test"), written, max_length=10)
