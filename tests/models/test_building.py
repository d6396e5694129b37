"""Tests how models are built from recipes: adapters, trusted code, seeds and sizes."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import ModelConfig

from tests.conftest import make_model as make_family
from trl_rec import ItemCatalog
from trl_rec.models import RecModelConfig, building, load_model, load_policy, load_tokenizer, loading_options
from trl_rec.models.building import build_model
from trl_rec.models.scratch import make_model, make_tokenizer


@pytest.fixture
def adapter(tokenizer_copy, tmp_path: Path) -> Path:
    """The folder of an adapter and a tokenizer. The adapter's base model is in the folder `base` next to this one."""
    make_family("llama", vocab_size=len(tokenizer_copy)).save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "adapter")
    tokenizer_copy.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def catalog_of_titles(titles) -> ItemCatalog:
    ids = [str(row) for row in range(len(titles))]
    return ItemCatalog(pa.table({"item_id": ids, "title": list(titles)}), surface="title")


def trained(model: torch.nn.Module) -> set[str]:
    return {name.split(".")[-3] for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_adapter_of_a_policy_stays_trainable(adapter: Path) -> None:
    assert trained(load_model(adapter)) == set()
    assert trained(load_policy(adapter)) == {"lora_A", "lora_B"}
    assert all(parameter.requires_grad for parameter in load_policy(adapter.parent / "base").parameters())


def test_a_recipe_that_starts_from_an_adapter_trains_it(adapter: Path, catalog_of_titles: ItemCatalog) -> None:
    model, _, config = build_model(catalog_of_titles, RecModelConfig(str(adapter)))
    assert config is None and trained(model) == {"lora_A", "lora_B"}


def test_remote_code_is_trusted_only_on_request(
    adapter: Path, catalog_of_titles: ItemCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "trust_remote_code" not in loading_options(ModelConfig())
    assert loading_options(ModelConfig(), True)["trust_remote_code"] is True
    trusted = []

    def watch(name: str, **options: object) -> torch.nn.Module:
        trusted.append(options.get("trust_remote_code"))
        return load_policy(name, **options)

    monkeypatch.setattr(building, "load_policy", watch)
    for trust in (True, False):
        build_model(catalog_of_titles, RecModelConfig(str(adapter)), trust_remote_code=trust)
    assert trusted == [True, None]


@pytest.mark.parametrize("from_policy", [False, True])
def test_the_tokenizer_has_the_revision_of_the_model(
    from_policy: bool, adapter: Path, catalog_of_titles: ItemCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    revisions = []

    def watch(name: str, **options: object) -> object:
        revisions.append(options["revision"])
        return load_tokenizer(name, revision=options["revision"])

    monkeypatch.setattr(building, "load_tokenizer", watch)
    config = RecModelConfig(str(adapter), model_revision="v2")
    building.build_policy(config) if from_policy else build_model(catalog_of_titles, config)
    assert revisions == ["v2"]


def test_embeddings_of_new_tokens_depend_only_on_the_seed(adapter: Path, catalog_of_titles: ItemCatalog) -> None:
    catalog, config = catalog_of_titles.with_surface("item_token"), RecModelConfig(str(with_tokenizer(adapter)))

    def embeddings(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed())  # the random state must not matter
        return build_model(catalog, config, seed=seed)[0].get_input_embeddings().weight.detach()

    assert torch.equal(embeddings(0), embeddings(0)) and not torch.equal(embeddings(0), embeddings(1))


def with_tokenizer(adapter: Path) -> Path:
    """Copies the adapter's tokenizer into the folder of the base model, and returns this folder."""
    for file in adapter.glob("token*"):
        (adapter.parent / "base" / file.name).write_bytes(file.read_bytes())
    return adapter.parent / "base"


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, not 0"),
        ({"hidden_size": -64}, "hidden_size must be at least 1, not -64"),
        ({"hidden_size": 64.0}, "hidden_size must be a whole number, not 64.0"),
        ({"num_layers": 0}, "num_layers must be at least 1, not 0"),
        ({"num_heads": 0}, "num_heads must be at least 1, not 0"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"dropout": 1.0}, "dropout must be from 0 to below 1, not 1.0"),
        ({"hidden_size": 65}, "hidden_size is 65 and num_heads is 2, but .* twice num_heads; set hidden_size to 64"),
        ({"hidden_size": 6}, "hidden_size is 6 and num_heads is 2, but .* twice num_heads; set hidden_size to 8"),
        ({"hidden_size": 16, "num_heads": 3}, "hidden_size is 16 and num_heads is 3, but .* set hidden_size to 18"),
        ({"hidden_size": 2, "num_heads": 8}, "hidden_size is 2 and num_heads is 8, but .* set hidden_size to 16"),
    ],
)
def test_impossible_sizes_are_refused(size: dict[str, float], says: str) -> None:
    catalog = ItemCatalog(pa.table({"item_id": ["a"], "title": ["A"]}), surface="item_token")
    with pytest.raises(ValueError, match=says):
        make_model(make_tokenizer(catalog), **size)


@pytest.mark.parametrize(("hidden_size", "num_heads"), [(64, 2), (16, 8), (2, 1), (18, 3)])
def test_models_of_possible_sizes_run(hidden_size: int, num_heads: int) -> None:
    catalog = ItemCatalog(pa.table({"item_id": ["a"], "title": ["A"]}), surface="item_token")
    model = make_model(make_tokenizer(catalog), hidden_size=hidden_size, num_heads=num_heads)
    assert model(torch.tensor([[1, 2, 3]])).logits.shape[:2] == (1, 3)


@pytest.mark.parametrize("option", ["use_peft", "load_in_4bit", "load_in_8bit"])
def test_a_model_from_scratch_has_no_adapter_and_is_not_quantised(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} needs a pretrained model, but model_name_or_path is not set"):
        RecModelConfig(**{option: True})
    assert getattr(RecModelConfig("some/model", **{option: True}), option)
