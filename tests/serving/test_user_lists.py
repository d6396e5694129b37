"""Tests files with one list per user: the lists equal those of `recommend_batch`, even after an interruption or with
two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.processes import run_in_two
from tests.serving.list_runs import write_all
from trl_rec import ItemFilter, RecDataset, Recommender, TransitionPrior, prepare
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.models import make_model, make_tokenizer
from trl_rec.scripts import recommend
from trl_rec.scripts.options.recipe_files import find_recipe
from trl_rec.serving import UserHistories, write_lists
from trl_rec.serving.user_lists import PART_SIZE


NUM_USERS = 30


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecDataset:
    folder = tmp_path_factory.mktemp("lists") / "data"
    return prepare("toy", folder, toy_users=NUM_USERS, toy_items=50).with_surface("item_token")


@pytest.fixture(scope="module")
def run(dataset: RecDataset) -> Path:
    """A run folder with a prior and a model with random weights."""
    folder = dataset.path.parent / "run"
    tokenizer = make_tokenizer(dataset.catalog)
    tokenizer.save_pretrained(folder)
    model = make_model(tokenizer, hidden_size=16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(10 if weight.ndim > 1 else 1)  # so that no two scores differ only by rounding
    model.save_pretrained(folder)
    settings = {"max_length": 32, "renormalize": True, "length_penalty": 0.0, "num_beams": 10}
    save_recommender(folder, dataset.catalog, {"prompt": {}, **settings})
    save_run_prior(folder, TransitionPrior.fit(dataset.train, len(dataset.catalog)))
    return folder


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return Recommender.from_pretrained(run, device="cpu")


def lists_of(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Returns the lists in a file, and asserts that ranks begin with 1 and ascend."""
    lists: dict[str, list[tuple[str, float]]] = {}
    for row in pq.read_table(path).to_pylist():
        lists.setdefault(row["user_id"], []).append((row["item_id"], row["score"]))
        assert row["rank"] == len(lists[row["user_id"]])
    return lists


def assert_same(ours: dict, expected: dict) -> None:
    assert list(ours) == list(expected)
    for user, ranks in expected.items():
        assert [item for item, _ in ours[user]] == [item for item, _ in ranks]
        assert [score for _, score in ours[user]] == pytest.approx([score for _, score in ranks], abs=1e-5)


def expected_lists(recommender: Recommender, dataset: RecDataset, k: int, **options) -> dict:
    users = dataset.users["user_id"].to_pylist()
    lists = recommender.recommend_batch([dataset.history_of(user) for user in users], k, batch_size=7, **options)
    return {user: [(one.item_id, one.score) for one in ranks] for user, ranks in zip(users, lists, strict=True)}


def test_the_file_contains_the_lists_of_a_batch(dataset: RecDataset, recommender: Recommender, tmp_path: Path) -> None:
    given = UserHistories.of_dataset(dataset)
    output = tmp_path / "new" / "lists.parquet"
    written = write_lists(recommender, given, output, 5, part_size=8)
    assert (written.users, written.rows, written.fallback, written.short) == (NUM_USERS, 5 * NUM_USERS, 0, 0)
    assert_same(lists_of(output), expected_lists(recommender, dataset, 5))
    assert [path.name for path in output.parent.iterdir()] == ["lists.parquet"]
    assert pq.read_schema(output).names == ["user_id", "rank", "item_id", "score"]

    # If a filter leaves too few items, lists are short.
    one = ItemFilter(allowed=dataset.catalog.ids[:3], max_per={"genres": 2})
    written = write_lists(recommender, given, output, 5, one_filter=one, overwrite=True, exclude_history=False)
    assert_same(lists_of(output), expected_lists(recommender, dataset, 5, filters=one, exclude_history=False))
    assert written.short == NUM_USERS and json.loads(pq.read_schema(output).metadata[b"trl_rec"])["k"] == 5


