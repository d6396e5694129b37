"""Formats the measured settings of a prior, and the chosen setting, as a text table.

A setting is a strength and an `eps` (the weight of popularity).
"""

from __future__ import annotations

from trl_rec.evaluation.prior_choice.choice import PriorChoice, setting_in_words
from trl_rec.evaluation.prior_choice.grid import Setting
from trl_rec.evaluation.prior_choice.measuring import NUM_RESCORED
from trl_rec.evaluation.tables import aligned


def choice_table(choice: PriorChoice) -> str:
    """Makes a table of the metric of all measured settings, with the chosen setting marked.

    It has one row per strength and one column per eps, or a single column of values if the prior has no eps.
    If the strength was given, nothing was measured, and the result is one line.
    """
    if choice.how == "given":
        return f"prior {choice.prior}: {setting_in_words(choice.setting)}, as given"

    # 1. Write one row per strength.
    values = {Setting(one["strength"], one["eps"]): one["value"] for one in choice.grid}
    epsilons = sorted({eps for _, eps in values if eps is not None})
    rows = [["strength", *([f"eps {eps:g}" for eps in epsilons] or [choice.metric])]]
    for strength in sorted({strength for strength, _ in values}):
        cells = []
        for eps in list[float | None](epsilons) or [None]:
            setting = Setting(strength, None if strength == 0 else eps)
            mark = "*" if setting == (choice.strength, choice.eps) else " "
            cells.append(f"{values[setting]:.4f}{mark}" if setting in values else "-")
        rows.append([f"{strength:g}", *cells])

    # 2. Write the caption, which explains the values.
    how = {
        "exact": "with the exact scores of all items",
        "rescored": f"with rankings of the policy's {NUM_RESCORED} best items and the prior's {NUM_RESCORED} best",
        "lists": "with new lists for every setting",
    }[choice.how]
    caption = (
        f"prior {choice.prior}: {choice.metric} of the policy times the prior, averaged over "
        f"{choice.num_users} validation users, {how} (strength 0: the policy alone)"
    )
    lines = [caption, "", *aligned(rows), "", f"*: chosen, {setting_in_words(choice.setting)}"]
    if choice.at_limit:
        lines.append("the best setting is at the limit of the grid, so a setting beyond the limit may be better")
    return "\n".join(lines)
