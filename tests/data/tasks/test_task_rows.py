"""Tests the training rows of several tasks, such as `item_to_id`: their contents, lengths and shares, and that the
rows of a user contain nothing from the validation and test splits."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets

from tests.conftest import make_tokenizer as make_bpe
from tests.stand_ins import CHAT
from trl_rec import RecDataset, prepare
from trl_rec.data import (
    PromptFormat,
    build_rows,
    build_task_rows,
    item_texts,
    profiles,
    task_texts,
    user_profiles,
)
from trl_rec.data.tasks import material
from trl_rec.data.tasks.templates import TASKS, template_ids
from trl_rec.models import make_tokenizer
from trl_rec.ragged import Ragged


NUM_ITEMS, NUM_USERS, HISTORY = 60, 12, 4
ALL = dict.fromkeys(TASKS, 1.0)
OF_USERS = ("history_to_title", "titles_to_id", "query_to_item", "history_to_preference")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    made = prepare("toy", tmp_path_factory.mktemp("tasks") / "data", toy_users=NUM_USERS, toy_items=NUM_ITEMS)
    items = [[f"<a_{item % 7}>", f"<b_{item}>"] for item in range(NUM_ITEMS)]
    users = [[f"<ua_{user % 5}>", f"<ub_{user}>"] for user in range(NUM_USERS)]
    ids = (Ragged.from_lists(rows, object) for rows in (items, users))
    return replace(made, catalog=made.catalog.with_surface("semantic_id", *ids))


class Read:
    """Returns the answer and the slots of a row as token ids, and decodes token ids to a text, to items or to titles.
    Slots are the parts that are inserted into the prompt template."""

    def __init__(self, dataset: RecDataset, tokenizer: Any) -> None:
        self.catalog, self.tokenizer = dataset.catalog, tokenizer
        self.items = {surface: item for item, surface in enumerate(dataset.catalog.surfaces)}

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)

    def history(self, tokens: list[int]) -> list[int]:
        parts = self.text(tokens).replace(" ", "").replace("><a_", "> <a_").split()
        return [self.items[part] for part in parts]

    def titles(self, tokens: list[int]) -> list[str]:
        return [part.strip() for part in self.text(tokens).split('"') if part.strip()]

    def slots(self, row: dict[str, Any]) -> dict[str, list[int]]:
        return dict(zip(TASKS[row["task"]].slots, row["slots"], strict=True))

    def answer(self, row: dict[str, Any]) -> list[int]:
        return [label for label in row["labels"] if label != -100]


def build(dataset: RecDataset, tasks: dict[str, float] | None = None, **options: Any) -> tuple[Dataset, Read]:
    tokenizer = make_tokenizer(dataset.catalog, task_texts(dataset))
    prompt_format = PromptFormat.for_catalog(
        dataset.catalog, tokenizer, prompt_head=options.pop("prompt_head", "{user}")
    )
    options = {"longest_history": HISTORY, **options}
    return build_task_rows(dataset, tokenizer, prompt_format, tasks or ALL, **options), Read(dataset, tokenizer)


def worded(text: str) -> str:
    """Returns the text as a word-level tokenizer decodes it."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text))


def known(dataset: RecDataset) -> dict[int, list[int]]:
    """Returns the training items of each user, in order."""
    return {row["user"]: row["history"] + row["targets"] for row in dataset.train.to_list()}


def test_item_to_id_and_id_to_item_describe_the_same_item(dataset: RecDataset) -> None:
    rows, read = build(dataset, {"item_to_id": 1.0, "id_to_item": 1.0})
    catalog, described = dataset.catalog, item_texts(dataset.catalog)
    for row in rows:
        slots, answer = read.slots(row), read.answer(row)
        assert row["input_ids"] == row["labels"] == answer and row["user"] == -1
        item = read.history(answer if row["task"] == "item_to_id" else slots["item"])[0]
        title = worded(catalog.titles[item])
        if row["task"] == "item_to_id":
            assert [read.text(slots["title"]), read.text(slots["text"])] == [title, worded(described[item])]
        else:
            assert read.text(answer) == f"{title} <eos>"


