"""What a study found, computed once: terminal, figures and page show it and decide nothing.

`findings.json`, beside fits.json, holds it as data; `advise --json` prints the same without what
only a study has. Version SCHEMA of it:

| field | content |
|---|---|
| schema, software | the version of this table; the program and its version |
| level | of all intervals: low and high are their ends |
| study, model | names: of the study, and of its main model |
| target | the size that forecasts are for, in the unit of x |
| cost | per_token, per_run, pretrained (`next_experiment.Cost`), source: where they come from |
| curves | a list: place, metric, shape (a word of `Shape`, null: too few sizes), shape_reason, \
law, worth_it and suffices (each answer, reason, value, low, high), forecast (x, value, low, high, \
inner_low, inner_high, decades, families), break_even (x, low, high, share), next_runs (x, x2, \
repeats, before, after, device_hours) |
| comparisons | of families of laws, a list: metric, protocol, winner, p_value, families, ... \
as `fit --json` prints them |
| choices | among pretraining data, a list: place (without the data), metric, data (name, chance \
to be the best, forecast), crossings (overtaken, overtaking, x, low, high, share) |
| transfers | what pretraining is worth in finetuning data, a list: place (without the pool), pool \
(tokens), pretrain, factor, low, high, reach |
| exchanges | rates between both data, a list: place (without the pool), metric, law, fits_points, \
miss, noise, pretrain, finetune, rate, low, high, doubling, next_runs |
| prices | of a token of each language, a list: place (without the data), metric, target (its \
tokens are the unit), law, miss, noise, fits_points (null: not checked), prices (source, value, \
low, high), pair (the same, both sides together), mixture (total, shares, expected, measured, \
gain, low, high, answer) |
| worths | of data in tokens of the target language, read off between measured sizes, a list: \
place, metric, target, tokens, value, low, high (null beyond reach, 0 below least), least, reach |
| gaps | of transfer, a list: place (without the pool), metric, law, miss, noise, fits_points, \
pools (pool, pretrain, and with low and high each: gap, open, turn) |
| steps | of scores by the step and the rate that are counted, a list: place, metric, ways \
(the first as everywhere else; learning_rate, null: chosen by validation; at_last_step, \
not_pretrained, smallest, largest (x, value), slope of a tenfold D_p, low, high), runs, \
better_later, ratio |
| relations | of scores to losses, a list: place, score, loss, agree, tau, exponential, sentence |
| claims | of the paper, a list: letter, title, paper, answer, needed, named, findings (pair, \
answer, measured, needed, numbers of `claim_rules.Measurement`) |
| claims_not_judged | titles of those that the study has no data for |
| headline | gains, choices and reach of `headline.Headline` |
| limits | sentences on what limits all of it |

A place is an object of its columns: model, pretrain_data, task, finetune_examples; or a table's own
group columns. An answer is "yes", "no" or "cannot tell"; of a claim "yes" says that the study
reproduces it. Numbers have 10 significant digits; null where there is none, or it is not finite.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import t5scaling
from t5scaling.analysis.conclusions.advice import Advice, CurveAdvice, advise_curves
from t5scaling.analysis.conclusions.claims import Claim, judge_claims
from t5scaling.analysis.conclusions.curve_fit import CurveFit, comparison_record
from t5scaling.analysis.conclusions.evidence import Evidence
from t5scaling.analysis.conclusions.headline import Headline, headline
from t5scaling.analysis.conclusions.limits import limits_of
from t5scaling.analysis.conclusions.selection import Selection
from t5scaling.analysis.conclusions.step_choice import StepChoice, choices_of_step
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.results.rates import uneven
from t5scaling.analysis.results.roles import roles_of

SCHEMA = 1
FILE = "findings.json"


@dataclass(frozen=True)
class Findings:
    """study: its name. curve_fits: every curve with its law and shape. selection: what represents
    them. shown: the curves that figures show. advice: None if no curve can be fitted. absent:
    claims that the study has no data for. steps: how much the choice of the step matters. limits:
    sentences."""

    study: str
    curve_fits: tuple[CurveFit, ...]
    selection: Selection
    shown: tuple[CurveFit, ...]
    advice: Advice | None
    claims: tuple[Claim, ...]
    absent: tuple[str, ...]
    steps: tuple[StepChoice, ...]
    headline: Headline
    limits: tuple[str, ...]


def conclude(
    runs: Sequence[RunRecord],
    rows: Sequence[Mapping[str, Any]],
    curve_fits: Sequence[CurveFit],
) -> Findings:
    """All conclusions on a study, from its runs, its results and its fitted curves."""
    selection = Selection(curve_fits, roles_of(runs))
    shown = [curve_fit for curve_fit in curve_fits if selection.shows(curve_fit.curve)]
    advised = [curve_fit for curve_fit in shown if selection.in_main_pool(curve_fit.curve)] or shown
    advice = advise_curves(
        [curve_fit.curve for curve_fit in advised], runs=runs, fitted=advised,
        other_pools=[curve_fit for curve_fit in shown if curve_fit not in advised],
    )  # fmt: skip
    claims, absent = judge_claims(Evidence(curve_fits, runs, rows))
    scores = {score for task in selection.tasks if (score := selection.score(task))}
    steps = choices_of_step(curve_fits, rows, scores)
    return Findings(
        study=str(curve_fits[0].curve.facts["study"]),
        curve_fits=tuple(curve_fits),
        selection=selection,
        shown=tuple(shown),
        advice=advice,
        claims=tuple(claims),
        absent=tuple(absent),
        steps=tuple(steps),
        headline=headline(selection, advice),
        limits=tuple(limits_of(runs, curve_fits, uneven(rows), steps)),
    )


def document(findings: Findings) -> dict[str, Any]:
    """The content of findings.json."""
    record = {"study": findings.study, "model": findings.selection.model}
    if findings.advice:
        record |= _of_advice(findings.advice)
    record |= {
        "claims": findings.claims,
        "claims_not_judged": findings.absent,
        "steps": findings.steps,
        "headline": findings.headline,
        "limits": findings.limits,
    }
    return versioned(record)


def advice_record(advice: Advice) -> dict[str, Any]:
    """The advice on a table in the schema of findings.json."""
    return versioned(_of_advice(advice))


def versioned(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its schema's version, as JSON takes it."""
    software = f"t5scaling {t5scaling.__version__}"
    return _plain({"schema": SCHEMA, "software": software, "level": LEVEL, **record})


