"""Prints, at the start of a run, how many prompts would have different tokens if tokenised as a whole.

A prompt is made of parts that are tokenised separately. In the whole text, a tokenizer may merge the end of one part
and the beginning of the next into one token, so the tokens differ there (see `data/prompt_texts.py`). If a recipe uses
the prompt of a publication that tokenised the prompt as a whole, these tokens are one of the differences from the
published setting.
"""

from __future__ import annotations

from trl_rec.data.dataset import RecDataset, at_most, split_rows, split_users
from trl_rec.data.prompt_texts import PromptTexts, TokenComparison, compare_tokens
from trl_rec.data.prompts import newest_that_fit
from trl_rec.evaluation.cost import say
from trl_rec.trainer.base.catalog_ranking import CatalogRankingMixin


MOST_PROMPTS = 1_000


def announce_tokens(trainer: CatalogRankingMixin, dataset: RecDataset) -> None:
    """Prints how many prompts would have different tokens if their texts were tokenised as a whole.

    Prints nothing if there are none.

    Args:
        trainer: The trainer.
        dataset: The dataset that the trainer was built from.
    """
    compared = whole_text_comparison(trainer, dataset)
    if compared is not None and compared.num_different:
        say(f"prompts: {compared}")


def whole_text_comparison(trainer: CatalogRankingMixin, dataset: RecDataset) -> TokenComparison | None:
    """Compares the tokens of up to 1,000 prompts with the tokens of the prompts' whole texts.

    The prompts are those of the validation split, or of the training split if the validation split is empty. Returns
    None if there are no prompts, or if the surface is not the title. The default prompts of the other surfaces have
    the same tokens, whether they are tokenised in parts or as a whole.

    Args:
        trainer: The trainer.
        dataset: The dataset that the trainer was built from.
    """
    catalog = trainer.catalog
    if catalog is None or catalog.surface != "title":
        return None
    split = at_most(MOST_PROMPTS, dataset.validation if len(dataset.validation) else dataset.train)
    if not len(split):
        return None
    histories = split_rows(split, "history").tail(getattr(trainer.args, "max_history", None) or len(catalog))
    users = split_users(split)

    # 1. Make the prompts from the newest items that fit.
    prompt_format = trainer.prompt_format
    room = prompt_format.room(trainer.args.max_length)
    if room is not None:
        histories = newest_that_fit(histories, prompt_format.piece_lengths, room)
    prompts = prompt_format.encode(histories, users)

    # 2. Write the same prompts as whole texts.
    tokenizer = trainer.processing_class
    names = catalog.user_surfaces if prompt_format.users is not None else None
    texts = PromptTexts.choose(catalog.surface, tokenizer, **trainer.args.prompt_options)
    written = [
        texts.write([catalog.surfaces[item] for item in histories[row]], "" if names is None else names[users[row]])
        for row in range(len(histories))
    ]
    return compare_tokens(prompts, written, tokenizer)
