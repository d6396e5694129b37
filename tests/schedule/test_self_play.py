"""Tests self-play, which ranks items for many prefixes (histories from the training split) in parts. Together, the
parts must equal a ranking for all prefixes at once. Finished parts are reused. Parts that are damaged, or that were
computed with other settings, are computed again."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from tests.processes import log_of, run_in_two, start
from trl_rec import parts
from trl_rec.data import PromptFormat, load, prepare
from trl_rec.data.dataset import split_rows
from trl_rec.evaluation import rank_histories
from trl_rec.items import TokenTrie
from trl_rec.models import load_model, load_tokenizer, make_model, make_tokenizer
from trl_rec.schedule import self_play, self_play_beams, self_play_preferences, training_prefixes


OPTIONS = {"num_beams": 6, "part_size": 10, "max_length": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("self_play")
    catalog = prepare("toy", path / "data", toy_users=24, toy_items=60).catalog.with_surface("item_token")
    tokenizer = make_tokenizer(catalog)
    tokenizer.save_pretrained(path / "model")
    make_model(tokenizer, hidden_size=16).save_pretrained(path / "model")
    return path


class Setting:
    """The model of a folder, and everything else that self-play needs."""

    def __init__(self, folder: Path) -> None:
        self.dataset = load(folder / "data").with_surface("item_token")
        tokenizer = load_tokenizer(folder / "model")
        self.model, self.pad_token_id = load_model(folder / "model"), tokenizer.pad_token_id
        self.prompt_format = PromptFormat.for_catalog(self.dataset.catalog, tokenizer)
        self.trie = TokenTrie.from_catalog(self.dataset.catalog, tokenizer)
        self.prefixes = training_prefixes(self.dataset.train, max_prompts=45)

    def beams(self, **options) -> np.ndarray:
        prefixes = options.pop("prefixes", self.prefixes)
        options = {"pad_token_id": self.pad_token_id, **OPTIONS, **options}
        return self_play_beams(self.model, prefixes, self.prompt_format, self.trie, **options)


@pytest.fixture(scope="module")
def setting(folder: Path) -> Setting:
    return Setting(folder)


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the number of prefixes in each part that is ranked."""
    counts: list[int] = []

    def rank(model, histories, *arguments, **options):
        counts.append(len(histories))
        return rank_histories(model, histories, *arguments, **options)

    monkeypatch.setattr(self_play, "rank_histories", rank)
    return counts


def test_parts_are_ranked_like_the_whole(setting) -> None:
    histories = split_rows(setting.prefixes, "history")
    options = {"pad_token_id": setting.pad_token_id, "top_k": 6, "max_length": 20}
    whole = rank_histories(setting.model, histories, setting.prompt_format, setting.trie, **options)
    beams = setting.beams()
    assert beams.tolist() == whole.items.tolist()
    table = self_play_preferences(setting.prefixes, beams, setting.dataset.catalog, train=setting.dataset.train)
    assert 0 < len(table["rejected"][0]) <= 6


def test_a_second_call_reuses_all_parts(setting, ranked, tmp_path) -> None:
    first = setting.beams(folder=tmp_path, key="a")
    assert ranked == [10, 10, 10, 10, 5]
    assert setting.beams(folder=tmp_path, key="a", batch_size=3).tolist() == first.tolist()
    assert len(ranked) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"part-0000{number}.parquet" for number in range(5)]


