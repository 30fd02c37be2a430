"""The advice as JSON."""

import math
from dataclasses import asdict
from typing import Any

from t5scaling.analysis.conclusions.advice import Advice
from t5scaling.analysis.conclusions.curve_fit import comparison_record
from t5scaling.analysis.conclusions.valuation import Forecast


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
