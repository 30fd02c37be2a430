"""What the measurements say about paying for pretraining data.

For each curve: is pretraining worth it, do these data suffice for a law, what is expected at the
target; for each task and pool: which data set, and where one overtakes another; what pretraining is
worth in finetuning data; whether scores and cross-entropy agree; and the next run to pay for. How
each is decided: `decisions`, `forecast`, `exchange`, `prices`, `diagnosis`, `next_experiment`.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from t5scaling.analysis.conclusions import next_experiment
from t5scaling.analysis.conclusions.curve_fit import CurveFit, fit_one
from t5scaling.analysis.conclusions.decisions import Answer, Decision, sign_of, suffices, worth_it
from t5scaling.analysis.conclusions.diagnosis import Relation, relations
from t5scaling.analysis.conclusions.exchange import Exchange, Transfer, exchange, transfers
from t5scaling.analysis.conclusions.forecast import (
    Crossing,
    Forecast,
    Outlook,
    chance_of_best,
    outlooks,
    overtakes,
)
from t5scaling.analysis.conclusions.named_law import laws_of
from t5scaling.analysis.conclusions.next_experiment import Cost, NextRun
from t5scaling.analysis.conclusions.prices import (
    Gaps,
    Prices,
    Worth,
    gaps,
    prices_of_study,
    prices_of_table,
    worths,
)
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.fitting.compare import Comparison
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.wording import size
from t5scaling.errors import UserError

TARGET = 4.0  # times the largest measured size, where no target is given
FARTHEST = 1e6  # times that size


@dataclass(frozen=True)
class CurveAdvice:
    """What follows from one curve. forecast: None if no law fits or the data do not suffice."""

    curve_fit: CurveFit
    outlook: Outlook
    worth_it: Decision
    suffices: Decision
    forecast: Forecast | None
    break_even: Crossing | None
    next_runs: tuple[NextRun, ...]

    @property
    def place(self) -> Place:
        return self.curve_fit.curve.place

    @property
    def metric(self) -> str:
        return self.curve_fit.curve.metric


@dataclass(frozen=True)
class Overtaking:
    """Where one of two data sets becomes better than the other and stays so."""

    overtaken: str
    overtaking: str
    at: Crossing


@dataclass(frozen=True)
class Choice:
    """Data sets of one place (without its data) and metric at the target size, the best first.

    chances: of being the best, by name."""

    place: Place
    metric: str
    names: tuple[str, ...]
    forecasts: tuple[Forecast, ...]
    chances: dict[str, float]
    crossings: tuple[Overtaking, ...]


@dataclass(frozen=True)
class Contest:
    """Families of laws compared over the curves of one metric and direction."""

    curve_fits: tuple[CurveFit, ...]
    comparison: Comparison

    @property
    def metric(self) -> str:
        return self.curve_fits[0].curve.metric


@dataclass(frozen=True)
class Advice:
    """Everything that is advised. target: the size asked for."""

    target: float
    cost: Cost
    cost_source: str
    curves: tuple[CurveAdvice, ...]
    choices: tuple[Choice, ...]
    transfers: tuple[Transfer, ...]
    exchanges: tuple[Exchange, ...]
    relations: tuple[Relation, ...]
    contests: tuple[Contest, ...]
    prices: tuple[Prices, ...] = ()
    gaps: tuple[Gaps, ...] = ()
    worths: tuple[Worth, ...] = ()

    def choice(self, place: Place, metric: str) -> Choice | None:
        """Among the data of a place; None if there is none to choose."""
        wanted = place.beside_data, metric
        return next((c for c in self.choices if (c.place, c.metric) == wanted), None)


def advise_curves(
    curves: Sequence[Curve],
    *,
    runs: Sequence[RunRecord] = (),
    at: float | None = None,
    cost_per_unit: float | None = None,
    cost_per_run: float | None = None,
    budget: float | None = None,
    fitted: Sequence[CurveFit] = (),
    other_pools: Sequence[CurveFit] = (),
) -> Advice | None:
    """The advice on curves of one size; None if none of them can be fitted.

    Args:
      runs: of the study, whose timings say what a run costs.
      at: the size asked for; None: TARGET times the largest measured.
      cost_per_unit, cost_per_run: device-hours of pretraining per unit of x, and of one finetuning;
        None: from the timings of the runs, or else in units of one finetuning.
      budget: device-hours for the next runs; None: what one run at the target costs.
      fitted: fits of `curves` that are at hand.
      other_pools: curves of pools that only the joint laws of D_p and D_f look at.

    Raises:
      UserError: an `at` that no law reaches.
    """
    largest = max(p.x for curve in curves for p in curve.points)
    target = _target(at, largest)
    cost, source = _cost(runs, largest, cost_per_unit, cost_per_run)
    budget = cost.of(target) if budget is None else budget
    at_hand, fits = (
        {(curve_fit.curve.place, curve_fit.curve.metric): curve_fit for curve_fit in fitted},
        [],
    )
    for curve, law, _ in laws_of(None, curves):
        known = at_hand.get((curve.place, curve.metric))
        same = known is not None and known.law is law
        fits.append(known if same else fit_one(curve, law, lower_is_better=law.direction < 0))
    found, contests = outlooks(fits)
    if not any(outlook.fits for outlook in found.values()):
        return None
    for i, curve_fit in enumerate(fits):  # the law that the comparison chose may do better
        best = found[i].best
        shape = curve_fit.verdict.shape
        if best and best.law is not curve_fit.law and shape is Shape.UNPREDICTED:
            other = fit_one(curve_fit.curve, best.law, lower_is_better=best.law.direction < 0)
            fits[i] = other if other.verdict.shape is Shape.PREDICTABLE else curve_fit
    advised = [
        _of_curve(curve_fit, found[i], target, cost, budget) for i, curve_fit in enumerate(fits)
    ]
    groups = list(_pools([*fits, *other_pools]))
    return Advice(
        target, cost, source, tuple(advised), tuple(_choices(advised, target)),
        tuple(one for group in groups for one in transfers(*group)),
        tuple(_exchanges(groups, target, cost, budget)), tuple(relations(fits)),
        tuple(Contest(tuple(members), comparison) for members, comparison in contests),
        tuple(prices_of_study(fits, runs, target)), tuple(_gaps(groups)),
        tuple(worths(fits, runs)),
    )  # fmt: skip


def advise_sources(curves: Sequence[Curve], at: float | None = None) -> tuple[Advice, list[str]]:
    """The advice on curves of several sources, and for each that has none the reason.

    Raises UserError if no curve can be fitted, or for an `at` that no law reaches.
    """
    largest = max(p.x for curve in curves for p in curve.points)
    target = _target(at, largest)
    found, notes = [], []
    for curve in curves:
        try:
            found.append(prices_of_table(curve, target))
        except UserError as error:
            notes.append(f"{curve.label}: {error}")
    if not found:
        raise UserError(notes[0])
    cost, source = _cost((), largest, None, None)
    return Advice(target, cost, source, (), (), (), (), (), (), tuple(found)), notes


def _of_curve(
    curve_fit: CurveFit, outlook: Outlook, target: float, cost: Cost, budget: float
) -> CurveAdvice:
    enough = suffices(curve_fit)
    usable = enough.answer is not Answer.NO and outlook.fits
    runs: Sequence[NextRun] = ()
    best = outlook.best
    if best is not None:
        places = next_experiment.candidates(best, target)
        runs = next_experiment.next_runs(best, np.array([target]), places, cost, budget=budget)
    return CurveAdvice(
        curve_fit, outlook, worth_it(curve_fit), enough, outlook.at(target) if usable else None,
        outlook.break_even() if usable else None, tuple(runs),
    )  # fmt: skip


def _cost(
    runs: Sequence[RunRecord], largest: float, per_unit: float | None, per_run: float | None
) -> tuple[Cost, str]:
    """What runs cost, and where that is from."""
    found = _measured_cost(runs)
    if per_unit or per_run:
        known = found or Cost(0.0, 0.0)
        token = per_unit or known.per_token
        # Where nothing is known of finetuning, it costs a hundredth of the longest pretraining.
        return Cost(token, per_run or known.per_run or token * largest / 100, largest), "given"
    if found:
        return Cost(found.per_token, found.per_run, largest), "the timings of the study's runs"
    return Cost(1 / largest, 1.0, largest), (
        "assumed (a finetuning costs 1 unit, as does pretraining to the largest measured size); "
        "give yours with --cost_per_unit and --cost_per_run"
    )


def _measured_cost(runs: Sequence[RunRecord]) -> Cost | None:
    """Means over the finished runs."""
    tokens = pretraining = 0.0
    finetuning = []
    for run in (run for run in runs if run.done):
        hours = run.device_seconds / 3600
        if run["kind"] == "pretrain":
            pretraining += hours
            tokens += max((r["pretrain_tokens"] for r in runs if r["kind"] == "finetune"
                           and r["pretrain_data"] == run["pretrain_data"]), default=0)  # fmt: skip
        else:
            finetuning.append(hours)
    if not tokens or not pretraining or not any(finetuning):
        return None
    return Cost(pretraining / tokens, float(np.mean(finetuning)))


def _choices(advised: Sequence[CurveAdvice], target: float) -> Iterator[Choice]:
    """Curves that differ in the pretraining data alone (or in the one group column)."""
    groups: dict[tuple[Place, str], list[CurveAdvice]] = {}
    for one in advised:
        groups.setdefault((one.place.beside_data, one.metric), []).append(one)
    for (place, metric), members in groups.items():
        named = {m.place.data_name: m for m in members if m.place.data_name is not None}
        forecasts = {name: m.forecast for name, m in named.items() if m.forecast}
        if len(forecasts) < 2:
            continue
        usable = {name: named[name].outlook for name in forecasts}
        direction = members[0].curve_fit.law.direction
        sign = sign_of(members[0].curve_fit.curve, direction)
        chances = chance_of_best(usable, target, direction)
        order = sorted(forecasts, key=lambda n: -sign * forecasts[n].value)
        crossings = []
        for one, two in itertools.permutations(order, 2):
            crossing = overtakes(usable[one], usable[two])
            if crossing and crossing.x:
                crossings.append(Overtaking(one, two, crossing))
        yield Choice(
            place, metric, tuple(order), tuple(forecasts[n] for n in order), chances,
            tuple(crossings),
        )  # fmt: skip


def _pools(fits: Sequence[CurveFit]) -> Iterator[tuple[list[CurveFit], list[float]]]:
    """Losses of one place in 2 or more pools, and D_f of each in tokens."""
    groups: dict[tuple[Place, str], list[CurveFit]] = {}
    for curve_fit in fits:
        curve = curve_fit.curve
        if curve.place.pool and curve.facts.get("finetune_tokens") and curve_fit.law.direction < 0:
            groups.setdefault((curve.place.beside_pool, curve.metric), []).append(curve_fit)
    for members in groups.values():
        if len(members) > 1:
            yield members, [float(m.curve.facts["finetune_tokens"]) for m in members]


def _target(at: float | None, largest: float) -> float:
    """The size asked for; raises UserError where no law reaches it."""
    if at is not None and not 0 < at <= FARTHEST * largest:
        raise UserError(
            f"--at = {at:g}: expected a positive size, at most {FARTHEST:,.0f} times the largest "
            f"measured ({size(largest)}): no law reaches further"
        )
    return at or TARGET * largest


def _gaps(groups) -> Iterator[Gaps]:
    for members, sizes in groups:
        with suppress(UserError):
            yield gaps(members, sizes)


def _exchanges(groups, target: float, cost: Cost, budget: float) -> Iterator[Exchange]:
    """The joint laws, with the next runs for those that meet their points."""
    for members, sizes in groups:
        with suppress(UserError):
            found = exchange(members, sizes)
            if found.fits_points:
                places = next_experiment.candidates(found.fit, target)
                at = np.array([[target], [max(sizes)]])
                runs = next_experiment.next_runs(found.fit, at, places, cost, budget=budget)
                found = replace(found, next_runs=tuple(runs))
            yield found
