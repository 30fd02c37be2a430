"""The advice in sentences, and on the terminal."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5scaling.analysis.conclusions.advice import Advice, Choice, CurveAdvice
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.decisions import Answer
from t5scaling.analysis.conclusions.exchange import Exchange, Transfer
from t5scaling.analysis.conclusions.forecast import REACH, Crossing
from t5scaling.analysis.conclusions.next_experiment import NextRun
from t5scaling.analysis.conclusions.prices import Gaps, Prices, Worth
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.metrics import LOSS, metric_name
from t5scaling.analysis.presentation.sentences import INTERVAL
from t5scaling.analysis.presentation.terminal import print_note
from t5scaling.analysis.results.curves import size_name
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.wording import interval, listed, number, size, with_interval

LINES = 30  # curves or places of many that are shown


def show(advice: Advice, screen: Console) -> None:
    """The advice on the terminal."""
    _show_laws(advice, screen)
    screen.print()
    for one in advice.curves:
        screen.print(Text(label_of(one.curve_fit), style="bold"))
        for line in lines_of(one, advice):
            screen.print(f"  {line}", soft_wrap=True)
        screen.print()
    for choice in advice.choices:
        _show_choice(choice, advice, screen)
    _show_rest(advice, screen)


def show_many(advice: Advice, screen: Console) -> None:
    """The advice on more curves than one can read about: a line for each of the first LINES."""
    _show_laws(advice, screen)
    for question, answers in (
        ("worth it", [one.worth_it.answer for one in advice.curves]),
        ("data suffice", [one.suffices.answer for one in advice.curves]),
    ):
        counts = Counter(map(str, answers)).most_common()
        listed = ", ".join(f"{answer} of {count:,}" for answer, count in counts)
        screen.print(f"{len(advice.curves):,} curves, {question}: {listed}")
    table = _table("curve", "worth it", "data suffice", f"at {size(advice.target)}", INTERVAL)
    for one in advice.curves[:LINES]:
        forecast = one.forecast
        table.add_row(
            label_of(one.curve_fit), str(one.worth_it.answer), str(one.suffices.answer),
            number(forecast.value if forecast else None),
            interval(forecast.low, forecast.high) if forecast else "no forecast",
        )  # fmt: skip
    screen.print(table)
    if len(advice.curves) > LINES:
        screen.print(f"... and {len(advice.curves) - LINES:,} more")
    for choice in advice.choices[:3]:
        _show_choice(choice, advice, screen, most=3)
    if len(advice.choices) > 3:
        screen.print(f"... and {len(advice.choices) - 3:,} more choices among data")
    screen.print("--all: everything on every curve; --json: all numbers")


def _show_laws(advice: Advice, screen: Console) -> None:
    for contest in advice.contests:
        screen.print(f"Laws, by held-out error: {contest.comparison.sentence}.")
        for warning in contest.comparison.warnings:
            print_note(warning, screen)


def _show_choice(choice: Choice, advice: Advice, screen: Console, most: int | None = None) -> None:
    """The best `most` of the data, or all."""
    title = f"Which data at {size(advice.target)}: {_place_of_choice(choice)}"
    table = _table("data", "expected", INTERVAL, "chance to be best", title=title)
    shown = list(zip(choice.names, choice.forecasts, strict=True))[:most]
    for name, forecast in shown:
        table.add_row(
            name, number(forecast.value), interval(forecast.low, forecast.high),
            f"{choice.chances[name]:.0%}",
        )  # fmt: skip
    screen.print(table)
    if len(shown) < len(choice.names):
        screen.print(f"... and {len(choice.names) - len(shown):,} more")
    else:
        for one in choice.crossings:
            screen.print(
                f"{one.overtaking} overtakes {one.overtaken} at {_where(one.at)}.", soft_wrap=True
            )
    screen.print()


def _table(*columns: str, title: str | None = None) -> Table:
    """Numbers to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False,
                  padding=(0, 2, 0, 0))  # fmt: skip
    for name in columns:
        numeric = name == "expected" or name.startswith("at ")
        table.add_column(name, justify="right" if numeric else "left")
    return table


def _show_rest(advice: Advice, screen: Console) -> None:
    for transfer in advice.transfers:
        screen.print(sentence_of_transfer(_named(LOSS, transfer.place), transfer), soft_wrap=True)
    for exchange in advice.exchanges:
        sentence = sentence_of_exchange(_named(exchange.metric, exchange.place), exchange)
        if exchange.next_runs:
            sentence += f" {sentence_of_next(exchange.next_runs, exchange.fit, advice)}"
        screen.print(sentence, soft_wrap=True)
    for prices in advice.prices:
        for sentence in sentences_of_prices(_named(prices.metric, prices.place), prices):
            screen.print(sentence, soft_wrap=True)
    for worth in advice.worths:
        screen.print(sentence_of_worth(_named(worth.metric, worth.place), worth), soft_wrap=True)
    for gaps in advice.gaps:
        for sentence in sentences_of_gaps(_named(gaps.metric, gaps.place), gaps):
            screen.print(sentence, soft_wrap=True)
    if advice.curves:
        screen.print(f"Costs: {advice.cost_source}.", soft_wrap=True)
    for relation in advice.relations:
        head = relation.score.curve.place.label
        sentence = f"{relation.sentence} {relation.relation_sentence}"
        screen.print(f"{head}: {sentence}" if head else sentence, soft_wrap=True)


def label_of(curve_fit: CurveFit) -> str:
    """The metric and the place of a curve in one line."""
    return _named(curve_fit.curve.metric, curve_fit.curve.place)


