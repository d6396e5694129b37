"""Tests that the recipes for BEAR and MSL on Amazon Office have exactly the prompts that the authors of these methods
train with. Also tests the separator between items, and `compare_tokens`, which counts the prompts whose tokens change
if the whole text is tokenised at once, instead of part by part."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from tokenizers.processors import TemplateProcessing

from tests.conftest import make_tokenizer
from trl_rec.data import PromptFormat
from trl_rec.data.prompt_texts import PromptTexts, compare_tokens
from trl_rec.decoding.run_folder import SETTINGS, load_run, save_recommender
from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.scripts.options.recipe_files import find_recipe


KEYS = ("prompt_head", "prompt_item", "prompt_separator", "prompt_tail")
TITLES = ["Red Pen", "Blue Pen, 12 Pack", "Ink 5's"]


def prompt_of(recipe: str) -> dict[str, Any]:
    settings = yaml.safe_load(find_recipe(recipe).read_text(encoding="utf-8"))
    return {key: settings[key] for key in KEYS}


def published(titles: list[str]) -> str:
    """Returns the prompt of BIGRec, which BEAR and MSL also use: Alpaca's template, with one more line after the
    input. This line contains only a space."""
    instruction = (
        "Given a list of office products the user has used before, please recommend a new office product that "
    )
    instruction += "the user likes to the user."
    before = "The user has used the following office products before: "
    fields = {"Instruction": instruction, "Input": before + ", ".join(f'"{title}"' for title in titles) + "\n "}
    preamble = "Below is an instruction that describes a task, paired with an input that provides further context. "
    preamble += "Write a response that appropriately completes the request. "
    blocks = [preamble, *(f"### {name}:\n{text}" for name, text in fields.items()), "### Response:\n"]
    return "\n\n".join(blocks)


@pytest.mark.parametrize("recipe", ["bear/office-llama-3.2-3b-published", "bear/office-llama-3.2-3b-msl-published"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_prompt_is_the_published_one(recipe: str, count: int) -> None:
    tokenizer = make_tokenizer([*TITLES, published(TITLES)])
    catalog = ItemCatalog(pa.table({"item_id": ["0", "1", "2"], "title": TITLES}))
    texts = PromptTexts.choose("title", tokenizer, **prompt_of(recipe))
    assert texts.write(catalog.surfaces[:count]) == published(TITLES[:count])

    # The tokens decode to the same text.
    prompt_format = PromptFormat.for_catalog(catalog, tokenizer, **prompt_of(recipe))
    prompt = prompt_format.encode(Ragged.from_lists([range(count)]))[0]
    assert tokenizer.decode(prompt) == published(TITLES[:count])


@pytest.mark.parametrize(
    ("start", "goes_on"),
    [
        ("bear/ml-100k-llama-2-7b-s-dpo", "align3gr/ml-100k-llama-2-7b-s-dpo"),
        ("bear/beauty-llama-2-7b-align3gr", "align3gr/beauty-llama-2-7b-published"),
        ("bear/ml-100k-lists-llama-3.2-1b-sprec", "blade/ml-100k-llama-3.2-1b-sprec"),
    ],
)
def test_a_recipe_has_the_prompt_of_the_recipe_that_it_starts_from(start: str, goes_on: str) -> None:
    assert prompt_of(start) == prompt_of(goes_on)


@pytest.mark.parametrize("begins_with_bos", [False, True])
def test_prompts_whose_tokens_differ_from_those_of_the_whole_text_are_counted(begins_with_bos: bool) -> None:
    """The tokenizer merges `;;` into one token. A prompt that is built from parts has two tokens `;` between two
    items."""
    tokenizer = make_tokenizer(["A;;B"] * 50, vocab_size=300)
    assert len(tokenizer.tokenize(";;")) == 1
    if begins_with_bos:
        begin = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = begin
    catalog = ItemCatalog(pa.table({"item_id": ["0", "1"], "title": ["A", "B"]}))
    options = {"prompt_head": "", "prompt_item": "{surface};", "prompt_separator": ";", "prompt_tail": "?"}
    prompts = PromptFormat.for_catalog(catalog, tokenizer, **options).encode(Ragged.from_lists([[0], [0, 1], [1, 0]]))
    texts = PromptTexts.choose("title", tokenizer, **options)
    written = [texts.write([catalog.surfaces[item] for item in items]) for items in ([0], [0, 1], [1, 0])]
    assert written == ['"A";?', '"A";;"B";?', '"B";;"A";?']

    compared = compare_tokens(prompts, written, tokenizer)
    assert (compared.num_prompts, compared.num_different) == (3, 2)
    assert compared.num_tokens == compared.num_whole_tokens + 2
    assert "if the whole text were tokenised at once, 66.7% of 3 prompts would have other tokens" in str(compared)


def test_without_a_separator_a_prompt_is_the_same_as_with_an_empty_separator() -> None:
    tokenizer = make_tokenizer(TITLES)
    catalog = ItemCatalog(pa.table({"item_id": ["0", "1", "2"], "title": TITLES}))
    histories = Ragged.from_lists([[], [2], [0, 1, 2]])
    plain = PromptFormat.for_catalog(catalog, tokenizer).encode(histories)
    empty = PromptFormat.for_catalog(catalog, tokenizer, prompt_separator="").encode(histories)
    assert plain.values.tolist() == empty.values.tolist()


def test_the_separator_must_not_name_the_user() -> None:
    with pytest.raises(ValueError, match="only once, in prompt_head"):
        PromptTexts.choose("title", make_tokenizer(TITLES), prompt_separator="{user}")


def test_run_folders_of_earlier_versions_have_no_separator(tmp_path: Path) -> None:
    catalog = ItemCatalog(pa.table({"item_id": ["0"], "title": ["A"]}))
    prompt = {"prompt_head": "H", "prompt_item": None, "prompt_tail": None, "chat_template": False}
    settings = {"max_length": 64, "renormalize": True, "length_penalty": 0.0, "num_beams": 10}
    save_recommender(tmp_path, catalog, {"prompt": prompt, **settings})
    assert "separator" not in json.loads((tmp_path / SETTINGS).read_text())["prompt"]
    loaded, _ = load_run(tmp_path, SETTINGS)
    assert loaded["prompt"] == prompt
    PromptFormat.for_catalog(catalog, make_tokenizer(["A"]), **loaded["prompt"])

    save_recommender(tmp_path, catalog, {"prompt": {**prompt, "prompt_separator": ", "}, **settings})
    assert json.loads((tmp_path / SETTINGS).read_text())["prompt"]["separator"] == ", "
    assert load_run(tmp_path, SETTINGS)[0]["prompt"] == {**prompt, "prompt_separator": ", "}
