"""The next run to pay for: right in the linear case, better than chance in simulated studies."""

import numpy as np
import pytest

from t5scaling.analysis.conclusions.next_experiment import (
    Cost,
    Design,
    candidates,
    next_runs,
    rank,
)
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.laws import LAWS

SIZES = np.repeat(1e8 * 2.0 ** np.arange(4), 2)
TARGET = np.array([1.28e10])
COST = Cost(per_token=1e-9, per_run=0.2, pretrained=8e8)
TRUTHS = {
    "power": (lambda x: 1.5 + 0.8 * (x / 1e8) ** -0.4, 0.01),
    "log": (lambda x: 5 * np.log(x / 2e7) ** 0.8, 0.02),
    "ceiling": (lambda x: 40 - 30 * (x / 1e8) ** -0.5, 0.02),
}


def fitted(name, seed=0):
    truth, noise = TRUTHS[name]
    draw = np.random.default_rng(seed)
    y = truth(SIZES) * np.exp(noise * draw.standard_normal(len(SIZES)))
    return fit_curve(LAWS[name], SIZES, y, hold_out=0, delta=np.inf), draw, y


def test_a_line_in_logs_gives_the_variances_of_the_textbook():
    y = 3 * (SIZES / 1e8) ** -0.2 * np.exp(0.01 * np.random.default_rng(0).standard_normal(8))
    fit = fit_curve(LAWS["m1"], SIZES, y, hold_out=0, delta=np.inf)

    def variance(sizes):
        columns = np.c_[np.ones(len(sizes)), np.log(sizes)]
        place = np.array([1, np.log(TARGET[0])])
        return fit.sigma**2 * place @ np.linalg.inv(columns.T @ columns) @ place

    design = Design(fit, TARGET)
    assert design.variance() == pytest.approx(variance(SIZES), rel=1e-3)
    more = design.with_each(np.array([1e8, 1.6e9]))
    for i, x in enumerate((1e8, 1.6e9)):
        assert more[:, i] == pytest.approx(variance(np.append(SIZES, x)), rel=1e-3)
    design.add(np.array([1.6e9]))
    assert design.variance() == pytest.approx(variance(np.append(SIZES, 1.6e9)), rel=1e-3)


def test_candidates_are_seeds_sizes_between_and_doublings():
    fit, _, _ = fitted("power")
    found = candidates(fit, 3.2e9)
    assert set(np.unique(SIZES)) <= set(found)
    assert found.max() == 3.2e9 and len(found) == 4 + 3 + 2
    runs = rank(fit, TARGET, found, COST.of)
    assert {run.x: run.repeats for run in runs}[1e8] == 2
    assert all(run.after <= run.before for run in runs)
    assert runs == sorted(runs, key=lambda run: -run.worth)


def test_dear_sizes_are_passed_over_when_they_are_too_dear():
    fit, _, _ = fitted("power")
    places = candidates(fit, 6.4e9)
    cheap = next_runs(fit, TARGET, places, Cost(1e-12, 0.2, 8e8), budget=2.0)
    dear = next_runs(fit, TARGET, places, Cost(1e-6, 0.2, 8e8), budget=2.0)
    assert max(run.x for run in cheap) == 6.4e9
    assert max(run.x for run in dear) <= 8e8
    assert next_runs(fit, TARGET, places, COST, budget=0.1) == []


def test_a_budget_is_kept_and_pretraining_is_paid_once():
    fit, _, _ = fitted("log")
    runs = next_runs(fit, TARGET, candidates(fit, 6.4e9), COST, budget=6.0)
    assert sum(run.device_hours for run in runs) <= 6.0 + 1e-9
    longest = max(run.x for run in runs)
    paid = COST.per_token * (longest - COST.pretrained) + COST.per_run * len(runs)
    assert sum(run.device_hours for run in runs) == pytest.approx(paid)
    assert [run.after for run in runs] == sorted((run.after for run in runs), reverse=True)


def spent_at_random(places, budget, draw):
    chosen, cost = [], COST
    while affordable := [x for x in places if cost.of(x) <= budget]:
        x = draw.choice(affordable)
        chosen.append(x)
        budget, cost = budget - cost.of(x), cost.after(x)
    return chosen


def spent_evenly(places, budget):
    """Up to the largest size that leaves money for 4 runs, at equal distances in log D."""

    def left(top):
        return budget - COST.per_token * max(0.0, top - COST.pretrained)

    top = max(x for x in places if left(x) >= 4 * COST.per_run)
    return list(np.geomspace(places[0], top, int(left(top) / COST.per_run + 1e-9)))


@pytest.mark.parametrize("name", TRUTHS)
def test_better_than_random_and_equal_spacing_in_simulated_studies(monkeypatch, name):
    monkeypatch.setattr(intervals, "REPLICATES", 60)
    truth, noise = TRUTHS[name]
    errors = {"ours": [], "random": [], "equal": []}
    for seed in range(30):
        fit, draw, y = fitted(name, seed)
        places = candidates(fit, 6.4e9)
        choices = {
            "ours": [run.x for run in next_runs(fit, TARGET, places, COST, budget=4.0)],
            "random": spent_at_random(places, 4.0, draw),
            "equal": spent_evenly(places, 4.0),
        }
        for kind, chosen in choices.items():
            x = np.append(SIZES, chosen)
            new = truth(np.array(chosen)) * np.exp(noise * draw.standard_normal(len(chosen)))
            with monkeypatch.context() as without_intervals:
                without_intervals.setattr(intervals, "REPLICATES", 2)
                after = fit_curve(LAWS[name], x, np.append(y, new), hold_out=0, delta=np.inf)
            errors[kind].append(after.log_values(TARGET)[0] - np.log(truth(TARGET))[0])
    rms = {kind: float(np.sqrt(np.mean(np.square(e)))) for kind, e in errors.items()}
    assert rms["ours"] < rms["random"] and rms["ours"] < rms["equal"], rms


@pytest.mark.parametrize("name", TRUTHS)
def test_the_half_width_before_a_run_is_the_bootstraps_own(name):
    fit, _, _ = fitted(name)
    design = Design(fit, TARGET)
    low, high = (np.log(end[0]) for end in fit.curve_band(TARGET))
    before = design.half_width(design.variance())
    assert before == pytest.approx((high - low) / 2)
    assert 0 < design.half_width(design.with_each(np.array([6.4e9])))[0] < before
