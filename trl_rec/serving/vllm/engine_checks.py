"""Checks how vLLM was started. This module does not import vLLM."""

from __future__ import annotations


# Environment variable that names the run folder, so that requests can be checked against its catalogue.
RUN_VARIABLE = "TRL_REC_RUN"


def check_runner(is_v2: bool) -> None:
    """Raises `ValueError` if vLLM uses its V2 model runner, which is the default where Triton works."""
    if is_v2:
        raise ValueError(
            "CatalogProcessor needs vLLM's V1 model runner; set the environment variable VLLM_USE_V2_MODEL_RUNNER=0"
        )


def check_scheduling(is_async: bool | None) -> None:
    """Raises `ValueError` if vLLM schedules a step before the tokens of the previous step are known."""
    if is_async:
        raise ValueError(
            "CatalogProcessor must see each token before the next step; start vLLM with --no-async-scheduling, or "
            "with async_scheduling=False in Python"
        )
