"""The card of a dataset's semantic IDs: are they distinct, are the codes used, and do items that share some belong
together?"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trl_rec.items import ItemCatalog
from trl_rec.ragged import Ragged
from trl_rec.semantic_ids.collisions import group_of
from trl_rec.version import __version__


NEIGHBOURHOODS = 8  # items whose neighbours are listed
NEIGHBOURS = 5


@dataclass(frozen=True, eq=False)
class IdCodes:
    """The codes of a catalogue's items on their way from vectors to tokens.

    Args:
        found (`Tensor` of shape `(num_items, levels)`): As quantised.
        repaired (`Tensor` of shape `(num_items, levels)`): As the last level's repair left them.
        extra (`Tensor` of shape `(num_items,)`): A further code of items that are still not alone, -1 for none.
        errors (`list[float]`, *optional*): After each level, the share of the vectors' squared length that is left;
            before the repair. None where nothing is known of vectors.
        num_codes (`int`): Codes of a level.
        spread (`Tensor` of shape `(num_items, levels)`, *optional*): As Sinkhorn's repair left them, where it came
            first.
    """

    found: Tensor
    repaired: Tensor
    extra: Tensor
    errors: list[float] | None
    num_codes: int
    spread: Tensor | None = None


def make_card(
    codes: IdCodes,
    semantic_ids: Ragged,
    catalog: ItemCatalog,
    popularity: np.ndarray,
    *,
    settings: Mapping[str, Any],
    without_vector: int,
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The card's fields, but for the fingerprint of the IDs. `training` is what else is to be told of how they were
    learned.

    `without_vector` counts the items that training tells nothing of. `distinct` holds distinct IDs over items: as
    found, as Sinkhorn's repair spread them where there was one, after the repair, and as written with further tokens.
    `moved` and `extended` count the items that either changed; `largest_group` is the most items with one ID. A
    level's `perplexity` is the number of equally frequent codes that would be as hard to guess; `left` is the share of
    the vectors' squared length that is left after the level. `prefixes` tells of the items that share their first 1,
    2, ... codes: how many groups of them there are, of what mean size, and with how many others an item shares those
    codes on average. `neighbours` lists, for the items most popular in training, the items that share most.
    """
    written = torch.cat([codes.repaired, codes.extra.unsqueeze(1) + 1], 1)
    columns = codes.repaired.unbind(1)
    errors = [None] * len(columns) if codes.errors is None else [round(error, 4) for error in codes.errors]
    distinct = {"found": _distinct(codes.found)} | (
        {} if codes.spread is None else {"spread": _distinct(codes.spread)}
    )
    return {
        "settings": dict(settings),
        "num_items": len(catalog),
        "num_tokens": len(np.unique(semantic_ids.values.astype(str))),
        "without_vector": without_vector,
        "distinct": {**distinct, "repaired": _distinct(codes.repaired), "written": _distinct(written)},
        "moved": int((codes.found != codes.repaired).any(1).sum()),
        "extended": int((codes.extra >= 0).sum()),
        "largest_group": int(torch.bincount(group_of(written)).max()),
        "levels": [
            {
                **code_use(column, codes.num_codes),
                "left": error,
                "counts": torch.bincount(column, minlength=codes.num_codes).tolist(),
            }
            for column, error in zip(columns, errors, strict=True)
        ],
        "prefixes": [_sharing(codes.repaired[:, :length]) for length in range(1, len(columns))],
        "neighbours": _neighbours(catalog, semantic_ids, codes.repaired.numpy(), popularity),
        "versions": {
            "python": platform.python_version(),
            "trl-rec": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        **({} if training is None else {"training": dict(training)}),
    }


def describe_ids(card: Mapping[str, Any]) -> str:
    """The card for people to read."""
    settings, distinct = card["settings"], card["distinct"]
    spread = f"{distinct['spread']:.2%} after Sinkhorn's repair, " if "spread" in distinct else ""
    lines = [
        f"{card['num_items']:,} items, {settings['levels']} levels of {settings['codes']} codes, {card['num_tokens']:,} tokens",
        f"distinct IDs over items: {distinct['found']:.2%} as found, {spread}{distinct['repaired']:.2%} after "
        f"{card['moved']:,} items took another last code, {distinct['written']:.2%} as written",
    ]
    if "training" in card:
        lines += _training(card["training"])
    if card["extended"]:
        lines.append(f"{card['extended']:,} items that were still not alone have one more token")
    if card["largest_group"] > 1:
        lines.append(f"up to {card['largest_group']:,} items share an ID; a list that holds one of them holds all")
    if card["without_vector"]:
        lines.append(f"{card['without_vector']:,} items have a vector of zeros, as training tells nothing of them")
    lines += ["", "level  codes used  perplexity  left of the vectors"]
    for number, level in enumerate(card["levels"], 1):
        left = "" if level["left"] is None else f"{level['left']:.1%}"
        lines.append(f"{number:>5}  {level['used']:>10}  {level['perplexity']:>10.1f}  {left:>19}")
    lines.append("")
    for length, group in enumerate(card["prefixes"], 1):
        codes = "code" if length == 1 else f"{length} codes"
        lines.append(
            f"first {codes}: {group['groups']:,} groups, {group['mean_size']:.1f} items each; an item shares with "
            f"{group['others']:.1f} others"
        )
    for entry in card["neighbours"]:
        lines += ["", f"{entry['title']}  {entry['id']}"]
        lines += [f"  {other['shared']} shared: {other['title']}" for other in entry["items"]]
    return "\n".join(lines)


def _training(told: Mapping[str, Any]) -> list[str]:
    lines = [f"texts encoded by {told['text_encoder']} ({told['text_encoder_hash']})"] if told["text_encoder"] else []
    lines.append(f"{told['rebuilding_error']:.1%} of the inputs' squared length is lost between input and codes")
    if told["u2i_pairs"]:
        chance = told.get("u2i_chance", 1 / (told["u2i_others"] + 1))  # earlier cards have none
        lines.append(
            f"{told['u2i_accuracy']:.1%} of {told['u2i_pairs']:,} held-out users find what they chose among "
            f"{told['u2i_others']} other items, drawn by popularity; {chance:.1%} would by chance"
        )
    if told["user_levels"]:
        used = ", ".join(f"{level['used']} (perplexity {level['perplexity']:.1f})" for level in told["user_levels"])
        lines.append(
            f"{told['num_users']:,} users, distinct IDs over users {told['distinct_users']:.1%}; codes used: {used}"
        )
    return lines


def _distinct(codes: Tensor) -> float:
    return round((int(group_of(codes).max()) + 1) / len(codes), 6)


def code_use(column: Tensor, num_codes: int) -> dict[str, Any]:
    """How many of a level's codes occur, and their perplexity."""
    share = torch.bincount(column, minlength=num_codes).double() / len(column)
    perplexity = float(torch.special.entr(share).sum().exp())
    return {"used": int((share > 0).sum()), "perplexity": round(perplexity, 2)}


def _sharing(prefixes: Tensor) -> dict[str, Any]:
    sizes = torch.bincount(group_of(prefixes)).double()
    others = float(sizes.square().sum() / sizes.sum() - 1)
    return {"groups": len(sizes), "mean_size": round(float(sizes.mean()), 2), "others": round(others, 2)}


def _neighbours(
    catalog: ItemCatalog, semantic_ids: Ragged, codes: np.ndarray, popularity: np.ndarray
) -> list[dict[str, Any]]:
    """Of items with different first codes, the most popular ones with those that share most, the more popular
    first."""
    by_popularity = np.argsort(-popularity, kind="stable")
    first = np.sort(np.unique(codes[by_popularity, 0], return_index=True)[1])[:NEIGHBOURHOODS]
    entries = []
    for item in by_popularity[first]:
        shared = np.cumprod(codes == codes[item], 1).sum(1)
        order = np.lexsort((-popularity, -shared))
        others = [int(other) for other in order[: NEIGHBOURS + 1] if other != item and shared[other]][:NEIGHBOURS]
        items = [{"shared": int(shared[other]), "title": catalog.titles[other]} for other in others]
        entries.append({"title": catalog.titles[item], "id": "".join(semantic_ids[item]), "items": items})
    return entries
