"""Semantic IDs: a few tokens an item, so that items which belong together begin alike."""

from trl_rec._lazy import lazy_names


__all__ = ["cooccurrence_vectors", "describe_ids", "make_semantic_ids", "read_ids_card", "repair_last_level", "residual_kmeans"]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "cooccurrence_vectors": "item_vectors",
        "describe_ids": "card",
        "make_semantic_ids": "making",
        "read_ids_card": "storage",
        "repair_last_level": "collisions",
        "residual_kmeans": "residual",
    },
)
