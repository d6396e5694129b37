"""Decodes lists of distinct items by sampling, greedily, or by beam search over whole lists. Also scores given
lists."""
