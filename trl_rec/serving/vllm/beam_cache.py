"""Lets vLLM compute the log-probabilities of a beam search, in place of a model in this process.

[`VllmPrompts`] has the interface `BeamCache` of `decoding/beam.py`. Each active beam (a beam that the model reads now)
is a request of its own, which consists of the prompt and the beam's tokens, and asks for one new token. vLLM returns
the highest log-probabilities at the position of the new token. vLLM also caches the common beginnings of requests. If
the search skips forced tokens (see `decoding/beam.py`), they need no requests of their own: the next request of the
beam contains them.

Legend: B: prompts, K: beams per prompt, A: active beams per prompt, U: distinct tokens of the trie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trl_rec.decoding.checks import check_no_nan
from trl_rec.decoding.prompt_cache import Pending
from trl_rec.items import TokenTrie


if TYPE_CHECKING:
    from vllm import LLM


class Ask(NamedTuple):
    """A request to vLLM.

    Args:
        tokens (`list[int]`): The prompt, and the tokens of the item so far.
        arguments (`dict`): The `extra_args` of vLLM's `SamplingParams`, see `arguments.py`.
    """

    tokens: list[int]
    arguments: Mapping[str, Any]


class Written(NamedTuple):
    """The result of a request.

    Args:
        tokens (`list[int]`): The new tokens.
        best: For each new token, the tokens whose log-probabilities were returned, and these log-probabilities.
    """

    tokens: list[int]
    best: list[tuple[list[int], list[float]]]


def ask(
    llm: LLM,
    asks: Sequence[Ask],
    num_tokens: int,
    wanted: Sequence[list[int]] | None = None,
    *,
    logprobs: int | None = None,
) -> list[Written]:
    """Lets vLLM decode greedily, and returns the result of each request.

    Args:
        llm (`LLM`): vLLM, with a [`CatalogProcessor`].
        asks (list of [`Ask`]): The requests.
        num_tokens (`int`): Maximum number of new tokens per request.
        wanted (lists of `int`, *optional*): The tokens whose log-probabilities are returned, one list per request.
        logprobs (`int`, *optional*): If given, each new token is returned with its own log-probability and those of
            the `logprobs` most likely tokens.
    """
    from vllm import SamplingParams

    tokens = [None] * len(asks) if wanted is None else wanted
    parameters = [
        SamplingParams(
            temperature=0.0,
            max_tokens=num_tokens,
            detokenize=False,
            extra_args=dict(one.arguments),
            logprobs=logprobs,
            logprob_token_ids=own,
        )
        for one, own in zip(asks, tokens, strict=True)
    ]
    outputs = llm.generate([{"prompt_token_ids": one.tokens} for one in asks], parameters, use_tqdm=False)
    completions = [output.outputs[0] for output in outputs]
    return [
        Written(
            list(one.token_ids),
            [([*place], [found.logprob for found in place.values()]) for place in one.logprobs or ()],
        )
        for one in completions
    ]


class VllmPrompts:
    """The beams of a batch of prompts.

    Args:
        llm (`LLM`): vLLM, with a [`CatalogProcessor`].
        prompts (lists of `int`): The prompts.
        arguments (list of `dict`): The `extra_args` of each prompt.
        trie (`TokenTrie`): The catalogue, on the CPU.
        num_beams (`int`): For each beam, vLLM returns the log-probabilities of at most this many tokens.

    Attributes:
        logits (`torch.Tensor` of shape `(B, 1, U)`): The log-probabilities after the prompts, of the best `num_beams`
            tokens; -inf for other tokens.
    """

    shared = True
    has_logps = True

    def __init__(
        self,
        llm: LLM,
        prompts: Sequence[list[int]],
        arguments: Sequence[Mapping[str, Any]],
        trie: TokenTrie,
        num_beams: int,
    ) -> None:
        self._llm = llm
        self._prompts = prompts
        self._arguments = arguments
        self._trie = trie
        self._num_returned = min(num_beams, trie.max_width)
        self._read: list[list[list[int]]] = [
            [[]] for _ in prompts
        ]  # for each prompt and beam, the tokens that were read
        self.logits = self._logps((row, []) for row in range(len(prompts))).unsqueeze(1)

    def reorder(self, parents: Tensor) -> None:
        """Makes beam `k` a continuation of beam `parents[:, k]`."""
        self._read = [
            [beams[parent] for parent in row] for beams, row in zip(self._read, parents.tolist(), strict=True)
        ]

    def extend(self, pending: Pending) -> tuple[Tensor, Tensor, Tensor]:
        """Reads the pending tokens of the active beams.

        Returns:
            `logps (B, A, U)`, the log-probabilities after each active beam; `slots (B, A)`, the index of each active
            beam among the K beams; and `valid (B, A)`, False where a prompt has fewer than A active beams.
        """
        slots = torch.argsort(~pending.active, dim=1, stable=True)[:, : pending.num_active]
        valid = pending.active.gather(1, slots)  # (B, A)

        # 1. Append the pending tokens.
        active = [(row, int(slots[row, column])) for row, column in valid.nonzero().tolist()]
        lengths = pending.lengths.tolist()
        tokens = pending.tokens.tolist()
        for row, beam in active:
            length = lengths[row][beam]
            self._read[row][beam] = self._read[row][beam] + tokens[row][beam][len(tokens[row][beam]) - length :]

        # 2. Request the log-probabilities of all active beams together.
        logps = torch.full((*valid.shape, len(self._trie.tokens)), -torch.inf)
        logps[valid] = self._logps((row, self._read[row][beam]) for row, beam in active)
        return logps, slots, valid

    def _logps(self, beams: Iterable[tuple[int, list[int]]]) -> Tensor:
        """Returns the log-probabilities after each beam, one row per beam.

        A beam is given by the index of its prompt, and its tokens after the prompt.
        """
        asks = [
            Ask(self._prompts[row] + tokens, {**self._arguments[row], "items": 1, "prefix": tokens})
            for row, tokens in beams
        ]
        written = ask(self._llm, asks, 1, logprobs=self._num_returned)

        # Drop tokens with log-probability -inf: vLLM adds arbitrary illegal tokens if there are too few legal ones.
        # Also drop EOS if the trie lacks it: if a request has no item left to write, the processor allows only EOS.
        logps = torch.full((len(asks), len(self._trie.tokens)), -torch.inf)
        known = self._trie.tokens.numpy()
        for row, one in enumerate(written):
            tokens, values = map(np.array, one.best[0])
            columns = np.searchsorted(known, tokens).clip(max=len(known) - 1)
            kept = (known[columns] == tokens) & (values != -np.inf)
            logps[row, columns[kept]] = torch.from_numpy(values[kept]).float()
        check_no_nan(logps)
        return logps
