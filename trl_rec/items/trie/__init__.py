"""The prefix tree of a catalogue's token paths. It depends on torch only, since it is below the catalogue's layer."""

from trl_rec.items.trie.token_trie import TokenTrie


__all__ = ["TokenTrie"]
