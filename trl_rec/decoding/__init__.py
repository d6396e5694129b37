"""A model recommends: beam search under a `TokenTrie`, and the same constraint as a processor for `model.generate`."""

from trl_rec._lazy import lazy_names


__all__ = ["RankedItems", "Recommendation", "Recommender", "TrieLogitsProcessor", "rank_items"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "RankedItems": "beam",
        "Recommendation": "recommender",
        "Recommender": "recommender",
        "TrieLogitsProcessor": "processor",
        "rank_items": "beam",
    },
)
