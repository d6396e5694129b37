"""`prepare` makes the same splits as a slow oracle, writes a correct card, and leaves either a complete folder or
none."""

import json
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.sources import ITEMS, rows_of, write_csv, write_table
from tests.oracles import data as oracle
from trl_rec.data import load, prepare
from trl_rec.data.preparation import preparing as module
from trl_rec.evaluation import evaluate_baselines


def test_leave_one_out_by_hand(tmp_path):
    dataset = prepare(write_table(tmp_path / "source"), tmp_path / "out")
    assert rows_of(dataset, "train") == {"u1": (["b"], ["a"]), "u2": (["a"], []), "u3": (["a"], [])}
    assert rows_of(dataset, "validation") == {"u1": (["b", "a"], ["c"]), "u2": (["a"], ["c"])}
    assert rows_of(dataset, "test") == {"u1": (["b", "a", "c"], ["d"]), "u2": (["a", "c"], ["b"])}
    # The time of a row is that of its first target, or of its last history item if it has no targets.
    assert dataset.train["timestamp"][:] == [3, 2, 7]
    assert dataset.test["timestamp"][:] == [5, 6]
    assert dataset.test[0]["history_ratings"] == [5, 3, 2] and dataset.test[0]["target_ratings"] == [5]
    assert dataset.interactions.to_pydict() == {
        "user": [0, 0, 0, 0, 1, 1, 1, 2],
        "item": [1, 0, 2, 3, 0, 2, 1, 0],
        "timestamp": [1, 3, 3, 5, 2, 4, 6, 7],
        "rating": [5, 3, 2, 5, 4, 1, 4, 3],
    }
    # The item "Eggs" is kept, although no user chose it.
    assert dataset.catalog.titles == ["Apple", "Bread", "Cheese", "Dates", "Eggs"]
    assert dataset.train.column_names == [
        "user",
        "history",
        "history_ratings",
        "targets",
        "target_ratings",
        "timestamp",
    ]
    assert [str(dataset.train.features[name]) for name in ("user", "history", "history_ratings", "timestamp")] == [
        "Value('int32')",
        "List(Value('int32'))",
        "List(Value('float32'))",
        "Value('float64')",
    ]
    assert [str(rows.split) for rows in (dataset.train, dataset.validation, dataset.test)] == [
        "train",
        "validation",
        "test",
    ]


def test_the_card_describes_the_dataset(tmp_path):
    source = write_table(tmp_path / "source")
    card = prepare(source, tmp_path / "out", min_item_interactions=2).card
    assert (card["num_users"], card["num_items"], card["num_interactions"]) == (3, 3, 7)
    assert card["dropped"] == {"users": 0, "items": 2, "interactions": 1}
    assert card["rows"] == {"train": 3, "validation": 2, "test": 2}
    assert card["targets"] == {"train": 0, "validation": 2, "test": 2}
    assert card["tied_timestamps"] == round(2 / 7, 4) and card["sparsity"] == round(1 - 7 / 9, 6)
    assert card["cold_targets"] == {
        "validation": 1,
        "test": 1,
    }  # no training row contains the item c
    assert card["format"] == "table" and card["split"] == "leave_one_out" and card["has_ratings"]
    assert set(card["sources"]) == {"interactions.csv", "items.csv"} and all(
        len(sha) == 64 for sha in card["sources"].values()
    )
    assert card == json.loads((tmp_path / "out" / "card.json").read_text())


def test_leave_last_by_hand(tmp_path):
    items = {"u1": "abcab", "u2": "dcba"}
    log = [(user, item, time, 1) for user in items for time, item in enumerate(items[user])]
    arguments = {"split": "leave_last", "num_held_out": 2, "repeats": "keep"}
    dataset = prepare(write_table(tmp_path / "source", log), tmp_path / "out", **arguments)
    assert rows_of(dataset, "train") == {"u1": (["a"], []), "u2": (["d"], ["c", "b", "a"])}
    assert rows_of(dataset, "validation") == {"u1": (["a"], ["b", "c"])}
    assert rows_of(dataset, "test") == {"u1": (["a", "b", "c"], ["a", "b"])}
    rule = (
        "each user's last 2 items are the test items, and the 2 before them are the validation items; users with "
        "fewer than 5 items are used for training only"
    )
    assert dataset.card["split_rule"] == rule and dataset.card["settings"]["num_held_out"] == 2
    assert dataset.card["targets"] == {"train": 3, "validation": 2, "test": 2}
    assert (
        prepare(tmp_path / "source", tmp_path / "out", **arguments).card == load(tmp_path / "out").card == dataset.card
    )
    with pytest.raises(ValueError, match="other settings or from other files"):
        prepare(tmp_path / "source", tmp_path / "out", split="leave_last", num_held_out=1)
    baselines = evaluate_baselines(dataset, split="test", ks=[2])
    assert all(0 <= one.metrics["recall@2"] <= 1 for one in baselines.values())


