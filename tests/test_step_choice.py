"""At which step metrics count, and whether a score's curve is made by that."""

import pytest

from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.limits import limits_of
from t5scaling.analysis.conclusions.shapes import Verdict
from t5scaling.analysis.conclusions.step_choice import choices_of_step
from t5scaling.analysis.results.curves import curves_of

SIZES = (0, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)


def rows_of(steps, score, rates=(0.01,), seeds=(0, 1), loss=lambda tokens, step: 4.0 - step / 1e3):
    """Rows of a study: `score` of (tokens, rate, step), the seeds 0.1 apart."""
    rows = []
    for tokens in SIZES:
        for rate in rates:
            for seed in seeds:
                for step in steps:
                    measured = [
                        ("validation", "cross_entropy", loss(tokens, step)),
                        ("test", "cross_entropy", loss(tokens, step)),
                        ("test", "bleu", score(tokens, rate, step) + 0.1 * seed),
                    ]
                    rows += [
                        {
                            "study": "made up", "model": "tiny", "parameters": 1000,
                            "pretrain_data": "en50_de50" if tokens else "", "alignment": "",
                            "pretrain_tokens": tokens, "task": "en_de", "finetune_tokens": 1,
                            "finetune_examples": 100, "finetune_positions": 1,
                            "learning_rate": rate, "seed": seed, "steps": step, "split": split,
                            "metric": metric, "metric_signature": "", "value": value,
                            "run": f"{tokens}/{rate}/{seed}",
                        }
                        for split, metric, value in measured
                    ]  # fmt: skip
    return rows


def fits_of(rows):
    verdict = Verdict(None, "", 0.0, 0.0)
    return [
        CurveFit(curve, law_of_metric(curve.metric), None, "", verdict) for curve in curves_of(rows)
    ]


def early_where_pretrained(tokens, step):
    """The validation loss is lowest at step 100 after pretraining, at 300 without."""
    return 4.0 + abs(step - (100 if tokens else 300)) / 100


def test_a_score_that_only_an_early_step_makes_fall():
    """It counts at the last step, though validation cross-entropy is lowest before."""

    def score(tokens, rate, step):
        return step / 10 + 100 * rate

    rows = rows_of((100, 200, 300), score, rates=(0.01, 0.03), loss=early_where_pretrained)
    (choice,) = choices_of_step(fits_of(rows), rows, {"bleu"})
    assert choice.metric == "bleu"
    ways = [(way.learning_rate, way.at_last_step) for way in choice.ways]
    assert ways == [(None, True), (0.01, True), (0.03, True), (None, False)]
    counted, _, last, early = choice.ways
    assert (early.not_pretrained, early.largest.value) == pytest.approx((31.05, 11.05))
    assert (counted.not_pretrained, counted.largest.value) == pytest.approx((31.05, 31.05))
    assert last.not_pretrained == pytest.approx(33.05)
    assert [last.smallest.x, last.largest.x] == [1e6, 1e9]
    assert [last.smallest.value, last.largest.value] == pytest.approx([33.05, 33.05])
    assert last.slope == pytest.approx(0, abs=1e-9) and last.low < 0 < last.high
    assert (choice.runs, choice.better_later) == (8, 8)
    assert choice.ratio == pytest.approx((31 / 11 + 31.1 / 11.1) / 2)
    (said,) = [text for text in limits_of([], fits_of(rows), steps=[choice]) if "last step" in text]
    assert "higher at the last one in 8 of 8 runs with pretraining, 2.8 times as high" in said


def test_where_each_metric_counts():
    """Cross-entropy at its best step; scores at the last, at the rate that is best there."""

    def loss(tokens, step, rate):
        return {(0.01, 100): 4.0, (0.01, 300): 6.0, (0.03, 100): 4.5, (0.03, 300): 5.0}[rate, step]

    rows = rows_of((100, 300), lambda tokens, rate, step: rate * step, rates=(0.01, 0.03))
    for row in rows:
        if row["metric"] == "cross_entropy":
            row["value"] = loss(row["pretrain_tokens"], row["steps"], row["learning_rate"])
    counted = {
        curve.metric: {(point.learning_rate, point.step) for point in curve.points}
        for curve in curves_of(rows)
    }
    assert counted == {"cross_entropy": {(0.01, 100)}, "bleu": {(0.03, 300)}}


def test_a_slope_and_its_interval():
    """Two of BLEU for each tenfold D_p, and points 0.05 from the line."""

    def score(tokens, rate, step):
        return 2.0 * len(str(tokens)) + step / 1000

    rows = rows_of((100, 300), score, loss=early_where_pretrained)
    (choice,) = choices_of_step(fits_of(rows), rows, {"bleu"})
    last = choice.ways[1]
    assert last.slope == pytest.approx(2.0)
    # The points' variance is 8 * 0.05^2 / 6, the squares of log10 D_p sum up to 10, and Student's
    # quantile of 6 degrees of freedom is 1.943.
    assert last.high - last.slope == pytest.approx(1.943 * (8 * 0.05**2 / 6 / 10) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("steps", [(100,), (100, 200, 300)])
def test_nothing_to_ask_where_the_last_step_is_chosen(steps):
    rows = rows_of(steps, lambda tokens, rate, step: 5.0)
    assert choices_of_step(fits_of(rows), rows, {"bleu"}) == []


def test_too_few_sizes():
    rows = rows_of((100, 300), lambda tokens, rate, step: step, loss=early_where_pretrained)
    rows = [row for row in rows if row["pretrain_tokens"] < 1e8]
    assert choices_of_step(fits_of(rows), rows, {"bleu"}) == []
