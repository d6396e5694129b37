"""Measures how often a model finds the letter of an item in a list, and the item of a letter.

    python benchmarks/letter_lookup.py runs/alro-ml-100k --dataset data/ml-100k-next-ten

The model must come from `trl-rec alro` with `letters: true`, which names the items of a list by letters. Each test row
lists items with their letters, and then repeats pairs of an item and its letter. In half of the rows, the model has to
find the letter of each item in the pairs; in the other half, the item of each letter. With ten items, a guess is right
in 10 % of the cases. The rating stage of `trl-rec alro` trains on such rows if `letter_lists` is set. The test rows
are drawn with another seed, so they contain other lists.

A model that ranks by writing letters has to find the letter of an item. A model from scratch may not have learned this
in the rating stage, so run this program on the folder of the rating stage before you train on lists of candidates.
Takes seconds.
"""

from __future__ import annotations

import argparse

import torch

from trl_rec.data import load
from trl_rec.decoding import RatedPromptFormat
from trl_rec.models import load_model, load_tokenizer
from trl_rec.trainer import rating_values
from trl_rec.trainer.alro.letter_rows import build_letter_rows


SEED = 2**31  # the seeds of trainings are usually small, so the rows differ from those of the training


def main(words: list[str] | None = None) -> None:
    """Prints how often the model finds the letter of an item, and the item of a letter."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="run folder")
    parser.add_argument("--dataset", required=True, help="dataset folder, with ratings")
    parser.add_argument("--num_lists", type=int, default=200)
    parser.add_argument("--num_candidates", type=int, default=10, help="items per list")
    arguments = parser.parse_args(words)

    # 1. Build the rows.
    dataset = load(arguments.dataset).with_surface("item_token")
    tokenizer = load_tokenizer(arguments.model)
    prompt_format = RatedPromptFormat.for_catalog(
        dataset.catalog, tokenizer, rating_values(dataset.train), letters=True
    )
    rows = build_letter_rows(
        dataset.train,
        prompt_format,
        num_lists=arguments.num_lists,
        num_candidates=arguments.num_candidates,
        max_length=1000,
        seed=SEED,
    )

    # 2. Compare the most probable tokens with the labels.
    model = load_model(arguments.model).eval()
    labels = torch.tensor(rows["labels"])[:, 1:]  # (rows, T - 1)
    with torch.inference_mode():
        is_right = model(input_ids=torch.tensor(rows["input_ids"])).logits[:, :-1].argmax(-1) == labels
    is_letter = torch.isin(labels, torch.tensor(prompt_format.letters))
    is_item = (labels >= 0) & ~is_letter
    print(f"right letters after an item: {is_right[is_letter].float().mean():.1%}")
    print(f"right items after a letter: {is_right[is_item].float().mean():.1%}")


if __name__ == "__main__":
    main()
