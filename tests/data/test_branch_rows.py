"""Tests training rows in which the targets of a user share a trunk (the head of the prompt and the history), and each
target has a branch. The texts of the branches must equal those of rows with one target each."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.test_rows import FORMATS, NUM_ITEMS, make_format, make_split, rows_of_items
from trl_rec.data import PromptFormat, build_rows
from trl_rec.data.branches.joining import join_windows
from trl_rec.data.branches.structure import Branches
from trl_rec.items import TokenTrie
from trl_rec.ragged import Ragged


FORMATS_WITH_BRANCHES = {
    "title": FORMATS["title"],
    "separated": FORMATS["separated"],
    "no tail": make_format("title", prompt_head="Had:\n", prompt_tail=""),
    "no head": make_format("title", prompt_head="", prompt_tail="Next:"),
    "item_token": make_format("item_token", prompt_item="{surface}, ", prompt_tail=""),
    "semantic_id": make_format("semantic_id", prompt_item="{surface}\n", prompt_tail="Next:"),
}
formats = st.sampled_from(sorted(FORMATS_WITH_BRANCHES))
Text = tuple[int, list[int], list[int]]  # the user, the tokens before the predicted tokens, the predicted tokens


def texts_of(row: dict[str, Any]) -> list[Text]:
    """Returns the text of each branch of a row, read column by column: the user, the tokens before the first predicted
    token, and the predicted tokens. A row without branches has one text."""
    tokens = row["input_ids"]
    trunk = len(tokens) - sum(row["branch_lengths"])
    labels = [*row["labels"][1:], -100]
    found = []
    start = trunk
    for prefix, length in zip(row["branch_prefixes"], row["branch_lengths"], strict=True):
        columns = [*range(prefix), *range(start, start + length)]
        learned = [(place, labels[column]) for place, column in enumerate(columns) if labels[column] != -100]
        # The trunk is the part of the row before the branches. A branch continues a prefix of the trunk: the head of
        # the prompt and the items before the target of this branch. If prompts have no tail, the last column of the
        # prefix predicts the first token of this branch. The other columns of the prefix predict tokens of other
        # branches, or none.
        learned = [(place, label) for place, label in learned if place >= prefix - 1]
        places, path = zip(*learned, strict=True)
        assert list(places) == list(range(places[0], places[0] + len(places)))
        before = [tokens[column] for column in columns[: places[0] + 1]]
        read = [tokens[column] for column in columns[places[0] + 1 :]]
        assert read[: len(path) - 1] == list(path)[:-1]  # each predicted token but the last is read next
        found.append((row["user"], before, list(path)))
        start += length
    return found or [ordinary(row)]


def ordinary(row: dict[str, Any]) -> Text:
    first = next(place for place, label in enumerate(row["labels"]) if label != -100)
    return row["user"], row["input_ids"][:first], row["input_ids"][first:]


def in_order(texts: list[Text]) -> list[Text]:
    return sorted(texts, key=lambda text: text[0])


def all_texts(rows: Any) -> list[Text]:
    return [text for row in rows for text in texts_of(row)]


@settings(max_examples=10)
@given(rows_of_items, formats, st.sampled_from([None, 1, 60, 100]))
def test_rows_contain_the_texts_of_one_row_per_target(rows: list, name: str, max_row_tokens: int | None) -> None:
    rows = [([0], targets) if not history else (history, targets) for history, targets in rows]
    prompt_format = FORMATS_WITH_BRANCHES[name]
    split = make_split(rows)
    one_by_one = [ordinary(row) for row in build_rows(split, prompt_format)]
    built = build_rows(split, prompt_format, targets="all", max_row_tokens=max_row_tokens)
    assert all_texts(built) == one_by_one
    num_users = sum(bool(targets) for _, targets in rows)
    assert len(built) == num_users if max_row_tokens is None else num_users <= len(built) <= len(one_by_one)
    for row in built:
        fits = max_row_tokens is None or len(row["input_ids"]) <= max_row_tokens
        assert fits or len(row["branch_lengths"]) == 1


@settings(max_examples=10)
@given(rows_of_items, formats, st.sampled_from([None, 60, 90]), st.sampled_from([None, 1, 3, 4]))
def test_histories_that_exceed_a_limit_are_shortened(
    rows: list, name: str, max_length: int | None, max_history: int | None
) -> None:
    """A target keeps its whole history if the history fits. Otherwise, `long_histories="windows"` keeps a part of the
    history, and `long_histories="rows"` keeps the longest part that fits."""
    rows = [([0], targets) if not history else (history, targets) for history, targets in rows]
    prompt_format = FORMATS_WITH_BRANCHES[name]
    limits = {"max_length": max_length, "max_history": max_history}
    split = make_split(rows)
    whole = [ordinary(row) for row in build_rows(split, prompt_format)]
    longest = [ordinary(row) for row in build_rows(split, prompt_format, **limits)]
    exact = all_texts(build_rows(split, prompt_format, targets="all", long_histories="rows", **limits))
    assert in_order(exact) == longest

    windows = all_texts(build_rows(split, prompt_format, targets="all", **limits))
    assert [(user, path) for user, _, path in windows] == [(user, path) for user, _, path in whole]
    room = prompt_format.room(max_length)
    head = len(prompt_format.prompt_head)
    tail = len(prompt_format.prompt_tail)
    for (_, seen, _), (_, fits, _), (_, everything, _) in zip(windows, longest, whole, strict=True):
        assert seen == fits if fits == everything else len(seen) <= len(fits)
        history = seen[head : len(seen) - tail]
        assert fits[len(fits) - len(history) - tail :] == [*history, *prompt_format.prompt_tail]
        if fits != everything:
            # `room` counts a separator for each item, even for the first one, which is written without a separator.
            separated = len(history) + len(prompt_format.separator)
            enough_tokens = room is not None and 2 * separated >= room
            enough_items = max_history is not None and 2 * count_items(prompt_format, history) >= max_history
            assert enough_tokens or enough_items


def count_items(prompt_format: PromptFormat, history: list[int]) -> int:
    """Returns the number of items in a history. In the formats of these tests, the tokens of an item never begin with
    the tokens of another item, so only one item can come next."""
    pieces = {tuple(prompt_format.pieces[item].tolist()) for item in range(NUM_ITEMS)}
    separator = len(prompt_format.separator)
    count = 0
    while history:
        piece = next(piece for piece in pieces if tuple(history[: len(piece)]) == piece)
        history = history[len(piece) + separator :]
        count += 1
    return count


@pytest.mark.parametrize("surface", ["item_token", "semantic_id"])
def test_compact_formats_obey_the_same_limits(surface: str) -> None:
    """In a compact format, items have the same tokens in histories and completions, and prompts end with the history.
    Rows then need no branches: each target of a row is part of the history of the later targets."""
    split = make_split([([0], [1, 2, 3, 4, 5, 6, 7]), ([3], [4])])
    built = build_rows(split, FORMATS[surface], targets="all", max_history=3, long_histories="rows")
    exact = build_rows(split, FORMATS[surface], max_history=3)
    learned = [label for row in exact for label in row["labels"] if label != -100]
    assert [label for row in built for label in row["labels"] if label != -100] == learned
    assert [len(row) for row in built["input_ids"][1:]] == [len(row) for row in exact["input_ids"][3:]]
    windows = build_rows(split, FORMATS[surface], targets="all", max_history=3)
    width = 1 + 4 * len(FORMATS[surface].paths[0])
    assert max(map(len, windows["input_ids"])) == width

    # A sequence that is too long for one row is cut into windows, here of 4 items. A window that lies entirely in the
    # history has no targets, so it does not become a row.
    long = build_rows(make_split([([*range(7), 0, 1, 2], [4])]), FORMATS[surface], targets="all", max_history=3)
    assert len(long) == 1 and max(long["labels"][0]) > 0


@settings(max_examples=10)
@given(rows_of_items, formats)
def test_branches_end_at_their_last_token_that_is_not_forced(rows: list, name: str) -> None:
    prompt_format = FORMATS_WITH_BRANCHES[name]
    rows = [([0], targets) if not history else (history, targets) for history, targets in rows]
    paths = [prompt_format.paths[item].tolist() for item in range(NUM_ITEMS)]
    trie = TokenTrie.from_sequences(paths)
    expected = []
    for user, before, path in [ordinary(row) for row in build_rows(make_split(rows), prompt_format)]:
        prefixes = [path[:length] for length in range(len(path))]
        branching = [len({one[len(p)] for one in paths if one[: len(p)] == p}) > 1 for p in prefixes]
        expected.append((user, before, path[: max(place + 1 for place, free in enumerate(branching) if free)]))
    assert all_texts(build_rows(make_split(rows), prompt_format, targets="all", trie=trie)) == expected


def test_a_small_row_by_hand() -> None:
    """The row has a trunk of 5 columns, and branches of 2 and 3 columns. The second branch continues the whole
    trunk."""
    branches = Branches(np.array([10]), Ragged.from_lists([[3, 5]]), Ragged.from_lists([[2, 3]]))
    seen, starts = branches.columns()
    assert seen.tolist() == [1, 2, 3, 4, 5, 3, 3, 5, 5, 5]
    assert starts.tolist() == [1, 2, 3, 4, 5, 5, 5, 7, 7, 7]
    assert (seen + np.arange(10) - starts).tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7]
    assert branches.of_labels().tolist() == [-1, -1, -1, 0, -1, 1, 0, 0, 1, 1]


def test_unforced_lengths_end_at_the_last_choice() -> None:
    trie = TokenTrie.from_sequences([[4, 5, 6], [4, 5, 7], [8, 9]])
    paths = torch.tensor([[4, 5, 6], [4, 5, 7], [8, 9, -1]])
    assert trie.unforced_lengths(paths).tolist() == [3, 3, 1]
    assert TokenTrie.from_sequences([[4, 5]]).unforced_lengths(torch.tensor([[4, 5]])).tolist() == [0]


def test_windows_of_a_user_are_joined_where_they_overlap() -> None:
    history = Ragged.from_lists([[1, 2], [2, 3], [3, 4], [7, 8], [8, 9], [1, 2]])
    target = Ragged.from_lists([[3], [4], [5], [9], [1, 2], [3]])
    users = np.array([0, 0, 0, 0, 0, 1])
    before, targets, owners = join_windows(history, target, users)
    assert [row.tolist() for row in (before[0], before[1], before[2], before[3])] == [[1, 2], [7, 8], [8, 9], [1, 2]]
    assert [targets[row].tolist() for row in range(4)] == [[3, 4, 5], [9], [1, 2], [3]]
    assert owners.tolist() == [0, 0, 0, 1]
    split = make_split([([1, 2], [3]), ([2, 3], [4])])
    split = split.remove_columns("user").add_column("user", np.zeros(2, np.int32))
    joined = build_rows(split, FORMATS["title"], targets="all", join_windows=True)
    assert [len(row) for row in joined["branch_lengths"]] == [2]
    assert len(build_rows(split, FORMATS["title"], targets="all")) == 2


def test_lists_of_titles_have_no_branches() -> None:
    prompt_format = make_format("title", list_length=2)
    with pytest.raises(
        ValueError, match="targets='all' with list_length requires the surface item_token or semantic_id"
    ):
        build_rows(make_split([([0], [1])]), prompt_format, targets="all")
    with pytest.raises(ValueError, match="long_histories must be 'windows' or 'rows', not 'none'"):
        build_rows(make_split([([0], [1])]), FORMATS["title"], targets="all", long_histories="none")
