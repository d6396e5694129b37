"""The token paths of a catalogue as a prefix tree. Needs torch alone, so that it stays below the catalogue."""

from trl_rec.items.trie.token_trie import TokenTrie


__all__ = ["TokenTrie"]
