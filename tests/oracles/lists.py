"""Slow reference implementations for lists: enumeration, scoring, greedy decoding and beam search (all without a KV
cache), and the lists that training rows contain.

The argument `sequences` contains the path (the token ids) of each item.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor
from transformers import PreTrainedModel


def all_lists(sequences: list[list[int]], length: int, excluded: list[int] = ()) -> list[tuple[int, ...]]:
    """Returns every list of `length` distinct items that the model can generate. Items with the same path occur in
    ascending order."""
    items = [item for item in range(len(sequences)) if item not in excluded]
    return [chosen for chosen in permutations(items, length) if drawable(sequences, chosen, excluded)]


def drawable(sequences: list[list[int]], chosen: tuple[int, ...], excluded: list[int] = ()) -> bool:
    for place, item in enumerate(chosen):
        twins = [other for other in range(item) if sequences[other] == sequences[item] and other not in excluded]
        if not set(twins) <= set(chosen[:place]):
            return False
    return True


def legal_tokens(sequences: list[list[int]], left: set[int], prefix: list[int]) -> list[int]:
    """Returns the tokens that may follow a prefix if only the items in `left` can be chosen."""
    depth = len(prefix)
    return sorted({sequences[item][depth] for item in left if sequences[item][:depth] == prefix})


def token_logps(
    model: PreTrainedModel,
    prompt: list[int],
    sequences: list[list[int]],
    chosen: tuple[int, ...],
    excluded: list[int] = (),
    temperature: float = 1.0,
) -> Tensor:
    """Returns the log-probability of each token of one list, with a gradient."""
    text = [token for item in chosen for token in sequences[item]]
    logits = (
        model(input_ids=torch.tensor([prompt + text]), use_cache=False).logits[0, len(prompt) - 1 :].float()
        / temperature
    )
    logps, left, position = [], set(range(len(sequences))) - set(excluded), 0
    for item in chosen:
        for depth, token in enumerate(sequences[item]):
            pool = legal_tokens(sequences, left, sequences[item][:depth])
            logps.append(logits[position, token] - logits[position, pool].logsumexp(0))
            position += 1
        left.discard(item)
    return torch.stack(logps)


@torch.no_grad()
def greedy(
    model: PreTrainedModel, prompt: list[int], sequences: list[list[int]], length: int, excluded: list[int] = ()
) -> list[int]:
    """Returns the list that results from choosing the most likely legal token at each step."""
    text, left, chosen = [*prompt], set(range(len(sequences))) - set(excluded), []
    while len(chosen) < length:
        prefix: list[int] = []
        while prefix not in [sequences[item] for item in left]:
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            prefix = [*prefix, max(legal_tokens(sequences, left, prefix), key=lambda token: float(logits[token]))]
            text.append(prefix[-1])
        chosen.append(min(item for item in left if sequences[item] == prefix))
        left.discard(chosen[-1])
    return chosen


def list_windows(
    history: list[int], targets: list[int], length: int, every_position: bool
) -> list[tuple[list[int], list[int]]]:
    """Returns `(history, items)` for each list of one row of a split.

    A list contains `length` successive new targets, or fewer at the end of the row. A target is new if the item does
    not occur earlier in the row. With `every_position`, a list begins at every new target. Otherwise, a list begins
    where the previous list ends. The history contains all items of the row before the first item of the list.
    """
    seen, new = [*history], []
    for place, item in enumerate(targets):
        if item not in seen:
            new.append((place, item))
        seen.append(item)
    rows, start = [], 0
    while start < len(new):
        rows.append((history + targets[: new[start][0]], [item for _, item in new[start : start + length]]))
        start += 1 if every_position else length
    return rows


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    prompt: list[int],
    sequences: list[list[int]],
    length: int,
    num_beams: int,
    excluded: list[int] = (),
) -> tuple[tuple[int, ...], float]:
    """Returns the best list of a beam search, and its log-probability. The search reads the tokens one at a time,
    including tokens that are the only legal continuation. Complete lists compete with incomplete lists."""
    everything = set(range(len(sequences))) - set(excluded)
    beams: list[tuple[float, tuple[int, ...], list[int]]] = [(0.0, (), [])]  # score, items, tokens of the next item
    while any(len(chosen) < length for _, chosen, _ in beams):
        grown = []
        for score, chosen, prefix in beams:
            if len(chosen) == length:
                grown.append((score, chosen, prefix))
                continue
            left, text = (
                everything - set(chosen),
                [*prompt, *(token for item in chosen for token in sequences[item]), *prefix],
            )
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].float()
            pool = legal_tokens(sequences, left, prefix)
            for token in sorted(pool, key=lambda one: lowest(sequences, [*prefix, one])):
                path, total = [*prefix, token], score + float(logits[token] - logits[pool].logsumexp(0))
                ending = [item for item in left if sequences[item] == path]
                grown.append((total, (*chosen, min(ending)), []) if ending else (total, chosen, path))
        beams = sorted(grown, key=lambda beam: -beam[0])[:num_beams]
    return beams[0][1], beams[0][0]


def lowest(sequences: list[list[int]], prefix: list[int]) -> int:
    """Returns the first item whose sequence begins with the prefix."""
    return next(item for item, sequence in enumerate(sequences) if sequence[: len(prefix)] == prefix)
