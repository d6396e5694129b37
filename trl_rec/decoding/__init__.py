"""A model recommends: beam search under a `TokenTrie`, whole lists drawn under one, and the constraint as a processor for
`model.generate`."""

from trl_rec._lazy import lazy_names


__all__ = [
    "CandidateRanker",
    "ListTokens",
    "RankedCandidates",
    "RankedItems",
    "Recommendation",
    "Recommender",
    "SampledLists",
    "TrieLogitsProcessor",
    "beam_list",
    "greedy_list",
    "list_logps",
    "list_tokens",
    "rank_candidates",
    "rank_items",
    "sample_item_lists",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CandidateRanker": "candidate_ranker",
        "ListTokens": "list_constraint",
        "RankedCandidates": "candidates",
        "RankedItems": "beam",
        "Recommendation": "recommender",
        "Recommender": "recommender",
        "SampledLists": "lists",
        "TrieLogitsProcessor": "processor",
        "beam_list": "list_beams",
        "greedy_list": "lists",
        "list_logps": "list_constraint",
        "list_tokens": "list_constraint",
        "rank_candidates": "candidates",
        "rank_items": "beam",
        "sample_item_lists": "lists",
    },
)
