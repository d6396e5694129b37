"""Tests `VllmRecommender` without vLLM: its search, for which a stand-in replaces the engine, and the runs and options
that it refuses."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from tests.decoding.recommenders import LIST_LENGTH, UnevenPrior, make_recommender, random_histories
from tests.serving.vllm_engine.stand_in import in_stand_in, install
from trl_rec import Recommender
from trl_rec.decoding import ItemFilter
from trl_rec.decoding.recommender import load_parts
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.serving.vllm import VllmRecommender
from trl_rec.serving.vllm.engine_checks import check_runner, check_scheduling
from trl_rec.serving.vllm.recommender import ADAPTER, check_servable


pytestmark = pytest.mark.filterwarnings("ignore:.*the same text as an earlier item:UserWarning")

# Each pair is a kind of recommender and its setting `renormalize`. If the setting is True, the softmax is over the
# legal tokens alone. Recommenders that write lists always use this softmax. The others are tested with both values.
SEARCHES = [(kind, True) for kind in ("item_token", "semantic_id", "title", "list", "title_list")]
SEARCHES += [(kind, False) for kind in ("item_token", "semantic_id", "title")]
FILTERS = [
    None,
    ItemFilter(where=[["price", "<", 50]]),
    ItemFilter(["id 1", "id 2", "id 5"]),
    ItemFilter(max_per={"brand": 1}),
    ItemFilter([]),
]


def save_run(kind: str, folder: Path, num_beams: int = 4, **settings: object) -> Recommender:
    """Saves a recommender as a run folder, and returns the recommender that is loaded from this folder. `kind` is one
    of the `KINDS` in `tests/decoding/recommenders.py`."""
    here = make_recommender(kind, num_beams=num_beams)
    here.model.save_pretrained(folder)
    here.tokenizer.save_pretrained(folder)
    prompt = {} if here.prompt_format.list_length is None else {"list_length": here.prompt_format.list_length}
    save_recommender(folder, here.catalog, {**here.settings, "prompt": prompt, **settings})
    return Recommender.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(("kind", "renormalize"), SEARCHES)
def test_lists_are_those_of_the_recommender(
    kind: str, renormalize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    here = save_run(kind, tmp_path, renormalize=renormalize, length_penalty=0.0 if "list" in kind else 0.5)
    there = in_stand_in(here, tmp_path)
    histories = [[], *random_histories(random.Random(1), 5)]
    for one, k in [(None, 3), *((one, LIST_LENGTH) for one in FILTERS)]:
        expected = here.recommend_batch(histories, k, filters=one, exclude=[["id 3"]] * 6)
        found = there.recommend_batch(histories, k, filters=one, exclude=[["id 3"]] * 6)
        for some, others in zip(expected, found, strict=True):
            assert [item.item_id for item in others] == [item.item_id for item in some]
            assert [item.score for item in others] == pytest.approx([item.score for item in some], abs=2e-5)
            assert (others.short, others.unknown) == (some.short, some.unknown)

    expected = here.explain(histories[3], "id 12")
    found = there.explain(histories[3], "id 12")
    assert [one.difference for one in found] == pytest.approx([one.difference for one in expected], abs=2e-5)


def test_forced_tokens_need_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is forced if it is the only legal one. With one beam, each token that is not forced takes one request.
    The request for the prompt scores the first token, and is made even if that token is forced. In that case, there is
    one request more than there are tokens that are not forced."""
    install(monkeypatch)
    here = save_run("title", tmp_path, num_beams=1)
    there = in_stand_in(here, tmp_path)
    item = there.recommend(["id 3"], 1)[0]
    path = here.prompt_format.paths[here.catalog.positions[item.item_id]]
    nodes = here.trie.walk(torch.from_numpy(path))[:-1]
    num_branches = int((here.trie.row_offsets[nodes + 1] - here.trie.row_offsets[nodes] > 1).sum())
    assert there.model.num_requests == num_branches + (1 if here.trie.depth_widths[0] == 1 else 0) < len(path)


def test_nan_scores_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    for kind in ("semantic_id", "list"):
        here = save_run(kind, tmp_path / kind)
        there = in_stand_in(here, tmp_path / kind)
        here.model.lm_head.weight.data.fill_(torch.nan)
        with pytest.raises(ValueError, match="NaN"):
            there.recommend(["id 3"], 3)


def test_runs_and_options_that_vllm_cannot_serve_are_refused(tmp_path: Path) -> None:
    save_run("beam_list", tmp_path / "beams")
    save_run("item_token", tmp_path / "run")
    with pytest.raises(ValueError, match=r"writes lists by beam search \(num_beams 3\), which vLLM cannot do; set"):
        VllmRecommender.from_pretrained(tmp_path / "beams")
    with pytest.raises(ValueError, match="cannot multiply the model by a prior; pass prior=None"):
        VllmRecommender.from_pretrained(tmp_path / "run", prior=UnevenPrior())
    with pytest.raises(ValueError, match="leave device out"):
        VllmRecommender.from_pretrained(tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="save yours there, and leave catalog out"):
        VllmRecommender.from_pretrained(tmp_path / "run", catalog=tmp_path)
    with pytest.raises(ValueError, match="is not a run folder"):
        VllmRecommender.from_pretrained(tmp_path)

    parts = load_parts(tmp_path / "run", "run", with_prior=False)
    (tmp_path / "run" / ADAPTER).write_text("{}")
    with pytest.raises(
        ValueError, match="contains an adapter, .* write the merged model with trl-rec export --to merged"
    ):
        check_servable(tmp_path / "run", parts, None)


def test_another_catalogue_is_refused(tmp_path: Path) -> None:
    here = save_run("item_token", tmp_path)
    with pytest.raises(ValueError, match="cannot change the catalogue while it runs"):
        in_stand_in(here, tmp_path).with_catalog(here.catalog)


def test_the_settings_of_vllm_are_checked() -> None:
    check_runner(False)
    check_scheduling(False)
    with pytest.raises(ValueError, match="set the environment variable VLLM_USE_V2_MODEL_RUNNER=0"):
        check_runner(True)
    with pytest.raises(ValueError, match="start vLLM with --no-async-scheduling"):
        check_scheduling(True)
