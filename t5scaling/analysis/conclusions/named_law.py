"""Which law each curve gets: the one that a user names, of the library or a formula of one's own,
or the one that is chosen for it."""

from collections.abc import Sequence

import numpy as np

from t5scaling.analysis.conclusions.choice_of_law import (
    Compared,
    choices,
    direction_of,
    is_known,
    kinds_of_sources,
    law_for,
    law_of_metric,
)
from t5scaling.analysis.laws import LAWS, of_sources
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.laws.formula import Formula, is_formula, parsed_bounds
from t5scaling.analysis.laws.several_sources import KINDS
from t5scaling.analysis.results.curves import Curve
from t5scaling.errors import UserError, nearest


def check_name(name: str | None, bounds: str | None = None, sources: Sequence[str] = ()) -> None:
    """Raises UserError for a law that is neither known nor a formula, or bounds of none, or one
    that does not go with the columns of several sources; before any table is read."""
    if sources and name not in (None, "all", *KINDS):
        raise UserError(f"law {name!r} is not one of --sources: expected {', '.join(KINDS)} or all")
    if name in KINDS and not sources:
        raise UserError(f"law {name!r} takes columns of tokens of each language, by --sources")
    if name in (None, "all", *LAWS, *KINDS):
        if bounds:
            raise UserError(
                f"bounds {bounds!r}: they are for the coefficients of a formula, such as "
                "--law='E + A/D**alpha'; the laws of the library have their own"
            )
    elif not is_formula(name or ""):
        raise UserError(f"law {name!r} is unknown{nearest(name or '', [*LAWS, *KINDS, 'all'])}")
    parsed_bounds(bounds)


def named_law(name: str, curve: Curve, bounds: str | None = None) -> Law:
    """The law of that name, or that formula in the curve's columns of x.

    Whether a formula rises or falls is taken from the curve: the sign of the first slope of the
    least-squares plane in logs; or from its metric, if that is known.

    Raises:
      UserError: see `check_name` and `formula.Formula`.
    """
    check_name(name, bounds, curve.sources)
    if name in KINDS:
        return of_sources(name, curve.sources)
    if name in LAWS:
        return LAWS[name]
    sizes = (curve.x_name, *([curve.x2_name] if curve.x2_name else []))
    return Formula(name, sizes, parsed_bounds(bounds), _direction(curve))


def laws_of(
    name: str | None,
    curves: Sequence[Curve],
    compared: Sequence[Compared] = (),
    bounds: str | None = None,
) -> list[tuple[Curve, Law, str]]:
    """Each curve with its law, and why it is that: the one that is named; the best of those that
    `compared` compares it by; or the paper's in a study, in a table what `choice_of_law` chooses.

    Raises:
      UserError: see `named_law`.
    """
    if name is not None and name != "all":
        return [(curve, named_law(name, curve, bounds), "") for curve in curves]
    best = {id(curve): one.comparison.families[0].law for one in compared for curve in one.curves}
    rest = [curve for curve in curves if id(curve) not in best and not curve.place.data]
    chosen = choices(rest)
    found = []
    for curve in curves:
        if id(curve) in best:
            found.append((curve, best[id(curve)], "the best of those compared below"))
        elif curve.sources:
            law = of_sources(kinds_of_sources(curve)[0], curve.sources)
            found.append((curve, law, "chosen for several sources"))
        elif curve.x2_name:
            found.append((curve, LAWS["zhang"], f"chosen for {curve.x_name} and {curve.x2_name}"))
        elif curve.place.data:
            found.append((curve, law_for(curve), ""))
        else:
            one = chosen[curve.metric, direction_of(curve)]
            found.append((curve, one.law, f"chosen because {one.reason}"))
    return found


def lower_is_better(curve: Curve, law: Law) -> bool:
    """By the curve's metric, if that is known; else smaller values are better if the law falls."""
    if is_known(curve.metric):
        return law_of_metric(curve.metric).direction < 0
    return law.direction < 0


def _direction(curve: Curve) -> int:
    x, y = curve.arrays
    if not curve.x2_name or not (np.all(x > 0) and np.all(y > 0)):
        return direction_of(curve)
    columns = np.column_stack([np.ones(len(y)), *np.log(x)])
    return -1 if np.linalg.lstsq(columns, np.log(y), rcond=None)[0][1] < 0 else 1
