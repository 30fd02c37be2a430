"""What a study ran, what it cost, and how to read it, on its page."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.shapes import BREAKTHROUGH_SHARE, NOISY_SHARE, STEP_TOLERANCE
from t5scaling.analysis.fitting.protocol import FITTED_SIZES
from t5scaling.analysis.fitting.significance import LEVEL
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.html.render import Table, render
from t5scaling.analysis.results.curves import T5X_UNIT
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.pools import pools
from t5scaling.analysis.wording import hours, size, values


def what_was_run(runs: Sequence[RunRecord], rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Models, data, runs, what they cost, and the finetuning pools."""
    done = [run for run in runs if run.done]
    failed = [run for run in runs if not run.done and run.failure is not None]
    unfinished = len(runs) - len(done) - len(failed)
    finetuned = [run for run in done if run["kind"] == "finetune"]
    facts = []
    for model in sorted({(run["model"], run["parameters"]) for run in finetuned}):
        facts.append(f"Model {model[0]}: {model[1]:,} parameters.")
    data: dict[str, set[int]] = {}
    shares: dict[str, Mapping[str, float]] = {}
    by_t5x = any(row["metric_signature"].startswith("T5X ") for row in rows)
    unit = T5X_UNIT if by_t5x else "text tokens"
    for run in finetuned:
        if run["pretrain_tokens"]:
            data.setdefault(run["pretrain_data"], set()).add(run["pretrain_tokens"])
            shares[run["pretrain_data"]] = run.record.get("pretrain_languages") or {}
    for name, sizes in sorted(data.items()):
        mix = ", ".join(f"{share:.0%} {language}" for language, share in shares[name].items())
        facts.append(
            f"Pretraining on {name}{f' ({mix})' if mix else ''}, finetuned from D_p = "
            + ", ".join(size(tokens) for tokens in sorted(sizes))
            + f" {unit}"
            + (
                ", and without pretraining."
                if any(not run["pretrain_tokens"] for run in finetuned)
                else "."
            )
        )
    seeds = {run["seed"] for run in finetuned}
    facts.append(f"Finetuning with seed {values(seeds)}; steps and learning rates by pool below.")
    facts.append(
        f"{len(done)} runs finished ({len(finetuned)} of them finetuning)"
        + (f", {len(failed)} failed" if failed else "")
        + (f", {unfinished} not finished" if unfinished else "")
        + f"; {len(rows):,} measurements."
    )
    head = [
        "task", "pool", "examples", "real tokens", "positions with padding", "steps", "a run draws",
        "learning rates",
    ]  # fmt: skip
    body = [
        [p.task, p.label, f"{p.examples:,}", f"{p.tokens:,}", f"{p.positions:,}", str(p.steps),
         p.seen, values(p.rates)]
        for p in pools(runs)
    ]  # fmt: skip
    return render(
        "study.html",
        facts=facts,
        failed=[(run["id"], run.failure) for run in failed],
        costs=_costs(runs),
        pools=Table(head, body, numbers=(2, 3, 4, 5)),
    )


def _costs(runs: Sequence[RunRecord]) -> Table | None:
    """Device time by kind of run, whether finished or not: all of it was spent."""
    if not any(run.device_seconds for run in runs):
        return None
    rows = []
    for kind in sorted({run["kind"] for run in runs}, reverse=True):
        own = [run for run in runs if run["kind"] == kind]
        rows.append(_cost(kind, own))
    if len(rows) > 1:
        rows.append(_cost("all", runs))
    head = ["runs", "number", "finished", "steps", "device time", "wall time", "longest"]
    return Table(head, rows, numbers=(1, 2, 3, 4, 5, 6))


def _cost(kind: str, runs: Sequence[RunRecord]) -> list[str]:
    return [
        kind, str(len(runs)), str(sum(run.done for run in runs)),
        f"{sum(run.steps for run in runs):,}", hours(sum(run.device_seconds for run in runs)),
        hours(sum(run.wall_seconds for run in runs)), hours(max(run.wall_seconds for run in runs)),
    ]  # fmt: skip


def method(curve_fits: Sequence[CurveFit]) -> Markup:
    """How to read the page, and the signatures of its metrics."""
    rules = [
        "Laws are fitted to all pretraining sizes, and checked by predicting each size from those "
        f"before it. Isik et al. (arXiv 2402.04177) fit the {FITTED_SIZES} smallest and hold out "
        "the rest; claim (a) shows that error too. Scores get the log-law (Eq. 1), cross-entropy "
        "the power law with floor (Eq. 3).",
        f"Intervals hold {LEVEL:.0%} and come from a bootstrap with the noise that the fitted "
        "points show; those of the check from the linearised law. They assume that the law is "
        "right; the check tests that.",
        "The log-law has no ceiling and overshoots where scores saturate. The further a "
        "prediction lies from the fitted sizes, the less it is worth: the distance is given in "
        "decades (powers of ten).",
        "The log-law's A and alpha can hardly be distinguished by data. s, D0 and beta can; D0 is "
        "the size below which it predicts a score of 0.",
        "Verdict thresholds are ours, the paper gives none: a change counts if noise alone makes "
        f"one as large in fewer than 5 of 100 cases; noise above {NOISY_SHARE:.0%} of the change "
        f"is noisy; one step with more than {BREAKTHROUGH_SHARE:.0%} of it is a breakthrough; a "
        f"law must meet half of the sizes that it predicts within {STEP_TOLERANCE:.0%} of the "
        "change from the size before, within twice the noise, or within an interval as narrow as "
        "these.",
        "A fitted curve is not a cause: other data, learning rates, steps or seeds can move it.",
    ]
    signatures = sorted(
        {
            (metric_name(curve_fit.curve.metric), curve_fit.curve.facts["metric_signature"])
            for curve_fit in curve_fits
            if curve_fit.curve.facts["metric_signature"]
        }
    )
    return render("method.html", rules=rules, signatures=signatures)
