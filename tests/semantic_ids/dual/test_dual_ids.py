"""Tests dual semantic IDs: IDs of items and users that are made by two networks, the item tower and the user tower.
The tests cover the training of the towers on a small dataset, the inputs of this training, and the files of the IDs.
The inputs must not contain held-out data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from trl_rec import TokenTrie, load, prepare
from trl_rec.data.profiles import item_texts
from trl_rec.models import make_tokenizer
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids import (
    DualIdsConfig,
    ItemIdEncoder,
    code_use_picture,
    continue_ids,
    describe_ids,
    export_index,
    import_index,
    load_text_encoder,
    make_dual_ids,
    make_semantic_ids,
    read_ids_card,
)
from trl_rec.semantic_ids.dual.inputs import EVERY, DualInputs, dual_inputs, hold_out
from trl_rec.semantic_ids.dual.tower import Tower
from trl_rec.semantic_ids.dual.training import DualTraining


SMALL = {
    "codes": 6,
    "code_width": 8,
    "behaviour_width": 16,
    "fused_width": 16,
    "hidden": 32,
    "max_epochs": 4,
    "batch_size": 128,
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return prepare("toy", tmp_path_factory.mktemp("toy") / "toy", toy_users=60, toy_items=50)


@pytest.fixture
def dataset(toy, tmp_path):
    shutil.copytree(toy.path, tmp_path / "toy")
    return load(tmp_path / "toy")


@pytest.fixture(scope="module")
def made(toy, tmp_path_factory):
    shutil.copytree(toy.path, tmp_path_factory.mktemp("made") / "toy")
    return make_dual_ids(load(tmp_path_factory.getbasetemp() / "made0" / "toy"), DualIdsConfig(**SMALL))


def texts(ids: Ragged) -> list[str]:
    return ["".join(ids[row]) for row in range(len(ids))]


def inputs_of(dataset, **options) -> DualInputs:
    given = {"signals": "both", "behaviour": "cooccurrence", "width": 16, "item_template": None, "seed": 0, **options}
    return dual_inputs(dataset, load_text_encoder("words"), **given)


def test_items_and_users_get_ids(made):
    loaded = load(made.path)
    assert (
        texts(loaded.catalog.semantic_ids) == texts(made.catalog.semantic_ids) and len(made.catalog.semantic_ids) == 50
    )
    assert len(loaded.catalog.user_ids) == made.users.num_rows and texts(loaded.catalog.user_ids) == texts(
        made.catalog.user_ids
    )
    assert all(token.startswith("<u") for token in made.catalog.user_ids.values)
    assert loaded.catalog.fingerprint == made.card["fingerprint"]


def test_the_card_describes_the_training(made):
    card = read_ids_card(made.path)
    training, held_out = card["training"], hold_out(made.train)[1]
    assert (
        training["u2i_pairs"] == held_out.shape[1]
        and 0 <= training["u2i_accuracy"] <= 1
        and 0 < training["rebuilding_error"] < 1
    )
    assert {entry["stage"] for entry in training["curve"]} == {"aligning", "rebuilding", "quantising"}
    assert card["distinct"]["found"] <= card["distinct"]["repaired"] == card["distinct"]["written"]
    assert sum(card["levels"][0]["counts"]) == 50
    text = describe_ids(card)
    assert (
        "this item ranks above all of" in text
        and f"(by chance: {training['u2i_chance']:.1%})" in text
        and "words-" in text
    )
    assert code_use_picture(card).count("<rect") == 1 + 3 * 6


def test_the_same_settings_again_change_nothing(made):
    before = (made.path / "catalog" / "semantic_ids.json").read_bytes()
    again = make_dual_ids(load(made.path), DualIdsConfig(**SMALL))
    assert texts(again.catalog.user_ids) == texts(made.catalog.user_ids)
    assert (made.path / "catalog" / "semantic_ids.json").read_bytes() == before
    with pytest.raises(ValueError, match="not made with these settings"):
        make_dual_ids(load(made.path), DualIdsConfig(**{**SMALL, "seed": 1}))
    with pytest.raises(ValueError, match="not made with these settings"):
        make_semantic_ids(load(made.path), codes=6)


def test_the_same_seed_gives_the_same_ids(made, dataset):
    again = make_dual_ids(dataset, DualIdsConfig(**SMALL))
    assert texts(again.catalog.semantic_ids) == texts(made.catalog.semantic_ids)
    assert texts(again.catalog.user_ids) == texts(made.catalog.user_ids)


def test_the_call_after_a_killed_one_makes_the_same_ids(dataset, tmp_path, monkeypatch):
    """The call after a killed one reads finished vectors from the cache, and computes everything else again."""
    config = DualIdsConfig(**SMALL, behaviour="sequence")
    whole = make_dual_ids(load(shutil.copytree(dataset.path, tmp_path / "whole")), config)
    with monkeypatch.context() as patched:
        patched.setattr("trl_rec.semantic_ids.dual.training.DualTraining._start_codebooks", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_dual_ids(dataset, config)
    kept = {path.name for path in (dataset.path / "vectors").iterdir()}
    assert {name.split("-")[0] for name in kept} == {"text", "collaborative"} and load(
        dataset.path
    ).catalog.semantic_ids is None
    with monkeypatch.context() as patched:
        patched.setattr("trl_rec.semantic_ids.collaborative._train", lambda *given: 1 / 0)
        again = make_dual_ids(dataset, config)
    assert texts(again.catalog.semantic_ids) == texts(whole.catalog.semantic_ids)


@pytest.mark.parametrize("last", ["items.parquet", "semantic_ids.json"])
def test_ids_are_made_again_after_a_call_was_killed_while_writing(made, dataset, monkeypatch, last):
    replacing = Path.replace

    def killed(self, target):
        if target == dataset.path / "catalog" / last:
            raise KeyboardInterrupt
        return replacing(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make_dual_ids(dataset, DualIdsConfig(**SMALL))
    if last == "semantic_ids.json":  # the card of the IDs; the killed call wrote the IDs, but not the card
        with pytest.raises(ValueError, match="not made with these settings"):
            make_dual_ids(dataset, DualIdsConfig(**{**SMALL, "seed": 1}))
    again = make_dual_ids(dataset, DualIdsConfig(**SMALL))
    assert texts(again.catalog.semantic_ids) == texts(made.catalog.semantic_ids)
    assert {path.name for path in (dataset.path / "catalog").iterdir()} == {
        "items.parquet",
        "catalog.json",
        "user_ids.parquet",
        "semantic_ids.json",
    }


@pytest.mark.parametrize(
    "options",
    [{"signals": "text"}, {"signals": "behaviour"}, {"behaviour": "sequence"}, {"users": False}, {"align": False}],
    ids=lambda given: [*given][0],
)
def test_ablations(dataset, options):
    small = {
        name: value for name, value in SMALL.items() if name != "behaviour_width" or options.get("signals") != "text"
    }
    made = make_dual_ids(dataset, DualIdsConfig(**small, **options))
    training = read_ids_card(dataset.path)["training"]
    assert (made.catalog.user_ids is None) == (not options.get("users", True))
    assert any(entry["stage"] == "aligning" for entry in training["curve"]) == (not {"users", "align"} & {*options})
    assert describe_ids(read_ids_card(dataset.path))


def test_colliding_ids_are_extended(dataset):
    made = make_dual_ids(dataset, DualIdsConfig(**{**SMALL, "codes": 4, "collisions": "extend"}))
    assert len(set(texts(made.catalog.semantic_ids))) == 50


def test_a_new_item_gets_the_code_of_similar_items(made):
    """A new item gets its codes from its text alone. Known items with the same first code as the new item share a
    group (a genre) with it more often than by chance."""
    encoder, groups = ItemIdEncoder.from_pretrained(made.path), made.catalog.group_shares()[1] > 0
    names = np.array(made.catalog.group_shares()[0])
    codes = encoder.encode([f"Unheard of; genres: {', '.join(names[row])}" for row in groups])[:, 0]
    known = np.array([made.catalog.semantic_ids[item][0] for item in range(50)])
    alike = (groups[:, None] & groups[None]).any(-1)
    near = np.array([f"<a_{code}>" for code in codes.tolist()])[:, None] == known
    others = ~np.eye(50, dtype=bool)
    assert alike[near & others].mean() > 1.2 * alike[others].mean()
    assert all(token.startswith("<") for token in encoder.tokens(["anything"]).values)


def test_new_items_need_a_text_encoder(dataset):
    make_dual_ids(dataset, DualIdsConfig(**SMALL, signals="behaviour"))
    with pytest.raises(ValueError, match="learned from behaviour alone"):
        ItemIdEncoder.from_pretrained(dataset.path)


def test_known_items_often_get_their_own_first_code_from_their_text_alone(made):
    encoder = ItemIdEncoder.from_pretrained(made.path)
    codes = encoder.encode(item_texts(made.catalog))
    same = [f"<a_{code}>" == made.catalog.semantic_ids[item][0] for item, code in enumerate(codes[:, 0].tolist())]
    assert np.mean(same) > 2 / 6


# Leaks


def changed(dataset, split: str, places=slice(None)):
    """Returns the dataset with targets of a split replaced by other items. By default, all targets are replaced."""
    rows = getattr(dataset, split)
    table = rows.with_format("arrow")[:]
    targets = Ragged.from_arrow(table["targets"])
    items = targets.values.copy()
    items[places] = (items[places] + 7) % len(dataset.catalog)
    column = pa.chunked_array([Ragged(items, targets.offsets).to_arrow()])
    table = table.set_column(table.column_names.index("targets"), "targets", column)
    return replace(dataset, **{split: Dataset(table, split=rows.split)})


def check_same(ours: DualInputs, theirs: DualInputs) -> None:
    """Asserts that everything that the towers learn from is the same in both inputs."""
    for name in ("item_text", "user_text", "behaviour", "known", "histories", "mask", "pairs", "popularity"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for name, block in ours.scales.items():
        assert torch.equal(block.mean, theirs.scales[name].mean) and torch.equal(
            block.scale, theirs.scales[name].scale
        )


@pytest.mark.parametrize("behaviour", ["cooccurrence", "sequence"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_held_out_interaction_reaches_the_inputs(dataset, split, behaviour):
    """Changing the targets of validation or test changes no training pair, no user profile and no vector. It also
    changes none of the items that are pooled into a user's vector."""
    plain = inputs_of(dataset, behaviour=behaviour)
    shutil.rmtree(dataset.path / "vectors")
    other = inputs_of(changed(dataset, split), behaviour=behaviour)
    assert torch.equal(plain.held_out, other.held_out)
    check_same(plain, other)


