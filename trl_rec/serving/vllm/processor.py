"""Defines the logits processor that restricts vLLM's output to the catalogue of a run folder.

vLLM loads the processor by name (`--logits-processors trl_rec.serving.vllm.processor:CatalogProcessor`). The processor
is not registered as an entry point, because vLLM would then load it for every model on the machine. It implements the
interface for logits processors of vLLM's V1 model runner, and was written for vLLM 0.32.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.logger import init_logger
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from trl_rec.compat import uses_v2_model_runner
from trl_rec.decoding.run_folder import SETTINGS, load_run, local_folder
from trl_rec.items import TokenTrie
from trl_rec.models.loading import load_tokenizer
from trl_rec.serving.vllm.arguments import RunArguments, check_form, is_held
from trl_rec.serving.vllm.engine_checks import RUN_VARIABLE, check_runner, check_scheduling
from trl_rec.serving.vllm.rows import CatalogRows, Row


if TYPE_CHECKING:
    from vllm.config import VllmConfig

# The V2 model runner would refuse this class with a message that names no remedy. This check raises a clearer error.
check_runner(uses_v2_model_runner())

logger = init_logger(f"vllm.{__name__}")


class CatalogProcessor(LogitsProcessor):  # type: ignore[misc]  # vLLM may not be installed
    """Allows only tokens that continue an item of the catalogue, in requests whose `extra_args` have `items`.

    The catalogue and the tokenizer are those of the model's folder, which must be a run folder. See `arguments.py` for
    what a request may ask for. The logits of legal tokens are replaced by their log-probabilities. With
    `logprobs_mode="processed_logits"`, vLLM therefore returns the same log-probabilities as [`rank_items`] for single
    items, and as [`list_logps`] for lists.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        check_scheduling(vllm_config.scheduler_config.async_scheduling)
        folder = local_folder(vllm_config.model_config.model)
        settings, catalog = load_run(folder, SETTINGS)
        tokenizer = load_tokenizer(folder)

        self._arguments = RunArguments(folder)
        are_lists = self._arguments.list_length is not None
        trie = TokenTrie.from_catalog(catalog, tokenizer, lists=are_lists).to(device)
        self._rows = CatalogRows(
            trie, int(tokenizer.eos_token_id), are_lists=are_lists, renormalize=settings["renormalize"]
        )

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises `ValueError` if a request's arguments are wrong. The response of vLLM's server then has status 400.

        vLLM calls this function in a process that has not loaded the model. By default, only the form of the arguments
        is checked there. If the environment variable `TRL_REC_RUN` names the run folder, item ids and filter
        conditions are also checked against the catalogue.
        """
        check_form(sampling_params.extra_args)
        if not is_held(sampling_params.extra_args):
            return
        if sampling_params.structured_outputs is not None:
            raise ValueError("'items' and structured outputs cannot be combined; leave one of them out")
        folder = os.environ.get(RUN_VARIABLE)
        if folder:
            _arguments_of(folder).row(sampling_params.extra_args, [])

    def is_argmax_invariant(self) -> bool:
        """Returns False, because the best token may not be legal."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Applies vLLM's changes to the rows of the batch: removals, additions and moves, in this order."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.remove(index)
        for index, params, _, written in batch_update.added:
            self._rows.remove(index)
            if is_held(params.extra_args):
                self._rows.add(index, self._row(params, written))
        for source, target, direction in batch_update.moved:
            self._rows.move(source, target, swap=direction == MoveDirectionality.SWAP)

    def apply(self, logits: Tensor) -> Tensor:
        """Returns the logits `(rows, V)` after the restriction to the catalogue.

        In restricted rows, legal tokens get their log-probabilities, and all other tokens get -inf.
        """
        return self._rows.apply(logits)

    def _row(self, params: SamplingParams, written: list[int]) -> Row:
        """Returns the [`Row`] that describes a request.

        If the arguments are wrong, the request ends without an item, because an error at this point would stop vLLM.
        """
        try:
            return self._arguments.row(params.extra_args, written)
        except ValueError as error:
            logger.warning(
                "A request ends without an item: %s. Set %s to the run folder to refuse such requests.",
                error,
                RUN_VARIABLE,
            )
            return Row(0, written)


@cache
def _arguments_of(folder: str) -> RunArguments:
    return RunArguments(folder)
