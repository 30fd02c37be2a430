"""Which law a curve is fitted with, and which families of laws are compared on it.

A study of the paper's kind is fitted with the paper's laws: it is about them. For a table the law
is chosen by what predicts sizes that it has not seen, in rollouts over all curves of one metric and
direction (JUDGES of them at most): 4 points of one curve cannot choose a family, but those of many
curves can. Of the families that a test does not separate from the best one, and that err at most
AS_GOOD times as much, one that saturates is preferred where the metric's scale has an end that the
others would leave, and else the best. With fewer than FEWEST predictions in all, a metric whose
scale has an end gets the sigmoid in log D, and any other the paper's law.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from t5scaling.analysis.fitting.compare import Comparison, compare, p_value
from t5scaling.analysis.fitting.significance import SIGNIFICANCE
from t5scaling.analysis.laws import LAWS, of_sources
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.laws.several_sources import ONE_SIZE
from t5scaling.analysis.metrics import LOWER_IS_BETTER, METRICS, highest_of
from t5scaling.analysis.results.curves import Curve
from t5scaling.errors import UserError

CANDIDATES = {1: ("log", "ceiling", "hill"), -1: ("power", "m1", "m3", "onset")}
SATURATING = ("hill", "ceiling")  # the first where nothing else decides
JUDGES = 20
FEWEST = 3
AS_GOOD = 1.5


@dataclass(frozen=True)
class Chosen:
    """A law for curves of one metric and direction, and why, as the rest of "chosen because"."""

    law: Law
    reason: str


@dataclass(frozen=True)
class Compared:
    """Families of laws compared over some curves. label: what sets these apart, in words."""

    label: str
    curves: tuple[Curve, ...]
    comparison: Comparison


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


def families(curve: Curve, spare: int | None = None) -> list[Law]:
    """The laws of such curves: of as many sizes, and going the same way; with `spare`, those alone
    whose coefficients are fewer than the curve's sizes by that many."""
    if curve.sources:
        return [of_sources(kind, curve.sources) for kind in kinds_of_sources(curve)]
    if curve.x2_name:
        return [LAWS[name] for name in ("zhang", "zhang-additive", "barnett", "kaplan")]
    direction = direction_of(curve)
    sizes = len({p.x for p in curve.points})
    return [
        law for law in LAWS.values()
        if law.direction == direction and law.sizes == ("D",) and not law.of_loss
        and (spare is None or law.num_parameters + spare <= sizes)
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


def choices(curves: Sequence[Curve]) -> dict[tuple[str, int], Chosen]:
    """The law for each metric and direction of a table's curves of one size."""
    groups: dict[tuple[str, int], list[Curve]] = {}
    for curve in curves:
        if not (curve.x2_name or curve.sources):
            groups.setdefault((curve.metric, direction_of(curve)), []).append(curve)
    return {key: _choose(members, key[1]) for key, members in groups.items()}


def _choose(members: Sequence[Curve], direction: int) -> Chosen:
    first = members[0]
    goes = f"{first.metric} rises with {first.x_name}"
    if direction < 0:
        goes = f"{first.metric} falls as {first.x_name} grows"
    bounded = direction > 0 and np.isfinite(
        highest_of(first.metric, [p.value for curve in members for p in curve.points])
    )
    judges = [curve for curve in members if all(p.value > 0 for p in curve.points)]
    judges = judges[:: max(1, -(-len(judges) // JUDGES))]
    laws = [LAWS[name] for name in CANDIDATES[direction]]
    found = None
    # Of 4 sizes a law may stray from those it is fitted to; 3 must do where that leaves too little.
    for least in (4, 3) if judges else ():
        with suppress(UserError):
            found = compare([curve.measured for curve in judges], laws, first=least,
                            with_aicc=False)  # fmt: skip
            if len(found.families[0].predictions) >= FEWEST:
                break
    if found is None or len(found.families[0].predictions) < FEWEST:
        if bounded:
            return Chosen(LAWS[SATURATING[0]], f"{goes}, on a scale with an end")
        return Chosen(law_for(first), goes)
    count = len({p.curve for p in found.families[0].predictions})
    where = f"the {count} curves" if count > 1 else "the curve"
    best = found.families[0].law
    law = saturating_first([best], found, members)[0]
    does = "it predicts unseen sizes of {} best" if law is best else (
        "no law predicts unseen sizes of {} better")  # fmt: skip
    return Chosen(law, f"{goes}, and {does.format(where)}")


def saturating_first(laws: Sequence[Law], found: Comparison, curves: Sequence[Curve]) -> list[Law]:
    """The laws, the first of which is the best; before it one that saturates and is as good, where
    the metric's scale has an end."""
    end = min(highest_of(c.metric, [p.value for p in c.points]) for c in curves)
    equals = [law for law in as_good(found, AS_GOOD) if law.name in SATURATING]
    if np.isinf(end) or laws[0].direction < 0 or not equals:
        return list(laws)
    return [equals[0], *(law for law in laws if law is not equals[0])]


def as_good(found: Comparison, times: float) -> list[Law]:
    """The best family, and those that the data cannot tell from it and that err at most `times` as
    much; the best first."""
    best, *others = found.families
    kept = [best.law]
    for other in others:
        p = p_value([best, other])
        if (p is None or p >= SIGNIFICANCE) and other.error <= times * best.error:
            kept.append(other.law)
    return kept


def comparisons(
    curves: Sequence[Curve], *, protocol: str, delta: float | None = None
) -> tuple[list[Compared], list[str]]:
    """Each curve by the families that it can carry: one comparison for all curves of a metric and
    direction that carry the same ones.

    Returns:
      The comparisons, and a sentence for each group of curves that has none.
    """
    groups: dict[tuple, tuple[list[Curve], list[Law]]] = {}
    for curve in curves:
        spare = 2 if protocol != "paper" else 1
        several = bool(curve.x2_name or curve.sources)
        laws = families(curve, None if several else spare)
        if protocol == "paper" and not several:
            laws = [law for law in laws if law.num_parameters <= 4]
        key = (curve.metric, direction_of(curve), tuple(law.name for law in laws), curve.sources)
        groups.setdefault(key, ([], laws))[0].append(curve)
    found: list[Compared] = []
    left_out: list[str] = []
    for (metric, direction, _, _), (members, laws) in groups.items():
        way = "rising" if direction > 0 else "falling"
        label = metric
        if sum(key[0] == metric and key[1] != direction for key in groups):
            label += f" ({way})"
        if sum(key[:2] == (metric, direction) for key in groups) > 1:
            fewest = min(len({p.x for p in curve.points}) for curve in members)
            most = max(len({p.x for p in curve.points}) for curve in members)
            label += f", curves of {fewest}" + (f" to {most}" if most > fewest else "") + " sizes"
        many = f"{len(members)} curves" if len(members) > 1 else "1 curve"
        usable = [c for c in members if all(p.value > 0 for p in c.points)]
        if len(usable) < len(members):
            left_out.append(f"{label}: {len(members) - len(usable)} of {many} hold values that are "
                            "not positive, which no law is compared on")  # fmt: skip
        if len(laws) < 2 or not usable:
            if usable:
                left_out.append(
                    f"{label}: {many} with too few sizes to compare two families of laws"
                )
            continue
        try:
            points = [curve.measured for curve in usable]
            compared = compare(points, laws, protocol=protocol, delta=delta)
            found.append(Compared(label, tuple(usable), compared))
        except UserError as error:
            left_out.append(f"{label}: {error}")
    return found, left_out


def is_known(metric: str) -> bool:
    """Whether the metric itself says which way is better."""
    return metric in METRICS
