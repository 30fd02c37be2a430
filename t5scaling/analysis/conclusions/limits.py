"""What limits the conclusions of a study: its size, its seeds, its learning rates, its pools."""

from collections.abc import Sequence
from statistics import median

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.representatives import TRANSLATES
from t5scaling.analysis.conclusions.step_choice import StepChoice
from t5scaling.analysis.metrics import is_bleu, metric_name
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.pools import pools
from t5scaling.analysis.results.rates import Uneven
from t5scaling.analysis.wording import listed, number, size, values

SMOKE_TOKENS = 100_000_000
SMOKE_PARAMETERS = 50_000_000
NOTABLE_RATIO = 1.1  # of a score at the last step to that where cross-entropy is lowest


def limits_of(
    runs: Sequence[RunRecord],
    curve_fits: Sequence[CurveFit],
    rates: Sequence[Uneven] = (),
    steps: Sequence[StepChoice] = (),
) -> list[str]:
    """Sentences on why the numbers should not be trusted further than they reach; they say what was
    found in this study and nothing that holds of all."""
    said = []
    points = [point for curve_fit in curve_fits for point in curve_fit.curve.points]
    parameters = max(int(curve_fit.curve.facts["parameters"]) for curve_fit in curve_fits)
    tokens = max(point.x for point in points)
    if tokens < SMOKE_TOKENS or parameters < SMOKE_PARAMETERS:
        said.append(
            f"This is a smoke-sized study: {parameters:,} parameters and at most {size(tokens)} "
            f"{curve_fits[0].curve.unit} of pretraining, where the paper has 770 million and 3 "
            "billion parameters and up to a million steps of 131,072 token positions. It shows "
            "that the whole path works and what its curves look like at this size. It says "
            "nothing about full size."
        )
    splits = {(c.curve.metric, c.curve.facts.get("split", "test")) for c in curve_fits}
    elsewhere = {(metric_name(metric), split) for metric, split in splits if split != "test"}
    if elsewhere:
        where = listed([f"{name} on {split}" for name, split in sorted(elsewhere)])
        said.append(
            f"What is called a test result was measured on another split: {where}. Where learning "
            "rates or steps were chosen by it, it is better than on data that were not seen."
        )
    if len({point.seed for point in points}) < 2:
        said.append(
            "One seed: how much the results vary from run to run was not measured. The noise in "
            "this report is estimated from how far points stray from their neighbours."
        )
    sizes = min(len({point.x for point in curve_fit.curve.points}) for curve_fit in curve_fits)
    if sizes <= 5:
        said.append(
            f"{sizes} pretraining sizes are few for laws with three coefficients: single "
            "coefficients have very wide intervals."
        )
    runs_used = {point.run: point.at_edge for point in points}
    if any(runs_used.values()):
        said.append(
            f"At {sum(runs_used.values())} of {len(runs_used)} points the best learning rate is "
            "the smallest or largest tried there, or one that does not count was better: they may "
            "be under-tuned, which bends laws."
        )
    repeated: dict[str, int] = {}
    for run in runs:
        if "pretrain_unique_tokens" in run.record:
            data, tokens = run["pretrain_data"], run["pretrain_unique_tokens"]
            repeated[data] = max(tokens, repeated.get(data, 0))
    if repeated:
        each = [f"{size(tokens)} in {data}" for data, tokens in sorted(repeated.items())]
        said.append(
            "The largest pretraining sizes read the same text more than once: the number of "
            f"different tokens is {listed(each)}. A token read again is worth less than a new one, "
            "so these curves show what repetition brings, not what more text would (the law "
            "muennighoff, of all tokens and different ones, is for that)."
        )
    said += [pool.sentence for pool in pools(runs) if pool.sentence]
    said += [_of_rates(pool) for pool in rates]
    said += _of_steps(steps)
    scores = [curve_fit for curve_fit in curve_fits if is_bleu(curve_fit.curve.metric)]
    highest = max(
        (p.value for curve_fit in scores for p in curve_fit.curve.points), default=TRANSLATES
    )
    if highest < TRANSLATES:
        said.append(f"BLEU stays below {TRANSLATES:g}: at this size the model does not translate.")
    return said


def _of_rates(pool: Uneven) -> str:
    """Of points tried with different learning rates, those with more of them have the advantage."""
    start = (
        f"In {pool.task}, pool of {pool.pool:,}, {pool.model}, learning rates differ from point "
        "to point"
    )
    if not pool.compared:
        return (
            f"{start}: none was tried at more than half of the {pool.places}. Each point has the "
            "best of its own, so that they are compared at unequal grids."
        )
    said = [f"{start}. The {pool.places} points are compared at {values(pool.compared)}."]
    for rate, (without, with_it) in pool.lacking.items():
        where = [
            *(["without pretraining"] if without else []),
            *([f"at {_points(with_it)} with pretraining"] if with_it else []),
        ]
        said.append(f"{rate:g} was not tried {listed(where)}.")
    if any(without for without, _ in pool.lacking.values()):
        said.append("So what pretraining gains there is compared at unequal grids.")
    for one in pool.further:
        if one.better:
            said.append(
                f"{one.rate:g} was tried at {_points(one.places)} besides and does not count: it "
                f"is better at {one.better} of them, by up to {number(one.most)} nats of "
                "validation cross-entropy, so that the others may be under-tuned too."
            )
    worse = [f"{one.rate:g}" for one in pool.further if not one.better]
    if worse:
        said.append(f"At a few points {listed(worse)} {'was' if len(worse) == 1 else 'were'} tried "
                    "besides, and better at none.")  # fmt: skip
    return " ".join(said)


def _points(count: int) -> str:
    return "1 point" if count == 1 else f"{count} points"


def _of_steps(steps: Sequence[StepChoice]) -> list[str]:
    """A sentence on each score that another choice of the step would change."""
    said = []
    for metric in sorted({choice.metric for choice in steps}):
        own = [choice for choice in steps if choice.metric == metric]
        ratio = median(choice.ratio for choice in own)
        if 1 / NOTABLE_RATIO < ratio < NOTABLE_RATIO:
            continue
        runs = sum(choice.runs for choice in own)
        better = sum(choice.better_later for choice in own)
        said.append(
            f"Cross-entropy counts at the step where validation has the lowest, "
            f"{metric_name(metric)} at the last step of all runs, as in the paper. They are best "
            f"at different steps: {metric_name(metric)} is higher at the last one in {better} of "
            f"{runs} runs with pretraining, {ratio:.1f} times as high in the median. The table "
            "“Scores by the step that is counted”, under Results, has both."
        )
    return said
