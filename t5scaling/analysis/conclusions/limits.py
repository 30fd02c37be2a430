"""What limits the conclusions of a study: its size, its seeds, its learning rates, its pools."""

from collections.abc import Sequence
from statistics import median

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.representatives import TRANSLATES
from t5scaling.analysis.conclusions.step_choice import StepChoice
from t5scaling.analysis.metrics import is_bleu, metric_name
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.pools import pools
from t5scaling.analysis.wording import listed, size, values

SMOKE_TOKENS = 100_000_000
SMOKE_PARAMETERS = 50_000_000
NOTABLE_RATIO = 1.1  # of a score at the last step to that where cross-entropy is lowest


def limits_of(
    runs: Sequence[RunRecord],
    curve_fits: Sequence[CurveFit],
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
            "the smallest or largest tried there: they may be under-tuned, which bends laws."
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
    said += _of_rates(runs)
    said += _of_steps(steps)
    scores = [curve_fit for curve_fit in curve_fits if is_bleu(curve_fit.curve.metric)]
    highest = max(
        (p.value for curve_fit in scores for p in curve_fit.curve.points), default=TRANSLATES
    )
    if highest < TRANSLATES:
        said.append(f"BLEU stays below {TRANSLATES:g}: at this size the model does not translate.")
    return said


def _of_rates(runs: Sequence[RunRecord]) -> list[str]:
    """A sentence on each pool where pretraining and none were not tried with the same learning
    rates: the side with more of them has the advantage."""
    tried: dict[tuple, tuple[set[float], set[float]]] = {}
    for run in runs:
        if run.done and run["kind"] == "finetune" and run["learning_rate"] is not None:
            place = run["task"], run["finetune_examples"], run["model"]
            without, with_it = tried.setdefault(place, (set(), set()))
            (with_it if run["pretrain_tokens"] else without).add(run["learning_rate"])
    said = []
    for (task, pool, model), (without, with_it) in sorted(tried.items()):
        if not without or not with_it or without == with_it:
            continue
        sides = [
            f"{values(rates)} only {how} pretraining"
            for rates, how in ((without - with_it, "without"), (with_it - without, "with"))
            if rates
        ]
        said.append(
            f"In {task}, pool of {pool:,}, {model}, learning rates were tried on one side alone: "
            f"{listed(sides)}. What pretraining gains there is compared at unequal grids."
        )
    return said


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
