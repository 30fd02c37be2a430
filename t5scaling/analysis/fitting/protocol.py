"""What is fitted and what is held out: three protocols, and how far out a point lies.

- "rollout" (the default): all points are fitted, and the law is checked beside it: the sizes that
  were there first predict the next one, for growing numbers of them.
- "paper": the 4 smallest sizes are fitted and all others held out (Isik et al., arXiv 2402.04177,
  section 4).
- "last": all sizes but the last are fitted (Alabdulmohsin et al., arXiv 2209.06640).

Sizes count from the smallest. Where x is a loss they count from the largest, since it is to smaller
losses that a law is extrapolated. A point of several sizes lies as far out as its farthest size:
holding out the largest of each leaves a smaller grid, and the first points of a rollout are those
that are small in all sizes. KEPT values of each size are always fitted, since fewer do not
determine how a value levels off along it: with 3 finetuning pools the largest pretraining sizes
alone are held out. Where no size has more than that, 2 are. Of several sources the
size is their total.
"""

import itertools
import math

import numpy as np

from t5scaling.analysis.laws.base import Law
from t5scaling.errors import UserError, nearest

PROTOCOLS = ("rollout", "paper", "last")
FITTED_SIZES = 4  # of the paper's protocol
KEPT = 3  # values of each of several sizes
FEWEST_OF = 10  # the first prediction is from a tenth of the sizes at least
FOLDS = 8  # predictions of a rollout at most: more of them say little that is new


def check_protocol(protocol: str) -> None:
    """Raises UserError for one that is unknown."""
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol {protocol!r}: unknown{nearest(protocol, PROTOCOLS)}")


def ranks(law: Law, x: np.ndarray) -> np.ndarray:
    """How far out each point lies along each of its sizes, from 0 on: (number of sizes, N)."""
    rows = law.main_size(x)[None] if law.sources else np.atleast_2d(x)
    return np.array([np.unique(-row if law.of_loss else row, return_inverse=True)[1]
                     for row in rows])  # fmt: skip


def held_out_by(law: Law, x: np.ndarray, protocol: str, hold_out: int | None) -> np.ndarray:
    """Which points are held out, (N,) bool: the `hold_out` largest of each size, or what the
    protocol says if that is None.

    Raises:
      UserError: an unknown protocol, or a number below 0.
    """
    check_protocol(protocol)
    if hold_out is not None and hold_out < 0:
        raise UserError(f"hold_out = {hold_out}: expected 0 or more")
    places = ranks(law, x)
    counts = places.max(axis=1) + 1
    if hold_out is None:
        if protocol == "rollout":
            return np.zeros(places.shape[1], bool)
        fewest = np.minimum(FITTED_SIZES, counts - 1) if protocol == "paper" else counts - 1
    else:
        fewest = np.maximum(counts - hold_out, 0)
    if len(places) > 1:
        fewest = np.maximum(fewest, _kept(counts))
    return np.any(places >= fewest[:, None], axis=0)


def folds(
    law: Law, x: np.ndarray, protocol: str = "rollout", first: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What a protocol has a law predict: (fitted, predicted) for each prediction, (N,) bool each.

    A rollout makes FOLDS predictions at most: with more sizes it takes several at a time, and the
    farthest of them is predicted. Empty for a curve that is too short.

    Args:
      first: least number of fitted sizes (of one size) or places (of several); None: as many as
        the law has coefficients, and 3 at least.
    """
    least = max(law.num_parameters, 3) if first is None else first
    places = ranks(law, x)
    if len(places) > 1:
        return _folds_of_places(places, protocol, max(least, law.num_parameters + 1))
    if law.sources:
        return _folds_of_totals(law, np.asarray(x), places[0], protocol)
    (place,) = places
    count = int(place.max()) + 1
    if protocol != "rollout":
        fitted = min(FITTED_SIZES, count - 1) if protocol == "paper" else count - 1
        return [(place < fitted, place >= fitted)] if fitted >= least else []
    return [(place < a, place == b - 1) for a, b in _steps(least, count)]


def _folds_of_places(
    places: np.ndarray, protocol: str, least: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of points with several sizes: each lies as far out as the farthest of them, as a share."""
    counts = places.max(axis=1, keepdims=True) + 1
    kept = _kept(counts)
    if protocol != "rollout":
        fewest = np.minimum(FITTED_SIZES, counts - 1) if protocol == "paper" else counts - 1
        fitted = np.all(places < np.maximum(fewest, kept), axis=0)
        found = [(fitted, ~fitted)]
    else:
        share = np.where(counts > kept, (places + 1) / counts, 0.0)
        _, level = np.unique(share.max(axis=0).round(12), return_inverse=True)
        steps = _steps(_enough(places, level, least), int(level.max()) + 1)
        found = [(level < a, level == b - 1) for a, b in steps]
    return [(f, p) for f, p in found if p.any() and _determined(places[:, f], least)]


def _folds_of_totals(
    law: Law, x: np.ndarray, place: np.ndarray, protocol: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of points with tokens of several sources: by their totals, where those fitted determine the
    law with a mixture to spare."""
    count = int(place.max()) + 1
    if protocol == "rollout":
        plan = [(place < a, place == b - 1) for a, b in _steps(1, count)]
    else:
        fitted = min(FITTED_SIZES, count - 1) if protocol == "paper" else count - 1
        plan = [(place < fitted, place >= fitted)] if fitted else []
    return [(f, p) for f, p in plan if _determines(law, np.unique(x[:, f], axis=1))]


def _determines(law: Law, mixtures: np.ndarray) -> bool:
    try:
        law.check_design(mixtures)
    except UserError:
        return False
    return mixtures.shape[1] > law.num_parameters


def _kept(counts: np.ndarray) -> np.ndarray:
    """How many values of each size are always fitted."""
    return np.minimum(counts, KEPT if (counts > KEPT).any() else 2)


def _enough(places: np.ndarray, level: np.ndarray, least: int) -> int:
    """The smallest number of levels that determine a law."""
    top = int(level.max()) + 1
    return next((k for k in range(1, top) if _determined(places[:, level < k], least)), top)


def _determined(places: np.ndarray, least: int) -> bool:
    """Whether points at so many places, at 2 or more of each size, can be fitted."""
    return (
        places.shape[1] >= least
        and np.unique(places, axis=1).shape[1] >= least
        and all(len(np.unique(row)) >= 2 for row in places)
    )


def _steps(first: int, count: int) -> list[tuple[int, int]]:
    """(a, b): from the first a sizes the b-th is predicted; up to FOLDS of them, to the last."""
    first = max(first, count // FEWEST_OF)  # less says nothing of a curve of many sizes
    if first >= count:
        return []
    number = min(FOLDS, count - first)
    ends = [first + math.ceil((count - first) * i / number) for i in range(number + 1)]
    return list(itertools.pairwise(ends))