@pytest.mark.parametrize("behaviour", ["cooccurrence", "sequence"])
def test_held_out_pairs_do_not_reach_the_inputs(dataset, behaviour):
    """The last targets of some users in the training split are held out, to measure the towers during their training.
    Changing these targets must not change what the towers learn from."""
    users, targets = (
        dataset.train.with_format("numpy")[:]["user"],
        Ragged.from_arrow(dataset.train.with_format("arrow")[:]["targets"]),
    )
    other = changed(dataset, "train", targets.offsets[1:][users % EVERY == EVERY - 1] - 1)
    ours, theirs = inputs_of(dataset, behaviour=behaviour), inputs_of(other, behaviour=behaviour)
    assert ours.held_out.shape[1] and not torch.equal(ours.held_out, theirs.held_out)
    check_same(ours, theirs)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_later_splits_are_refused(dataset, split):
    with pytest.raises(ValueError, match="must use only the training split"):
        inputs_of(replace(dataset, train=getattr(dataset, split)))
    with pytest.raises(ValueError, match="must use only the training split"):
        hold_out(getattr(dataset, split))


def test_targets_of_later_splits_are_in_no_pair(dataset):
    inputs, num_items = inputs_of(dataset), len(dataset.catalog)
    pairs = {*(inputs.pairs[0] * num_items + inputs.pairs[1]).tolist()}
    trained = {row["user"] * num_items + item for row in dataset.train for item in [*row["history"], *row["targets"]]}
    assert pairs <= trained and len(pairs) == len(trained) - inputs.held_out.shape[1]


