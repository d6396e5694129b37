"""Chooses how strongly a prior multiplies a policy, on the validation split.

The grid has two axes: the strength, and `eps`, the weight of the popularity, if the prior has one. It is extended
while the best setting is on one of its edges, up to `STRENGTH_LIMITS` and `EPS_LIMITS`, and towards weaker priors
while no prior is best. Only a model that writes lists runs anew for every setting:

- If every item is a single token, all items are scored exactly, and every setting is evaluated exactly. The scores are
  too large to keep, so they are computed again for each extension of the grid.
- For longer paths, the candidates of a user are the best items of the policy without a prior and the best items of the
  prior alone, `CANDIDATES` each. Their exact scores are re-ranked under every setting.
- A model that writes lists writes them anew for every setting. To save time, fewer users are used, and the settings
  vary one axis at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast, get_args

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from trl_rec.data.dataset import at_most, split_rows
from trl_rec.decoding.exact import score_catalog
from trl_rec.decoding.priors import FittedPrior, PopularityPrior, SavedPrior
from trl_rec.decoding.priors.fitted import PriorKind
from trl_rec.evaluation.evaluator import per_user_metrics
from trl_rec.evaluation.policy import Policy, log_weights
from trl_rec.evaluation.rank import map_rows
from trl_rec.evaluation.results import held_out
from trl_rec.evaluation.tables import aligned
from trl_rec.files import write_json
from trl_rec.ragged import Ragged


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

AnyPrior = TypeVar("AnyPrior", bound=SavedPrior)
CHOICE = "choice.json"
MOST_USERS = 10_000  # validation users for exact scores
MOST_USERS_SEARCHED = 2_000  # validation users for candidates
MOST_USERS_WRITTEN = 300  # validation users for lists
CANDIDATES = 50
NUM_STRONG = 64  # a target is first compared with only this number of best items by score, and by weight
# The grid consists of powers: strengths are 2 ** (n / 2), and values of eps are 10 ** (n / 2), to two digits.
STRENGTH_STEPS = range(-4, 4)  # 0.25 to 2.8
EPS_STEPS = range(-4, 3)  # 0.01 to 10
STRENGTH_LIMITS = (-10, 10)  # 0.031 to 32
EPS_LIMITS = (-8, 6)  # 0.0001 to 1000


class Setting(NamedTuple):
    """One setting of a prior.

    Args:
        strength (`float`): Exponent of the weights; 0 is the policy alone.
        eps (`float`, *optional*): Weight of the popularity. None if the prior has no such weight, and at strength 0.
    """

    strength: float
    eps: float | None


@dataclass(frozen=True)
class PriorChoice:
    """How a prior was set, and on what grounds.

    Args:
        prior (`str`): The kind of prior.
        strength (`float`): The chosen exponent.
        eps (`float`, *optional*): The chosen weight of the popularity.
        metric (`str`): The metric that was compared.
        grid (`list[dict]`): The value of the metric on the validation split for every setting. Empty if the strength
            was given.
        num_users (`int`): Number of validation users. 0 if the strength was given.
        how (`str`): How settings were evaluated: `"exact"`, `"candidates"`, `"lists"` or `"given"`.
        at_limit (`bool`): Whether the best setting is on an edge of the grid that could not be extended further.
    """

    prior: str
    strength: float
    eps: float | None
    metric: str
    grid: list[dict[str, Any]]
    num_users: int
    how: str
    at_limit: bool = False

    @property
    def setting(self) -> dict[str, Any]:
        """What two choices must have in common to be the same choice."""
        return {"prior": self.prior, "strength": self.strength, "eps": self.eps}


def choose_prior(
    policy: Policy,
    dataset: RecDataset,
    prior: FittedPrior,
    *,
    k: int = 10,
    max_users: int | None = None,
) -> tuple[FittedPrior, PriorChoice]:
    """Chooses the setting of a prior with the highest NDCG@k on the validation split.

    Args:
        policy (`Policy`): The policy, whose own prior is ignored.
        dataset (`RecDataset`): The dataset. Only its validation split is read.
        prior ([`FittedPrior`]): The prior, whose strength and eps are ignored.
        k (`int`, *optional*, defaults to `10`): The cutoff of the metric.
        max_users (`int`, *optional*): Maximum number of validation users. At most `MOST_USERS` are used, or
            `MOST_USERS_SEARCHED` if the paths of items are longer than one token, or `MOST_USERS_WRITTEN` for lists.

    Returns:
        The prior with the chosen setting, and the choice. Of equally good settings, the weakest is chosen.
    """
    # 1. Select the users. The trie is moved to the device of the model once, because the scores are there.
    policy = replace(policy, prior=None, trie=policy.trie.to(policy.model.device))
    how = "lists" if policy.writes_lists else "exact" if policy.trie.max_depth == 1 else "candidates"
    most = {"lists": MOST_USERS_WRITTEN, "exact": MOST_USERS, "candidates": MOST_USERS_SEARCHED}[how]
    rows = at_most(min(most, max_users or most), held_out(dataset, "validation"))

    # 2. Evaluate the grid.
    measure: Callable[[Sequence[Setting]], list[float]]
    if how == "lists":
        measure = _by_writing(policy, rows, prior, k)
    elif how == "exact":
        measure = _by_scoring(policy, rows, prior, k)
    else:
        measure = _by_candidates(policy, rows, prior, k)
    values, at_limit = search_grid(measure, has_eps=hasattr(prior, "eps"), one_axis_at_a_time=how == "lists")

    # 3. Choose.
    best = best_setting(values)
    grid = [{"strength": one.strength, "eps": one.eps, "value": values[one]} for one in sorted(values, key=_order)]
    choice = PriorChoice(prior.kind, best.strength, best.eps, f"ndcg@{k}", grid, len(rows), how, at_limit)
    return with_setting(prior, best), choice


def given_choice(
    prior: AnyPrior, strength: float, k: int, *, recorded: Mapping[str, Any] | None = None
) -> tuple[AnyPrior, PriorChoice]:
    """Returns a prior with a given strength, and the choice that says so.

    Args:
        prior ([`SavedPrior`]): The prior.
        strength (`float`): The strength.
        k (`int`): The cutoff of the metric.
        recorded (*optional*): The choice that the output folder contains, from [`read_choice`]. If it has the same
            prior and strength, its eps is used as well, so that the recorded setting can be given.
    """
    eps = getattr(prior, "eps", None)
    if recorded is not None and (recorded.get("prior"), recorded.get("strength")) == (prior.kind, strength):
        found = recorded.get("eps")
        eps = found if found is None or (isinstance(found, float | int) and found > 0) else eps
    choice = PriorChoice(prior.kind, strength, eps, f"ndcg@{k}", [], 0, "given")
    return with_setting(prior, Setting(strength, eps)), choice


def with_setting(prior: AnyPrior, setting: Setting) -> AnyPrior:
    """Returns the prior with another setting. Its eps stays if the setting has none."""
    has_eps = setting.eps is not None and hasattr(prior, "eps")
    changed: dict[str, Any] = {"strength": setting.strength, **({"eps": setting.eps} if has_eps else {})}
    return replace(prior, **changed)


def search_grid(
    measure: Callable[[Sequence[Setting]], list[float]], *, has_eps: bool, one_axis_at_a_time: bool = False
) -> tuple[dict[Setting, float], bool]:
    """Evaluates a grid of settings, and extends it while the best setting is on an edge.

    Args:
        measure: Returns the metric of each setting.
        has_eps: Whether the grid has the axis `eps`.
        one_axis_at_a_time: Whether to evaluate only the strengths at the best eps, and the values of eps at the best
            strength, instead of all combinations.

    Returns:
        The metric of each setting, and whether the best setting is at a limit of the grid.
    """
    strengths = set(STRENGTH_STEPS)
    epsilons: set[int | None] = set(EPS_STEPS) if has_eps else {None}
    values: dict[Setting, float] = {}
    steps: dict[Setting, tuple[int | None, int | None]] = {Setting(0.0, None): (None, None)}
    centre = (0, 0 if has_eps else None)
    while True:
        # 1. Evaluate the settings that are new.
        wanted = [(strength, eps) for strength in strengths for eps in epsilons]
        if one_axis_at_a_time:
            wanted = [one for one in wanted if one[0] == centre[0] or one[1] == centre[1]]
        steps |= {_setting(*one): one for one in wanted}
        new = [one for one in sorted(steps, key=_order) if one not in values]
        if not new:
            return values, _at_limit(steps[best_setting(values)])
        values |= dict(zip(new, measure(new), strict=True))

        # 2. Extend each axis by two values on the side where the best setting is on the edge. If no prior is best so
        #    far, a weaker prior than those of the grid may be better.
        strength, eps = steps[best_setting(values)]
        if strength is None:
            strengths |= _extension(min(strengths), strengths, STRENGTH_LIMITS)
        else:
            strengths |= _extension(strength, strengths, STRENGTH_LIMITS)
            if eps is not None:
                epsilons |= _extension(eps, {one for one in epsilons if one is not None}, EPS_LIMITS)
            centre = (strength, eps)


def best_setting(values: Mapping[Setting, float]) -> Setting:
    """Returns the setting with the highest value; of equal ones, that of the lowest strength, then of the lowest
    eps."""
    return max(sorted(values, key=_order), key=lambda setting: values[setting])


def keep_choice(folder: str | Path, choice: PriorChoice, split: str) -> None:
    """Writes `choice.json`. Call this function before the prior is measured on `split`.

    Raises `ValueError` if the folder already contains another choice that was measured on the test split.
    """
    content = {**asdict(choice), "split": split}
    before = read_choice(folder)
    if before is not None and before.get("split") == "test":
        if {name: before.get(name) for name in choice.setting} != choice.setting:
            raise _other_choice(folder, before, f"this run chose {_in_words(choice.setting)}")
        content["split"] = "test"
    write_json(Path(folder) / CHOICE, content)


def check_choice(folder: str | Path, prior: str, strength: float | None) -> None:
    """Raises `ValueError` if [`keep_choice`] is certain to refuse the choice of a prior. Call this function before
    work that would be in vain.

    Args:
        folder: The output folder.
        prior: The kind of prior.
        strength: The given strength. None if the strength is chosen later.
    """
    before = read_choice(folder)
    if before is None or before.get("split") != "test":
        return
    if before.get("prior") != prior or strength not in (None, before.get("strength")):
        wanted = prior if strength is None else f"{prior} with strength {strength}"
        raise _other_choice(folder, before, f"this run asks for {wanted}")


def _other_choice(folder: str | Path, before: Mapping[str, Any], now: str) -> ValueError:
    """Returns the error for a folder whose test split was measured with another setting."""
    kind, strength = before.get("prior"), before.get("strength")
    repeat = ""
    if kind in get_args(PriorKind) and isinstance(strength, float | int):
        repeat = f", or set prior to {kind} and prior_strength to {strength}, as recorded"
    return ValueError(
        f"{Path(folder) / CHOICE} records another choice, {_in_words(before)}, which has been measured on the test "
        f"split; {now}, so choose another output_dir{repeat}"
    )


def read_choice(folder: str | Path) -> dict[str, Any] | None:
    """Reads `choice.json`, or returns None if there is none. Raises `ValueError` if it is damaged."""
    path = Path(folder) / CHOICE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged and cannot be read ({error}); choose another output_dir") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not contain the choice of a prior; choose another output_dir")
    return content


def choice_table(choice: PriorChoice) -> str:
    """Makes a table of the grid: one row per strength and one column per eps, with the best value marked."""
    if choice.how == "given":
        return f"prior {choice.prior}: {_in_words(choice.setting)}, as given"

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

    # 2. Say what the values are.
    how = {
        "exact": "with the exact scores of all items",
        "candidates": f"among the {CANDIDATES} best items of the policy and of the prior",
        "lists": "with lists written anew for every setting",
    }[choice.how]
    caption = (
        f"prior {choice.prior}: {choice.metric} of the product over {choice.num_users} validation users, {how} "
        "(strength 0: the policy alone)"
    )
    lines = [caption, "", *aligned(rows), "", f"*: chosen, {_in_words(choice.setting)}"]
    if choice.at_limit:
        lines.append("the best setting is at the limit of the grid, so an even more extreme one may be better")
    return "\n".join(lines)


def _by_scoring(policy: Policy, rows: Dataset, prior: FittedPrior, k: int) -> Callable[..., list[float]]:
    """Returns a function that evaluates settings with the exact scores of all items."""
    trie = policy.trie
    histories = split_rows(rows, "history")
    targets = torch.from_numpy(split_rows(rows, "targets").padded())  # (N, T)
    items = torch.arange(len(trie.item_positions), device=trie.items.device)

    def measure(settings: Sequence[Setting]) -> list[float]:
        def _measure(prompts: dict[str, Tensor], numbers: np.ndarray, exclude: Tensor | None) -> np.ndarray:
            scores = score_catalog(
                policy.model, prompts, trie, renormalize=policy.renormalize, length_penalty=policy.length_penalty
            )
            if exclude is not None:
                padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
                columns = torch.where(exclude < 0, len(items), exclude).to(scores.device)
                scores = padded.scatter(1, columns, -torch.inf)[:, :-1]
            some = items.expand(len(scores), -1)
            weights = _log_weights(policy, prior, histories.take(numbers), some, settings)
            return ndcg_by_setting(scores, some, targets[numbers].to(scores.device), settings, weights, k)

        values = policy.map_rows(_measure, rows, len(settings), np.dtype(np.float64), "choosing the prior")
        return list(values.mean(0).tolist())

    return measure


def _by_candidates(policy: Policy, rows: Dataset, prior: FittedPrior, k: int) -> Callable[..., list[float]]:
    """Returns a function that evaluates settings by re-ranking the best items of the policy and of the prior."""
    # 1. Find the candidates, and the scores of the policy.
    most = min(CANDIDATES, len(policy.trie.item_positions))
    own = policy.rank(rows, most, num_beams=max(policy.num_beams or 0, most))
    likely = replace(policy, prior=with_setting(prior, Setting(1.0, None))).rank_by_prior(rows, most).items
    likely = np.where((likely[:, :, None] == own.items[:, None, :]).any(-1), -1, likely)  # no item twice
    lengths = (likely >= 0).sum(1)
    further = np.full(likely.shape, -np.inf, np.float32)
    if lengths.any():
        has_any = np.flatnonzero(lengths)
        given = Ragged.from_lengths(likely[likely >= 0].astype(np.int64), lengths).take(has_any)
        further[likely >= 0] = policy.score(rows.select(has_any), given)
    assert own.scores is not None
    items = torch.from_numpy(np.concatenate([own.items, likely], 1))  # (N, P)
    scores = torch.from_numpy(np.concatenate([own.scores, further], 1))

    # 2. Re-rank them.
    histories = split_rows(rows, "history")
    targets = torch.from_numpy(split_rows(rows, "targets").padded())

    def measure(settings: Sequence[Setting]) -> list[float]:
        def _measure(numbers: np.ndarray) -> np.ndarray:
            device = policy.trie.items.device
            some = items[numbers].to(device)
            weights = _log_weights(policy, prior, histories.take(numbers), some, settings)
            return ndcg_by_setting(scores[numbers].to(device), some, targets[numbers].to(device), settings, weights, k)

        values = map_rows(
            _measure,
            histories.lengths,
            width=len(settings),
            dtype=np.dtype(np.float64),
            desc="choosing the prior",
            batch_size=policy.batch_size,
        )
        return list(values.mean(0).tolist())

    return measure


def _by_writing(policy: Policy, rows: Dataset, prior: FittedPrior, k: int) -> Callable[..., list[float]]:
    """Returns a function that evaluates settings by writing lists with each of them."""
    targets = split_rows(rows, "targets")

    def measure(settings: Sequence[Setting]) -> list[float]:
        values = []
        for setting in settings:
            own = None if setting.strength == 0 else with_setting(prior, setting)
            ranked = replace(policy, prior=own).rank(rows, k)
            values.append(float(per_user_metrics(ranked.items, targets, ks=[k])[f"ndcg@{k}"].mean()))
        return values

    return measure


def _log_weights(
    policy: Policy, prior: FittedPrior, histories: Ragged, items: Tensor, settings: Sequence[Setting]
) -> dict[float | None, Tensor]:
    """Returns, for each eps in the settings, `log(w / W)` of each of the items `(B, P)`."""
    # The histories are looked up once, because eps is only a factor of the weights that all histories share.
    has_eps = not isinstance(prior, PopularityPrior)
    weights = with_setting(prior, Setting(1.0, 1.0 if has_eps else None)).weights(histories)
    shared = cast(Tensor, weights.shared)
    return {
        eps: log_weights(policy.trie, weights if eps is None else replace(weights, shared=eps * shared), items)
        for eps in {setting.eps for setting in settings if setting.strength}
    }


def ndcg_by_setting(
    scores: Tensor,
    items: Tensor,
    targets: Tensor,
    settings: Sequence[Setting],
    weights: Mapping[float | None, Tensor],
    k: int,
) -> np.ndarray:
    """Returns NDCG@k of each prompt under each setting, `(B, len(settings))`.

    Args:
        scores (`torch.Tensor` of shape `(B, P)`): The scores of the items without a prior; -inf where excluded.
        items (`torch.Tensor` of shape `(B, P)`): The items to rank; -1 is padding. Equal scores are ordered by item.
        targets (`torch.Tensor` of shape `(B, T)`): The relevant items, padded with -1.
        settings: The settings.
        weights: `log(w / W)` of the items for each eps, `(B, P)`.
        k: The cutoff.
    """
    # 1. Find the targets among the items. A repeated target counts once.
    targets = targets.sort(1).values
    targets[:, 1:] = torch.where(targets[:, 1:] == targets[:, :-1], -1, targets[:, 1:])
    found = [(items == target.unsqueeze(1)) & (target.unsqueeze(1) >= 0) for target in targets.T]
    places = torch.stack([one.long().argmax(1) for one in found], 1)  # (B, T)
    is_found = torch.stack([one.any(1) for one in found], 1)
    scores = scores.masked_fill(items < 0, -torch.inf)

    # 2. Most prompts have no target among the k best items under any setting. To find these prompts, rank the targets
    #    among a few strong items: a target that is not among the k best of these is not among the k best of all items.
    gains = torch.zeros(len(scores), len(settings), dtype=torch.float64, device=scores.device)
    rows = torch.arange(len(scores), device=scores.device)
    if scores.shape[1] > 4 * NUM_STRONG:
        columns = _strong_columns(scores, weights, places)  # (B, P')
        some = {eps: one.gather(1, columns) for eps, one in weights.items()}
        own = (columns.unsqueeze(1) == places.unsqueeze(2)).long().argmax(2)  # (B, T)
        possible = _gains(scores.gather(1, columns), items.gather(1, columns), own, is_found, settings, some, k)
        rows = possible.any(1).nonzero().squeeze(1)

    # 3. Rank the targets of the other prompts among all items.
    if len(rows):
        some = {eps: one[rows] for eps, one in weights.items()}
        gains[rows] = _gains(scores[rows], items[rows], places[rows], is_found[rows], settings, some, k)
    ideal = _discounts(k, scores.device).cumsum(0)[(targets >= 0).sum(1).clamp(1, k) - 1]  # (B,)
    ndcg: np.ndarray = (gains / ideal.unsqueeze(1)).cpu().numpy()
    return ndcg


def _strong_columns(scores: Tensor, weights: Mapping[float | None, Tensor], places: Tensor) -> Tensor:
    """Returns distinct columns `(B, P')` that contain the best items by score, the best items by the weights of one
    eps, and the targets. Rows with fewer such columns than others are filled up with further columns."""
    by_score = scores.topk(NUM_STRONG, 1).indices
    by_weight = [one.topk(NUM_STRONG, 1).indices for one in list(weights.values())[:1]]
    is_strong = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    is_strong = is_strong.scatter(1, torch.cat([by_score, *by_weight, places], 1), True)
    width = int(is_strong.sum(1).amax())
    return is_strong.to(torch.uint8).topk(width, 1).indices


def _gains(
    scores: Tensor,
    items: Tensor,
    places: Tensor,
    is_found: Tensor,
    settings: Sequence[Setting],
    weights: Mapping[float | None, Tensor],
    k: int,
) -> Tensor:
    """Returns the sum of the discounts of the targets that are among the k best items, `(B, len(settings))`.

    The targets are the items at the `places` `(B, T)`, where `is_found`.
    """
    discounts = _discounts(k, scores.device)
    gains = torch.zeros(len(scores), len(settings), dtype=torch.float64, device=scores.device)
    comes_first = [items < items.gather(1, place.unsqueeze(1)) for place in places.T]  # among equal scores
    for number, setting in enumerate(settings):
        total = torch.add(scores, weights[setting.eps], alpha=setting.strength) if setting.strength else scores
        for column, is_lower in enumerate(comes_first):
            own = total.gather(1, places[:, column : column + 1])  # (B, 1)
            rank = torch.count_nonzero(total > own, 1)
            rank = rank + torch.count_nonzero((total == own) & is_lower, 1)
            hit = is_found[:, column] & (own[:, 0] > -torch.inf) & (rank < k)
            gains[:, number] += torch.where(hit, discounts[rank.clamp(max=k - 1)], 0.0)
    return gains


def _discounts(k: int, device: torch.device) -> Tensor:
    """Returns the gain of a hit at each of the first k ranks, `(k,)`."""
    return 1 / torch.arange(2, k + 2, dtype=torch.float64, device=device).log2()


def _setting(strength: int | None, eps: int | None) -> Setting:
    """Returns the setting at the given steps of the grid. The figures have two digits."""
    if strength is None:
        return Setting(0.0, None)
    return Setting(float(f"{2 ** (strength / 2):.2g}"), None if eps is None else float(f"{10 ** (eps / 2):.2g}"))


def _order(setting: Setting) -> tuple[float, float]:
    return setting.strength, setting.eps or 0.0


def _extension(best: int, steps: set[int], limits: tuple[int, int]) -> set[int]:
    """Returns the next two steps beyond the edge that `best` is on, within the limits; empty if it is on no edge."""
    further: set[int] = set()
    if best == max(steps):
        further |= {best + 1, best + 2}
    if best == min(steps):
        further |= {best - 1, best - 2}
    return {step for step in further if limits[0] <= step <= limits[1]}


def _at_limit(steps: tuple[int | None, int | None]) -> bool:
    strength, eps = steps
    return strength in STRENGTH_LIMITS or eps in EPS_LIMITS


def _in_words(setting: Mapping[str, Any]) -> str:
    eps = setting.get("eps")
    return f"{setting.get('prior')} with strength {setting.get('strength')}" + (
        "" if eps is None else f" and eps {eps:g}" if isinstance(eps, int | float) else f" and eps {eps!r}"
    )
