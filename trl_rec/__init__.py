"""An interaction log and a catalogue become an aligned LLM recommender, on top of TRL.

Importing this loads neither torch nor transformers: every public name loads its module when first asked for.
"""

from typing import TYPE_CHECKING

from trl_rec._lazy import lazy_names
from trl_rec.version import __version__


__all__ = [
    "__version__",
    "AlroConfig",
    "AlroTrainer",
    "BearConfig",
    "BearTrainer",
    "BladeConfig",
    "BladeTrainer",
    "CandidateRanker",
    "DualIdsConfig",
    "Evaluation",
    "ItemCatalog",
    "LossOutput",
    "PopularityBaseline",
    "PreferenceStage",
    "PromptFormat",
    "RandomBaseline",
    "RankedItems",
    "RatedPromptFormat",
    "RecDataset",
    "RecModelConfig",
    "Recommendation",
    "Recommender",
    "Schedule",
    "SoftmaxDPOConfig",
    "SoftmaxDPOTrainer",
    "TokenTrie",
    "TransitionBaseline",
    "TrieLogitsProcessor",
    "bear_loss",
    "best_of_n_reward",
    "build_model",
    "build_rows",
    "dmpo_loss",
    "evaluate_best_of",
    "evaluate_baselines",
    "evaluate_orders",
    "evaluate_rankings",
    "evaluate_rated_baselines",
    "evaluate_split",
    "leave_one_out",
    "list_policy_loss",
    "load",
    "make_dual_ids",
    "make_model",
    "make_semantic_ids",
    "make_tokenizer",
    "permutation_loss",
    "posterior_cdf",
    "prepare",
    "rank_candidates",
    "rank_items",
    "run_stages",
    "sample_item_lists",
    "soft_lambda_loss",
    "softmax_dpo_loss",
    "standardized",
]

if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset, load
    from trl_rec.data.preparation import prepare
    from trl_rec.data.prompts import PromptFormat
    from trl_rec.data.rows import build_rows
    from trl_rec.decoding.beam import RankedItems, rank_items
    from trl_rec.decoding.candidates.prompts import RatedPromptFormat
    from trl_rec.decoding.candidates.ranker import CandidateRanker
    from trl_rec.decoding.candidates.ranking import rank_candidates
    from trl_rec.decoding.lists import sample_item_lists
    from trl_rec.decoding.processor import TrieLogitsProcessor
    from trl_rec.decoding.recommender import Recommendation, Recommender
    from trl_rec.evaluation.baselines import PopularityBaseline, RandomBaseline, TransitionBaseline
    from trl_rec.evaluation.best_of_n import evaluate_best_of
    from trl_rec.evaluation.evaluator import evaluate_rankings
    from trl_rec.evaluation.graded.results import evaluate_orders, evaluate_rated_baselines
    from trl_rec.evaluation.results import Evaluation, evaluate_baselines, evaluate_split
    from trl_rec.items.catalog import ItemCatalog
    from trl_rec.items.trie import TokenTrie
    from trl_rec.losses.alro import permutation_loss, soft_lambda_loss
    from trl_rec.losses.bear import bear_loss
    from trl_rec.losses.blade import best_of_n_reward, leave_one_out, list_policy_loss, posterior_cdf, standardized
    from trl_rec.losses.dmpo import dmpo_loss
    from trl_rec.losses.output import LossOutput
    from trl_rec.losses.softmax_dpo import softmax_dpo_loss
    from trl_rec.models.building import RecModelConfig, build_model
    from trl_rec.models.scratch import make_model, make_tokenizer
    from trl_rec.schedule.loop import run_stages
    from trl_rec.schedule.settings import Schedule
    from trl_rec.schedule.stages import PreferenceStage
    from trl_rec.semantic_ids.dual import DualIdsConfig, make_dual_ids
    from trl_rec.semantic_ids.kmeans_ids import make_semantic_ids
    from trl_rec.trainer.alro.config import AlroConfig
    from trl_rec.trainer.alro.trainer import AlroTrainer
    from trl_rec.trainer.bear.config import BearConfig
    from trl_rec.trainer.bear.trainer import BearTrainer
    from trl_rec.trainer.blade.config import BladeConfig
    from trl_rec.trainer.blade.trainer import BladeTrainer
    from trl_rec.trainer.softmax_dpo.config import SoftmaxDPOConfig
    from trl_rec.trainer.softmax_dpo.trainer import SoftmaxDPOTrainer
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "data.dataset": ["RecDataset", "load"],
            "data.preparation": ["prepare"],
            "data.prompts": ["PromptFormat"],
            "data.rows": ["build_rows"],
            "decoding.beam": ["RankedItems", "rank_items"],
            "decoding.candidates.prompts": ["RatedPromptFormat"],
            "decoding.candidates.ranker": ["CandidateRanker"],
            "decoding.candidates.ranking": ["rank_candidates"],
            "decoding.lists": ["sample_item_lists"],
            "decoding.processor": ["TrieLogitsProcessor"],
            "decoding.recommender": ["Recommendation", "Recommender"],
            "evaluation.baselines": ["PopularityBaseline", "RandomBaseline", "TransitionBaseline"],
            "evaluation.best_of_n": ["evaluate_best_of"],
            "evaluation.evaluator": ["evaluate_rankings"],
            "evaluation.graded.results": ["evaluate_orders", "evaluate_rated_baselines"],
            "evaluation.results": ["Evaluation", "evaluate_baselines", "evaluate_split"],
            "items.catalog": ["ItemCatalog"],
            "items.trie": ["TokenTrie"],
            "losses.alro": ["permutation_loss", "soft_lambda_loss"],
            "losses.bear": ["bear_loss"],
            "losses.blade": ["best_of_n_reward", "leave_one_out", "list_policy_loss", "posterior_cdf", "standardized"],
            "losses.dmpo": ["dmpo_loss"],
            "losses.output": ["LossOutput"],
            "losses.softmax_dpo": ["softmax_dpo_loss"],
            "models.building": ["RecModelConfig", "build_model"],
            "models.scratch": ["make_model", "make_tokenizer"],
            "schedule.loop": ["run_stages"],
            "schedule.settings": ["Schedule"],
            "schedule.stages": ["PreferenceStage"],
            "semantic_ids.dual": ["DualIdsConfig", "make_dual_ids"],
            "semantic_ids.kmeans_ids": ["make_semantic_ids"],
            "trainer.alro.config": ["AlroConfig"],
            "trainer.alro.trainer": ["AlroTrainer"],
            "trainer.bear.config": ["BearConfig"],
            "trainer.bear.trainer": ["BearTrainer"],
            "trainer.blade.config": ["BladeConfig"],
            "trainer.blade.trainer": ["BladeTrainer"],
            "trainer.softmax_dpo.config": ["SoftmaxDPOConfig"],
            "trainer.softmax_dpo.trainer": ["SoftmaxDPOTrainer"],
        },
    )
