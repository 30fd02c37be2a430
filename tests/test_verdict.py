"""Verdicts: the right word for shapes that are known, and no shape seen in noise."""

import numpy as np
import pytest

from t5scaling.analysis.conclusions.shapes import judge
from t5scaling.analysis.fitting.rollout import Prediction, predictions
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.metrics import resolution_of
from t5scaling.analysis.results.alignment import alignment_score

X = np.array([78e3, 152e3, 303e3, 602e3, 1.2e6, 2.4e6])


def verdict(y, metric, x=X):
    lower = metric == "cross_entropy"
    check = predictions(LAWS["power" if lower else "log"], x, np.array(y))
    return judge(x, y, lower_is_better=lower, resolution=resolution_of(metric), check=check)


@pytest.mark.parametrize(
    ("word", "metric", "y"),
    [
        ("predictable", "cross_entropy", [6.46, 6.11, 5.84, 5.64, 5.49, 5.37]),
        # A real curve that falls faster and faster: the law comes within 7 % of its values, and
        # yet misses a third of what there was to predict.
        ("unpredicted", "cross_entropy", [6.46, 6.40, 6.24, 6.02, 5.69, 5.34]),
        ("unpredicted", "cross_entropy", [6.11, 6.06, 5.95, 5.76, 5.47, 5.16]),
        ("trendless", "bleu", [0.04, 0.11, 0.07, 0.18, 0.05, 0.13]),
        ("trendless", "bleu", [0.04, 0.06, 0.09, 0.12, 0.15, 0.18]),
        ("trendless", "chrf", [5.1, 3.2, 9.8, 6.0, 7.5, 4.4]),
        ("noisy", "chrf", [3.0, 4.9, 4.1, 6.4, 5.6, 7.6]),
        ("nonmonotonic", "bleu", [1, 2, 3, 3, 2, 1.0]),
        ("inverse", "bleu", [6, 5.1, 4.2, 3, 2, 1.0]),
        ("inverse", "cross_entropy", [4.0, 4.1, 4.2, 4.3, 4.4, 4.5]),
        ("predictable", "bleu", [8.0, 11.2, 14.1, 17.3, 20.2, 23.4]),
        ("unpredicted", "bleu", [8.0, 12.0, 16.0, 20.0, 20.9, 21.0]),
    ],
)
def test_words(word, metric, y):
    assert verdict(y, metric).shape == word


def test_breakthrough():
    x = 1e5 * 2.0 ** np.arange(6)
    y = np.repeat([1.0, 1.1, 1.0, 1.2, 14.0, 15.0], 3) + np.tile([-0.1, 0, 0.1], 6)
    result = judge(np.repeat(x, 3), y, lower_is_better=False)
    assert result.shape == "breakthrough"
    assert "1,600,000" in result.reason


def test_seeds_measure_the_noise():
    y = np.repeat([5.0, 4.8, 4.6, 4.4, 4.2, 4.0], 3) + np.tile([-0.03, 0, 0.03], 6)
    result = judge(np.repeat(X, 3), y, lower_is_better=True)
    assert result.noise == pytest.approx(0.03)
    assert result.shape == "unchecked"


def test_a_few_seeds_that_lie_close_do_not_outweigh_all_of_the_task():
    x, y = np.repeat(X[:3], 2), np.repeat([5.0, 4.8, 4.6], 2) + np.tile([-0.001, 0.001], 3)
    alone = judge(x, y, lower_is_better=True)
    assert (alone.noise, alone.noise_df) == (pytest.approx(0.001 * 2**0.5), 3)
    among_others = judge(x, y, lower_is_better=True, seed_noise=(0.05, 9))
    assert (among_others.noise, among_others.noise_df) == (0.05, 9)
    of_fewer = judge(x, y, lower_is_better=True, seed_noise=(0.05, 2))
    assert of_fewer.noise == alone.noise
    two_sizes = judge(x[:4], y[:4], lower_is_better=True, seed_noise=(0.05, 9))
    assert (two_sizes.shape, two_sizes.noise) == (None, 0.05)


def test_one_stray_seed_is_not_held_against_a_law():
    x = np.repeat(X, 3)
    y = np.repeat(np.log(0.5 * X**0.5) ** 1.2, 3)
    y[-3:] *= (0.87, 1.0, 1.13)
    check = predictions(LAWS["log"], x, y)
    assert judge(x, y, lower_is_better=False, check=check).shape == "predictable"


@pytest.mark.parametrize(
    ("word", "low", "high"), [("unpredicted", 15, 21), ("unchecked", 5, 60), ("unchecked", 1, 99)]
)
def test_an_interval_that_holds_everything_does_not_make_a_law_right(word, low, high):
    y = [8.0, 12.0, 16.0, 20.0, 23.0, 26.0]
    wrong = [
        Prediction(0, k, x, 0.3, m, 0.72 * m, low=low, high=high, last=m - 3.0)
        for k, x, m in ((4, X[4], 23.0), (5, X[5], 26.0))
    ]
    assert judge(X, y, lower_is_better=False, check=wrong).shape == word


def test_an_error_of_most_of_the_value_is_no_prediction():
    y = [1.0, 8.0, 16.0, 25.0, 33.0, 41.0]
    off = [Prediction(0, 4, X[1], 0.3, 8.0, 15.5, low=1.0, high=40.0, last=1.0, leverage=3.0)]
    assert judge(X, y, lower_is_better=False, check=off).shape == "unchecked"


def test_a_law_is_not_condemned_for_one_outlier_among_twelve_points():
    x, words = 1e6 * 2.0 ** np.arange(12), []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        y = (1.7 + 1.5 * (x / 1e6) ** -0.35) * np.exp(0.01 * rng.standard_normal(12))
        y[rng.integers(12)] *= np.exp(rng.choice([-1, 1]) * 0.1)
        check = predictions(LAWS["power"], x, y)
        words.append(judge(x, y, lower_is_better=True, check=check).shape)
    assert words.count("predictable") >= 0.8 * len(words)


@pytest.mark.parametrize("level", [5.0, 30.0])
def test_flat_noise_is_rarely_anything_but_trendless(level):
    words = []
    for seed in range(200):
        y = level * (1 + 0.05 * np.random.default_rng(seed).standard_normal(6))
        words.append(judge(X, y, lower_is_better=False).shape)
    assert words.count("trendless") >= 0.88 * len(words)


def test_two_sizes_have_no_shape():
    result = judge(X[:2], [1.0, 2.0], lower_is_better=False)
    assert result.shape is None
    assert "too few" in result.reason


@pytest.mark.parametrize(
    ("shares", "score"),
    [
        ({"en": 0.5, "fr": 0.5}, 1.0),
        ({"en": 1.0}, 0.7),
        ({"fr": 1.0}, 0.8),
        ({"en": 0.3, "fr": 0.7}, 0.98),
        ({"en": 0.7, "fr": 0.3}, 0.94),
        ({"ro": 1.0}, 0.0),
    ],
)
def test_alignment_score(shares, score):
    assert alignment_score(shares, ("en", "fr")) == score


def test_alignment_score_refuses_percentages():
    with pytest.raises(ValueError, match="shares"):
        alignment_score({"en": 50, "fr": 50}, ("en", "fr"))
