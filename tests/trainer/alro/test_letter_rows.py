"""Tests training rows that teach an ALRO model which item of a list each letter names."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.programs import load_program
from tests.trainer.alro.alro_runs import make_folder
from tests.trainer.runs import QUIET
from trl_rec import load
from trl_rec.decoding import RatedPromptFormat
from trl_rec.models import RecModelConfig, load_tokenizer
from trl_rec.trainer import build_ranker, learn_ratings, rating_values
from trl_rec.trainer.alro import rating
from trl_rec.trainer.alro.letter_rows import build_letter_rows
from trl_rec.trainer.alro.rating import RatingStageConfig


def test_rows_repeat_pairs_of_an_item_and_its_letter_in_both_directions(tmp_path: Path) -> None:
    dataset = make_folder(tmp_path)
    tokenizer = load_tokenizer(tmp_path / "model")
    prompt_format = RatedPromptFormat.for_catalog(dataset.catalog, tokenizer, rating_values(dataset.train))
    sizes = {"num_lists": 7, "num_candidates": 3, "max_length": 40}
    rows = build_letter_rows(dataset.train, prompt_format, **sizes)
    texts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in dataset.catalog.surfaces]
    known = {item for row in dataset.train.to_list() for item in row["history"] + row["targets"]}
    drawn = set()
    for number, row in enumerate(rows.to_list()):
        ids, labels = row["input_ids"], row["labels"]
        start = ids.index(tokenizer.convert_tokens_to_ids("<candidates>")) + 1
        end = ids.index(tokenizer.convert_tokens_to_ids("<answer>"))
        # Each listed item has three tokens: its letter, and the two of its semantic ID.
        listed = {ids[place]: ids[place + 1 : place + 3] for place in range(start, end, 3)}
        assert [*listed] == prompt_format.letters[:3].tolist() and all(
            texts.index(one) in known for one in listed.values()
        )
        after, answer = ids[end + 1 :], labels[end + 1 :]
        assert set(labels[: end + 1]) == {-100} and len(after) == 9
        letters = []
        for place in range(0, 9, 3):
            pair, label = after[place : place + 3], answer[place : place + 3]
            if number % 2:
                assert pair[1:] == listed[pair[0]] and label == [-100, *pair[1:]]
                letters.append(pair[0])
            else:
                assert pair[:2] == listed[pair[2]] and label == [-100, -100, pair[2]]
                letters.append(pair[2])
        drawn.add(tuple(letters))
    # Pairs are drawn with replacement.
    assert any(len(set(letters)) < 3 for letters in drawn)
    assert len(rows) == 7 and len(drawn) > 2
    assert rows.to_list() == build_letter_rows(dataset.train, prompt_format, **sizes).to_list()
    assert rows.to_list() != build_letter_rows(dataset.train, prompt_format, **sizes, seed=1).to_list()
    with pytest.raises(ValueError, match="takes up to 21 tokens, but rating_max_length is 20"):
        build_letter_rows(dataset.train, prompt_format, **{**sizes, "max_length": 20})
    with pytest.raises(ValueError, match="must use only the training split"):
        build_letter_rows(dataset.validation, prompt_format, **sizes)


def test_the_rating_stage_trains_on_letter_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_folder(tmp_path, "item_token")
    ratings = rating_values(dataset.train)
    seen = {}

    class Seen(Exception):
        pass

    def stop(*_: object, train_dataset, **others) -> None:
        seen["rows"] = train_dataset
        raise Seen

    monkeypatch.setattr(rating, "BearTrainer", stop)
    for letters, count in ((True, 5), (None, 0)):
        model, tokenizer, _ = build_ranker(dataset.catalog, ratings, RecModelConfig(hidden_size=16), letters=letters)
        prompt_format = RatedPromptFormat.for_catalog(dataset.catalog, tokenizer, ratings, letters=letters)
        with pytest.raises(Seen):
            learn_ratings(
                model,
                tokenizer,
                prompt_format,
                dataset,
                tmp_path / "run",
                letter_lists=count,
                num_candidates=4,
                **QUIET,
            )
        marks = [tokenizer.convert_tokens_to_ids("<candidates>") in row for row in seen["rows"]["input_ids"]]
        assert sum(marks) == count and len(marks) > count and str(seen["rows"].split) == "train"
    with pytest.raises(ValueError, match="letter_lists needs candidates that are named by letters"):
        learn_ratings(model, tokenizer, prompt_format, dataset, tmp_path / "run", letter_lists=5, **QUIET)
    with pytest.raises(ValueError, match="letter_lists adds rows to the rating stage, but rating_epochs=0"):
        RatingStageConfig(letter_lists=5)
    assert load(tmp_path / "data").train.split == dataset.train.split


def test_the_program_counts_the_letters_and_items_that_are_looked_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in for the model always finds the letter of an item, and never the item of a letter."""
    program = load_program("benchmarks/letter_lookup.py")
    dataset = make_folder(tmp_path, "item_token")
    ratings = rating_values(dataset.train)
    model, tokenizer, _ = build_ranker(dataset.catalog, ratings, RecModelConfig(hidden_size=16), letters=True)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "run")
    letters = RatedPromptFormat.for_catalog(dataset.catalog, tokenizer, ratings, letters=True).letters.tolist()

    class LooksUpLetters:
        def eval(self) -> "LooksUpLetters":
            return self

        def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
            """At each token, looks at the token before the first occurrence of the same token. Predicts this earlier
            token if it is a letter, and token 0 otherwise."""
            logits = torch.zeros(*input_ids.shape, len(tokenizer))
            for row, tokens in enumerate(input_ids.tolist()):
                for place, token in enumerate(tokens):
                    before = tokens[tokens.index(token) - 1]
                    logits[row, place, before if before in letters else 0] = 1.0
            return SimpleNamespace(logits=logits)

    program.load_model = lambda folder: LooksUpLetters()
    program.main([str(tmp_path / "run"), "--dataset", str(tmp_path / "data"), "--num_candidates", "4"])
    assert capsys.readouterr().out.splitlines() == [
        "right letters after an item: 100.0%",
        "right items after a letter: 0.0%",
    ]
