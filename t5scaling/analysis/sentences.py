"""What the fits say and do not say, in plain words."""

from collections.abc import Sequence

from t5scaling.analysis.curve_fit import CurveFit
from t5scaling.analysis.harvest import RunRecord
from t5scaling.analysis.intervals import LEVEL
from t5scaling.analysis.tables import interval, metric_name, number, sentences_of_coefficients, size

SMOKE_TOKENS = 100_000_000
SMOKE_PARAMETERS = 50_000_000

VERDICTS = {
    "predictable": "improves with pretraining, and the law comes close to what it was not shown",
    "inverse": "gets worse with more pretraining",
    "nonmonotonic": "improves and worsens again, beyond noise",
    "noisy": "improves, but the points scatter too much to trust a law",
    "trendless": "does not change beyond noise; no law should be read into it",
    "breakthrough": "improves almost all at once at one size",
    "unpredicted": "improves clearly, but not as the law says",
}


def about_curve(this: CurveFit) -> list[str]:
    """The sentences on one curve, most important first."""
    curve, fit, word = this.curve, this.fit, this.verdict.word
    name = metric_name(curve.metric)
    said = [_course(this)]
    if word:
        said.append(f"Verdict: {word}. It {VERDICTS[word]} ({this.verdict.reason}).")
    else:
        said.append(f"No verdict: {this.verdict.reason}.")
    if fit is None:
        said.append(f"No law was fitted: {this.note}.")
        return said
    if word == "trendless":
        said.append("A law was fitted all the same (see Laws); its coefficients describe noise.")
        return said
    if fit.held_out:
        last = fit.held_out_sizes[-1]
        change = abs(this.verdict.change)
        part = f", {abs(last.error) / change:.0%} of the whole change" if change else ""
        said.append(
            f"The {this.law.title}, fitted to the {len(this.fitted_sizes)} smallest sizes, "
            f"predicts {number(last.predicted)} ({LEVEL:.0%} interval "
            f"{interval(last.low, last.high)}) at D_p = {size(last.x)}, "
            f"{fit.extrapolation:.2f} decades further; measured: "
            f"{number(last.value)} (off by {last.error:+.3g}, {last.relative_error:+.1%}{part})."
        )
        outside = [p for p in fit.held_out_sizes if not p.inside]
        if outside:
            side = {p.value > p.high for p in outside}
            where = (
                "above" if side == {True} else "below" if side == {False} else "on both sides of"
            )
            said.append(
                f"{len(outside)} of {len(fit.held_out_sizes)} held-out sizes lie {where} the law's "
                "interval: the curve bends in a way that the law does not follow."
            )
    if not fit.converged:
        said.append("The fit did not converge: take its coefficients for nothing.")
    said += [f"{note[0].upper()}{note[1:]}." for note in fit.at_bound]
    said += sentences_of_coefficients(this)
    if "D0" in fit.coefficients:
        d0 = fit.coefficients["D0"][0]
        said.append(f"The law predicts a {name} of 0 below D0 = {_size_or_zero(d0)}.")
    return said


def about_study(runs: Sequence[RunRecord], curve_fits: Sequence[CurveFit]) -> list[str]:
    """Why these numbers should not be trusted further than they reach."""
    said = []
    points = [point for this in curve_fits for point in this.curve.points]
    parameters = max(int(this.curve.facts["parameters"]) for this in curve_fits)
    tokens = max(point.x for point in points)
    if tokens < SMOKE_TOKENS or parameters < SMOKE_PARAMETERS:
        said.append(
            f"This is a smoke-sized study: {parameters:,} parameters and at most {size(tokens)} "
            f"{curve_fits[0].curve.unit} of pretraining, where the paper has 770 million and 3 "
            "billion parameters and up to a million steps of 131,072 token positions. It shows "
            "that the whole path works and what its curves look like at this size. It says "
            "nothing about full size."
        )
    if len({point.seed for point in points}) < 2:
        said.append(
            "One seed: how much the results vary from run to run was not measured. The noise in "
            "this report is estimated from how far points stray from their neighbours."
        )
    sizes = min(len({point.x for point in this.curve.points}) for this in curve_fits)
    if sizes <= 5:
        said.append(
            f"{sizes} pretraining sizes are few for laws with three coefficients: single "
            "coefficients have very wide intervals."
        )
    runs_used = {point.run: point.at_edge for point in points}
    if any(runs_used.values()):
        said.append(
            f"At {sum(runs_used.values())} of {len(runs_used)} points the best learning rate is "
            "the smallest or largest tried there: they may be under-tuned, which bends laws."
        )
    said += [pool.sentence for pool in pools(runs) if pool.sentence]
    scores = [this for this in curve_fits if this.curve.metric.startswith("bleu")]
    if scores and max(p.value for this in scores for p in this.curve.points) < 1:
        said.append("BLEU stays below 1: at this size the model does not translate.")
    return said


class Pool:
    """A finetuning pool (D_f), how much of it a run draws, and the learning rates tried in it."""

    def __init__(self, record: dict, rates: set[float]):
        self.rates = rates
        self.task = record["task"]
        self.label = record.get("finetune_pool") or f"{record['finetune_examples']:,}"
        self.examples = record["finetune_examples"]
        self.tokens = record["finetune_tokens"]
        self.positions = record["finetune_positions"]
        rows = record.get("finetune_rows", self.examples)
        self.share = None
        if record.get("batch_size"):
            self.share = record["steps"] * record["batch_size"] / rows
        self.steps, self.batch_size = record["steps"], record.get("batch_size")

    @property
    def sentence(self) -> str:
        """Says so if the runs never see the pool whole; else empty."""
        if self.share is None or self.share >= 1:
            return ""
        return (
            f"The pool {self.label} of {self.task} is a pool, not an amount of training: "
            f"{self.steps} steps of {self.batch_size} rows draw {self.share:.0%} of it, so its "
            "examples beyond that are never seen."
        )

    @property
    def seen(self) -> str:
        if self.share is None:
            return "–"
        return f"{self.share:.0%} of it" if self.share < 1 else f"{self.share:.3g} times"


def pools(runs: Sequence[RunRecord]) -> list[Pool]:
    """The pools of the finished finetuning runs, by task and size."""
    found: dict[tuple, tuple[dict, set[float]]] = {}
    for run in runs:
        if run.done and run["kind"] == "finetune":
            place = run["task"], run["finetune_examples"]
            found.setdefault(place, (run.record, set()))[1].add(run["learning_rate"])
    return [Pool(record, rates) for _, (record, rates) in sorted(found.items())]


def _course(this: CurveFit) -> str:
    """From where to where the metric goes."""
    curve = this.curve
    ends = []
    for x in (min(p.x for p in curve.points), max(p.x for p in curve.points)):
        values = [p.value for p in curve.points if p.x == x]
        ends.append((size(x), number(sum(values) / len(values))))
    (low_x, first), (high_x, last) = ends
    unit = " nats per target token" if curve.metric == "cross_entropy" else ""
    sentence = (
        f"{metric_name(curve.metric)} goes from {first} at D_p = {low_x} to {last}{unit} at "
        f"{high_x}"
    )
    if curve.baseline_value is None:
        return sentence + "; there is no run without pretraining to compare with."
    return sentence + f"; without pretraining it is {number(curve.baseline_value)}."


def _size_or_zero(value: float) -> str:
    return size(round(value)) + " tokens" if value >= 1 else "1 token (no such limit is visible)"
