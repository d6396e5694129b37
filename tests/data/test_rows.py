"""Compares the rows for next-item training, and their prompts, with those that a slow loop makes."""

from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from tests.conftest import make_tokenizer
from trl_rec.data import PromptFormat, build_rows
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged


NUM_ITEMS = 12


def make_format(surface: str, **options: Any) -> PromptFormat:
    titles = [f"Pen {'xyz' * (index % 5)} {index}" for index in range(NUM_ITEMS)]
    tokenizer = make_tokenizer(titles, vocab_size=290)  # words have different numbers of tokens
    table = pa.table({"item_id": [str(index) for index in range(NUM_ITEMS)], "title": titles})
    ids = Ragged.from_lists([[f"<a_{index % 4}>", f"<b_{index}>"] for index in range(NUM_ITEMS)], object)
    catalog = ItemCatalog(table, surface=surface, semantic_ids=ids)
    tokenizer.add_tokens(catalog.new_tokens)
    return PromptFormat.for_catalog(catalog, tokenizer, **options)


FORMATS = {surface: make_format(surface) for surface in ("item_token", "semantic_id")}
FORMATS["title"] = make_format("title", prompt_head="Had:\n", prompt_tail="Next:\n")
FORMATS["separated"] = make_format("title", prompt_head="Had: ", prompt_item="{surface}", prompt_separator=", then ")
rows_of_items = st.lists(
    st.tuples(
        st.lists(st.integers(0, NUM_ITEMS - 1), max_size=3), st.lists(st.integers(0, NUM_ITEMS - 1), max_size=9)
    ),
    min_size=1,
    max_size=4,
).filter(lambda rows: any(targets for _, targets in rows))


def make_split(rows: list[tuple[list[int], list[int]]], split: str = "train") -> Dataset:
    columns = {
        "user": pa.array(range(len(rows)), pa.int32()),
        "history": pa.array([row[0] for row in rows], pa.list_(pa.int32())),
        "targets": pa.array([row[1] for row in rows], pa.list_(pa.int32())),
    }
    return Dataset(pa.table(columns), split=split)


def written(prompt_format: PromptFormat, items: list[int]) -> list[int]:
    """Returns the tokens of a history."""
    tokens: list[int] = []
    for place, item in enumerate(items):
        tokens += prompt_format.separator.tolist() if place else []
        tokens += prompt_format.pieces[item].tolist()
    return tokens


@given(rows_of_items, st.sampled_from(sorted(FORMATS)), st.sampled_from([None, 60, 90]), st.sampled_from([None, 1, 3]))
def test_each_target_has_a_row_with_its_history(
    rows: list, surface: str, max_length: int | None, max_history: int | None
) -> None:
    prompt_format, expected = FORMATS[surface], []
    longest = int(prompt_format.paths.lengths.max())
    for user, (history, targets) in enumerate(rows):
        for place, target in enumerate(targets):
            items = history + targets[:place]
            items = items[len(items) - max_history :] if max_history and len(items) > max_history else items
            fixed = len(prompt_format.prompt_head) + len(prompt_format.prompt_tail) + longest
            while max_length and fixed + len(written(prompt_format, items)) > max_length:
                items = items[1:]
            had = written(prompt_format, items)
            prompt = [*prompt_format.prompt_head, *had, *prompt_format.prompt_tail]
            path = prompt_format.paths[target].tolist()
            expected.append((user, prompt + path, [-100] * len(prompt) + path))
    built = build_rows(make_split(rows), prompt_format, targets="last", max_length=max_length, max_history=max_history)
    assert list(zip(built["user"], built["input_ids"], built["labels"], strict=True)) == expected
    assert max_length is None or max(map(len, built["input_ids"])) <= max_length


@given(rows_of_items, st.sampled_from(["item_token", "semantic_id"]), st.sampled_from([None, 5, 8, 60]))
def test_each_target_is_trained_once_after_everything_before_it(
    rows: list, surface: str, max_length: int | None
) -> None:
    prompt_format = FORMATS[surface]
    built = build_rows(make_split(rows), prompt_format, targets="all", max_length=max_length)
    learned: dict[int, list[int]] = {user: [] for user in range(len(rows))}
    head = len(prompt_format.prompt_head)
    for user, tokens, labels in zip(built["user"], built["input_ids"], built["labels"], strict=True):
        assert max_length is None or len(tokens) <= max_length
        assert tokens[:head] == prompt_format.prompt_head.tolist()
        whole = [token for item in sum(rows[user], []) for token in prompt_format.paths[item].tolist()]
        body = tokens[head:]
        assert any(whole[start : start + len(body)] == body for start in range(len(whole) - len(body) + 1))
        assert all(label in (-100, token) for token, label in zip(tokens, labels, strict=True))
        learned[user] += [label for label in labels if label != -100]
    for user, (_, targets) in enumerate(rows):
        assert learned[user] == [token for item in targets for token in prompt_format.paths[item].tolist()]


