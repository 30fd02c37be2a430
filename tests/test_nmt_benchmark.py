"""The learning-curve benchmark of Alabdulmohsin et al. (arXiv 2209.06640), its translation part.

benchmarks/nmt_learning_curves.csv: CC BY 4.0, Google Research. Laws are fitted up to 256 million
sentence pairs; the error is that of the log loss at 512 million.
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.fitting.compare import compare
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.laws import LAWS

# Table 2. The row of the decoder-only model is wrong in print from its second number on.
PUBLISHED = {
    "6E6D": {"m1": 0.26, "m2": 0.039, "m3": 0.089, "m4": 0.010},
    "28E6D": {"m1": 0.17, "m2": 0.056, "m3": 0.033, "m4": 0.013},
    "6E28D": {"m1": 0.23, "m2": 0.053, "m3": 0.016, "m4": 0.030},
    "LSTM": {"m1": 0.19, "m2": 0.013, "m3": 0.062, "m4": 0.012},
    "Dec": {"m1": 0.25},
}
ROWS = [name for name in PUBLISHED if name != "Dec"]


@pytest.fixture(scope="module")
def curves():
    points = defaultdict(list)
    path = Path(__file__).parents[1] / "benchmarks" / "nmt_learning_curves.csv"
    with open(path, encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[row["curve"]].append((float(row["sentence_pairs"]), float(row["loss"])))
            assert (row["is_fit_point"] == "1") == (float(row["sentence_pairs"]) < 500e6)
    return {name: np.array(rows).T for name, rows in points.items()}


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch):
    """Of what is fitted: no test here looks at intervals."""
    monkeypatch.setattr(intervals, "REPLICATES", 2)


def error(curve, law, **options):
    fit = fit_curve(LAWS[law], *curve, hold_out=1, **options)
    assert fit.converged
    return fit.held_out_error


@pytest.mark.parametrize("name", PUBLISHED)
def test_m1_to_the_printed_digits(curves, name):
    assert round(error(curves[name], "m1", delta=np.inf), 2) == PUBLISHED[name]["m1"]


@pytest.mark.parametrize("name", ROWS)
def test_m2_as_published(curves, name):
    found = error(curves[name], "power", delta=np.inf, residual="reducible")
    if name == "6E6D":  # the minimum is at floor 0.30816; the printed 0.039 is that of 0.3077
        assert found == pytest.approx(0.03845, abs=5e-6)
    else:
        assert round(found, 3) == PUBLISHED[name]["m2"]


@pytest.mark.parametrize("law", ["m3", "m4"])
def test_m3_and_m4_no_worse_than_published(curves, law):
    for name in ROWS:
        # To the printed digits.
        assert round(error(curves[name], law), 3) <= PUBLISHED[name][law], name


def test_the_family_chosen_without_the_held_out_point_beats_the_published_best(curves):
    seen = [(x[:-1], y[:-1]) for x, y in curves.values()]
    of_size = [law for law in LAWS.values() if law.sizes == ("D",) and not law.of_loss]
    falling = [law for law in of_size if law.direction < 0]
    chosen = compare(seen, falling).families[0].law
    errors = [error(curves[name], chosen.name) for name in ROWS]
    published = np.mean([PUBLISHED[name]["m4"] for name in ROWS])
    assert np.mean(errors) < published == pytest.approx(0.01625)
