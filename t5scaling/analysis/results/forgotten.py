"""A column that sets curves apart and was not named: `--group` forgotten.

The sign: sizes are repeated, and within one size another column varies and explains most of how
the values differ (the adjusted share of their variance about the means of the sizes). A column
that goes with the size does not vary within it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

REPEATED = 2.0  # measurements at one size, on average
EXPLAINED = 0.5


def forgotten_group(
    sizes: Sequence[float], values: Sequence[float], others: Mapping[str, Sequence[str]]
) -> str | None:
    """The column of `others` that sets curves apart, None if none does.

    Args:
      sizes, values: of all points that one curve is made of, (N,) each.
      others: the cells of each column that is not used, (N,) each.
    """
    _, size, repeats = np.unique(sizes, return_inverse=True, return_counts=True)
    if len(size) < REPEATED * len(repeats):
        return None
    y = np.asarray(values, float)
    y = np.log(y) if (y > 0).all() else y
    rest = y - (np.bincount(size, y) / repeats)[size]
    best, share = None, EXPLAINED
    for name, cells in others.items():
        kinds, kind, counts = np.unique(np.asarray(cells), return_inverse=True, return_counts=True)
        free = len(y) - len(repeats) - len(kinds) + 1
        if len(kinds) < 2 or free < 1 or not rest.any():
            continue
        left = rest - (np.bincount(kind, rest) / counts)[kind]
        explained = 1 - (left @ left / free) / (rest @ rest / max(len(y) - len(repeats), 1))
        if explained > share:
            best, share = name, explained
    return best
