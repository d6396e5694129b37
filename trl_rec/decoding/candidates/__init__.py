"""Orders short lists of candidates for a user with a rated history. Builds the prompts, draws
random orders of the candidates, ranks the candidates, and saves and loads rankers."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "CandidateRanker",
    "RankedCandidates",
    "RatedPromptFormat",
    "draw_gold_rank",
    "draw_slots",
    "rank_candidates",
    "rated_tokens",
    "save_ranker",
]

if TYPE_CHECKING:
    from trl_rec.decoding.candidates.orders import draw_gold_rank, draw_slots
    from trl_rec.decoding.candidates.prompts import RatedPromptFormat, rated_tokens
    from trl_rec.decoding.candidates.ranker import CandidateRanker, save_ranker
    from trl_rec.decoding.candidates.ranking import RankedCandidates, rank_candidates
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "orders": ["draw_gold_rank", "draw_slots"],
            "prompts": ["RatedPromptFormat", "rated_tokens"],
            "ranker": ["CandidateRanker", "save_ranker"],
            "ranking": ["RankedCandidates", "rank_candidates"],
        },
    )