def test_profile_to_user_and_user_to_profile_describe_the_same_user(dataset: RecDataset) -> None:
    rows, read = build(dataset, {"profile_to_user": 1.0, "user_to_profile": 1.0})
    profile = user_profiles(dataset)
    for row in rows:
        slots, answer = read.slots(row), read.answer(row)
        user_id = " ".join(dataset.catalog.user_ids[row["user"]])
        description = worded(profile[row["user"]])
        if row["task"] == "profile_to_user":
            assert (read.text(slots["profile"]), read.text(answer)) == (description, user_id)
        else:
            assert (read.text(slots["user"]), read.text(answer)) == (user_id, f"{description} <eos>")


@pytest.mark.parametrize("task", OF_USERS)
def test_histories_end_before_their_targets(dataset: RecDataset, task: str) -> None:
    rows, read = build(dataset, {task: 1.0})
    sequences, titles = known(dataset), [worded(title) for title in dataset.catalog.titles]
    genres = dataset.catalog.items["genres"].to_pylist()
    for row in rows:
        slots, answer, sequence = read.slots(row), read.answer(row), sequences[row["user"]]
        assert read.text(slots["user"]).split() == list(dataset.catalog.user_ids[row["user"]])
        if task == "titles_to_id":
            sequence, shown = [titles[item] for item in sequence], read.titles(slots["titles"])
        else:
            shown = read.history(slots["history"])
        end = next(end for end in range(1, len(sequence)) if sequence[max(0, end - HISTORY) : end] == shown)
        target = sequences[row["user"]][end]
        counts = Counter(
            genre for item in sequences[row["user"]][max(0, end - HISTORY) : end] for genre in genres[item]
        )
        likes = worded(", ".join(sorted(counts, key=lambda genre: (-counts[genre], genre))[:3]))
        if task in ("titles_to_id", "query_to_item"):
            assert read.history(answer) == [target]
        else:
            assert read.text(answer) == f"{likes if task == 'history_to_preference' else titles[target]} <eos>"
        if task == "query_to_item":
            asked = worded(", ".join(sorted(genres[target])[:2]))
            assert [read.text(slots["preference"]), read.text(slots["query"])] == [likes, asked]


def test_next_item_rows_equal_those_of_build_rows(dataset: RecDataset) -> None:
    rows, read = build(dataset, targets="all", max_length=60)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, read.tokenizer, prompt_head="{user}")
    plain = build_rows(dataset.train, prompt_format, targets="all", max_length=60)
    mine = rows.filter(lambda task: task == "next_item", input_columns="task")
    for name in ("input_ids", "labels", "user"):
        assert mine[name] == plain[name]
    assert all(slots == [] for slots in mine["slots"])


def test_each_task_has_its_share_of_rows(dataset: RecDataset) -> None:
    tasks = {"next_item": 0.5, "item_to_id": 2.0, "history_to_title": 0.25, "user_to_profile": 0.1}
    rows, read = build(dataset, tasks)
    of_next = len(split_targets(dataset))
    counts = Counter(rows["task"])
    assert [counts[name] for name in tasks] == [round(weight * of_next) for weight in tasks.values()]
    assert rows["row"] == list(range(len(rows)))
    items = Counter(read.history(read.answer(row))[0] for row in rows if row["task"] == "item_to_id")
    # Items are drawn as evenly as possible.
    assert len(items) == NUM_ITEMS and max(items.values()) - min(items.values()) == 1
    capped = Counter(build(dataset, tasks, cap=7)[0]["task"])
    assert [capped[name] for name in tasks] == [counts["next_item"], 7, 7, 7]
    assert Counter(build(dataset, dict.fromkeys(TASKS, 1e-6))[0]["task"]) == dict.fromkeys(TASKS, 1)
    again, other = (build(dataset, tasks, seed=seed)[0] for seed in (0, 1))
    assert again[:] == rows[:] and other["slots"] != rows["slots"]


