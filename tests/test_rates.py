"""Which learning rates are compared, where not all points were tried with the same."""

import pytest

from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.limits import limits_of
from t5scaling.analysis.conclusions.shapes import Verdict
from t5scaling.analysis.results.curves import curves_of, read_results
from t5scaling.analysis.results.harvest import harvest
from t5scaling.analysis.results.rates import Further, Uneven, uneven
from tests.analysis_made_up_study import SIZES, TASK, write_run

PLACES = SIZES[:6]  # no pretraining and five D_p


def rows_of(folder, tried, worse=lambda rate: 0.0, seeds=lambda place, rate: (0,)):
    """Of a study where `tried` says the rates of the D_p at each place among PLACES."""
    for place, tokens in enumerate(PLACES):
        for rate in tried(place):
            for seed in seeds(place, rate):
                loss = 5.0 - 0.2 * place + worse(rate)
                write_run(folder, tokens, 1_000, rate, seed, cross_entropy=loss, bleu=1.0 + place)
    return read_results(harvest(folder))


def curve_of(rows):
    (curve,) = (curve for curve in curves_of(rows) if curve.metric == "cross_entropy")
    return curve


def test_a_rate_that_a_few_points_were_tried_with_does_not_count(tmp_path):
    """It is the best by far, at both ends: these would stand out, and pretraining look useless."""
    ends = (0, 1, 5)
    rows = rows_of(
        tmp_path,
        lambda place: (0.01, 0.03, 0.06) if place in ends else (0.01, 0.03),
        {0.01: 0.2, 0.03: 0.0, 0.06: -0.3}.get,
    )
    curve = curve_of(rows)
    assert {p.learning_rate for p in (*curve.points, *curve.baseline)} == {0.03}
    values = [p.value for p in curve.points]
    assert values == sorted(values, reverse=True) and curve.baseline_value > values[0]
    assert curve.facts["learning_rates"] == [0.01, 0.03]
    assert all(p.at_edge for p in (*curve.points, *curve.baseline))

    (found,) = uneven(rows)
    assert (found.model, found.task, found.pool, found.places) == ("tiny", TASK, 1_000, 6)
    assert found.compared == (0.01, 0.03) and not found.lacking
    (further,) = found.further
    assert (further.rate, further.places, further.better) == (0.06, 3, 3)
    assert further.most == pytest.approx(0.3)


def test_a_further_rate_that_is_worse_shows_the_grid_to_be_wide_enough(tmp_path):
    rows = rows_of(
        tmp_path,
        lambda place: (0.01, 0.03, 0.06) if place else (0.01, 0.03),
        {0.01: 0.2, 0.03: 0.0, 0.06: 0.1}.get,
    )
    assert not any(p.at_edge for p in curve_of(rows).points)
    assert uneven(rows)[0].lacking == {0.06: (1, 0)}  # most were tried with it: it counts


def test_the_seeds_of_further_rates_do_not_decide_among_those_that_count(tmp_path):
    """0.06 was tried with seed 0 alone; 0.01 and 0.03 are compared over all three."""
    luck = {(0.01, 0): -0.3, (0.03, 0): 0.3}  # the other seeds find 0.03 better
    for place, tokens in enumerate(PLACES):
        for rate in (0.01, 0.03) + (0.06,) * (place == 5):
            for seed in range(1 if rate == 0.06 else 3):
                loss = 5.0 - 0.2 * place + luck.get((rate, seed), 0.5 * (rate == 0.01))
                write_run(tmp_path, tokens, 1_000, rate, seed, cross_entropy=loss)
    curve = curve_of(read_results(harvest(tmp_path)))
    assert {(p.x, p.learning_rate, p.seed) for p in curve.points} == {
        (tokens, 0.03, seed) for tokens in PLACES[1:] for seed in range(3)
    }


def test_rates_that_differ_from_point_to_point(tmp_path):
    """None is tried at most points: each has the best of its own, and the report says so."""
    rows = rows_of(tmp_path, lambda place: (0.01 * (place + 1),))
    curve = curve_of(rows)
    assert [p.learning_rate for p in curve.points] == [0.01 * (n + 1) for n in range(1, 6)]
    assert uneven(rows) == [Uneven("tiny", TASK, 1_000, 6, (), {}, ())]


def test_equal_rates_are_not_uneven(tmp_path):
    assert uneven(rows_of(tmp_path, lambda place: (0.01, 0.03), lambda rate: rate)) == []


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        (
            Uneven("tiny", TASK, 613, 25, (0.01, 0.03), {}, (Further(0.06, 3, 2, 0.307844),)),
            "The 25 points are compared at 0.01, 0.03. 0.06 was tried at 3 points besides and does "
            "not count: it is better at 2 of them, by up to 0.3078 nats of validation "
            "cross-entropy, so that the others may be under-tuned too.",
        ),
        (
            Uneven("tiny", TASK, 613, 25, (0.01,), {}, (Further(0.06, 1, 0, 0.0),)),
            "At a few points 0.06 was tried besides, and better at none.",
        ),
        (
            Uneven("tiny", TASK, 613, 25, (0.01, 0.03), {0.03: (0, 3)}, ()),
            "0.03 was not tried at 3 points with pretraining.",
        ),
        (
            Uneven("tiny", TASK, 613, 7, (), {}, ()),
            "none was tried at more than half of the 7. Each point has the best of its own",
        ),
    ],
)  # fmt: skip
def test_what_the_report_says(tmp_path, pool, said):
    curves = curves_of(rows_of(tmp_path, lambda place: (0.01,)))
    fits = [
        CurveFit(curve, law_of_metric(curve.metric), None, "", Verdict(None, "", 0.0, 0.0))
        for curve in curves
    ]
    (sentence,) = [text for text in limits_of([], fits, [pool]) if "point to point" in text]
    assert sentence.startswith(f"In {TASK}, pool of 613, tiny, learning rates differ from point")
    assert said in sentence