def test_held_out_pairs_are_in_no_other_input(dataset):
    inputs = inputs_of(dataset)
    assert inputs.held_out.shape[1]
    for user, item in inputs.held_out.T.tolist():
        assert item not in inputs.histories[user][inputs.mask[user]].tolist()
        assert not ((inputs.pairs[0] == user) & (inputs.pairs[1] == item)).any()
    assert inputs.chose(inputs.held_out[0], inputs.held_out[1]).diagonal().all()


def test_chose_marks_the_items_that_users_chose(dataset):
    inputs = inputs_of(dataset)
    users, items = torch.arange(dataset.users.num_rows), torch.tensor([3, 0, 3, 49])
    pairs = {*map(tuple, torch.cat([inputs.pairs, inputs.held_out], 1).T.tolist())}
    expected = [[(user, item) in pairs for item in items.tolist()] for user in users.tolist()]
    assert inputs.chose(users, items).tolist() == expected


def towers_of(inputs: DualInputs) -> DualTraining:
    """Returns a `DualTraining` with two untrained towers."""
    shape = {"hidden": 8, "width": 4, "code_width": 4, "levels": 1, "codes": 2}
    sides = [side(inputs, torch.arange(1)).shape[1] for side in (DualInputs.items, DualInputs.users)]
    options = {"align": True, "alpha": 0.1, "learning_rate": 0.1, "batch_size": 8, "max_epochs": 1, "patience": 1}
    towers = [Tower(width, **shape) for width in sides]
    return DualTraining(inputs, *towers, **options, without_behaviour=0.0, generator=torch.Generator())


