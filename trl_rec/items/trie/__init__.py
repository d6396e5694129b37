"""The prefix tree of a catalogue's token paths.

This package does not import the catalogue, which belongs to a higher layer of the project.
"""

from trl_rec.items.trie.token_trie import TokenTrie


__all__ = ["TokenTrie"]
