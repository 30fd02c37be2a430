"""What a scaling law is: the interface that fits work with.

A law maps the pretraining size D (tokens, or whatever unit the x column has) to a positive metric
value. Fits work on the logarithm of the value and in an internal parametrisation `theta` chosen so
that its numbers are O(1), weakly correlated and bounded; `coefficients` turns `theta` into the
numbers of the published formula.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from t5scaling.errors import UserError


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-z), without overflow."""
    shrink = np.exp(-np.abs(z))
    return np.where(z < 0, shrink, 1.0) / (1 + shrink)


@dataclass(frozen=True)
class Frame:
    """Constants of the points that a law is fitted to; they make `theta` free of units.

    log_min: natural log of the smallest x; of a law of several sizes, of each of them, (k, 1).
    log_centre: mean of the natural logs of the distinct x; likewise.
    log_low, log_high: natural logs of the smallest and the largest value.
    """

    log_min: float | np.ndarray
    log_centre: float | np.ndarray
    log_low: float
    log_high: float

    @staticmethod
    def of(x: np.ndarray, y: np.ndarray) -> "Frame":
        """Of points x (N,) or (k, N), y (N,)."""
        log_y = np.log(y)
        rows = [np.unique(np.log(row)) for row in np.atleast_2d(x)]
        places = [row[0] for row in rows], [row.mean() for row in rows]
        if x.ndim == 1:
            log_min, log_centre = (float(place[0]) for place in places)
        else:
            log_min, log_centre = (np.array(place)[:, None] for place in places)
        return Frame(log_min, log_centre, float(log_y.min()), float(log_y.max()))


@dataclass(frozen=True)
class Coefficient:
    """One reported number of a law: its name, what it means, its unit."""

    name: str
    meaning: str
    unit: str


class Law:
    """What every law offers. `theta` has shape (..., P), `log_x` shape (N,), or (k, N) for a law
    of k sizes; all float64."""

    name: str  # on the command line and in fits.json
    title: str  # in tables and figures
    formula: str
    direction: int  # +1: rises with x, -1: falls with x
    of_loss: bool = False  # x is a loss, not a size
    sizes: tuple[str, ...] = ("D",)  # what x is, or the rows of it
    sources: tuple[str, ...] = ()  # of a law of several sources: their names
    identified: tuple[str, ...] = ()  # of the coefficients, those that data can tell apart; all: ()
    huber_delta: float  # default, on log values
    theta_names: tuple[str, ...]
    coefficient_table: tuple[Coefficient, ...]
    at_bound: Mapping[tuple[str, str], str]  # (theta name, "low" or "high") -> what it means

    def __reduce__(self) -> str | tuple[Any, ...]:
        """A law of the table LAWS is itself again in another process."""
        known = _of_the_table(self.name) is self
        return (_of_the_table, (self.name,)) if known else object.__reduce__(self)

    @property
    def num_parameters(self) -> int:
        return len(self.theta_names)

    def frame(self, x: np.ndarray, y: np.ndarray) -> Frame:
        """Of points x (N,) or (k, N), y (N,)."""
        return Frame.of(x, y)

    def main_size(self, x: np.ndarray) -> np.ndarray:
        """The size along which points are held out, (N,): of a law of two, the first."""
        return np.atleast_2d(x)[0]

    def check_sizes(self, x: np.ndarray, x_name: str) -> None:
        """Raises UserError for sizes that the law has no value at."""
        if not np.all(x > 0):
            raise UserError(
                f"{x_name} = {x[~(x > 0)][0]:g}: the {self.title} needs positive sizes; leave out "
                "a baseline without pretraining, it is not a point of the law"
            )

    def check_design(self, places: np.ndarray, besides: str = "") -> None:
        """Raises UserError if points at these places (k, n) cannot determine a law of several
        sizes. besides: what the message ends with."""
        counts, needed = [len(np.unique(row)) for row in places], self.num_parameters
        if places.shape[1] < needed or min(counts) < 2:
            seen = " and ".join(f"{n} of {s}" for n, s in zip(counts, self.sizes, strict=True))
            raise UserError(
                f"{places.shape[1]} distinct points to fit ({seen}): too few for the {self.title}, "
                f"which needs {needed}, at 2 or more of each size{besides}"
            )

    def log_value(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        """Natural log of the law's value, shape (..., N); -inf where the law predicts 0."""
        raise NotImplementedError

    def jacobian(self, theta: np.ndarray, log_x: np.ndarray, frame: Frame) -> np.ndarray:
        """Derivatives of `log_value` by `theta`, shape (..., N, P)."""
        raise NotImplementedError

    def bounds(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of `theta`, shape (P,) each."""
        raise NotImplementedError

    def starts(self, log_x: np.ndarray, log_y: np.ndarray, frame: Frame) -> np.ndarray:
        """A grid of starting points made from the data, shape (S, P)."""
        raise NotImplementedError

    def coefficients(self, theta: np.ndarray, frame: Frame) -> dict[str, np.ndarray]:
        """The published formula's numbers, each of shape (...); inf where one overflows."""
        raise NotImplementedError

    def floor(self, theta: np.ndarray, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """The value for unlimited D, shape (...), and its derivatives by `theta`, (..., P).

        Only of laws that have a floor as a term of their own.
        """
        raise NotImplementedError

    def published(self, x: np.ndarray, c: Mapping[str, np.ndarray]) -> np.ndarray:
        """`formula` with the coefficients `c`: overflows where they do; fits never call it."""
        raise NotImplementedError


def _of_the_table(name: str) -> Law | None:
    from t5scaling.analysis import laws  # which imports this module

    return laws.LAWS.get(name)
