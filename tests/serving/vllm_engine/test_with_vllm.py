"""Serves trained models with vLLM, and compares their lists with those of `Recommender`. `make test-vllm` runs this
file in an environment of its own."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.serving.vllm_engine.trained_runs import KINDS, LIST_LENGTH, train_run
from trl_rec import ItemCatalog, Recommender, TokenTrie
from trl_rec.decoding import ItemFilter, RecommendedList, list_logps, list_tokens
from trl_rec.models import read_completions


pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("default")]
vllm = pytest.importorskip("vllm")
from vllm import SamplingParams  # noqa: E402

from trl_rec.serving.vllm import VllmRecommender  # noqa: E402


NUM_HISTORIES = 20
SMALL = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 64}


class Served(NamedTuple):
    kind: str
    run: Path
    here: Recommender
    there: VllmRecommender


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("TRL_REC_TEST_RUNS") or tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, folder: Path) -> Iterator[Served]:
    """A run that is loaded both in this process and in vLLM."""
    run = train_run(request.param, folder)
    there = VllmRecommender.from_pretrained(run, **SMALL)
    yield Served(request.param, run, Recommender.from_pretrained(run, device="cpu"), there)
    there.model.llm_engine.engine_core.shutdown()


def make_histories(catalog: ItemCatalog) -> list[list[str]]:
    """Returns histories of different lengths. One is empty, and one contains an unknown id."""
    rng = random.Random(0)
    histories = [rng.sample(catalog.ids, rng.choice([1, 2, 5, 12])) for _ in range(NUM_HISTORIES - 2)]
    return [[], [*histories[0], "gone"], *histories]


def check_same(some: list[RecommendedList], others: list[RecommendedList]) -> None:
    """Asserts that `short`, `unknown` and `fallback` of the lists are equal, that scores are equal within 1e-5, and
    that items are in the same order. Neighbouring items may change places if their scores differ by less than 1e-5."""
    for one, other in zip(some, others, strict=True):
        assert (one.short, one.unknown, one.fallback) == (other.short, other.unknown, other.fallback)
        scores = [item.score for item in one]
        assert [item.score for item in other] == pytest.approx(scores, abs=1e-5)
        for place, (item, twin) in enumerate(zip(one, other, strict=True)):
            near = [place + step for step in (-1, 1) if 0 <= place + step < len(scores)]
            tied = any(abs(scores[place] - scores[one]) < 1e-5 for one in near)
            assert item.item_id == twin.item_id or tied


def test_lists_are_those_of_the_recommender(served: Served) -> None:
    histories = make_histories(served.here.catalog)
    for k in (LIST_LENGTH, 3):
        check_same(served.here.recommend_batch(histories, k), served.there.recommend_batch(histories, k))


def test_filters_have_the_same_effect(served: Served) -> None:
    catalog = served.here.catalog
    histories = make_histories(catalog)
    genre = served.here.recommend(histories[0], 1)[0].item_id
    genre = catalog.items["genres"][catalog.positions[genre]].as_py()[0]
    mixed = [
        None
        if row % 3 == 0
        else ItemFilter(where=[["genres", "==", genre]])
        if row % 3 == 1
        else ItemFilter(catalog.ids[10:30])
        for row in range(len(histories))
    ]
    for filters, exclude in [
        (mixed, None),
        (ItemFilter(max_per={"genres": 1}), None),
        (ItemFilter(catalog.ids[:3]), [[catalog.ids[1]]] * len(histories)),
        (ItemFilter([]), None),
    ]:
        found = served.there.recommend_batch(histories, LIST_LENGTH, filters=filters, exclude=exclude)
        check_same(served.here.recommend_batch(histories, LIST_LENGTH, filters=filters, exclude=exclude), found)


def test_explanations_are_the_same(served: Served) -> None:
    history = served.here.catalog.ids[:4]
    for one, other in zip(*(each.explain(history, served.here.catalog.ids[9]) for each in served[2:]), strict=True):
        assert other.difference == pytest.approx(one.difference, abs=1e-5)


def test_200_samples_are_distinct_items_of_the_catalogue(served: Served) -> None:
    """Samples are drawn at temperature 1, and one item is excluded. If the run writes lists, the log-probabilities of
    the samples equal those that `list_logps` computes."""
    here = served.here
    is_list = here.prompt_format.list_length is not None
    length = LIST_LENGTH if is_list else 1
    excluded = here.catalog.ids[4]

    # 1. Draw ten completions after each of 20 histories.
    histories = make_histories(here.catalog)
    known = [[here.catalog.positions[item] for item in one if item in here.catalog.positions] for one in histories]
    prompts = [here.prompt_format.encode(as_ragged([one]), max_length=here.settings["max_length"])[0] for one in known]
    parameters = SamplingParams(
        n=10,
        max_tokens=here.trie.longest_list(length),
        logprobs=0,
        extra_args={"items": length, "exclude": [excluded]},
    )
    outputs = served.there.model.generate([{"prompt_token_ids": one.tolist()} for one in prompts], parameters)
    drawn = [[list(one.token_ids) for one in output.outputs] for output in outputs]

    # 2. Read the items.
    eos = here.tokenizer.eos_token_id
    items = torch.tensor([[read_items(here.trie, tokens, length, eos) for tokens in some] for some in drawn])
    assert items.shape == (NUM_HISTORIES, 10, length)
    assert all(len(set(one)) == length for one in items.flatten(0, 1).tolist())
    assert here.catalog.positions[excluded] not in items

    # 3. Compare the log-probabilities.
    if is_list:
        for row, prompt in enumerate(prompts):
            lists = list_tokens(here.trie, items[row : row + 1])
            given = {"input_ids": torch.tensor(prompt)[None], "attention_mask": torch.ones(1, len(prompt))}
            read = read_completions(
                here.model,
                given["input_ids"],
                given["attention_mask"],
                lists.token_ids,
                lists.mask,
                scored=lists.branches,
                tokens=here.trie.tokens,
            )
            exclude = [[here.catalog.positions[excluded]]]
            logps = list_logps(read, items[row : row + 1], here.trie, exclude=exclude)[0].sum(1)
            found = [
                sum(place[token].logprob for place, token in zip(one.logprobs, one.token_ids, strict=True))
                for one in outputs[row].outputs
            ]
            assert found == pytest.approx(logps.tolist(), abs=1e-5)


def as_ragged(rows: list[list[int]]) -> Any:
    from trl_rec.ragged import Ragged

    return Ragged.from_lists(rows)


def read_items(trie: TokenTrie, tokens: list[int], length: int, eos: int) -> list[int]:
    """Returns the items of a completion. If several items share a path, the first one that is not yet in the list is
    used. Item 4, which the requests exclude, is used only if its path has no other item left; the test then fails."""
    items: list[int] = []
    node = 0
    for place, token in enumerate(tokens):
        if len(items) == length:
            assert set(tokens[place:]) <= {eos}
            break
        node = int(trie.advance(torch.tensor(node), torch.tensor(token)))
        assert node >= 0, f"{tokens} is not a path of the trie"
        here = [item for item in trie.items_at(node).tolist() if item not in items]
        if here:
            items.append(here[0] if here[0] != 4 or len(here) == 1 else here[1])
            node = 0
    return items


# The server of vLLM


class Answer(NamedTuple):
    status: int
    body: Any


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[Recommender, int]]:
    """Starts vLLM's own server with a run that writes lists."""
    run = train_run("title_list", folder)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    arguments = ["--model", str(run), "--logits-processors", "trl_rec.serving.vllm.processor:CatalogProcessor"]
    arguments += ["--no-async-scheduling", "--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    arguments += ["--served-model-name", "run", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, "--port", str(port)]
    log = folder / "server.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env={**os.environ, "TRL_REC_RUN": str(run)}, stdout=output, stderr=output)
    try:
        end = time.monotonic() + 600
        while send(port, "/health").status != 200:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(1)
        yield Recommender.from_pretrained(run, device="cpu"), port
    finally:
        process.terminate()
        process.wait(60)


def send(port: int, path: str, body: Any = None) -> Answer:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            content = response.read()
            return Answer(response.status, json.loads(content) if content else None)
    except urllib.error.HTTPError as error:
        return Answer(error.code, json.loads(error.read()))
    except OSError:
        return Answer(0, None)


def complete(server: tuple[Recommender, int], arguments: dict[str, Any], **options: Any) -> Answer:
    """Requests a completion after a history of two items."""
    here, port = server
    prompt = here.prompt_format.encode(as_ragged([[1, 2]]))[0].tolist()
    body = {"model": "run", "prompt": prompt, "max_tokens": 200, "temperature": 0, "vllm_xargs": arguments, **options}
    return send(port, "/v1/completions", body)


def test_the_server_writes_the_list_of_the_recommender(server: tuple[Recommender, int]) -> None:
    here, _ = server
    ids = here.catalog.ids
    where = [["genres", "==", here.catalog.items["genres"][3].as_py()[0]]]
    for arguments, options in [
        ({}, {}),
        ({"exclude": ids[5:9]}, {"exclude": ids[5:9]}),
        ({"where": json.dumps(where)}, {"where": where}),
        ({"allowed": ids[20:40]}, {"allowed": ids[20:40]}),
    ]:
        expected = here.recommend(ids[1:3], LIST_LENGTH, exclude_history=False, **options)
        answer = complete(server, {"items": LIST_LENGTH, **arguments}, logprobs=1)
        assert answer.status == 200, answer
        choice = answer.body["choices"][0]
        assert choice["text"].rstrip("\n").split("\n") == [f'"{item.title}"' for item in expected]
        assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(expected[-1].score, abs=1e-4)
        assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 0}, "items must be at least 1"),
        ({"items": "two"}, "items must be a whole number"),
        ({"items": 6}, "items must be at most 5, because this model writes lists of 5 items"),
        ({"items": 2, "exclude": ["gone"]}, "'gone' is not in the catalogue of 60 items"),
        ({"items": 2, "exclude": [3]}, "exclude must be a list of item ids (strings)"),
        ({"items": 2, "where": "price < 5"}, "'where' is not JSON"),
        ({"items": 2, "where": '[["colour", "==", "red"]]'}, "the catalogue has no column 'colour'"),
        ({"items": 2, "wher": "[]"}, "unknown argument 'wher'"),
        ({"exclude": ["1"]}, "the argument 'exclude' requires the argument 'items'"),
    ],
)
def test_bad_arguments_are_refused_with_status_400(
    server: tuple[Recommender, int], arguments: dict[str, Any], message: str
) -> None:
    answer = complete(server, arguments)
    assert answer.status == 400 and message in answer.body["error"]["message"]


def test_requests_without_items_are_answered_as_usual(server: tuple[Recommender, int]) -> None:
    assert complete(server, {}, max_tokens=4).status == 200


def test_the_v2_runner_is_refused_with_the_remedy() -> None:
    code = "from trl_rec.serving.vllm.processor import CatalogProcessor"
    environment = {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "set the environment variable VLLM_USE_V2_MODEL_RUNNER=0" in done.stderr
