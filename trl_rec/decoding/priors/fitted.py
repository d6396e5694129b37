"""Fits a prior of a given kind, and loads saved priors of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from trl_rec.decoding.priors.counted import PopularityPrior, TransitionPrior
from trl_rec.decoding.priors.files import PRIOR, read_prior_file
from trl_rec.decoding.priors.mixture import MixturePrior
from trl_rec.decoding.priors.own import ArrayPrior
from trl_rec.ranges import NOT_NEGATIVE


if TYPE_CHECKING:
    from trl_rec.data.dataset import RecDataset

FittedPrior: TypeAlias = PopularityPrior | TransitionPrior | MixturePrior
SavedPrior: TypeAlias = FittedPrior | ArrayPrior
PriorKind: TypeAlias = Literal["none", "popularity", "transition", "mixture"]
FITTED_KINDS = tuple(kind for kind in get_args(PriorKind) if kind != "none")
AUTO = "auto"  # as a strength: the strength is chosen on the validation split
SAVED: tuple[type[SavedPrior], ...] = (PopularityPrior, TransitionPrior, MixturePrior, ArrayPrior)


def fit_prior(kind: str, dataset: RecDataset, *, exclude_history: bool = True) -> FittedPrior:
    """Fits a prior to the training split of a dataset. A mixture combines several tables of counts from this split
    with a table of similar titles, and fits the weights of all these tables to the validation split.

    Args:
        kind (`str`): `"popularity"`, `"transition"` or `"mixture"`.
        dataset (`RecDataset`): The dataset.
        exclude_history (`bool`, *optional*, defaults to `True`): Whether items of the history will be excluded from
            the recommendations. It affects only `"mixture"`.
    """
    num_items = len(dataset.catalog)
    if kind == "popularity":
        return PopularityPrior.fit(dataset.train, num_items)
    if kind == "transition":
        return TransitionPrior.fit(dataset.train, num_items)
    if kind == "mixture":
        return MixturePrior.fit(
            dataset.train,
            dataset.validation,
            num_items,
            titles=dataset.catalog.titles,
            exclude_history=exclude_history,
        )
    raise ValueError(f"there is no prior {kind!r} that can be fitted; choose {_listed(FITTED_KINDS)}")


def check_prior(kind: str | None, strength: str, *, others: tuple[str, ...] = ()) -> None:
    """Raises `ValueError` unless `kind` and `strength` are valid together.

    Args:
        kind (`str`, *optional*): A value of `PriorKind`, or one of `others`. None if the user has not chosen a prior.
        strength (`str`): `"auto"` or a number.
        others (`tuple`, *optional*): Further kinds that are allowed.
    """
    if kind is not None and kind not in (*get_args(PriorKind), *others):
        raise ValueError(f"there is no prior {kind!r}; choose {_listed((*get_args(PriorKind), *others))}")
    if given_strength(strength) is not None and kind == "none":
        raise ValueError(f"prior_strength={strength} has no effect without a prior; leave it out, or choose a prior")


def given_strength(strength: str) -> float | None:
    """Returns the strength as a number of at least 0, or None for `"auto"`. Raises `ValueError` for other values."""
    if strength == AUTO:
        return None
    try:
        number = float(strength)
    except (ValueError, TypeError):
        raise ValueError(f"prior_strength must be 'auto' or a number, not {strength!r:.80}") from None
    NOT_NEGATIVE.check("prior_strength", number)
    return number


def load_prior(path: str | Path, *, num_items: int | None = None) -> SavedPrior:
    """Loads a prior from a file that the method `save` of a prior has written.

    Args:
        path (`str` or `Path`): The file, or a run folder that contains the file `prior.safetensors`.
        num_items (`int`, *optional*): Number of items that the prior must have weights for. By default, the number is
            not checked.
    """
    # 1. Load the prior with the class of its kind.
    path = Path(path)
    if path.is_dir():
        path = path / PRIOR
    kind = read_prior_file(path).kind
    by_kind = {one.kind: one for one in SAVED}
    if kind not in by_kind:
        raise ValueError(
            f"{path} contains a prior of the kind {kind!r}, which this version of trl-rec cannot load; update trl-rec"
        )
    prior = by_kind[kind].load(path)

    # 2. Check that it has one weight per item of the catalogue.
    num_weights = len(prior.values) if isinstance(prior, ArrayPrior) else len(prior.popularity)
    if num_items is not None and num_weights != num_items:
        raise ValueError(
            f"the prior in {path} has weights for {num_weights} items, but the catalogue has {num_items}; use a "
            "prior that was fitted to a dataset with this catalogue"
        )
    return prior


def _listed(kinds: Sequence[str]) -> str:
    """Returns the quoted names of kinds of priors, joined for a message."""
    names = [repr(kind) for kind in kinds]
    return f"{', '.join(names[:-1])} or {names[-1]}"
