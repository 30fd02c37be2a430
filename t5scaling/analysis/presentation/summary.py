"""Many fitted curves on one screen: a line for each curve, or for each value of a column."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.metrics import metric_name
from t5scaling.analysis.presentation.terminal import coefficients
from t5scaling.analysis.wording import number
from t5scaling.errors import UserError, nearest

LINES = 30  # of curves or values; the others are counted
NOTES = 3


def print_summary(
    curve_fits: Sequence[CurveFit], screen: Console, group_by: Sequence[str] = ()
) -> None:
    """What became of the curves, then a line for each, or for each value of the columns `group_by`.

    Raises UserError for a column that does not set curves apart.
    """
    groups = _grouped(curve_fits, group_by) if group_by else []
    several = len({curve_fit.curve.metric for curve_fit in curve_fits}) > 1
    screen.print(f"{counted(len(curve_fits), 'fit')}: {_words(curve_fits)}")
    for line in _oddities(curve_fits):
        screen.print(line)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    first = ", ".join(group_by) or "curve"
    for name in (first, *(["curves"] if group_by else []), "law", "coefficients", "error",
                 "verdict"):  # fmt: skip
        numeric = name in ("curves", "error")
        table.add_column(
            name, justify="right" if numeric else "left", no_wrap=True, overflow="ellipsis"
        )
    if group_by:
        lines = [_line_of_group(name, members) for name, members in groups]
    else:
        lines = [_line_of_curve(curve_fit, several) for curve_fit in curve_fits]
    for line in lines[:LINES]:
        table.add_row(*line)
    screen.print(table)
    if len(lines) > LINES:
        screen.print(f"... and {len(lines) - LINES:,} more")
    columns = list(dict.fromkeys(name for f in curve_fits for name in f.curve.place.key))
    by = f"; --group_by={','.join(columns)}: a line for each value" if columns else ""
    screen.print(
        "The error is the root mean square error of log values, on sizes that the law was not "
        f"fitted to. --all: every curve with its intervals{by}; --json: all numbers",
        soft_wrap=True,
    )


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _words(curve_fits: Sequence[CurveFit]) -> str:
    """ "150 predictable, 40 trendless, 10 not fitted": the most frequent first."""
    words = Counter(_word(curve_fit) for curve_fit in curve_fits)
    return ", ".join(f"{count:,} {word}" for word, count in words.most_common())


def _word(curve_fit: CurveFit) -> str:
    if curve_fit.fit is None and not curve_fit.verdict.shape:
        return "not fitted"
    return curve_fit.verdict.word


def _oddities(curve_fits: Sequence[CurveFit]) -> list[str]:
    """What one should know of fits before using them, counted."""
    notes = Counter(curve_fit.note for curve_fit in curve_fits if curve_fit.note)
    said = [f"{count:,} not fitted: {note}" for note, count in notes.most_common(NOTES)]
    rest = len(notes) - NOTES
    if rest > 0:
        left = sum(count for _, count in notes.most_common()[NOTES:])
        said.append(f"{left:,} not fitted for {rest:,} other reasons")
    fits = [curve_fit.fit for curve_fit in curve_fits if curve_fit.fit]
    loose = sum(not fit.converged for fit in fits)
    if loose:
        said.append(f"{loose:,} did not converge")
    bounds = Counter(note for fit in fits for note in fit.at_bound)
    said += [f"{count:,} where {note}" for note, count in bounds.most_common(NOTES)]
    return said


def error_of(curve_fit: CurveFit) -> float | None:
    """Root mean square of the log errors on what the law was not fitted to; None if unchecked."""
    return curve_fit.check.error


def _line_of_curve(curve_fit: CurveFit, with_metric: bool) -> list[str]:
    curve = curve_fit.curve
    parts = [metric_name(curve.metric)] if with_metric or not curve.place.label else []
    name = " · ".join([*parts, *filter(None, [curve.place.label])])
    if curve_fit.fit is None:
        return [name, curve_fit.law.name, "–", "–", _word(curve_fit)]
    return [name, *_law_of([curve_fit]), _word(curve_fit)]


def _line_of_group(name: str, members: Sequence[CurveFit]) -> list[str]:
    return [name, f"{len(members):,}", *_law_of(members), _words(members)]


def _law_of(members: Sequence[CurveFit]) -> list[str]:
    """Law, coefficients and error: medians, of curves that share a law."""
    fits = [member.fit for member in members if member.fit]
    laws = sorted({fit.law.name for fit in fits})
    errors = [e for e in map(error_of, members) if e is not None]
    error = number(median(errors)) if errors else "–"
    if len(laws) != 1:
        return [", ".join(laws) or "–", "–", error]
    if len(fits) == 1:
        return [laws[0], coefficients(fits[0]), error]
    values = [fit.coefficients for fit in fits]
    medians = ", ".join(
        f"{name} {number(median(v[name][0] for v in values))}" for name in values[0]
    )
    return [laws[0], f"medians: {medians}", error]


def _grouped(
    curve_fits: Sequence[CurveFit], columns: Sequence[str]
) -> list[tuple[str, list[CurveFit]]]:
    """(the values of the columns in words, their curves), in the table's order."""
    groups: dict[tuple, list[CurveFit]] = {}
    for curve_fit in curve_fits:
        key = {**curve_fit.curve.place.key, "metric": curve_fit.curve.metric}
        for column in columns:
            if column not in key:
                raise UserError(
                    f"--group_by={column}: no column that sets curves apart{nearest(column, key)}"
                )
        groups.setdefault(tuple(key[column] for column in columns), []).append(curve_fit)
    return [(" · ".join(map(str, values)), members) for values, members in groups.items()]
