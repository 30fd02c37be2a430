"""Which law a curve is fitted with, and which families of laws are compared on it."""

from collections.abc import Sequence

import numpy as np

from t5scaling.analysis.fitting.compare import Comparison, compare
from t5scaling.analysis.laws import LAWS, of_sources
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.laws.several_sources import ONE_SIZE
from t5scaling.analysis.metrics import LOWER_IS_BETTER, METRICS
from t5scaling.analysis.results.curves import Curve
from t5scaling.errors import UserError


def law_of_metric(metric: str) -> Law:
    """The paper's choice: Eq. 3 for cross-entropy (and other losses), Eq. 1 for scores."""
    return LAWS["power" if metric in LOWER_IS_BETTER else "log"]


def law_for(curve: Curve) -> Law:
    """The paper's law for values that go this way."""
    return LAWS["power" if direction_of(curve) < 0 else "log"]


def direction_of(curve: Curve) -> int:
    """-1 for values that fall with x, else 1."""
    if is_known(curve.metric):
        return law_of_metric(curve.metric).direction
    log_x = np.log([p.x for p in curve.points])
    y = np.array([p.value for p in curve.points])
    return -1 if (log_x - log_x.mean()) @ y < 0 else 1


def families(curve: Curve) -> list[Law]:
    """The laws of such curves: of as many sizes, and going the same way."""
    if curve.sources:
        return [of_sources(kind, curve.sources) for kind in kinds_of_sources(curve)]
    if curve.x2_name:
        return [LAWS[name] for name in ("zhang", "zhang-additive", "barnett", "kaplan")]
    direction = direction_of(curve)
    return [
        law for law in LAWS.values()
        if law.direction == direction and law.sizes == ("D",) and not law.of_loss
    ]  # fmt: skip


def kinds_of_sources(curve: Curve) -> list[str]:
    """The kinds of laws of several sources that a curve has columns and points for."""
    x, _ = curve.arrays
    if len(x) > len(curve.sources):
        return ["sources-repeated"]
    places = np.unique(x, axis=1).shape[1]
    one_size = x.sum(0).max() <= ONE_SIZE * x.sum(0).min()
    kinds = ["ye"] if one_size else ["sources", "sources-pair", "shukor"]
    return [k for k in kinds if of_sources(k, curve.sources).num_parameters < places] or kinds[:1]


def comparisons(
    curves: Sequence[Curve], *, protocol: str, delta: float | None = None
) -> dict[str, Comparison]:
    """One for the rising and one for the falling curves of each metric, where there are enough
    sizes to compare two families. Keys say which."""
    groups: dict[tuple, list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.metric, direction_of(curve)), []).append(curve)
    found = {}
    for (metric, direction), members in groups.items():
        points = [curve.arrays for curve in members]
        most = max(len({p.x for p in curve.points}) for curve in members)
        laws = families(members[0])
        if not (members[0].x2_name or members[0].sources):
            laws = [law for law in laws if law.num_parameters + 2 <= most]
        if len(laws) < 2 or not all((values > 0).all() for _, values in points):
            continue
        both = sum(name == metric for name, _ in groups) > 1
        label = f"{metric} ({'rising' if direction > 0 else 'falling'})" if both else metric
        try:
            found[label] = compare(
                points, laws, protocol=protocol, delta=delta, with_intervals=True
            )
        except UserError:
            if len(groups) == 1:
                raise
    return found


def is_known(metric: str) -> bool:
    """Whether the metric itself says which way is better."""
    return metric in METRICS