def _of_advice(advice: Advice) -> dict[str, Any]:
    return {
        "target": advice.target,
        "cost": {**vars(advice.cost), "source": advice.cost_source},
        "curves": [_of_curve(one) for one in advice.curves],
        "comparisons": [
            {
                "metric": contest.metric,
                "curves": [curve_fit.curve.place for curve_fit in contest.curve_fits],
                **comparison_record(contest.comparison),
            }
            for contest in advice.contests
        ],
        "choices": [
            {
                "place": choice.place,
                "metric": choice.metric,
                "data": [
                    {"name": name, "chance": choice.chances[name], "forecast": forecast}
                    for name, forecast in zip(choice.names, choice.forecasts, strict=True)
                ],
                "crossings": [
                    {"overtaken": one.overtaken, "overtaking": one.overtaking, **vars(one.at)}
                    for one in choice.crossings
                ],
            }
            for choice in advice.choices
        ],
        "transfers": advice.transfers,
        "exchanges": [
            {
                "place": one.place, "metric": one.metric, "law": one.fit.law,
                "fits_points": one.fits_points, "miss": one.miss, "noise": one.noise,
                "pretrain": one.pretrain, "finetune": one.finetune, "rate": one.rate,
                "low": one.low, "high": one.high, "doubling": one.doubling,
                "next_runs": one.next_runs,
            }
            for one in advice.exchanges
        ],
        "prices": advice.prices,
        "gaps": advice.gaps,
        "worths": advice.worths,
        "relations": [
            {
                "place": one.score.curve.place, "score": one.score.curve.metric,
                "loss": one.loss.curve.metric, "agree": one.agree, "tau": one.tau,
                "exponential": one.exponential, "sentence": one.sentence,
            }
            for one in advice.relations
        ],
    }  # fmt: skip


def _of_curve(one: CurveAdvice) -> dict[str, Any]:
    verdict = one.curve_fit.verdict
    return {
        "place": one.place, "metric": one.metric, "shape": verdict.shape,
        "shape_reason": verdict.reason, "law": one.curve_fit.law, "worth_it": one.worth_it,
        "suffices": one.suffices, "forecast": one.forecast,
        "no_forecast": None if one.forecast else one.outlook.note,
        "break_even": one.break_even, "next_runs": one.next_runs,
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """As JSON takes it: places by their columns, laws by their names, other dataclasses by their
    fields, floats to 10 significant digits (the last ones being the machine's)."""
    if isinstance(value, Place):
        return dict(value.key)
    if isinstance(value, Law):
        return value.name
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") if math.isfinite(value) else None
    return value