@pytest.mark.parametrize("moment", ["ranking", "writing"])
def test_an_interrupted_call_is_resumed(setting, ranked, tmp_path, monkeypatch, moment) -> None:
    whole = setting.beams()
    ranked.clear()
    module, name = (self_play, "rank_histories") if moment == "ranking" else (parts.pq, "write_table")
    usual, calls = getattr(module, name), iter(range(9))

    def interrupted(*arguments, **options):
        if next(calls) == 2:
            if moment == "writing":
                arguments[1].write_bytes(b"PAR1 and no more")
            raise KeyboardInterrupt
        return usual(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            setting.beams(folder=tmp_path, key="a")
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["part-00000.parquet", "part-00001.parquet"]
    ranked.clear()
    assert setting.beams(folder=tmp_path, key="a").tolist() == whole.tolist()
    assert ranked == [10, 10, 5]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"key": "b"}, 5),
        ({"num_beams": 5}, 5),
        ({"exclude_history": False}, 5),
        ({"max_length": 10}, 5),
        ({"part_size": 20}, 3),
        ({"prefixes": "other"}, 5),
        ({"prefixes": "fewer"}, 0),
    ],
)
def test_parts_of_other_settings_are_computed_again(setting, ranked, tmp_path, change, again) -> None:
    setting.beams(folder=tmp_path, key="a")
    ranked.clear()
    prefixes = {"other": setting.prefixes.select(range(44, -1, -1)), "fewer": setting.prefixes.select(range(30))}
    options = {"key": "a", **change}
    if "prefixes" in change:
        options["prefixes"] = prefixes[change["prefixes"]]
    beams = setting.beams(folder=tmp_path, **options)
    assert len(ranked) == again
    assert (
        beams.tolist() == setting.beams(**{name: value for name, value in options.items() if name != "key"}).tolist()
    )


def test_parts_of_other_prompts_or_items_are_computed_again(setting, ranked, tmp_path, folder) -> None:
    setting.beams(folder=tmp_path, key="a")
    other = Setting(folder)
    other.prompt_format = PromptFormat.for_catalog(
        other.dataset.catalog, load_tokenizer(folder / "model"), prompt_tail="<item_3>"
    )
    ranked.clear()
    other.beams(folder=tmp_path, key="a")
    assert len(ranked) == 5
    other.trie = TokenTrie.from_sequences(other.trie.child_tokens[:, None], other.trie.items.flip(0))
    ranked.clear()
    other.beams(folder=tmp_path, key="a")
    assert len(ranked) == 5


def test_a_damaged_part_is_computed_again(setting, ranked, tmp_path, caplog) -> None:
    first = setting.beams(folder=tmp_path, key="a")
    (tmp_path / "part-00002.parquet").write_bytes(b"PAR1")
    ranked.clear()
    assert setting.beams(folder=tmp_path, key="a").tolist() == first.tolist()
    assert len(ranked) == 1 and "part-00002.parquet cannot be read" in caplog.text


def test_invalid_arguments_are_an_error(setting, tmp_path) -> None:
    with pytest.raises(ValueError, match="pass a key that identifies the model's weights"):
        setting.beams(folder=tmp_path)
    with pytest.raises(ValueError, match="part_size must be at least 1, not 0"):
        setting.beams(part_size=0)
    with pytest.raises(ValueError, match="not training prefixes"):
        setting.beams(prefixes=setting.dataset.test)


def rank_slowly(folder: Path, pause: float, output: Path) -> None:
    """Saves the recommendations (beams) that self-play returns in this process. Each part takes `pause` seconds longer
    than usual."""
    state, usual = PartialState(cpu=True), self_play.rank_histories

    def slow(*arguments, **options):
        time.sleep(pause)
        return usual(*arguments, **options)

    self_play.rank_histories = slow
    np.save(output / f"{state.process_index}.npy", Setting(folder).beams(folder=output / "parts", key="a"))
    if state.num_processes > 1:
        state.destroy_process_group()


@pytest.mark.slow
def test_two_processes_resume_a_killed_one(setting, folder, tmp_path) -> None:
    """One process is killed after its first parts. Then two processes resume, and each returns the recommendations of
    an uninterrupted run."""
    process = start(partial(rank_slowly, folder, 0.5), tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "parts" / "part-00001.parquet").is_file():
        assert process.is_alive() and time.monotonic() < deadline, log_of(tmp_path)
        time.sleep(0.02)
    process.kill()
    process.join()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.parquet")}
    assert 2 <= len(written) < 5
    run_in_two("ddp", partial(rank_slowly, folder, 0), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for index in range(2):
        assert np.load(tmp_path / f"{index}.npy").tolist() == setting.beams().tolist()