def split_targets(dataset: RecDataset) -> list[int]:
    return [item for row in dataset.train["targets"] for item in row]


@pytest.mark.parametrize("surface", ["semantic_id", "item_token"])
@pytest.mark.parametrize("chat_template", [False, True])
def test_rows_fit_max_length_with_every_template(dataset: RecDataset, surface: str, chat_template: bool) -> None:
    """A byte-level tokenizer is used, because it makes texts long. If a row is too long, its history loses the oldest
    items and its texts lose their ends. Answers are never shortened."""
    plots = dataset.catalog.items.append_column("plot", pa.array(["and then " * 30] * NUM_ITEMS))
    dataset = replace(dataset, catalog=replace(dataset.catalog.with_surface(surface), items=plots))
    tokenizer = make_bpe(["plain"], vocab_size=270)
    tokenizer.chat_template = CHAT
    tokenizer.add_tokens(dataset.catalog.new_tokens)
    prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer, prompt_head="{user}")
    templates = template_ids(tokenizer, surface, chat_template=chat_template)
    options: dict[str, Any] = {"longest_history": 30, "chat_template": chat_template}
    whole, cut = (
        build_task_rows(dataset, tokenizer, prompt_format, ALL, max_length=length, **options) for length in (None, 200)
    )
    lengths, shorter = set(), set()
    for row, other in zip(cut, whole, strict=True):
        assert row["task"] == other["task"] and (row["task"] == "next_item" or row["labels"] == other["labels"])
        for template in templates[row["task"]]:
            lengths.add(len(template.fill(row["slots"])) + len(row["input_ids"]))
        for name, short, long in zip(TASKS[row["task"]].slots, row["slots"], other["slots"], strict=True):
            shorter |= {name} if short != long else set()
            if name in ("history", "titles"):
                assert long[len(long) - len(short) :] == short and short
            else:
                assert long[: len(short)] == short
    assert 150 < max(lengths) <= 200 and shorter >= {"titles", "text"}
    if chat_template:
        prompt = tokenizer.decode(templates["user_to_profile"][0].fill([[]]))
        assert prompt == "<bos>user\nDescribe user .\n<eos>\n<bos>assistant\n"
    with pytest.raises(ValueError, match="max_length|room for"):
        build_task_rows(dataset, tokenizer, prompt_format, {"titles_to_id": 1.0}, max_length=80, **options)


def test_templates_use_the_slots_of_their_task() -> None:
    for name, task in TASKS.items():
        assert name == "next_item" or 3 <= len(task.templates) <= 5
        for template in task.templates:
            for slot in ("user", "history", "titles", "item", "profile"):
                assert template.count(f"{{{slot}}}") == (slot in task.slots), (name, template)
            # item_to_id has two texts. Each may use all the room that `max_length` leaves, because a template contains
            # only one of them.
            assert name != "item_to_id" or template.count("{title}") + template.count("{text}") == 1


def test_tasks_name_users_only_if_the_prompts_of_next_item_do(dataset: RecDataset) -> None:
    rows, read = build(dataset, dict.fromkeys(OF_USERS, 1.0), prompt_head="")
    assert all(read.slots(row)["user"] == [] for row in rows)
    nobody = replace(dataset, catalog=replace(dataset.catalog, user_ids=None))
    assert len(build(nobody, dict.fromkeys(OF_USERS, 1.0), prompt_head="")[0]) == len(rows)
    with pytest.raises(ValueError, match="the catalogue has no semantic IDs for users"):
        build(nobody, {"profile_to_user": 1.0}, prompt_head="")