def test_time_split_keeps_ties_together_and_counts_cold_users(tmp_path):
    log = [(f"u{row % 2}", f"i{row}", row // 2 * 2) for row in range(18)] + [
        ("u9", "i0", 16),
        ("u8", "i0", 14),
        ("u8", "i1", 16),
    ]
    dataset = prepare(
        write_table(tmp_path / "source", log, None, header=("user_id", "item_id", "timestamp")),
        tmp_path / "o",
        split="time",
    )
    assert rows_of(dataset, "validation")["u0"] == (["i0", "i2", "i4", "i6", "i8", "i10", "i12"], ["i14"])
    assert rows_of(dataset, "test")["u8"] == (["i0"], ["i1"])  # a user without a training row, but with a history
    assert dataset.card["cold_users"] == {"validation": 1, "test": 1}
    assert (
        not dataset.card["has_ratings"]
        and dataset.test[0]["history_ratings"] == dataset.test[0]["target_ratings"] == []
    )


def test_k_core_repeats_until_nothing_changes(tmp_path):
    # The interactions of the chain are dropped one after another, from the last to the first.
    chain = ["pe", "pf", "qf", "qg", "rg", "rh", "sh"]
    log = [(user, item, 0, 1) for user, item in ["ua", "ub", "ue", "va", "vb", "ve", *chain]]
    source = write_table(tmp_path / "source", log, [(item, item) for item in "abefgh"])
    dataset = prepare(source, tmp_path / "out", min_user_interactions=2, min_item_interactions=2)
    assert dataset.catalog.ids == ["a", "b", "e"] and dataset.users["user_id"].to_pylist() == ["u", "v"]
    assert dataset.card["dropped"] == {"users": 4, "items": 3, "interactions": 7}


@contextmanager
def in_blocks_of(size):
    """Processes logs in blocks of about `size` interactions. Without this, only large logs are processed in several
    blocks."""
    with ExitStack() as stack:
        for name in ("columns", "indexed_log", "leaks"):
            stack.enter_context(mock.patch(f"trl_rec.data.{name}.BLOCK", size))
        yield


ROW = st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefg"), st.integers(0, 12), st.integers(1, 5))


@given(
    log=st.lists(ROW, min_size=1, max_size=60),
    minima=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    rule=st.sampled_from([("leave_one_out",), ("time",), ("leave_last", 1), ("leave_last", 2), ("leave_last", 3)]),
    with_items=st.booleans(),
    block=st.sampled_from([1, 7, 1000]),
)
def test_prepare_equals_the_slow_oracle(log, minima, rule, with_items, block):
    items = [(item, item.upper()) for item in "gfedcba"]
    with tempfile.TemporaryDirectory() as folder, in_blocks_of(block):
        source = write_table(Path(folder, "source"), log, items if with_items else None)
        kept = oracle.k_core(log, *minima)
        expected = oracle.split(kept, *rule) if kept else dict.fromkeys(oracle.SPLITS)
        arguments = {"min_user_interactions": minima[0], "min_item_interactions": minima[1], "repeats": "keep"}
        arguments |= dict(zip(("split", "num_held_out"), rule, strict=False))
        if not all(expected.values()):
            with pytest.raises(ValueError, match="no interactions are left|split is empty"):
                prepare(source, Path(folder, "out"), **arguments)
            assert sorted(path.name for path in Path(folder).iterdir()) == ["source"]
            return
        dataset = prepare(source, Path(folder, "out"), **arguments)
        _compare(dataset, kept, expected)
        met = [row[1] for row in (kept if any(minima) else log)]
        if with_items:
            assert dataset.catalog.ids == [item for item in "gfedcba" if item in met or not any(minima)]
        else:
            order = list(dict.fromkeys(row[1] for row in log))
            assert dataset.catalog.ids == [item for item in order if item in met] == dataset.catalog.titles
        order = list(dict.fromkeys(row[0] for row in log))
        assert dataset.users["user_id"].to_pylist() == [user for user in order if user in {row[0] for row in kept}]


@given(st.integers(1, 4), st.lists(st.integers(1, 12), max_size=5), st.randoms(use_true_random=False))
def test_leave_last_equals_the_slow_oracle(num_held_out, lengths, rng):
    """The first user has just enough interactions for held-out items, and the second user has one interaction less.
    The other users have random numbers of interactions. Times may be equal, and items may be repeated."""
    sizes = [2 * num_held_out + 1, 2 * num_held_out, *lengths]
    log = [
        (f"u{user}", rng.choice("abcdefg"), rng.randint(0, 9), 1)
        for user, size in enumerate(sizes)
        for _ in range(size)
    ]
    rng.shuffle(log)
    with tempfile.TemporaryDirectory() as folder:
        source = write_table(Path(folder, "source"), log, None)
        dataset = prepare(source, Path(folder, "out"), split="leave_last", num_held_out=num_held_out, repeats="keep")
        _compare(dataset, log, oracle.split(log, "leave_last", num_held_out))


def _compare(dataset, kept, expected):
    for name, rows in expected.items():
        split, found = getattr(dataset, name), rows_of(dataset, name)
        assert found == {
            user: ([r[1] for r in history], [r[1] for r in targets]) for user, (history, targets) in rows.items()
        }
        for row in split.to_list():
            history, targets = rows[dataset.users["user_id"][row["user"]].as_py()]
            assert row["history_ratings"] == [r[3] for r in history] and row["target_ratings"] == [
                r[3] for r in targets
            ]
            assert row["timestamp"] == (targets[0] if targets else history[-1])[2]
    assert dataset.card["num_interactions"] == len(kept) == dataset.interactions.num_rows
    tied = [sum(other[0] == row[0] and other[2] == row[2] for other in kept) > 1 for row in kept]
    assert dataset.card["tied_timestamps"] == round(sum(tied) / len(kept), 4)


def test_the_same_settings_and_files_load_the_existing_dataset(tmp_path, monkeypatch):
    source = write_table(tmp_path / "source")
    first = prepare(source, tmp_path / "out")
    monkeypatch.setattr(module, "save", None)  # writing would raise
    assert prepare(source, tmp_path / "out").card == first.card == load(tmp_path / "out").card


def test_other_settings_or_files_are_refused_until_overwritten(tmp_path):
    source = write_table(tmp_path / "source")
    prepare(source, tmp_path / "out")
    with pytest.raises(ValueError, match="other settings or from other files; set overwrite=True to replace it"):
        prepare(source, tmp_path / "out", min_item_interactions=2)
    write_csv(source / "items.csv", ("item_id", "title"), [*ITEMS[:-1], ("e", "Endives")])
    with pytest.raises(ValueError, match="overwrite=True"):
        prepare(source, tmp_path / "out")
    assert prepare(source, tmp_path / "out", overwrite=True).catalog.titles[-1] == "Endives"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_overwriting_removes_files_of_semantic_ids(tmp_path):
    made = prepare("toy", tmp_path / "out", toy_users=21)
    (made.path / "vectors").mkdir()
    for name in ("vectors/text-1.safetensors", "id_encoder.json", "id_encoder.safetensors", "semantic_ids.svg"):
        (made.path / name).touch()
    prepare("toy", tmp_path / "out", toy_users=22, overwrite=True)
    assert not {"vectors", "id_encoder.json", "semantic_ids.svg"} & {path.name for path in made.path.iterdir()}


def test_a_column_mapped_to_itself_changes_nothing(tmp_path):
    source = write_table(tmp_path / "source")
    first = prepare(source, tmp_path / "out", columns={"user_id": "user_id", "title": "title"})
    assert prepare(source, tmp_path / "out").card == first.card


def test_a_folder_that_is_not_a_dataset_is_never_touched(tmp_path):
    source = write_table(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="exists and is not a dataset folder; choose another output_dir"):
            prepare(source, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert prepare(write_table(tmp_path / "source"), tmp_path / "out").card["num_users"] == 3


@pytest.mark.parametrize("overwritten", [False, True])
def test_a_failure_while_writing_changes_nothing(tmp_path, monkeypatch, overwritten):
    source = write_table(tmp_path / "source")
    before = prepare(source, tmp_path / "out").card if overwritten else None
    save = module.save

    def fail(folder, *arguments):
        save(folder, *arguments)
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        prepare(source, tmp_path / "out", min_item_interactions=2 * overwritten, overwrite=overwritten)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out", "source"] if overwritten else ["source"])
    if overwritten:
        assert load(tmp_path / "out").card == before


# To replace a dataset, `prepare` renames two folders: first the old dataset, to a path that ends with `.old`; then the
# new dataset, to a path that ends with `out`.
@pytest.mark.parametrize("end", [".old", "out"])
def test_a_failure_while_swapping_restores_the_old_files(tmp_path, monkeypatch, end):
    source = write_table(tmp_path / "source")
    before = prepare(source, tmp_path / "out").card
    rename = Path.rename
    failed = []

    def fail(path, target):
        if str(target).endswith(end) and not failed:
            failed.append(path)
            raise OSError("no luck")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no luck"):
        prepare(source, tmp_path / "out", min_item_interactions=2, overwrite=True)
    monkeypatch.undo()
    assert load(tmp_path / "out").card == before and sorted(path.name for path in tmp_path.iterdir()) == [
        "out",
        "source",
    ]
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_new_parent_folders_are_removed_on_failure(tmp_path, monkeypatch):
    source = write_table(tmp_path / "source")
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(module, "save", None)
    with pytest.raises(TypeError):
        prepare(source, tmp_path / "there" / "new" / "newer" / "out")
    assert list((tmp_path / "there").iterdir()) == []


def test_the_current_directory_can_be_the_output_folder(tmp_path, monkeypatch):
    source = write_table(tmp_path / "source")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    for minimum in (0, 2):  # the first call fills the folder, and the second call replaces it
        dataset = prepare(source, ".", min_item_interactions=minimum, overwrite=minimum > 0)
        assert dataset.path == tmp_path / "out" and Path("card.json").is_file()
    monkeypatch.chdir(tmp_path)
    assert dataset.interactions.num_rows == 7 and sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("content", ['{"model": "a card too"}', "[1]", '{"split": ', "not JSON"])
def test_a_folder_with_another_card_is_never_replaced(tmp_path, content):
    source = write_table(tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "card.json").write_text(content)
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(
            ValueError,
            match="is not the card of a dataset; .* another folder|if the folder is a dataset, delete the folder",
        ):
            prepare(source, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "parquet"}, "unknown format 'parquet'; choose one of ml-100k, recbole, bigrec, lcrec, table, toy"),
        ({"format": "bigrec"}, "contains no files of the format bigrec"),
        ({"split": "random"}, "unknown split 'random'; choose leave_one_out, leave_last or time"),
        (
            {"split": "time", "num_held_out": 2},
            "num_held_out has no effect with the split 'time'; leave it out, or set split",
        ),
        ({"num_held_out": 1}, "num_held_out has no effect with the split 'leave_one_out'"),
        ({"split": "leave_last", "num_held_out": 0}, "num_held_out must be at least 1, not 0"),
        ({"split": "leave_last"}, "the validation split is empty with the split rule 'leave_last'"),
        ({"title_column": "name"}, "title_column has no effect with the format 'table'; leave it out"),
        (
            {"min_user_interactions": 9},
            "at least 9 interactions and every item at least 0; lower min_user_interactions",
        ),
        ({"min_item_interactions": 3}, "the validation split is empty with the split rule 'leave_one_out'"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, arguments, message):
    source = write_table(tmp_path / "source")
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_every_format_accepts_a_seed_and_only_toy_uses_it(tmp_path):
    source = write_table(tmp_path / "source")
    assert prepare(source, tmp_path / "out", seed=1).card == prepare(source, tmp_path / "out", seed=2).card


def test_equal_times_keep_the_order_of_the_source(tmp_path):
    log = [("u", item, 0, 1) for item in "dbca"]
    assert rows_of(prepare(write_table(tmp_path / "source", log), tmp_path / "out"), "test") == {
        "u": (["d", "b", "c"], ["a"])
    }


def test_overwriting_deletes_no_files_of_the_user(tmp_path: Path) -> None:
    prepare("toy", tmp_path / "out", toy_users=20)
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"also contains thesis.tex, which would be deleted"):
        prepare("toy", tmp_path / "out", toy_users=21, overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "out" / "thesis.tex").unlink()
    assert prepare("toy", tmp_path / "out", toy_users=21, overwrite=True).users.num_rows == 21
