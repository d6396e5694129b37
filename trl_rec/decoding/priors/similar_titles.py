"""Makes transition counts (how often one item follows another) from titles instead of from the log.

Each item is treated as if it had been followed by the items with similar titles. Two titles are similar if they share
rare words. A [`MixturePrior`] mixes these counts with counts of the pairs of items in the log. An item that is rare in
the log seldom gets a score from the counts of the log. The counts from titles can give it one.

Legend: N items, W entries of all title vectors (see [`similar_titles`]).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from trl_rec.data.transitions import TransitionCounts, sum_by_key
from trl_rec.ragged import Ragged, within


WORD = re.compile(r"\w+")
POWER = 2.0  # exponent of the similarity
POPULARITY_POWER = 0.25  # exponent of the popularity
LEAST_SIMILARITY = 0.1  # pairs that are less similar are left out
MAX_HISTORY = 50
DECAY = 0.5
MOST_PAIRS = 300_000_000  # maximum number of pairs of items that share a word, summed over the words that are used
MOST_SHARES = 20_000_000  # maximum number of similar items, summed over all items
BLOCK = 1000  # number of items whose pairs are found together


def similar_titles(titles: Sequence[str], popularity: np.ndarray, most: int) -> TransitionCounts:
    """Returns counts in which each item is followed by the items with similar titles.

    The similarity of two items is the cosine of the vectors of their titles. The vector of a title has an entry per
    distinct word, `log(N / n)`, where n is the number of titles with this word. The count of a similar item is
    `similarity ** 2 * (popularity + 1) ** 0.25`. Of two items that are equally similar, the more popular one therefore
    has the higher count.

    Args:
        titles (`Sequence[str]`): The title of each item.
        popularity (`np.ndarray` of shape `(N,)`): How often each item was chosen in training.
        most (`int`): Maximum number of similar items per item. In a large catalogue, the maximum is lowered, so that
            there are at most `MOST_SHARES` similar items in total.
    """
    most = min(most, max(1, MOST_SHARES // max(1, len(titles))))
    items, words, values = _title_vectors(titles)
    items_of_word = Ragged.from_lengths(items, np.bincount(words))  # the entries are sorted by word
    order = np.argsort(items, kind="stable")
    words_of_item = Ragged.from_lengths(words[order], np.bincount(items, minlength=len(titles)))
    values_of_item = Ragged(values[order], words_of_item.offsets)

    # Find the similar items of one block of items at a time, so that memory stays bounded.
    sources, targets, weights = [], [], []
    for start in range(0, len(titles), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(titles)))
        some = words_of_item.take(block)

        # 1. Make one entry for each word that an item of the block shares with another item.
        others = items_of_word.take(some.values)
        products = Ragged(values, items_of_word.offsets).take(some.values).values
        products = products * np.repeat(values_of_item.take(block).values, others.lengths)
        owners = np.repeat(block[some.row_ids], others.lengths)

        # 2. Sum the entries of each pair, which gives the cosine.
        keys, similarity = sum_by_key(owners * len(titles) + others.values, products)
        source, target = np.divmod(keys, len(titles))
        is_similar = (similarity >= LEAST_SIMILARITY) & (source != target)
        source = source[is_similar]
        target = target[is_similar]
        weight = similarity[is_similar] ** POWER * (popularity[target] + 1.0) ** POPULARITY_POWER

        # 3. Keep the pairs with the largest weights, at most `most` per item.
        order = np.lexsort((target, -weight, source))
        kept = order[within(np.bincount(source - start, minlength=len(block))) < most]
        sources.append(source[kept])
        targets.append(target[kept])
        weights.append(weight[kept])

    return TransitionCounts.from_pairs(
        np.concatenate([np.zeros(0, np.int64), *sources]),
        np.concatenate([np.zeros(0, np.int64), *targets]),
        np.concatenate([np.zeros(0), *weights]),
        len(titles),
        max_history=MAX_HISTORY,
        decay=DECAY,
    )


def _title_vectors(titles: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes a normalised vector per title. Returns the item, the word and the value of each entry, `(W,)` each, sorted
    by word.

    If the words of all titles result in more than `MOST_PAIRS` pairs of items, the most frequent words are left out.
    """
    # 1. Number the words.
    found = [sorted(set(WORD.findall(title.lower()))) for title in titles]
    items = np.repeat(np.arange(len(titles)), [len(words) for words in found])
    names, words = np.unique(np.array([word for words in found for word in words], dtype=object), return_inverse=True)
    frequency = np.bincount(words, minlength=len(names))

    # 2. Keep the rarest words. The norm of a title includes all of its words, even those that are left out.
    rarest_first = np.argsort(frequency, kind="stable")
    num_pairs = np.cumsum(frequency[rarest_first].astype(np.int64) ** 2)
    is_kept = np.zeros(len(names), bool)
    is_kept[rarest_first[num_pairs <= MOST_PAIRS]] = True

    # 3. Weigh the words, and divide each vector by its norm.
    values = np.log(len(titles) / frequency)[words]
    norms = np.sqrt(np.bincount(items, values**2, len(titles)))
    is_entry = is_kept[words] & (values > 0)
    values = values[is_entry] / norms[items[is_entry]]
    items = items[is_entry]
    words = words[is_entry]
    order = np.argsort(words, kind="stable")
    return items[order], words[order], values[order]
