"""What a fitted law expects at places that somebody names, and how far these lie from the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.wording import listed, plain, size
from t5scaling.errors import UserError


@dataclass(frozen=True)
class Expected:
    """place: the sizes, in the order of x. low, high: the interval for a new measurement. decades:
    for each size, how far it lies above the largest fitted one, below 0: under the smallest; 0
    between the two."""

    place: tuple[float, ...]
    value: float
    low: float
    high: float
    decades: tuple[float, ...]

    def distance(self, names: Sequence[str]) -> str:
        """In words: "0.48 decades beyond the largest tokens", or "within the data"."""
        parts = [
            f"{abs(far):.2f} decades {'beyond the largest' if far > 0 else 'below the smallest'} "
            f"{name}"
            for far, name in zip(self.decades, names, strict=True)
            if far
        ]
        return listed(parts) if parts else "within the data"

    @property
    def record(self) -> dict[str, Any]:
        """As JSON takes it: x (and x2), value, low, high, decades."""
        return {
            **dict(zip(("x", "x2"), map(plain, self.place), strict=False)),
            "value": plain(self.value),
            "low": plain(self.low),
            "high": plain(self.high),
            "decades": list(map(plain, self.decades)),
        }


def expected(fit: Fit, places: Sequence[Sequence[float]]) -> list[Expected]:
    """At each of the places, which have as many sizes as the law.

    Raises:
      UserError: another number of sizes, one that is not positive, or a place where the law has no
        value.
    """
    names = fit.law.sizes
    for place in places:
        if len(place) != len(names):
            raise UserError(
                f"{','.join(f'{x:g}' for x in place)}: {len(place)} numbers, but the "
                f"{fit.law.title} is a law of {listed(names)}; expected {len(names)} a place"
            )
        for x in place:
            if not 0 < x < math.inf:
                raise UserError(f"a size of {x:g}: expected a positive number")
    x = np.array(places, float).T
    x = x[0] if len(names) == 1 else x
    value, (low, high) = fit.predict(x), fit.band(x)
    fitted = np.atleast_2d(fit.x)
    least, most = fitted.min(axis=1), fitted.max(axis=1)
    found = []
    for i, place in enumerate(places):
        if not math.isfinite(value[i]):
            raise UserError(
                f"the {fit.law.title} has no value at {', '.join(size(x) for x in place)}"
            )
        away = np.where(place > most, np.log10(place / most), 0.0)
        away = np.where(place < least, np.log10(place / least), away)
        found.append(
            Expected(tuple(map(float, place)), float(value[i]), float(low[i]), float(high[i]),
                     tuple(map(float, away)))
        )  # fmt: skip
    return found
