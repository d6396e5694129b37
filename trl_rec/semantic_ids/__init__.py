"""Semantic IDs: a few tokens an item, so that items which belong together begin alike."""

from trl_rec._lazy import lazy_names


__all__ = [
    "DualIdsConfig",
    "ItemIdEncoder",
    "code_use_picture",
    "collaborative_vectors",
    "cooccurrence_vectors",
    "describe_ids",
    "export_index",
    "has_dual_ids",
    "import_index",
    "load_text_encoder",
    "make_dual_ids",
    "make_semantic_ids",
    "read_ids_card",
    "repair_last_level",
    "residual_kmeans",
    "sinkhorn_repair",
    "text_vectors",
]
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "DualIdsConfig": "dual",
        "ItemIdEncoder": "dual_storage",
        "code_use_picture": "picture",
        "collaborative_vectors": "collaborative",
        "cooccurrence_vectors": "item_vectors",
        "describe_ids": "card",
        "export_index": "index_files",
        "has_dual_ids": "dual",
        "import_index": "index_files",
        "load_text_encoder": "text_encoders",
        "make_dual_ids": "dual",
        "make_semantic_ids": "making",
        "read_ids_card": "storage",
        "repair_last_level": "collisions",
        "residual_kmeans": "residual",
        "sinkhorn_repair": "sinkhorn",
        "text_vectors": "text_encoders",
    },
)
