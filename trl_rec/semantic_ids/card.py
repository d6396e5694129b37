"""Computes the card of a dataset's semantic IDs (statistics that are stored beside the IDs), and formats it as text.

The card shows whether the IDs are distinct, whether the codes are used evenly, and whether items that share codes are
similar.
"""

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


NEIGHBOURHOODS = 8  # maximum number of items for which the card lists neighbours (items with the same leading codes)
NEIGHBOURS = 5  # maximum number of neighbours per item


@dataclass(frozen=True, eq=False)
class IdCodes:
    """The codes of a catalogue's items at each step from vectors to tokens.

    A repair changes codes so that fewer items have the same codes.

    Args:
        quantized (`torch.Tensor` of shape `(num_items, levels)`): The codes before any repair. In the card, this step
            is called `found`.
        repaired (`torch.Tensor` of shape `(num_items, levels)`): The codes after the repair of the last level.
        extra (`torch.Tensor` of shape `(num_items,)`): With `collisions="extend"`, an additional code for each item
            whose codes are still not unique; -1 for all other items. With `collisions="share"`, -1 for all items.
        errors (`list[float]`, *optional*): Quantisation error after each level, before any repair: the sum of the
            squared norms of the residuals, divided by the sum of the squared norms of the vectors. None if the
            vectors are unknown.
        num_codes (`int`): Number of codes per level.
        spread (`torch.Tensor` of shape `(num_items, levels)`, *optional*): The codes after the Sinkhorn repair (see
            [`sinkhorn_repair`]), which precedes the repair of the last level. None if the Sinkhorn repair did not run.
    """

    quantized: Tensor
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
    """Computes the card. Only the key `fingerprint`, a hash of the IDs, is added later, when the IDs are written.

    Besides settings, sizes and versions, the card contains these keys:

    - `distinct`: the number of distinct IDs divided by the number of items, at each step: before any repair (`found`),
      after the Sinkhorn repair (`spread`, if it ran), after the repair of the last level (`repaired`), and with
      additional tokens (`written`).
    - `moved` and `extended`: the number of items whose codes a repair changed, and the number of items that got an
      additional token.
    - `largest_group`: the largest number of items that share an ID.
    - `without_vector`: the number of items whose vector is zero, such as items that do not occur in the training
      split.
    - `levels`: for each level, the number of codes that are `used`, their `perplexity` (the exponential of the entropy
      of their frequencies), the quantisation error after the level (`left`), and the number of items per code
      (`counts`). Only `left` is measured before the repairs.
    - `prefixes`: for the first 1, 2, ..., `levels - 1` codes, the number of `groups` of items that share these codes,
      the `mean_size` of a group, and the number of other items in an item's group, averaged over items (`others`).
    - `neighbours`: for each of some popular items, the items that share the most leading codes with it.

    Args:
        codes (`IdCodes`): The items' codes.
        semantic_ids (`Ragged`): The items' tokens.
        catalog (`ItemCatalog`): The items.
        popularity (`np.ndarray` of shape `(num_items,)`): Number of interactions with each item in the training split.
        settings (`Mapping`): The settings that the IDs were made with. A later run with the same settings reuses
            the IDs.
        without_vector (`int`): Number of items whose vector is zero.
        training (`Mapping`, *optional*): Statistics about the training, if the IDs were trained. They are stored
            unchanged under the key `training`.
    """
    written = torch.cat([codes.repaired, codes.extra.unsqueeze(1) + 1], 1)  # (num_items, levels + 1)
    columns = codes.repaired.unbind(1)

    # 1. Compute the share of distinct IDs after each step.
    distinct = {"found": _distinct_share(codes.quantized)}
    if codes.spread is not None:
        distinct["spread"] = _distinct_share(codes.spread)
    distinct["repaired"] = _distinct_share(codes.repaired)
    distinct["written"] = _distinct_share(written)

    # 2. Describe how each level uses its codes.
    errors = [None] * len(columns) if codes.errors is None else [round(error, 4) for error in codes.errors]
    levels = [
        {
            **code_use(column, codes.num_codes),
            "left": error,
            "counts": torch.bincount(column, minlength=codes.num_codes).tolist(),
        }
        for column, error in zip(columns, errors, strict=True)
    ]

    card = {
        "settings": dict(settings),
        "num_items": len(catalog),
        "num_tokens": len(np.unique(semantic_ids.values.astype(str))),
        "without_vector": without_vector,
        "distinct": distinct,
        "moved": int((codes.quantized != codes.repaired).any(1).sum()),
        "extended": int((codes.extra >= 0).sum()),
        "largest_group": int(torch.bincount(group_of(written)).max()),
        "levels": levels,
        "prefixes": [_sharing(codes.repaired[:, :length]) for length in range(1, len(columns))],
        "neighbours": _neighbours(catalog, semantic_ids, codes.repaired.numpy(), popularity),
        "versions": {
            "python": platform.python_version(),
            "trl-rec": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    if training is not None:
        card["training"] = dict(training)
    return card


def code_use(column: Tensor, num_codes: int) -> dict[str, Any]:
    """Returns how many codes of a level are used, and their perplexity."""
    share = torch.bincount(column, minlength=num_codes).double() / len(column)
    perplexity = float(torch.special.entr(share).sum().exp())
    return {"used": int((share > 0).sum()), "perplexity": round(perplexity, 2)}


def _distinct_share(codes: Tensor) -> float:
    return round((int(group_of(codes).max()) + 1) / len(codes), 6)


def _sharing(prefixes: Tensor) -> dict[str, Any]:
    sizes = torch.bincount(group_of(prefixes)).double()
    # This mean is over items, so a group of n items counts n times.
    others = float(sizes.square().sum() / sizes.sum() - 1)
    return {"groups": len(sizes), "mean_size": round(float(sizes.mean()), 2), "others": round(others, 2)}


def _neighbours(
    catalog: ItemCatalog, semantic_ids: Ragged, codes: np.ndarray, popularity: np.ndarray
) -> list[dict[str, Any]]:
    """Lists popular items with different first codes, each with the items that share the most leading codes."""
    # 1. Find the most popular item for each first code, and keep the most popular of these items.
    by_popularity = np.argsort(-popularity, kind="stable")
    first = np.sort(np.unique(codes[by_popularity, 0], return_index=True)[1])[:NEIGHBOURHOODS]

    entries = []
    for item in by_popularity[first]:
        # 2. Count the leading codes that each item shares with `item`. Sort by this count, then by popularity.
        shared = np.cumprod(codes == codes[item], 1).sum(1)  # (num_items,)
        order = np.lexsort((-popularity, -shared))

        # 3. Take the first items in this order, without the item itself and without items that share no code with it.
        closest = [int(other) for other in order[: NEIGHBOURS + 1] if other != item and shared[other]][:NEIGHBOURS]
        items = [{"shared": int(shared[other]), "title": catalog.titles[other]} for other in closest]
        entries.append({"title": catalog.titles[item], "id": "".join(semantic_ids[item]), "items": items})
    return entries


def describe_ids(card: Mapping[str, Any]) -> str:
    """Formats the card as human-readable text."""
    lines = [*_summary(card), "", "level  codes used  perplexity  quantisation error"]
    for number, level in enumerate(card["levels"], 1):
        error = "" if level["left"] is None else f"{level['left']:.1%}"
        lines.append(f"{number:>5}  {level['used']:>10}  {level['perplexity']:>10.1f}  {error:>18}")

    lines.append("")
    for length, group in enumerate(card["prefixes"], 1):
        codes = "code" if length == 1 else f"{length} codes"
        lines.append(
            f"first {codes}: {group['groups']:,} groups of {group['mean_size']:.1f} items on average; an item shares "
            f"its group with {group['others']:.1f} other items on average"
        )

    if card["neighbours"]:
        lines += ["", "popular items, and the items with which they share the most codes:"]
    for entry in card["neighbours"]:
        lines += ["", f"{entry['title']}  {entry['id']}"]
        lines += [f"  codes shared: {other['shared']}  {other['title']}" for other in entry["items"]]
    return "\n".join(lines)


def _summary(card: Mapping[str, Any]) -> list[str]:
    """Returns the lines above the table of levels."""
    settings = card["settings"]
    distinct = card["distinct"]
    spread = f"{distinct['spread']:.2%} after Sinkhorn's repair, " if "spread" in distinct else ""
    lines = [
        f"{card['num_items']:,} items, {settings['levels']} levels of {settings['codes']} codes, "
        f"{card['num_tokens']:,} tokens",
        f"distinct IDs, as a share of the items: {distinct['found']:.2%} before any repair, {spread}"
        f"{distinct['repaired']:.2%} after the repair of the last code, {distinct['written']:.2%} in the catalogue",
    ]
    if card["moved"]:
        lines.append(f"{card['moved']:,} items received other codes in the repair")

    if "training" in card:
        lines += _training_summary(card["training"])

    # Possible problems, listed only if they occur.
    if card["extended"]:
        lines.append(f"{card['extended']:,} items have an additional token, because their codes are not unique")
    if card["largest_group"] > 1:
        lines.append(
            f"up to {card['largest_group']:,} items share an ID, so a model that writes IDs cannot distinguish them"
        )
    if card["without_vector"]:
        lines.append(
            f"{card['without_vector']:,} items have a zero vector, because the training split does not relate them to "
            "other items"
        )
    return lines


def _training_summary(training: Mapping[str, Any]) -> list[str]:
    """Returns the lines about the training of trained IDs."""
    lines = []
    if training["text_encoder"]:
        lines.append(f"texts encoded by {training['text_encoder']} ({training['text_encoder_hash']})")
    lines.append(
        f"reconstruction error: {training['rebuilding_error']:.1%} of the squared length of the items' input vectors"
    )

    if training["u2i_pairs"]:
        # Cards written by earlier versions do not contain the chance level.
        chance = training.get("u2i_chance", 1 / (training["u2i_others"] + 1))
        lines.append(
            f"U2I accuracy: for {training['u2i_accuracy']:.1%} of {training['u2i_pairs']:,} users with a held-out "
            f"item, this item ranks above all of {training['u2i_others']} other items drawn by popularity (by chance: "
            f"{chance:.1%})"
        )

    if training["user_levels"]:
        levels = [f"{level['used']} (perplexity {level['perplexity']:.1f})" for level in training["user_levels"]]
        lines.append(
            f"{training['num_users']:,} users; distinct IDs, as a share of the users: "
            f"{training['distinct_users']:.1%}; codes used per level: {', '.join(levels)}"
        )
    return lines
