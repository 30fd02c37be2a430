"""What the measurements say about paying for pretraining data."""

import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from t5scaling import storage
from t5scaling.analysis.conclusions import next_experiment, valuation
from t5scaling.analysis.conclusions.choice_of_law import law_for
from t5scaling.analysis.conclusions.curve_fit import CurveFit, fit_one
from t5scaling.analysis.conclusions.diagnosis import Relation, relations
from t5scaling.analysis.conclusions.next_experiment import Cost, Run
from t5scaling.analysis.conclusions.valuation import (
    NO,
    Crossing,
    Decision,
    Exchange,
    Forecast,
    Outlook,
    Transfer,
)
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.harvest import LOG, RunRecord, read_runs
from t5scaling.analysis.wording import size
from t5scaling.errors import UserError

TARGET = 4.0  # times the largest measured size, where no target is given
FARTHEST = 1e6  # times that size


@dataclass(frozen=True)
class CurveAdvice:
    """What is said of one curve. forecast: None if no law fits or the data do not suffice."""

    curve_fit: CurveFit
    outlook: Outlook
    worth_it: Decision
    suffices: Decision
    forecast: Forecast | None
    break_even: Crossing | None
    next_runs: tuple[Run, ...]


@dataclass(frozen=True)
class Choice:
    """Data sets of one task, pool and metric at the target size, the best first. chances: of being
    the best. crossings: (overtaken, overtaking, where)."""

    place: str
    names: tuple[str, ...]
    forecasts: tuple[Forecast, ...]
    chances: dict[str, float]
    crossings: tuple[tuple[str, str, Crossing], ...]


@dataclass(frozen=True)
class Advice:
    """Everything that is said. target: the size asked for. transfers, exchanges: with their place,
    and the latter with the next runs for the joint law."""

    target: float
    cost: Cost
    cost_source: str
    curves: tuple[CurveAdvice, ...]
    choices: tuple[Choice, ...]
    transfers: tuple[tuple[str, Transfer], ...]
    exchanges: tuple[tuple[str, Exchange, tuple[Run, ...]], ...]
    relations: tuple[Relation, ...]
    comparisons: list = field(default_factory=list)


def advise_curves(
    path: str | os.PathLike,
    curves: Sequence[Curve],
    *,
    at: float | None = None,
    cost_per_unit: float | None = None,
    cost_per_run: float | None = None,
    budget: float | None = None,
    fitted: Sequence[CurveFit] = (),
    other_pools: Sequence[CurveFit] = (),
) -> Advice | None:
    """The same without printing; None if no curve can be fitted.

    fitted: fits of `curves` that are at hand. other_pools: curves of pools that only the joint laws
    of D_p and D_f look at. Raises UserError for an `at` that no law reaches.
    """
    largest = max(p.x for curve in curves for p in curve.points)
    if at is not None and not 0 < at <= FARTHEST * largest:
        raise UserError(
            f"--at = {at:g}: expected a positive size, at most {FARTHEST:,.0f} times the largest "
            f"measured ({size(largest)}): no law reaches further"
        )
    target = at or TARGET * largest
    cost, source = _cost(storage.path(path), largest, cost_per_unit, cost_per_run)
    budget = cost.of(target) if budget is None else budget
    at_hand, fits = {id(this.curve): this for this in fitted}, []
    for curve in curves:
        law, known = law_for(curve), at_hand.get(id(curve))
        same = known is not None and known.law is law
        fits.append(known if same else fit_one(curve, law, lower_is_better=law.direction < 0))
    found, comparisons = valuation.outlooks(fits)
    if not any(outlook.fits for outlook in found.values()):
        return None
    for i, this in enumerate(fits):  # the law that the comparison chose may do better
        best = found[i].best
        if best and best.law is not this.law and this.verdict.word == "unpredicted":
            other = fit_one(this.curve, best.law, lower_is_better=best.law.direction < 0)
            fits[i] = other if other.verdict.word == "predictable" else this
    advised = []
    for i, this in enumerate(fits):
        outlook, suffices = found[i], valuation.suffices(this)
        usable = suffices.answer != NO and outlook.fits
        runs: Sequence[Run] = ()
        if outlook.fits:
            places = next_experiment.candidates(outlook.best, target)
            runs = next_experiment.plan(
                outlook.best, np.array([target]), places, cost, budget=budget
            )
        advised.append(
            CurveAdvice(
                this, outlook, valuation.worth_it(this), suffices,
                outlook.at(target) if usable else None,
                outlook.break_even() if usable else None, tuple(runs),
            )
        )  # fmt: skip
    pools = list(_pools([*fits, *other_pools]))
    return Advice(
        target, cost, source, tuple(advised), tuple(_choices(advised, target)),
        tuple((place, one) for place, *group in pools for one in valuation.transfers(*group)),
        tuple(_exchanges(pools, target, cost, budget)), tuple(relations(fits)), comparisons,
    )  # fmt: skip