def test_alignment_leaves_the_chosen_item_out_of_the_users_pooled_items(dataset, monkeypatch):
    inputs, calls = inputs_of(dataset), []
    training, users = towers_of(inputs), DualInputs.users

    def watched(self, rows, without=None):
        calls.append((rows, without))
        return users(self, rows, without)

    monkeypatch.setattr(DualInputs, "users", watched)
    training._alignment(torch.arange(8))
    ((rows, without),) = calls
    assert torch.equal(torch.stack([rows, without]), inputs.pairs[:, :8])


def test_held_out_items_are_ranked_among_items_that_the_user_did_not_choose(dataset):
    inputs = inputs_of(dataset)
    training = towers_of(inputs)
    users, items, chosen = training._evaluation_set
    assert torch.equal(torch.stack([users, items[:, 0]]), inputs.held_out)
    firsts, shares = [], []
    for user, row, is_chosen in zip(users, items, chosen, strict=True):
        scores = training.fused_items(row) @ training.fused_users(user[None])[0]
        assert is_chosen[1:].tolist() == inputs.chose(user[None], row[1:])[0].tolist()
        beaten = [
            bool(scores[0] > score) for score, left_out in zip(scores[1:], is_chosen[1:], strict=True) if not left_out
        ]
        firsts.append(all(beaten)), shares.append(sum(beaten) / len(beaten))
    measured = training.held_out()
    assert measured.pairs == len(users) and measured.accuracy == pytest.approx(np.mean(firsts))
    assert measured.won == pytest.approx(np.mean(shares))


def test_an_item_can_be_left_out_of_a_users_pooled_items(dataset):
    inputs = inputs_of(dataset)
    user = torch.tensor([0])
    own = inputs.histories[0][inputs.mask[0]]
    without, shorter = (
        inputs.users(user, without=own[:1]),
        replace(inputs, mask=inputs.mask & (inputs.histories != own[0])),
    )
    assert torch.equal(without, shorter.users(user)) and not torch.equal(without, inputs.users(user))


def test_hidden_behaviour_is_replaced_by_zeros(dataset):
    inputs = inputs_of(dataset)
    rows = torch.arange(4)
    kept = inputs.items(rows, torch.tensor([True, False, True, False]))
    width = inputs.item_text.shape[1]
    assert (kept[[1, 3], width:] == 0).all() and torch.equal(kept[[0, 2]], inputs.items(rows)[[0, 2]])


# Files


