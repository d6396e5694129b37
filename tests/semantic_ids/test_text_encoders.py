"""Tests text encoders, and the cache of their vectors."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from trl_rec.semantic_ids import load_text_encoder, text_encoders, text_vectors


def test_texts_that_share_words_are_near_each_other():
    encoder = load_text_encoder("words")
    red, blue, other = encoder(["red leather shoes", "blue leather shoe", "jazz records of the fifties"])
    assert float(red @ blue) > float(red @ other) + 0.2
    assert torch.allclose(encoder(["Leather, shoes: RED"]), red.unsqueeze(0)) and (encoder([""]) == 0).all()
    assert encoder(["a"]).norm() == pytest.approx(1.0)


def test_vectors_are_cached_in_chunks(tmp_path, monkeypatch):
    """The next call after a killed one continues with the chunk at which the killed call stopped."""
    monkeypatch.setattr(text_encoders, "CHUNK", 2)
    encoder, read = load_text_encoder("words"), []

    class Watched:
        fingerprint = encoder.fingerprint

        def __call__(self, texts):
            read.append(list(texts))
            if len(read) == 2:
                raise KeyboardInterrupt
            return encoder(texts)

    texts = ["one", "two", "three", "four", "five"]
    with pytest.raises(KeyboardInterrupt):
        text_vectors(texts, Watched(), cache=tmp_path)
    assert torch.equal(text_vectors(texts, Watched(), cache=tmp_path), encoder(texts))
    assert read == [["one", "two"], ["three", "four"], ["three", "four"], ["five"]]
    assert torch.equal(text_vectors(texts, Watched(), cache=tmp_path), encoder(texts)) and len(read) == 4


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory):
    """A folder with a tiny, randomly initialised BERT, which sentence-transformers reads with mean pooling."""
    pytest.importorskip("sentence_transformers")
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "red", "blue", "shoes"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=5, **size)).save_pretrained(folder)
    return folder


def test_a_sentence_encoder_is_read_from_its_folder(sentence_encoder):
    encoder = load_text_encoder(str(sentence_encoder))
    vectors = encoder(["red shoes", "blue shoes", "red shoes"])
    assert vectors.shape == (3, 16) and vectors.dtype == torch.float32 and torch.allclose(vectors[0], vectors[2])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3)) and not torch.allclose(vectors[0], vectors[1])
    assert (
        load_text_encoder(str(sentence_encoder)).fingerprint
        == encoder.fingerprint
        != load_text_encoder("words").fingerprint
    )


def test_a_missing_encoder_is_refused(tmp_path):
    pytest.importorskip("sentence_transformers")
    with pytest.raises(ValueError, match="cannot be loaded as a folder or hub id of a sentence-transformers"):
        load_text_encoder(str(tmp_path / "nowhere" / "at" / "all"))


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


@pytest.mark.parametrize("content", [pickle.dumps(Evil()), b"", b"\x80\x04"], ids=["a pickle", "empty", "cut"])
def test_an_encoder_is_never_unpickled(content, sentence_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sentence_encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / "model.safetensors").unlink()
    (tmp_path / "encoder" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be loaded as a folder or hub id of a sentence-transformers model"):
        load_text_encoder(str(tmp_path / "encoder"))
    assert not (tmp_path / "touched").exists()
