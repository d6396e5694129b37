"""Tests that the embeddings of new item tokens start from given vectors of the items."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.conftest import make_model as make_family
from tests.conftest import make_tokenizer as make_text_tokenizer
from trl_rec import ItemCatalog
from trl_rec.models import RecModelConfig, build_model, make_model, make_tokenizer, start_from_vectors
from trl_rec.models.item_vectors import RANDOM_SHARE, _token_vectors
from trl_rec.ragged import Ragged


NUM_ITEMS = 60


def make_catalog(surface: str = "item_token") -> ItemCatalog:
    ids = [str(item) for item in range(NUM_ITEMS)]
    codes = Ragged.from_lists([[f"<a_{item % 4}>", f"<b_{item // 4}>"] for item in range(NUM_ITEMS)], object)
    return ItemCatalog(pa.table({"item_id": ids, "title": ids}), surface=surface, semantic_ids=codes)


@pytest.fixture
def vectors() -> Tensor:
    """Centred vectors of 6 groups of 10 items. The vectors of a group differ by a little noise."""
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(6, 12, generator=generator).repeat_interleave(10, 0)
    vectors = groups + 0.1 * torch.randn(NUM_ITEMS, 12, generator=generator)
    return vectors - vectors.mean(0)


def started(vectors: Tensor, catalog: ItemCatalog, width: int = 32, seed: int = 0) -> tuple[PreTrainedModel, Tensor]:
    """Makes a model from scratch, and initialises the embeddings of the catalogue's tokens with the vectors. Returns
    the model and these embeddings."""
    tokenizer = make_tokenizer(catalog)
    model = make_model(tokenizer, hidden_size=width)
    start_from_vectors(model, tokenizer, catalog, vectors, seed=seed)
    vocabulary = tokenizer.get_vocab()
    tokens = [vocabulary[token] for token in catalog.new_tokens]
    return model, model.get_input_embeddings().weight[tokens].detach()


@pytest.mark.parametrize("width", [8, 32])  # fewer and more dimensions than the vectors have
def test_items_with_similar_vectors_get_similar_embeddings(vectors: Tensor, width: int) -> None:
    _, embeddings = started(vectors, make_catalog(), width)
    centred = embeddings - embeddings.mean(0)
    cosines = torch.nn.functional.normalize(centred) @ torch.nn.functional.normalize(centred).T
    same = torch.arange(NUM_ITEMS)[:, None] // 10 == torch.arange(NUM_ITEMS) // 10
    same.fill_diagonal_(False)
    assert cosines[same].min() > 0.5 > cosines[~same & ~torch.eye(NUM_ITEMS, dtype=torch.bool)].mean() + 0.3


def test_started_embeddings_have_the_standard_deviation_of_random_embeddings(vectors: Tensor) -> None:
    tokenizer = make_tokenizer(make_catalog())
    random = make_model(tokenizer, hidden_size=32).get_input_embeddings().weight
    model, embeddings = started(vectors, make_catalog())
    assert embeddings.std().item() == pytest.approx(random.std().item(), rel=0.1)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    # The embeddings of the other tokens do not change.
    assert torch.equal(model.get_input_embeddings().weight[:3], random[:3])


def test_the_seed_determines_the_rotation_of_the_embeddings(vectors: Tensor) -> None:
    _, embeddings = started(vectors, make_catalog())
    assert torch.equal(started(vectors, make_catalog())[1], embeddings)
    assert not torch.allclose(started(vectors, make_catalog(), seed=1)[1], embeddings)


def test_embeddings_of_equal_vectors_differ_by_their_random_part(vectors: Tensor) -> None:
    vectors[1] = vectors[0]
    _, embeddings = started(vectors, make_catalog(), width=256)
    difference = (embeddings[0] - embeddings[1]).square().mean() / embeddings.var()
    assert difference.item() == pytest.approx(2 * RANDOM_SHARE, rel=0.3)


def test_an_item_without_a_vector_keeps_its_embedding(vectors: Tensor) -> None:
    vectors[7] = 0
    catalog = make_catalog()
    _, embeddings = started(vectors, catalog)
    tokenizer = make_tokenizer(catalog)
    token = tokenizer.get_vocab()[catalog.new_tokens[7]]
    assert torch.equal(embeddings[7], make_model(tokenizer, hidden_size=32).get_input_embeddings().weight[token])


def test_the_codes_of_an_item_add_up_to_its_vector() -> None:
    """Here, each item's vector is the sum of a vector of its first code and a vector of its second code. The vectors
    that are found for the two codes must add up to it again."""
    catalog = make_catalog("semantic_id")
    generator = torch.Generator().manual_seed(1)
    firsts = torch.randn(4, 12, generator=generator)
    seconds = torch.randn(15, 12, generator=generator)
    vectors = (firsts - firsts.mean(0)).repeat(15, 1) + (seconds - seconds.mean(0)).repeat_interleave(4, 0)
    tokens, found = _token_vectors(catalog, make_tokenizer(catalog), vectors)
    assert len(tokens) == 4 + 15
    place = {token: index for index, token in enumerate(tokens.tolist())}
    paths = catalog.paths(make_tokenizer(catalog)).values.reshape(NUM_ITEMS, 2)
    sums = torch.stack([found[place[first]] + found[place[second]] for first, second in paths.tolist()])
    torch.testing.assert_close(sums, vectors)


def test_a_later_code_starts_from_the_mean_of_what_the_earlier_codes_leave(vectors: Tensor) -> None:
    """The first code of a semantic ID gets the mean vector of the items with this code. The second code gets the mean
    remainder of the items with this code: their vectors minus the vectors of their first codes."""
    catalog = make_catalog("semantic_id")
    tokens, found = _token_vectors(catalog, make_tokenizer(catalog), vectors)
    place = {token: index for index, token in enumerate(tokens.tolist())}
    vocabulary = make_tokenizer(catalog).get_vocab()
    first_means = torch.stack([vectors[code::4].mean(0) for code in range(4)])
    remainders = vectors - first_means.repeat(15, 1)
    torch.testing.assert_close(found[place[vocabulary["<a_2>"]]], first_means[2])
    torch.testing.assert_close(found[place[vocabulary["<b_5>"]]], remainders[20:24].mean(0))


def test_separate_output_embeddings_start_from_the_vectors_too(vectors: Tensor, tmp_path: Path) -> None:
    """The tokens are added to a pretrained model whose input and output embeddings are not tied."""
    catalog = make_catalog()
    tokenizer = make_text_tokenizer(["a text of some words"])
    make_family("qwen3", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = RecModelConfig(str(tmp_path), dtype="float32")
    model, tokenizer, _ = build_model(catalog, config, item_vectors=lambda: vectors)
    tokens = tokenizer.convert_tokens_to_ids(catalog.new_tokens)
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        rows = module.weight[tokens].detach()
        near, far = (rows[0] - rows[1]).norm(), (rows[0] - rows[15]).norm()
        assert near < 0.8 * far


def test_unsuitable_vectors_and_models_are_refused(vectors: Tensor, tmp_path: Path) -> None:
    catalog = make_catalog()
    tokenizer = make_tokenizer(catalog)
    model = make_model(tokenizer, hidden_size=32)
    with pytest.raises(ValueError, match="59 vectors for 60 items"):
        start_from_vectors(model, tokenizer, catalog, vectors[1:])

    # A saved model that already has the item tokens is refused too, because the vectors would replace their
    # embeddings.
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="already has the tokens of the items"):
        build_model(catalog, RecModelConfig(str(tmp_path)), item_vectors=lambda: vectors)
