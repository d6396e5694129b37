"""Implements a slow trie with two dicts: one from each prefix to its next tokens, one from each sequence to its
items."""


class DictTrie:
    """A trie that stores the next tokens of every prefix, and the items of every complete sequence."""

    def __init__(self, sequences: list[list[int]], items: list[int]) -> None:
        self.children: dict[tuple[int, ...], set[int]] = {(): set()}
        self.items: dict[tuple[int, ...], list[int]] = {}
        for sequence, item in zip(sequences, items, strict=True):
            for end in range(len(sequence)):
                prefix = tuple(sequence[:end])
                self.children.setdefault(prefix, set()).add(sequence[end])
            self.children.setdefault(tuple(sequence), set())
            self.items.setdefault(tuple(sequence), []).append(item)

    def items_below(self, prefix: tuple[int, ...]) -> list[int]:
        return sorted(item for path, items in self.items.items() if path[: len(prefix)] == prefix for item in items)
