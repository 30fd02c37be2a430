"""`run.py advise`: what the measurements say about paying for pretraining data.

For each curve: is pretraining worth it, do these data suffice for a law, what score at D_p = X; for
each task and pool: which data set, and where one overtakes another; what pretraining is worth in
finetuning data; whether scores and cross-entropy agree; and the next run to pay for.
How each is decided: `valuation`, `diagnosis`, `next_experiment`.
"""

import itertools
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5scaling import storage
from t5scaling.analysis import next_experiment, valuation
from t5scaling.analysis.curve_fit import CurveFit, comparison_record, fit_one
from t5scaling.analysis.curves import Curve
from t5scaling.analysis.diagnosis import Relation, relations
from t5scaling.analysis.fit import Fit
from t5scaling.analysis.fit_table import law_for
from t5scaling.analysis.harvest import LOG, RunRecord, read_runs
from t5scaling.analysis.load import EVERYTHING, Columns, load_curves
from t5scaling.analysis.next_experiment import Cost, Run
from t5scaling.analysis.tables import (
    INTERVAL,
    console,
    interval,
    metric_name,
    number,
    print_note,
    size,
    size_name,
)
from t5scaling.analysis.valuation import (
    NO,
    Crossing,
    Decision,
    Exchange,
    Forecast,
    Outlook,
    Transfer,
)
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


def advise(
    path: str | os.PathLike,
    columns: Columns = EVERYTHING,
    *,
    at: float | None = None,
    cost_per_unit: float | None = None,
    cost_per_run: float | None = None,
    budget: float | None = None,
    as_json: bool = False,
    screen: Console | None = None,
) -> Advice:
    """Prints the advice on the curves of `path` (see `load`) and returns it.

    Args:
      at: the size asked for; None: TARGET times the largest measured.
      cost_per_unit, cost_per_run: device-hours of pretraining per unit of x, and of one finetuning;
        None: from the timings of a study's runs; without timings a run costs 1, and pretraining
        as much again at the largest measured size.
      budget: device-hours for the next runs; None: what one run at the target costs.

    Raises:
      UserError: see `load`; a target, cost or budget that is not positive.
    """
    for name, value in (("--cost-per-unit", cost_per_unit), ("--cost-per-run", cost_per_run),
                        ("--budget", budget)):  # fmt: skip
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} = {value:g}: expected a positive number")
    curves = load_curves(path, columns)
    if any(curve.x2_name for curve in curves):
        raise UserError("advise takes one column of sizes; name the pool's in --group")
    advice = advise_curves(
        path, curves, at=at, cost_per_unit=cost_per_unit, cost_per_run=cost_per_run, budget=budget
    )
    if advice is None:
        raise UserError(f"{path}: no curve can be fitted; `run.py fit` says why")
    if as_json:
        print(json.dumps(record(advice), indent=1, ensure_ascii=False))
    else:
        show(advice, screen or console())
    return advice


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


def show(advice: Advice, screen: Console) -> None:
    """The advice on the terminal."""
    for _, comparison in advice.comparisons:
        screen.print(f"Laws, by what they had not seen: {comparison.sentence}.")
        for warning in comparison.warnings:
            print_note(warning, screen)
    screen.print()
    for one in advice.curves:
        screen.print(Text(label_of(one.curve_fit), style="bold"))
        for line in lines_of(one, advice):
            screen.print(f"  {line}", soft_wrap=True)
        screen.print()
    for choice in advice.choices:
        title = f"Which data at {size(advice.target)}: {choice.place}"
        table = Table(title=title, title_justify="left", box=None, pad_edge=False,
                      padding=(0, 2, 0, 0))  # fmt: skip
        for name in ("data", "expected", INTERVAL, "chance to be best"):
            table.add_column(name, justify="right" if name == "expected" else "left")
        for name, forecast in zip(choice.names, choice.forecasts, strict=True):
            table.add_row(
                name, number(forecast.value), interval(forecast.low, forecast.high),
                f"{choice.chances[name]:.0%}",
            )  # fmt: skip
        screen.print(table)
        for one, two, crossing in choice.crossings:
            screen.print(f"{two} overtakes {one} at {_where(crossing)}.", soft_wrap=True)
        screen.print()
    for place, transfer in advice.transfers:
        screen.print(sentence_of_transfer(place, transfer), soft_wrap=True)
    for place, exchange, runs in advice.exchanges:
        said = sentence_of_exchange(place, exchange)
        if runs:
            said += f" {sentence_of_next(runs, exchange.fit, advice)}"
        screen.print(said, soft_wrap=True)
    screen.print(f"Costs: {advice.cost_source}.", soft_wrap=True)
    for relation in advice.relations:
        head = " · ".join(str(v) for v in relation.score.curve.key.values())
        said = f"{relation.sentence} {relation.relation_sentence}"
        screen.print(f"{head}: {said}" if head else said, soft_wrap=True)


def label_of(this: CurveFit) -> str:
    return " · ".join([metric_name(this.curve.metric), *map(str, this.curve.key.values())])


def lines_of(one: CurveAdvice, advice: Advice) -> list[str]:
    """What is said of one curve, decisions first."""
    said = [
        f"Is pretraining worth it? {one.worth_it.answer}: {one.worth_it.reason}.",
        f"Do the data suffice for a law? {one.suffices.answer}: {one.suffices.reason}.",
    ]
    x = size_name(one.curve_fit.curve)
    if one.forecast:
        f = one.forecast
        names = ", ".join(law.title for law in f.families)
        said.append(
            f"At {x} = {size(f.x)}: {number(f.value)}, {INTERVAL} {interval(f.low, f.high)}, "
            f"{f.decades:.2f} decades beyond the largest size ({names})."
        )
    elif not one.outlook.fits:
        said.append(f"No forecast: {one.outlook.note}.")
    else:
        said.append("No forecast: no law should be read into this curve.")
    if one.break_even:
        b = one.break_even
        said.append(
            f"Pretraining breaks even with none at {x} = {_where(b)}." if b.x
            else "Where pretraining breaks even with none cannot be told: no crossing in reach."
        )  # fmt: skip
    if one.next_runs and one.forecast:
        said.append(sentence_of_next(one.next_runs, one.outlook.best, advice))
    return said


