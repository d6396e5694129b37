"""Turns an interaction log and a catalogue into an aligned LLM recommender, using TRL.

Importing this package loads neither torch nor transformers, because the module of a public name is imported only when
the name is first used.
"""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names
from trl_rec.compat import hide_notices
from trl_rec.version import __version__


hide_notices()  # notices of other libraries; called first, because some of them are printed on import

__all__ = [
    "AlroConfig",
    "AlroTrainer",
    "BearConfig",
    "BearTrainer",
    "BladeConfig",
    "BladeTrainer",
    "CandidateRanker",
    "DualIdsConfig",
    "Evaluation",
    "EvaluationConfig",
    "Explanation",
    "FetchError",
    "ItemCatalog",
    "ItemFilter",
    "ItemIdEncoder",
    "LossOutput",
    "MixturePrior",
    "Policy",
    "PopularityBaseline",
    "PreferenceStage",
    "PromptFormat",
    "RandomBaseline",
    "RankedItems",
    "RatedPromptFormat",
    "RatingStageConfig",
    "RecDataset",
    "RecModelConfig",
    "Recommendation",
    "RecommendedList",
    "Recommender",
    "Schedule",
    "SequenceBaseline",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "TokenTrie",
    "TransitionBaseline",
    "TransitionPrior",
    "TrieLogitsProcessor",
    "__version__",
    "align",
    "align3gr_stages",
    "bear_loss",
    "best_of_n_reward",
    "build_alro_trainer",
    "build_bear_trainer",
    "build_blade_trainer",
    "build_model",
    "build_ranker",
    "build_rows",
    "build_softmax_dpo_trainer",
    "choose_prior",
    "describe_ids",
    "dmpo_loss",
    "evaluate_baselines",
    "evaluate_best_of",
    "evaluate_orders",
    "evaluate_policy",
    "evaluate_product",
    "evaluate_rankings",
    "evaluate_rated_baselines",
    "evaluate_split",
    "evaluate_with_baselines",
    "give_ids",
    "held_out_rows",
    "learn_ratings",
    "learn_supervised",
    "leave_one_out",
    "list_policy_loss",
    "load",
    "load_model",
    "load_tokenizer",
    "make_dual_ids",
    "make_model",
    "make_semantic_ids",
    "make_tokenizer",
    "metrics_table",
    "orders_table",
    "paired_comparison",
    "permutation_loss",
    "posterior_cdf",
    "prepare",
    "random_preferences",
    "rank_candidates",
    "rank_items",
    "rating_values",
    "read_ids_card",
    "readable_lists",
    "run_stages",
    "sample_item_lists",
    "sampled_softmax_loss",
    "soft_lambda_loss",
    "softmax_dpo_loss",
    "standardized",
    "training_prefixes",
    "write_report",
]

