"""Defines the catalogue of the items that can be recommended, and the trie of the items' token sequences."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "ItemCatalog",
    "TokenTrie",
]

if TYPE_CHECKING:
    from trl_rec.items.catalog import ItemCatalog
    from trl_rec.items.trie import TokenTrie
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "catalog": ["ItemCatalog"],
            "trie": ["TokenTrie"],
        },
    )
