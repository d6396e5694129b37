"""Chooses the setting of a prior on the validation split: its strength, and its eps (the weight of popularity).

`grid.py` determines which settings are compared, `measuring.py` and `ndcg.py` compute their NDCG, `choice.py` chooses
the best setting, `choice_file.py` stores it in the output folder, and `table.py` formats the results as a table.
"""

from trl_rec.evaluation.prior_choice.choice import PriorChoice, choose_prior, given_choice
from trl_rec.evaluation.prior_choice.choice_file import CHOICE, check_choice, keep_choice, read_choice
from trl_rec.evaluation.prior_choice.grid import Setting, best_setting, is_on_grid, search_grid, with_setting
from trl_rec.evaluation.prior_choice.measuring import seconds_to_measure
from trl_rec.evaluation.prior_choice.ndcg import ndcg_by_setting
from trl_rec.evaluation.prior_choice.table import choice_table


__all__ = [
    "CHOICE",
    "PriorChoice",
    "Setting",
    "best_setting",
    "check_choice",
    "choice_table",
    "choose_prior",
    "given_choice",
    "is_on_grid",
    "keep_choice",
    "ndcg_by_setting",
    "read_choice",
    "search_grid",
    "seconds_to_measure",
    "with_setting",
]
