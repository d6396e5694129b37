"""What can be recommended: `ItemCatalog`, and `TokenTrie` over the token paths of its items."""

from trl_rec._lazy import lazy_names


__all__ = ["ItemCatalog", "TokenTrie"]
__getattr__, __dir__ = lazy_names(__name__, {"ItemCatalog": "catalog", "TokenTrie": "trie"})
