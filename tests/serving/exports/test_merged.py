"""Tests the export of a run folder as a model that needs neither PEFT nor quantisation, and gives the same lists."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from peft import PeftConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_bpe
from trl_rec import ItemCatalog, Recommender, cli
from trl_rec.decoding.priors import PopularityPrior
from trl_rec.decoding.priors.run_folder import save_run_prior
from trl_rec.decoding.run_folder import save_recommender
from trl_rec.models import add_item_tokens, load_model, lora_config
from trl_rec.serving.exports import export_merged


NUM_ITEMS = 12
HISTORIES = [[str(item) for item in range(user, user + length)] for user, length in enumerate([1, 3, 2, 5])]
SETTINGS = {"prompt": {}, "max_length": 64, "renormalize": True, "length_penalty": 0.0, "num_beams": NUM_ITEMS}
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


@pytest.fixture
def catalog() -> ItemCatalog:
    ids = [str(item) for item in range(NUM_ITEMS)]
    return ItemCatalog(pa.table({"item_id": ids, "title": [f"Thing {item}" for item in ids]}), surface="item_token")


@pytest.fixture
def make_run(catalog: ItemCatalog, tmp_path: Path) -> Callable[..., Path]:
    def make(*, tied: bool = True, quantized: bool = False, adapter: str = "lora") -> Path:
        """Makes a run folder, by default with a LoRA adapter of random weights. The base model is in a folder beside
        the run folder."""
        tokenizer = make_bpe(["a b"], vocab_size=280)
        model = make_family("llama", vocab_size=len(tokenizer))
        model.config.tie_word_embeddings = tied
        model.tie_weights()
        new = add_item_tokens(model, tokenizer, catalog)
        model.save_pretrained(tmp_path / "base")
        if quantized:
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=NF4)
            model.save_pretrained(tmp_path / "base")
        else:
            model = load_model(tmp_path / "base")

        if adapter == "lora":
            model = get_peft_model(model, lora_config(model, new, r=4))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn(parameter.shape) * (0.3 if "lora" in name else 0.5))
        elif adapter == "prompt":
            model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))

        run = tmp_path / "run"
        model.save_pretrained(run), tokenizer.save_pretrained(run)
        save_recommender(run, catalog, SETTINGS)
        save_run_prior(run, PopularityPrior(np.arange(NUM_ITEMS), strength=0.5))
        (run / "rankings.parquet").touch()
        return run

    return make


def lists(folder: Path, **options: Any) -> list[list[tuple[str, float]]]:
    recommender = Recommender.from_pretrained(folder, device="cpu", **options)
    return [[(one.item_id, one.score) for one in listed] for listed in recommender.recommend_batch(HISTORIES, 6)]


def assert_same_lists(one: list[Any], other: list[Any]) -> None:
    # Merging adds the adapter's updates to the weights, and rounds the sums to float32. The updates are large here,
    # because they are random. On some processors, the rounding changes scores near 5 by 1.5e-5.
    for first, second in zip(one, other, strict=True):
        assert [item for item, _ in first] == [item for item, _ in second]
        assert [score for _, score in first] == pytest.approx([score for _, score in second], abs=3e-5)


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"quantized": True}, {"adapter": "none"}], ids=str)
def test_lists_stay_the_same(options: dict[str, Any], make_run: Callable[..., Path], tmp_path: Path) -> None:
    run, merged = make_run(**options), tmp_path / "merged"
    (run / "catalog" / ".items.parquet.0a1b.tmp").write_bytes(b"what a killed run left behind")
    before = lists(run)
    assert (run / "adapter_config.json").is_file() == ("adapter" not in options)
    assert export_merged(run, merged) == merged
    for folder in (run, tmp_path / "base"):  # neither folder is needed any more
        folder.rename(tmp_path / f"away-{folder.name}")

    model = AutoModelForCausalLM.from_pretrained(merged)
    assert type(model).__name__ == "LlamaForCausalLM" and not getattr(model, "is_quantized", False)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert_same_lists(lists(merged), before)
    assert lists(merged, prior=None)[0] != before[0]
    names = {path.name for path in merged.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "recommender.json", "prior.safetensors"} <= names
    assert names.isdisjoint({"adapter_config.json", "adapter_model.safetensors", "rankings.parquet"})
    assert not [*(merged / "catalog").glob(".*")]


def test_the_command_writes_another_dtype(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    cli.main(
        ["export", "--model", str(run), "--to", "merged", "--output", str(tmp_path / "half"), "--dtype", "bfloat16"]
    )
    assert "half; it needs no PEFT" in capsys.readouterr().out
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    words = ["recommend", "--model", str(tmp_path / "half"), "--titles", "Thing 3", "--k", "2"]
    cli.main(words)
    assert "  2. Thing" in capsys.readouterr().out


def test_an_adapter_that_cannot_be_merged_is_refused(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run(adapter="prompt")
    with pytest.raises(ValueError, match=r"run \(PROMPT_TUNING\) cannot be merged into its base model: it adds no"):
        export_merged(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(ValueError, match="base already exists; choose another output"):
        export_merged(run, tmp_path / "base")
    assert PeftConfig.from_pretrained(run).peft_type.value == "PROMPT_TUNING"


def test_a_base_that_cannot_be_dequantised_is_refused(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(quantized=True)

    def cannot(self: Any, dtype: Any = None) -> None:
        raise NotImplementedError("no implementation of `dequantize`")

    monkeypatch.setattr("transformers.PreTrainedModel.dequantize", cannot)
    with pytest.raises(
        ValueError, match="run is quantised with bitsandbytes, which transformers cannot undo; use the"
    ):
        export_merged(run, tmp_path / "merged")
