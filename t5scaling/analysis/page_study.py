"""What a study ran, what it cost, and how to read it, on its page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from t5scaling.analysis import sentences
from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.curves import T5X_UNIT
from t5scaling.analysis.fit import FITTED_SIZES
from t5scaling.analysis.harvest import RunRecord
from t5scaling.analysis.intervals import LEVEL
from t5scaling.analysis.markup import bullets, hours, table, values
from t5scaling.analysis.tables import metric_name, size
from t5scaling.analysis.verdict import BREAKTHROUGH_SHARE, LAW_TOLERANCE, NOISY_SHARE


def what_was_run(runs: Sequence[RunRecord], rows: Sequence[Mapping[str, Any]]) -> str:
    done = [run for run in runs if run.done]
    failed = [run for run in runs if not run.done and run.failure is not None]
    unfinished = len(runs) - len(done) - len(failed)
    finetuned = [run for run in done if run["kind"] == "finetune"]
    items = []
    for model in sorted({(run["model"], run["parameters"]) for run in finetuned}):
        items.append(f"Model {model[0]}: {model[1]:,} parameters.")
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
        items.append(
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
    items.append(f"Finetuning with seed {values(seeds)}; steps and learning rates by pool below.")
    items.append(
        f"{len(done)} runs finished ({len(finetuned)} of them finetuning)"
        + (f", {len(failed)} failed" if failed else "")
        + (f", {unfinished} not finished" if unfinished else "")
        + f"; {len(rows):,} measurements."
    )
    html = bullets(items)
    html += "".join(
        f"<p>Failed: <code>{escape(run['id'])}</code>: {escape(run.failure)}</p>" for run in failed
    )
    html += _costs(runs)
    pools = sentences.pools(runs)
    html += (
        "<h3>Finetuning pools (D_f)</h3><p>D_f counts the examples that a run may draw from. It is "
        "a pool, not the amount of training: what a run sees is set by its steps.</p>"
    )
    head = [
        "task", "pool", "examples", "real tokens", "positions with padding", "steps", "a run draws",
        "learning rates",
    ]  # fmt: skip
    body = [
        [p.task, p.label, f"{p.examples:,}", f"{p.tokens:,}", f"{p.positions:,}", str(p.steps),
         p.seen, values(p.rates)]
        for p in pools
    ]  # fmt: skip
    return html + table(head, body, numbers=(2, 3, 4, 5))


def _costs(runs: Sequence[RunRecord]) -> str:
    """Device time by kind of run, whether finished or not: all of it was spent."""
    if not any(run.device_seconds for run in runs):
        return ""
    rows = []
    for kind in sorted({run["kind"] for run in runs}, reverse=True):
        own = [run for run in runs if run["kind"] == kind]
        rows.append(_cost(kind, own))
    if len(rows) > 1:
        rows.append(_cost("all", runs))
    head = ["runs", "number", "finished", "steps", "device time", "wall time", "longest"]
    return "<h3>What it cost</h3>" + table(head, rows, numbers=(1, 2, 3, 4, 5, 6))


def _cost(kind: str, runs: Sequence[RunRecord]) -> list[str]:
    return [
        kind, str(len(runs)), str(sum(run.done for run in runs)),
        f"{sum(run.steps for run in runs):,}", hours(sum(run.device_seconds for run in runs)),
        hours(sum(run.wall_seconds for run in runs)), hours(max(run.wall_seconds for run in runs)),
    ]  # fmt: skip


def method() -> str:
    items = [
        f"Laws are fitted to the {FITTED_SIZES} smallest pretraining sizes and checked on the "
        "rest, as in Isik et al. (arXiv 2402.04177); with few sizes, the largest is held out. "
        "Scores get the log-law (Eq. 1), cross-entropy the power law with floor (Eq. 3).",
        f"Intervals hold {LEVEL:.0%} and come from a bootstrap with the noise that the fitted "
        "points show. They assume that the law is right; held-out errors test that.",
        "The log-law has no ceiling and overshoots where scores saturate. The further a "
        "prediction lies from the fitted sizes, the less it is worth: the distance is given in "
        "decades (powers of ten).",
        "The log-law's A and alpha can hardly be told apart by data. s, D0 and beta can; D0 is "
        "the size below which it predicts a score of 0.",
        "Verdict thresholds are ours, the paper gives none: a change counts if noise alone makes "
        f"one as large in fewer than 5 of 100 cases; noise above {NOISY_SHARE:.0%} of the change "
        f"is noisy; one step with more than {BREAKTHROUGH_SHARE:.0%} of it is a breakthrough; a "
        f"law must meet held-out points within {LAW_TOLERANCE:.0%} of the total change, or within "
        "twice the noise.",
        "A fitted curve is not a cause: other data, learning rates, steps or seeds can move it.",
    ]
    return bullets(items)


def signatures(curve_fits: Sequence[CurveFit]) -> str:
    known = sorted(
        {
            (metric_name(t.curve.metric), t.curve.facts["metric_signature"])
            for t in curve_fits
            if t.curve.facts["metric_signature"]
        }
    )
    if not known:
        return ""
    lines = "".join(f"<li>{escape(m)}: <code>{escape(s)}</code></li>" for m, s in known)
    return f"<p>Metric signatures:</p><ul>{lines}</ul>"
