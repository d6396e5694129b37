"""Runs the model of a run folder in vLLM, with a logits processor that restricts the output to the catalogue.

[`VllmRecommender`] recommends with this processor. The package `vllm` is not a dependency. Install it in an
environment of its own (see `docs/serving.md`). The processor is `trl_rec.serving.vllm.processor:CatalogProcessor`,
which cannot be imported without vLLM.
"""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = ["VllmRecommender"]

if TYPE_CHECKING:
    from trl_rec.serving.vllm.recommender import VllmRecommender
else:
    __getattr__, __dir__ = lazy_names(__name__, {"recommender": ["VllmRecommender"]})
