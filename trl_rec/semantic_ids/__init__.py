"""Makes and stores semantic IDs: a few tokens per item, chosen so that the IDs of related items begin alike."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "DualIdsConfig",
    "ItemIdEncoder",
    "code_use_picture",
    "collaborative_vectors",
    "continue_ids",
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
    "signal_vectors",
    "sinkhorn_repair",
    "text_vectors",
]

if TYPE_CHECKING:
    from trl_rec.semantic_ids.card import describe_ids
    from trl_rec.semantic_ids.collaborative import collaborative_vectors
    from trl_rec.semantic_ids.collisions import repair_last_level
    from trl_rec.semantic_ids.dual.ids import DualIdsConfig, has_dual_ids, make_dual_ids
    from trl_rec.semantic_ids.dual.storage import ItemIdEncoder
    from trl_rec.semantic_ids.index_files import export_index, import_index
    from trl_rec.semantic_ids.item_vectors import cooccurrence_vectors
    from trl_rec.semantic_ids.kmeans_ids import make_semantic_ids
    from trl_rec.semantic_ids.known_ids import continue_ids
    from trl_rec.semantic_ids.picture import code_use_picture
    from trl_rec.semantic_ids.residual import residual_kmeans
    from trl_rec.semantic_ids.signals import signal_vectors
    from trl_rec.semantic_ids.sinkhorn import sinkhorn_repair
    from trl_rec.semantic_ids.storage import read_ids_card
    from trl_rec.semantic_ids.text_encoders import load_text_encoder, text_vectors
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "card": ["describe_ids"],
            "collaborative": ["collaborative_vectors"],
            "collisions": ["repair_last_level"],
            "dual.ids": ["DualIdsConfig", "has_dual_ids", "make_dual_ids"],
            "dual.storage": ["ItemIdEncoder"],
            "index_files": ["export_index", "import_index"],
            "item_vectors": ["cooccurrence_vectors"],
            "kmeans_ids": ["make_semantic_ids"],
            "known_ids": ["continue_ids"],
            "picture": ["code_use_picture"],
            "residual": ["residual_kmeans"],
            "signals": ["signal_vectors"],
            "sinkhorn": ["sinkhorn_repair"],
            "storage": ["read_ids_card"],
            "text_encoders": ["load_text_encoder", "text_vectors"],
        },
    )
