"""Tests that the keys in `recommender.json` and `ranker.json` do not change. Options have other names in Python: for
example, `prompt_head` is saved as `head`. Also tests a prior that does not know retired items, and the remedies in the
errors about a wrong catalogue."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.evaluation.logs import make_split, whole_rows
from trl_rec import AlroConfig, BearConfig, CandidateRanker, ItemCatalog, Recommender
from trl_rec.decoding import rated_tokens
from trl_rec.decoding.candidates import save_ranker
from trl_rec.decoding.priors import TransitionPrior
from trl_rec.decoding.run_folder import save_recommender, settings_of_run
from trl_rec.models import make_model, make_tokenizer
from trl_rec.ragged import Ragged


RECOMMENDER = """{
  "prompt": {
    "head": "After ",
    "item": null,
    "tail": null,
    "chat_template": false,
    "list_length": 2
  },
  "max_length": 64,
  "renormalize": true,
  "length_penalty": 0.0,
  "num_beams": 1
}
"""
RANKER = """{
  "prompt": {
    "head": null,
    "item": null,
    "tail": null,
    "candidates": "<answer>",
    "chat_template": false,
    "letters": false
  },
  "ratings": [
    1.0,
    5.0
  ],
  "max_length": 64,
  "max_history": 20,
  "single_pass": false
}
"""


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder with a model, its tokenizer and three items."""
    ids = ["a", "b", "c"]
    catalog = ItemCatalog(pa.table({"item_id": ids, "title": ids}), surface="item_token")
    tokenizer = make_tokenizer(catalog, texts=["After "])
    tokenizer.add_tokens(rated_tokens(catalog, [1.0, 5.0], letters=False))
    tokenizer.save_pretrained(tmp_path)
    make_model(tokenizer, hidden_size=16).save_pretrained(tmp_path)
    catalog.save(tmp_path / "catalog")
    return tmp_path


def test_a_given_prior_need_not_know_retired_items(run_folder: Path) -> None:
    """Histories may contain retired items, but a prior that was fitted to a new log does not know these items."""
    catalog = ItemCatalog.load(run_folder / "catalog")
    replace(catalog, num_retired=1).save(run_folder / "catalog")
    (run_folder / "recommender.json").write_text(RECOMMENDER.replace('"list_length": 2', '"list_length": null'))
    prior = TransitionPrior.fit(make_split(whole_rows([[0, 1], [1, 0]])), 2)
    recommender = Recommender.from_pretrained(run_folder, prior=prior)
    assert [one.item_id for one in recommender.recommend(["a", "c"], 1)] == ["b"]


def test_the_settings_of_a_recommender_keep_their_keys(run_folder: Path) -> None:
    (run_folder / "recommender.json").write_text(RECOMMENDER)
    recommender = Recommender.from_pretrained(run_folder)
    config = BearConfig(output_dir=str(run_folder), prompt_head="After ", list_length=2, eval_ks=[1], use_cpu=True)

    assert recommender.tokenizer.decode(recommender.prompt_format.prompt_head).endswith("After")
    assert recommender.prompt_format.list_length == 2
    assert settings_of_run(run_folder)["prompt"] == config.prompt_options

    save_recommender(run_folder, recommender.catalog, {"prompt": config.prompt_options, **recommender.settings})
    assert written(run_folder / "recommender.json") == json.loads(RECOMMENDER)


def test_the_settings_of_a_ranker_keep_their_keys(run_folder: Path) -> None:
    (run_folder / "ranker.json").write_text(RANKER)
    ranker = CandidateRanker.from_pretrained(run_folder)
    config = AlroConfig(output_dir=str(run_folder), prompt_candidates="<answer>", letters=False, use_cpu=True)

    assert ranker.tokenizer.decode(ranker.prompt_format.prompt_candidates) == "<answer>"
    assert [item.item_id for item in ranker.rank(["a"], [5.0], ["c", "b"])]

    settings = {"prompt": config.prompt_options, "ratings": [1.0, 5.0], **ranker.settings}
    save_ranker(run_folder, ranker.catalog, settings)
    assert written(run_folder / "ranker.json") == json.loads(RANKER)


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_remedy_fits_a_given_catalogue(as_folder: bool, run_folder: Path, tmp_path: Path) -> None:
    """If the user gave the wrong catalogue, the run folder may be intact. So the error must not advise the user to
    restore it from a copy, or to train again."""
    (run_folder / "recommender.json").write_text(RECOMMENDER)
    own = ItemCatalog.load(run_folder / "catalog")

    def refused(catalog: ItemCatalog) -> str:
        catalog.save(tmp_path / "data" / "catalog")
        with pytest.raises(ValueError, match="the model was trained with") as error:
            Recommender.from_pretrained(run_folder, catalog=tmp_path / "data" if as_folder else catalog)
        message = str(error.value)
        assert "restore" not in message and "train again" not in message
        return message

    def ids(last: str) -> Ragged:
        return Ragged.from_lists([["<a_0>", f"<b_{code}>"] for code in (0, 1, last)], object)

    # 1. Folders of earlier versions do not record the catalogue. The remedy for a wrong surface is a piece of Python.
    remedy = refused(own.with_surface("title")).split("give catalog=")[1].removesuffix(" in Python")
    given = eval(remedy, {"ItemCatalog": ItemCatalog, "catalog": own.with_surface("title")})
    assert Recommender.from_pretrained(run_folder, catalog=given).catalog.surface == "item_token"
    remedy = "give the catalogue or the dataset that the model was trained on (catalog="
    few = ItemCatalog(own.items.slice(0, 2), "item_token")
    assert remedy in refused(few)

    # 2. Folders of this version record the catalogue. The items and the semantic IDs are compared with this record.
    settings = json.loads(RECOMMENDER)
    save_recommender(run_folder, own, settings)
    assert remedy in refused(few)
    save_recommender(run_folder, own.with_surface("semantic_id", ids("2")), settings)
    assert remedy in refused(own.with_surface("semantic_id", ids("3")))


def written(path: Path) -> dict[str, Any]:
    """Returns the settings in a file, without the record of the catalogue."""
    settings: dict[str, Any] = json.loads(path.read_text())
    record = settings.pop("catalog")
    assert record["surface"] == "item_token" and len(record["fingerprint"]) == len(record["surfaces"]) == 16
    return settings
