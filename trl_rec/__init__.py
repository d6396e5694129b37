"""An interaction log and a catalogue become an aligned LLM recommender, on top of TRL.

Importing this loads neither torch nor transformers: every public name loads its module when first asked for.
"""

from trl_rec._lazy import lazy_names


__version__ = "0.1.0.dev0"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ItemCatalog": "items.catalog",
        "TokenTrie": "items.trie",
        "AlroConfig": "trainer.alro_config",
        "AlroTrainer": "trainer.alro_trainer",
        "BearConfig": "trainer.bear_config",
        "BearTrainer": "trainer.bear_trainer",
        "BladeConfig": "trainer.blade_config",
        "BladeTrainer": "trainer.blade_trainer",
        "PromptFormat": "data.prompts",
        "RecDataset": "data.dataset",
        "build_rows": "data.rows",
        "load": "data.dataset",
        "prepare": "data.preparation",
        "make_semantic_ids": "semantic_ids.making",
        "RankedItems": "decoding.beam",
        "TrieLogitsProcessor": "decoding.processor",
        "Recommender": "decoding.recommender",
        "CandidateRanker": "decoding.candidate_ranker",
        "rank_candidates": "decoding.candidates",
        "rank_items": "decoding.beam",
        "PreferenceStage": "schedule.stages",
        "Schedule": "schedule.plan",
        "SoftmaxDPOConfig": "trainer.softmax_dpo_config",
        "SoftmaxDPOTrainer": "trainer.softmax_dpo_trainer",
        "bear_loss": "losses.bear",
        "permutation_loss": "losses.alro",
        "run_stages": "schedule.loop",
        "soft_lambda_loss": "losses.alro",
        "softmax_dpo_loss": "losses.softmax_dpo",
        "PopularityFloor": "evaluation.floors",
        "RandomFloor": "evaluation.floors",
        "TransitionFloor": "evaluation.floors",
        "evaluate_rankings": "evaluation.evaluator",
    },
)
