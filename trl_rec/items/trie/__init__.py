"""Defines the trie: the prefix tree of the token paths of a catalogue's items.

This package does not import the catalogue, which belongs to a higher layer of the project.
"""

from trl_rec.items.trie.token_trie import TokenTrie


__all__ = ["TokenTrie"]
