"""Bootstrap intervals of corpus metrics, by resampling segments (Koehn 2004, W04-3250).

A corpus metric is a formula over sums: of matched n-grams, of lengths, of right answers. So a
segment is reduced once to its row of statistics, and a resample of the test set is a weighted sum
of rows: a thousand of them are one product of matrices, and no text is looked at again.

The resamples depend on the number of segments alone. Whatever is measured on the same test set, by
any metric and of any model, is therefore resampled alike.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 1000
COVERAGE = 0.95
SEED = 0
_DRAWS_AT_ONCE = 1 << 22  # bounds the memory to some tens of MB, whatever the test set's size

Score = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def resampled_sums(
    statistics: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Sums over segments drawn with replacement, as many as there are.

    Args:
      statistics: (S, K) numbers, one row per segment.
      resamples: R.
      seed: of the draws.

    Returns:
      (R, K) float64; exact for whole numbers.
    """
    statistics = np.asarray(statistics, np.float64)
    segments = len(statistics)
    draws = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // segments)
    sums = []
    for first in range(0, resamples, at_once):
        rows = min(at_once, resamples - first)
        drawn = draws.integers(segments, size=(rows, segments))
        drawn += segments * np.arange(rows)[:, None]  # so that one count serves all rows
        times = np.bincount(drawn.ravel(), minlength=rows * segments)
        sums.append(times.reshape(rows, segments).astype(np.float64) @ statistics)
    return np.concatenate(sums)


def intervals(statistics: np.ndarray, score: Score) -> dict[str, float]:
    """95 % percentile intervals of all values that `score` computes.

    Args:
      statistics: (S, K) numbers, one row per segment.
      score: from sums (R, K) to values {name: (R,)}; each row sums a test set of S segments.

    Returns:
      {name}_low and {name}_high of every value; nothing for fewer than two segments, which say
      nothing of the spread.
    """
    if len(statistics) < 2:
        return {}
    result = {}
    for name, values in score(resampled_sums(statistics)).items():
        low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        result |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return result


def scores(statistics: np.ndarray, score: Score) -> dict[str, float]:
    """The values themselves and their `intervals`; arguments as there."""
    statistics = np.asarray(statistics, np.float64)
    whole = score(statistics.sum(axis=0, keepdims=True))
    values = {name: float(value[0]) for name, value in whole.items()}
    return values | intervals(statistics, score)


def mean_scores(values: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, float]:
    """Means over segments and their `intervals`.

    Args:
      values: {name: (S,)}, one value per segment.
    """
    columns = np.stack([np.asarray(column, np.float64) for column in values.values()], axis=1)
    segments = len(columns)
    return scores(
        columns, lambda sums: {name: sums[:, i] / segments for i, name in enumerate(values)}
    )
