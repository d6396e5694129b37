"""Replaces vLLM in tests. The stand-in decodes greedily with a transformers model, and changes the logits as our
logits processor does in vLLM."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from trl_rec import Recommender
from trl_rec.serving.vllm import VllmRecommender
from trl_rec.serving.vllm.arguments import RunArguments
from trl_rec.serving.vllm.rows import CatalogRows


class StandIn:
    """Answers like `LLM.generate` with `logprobs_mode="processed_logits"`.

    Args:
        recommender ([`Recommender`]): The recommender whose model and trie are used.
        run (`Path`): The run folder of the recommender.
    """

    def __init__(self, recommender: Recommender, run: Path) -> None:
        self.num_requests = 0
        self._recommender = recommender
        self._arguments = RunArguments(run)

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], parameters: Sequence[Any], use_tqdm: bool
    ) -> list[Any]:
        assert not use_tqdm and len(prompts) == len(parameters)
        self.num_requests += len(prompts)
        return [
            SimpleNamespace(outputs=[self._completion(one["prompt_token_ids"], own)])
            for one, own in zip(prompts, parameters, strict=True)
        ]

    @torch.no_grad()
    def _completion(self, prompt: list[int], wanted: Any) -> Any:
        here = self._recommender
        is_list = here.prompt_format.list_length is not None
        rows = CatalogRows(
            here.trie, here.tokenizer.eos_token_id, are_lists=is_list, renormalize=here.settings["renormalize"]
        )
        written: list[int] = []
        rows.add(0, self._arguments.row(wanted.extra_args, written))
        logprobs = []
        for _ in range(wanted.max_tokens):
            logits = here.model(torch.tensor([[*prompt, *written]])).logits[:, -1]
            scores = rows.apply(logits)[0]
            token = int(scores.argmax())
            returned = wanted.logprob_token_ids
            if returned is None:
                returned = [token, *scores.topk(wanted.logprobs).indices.tolist()]
            logprobs.append({one: SimpleNamespace(logprob=float(scores[one])) for one in returned})
            written.append(token)
            if token == here.tokenizer.eos_token_id:
                break
        return SimpleNamespace(token_ids=written, logprobs=logprobs)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the package `vllm` by a module that has only `SamplingParams`."""
    module = ModuleType("vllm")
    module.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)


def in_stand_in(recommender: Recommender, run: Path) -> VllmRecommender:
    """Returns a [`VllmRecommender`] with the parts of a recommender, and with the stand-in in place of vLLM."""
    return VllmRecommender(
        StandIn(recommender, run),
        recommender.tokenizer,
        recommender.catalog,
        recommender.prompt_format,
        recommender.trie,
        recommender.settings,
    )