if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset, load
    from trl_rec.data.preparation.preparing import prepare
    from trl_rec.data.prompts import PromptFormat
    from trl_rec.data.readers.fetching import FetchError
    from trl_rec.data.rows import build_rows
    from trl_rec.decoding.beam import RankedItems, rank_items
    from trl_rec.decoding.candidates.prompts import RatedPromptFormat
    from trl_rec.decoding.candidates.ranker import CandidateRanker
    from trl_rec.decoding.candidates.ranking import rank_candidates
    from trl_rec.decoding.item_filter import ItemFilter
    from trl_rec.decoding.lists.sampling import sample_item_lists
    from trl_rec.decoding.priors import MixturePrior, TransitionPrior
    from trl_rec.decoding.processor import TrieLogitsProcessor
    from trl_rec.decoding.recommended import Explanation, Recommendation, RecommendedList
    from trl_rec.decoding.recommender import Recommender
    from trl_rec.evaluation.baselines import PopularityBaseline, RandomBaseline, TransitionBaseline
    from trl_rec.evaluation.best_of_n import evaluate_best_of
    from trl_rec.evaluation.evaluator import evaluate_rankings
    from trl_rec.evaluation.graded.results import evaluate_orders, evaluate_rated_baselines
    from trl_rec.evaluation.intervals import paired_comparison
    from trl_rec.evaluation.lists import readable_lists
    from trl_rec.evaluation.policy import Policy, evaluate_policy
    from trl_rec.evaluation.prior_choice import choose_prior
    from trl_rec.evaluation.prior_rows import evaluate_product
    from trl_rec.evaluation.report.page import write_report
    from trl_rec.evaluation.results import Evaluation, evaluate_baselines, evaluate_split
    from trl_rec.evaluation.saved_model.config import EvaluationConfig
    from trl_rec.evaluation.saved_model.evaluating import evaluate_with_baselines
    from trl_rec.evaluation.tables import metrics_table
    from trl_rec.items.catalog import ItemCatalog
    from trl_rec.items.trie import TokenTrie
    from trl_rec.losses.alro import permutation_loss, soft_lambda_loss
    from trl_rec.losses.bear import bear_loss
    from trl_rec.losses.blade import best_of_n_reward, leave_one_out, list_policy_loss, posterior_cdf, standardized
    from trl_rec.losses.dmpo import dmpo_loss
    from trl_rec.losses.output import LossOutput
    from trl_rec.losses.sampled import sampled_softmax_loss
    from trl_rec.losses.softmax_dpo import softmax_dpo_loss
    from trl_rec.models.building import RecModelConfig, build_model
    from trl_rec.models.loading import load_model, load_tokenizer
    from trl_rec.models.scratch import make_model, make_tokenizer
    from trl_rec.schedule.loop import run_stages
    from trl_rec.schedule.pipeline import align, give_ids, learn_supervised
    from trl_rec.schedule.preferences import random_preferences
    from trl_rec.schedule.prefixes import training_prefixes
    from trl_rec.schedule.sequence import SequenceBaseline
    from trl_rec.schedule.settings import Schedule
    from trl_rec.schedule.stages import PreferenceStage, align3gr_stages
    from trl_rec.semantic_ids.card import describe_ids
    from trl_rec.semantic_ids.dual.ids import DualIdsConfig, make_dual_ids
    from trl_rec.semantic_ids.dual.storage import ItemIdEncoder
    from trl_rec.semantic_ids.kmeans_ids import make_semantic_ids
    from trl_rec.semantic_ids.storage import read_ids_card
    from trl_rec.trainer.alro.building import build_alro_trainer, build_ranker
    from trl_rec.trainer.alro.config import AlroConfig
    from trl_rec.trainer.alro.rating import RatingStageConfig, learn_ratings
    from trl_rec.trainer.alro.reporting import orders_table
    from trl_rec.trainer.alro.rows import held_out_rows, rating_values
    from trl_rec.trainer.alro.trainer import AlroTrainer
    from trl_rec.trainer.bear.building import build_bear_trainer
    from trl_rec.trainer.bear.config import BearConfig
    from trl_rec.trainer.bear.trainer import BearTrainer
    from trl_rec.trainer.blade.building import build_blade_trainer
    from trl_rec.trainer.blade.config import BladeConfig
    from trl_rec.trainer.blade.trainer import BladeTrainer
    from trl_rec.trainer.softmax_dpo.building import build_softmax_dpo_trainer
    from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
    from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "evaluation.prior_rows": ["evaluate_product"],
            "evaluation.prior_choice": ["choose_prior"],
            "decoding.priors": ["MixturePrior", "TransitionPrior"],
            "data.dataset": ["RecDataset", "load"],
            "data.preparation.preparing": ["prepare"],
            "data.prompts": ["PromptFormat"],
            "data.readers.fetching": ["FetchError"],
            "data.rows": ["build_rows"],
            "decoding.beam": ["RankedItems", "rank_items"],
            "decoding.candidates.prompts": ["RatedPromptFormat"],
            "decoding.candidates.ranker": ["CandidateRanker"],
            "decoding.candidates.ranking": ["rank_candidates"],
            "decoding.item_filter": ["ItemFilter"],
            "decoding.lists.sampling": ["sample_item_lists"],
            "decoding.processor": ["TrieLogitsProcessor"],
            "decoding.recommended": ["Explanation", "Recommendation", "RecommendedList"],
            "decoding.recommender": ["Recommender"],
            "evaluation.baselines": ["PopularityBaseline", "RandomBaseline", "TransitionBaseline"],
            "evaluation.best_of_n": ["evaluate_best_of"],
            "evaluation.evaluator": ["evaluate_rankings"],
            "evaluation.policy": ["Policy", "evaluate_policy"],
            "evaluation.graded.results": ["evaluate_orders", "evaluate_rated_baselines"],
            "evaluation.intervals": ["paired_comparison"],
            "evaluation.lists": ["readable_lists"],
            "evaluation.report.page": ["write_report"],
            "evaluation.results": ["Evaluation", "evaluate_baselines", "evaluate_split"],
            "evaluation.saved_model.config": ["EvaluationConfig"],
            "evaluation.saved_model.evaluating": ["evaluate_with_baselines"],
            "evaluation.tables": ["metrics_table"],
            "items.catalog": ["ItemCatalog"],
            "items.trie": ["TokenTrie"],
            "losses.alro": ["permutation_loss", "soft_lambda_loss"],
            "losses.bear": ["bear_loss"],
            "losses.blade": ["best_of_n_reward", "leave_one_out", "list_policy_loss", "posterior_cdf", "standardized"],
            "losses.dmpo": ["dmpo_loss"],
            "losses.output": ["LossOutput"],
            "losses.sampled": ["sampled_softmax_loss"],
            "losses.softmax_dpo": ["softmax_dpo_loss"],
            "models.building": ["RecModelConfig", "build_model"],
            "models.loading": ["load_model", "load_tokenizer"],
            "models.scratch": ["make_model", "make_tokenizer"],
            "schedule.loop": ["run_stages"],
            "schedule.pipeline": ["align", "give_ids", "learn_supervised"],
            "schedule.preferences": ["random_preferences"],
            "schedule.prefixes": ["training_prefixes"],
            "schedule.sequence": ["SequenceBaseline"],
            "schedule.settings": ["Schedule"],
            "schedule.stages": ["PreferenceStage", "align3gr_stages"],
            "semantic_ids.card": ["describe_ids"],
            "semantic_ids.dual.ids": ["DualIdsConfig", "make_dual_ids"],
            "semantic_ids.dual.storage": ["ItemIdEncoder"],
            "semantic_ids.kmeans_ids": ["make_semantic_ids"],
            "semantic_ids.storage": ["read_ids_card"],
            "trainer.alro.building": ["build_alro_trainer", "build_ranker"],
            "trainer.alro.config": ["AlroConfig"],
            "trainer.alro.rating": ["RatingStageConfig", "learn_ratings"],
            "trainer.alro.reporting": ["orders_table"],
            "trainer.alro.rows": ["held_out_rows", "rating_values"],
            "trainer.alro.trainer": ["AlroTrainer"],
            "trainer.bear.building": ["build_bear_trainer"],
            "trainer.bear.config": ["BearConfig"],
            "trainer.bear.trainer": ["BearTrainer"],
            "trainer.blade.building": ["build_blade_trainer"],
            "trainer.blade.config": ["BladeConfig"],
            "trainer.blade.trainer": ["BladeTrainer"],
            "trainer.softmax_dpo.building": ["build_softmax_dpo_trainer"],
            "trainer.softmax_dpo.config": ["SoftmaxDPOConfig"],
            "trainer.softmax_dpo.trainer": ["SoftmaxDPOTrainer"],
        },
    )