def _cost(path: storage.AnyPath, largest: float, per_unit, per_run) -> tuple[Cost, str]:
    found = None
    if (path / LOG).exists():
        found = _measured_cost(read_runs(path))
    if per_unit or per_run:
        known = found or Cost(0.0, 0.0)
        token = per_unit or known.per_token
        # Where nothing is known of finetuning, it costs a hundredth of the longest pretraining.
        return Cost(token, per_run or known.per_run or token * largest / 100, largest), "given"
    if found:
        return Cost(found.per_token, found.per_run, largest), "the timings of the study's runs"
    return Cost(1 / largest, 1.0, largest), (
        "assumed (a finetuning costs 1 unit, as does pretraining to the largest measured size); "
        "give yours with --cost-per-unit and --cost-per-run"
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


def _choices(advised: Sequence[CurveAdvice], target: float):
    """Curves that differ in the pretraining data alone (or in the one group column)."""
    groups: dict[tuple, list[CurveAdvice]] = {}
    for one in advised:
        key = one.curve_fit.curve.key
        rest = {name: value for name, value in key.items() if name != data_column(key)}
        groups.setdefault((one.curve_fit.curve.metric, *rest.items()), []).append(one)
    for (metric, *rest), members in groups.items():
        named = {
            str(m.curve_fit.curve.key[data_column(m.curve_fit.curve.key)]): m
            for m in members if data_column(m.curve_fit.curve.key)
        }  # fmt: skip
        usable = {name: m.outlook for name, m in named.items() if m.forecast}
        if len(usable) < 2:
            continue
        direction = members[0].curve_fit.law.direction
        sign = valuation.sign_of(members[0].curve_fit.curve, direction)
        chances = valuation.chance_of_best(usable, target, direction)
        order = sorted(usable, key=lambda n: -sign * named[n].forecast.value)
        crossings = []
        for one, two in itertools.permutations(order, 2):
            crossing = valuation.overtakes(usable[one], usable[two])
            if crossing and crossing.x:
                crossings.append((one, two, crossing))
        place = ", ".join([metric_name(metric), *(f"{name} {value}" for name, value in rest)])
        yield Choice(
            place, tuple(order), tuple(named[n].forecast for n in order), chances,
            tuple(crossings),
        )  # fmt: skip


def data_column(key) -> str | None:
    """The column that names data sets."""
    if "pretrain_data" in key:
        return "pretrain_data"
    return next(iter(key)) if len(key) == 1 else None


def _pools(fits: Sequence[CurveFit]):
    """Losses of one place in 2 or more pools: (place, their fits, D_f of each)."""
    groups: dict[tuple, list[CurveFit]] = {}
    for this in fits:
        key, facts = this.curve.key, this.curve.facts
        if "finetune_examples" in key and facts.get("finetune_tokens") and this.law.direction < 0:
            rest = tuple(v for name, v in key.items() if name != "finetune_examples")
            groups.setdefault((this.curve.metric, *rest), []).append(this)
    for (metric, *place), members in groups.items():
        if len(members) > 1:
            label = " · ".join([metric_name(metric), *map(str, place)])
            yield label, members, [float(m.curve.facts["finetune_tokens"]) for m in members]


def _exchanges(pools, target: float, cost: Cost, budget: float):
    """(place, joint law, the next runs for it if it meets its points)."""
    for place, members, sizes in pools:
        with suppress(UserError):
            found = valuation.exchange(members, sizes)
            runs: Sequence[Run] = ()
            if found.told:
                places = next_experiment.candidates(found.fit, target)
                at = np.array([[target], [max(sizes)]])
                runs = next_experiment.plan(found.fit, at, places, cost, budget=budget)
            yield place, found, tuple(runs)