def sentence_of_next(runs: Sequence[Run], fit: Fit, advice: Advice) -> str:
    """The next runs, and what they buy."""
    counts: dict[tuple, int] = {}
    for run in runs:
        counts[run.x, run.x2 or 0.0] = counts.get((run.x, run.x2 or 0.0), 0) + 1
    measured = set(zip(*np.atleast_2d(fit.x).tolist(), strict=True))
    parts = []
    for (x, x2), count in sorted(counts.items(), reverse=True):
        place = size(x) + (f" with a pool of {size(x2)}" if x2 else "")
        again = " (further seeds)" if ((x, x2) if x2 else (x,)) in measured else ""
        parts.append(f"{count} at {place}{again}")
    hours = math.fsum(run.device_hours for run in runs)
    before, after = runs[0].before, runs[-1].after
    unit = "units of cost" if advice.cost_source.startswith("assumed") else "device-hours"
    return (
        f"Next: {', '.join(parts)}; {number(hours)} {unit} narrow the law's own interval at "
        f"{size(advice.target)} from ±{before:.1%} to ±{after:.1%}."
    )


def sentence_of_transfer(place: str, transfer: Transfer) -> str:
    return (
        f"{place}: in the pool of D_f = {size(transfer.pool)}, pretraining to D_p = "
        f"{size(transfer.pretrain)} is worth {times(transfer)} the finetuning data."
    )


def times(transfer: Transfer) -> str:
    """ "3.1 (2.9 to 3.4) times"; sizes beyond the largest pool are not read off."""
    beyond = f"more than {transfer.reach:.3g}"
    if math.isinf(transfer.factor):
        return f"{beyond} times"
    high = beyond if math.isinf(transfer.high) else f"{transfer.high:.3g}"
    return f"{transfer.factor:.3g} ({transfer.low:.3g} to {high}) times"


def sentence_of_exchange(place: str, exchange: Exchange) -> str:
    """Or why none is told."""
    if not exchange.told:
        return (
            f"{place}: no rate of exchange is told, as the {exchange.fit.law.title} misses "
            f"the measurements by {number(exchange.miss)} (RMS), where the noise of a point "
            + (f"is {number(exchange.noise)}." if exchange.noise else "is not known.")
        )
    doubling = (
        f"needs {number(exchange.doubling)} times the finetuning data"
        if math.isfinite(exchange.doubling) else "no amount of finetuning data brings"
    )  # fmt: skip
    words = "; what doubling D_p brings " + doubling
    return (
        f"{place}: at D_p = {size(exchange.pretrain)} and D_f = {size(exchange.finetune)} one more "
        f"pretraining token replaces {number(exchange.rate)} finetuning tokens ("
        f"{interval(exchange.low, exchange.high)}){words} ({exchange.fit.law.title})."
    )


def _where(crossing: Crossing) -> str:
    return (
        f"{number(crossing.x)} ({interval(crossing.low, crossing.high)}; in {crossing.share:.0%} "
        "of the replicates)"
    )


def record(advice: Advice) -> dict[str, Any]:
    """The advice as JSON; numbers that are not finite are null."""
    return _plain(
        {
            "target": advice.target,
            "cost": {**asdict(advice.cost), "source": advice.cost_source},
            "comparisons": [comparison_record(found) for _, found in advice.comparisons],
            "curves": [
                {
                    **one.curve_fit.curve.key,
                    "metric": one.curve_fit.curve.metric,
                    "verdict": one.curve_fit.verdict.word,
                    "worth_it": asdict(one.worth_it),
                    "suffices": asdict(one.suffices),
                    "forecast": _forecast(one.forecast),
                    "break_even": asdict(one.break_even) if one.break_even else None,
                    "next_runs": [asdict(run) for run in one.next_runs],
                }
                for one in advice.curves
            ],
            "choices": [
                {
                    "place": choice.place,
                    "data": [
                        {"name": n, "chance": choice.chances[n], "forecast": _forecast(f)}
                        for n, f in zip(choice.names, choice.forecasts, strict=True)
                    ],
                    "crossings": [
                        {"overtaken": one, "overtaking": two, **asdict(crossing)}
                        for one, two, crossing in choice.crossings
                    ],
                }
                for choice in advice.choices
            ],
            "transfers": [{"place": place, **asdict(one)} for place, one in advice.transfers],
            "exchanges": [
                {
                    "place": place, "law": e.fit.law.name, "told": e.told, "miss": e.miss,
                    "noise": e.noise, "pretrain": e.pretrain, "finetune": e.finetune,
                    "rate": e.rate, "low": e.low, "high": e.high,
                    "doubling": e.doubling, "next_runs": [asdict(run) for run in runs],
                }
                for place, e, runs in advice.exchanges
            ],
            "relations": [
                {
                    **r.score.curve.key, "score": r.score.curve.metric,
                    "loss": r.loss.curve.metric, "agree": r.agree, "tau": r.tau,
                    "exponential": r.exponential, "sentence": r.sentence,
                }
                for r in advice.relations
            ],
        }
    )  # fmt: skip


def _forecast(forecast: Forecast | None) -> dict[str, Any] | None:
    if forecast is None:
        return None
    names = [law.name for law in forecast.families]
    return {**{k: v for k, v in vars(forecast).items() if k != "families"}, "families": names}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
