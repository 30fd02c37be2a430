"""Laws in a notebook or a program: a table or two arrays in, a fitted law out.

    from t5scaling.analysis import fit

    law = fit(frame, x="tokens", y="loss")
    law.coefficients["alpha"]        # Estimate(value=..., low=..., high=...)
    law.predict(1e10), law.interval(1e10)
    law.plot()

The calls are those of the command line (`run.py fit`, `run.py predict`): the same loader, the same
fits, the same words. docs/python.md has an example that runs. Mistakes raise UserError, with the
one line that the command line would print.
"""

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console

from t5scaling.analysis.conclusions.choice_of_law import comparisons
from t5scaling.analysis.conclusions.curve_fit import CurveFit, fit_one
from t5scaling.analysis.conclusions.frontier import FLOPS, Estimate, Optimum, frontier
from t5scaling.analysis.conclusions.named_law import check_name, laws_of, lower_is_better
from t5scaling.analysis.fitting.compare import Comparison
from t5scaling.analysis.fitting.fit import Fit
from t5scaling.analysis.presentation.terminal import coefficients, print_comparison, print_fit
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.load import Columns, curves_of_frame, load_curves
from t5scaling.errors import UserError

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


class FittedLaw:
    """A law that was fitted to one curve; a notebook shows what the terminal prints.

    curve_fit, fit: all that is known of it, for whoever needs more than the names below.
    """

    def __init__(self, curve_fit: CurveFit, because: str = ""):
        """because: why this law was chosen. Raises UserError if it could not be fitted."""
        if curve_fit.fit is None:
            raise UserError(curve_fit.note)
        self.curve_fit = curve_fit
        self.fit: Fit = curve_fit.fit
        self.because = because

    @property
    def name(self) -> str:
        """Of the law: what `law=` takes."""
        return self.fit.law.name

    @property
    def formula(self) -> str:
        """With the coefficients' names."""
        return self.fit.law.formula

    @property
    def coefficients(self) -> dict[str, Estimate]:
        """Name -> (value, low, high), the ends being those of the interval."""
        return {name: Estimate(*ends) for name, ends in self.fit.coefficients.items()}

    @property
    def verdict(self) -> str:
        """The curve's shape in a word, such as "predictable"; with the reason after it."""
        verdict = self.curve_fit.verdict
        return f"{verdict.word}: {verdict.reason}"

    def predict(self, x: ArrayLike) -> Any:
        """The law's value at x, in the shape of x; nan where a formula has none.

        Args:
          x: a size or an array of sizes, in the unit of the fitted ones; for a law of two sizes a
            pair of them.

        Raises:
          UserError: x that is no such thing, or not positive.
        """
        places, shape = self._places(x)
        return _shaped(self.fit.predict(places), shape)

    def interval(self, x: ArrayLike) -> tuple[Any, Any]:
        """Lower and upper end of the interval for a new measurement at x; see `predict`."""
        places, shape = self._places(x)
        low, high = self.fit.band(places)
        return _shaped(low, shape), _shaped(high, shape)

    def frontier(self, compute: float, *, flops: float = FLOPS) -> Optimum:
        """The best split of a budget C = flops * N * D between a model's size and its data.

        Raises:
          UserError: see `conclusions.frontier.frontier`.
        """
        return frontier(self.fit, [compute], flops=flops)[0]

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws points, law and interval; of a law of two sizes lines of equal value, and of
        one of N and D the best split of each budget. axes: to draw on; None: new ones of pyplot."""
        from t5scaling.analysis.presentation import one_law

        if axes is None:
            from matplotlib import pyplot

            axes = pyplot.subplots()[1]
        curve = self.curve_fit.curve
        if curve.x2_name is None:
            one_law.draw_law(axes, self.curve_fit, self.fit)
        else:
            one_law.draw_mesh(axes, self.fit, (curve.x_name, curve.x2_name), curve.metric)
            one_law.draw_frontier(axes, self.fit)
            axes.set_title(self.formula, parse_math=False)
        return axes

    def _places(self, x: ArrayLike) -> tuple[np.ndarray, tuple[int, ...]]:
        """x as a fit takes it, (N,) or (2, N), and the shape of the answer."""
        sizes = self.fit.law.sizes
        try:
            given = np.asarray(x, float)
        except (TypeError, ValueError):
            raise UserError(f"x = {x!r}: expected numbers") from None
        if len(sizes) > 1:
            if given.ndim == 0 or len(given) != len(sizes):
                raise UserError(
                    f"the {self.fit.law.title} is a law of {' and '.join(sizes)}: expected x as "
                    f"{len(sizes)} sizes, or {len(sizes)} arrays of them"
                )
            shape = given.shape[1:]
            given = given.reshape(len(sizes), -1)
        else:
            shape, given = given.shape, given.reshape(-1)
        if not np.all((given > 0) & np.isfinite(given)):
            raise UserError(f"x = {x!r}: sizes must be positive")
        return given, shape

    def __str__(self) -> str:
        return _recorded(self).export_text().rstrip()

    def __repr__(self) -> str:
        return f"<{self.fit.law.title} {self.formula}: {coefficients(self.fit)}>"

    def _repr_html_(self) -> str:
        return _as_html(_recorded(self))


@dataclass(frozen=True, repr=False)
class ComparedLaws:
    """Which family of laws predicts best what it had not seen."""

    comparison: Comparison

    @property
    def winner(self) -> str | None:
        """Its name; None if the points cannot tell it from the next."""
        return self.comparison.winner.name if self.comparison.winner else None

    @property
    def sentence(self) -> str:
        return self.comparison.sentence

    @property
    def errors(self) -> dict[str, float]:
        """Name of each law -> its root mean square error of log values, the smallest first."""
        return {family.law.name: family.error for family in self.comparison.families}

    def __repr__(self) -> str:
        return f"<{self.sentence}>"

    def __str__(self) -> str:
        return _recorded(self).export_text().rstrip()

    def _repr_html_(self) -> str:
        return _as_html(_recorded(self))


@overload
def fit(
    table: "pandas.DataFrame | str | os.PathLike | None" = None,
    *,
    x: "str | Sequence[str] | ArrayLike | None" = None,
    y: "str | ArrayLike | None" = None,
    group: None = None,
    law: str | None = None,
    bounds: str | None = None,
    error: str | None = None,
    seed: str | None = None,
    **options: Any,
) -> FittedLaw: ...


@overload
def fit(
    table: "pandas.DataFrame | str | os.PathLike | None" = None,
    *,
    x: "str | Sequence[str] | ArrayLike | None" = None,
    y: "str | ArrayLike | None" = None,
    group: str | Sequence[str],
    law: str | None = None,
    bounds: str | None = None,
    error: str | None = None,
    seed: str | None = None,
    **options: Any,
) -> dict[str, FittedLaw]: ...


def fit(
    table: "pandas.DataFrame | str | os.PathLike | None" = None,
    *,
    x: "str | Sequence[str] | ArrayLike | None" = None,
    y: "str | ArrayLike | None" = None,
    group: str | Sequence[str] | None = None,
    law: str | None = None,
    bounds: str | None = None,
    error: str | None = None,
    seed: str | None = None,
    **options: Any,
) -> FittedLaw | dict[str, FittedLaw]:
    """Fits a law to a curve, or to several.

    Args:
      table: a DataFrame or the path of a table; None: x and y are arrays.
      x: the column of sizes, or two for a law of two; or an array (N,), or (2, N).
      y: the column of values, or an array (N,).
      group: columns that set curves apart. The answer is then a dictionary: label -> law.
      law: one of LAWS, or a formula such as "E + A/tokens**alpha"; None: by the values' direction,
        as `run.py fit` chooses.
      bounds: of a formula's coefficients, "alpha=0:2,E=0:".
      error, seed: columns of standard errors of y, and of seeds.
      options: hold_out (how many of the largest sizes are not fitted, but predicted), interval,
        delta, residual and worse_counts of `fitting.fit.fit_curve`.

    Raises:
      UserError: no such column or law, text among numbers, too few points. Of several curves those
        that cannot be fitted are left out with a warning, unless that is all of them.
    """
    check_name(law, bounds)
    if law == "all":
        raise UserError("fit takes one law; compare(...) says which predicts best")
    curves = _curves(table, x, y, group, error, seed)
    found, left_out = {}, []
    for curve, chosen, because in laws_of(law, curves, bounds=bounds):
        curve_fit = fit_one(
            curve, chosen, lower_is_better=lower_is_better(curve, chosen), **options
        )
        if curve_fit.fit is None:
            left_out.append((curve.label, curve_fit.note))
        else:
            found[curve.label] = FittedLaw(curve_fit, because)
    if not found:
        raise UserError(left_out[0][1])
    for label, note in left_out:
        warnings.warn(f"{label} is left out: {note}", stacklevel=2)
    return found if group is not None else next(iter(found.values()))


def compare(
    table: "pandas.DataFrame | str | os.PathLike | None" = None,
    *,
    x: "str | Sequence[str] | ArrayLike | None" = None,
    y: "str | ArrayLike | None" = None,
    group: str | Sequence[str] | None = None,
    protocol: str = "rollout",
) -> ComparedLaws:
    """Compares the families of laws for such values, over all curves, by their errors on sizes that
    they were not fitted to. Arguments as for `fit`; protocol: one of `fitting.protocol.PROTOCOLS`.

    Raises:
      UserError: as `fit`; curves too short for a comparison, or that other laws are for than for
        the rest, as some rise and others fall.
    """
    found, left_out = comparisons(_curves(table, x, y, group, None, None), protocol=protocol)
    if left_out:
        raise UserError(left_out[0])
    if len(found) > 1:
        labels = "; ".join(one.label for one in found)
        raise UserError(f"not all curves can be compared by the same laws ({labels}): compare some")
    return ComparedLaws(found[0].comparison)


def _curves(
    table: Any, x: Any, y: Any, group: Any, error: str | None, seed: str | None
) -> list[Curve]:
    """Of a table in a file or in memory, or of arrays; several only with group columns."""
    import pandas

    names = (group,) if isinstance(group, str) else tuple(group or ())
    if table is None:
        if x is None or y is None or isinstance(x, str) or isinstance(y, str) or names:
            raise UserError(
                "expected a table (a DataFrame or a path) with x and y as names of its columns, "
                "or x and y as arrays without a table"
            )
        table, x, y = _of_arrays(x, y)
    columns = Columns((x,) if isinstance(x, str) else tuple(x or ()), y, names, error, seed)
    if isinstance(table, pandas.DataFrame):
        curves = curves_of_frame(table, columns)
    elif isinstance(table, str | os.PathLike):
        curves = load_curves(table, columns)
    else:
        raise UserError(
            f"a table of type {type(table).__name__}: expected a pandas DataFrame or a path"
        )
    if not names and len(curves) > 1:
        raise UserError(
            f"{table}: {len(curves)} curves; a study's results.csv is a table, of which `group` "
            "names the columns that set curves apart"
        )
    return curves


def _of_arrays(x: Any, y: Any) -> "tuple[pandas.DataFrame, tuple[str, ...], str]":
    """As a table; columns are called as the series are, or x and y."""
    import pandas

    parts = list(x) if np.ndim(x) == 2 else [x]
    plain = [f"x{i + 1}" for i in range(len(parts))] if len(parts) > 1 else ["x"]
    names = [str(getattr(part, "name", None) or name)
             for part, name in zip(parts, plain, strict=True)]  # fmt: skip
    y_name = str(getattr(y, "name", None) or "y")
    if len({*names, y_name}) <= len(names):
        raise UserError(f"x and y are both called {y_name!r}: series need different names")
    try:
        frame = pandas.DataFrame(
            {name: np.asarray(values) for name, values in zip([*names, y_name], [*parts, y],
                                                              strict=True)}
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"x and y make no table: {error}") from None
    return frame, tuple(names), y_name


def _shaped(values: np.ndarray, shape: tuple[int, ...]) -> Any:
    return values.reshape(shape) if shape else float(values[0])


def _recorded(result: FittedLaw | ComparedLaws) -> Console:
    """A terminal of the house's width that printed the result."""
    screen = Console(
        record=True, file=io.StringIO(), width=110, highlight=False, markup=False, emoji=False
    )
    if isinstance(result, FittedLaw):
        print_fit(result.curve_fit, screen, result.because)
    else:
        print_comparison("comparison", result.comparison, screen)
    return screen


def _as_html(screen: Console) -> str:
    """What was printed, escaped by rich."""
    return screen.export_html(
        inline_styles=True, code_format='<pre style="line-height:1.3">{code}</pre>'
    )
