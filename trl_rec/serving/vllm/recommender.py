"""Recommends the same lists as a [`Recommender`] without a prior, but runs the model in vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from trl_rec.decoding import Recommender
from trl_rec.decoding.priors import Prior
from trl_rec.decoding.recommender import RunParts, load_parts
from trl_rec.decoding.run_folder import local_folder
from trl_rec.items import ItemCatalog
from trl_rec.serving.vllm.ranker import VllmRanker


if TYPE_CHECKING:
    from vllm import LLM

ADAPTER = "adapter_config.json"


@dataclass(frozen=True, eq=False)
class VllmRecommender(Recommender):
    """A [`Recommender`] whose model runs in vLLM. Make it with `from_pretrained`.

    Beam search for single items, filters, `exclude`, `max_per` and `explain` work as in [`Recommender`], and the
    scores are equal up to rounding. Priors are not supported, and the catalogue cannot be changed. Models that write
    whole lists of items can do so only greedily, not by beam search.

    Args:
        model (`LLM`): The model, loaded into vLLM with [`CatalogProcessor`] as a logits processor.
    """

    model: LLM

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | Path,
        *,
        catalog: None = None,
        prior: Prior | Literal["saved"] | None = "saved",
        device: None = None,
        dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> VllmRecommender:
        """Loads a run folder into vLLM.

        Args:
            folder (`str` or `Path`): The folder or hub id.
            catalog (*optional*): Must be None. vLLM reads the catalogue of the run folder.
            prior (*optional*, defaults to `"saved"`): vLLM cannot use a prior. Pass None if the run folder has one.
            device (*optional*): Must be None. vLLM is built for one kind of device.
            dtype (`torch.dtype` or `str`, *optional*): The type of the model's weights. Defaults to vLLM's `"auto"`.
            options: Passed to vLLM's `LLM` (`max_model_len`, `gpu_memory_utilization`, `enforce_eager`, ...).
        """
        path = local_folder(folder)
        if device is not None:
            raise ValueError("vLLM always uses the device that it was built for; leave device out")
        if catalog is not None:
            raise ValueError("vLLM reads the catalogue of the run folder; save yours there, and leave catalog out")
        parts = load_parts(path, folder, with_prior=prior == "saved")
        check_servable(path, parts, prior=parts.prior if prior == "saved" else prior)

        from vllm import LLM

        from trl_rec.serving.vllm.processor import CatalogProcessor

        llm = LLM(
            model=str(path),
            dtype="auto" if dtype is None else dtype,
            logits_processors=[CatalogProcessor],
            logprobs_mode="processed_logits",  # the processor replaces logits by log-probabilities
            max_logprobs=-1,  # no bound
            async_scheduling=False,
            generation_config="vllm",  # not the model's own, which may have top_k and penalties
            **options,
        )
        return cls(llm, parts.tokenizer, parts.catalog, parts.prompt_format, parts.trie, parts.settings, None)

    def with_catalog(self, catalog: ItemCatalog, *, ids_from: str | Path | None = None) -> Recommender:
        """Raises `ValueError`, because vLLM has loaded the catalogue of the run folder."""
        raise ValueError(
            "vLLM cannot change the catalogue while it runs; write a run folder with the new catalogue, and load it"
        )

    @cached_property
    def ranker(self) -> VllmRanker:
        """Ranks the catalogue for requests, which contain item indices instead of ids."""
        return VllmRanker(
            self.model,
            self.prompt_format,
            self.trie,
            self.catalog.without_retired(),
            pad_token_id=int(self.tokenizer.pad_token_id),
            settings=self.settings,
        )


def check_servable(path: Path, parts: RunParts, prior: Prior | None) -> None:
    """Raises `ValueError` if vLLM cannot recommend with the model and settings of a run folder, or with the prior."""
    if (path / ADAPTER).is_file():
        raise ValueError(
            f"{path} contains an adapter, which vLLM does not load from a run folder; write the merged model with "
            "trl-rec export --to merged"
        )
    if prior is not None:
        raise ValueError(
            "vLLM cannot multiply the model by a prior; pass prior=None to recommend with the model alone"
        )
    num_beams = parts.settings["num_beams"]
    if parts.prompt_format.list_length is not None and num_beams > 1:
        raise ValueError(
            f"this model writes lists by beam search (num_beams {num_beams}), which vLLM cannot do; set num_beams to "
            f"1 in {path / 'recommender.json'} to write them greedily"
        )
