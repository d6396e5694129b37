"""Recommends items with a model: by beam search over the catalogue, by scoring every item, by writing whole lists, or
by ordering given candidates. The package also contains priors, which give each item a weight without the model, and a
logits processor for `model.generate`."""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names


__all__ = [
    "ArrayPrior",
    "CandidateRanker",
    "Explanation",
    "FunctionPrior",
    "ItemFilter",
    "ItemWeights",
    "ListTokens",
    "MixturePrior",
    "PopularityPrior",
    "Prior",
    "RankedCandidates",
    "RankedItems",
    "RatedPromptFormat",
    "Recommendation",
    "RecommendedList",
    "Recommender",
    "SampledLists",
    "TransitionPrior",
    "TrieLogitsProcessor",
    "beam_list",
    "as_prior",
    "greedy_list",
    "list_logps",
    "list_tokens",
    "load_prior",
    "rank_candidates",
    "rank_items",
    "rank_scores",
    "rated_tokens",
    "sample_item_lists",
    "score_catalog",
    "score_items",
]

if TYPE_CHECKING:
    from trl_rec.decoding.beam import RankedItems, rank_items
    from trl_rec.decoding.candidates.prompts import RatedPromptFormat, rated_tokens
    from trl_rec.decoding.candidates.ranker import CandidateRanker
    from trl_rec.decoding.candidates.ranking import RankedCandidates, rank_candidates
    from trl_rec.decoding.exact import rank_scores, score_catalog, score_items
    from trl_rec.decoding.item_filter import ItemFilter
    from trl_rec.decoding.lists.beams import beam_list
    from trl_rec.decoding.lists.constraint import ListTokens, list_logps, list_tokens
    from trl_rec.decoding.lists.sampling import SampledLists, greedy_list, sample_item_lists
    from trl_rec.decoding.priors import (
        ArrayPrior,
        FunctionPrior,
        MixturePrior,
        PopularityPrior,
        Prior,
        TransitionPrior,
        as_prior,
        load_prior,
    )
    from trl_rec.decoding.processor import TrieLogitsProcessor
    from trl_rec.decoding.recommended import Explanation, Recommendation, RecommendedList
    from trl_rec.decoding.recommender import Recommender
    from trl_rec.decoding.weights import ItemWeights
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "beam": ["RankedItems", "rank_items"],
            "candidates.prompts": ["RatedPromptFormat", "rated_tokens"],
            "candidates.ranker": ["CandidateRanker"],
            "candidates.ranking": ["RankedCandidates", "rank_candidates"],
            "exact": ["rank_scores", "score_catalog", "score_items"],
            "item_filter": ["ItemFilter"],
            "lists.beams": ["beam_list"],
            "lists.constraint": ["ListTokens", "list_logps", "list_tokens"],
            "lists.sampling": ["SampledLists", "greedy_list", "sample_item_lists"],
            "priors": [
                "ArrayPrior",
                "FunctionPrior",
                "MixturePrior",
                "PopularityPrior",
                "Prior",
                "TransitionPrior",
                "as_prior",
                "load_prior",
            ],
            "processor": ["TrieLogitsProcessor"],
            "recommended": ["Explanation", "Recommendation", "RecommendedList"],
            "recommender": ["Recommender"],
            "weights": ["ItemWeights"],
        },
    )