def _named(metric: str, place: Place) -> str:
    return " · ".join(filter(None, [metric_name(metric), place.label]))


def _place_of_choice(choice: Choice) -> str:
    columns = (f"{name} {value}" for name, value in choice.place.key.items())
    return ", ".join([metric_name(choice.metric), *columns])


def lines_of(one: CurveAdvice, advice: Advice) -> list[str]:
    """The sentences on one curve, decisions first."""
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
        if f.end is not None:
            said.append(
                f"{metric_name(one.metric)} ends at {f.end:g}, where these numbers are cut: what "
                "the laws say lies beyond it."
            )
    elif not one.outlook.fits:
        said.append(f"No forecast: {one.outlook.note}.")
    else:
        said.append("No forecast: no law should be read into this curve.")
    if one.break_even:
        b = one.break_even
        said.append(
            f"Pretraining breaks even with none at {x} = {_where(b)}." if b.x
            else "Where pretraining breaks even with none is not known: the law does not cross the "
            f"value without pretraining within {REACH:g} times the largest size."
        )  # fmt: skip
    if one.next_runs and one.forecast and one.outlook.best:
        said.append(sentence_of_next(one.next_runs, one.outlook.best, advice))
    return said


def sentence_of_next(runs: Sequence[NextRun], fit: Fit, advice: Advice) -> str:
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
    if math.isinf(transfer.high):
        return f"{transfer.factor:.3g} ({transfer.low:.3g} to {beyond}) times"
    return f"{with_interval(transfer.factor, transfer.low, transfer.high)} times"


def sentence_of_exchange(place: str, exchange: Exchange) -> str:
    """The rate of exchange, or why none is reported."""
    if not exchange.fits_points:
        return (
            f"{place}: no exchange rate is reported, because the {exchange.fit.law.title} misses "
            f"the measurements by {number(exchange.miss)} (RMS), while the noise of a point "
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


def sentences_of_prices(place: str, found: Prices) -> list[str]:
    """The price of a token of each language and the best mixture, or why none is reported."""
    if found.mixture is None:
        return [f"{place}: no price of a token is reported, because {_misses(found)}."]
    parts = [
        f"a token of {p.source} is worth {number(p.value)} ({interval(p.low, p.high)}) tokens of "
        f"{found.target}"
        for p in found.prices
    ]
    if found.pair:
        parts.append(
            f"both sides of the pair together add {number(found.pair.value)} "
            f"({interval(found.pair.low, found.pair.high)}) times the product of their shares"
        )
    said = [f"{place}: {'; '.join(parts)} ({found.law.title})."]
    if found.fits_points is None:
        said[0] += " Without repeated points it is not checked whether the law meets them."
    best = found.mixture
    tokens, measured = f"{size(best.total)} tokens", mixture_name(best.measured)
    gain = f"{number(best.gain)} ({interval(best.low, best.high)})"
    mixture = mixture_name(best.shares)
    if best.answer is Answer.YES:
        said.append(
            f"For {tokens}, {mixture} is expected to be better than {measured}, the best measured "
            f"mixture, by {gain}."
        )
    elif best.answer is Answer.NO:
        said.append(f"For {tokens}, no mixture is expected to be better than a measured one: "
                    f"{measured}.")  # fmt: skip
    else:
        said.append(
            f"For {tokens}, the data do not show whether {mixture} is better than {measured}, the "
            f"best measured mixture: the expected gain is {gain}."
        )
    return said


def sentence_of_worth(place: str, worth: Worth) -> str:
    """ "2M tokens are worth 0.3 (0.2 to 0.5) times as many of de"."""
    ends = [
        f"more than {number(worth.reach)}" if math.isinf(end)
        else f"less than {number(worth.least)}" if end == 0
        else number(end)
        for end in (worth.value, worth.low, worth.high)
    ]  # fmt: skip
    between = f" ({ends[1]} to {ends[2]})" if ends[1] != ends[2] else ""
    return (
        f"{place}: {size(worth.tokens)} tokens of these data are worth {ends[0]}{between} times as "
        f"many of {worth.target} alone."
    )


def mixture_name(shares: Mapping[str, float]) -> str:
    """ "60% de and 40% en"; languages without a share are left out."""
    return listed([f"{share:.0%} {name}" for name, share in shares.items() if share >= 0.005])


def sentences_of_gaps(place: str, found: Gaps) -> list[str]:
    """The transfer gap in each pool, or why none is reported."""
    if not found.fits_points:
        return [f"{place}: no transfer gap is reported, because {_misses(found)}."]
    return [
        f"{place}: in the pool of D_f = {size(g.pool)}, {number(g.gap)} "
        f"({interval(g.low, g.high)}) of the value is the transfer gap, which no amount of these "
        "pretraining data takes away; "
        f"more of them than D_p = {size(g.pretrain)} can still take away {number(g.open)} "
        f"({interval(g.open_low, g.open_high)}). From there a finetuning token is the better "
        f"purchase up to {number(g.turn)} ({interval(g.turn_low, g.turn_high)}) times the price of "
        f"a pretraining token ({found.law.title})."
        for g in found.pools
    ]


def _misses(found: Prices | Gaps) -> str:
    return (
        f"the {found.law.title} misses the measurements by {number(found.miss)} (RMS), while the "
        "noise of a point " + (f"is {number(found.noise)}" if found.noise else "is not known")
    )


def _where(crossing: Crossing) -> str:
    if crossing.low is None or crossing.high is None:
        return number(crossing.x)
    return (
        f"{number(crossing.x)} ({interval(crossing.low, crossing.high)}; in {crossing.share:.0%} "
        "of the replicates)"
    )