def test_ids_are_exported_and_imported(made, dataset, tmp_path):
    export_index(made.catalog, tmp_path / "X.index.json")
    index = json.loads((tmp_path / "X.index.json").read_text())
    assert index[made.catalog.ids[7]] == made.catalog.semantic_ids[7].tolist()
    taken = import_index(dataset, tmp_path / "X.index.json")
    assert texts(taken.catalog.semantic_ids) == texts(made.catalog.semantic_ids) and taken.catalog.user_ids is None
    imported, own = read_ids_card(dataset.path), read_ids_card(made.path)
    assert imported["distinct"]["written"] == own["distinct"]["written"]
    assert [level["perplexity"] for level in imported["levels"]] == [level["perplexity"] for level in own["levels"]]
    assert describe_ids(imported)
    assert texts(import_index(dataset, tmp_path / "X.index.json").catalog.semantic_ids) == texts(
        made.catalog.semantic_ids
    )
    del index[made.catalog.ids[7]]
    (tmp_path / "X.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="contains no tokens for item"):
        import_index(dataset, tmp_path / "X.index.json", overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signals": "sound"}, "unknown signals 'sound'"),
        ({"behaviour": "dreams"}, "unknown behaviour 'dreams'"),
        ({"codes": 3, "levels": 2}, "fewer distinct IDs than the catalogue has items"),
        ({"behaviour": "sequence", "behaviour_width": 7}, "multiple of 2"),
        ({"without_behaviour": 1.0}, "without_behaviour must be from 0 to below 1, not 1.0"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, not 0"),
        ({"text_encoder": "no/such/model-here"}, "no/such/model-here"),
        ({"item_text": "{name}"}, "cannot be filled"),
        ({"signals": "text"}, "behaviour_width=16 has no effect with signals='text'"),
        (
            {"signals": "behaviour", "text_encoder": "no/such"},
            "text_encoder='no/such' has no effect with signals='behaviour'",
        ),
        ({"users": False, "alpha": 0.2}, "alpha=0.2 has no effect with users=False"),
        ({"align": False, "alpha": 0.2}, "alpha=0.2 has no effect with align=False"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_senseless_settings_are_refused(dataset, options, message):
    with pytest.raises(ValueError, match=message):
        make_dual_ids(dataset, DualIdsConfig(**{**SMALL, **options}))
    assert load(dataset.path).catalog.semantic_ids is None


def test_without_users_align_may_be_false_too(dataset):
    made = make_dual_ids(dataset, DualIdsConfig(**{**SMALL, "max_epochs": 1}, users=False, align=False))
    assert made.catalog.user_ids is None and len(made.catalog.semantic_ids) == 50


def test_an_encoder_of_other_ids_is_refused(dataset):
    """The saved encoder was trained with earlier IDs, and does not fit the IDs that replaced them."""
    make_dual_ids(dataset, DualIdsConfig(**SMALL))
    make_semantic_ids(load(dataset.path), codes=6, overwrite=True)
    with pytest.raises(ValueError, match="does not belong to the semantic IDs"):
        ItemIdEncoder.from_pretrained(dataset.path)


def test_a_training_that_diverges_writes_nothing(dataset):
    with pytest.raises(ValueError, match="of epoch 1 is not finite"):
        make_dual_ids(dataset, DualIdsConfig(**{**SMALL, "learning_rate": 1e30}))
    assert load(dataset.path).catalog.semantic_ids is None


def test_holding_out_takes_the_last_target_of_a_users_rows():
    """The rows have one target each. Every second user loses the target of their last row, unless they have only one
    row."""
    rows = {
        "user": [0, 1, 1, 1, 3],
        "history": [[5], [5], [5, 6], [5, 6, 7], [9]],
        "targets": [[1], [6], [7], [8], [4]],
    }
    columns = {name: pa.array(values) for name, values in rows.items()}
    kept, held_out = hold_out(Dataset(pa.table(columns), split="train"), every=2)
    assert held_out.tolist() == [[1], [8]] and list(kept["targets"]) == [[1], [6], [7], [], [4]]


def test_known_items_keep_their_ids_when_items_are_added(made, tmp_path):
    today = prepare("toy", tmp_path / "today", toy_users=60, toy_items=60)
    continued = continue_ids(today, made.path)
    ids = dict(zip(made.catalog.ids, texts(made.catalog.semantic_ids), strict=True))
    found = dict(zip(continued.catalog.ids, texts(continued.catalog.semantic_ids), strict=True))
    assert {item: found[item] for item in ids} == ids and len(found) == 60
    assert all(found[item].startswith("<a_") for item in set(found) - set(ids))
    assert read_ids_card(today.path)["settings"]["method"] == "known"
    # The encoder is copied, so that the new IDs can be continued in turn. Repeating the call changes nothing.
    expected = ItemIdEncoder.from_pretrained(made.path).encode(["A new one"]).tolist()
    assert ItemIdEncoder.from_pretrained(today.path).encode(["A new one"]).tolist() == expected
    assert texts(continue_ids(load(today.path), made.path).catalog.semantic_ids) == list(found.values())
    with pytest.raises(ValueError, match="is the folder of the dataset itself"):
        continue_ids(load(today.path), today.path, overwrite=True)
    assert ItemIdEncoder.from_pretrained(today.path).encode(["A new one"]).tolist() == expected
    TokenTrie.from_catalog(
        continued.catalog.with_surface("semantic_id"), make_tokenizer(continued.catalog.with_surface("semantic_id"))
    )
