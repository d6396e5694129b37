"""Lists of distinct items: samples, greedy lists and beam search over whole lists, and their log-probabilities."""