def test_senseless_tasks_are_refused(dataset: RecDataset) -> None:
    with pytest.raises(ValueError, match="there is no task 'colour'; the tasks are next_item, item_to_id"):
        build(dataset, {"colour": 1.0})
    titles, tokenizer = (
        replace(dataset, catalog=dataset.catalog.with_surface("title")),
        make_bpe(["a b"], vocab_size=300),
    )
    tokenizer.add_tokens(titles.catalog.new_tokens)
    prompt_format = PromptFormat.for_catalog(titles.catalog, tokenizer)
    with pytest.raises(ValueError, match="the task titles_to_id does not work with the surface 'title'"):
        build_task_rows(titles, tokenizer, prompt_format, {"titles_to_id": 1.0})
    items = dataset.catalog.items.select(["item_id", "title"])
    short = items.set_column(1, "title", pa.array(["a b"] * len(items)))
    untold = replace(dataset, catalog=replace(dataset.catalog, items=short, group_column=None))
    with pytest.raises(ValueError, match="the task query_to_item has no rows, because the items have no groups"):
        build(untold, {"query_to_item": 1.0})
    rows = build_task_rows(titles, tokenizer, prompt_format, {"query_to_item": 1.0})
    assert rows["labels"][0][-1] == tokenizer.eos_token_id


# No row of a user may contain an item from the validation or test split.


def held_out(dataset: RecDataset) -> RecDataset:
    """Returns the dataset with the targets of validation and test replaced by new items, which no user chose in
    training.

    Every item has a genre of its own. A text about several items contains only a few of their genres: the most
    frequent ones and, among equally frequent genres, the first in alphabetical order. In this order, the genres of the
    new items come first, so that a leaked item can be recognised by its genre.
    """
    catalog, count = dataset.catalog, len(dataset.catalog)
    names = [f"Secret{split}{user}" for split in ("validation", "test") for user in range(NUM_USERS)]
    columns = {
        "item_id": [*catalog.ids, *names],
        "title": [*catalog.titles, *names],
        "genres": [[f"Kind{item}"] for item in range(count)] + [[f"A{name}"] for name in names],
    }
    ids = [list(catalog.semantic_ids[item]) for item in range(count)]
    ids += [[f"<a_{number % 7}>", f"<b_{count + number}>"] for number in range(len(names))]
    changed = replace(catalog, items=pa.table(columns), semantic_ids=Ragged.from_lists(ids, object))
    validation, test = dataset.validation.to_list(), dataset.test.to_list()
    for row in validation:
        row["targets"] = [count + row["user"]]
    for row in test:
        row["history"], row["targets"] = [*row["history"][:-1], count + row["user"]], [count + NUM_USERS + row["user"]]
    splits = {"validation": validation, "test": test}
    made = {name: Dataset.from_list(rows, features=dataset.test.features, split=name) for name, rows in splits.items()}
    return replace(dataset, catalog=changed, **made)


def tasks_with_secrets(dataset: RecDataset, rows: Dataset, read: Read) -> set[str]:
    """Returns the tasks that have rows with a held-out item. Rows without a user are skipped, because they may
    describe any item of the catalogue."""
    found = set()
    for row in rows:
        everything = " ".join(read.text(tokens) for tokens in [*row["slots"], row["input_ids"]])
        held = any(f"<b_{item}>" in everything for item in range(NUM_ITEMS, len(dataset.catalog)))
        if row["user"] >= 0 and (held or "Secret" in everything):
            found.add(row["task"])
    return found


def test_no_task_contains_validation_or_test_items(dataset: RecDataset) -> None:
    dataset = held_out(dataset)
    assert tasks_with_secrets(dataset, *build(dataset)) == set()
    planted = []
    for row, later in zip(dataset.train.to_list(), dataset.validation.to_list(), strict=True):
        assert row["user"] == later["user"]
        planted.append({**row, "targets": [*row["targets"], *later["targets"], row["targets"][0]]})
    train = Dataset.from_list(planted, features=dataset.train.features, split="train")
    leaking = tasks_with_secrets(dataset, *build(replace(dataset, train=train)))
    # The planted items are found in every task whose rows have a user, so the first assertion would notice a leak in
    # each of these tasks.
    assert leaking == set(TASKS) - {"item_to_id", "id_to_item"}


