"""benchmarks/forecast.py: half of a study is held against the other half."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import forecast

from tests.analysis_made_up_grid import noise, write_grid

LARGEST = 6_400_000


def power_law(size):
    return 2.0 + 40 * size**-0.25 if size else 6.0


def onset(size):
    """It falls faster at each doubling, as losses do after finetuning."""
    return 6.0 / (1 + size / 2e6) ** 0.2


def foreseen(folder, last=0.0, law=power_law):
    """What the forecast makes of a study that follows `law`, with `last` added at the largest
    size."""

    def value(metric, pair, role, size, pool, seed):
        if metric != "cross_entropy":
            return None
        return law(size) + (last if size == LARGEST else 0.0) + noise(0.01, size, seed)

    write_grid(folder, value, pairs=("en-fr",), roles=("balanced",), pools=(1_000,))
    (one,) = forecast.foresee(str(folder))
    return one


def test_a_law_is_foreseen_without_its_largest_size(tmp_path):
    one = foreseen(tmp_path)
    assert one.predictable and one.inside
    assert max(one.advice.outlook.best.x) < 0.51 * LARGEST
    assert one.advice.forecast.x == pytest.approx(LARGEST, rel=1e-3)
    assert one.measured == pytest.approx(2.0 + 40 * LARGEST**-0.25, abs=0.03)


def test_what_departs_from_its_law_is_outside(tmp_path):
    one = foreseen(tmp_path, last=1.5)
    assert one.predictable and not one.inside
    assert math.isclose(one.measured - 2.0 - 40 * LARGEST**-0.25, 1.5, abs_tol=0.05)


def test_a_curve_that_falls_faster_and_faster_is_foreseen(tmp_path):
    """No law with a floor does that: the interval must not be theirs alone."""
    one = foreseen(tmp_path, law=onset)
    forecast = one.advice.forecast
    assert "onset" in [law.name for law in forecast.families] and one.inside
    floors = [fit for fit in one.advice.outlook.fits if fit.law.name != "onset"]
    assert all(fit.predict([forecast.x])[0] > onset(LARGEST) + 0.05 for fit in floors)