def test_the_rows_of_a_long_sequence_overlap_by_half() -> None:
    """A row has room for 4 items. The first row has the targets 1 to 3. Each later row repeats two items, and then has
    at most two new targets."""
    built = build_rows(make_split([([0], [1, 2, 3, 4, 5, 6])]), FORMATS["item_token"], targets="all", max_length=5)
    paths = FORMATS["item_token"].paths
    items = {int(paths[item][0]): item for item in range(NUM_ITEMS)}
    assert [[items[token] for token in row[1:]] for row in built["input_ids"]] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6],
    ]
    assert [[items.get(label) for label in row[1:]] for row in built["labels"]] == [
        [None, 1, 2, 3],
        [None, None, 4, 5],
        [None, None, 6],
    ]


def test_the_default_prompt_for_titles(titles, tokenizer) -> None:
    table = pa.table({"item_id": [str(index) for index in range(len(titles))], "title": titles})
    prompt_format = PromptFormat.for_catalog(ItemCatalog(table), tokenizer)
    prompt = prompt_format.encode(Ragged.from_lists([[3, 0]]))[0]
    assert tokenizer.decode(prompt) == (
        'A user has chosen these items, oldest first:\n"Red Pen"\n"Blue Pen, 12 Pack"\n'
        "The item that the user chooses next:\n"
    )


def test_a_prompt_begins_with_bos_if_the_tokenizer_adds_it(titles, tokenizer_copy) -> None:
    processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer_copy.bos_token_id)])
    tokenizer_copy._tokenizer.post_processor = processor
    table = pa.table({"item_id": [str(index) for index in range(len(titles))], "title": titles})
    prompt_format = PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy)
    assert prompt_format.prompt_head[0] == tokenizer_copy.bos_token_id
    assert tokenizer_copy.bos_token_id not in prompt_format.pieces.values


def test_a_title_cannot_contain_a_control_token(tokenizer) -> None:
    catalog = ItemCatalog(pa.table({"item_id": ["0", "1"], "title": ["A", 'A"<eos>x']}))
    prompt_format = PromptFormat.for_catalog(catalog, tokenizer)
    assert tokenizer.eos_token_id not in prompt_format.pieces.values
    assert (prompt_format.paths.values == tokenizer.eos_token_id).sum() == 2


def test_a_chat_template_wraps_the_prompt(titles, tokenizer_copy) -> None:
    tokenizer_copy.chat_template = (
        "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}<eos>{% endfor %}assistant:"
    )
    table = pa.table({"item_id": [str(index) for index in range(len(titles))], "title": titles})
    options = {"prompt_head": "H ", "prompt_item": "{surface};", "chat_template": True}
    prompt_format = PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy, **options)
    text = tokenizer_copy.decode(prompt_format.encode(Ragged.from_lists([[3]]))[0])
    assert text == '<bos>user: H "Red Pen";The item that the user chooses next:\n<eos>assistant:'


def test_compact_prompts_begin_with_a_token_even_without_history() -> None:
    """A compact prompt has no text between or after the items and, by default, none before them. Without BOS or EOS,
    it would be empty for an empty history."""
    prompt_format = FORMATS["item_token"]
    assert prompt_format.is_compact and not FORMATS["title"].is_compact
    assert len(prompt_format.encode(Ragged.from_lists([[]]))[0]) == 1


def test_bad_input_is_refused(titles, tokenizer_copy) -> None:
    split = make_split([([0], [1, 2])])
    for name in ("validation", "test"):
        with pytest.raises(ValueError, match=f"models must use only the training split, not the {name} split"):
            build_rows(make_split([([0], [1])], name), FORMATS["item_token"])
    with pytest.raises(ValueError, match="targets must be 'last' or 'all'"):
        build_rows(split, FORMATS["title"], targets="some")
    with pytest.raises(ValueError, match="max_length 5 is too small"):
        build_rows(split, FORMATS["title"], max_length=5)
    with pytest.raises(ValueError, match="contains no targets"):
        build_rows(make_split([([0], [])]), FORMATS["title"])
    table = pa.table({"item_id": ["0"], "title": ["Pen"]})
    with pytest.raises(ValueError, match="must contain {surface}"):
        PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy, prompt_item="{title}")
    with pytest.raises(ValueError, match="has no chat template"):
        PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy, chat_template=True)
    for template, count in (("nothing", 0), ("{{ messages[0]['content'] }}" * 2, 2)):
        tokenizer_copy.chat_template = template
        with pytest.raises(ValueError, match=f"exactly once, but contains it {count} times"):
            PromptFormat.for_catalog(ItemCatalog(table), tokenizer_copy, chat_template=True)
    tokenizer_copy.add_tokens(["<item_0>"])
    tokenizer_copy.bos_token = tokenizer_copy.eos_token = None
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        PromptFormat.for_catalog(ItemCatalog(table, surface="item_token"), tokenizer_copy)


def test_rows_of_several_splits_are_refused_without_a_split_name() -> None:
    train, test = make_split([([0], [1, 2])]), make_split([([0, 1, 2, 3], [4])], "test")
    with pytest.raises(ValueError, match="several splits .one row of user 0 continues another row of this user"):
        build_rows(concatenate_datasets([train, test]), FORMATS["item_token"])
    with pytest.raises(ValueError, match="must use only the training split, not the test"):
        build_rows(make_split([([0], [1])], "test[:50%]"), FORMATS["item_token"])