@pytest.mark.parametrize("name", list(TASKS))
def test_each_task_refuses_other_splits(dataset: RecDataset, name: str) -> None:
    for rows in (dataset.validation, dataset.test, concatenate_datasets([dataset.train, dataset.test])):
        with pytest.raises(ValueError, match="must use only the training split"):
            tokenizer = make_tokenizer(dataset.catalog)
            prompt_format = PromptFormat.for_catalog(dataset.catalog, tokenizer)
            build_task_rows(replace(dataset, train=rows), tokenizer, prompt_format, {name: 1.0})
    with pytest.raises(ValueError, match="profiles must use only the training split"):
        task_texts(replace(dataset, train=dataset.test))


@pytest.mark.parametrize("leak", ["preference", "profile", "history"])
def test_the_leak_tests_notice_a_leak(dataset: RecDataset, monkeypatch: pytest.MonkeyPatch, leak: str) -> None:
    """`tasks_with_secrets` finds rows that were made from the validation split or the test split."""
    dataset = held_out(dataset)
    if leak == "profile":
        usual = profiles._chosen_items
        monkeypatch.setattr(profiles, "_chosen_items", lambda given: usual(with_train(given, given.validation)))
    elif leak == "preference":
        monkeypatch.setattr(material, "preference_texts", beyond(dataset, material.preference_texts))
    else:
        monkeypatch.setattr(material, "_prefixes", later(dataset, material._prefixes))
    tasks = {
        "profile": {"profile_to_user", "user_to_profile"},
        "preference": {"query_to_item", "history_to_preference"},
        "history": set(OF_USERS),
    }
    assert tasks_with_secrets(dataset, *build(dataset)) >= tasks[leak]


def with_train(dataset: RecDataset, rows: Dataset) -> RecDataset:
    return replace(dataset, train=Dataset(rows.data.table, split="train"))


def beyond(dataset: RecDataset, usual: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Returns a replacement for `preference_texts` that describes the test target of user 0 instead of the
    histories."""
    secret = dataset.test["targets"][0]

    def texts(histories: Ragged, *arguments: Any, **options: Any) -> list[str]:
        return usual(Ragged.from_lists([secret for _ in range(len(histories))]), *arguments, **options)

    return texts


def later(dataset: RecDataset, usual: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a replacement for `_prefixes` that takes the targets, and the items before them, from the test split
    instead of the training split."""

    def prefixes(train: Dataset, numbers: np.ndarray, most: int) -> Any:
        return usual(dataset.test, numbers % len(split_targets_of(dataset.test)), most)

    return prefixes


def split_targets_of(split: Dataset) -> list[int]:
    return [item for row in split["targets"] for item in row]


def test_a_title_that_looks_like_a_token_is_text(dataset: RecDataset) -> None:
    """If a title contains the text of EOS or of an item's token, this text is not encoded as that token. The other
    words of the title are kept."""
    titles = ["Bad <eos> title", "Odd <a_1> one", *dataset.catalog.titles[2:]]
    items = dataset.catalog.items.set_column(1, "title", pa.array(titles))
    named = replace(dataset, catalog=replace(dataset.catalog, items=items))
    tokenizer = make_tokenizer(named.catalog, task_texts(named))
    words = material.TokenTables(named, tokenizer, PromptFormat.for_catalog(named.catalog, tokenizer), 5)
    for item, (mark, before) in enumerate([("<eos>", "Bad"), ("<a_1>", "Odd")]):
        tokens = tokenizer.convert_ids_to_tokens(words.titles[item].tolist())
        assert mark not in tokens and before in tokens