def test_an_interrupted_call_resumes(
    dataset: RecDataset, recommender: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = UserHistories.of_dataset(dataset)
    output = tmp_path / "lists.parquet"
    rank = type(recommender.ranker).rank
    sizes: list[int] = []

    def interrupted(self, requests, **options):
        sizes.append(len(requests))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return rank(self, requests, **options)

    monkeypatch.setattr(type(recommender.ranker), "rank", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_lists(recommender, given, output, 5, part_size=8)
    assert not output.exists() and sizes == [8, 8, 8]

    # The interrupted call has left a file for each finished part of 8 users. A call for another output does not use
    # these files. The next call for the first output uses them, except a damaged one.
    write_lists(recommender, given, tmp_path / "other.parquet", 4, part_size=8)
    assert sizes[3:] == [8, 8, 8, 6]
    (tmp_path / ".lists.parquet.parts" / "part-00001.parquet").write_bytes(b"broken")
    write_lists(recommender, given, output, 5, part_size=8)
    assert sizes[7:] == [8, 8, 6]
    assert_same(lists_of(output), expected_lists(recommender, dataset, 5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.parquet", "other.parquet"]
    with pytest.raises(ValueError, match="already exists; choose another name, or set overwrite"):
        write_lists(recommender, given, output, 5)


def test_two_processes_write_the_same_lists_as_one(
    dataset: RecDataset, recommender: Recommender, run: Path, tmp_path: Path
) -> None:
    run_in_two("ddp", partial(write_all, dataset.path, run), tmp_path / "two")
    one = ItemFilter(max_per={"genres": 2})
    assert_same(lists_of(tmp_path / "two/lists.parquet"), expected_lists(recommender, dataset, 5, filters=one))


def test_the_command_writes_lists(
    dataset: RecDataset, recommender: Recommender, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(run), "--k", "5", "--where", '[["genres", "!=", "none"]]']
    of_dataset = [*words, "--dataset", str(dataset.path)]
    expected = expected_lists(recommender, dataset, 5)

    # 1. Write lists for all users, and for some users in the order of a file.
    recommend.main([*of_dataset, "--all_users", "--output", str(tmp_path / "all.parquet")])
    assert_same(lists_of(tmp_path / "all.parquet"), expected)
    assert f"contains lists for {NUM_USERS} users, {5 * NUM_USERS} rows" in capsys.readouterr().out
    some = dataset.users["user_id"].to_pylist()[7:2:-1]
    (tmp_path / "users.csv").write_text("user_id\n" + "\n".join(some) + "\n")
    recommend.main([*of_dataset, "--users", str(tmp_path / "users.csv"), "--output", str(tmp_path / "some.parquet")])
    assert_same(lists_of(tmp_path / "some.parquet"), {user: expected[user] for user in some})

    # 2. Write lists for the users of a log. Its rows are shuffled but have timestamps, and it contains an item that
    # the model does not know.
    log = dataset.interactions
    table = pa.table(
        {
            "user_id": dataset.users["user_id"].take(log["user"]),
            "item_id": pa.array(dataset.catalog.ids).take(log["item"].combine_chunks()),
            "timestamp": np.arange(log.num_rows),
        }
    )
    table = table.take(np.random.default_rng(0).permutation(log.num_rows))
    new = {"user_id": ["someone"], "item_id": ["a new item"], "timestamp": [0]}
    arrow_csv.write_csv(pa.concat_tables([table, pa.table(new, table.schema)]), tmp_path / "log.csv")
    recommend.main([*words, "--histories", str(tmp_path / "log.csv"), "--output", str(tmp_path / "log.parquet")])
    lists = lists_of(tmp_path / "log.parquet")
    newcomer = lists.pop("someone")
    assert_same({user: lists[user] for user in expected}, expected)
    assert [item for item, _ in newcomer] == [one.item_id for one in recommender.recommend([], 5)]
    assert "1 users without a known item in their history got a list ranked by the prior" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --user, --titles, --all_users, --users and --histories"),
        (["--all_users", "--titles", "x"], "give one of --user, --titles, --all_users, --users and --histories"),
        (["--all_users", "--output", "x.parquet"], "the history of a user comes from a dataset; give --dataset"),
        (["--histories", "x.csv"], "--output is needed with --all_users, --users and --histories"),
        (["--histories", "x.csv", "--output", "x.parquet"], "there is no file x.csv"),
        (["--all_users", "--dataset", "DATA", "--output", "x.csv"], "x.csv must end in .parquet"),
        (["--titles", "x", "--where", "price < 5"], "--where must be JSON, such as"),
        (["--all_users", "--dataset", "DATA", "--output", "x.parquet", "--where", '[["a", "==", 1]]'], "column 'a'"),
    ],
)
def test_invalid_combinations_of_options_are_refused(
    dataset: RecDataset, run: Path, words: list[str], message: str
) -> None:
    words = [str(dataset.path) if word == "DATA" else word for word in words]
    with pytest.raises(ValueError, match=message):
        recommend.main(["--model", str(run), *words])


def test_users_and_logs_that_cannot_be_read_are_refused(dataset: RecDataset, run: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    for option, text, message in (
        ("--users", "user_id\nnobody\n", "user 'nobody' is not in .*; users.parquet lists the users"),
        ("--users", "user_id\n3\n4\n3\n", "log.csv contains the user '3' more than once"),
        ("--users", "id\n3\n", "log.csv has no column user_id, only id"),
        ("--users", "user_id\n", "there are no users to recommend to"),
        ("--histories", "user_id,item\n3,4\n", "log.csv has no column item_id, only user_id, item"),
        ("--histories", "user_id,item_id,timestamp\n3,4,x\n", "log.csv, row 1: the timestamp 'x' is not a finite"),
        ("--histories", "user_id,item_id\n3,\n", "log.csv, row 1: the item_id is empty"),
    ):
        log.write_text(text)
        words = ["--dataset", str(dataset.path)] if option == "--users" else []
        with pytest.raises(ValueError, match=message):
            recommend.main(["--model", str(run), *words, option, str(log), "--output", str(tmp_path / "x.parquet")])


@pytest.mark.long
def test_the_command_under_accelerate_launch_writes_the_same_file(
    dataset: RecDataset, run: Path, tmp_path: Path
) -> None:
    """Compares the command in two processes of `accelerate launch` on a CPU with the command in a single process. The
    lists are computed in parts of `PART_SIZE` users. The log has users for two parts, so both processes have work."""
    rng = np.random.default_rng(0)
    number = PART_SIZE + 40
    log = ["user_id,item_id", *(f"u{user},{dataset.catalog.ids[rng.integers(50)]}" for user in range(number))]
    (tmp_path / "log.csv").write_text("\n".join(log) + "\n")
    words = ["--model", str(run), "--histories", str(tmp_path / "log.csv"), "--where", '[["genres", "!=", "Drama"]]']
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    # The configuration file chooses the CPU, because with `--cpu`, `accelerate launch` would start only one process.
    config = {**yaml.safe_load(find_recipe("accelerate/ddp").read_text()), "use_cpu": True, "mixed_precision": "no"}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))
    options = ["--config_file", str(tmp_path / "two.yaml"), "--num_cpu_threads_per_process", "1", "--tee", "3"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options]
    module = ["trl_rec.scripts.recommend"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for command in (
        [sys.executable, "-m", *module, *words, "--output", str(alone)],
        [*launch, "--module", *module, *words, "--output", str(together)],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count(f"contains lists for {number} users") == 1  # only the main process prints this
    assert "[default0]" in done.stdout and "[default1]" in done.stdout + done.stderr  # there were two processes
    assert alone.read_bytes() == together.read_bytes()
