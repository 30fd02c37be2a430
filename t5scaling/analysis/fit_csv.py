"""A law for somebody who has only a table: CSV or TSV, one row per measurement."""

import csv
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5scaling.analysis.compare import compare
from t5scaling.analysis.curve_fit import CurveFit, document, fit_one
from t5scaling.analysis.curves import Curve, Point, curves_of, read_results
from t5scaling.analysis.harvest import COLUMNS
from t5scaling.analysis.law import Law
from t5scaling.analysis.laws import LAWS, LOWER_IS_BETTER, law_of_metric
from t5scaling.analysis.tables import console, print_fit
from t5scaling.analysis.verdict import RESOLUTION
from t5scaling.errors import UserError, nearest

UNIT_GAP = 1e4  # between neighbouring sizes; more looks like two units


def fit_csv(
    path: str | Path,
    x: str | None = None,
    y: str | None = None,
    group: Sequence[str] = (),
    law: str | None = None,
    hold_out: int | None = None,
    as_json: bool = False,
    delta: float | None = None,
) -> list[CurveFit]:
    """Fits each curve of the table and prints laws, intervals, held-out errors and verdicts.

    Args:
      path: CSV, or TSV if the name ends in .tsv or the header holds tabs; the first row is the
        header.
      x, y: column names; default: the two columns of a table that has two. A study's results.csv
        needs neither: its curves are those of the study's report. Rows with x = 0 are a
        baseline without pretraining, shown but not fitted.
      group: columns that set curves apart.
      law: name of a law, or None: falling values get the power law with floor, rising ones the
        log-law; "all": every law for such values, and which of them predicts best.
      hold_out: how many of the largest sizes are held out; None: all but the 4 smallest.
      as_json: print the content of fits.json instead of tables.
      delta: Huber's threshold on log values; None: the law's own.

    Returns:
      One CurveFit per curve and law.

    Raises:
      UserError: no such file or column, text in a number column, an x that is not positive, or no
        curve that can be fitted.
    """
    if law is not None and law not in (*LAWS, "all"):
        raise UserError(f"law {law!r} is unknown{nearest(law, [*LAWS, 'all'])}")
    header, rows = _read(Path(path))
    if x is None and y is None and not group and tuple(header) == COLUMNS:
        curves = curves_of(read_results(path))
        if not curves:
            raise UserError(f"{path}: no result on the test split with pretrain_tokens > 0")
    else:
        curves = _curves(Path(path), header, rows, x, y, tuple(group))

    results, reasons = [], []
    for curve in curves:
        for one_law, reason in _laws(law, curve):
            lower = one_law.direction < 0
            if _known(curve.metric):
                lower = law_of_metric(curve.metric).direction < 0
            results.append(
                fit_one(curve, one_law, lower_is_better=lower, hold_out=hold_out, delta=delta)
            )
            reasons.append(reason)
    if all(result.fit is None for result in results):
        raise UserError(f"{path}: {results[0].note}")
    if as_json:
        print(json.dumps(document(results), indent=1, ensure_ascii=False))
        return results
    screen = console()
    for result, reason in zip(results, reasons, strict=True):
        print_fit(result, screen, reason)
    if law == "all":
        _print_comparison(curves, delta, screen)
    return results


def _read(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (line number, cells) of each row that is not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a CSV or TSV file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file; expected CSV or TSV") from None
    lines = text.splitlines()
    if not lines:
        raise UserError(f"{path}: empty; expected a header and rows")
    tabs = path.suffix.lower() == ".tsv" or ("\t" in lines[0] and "," not in lines[0])
    reader = csv.reader(lines, delimiter="\t" if tabs else ",")
    header = [name.strip() for name in next(reader)]
    rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UserError(
                f"{path}, row {reader.line_num}: {len(cells)} cells, the header has {len(header)}"
            )
        rows.append((reader.line_num, cells))
    return header, rows


def _curves(path, header, rows, x, y, group) -> list[Curve]:
    for name in (x, y, *group):
        if name is not None and name not in header:
            raise UserError(f"{path}: no column {name!r}{nearest(name, header)}")
    rest = [name for name in header if name not in group]
    if x is None or y is None:
        free = [name for name in rest if name not in (x, y)]
        if len(rest) != 2:
            raise UserError(
                f"{path}: {len(rest)} columns ({', '.join(rest[:8])}): say which is x and which is "
                "y (and which set curves apart)"
            )
        x = x or free.pop(0)
        y = y or free.pop(0)
    points: dict[tuple, list[Point]] = {}
    baselines: dict[tuple, list[Point]] = {}
    seen: dict[tuple, int] = {}
    for line, cells in rows:
        cell = dict(zip(header, cells, strict=True))
        size = _float(path, line, x, cell[x])
        if size < 0:
            raise UserError(
                f"{path}, row {line}: {x} = {cell[x].strip()}: sizes must be positive, or 0 for a "
                "baseline without pretraining"
            )
        key = tuple(cell[name] for name in group)
        point = Point(size, _float(path, line, y, cell[y]))
        (points if size else baselines).setdefault(key, []).append(point)
        first = seen.setdefault((*cells,), line)
        if first != line:
            _warn(f"{path}, row {line} repeats row {first}: both count, as two measurements")
    if not points:
        raise UserError(f"{path}: no rows with {x} > 0 under the header")
    curves = [
        Curve(
            key=dict(zip(group, key, strict=True)), metric=y, x_name=x, points=tuple(members),
            baseline=tuple(baselines.get(key, ())),
        )
        for key, members in points.items()
    ]  # fmt: skip
    for curve in curves:
        _warn_of_mixed_units(path, curve)
    return curves


def _warn_of_mixed_units(path: Path, curve: Curve) -> None:
    """Sizes of one study lie within a few powers of ten; a gap of four is a change of unit."""
    sizes = sorted({point.x for point in curve.points})
    for small, large in itertools.pairwise(sizes):
        if large / small >= UNIT_GAP:
            _warn(
                f"{path}: {curve.x_name} goes from {small:g} to {large:g} without a point between: "
                "are some given in millions or billions?"
            )


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _float(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, row {line}: {column} = {text.strip()!r} is not a number")
    return value


def _laws(name: str | None, curve: Curve) -> list[tuple[Law, str]]:
    """(law, why) for a curve."""
    if name == "all":
        return [(law, "") for law in _families(_direction(curve))]
    if name is not None:
        return [(LAWS[name], "")]
    if "pretrain_data" in curve.key:
        return [(law_of_metric(curve.metric), "")]
    if _direction(curve) < 0:
        return [(LAWS["power"], f"chosen because {curve.metric} falls as {curve.x_name} grows")]
    return [(LAWS["log"], f"chosen because {curve.metric} rises with {curve.x_name}")]


def _families(direction: int) -> list[Law]:
    """The laws of sizes that go this way."""
    return [
        law
        for law in LAWS.values()
        if law.direction == direction and law.sizes == ("D",) and not law.of_loss
    ]


def _direction(curve: Curve) -> int:
    """-1 for values that fall with x, else 1."""
    if _known(curve.metric):
        return law_of_metric(curve.metric).direction
    log_x = np.log([p.x for p in curve.points])
    y = np.array([p.value for p in curve.points])
    return -1 if (log_x - log_x.mean()) @ y < 0 else 1


def _known(metric: str) -> bool:
    return metric in LOWER_IS_BETTER or metric in RESOLUTION


def _print_comparison(curves: Sequence[Curve], delta: float | None, screen) -> None:
    """One sentence for the rising and one for the falling curves of each metric."""
    groups: dict[tuple, list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.metric, _direction(curve)), []).append(curve)
    for (metric, direction), members in groups.items():
        points = [np.array([(p.x, p.value) for p in curve.points]).T for curve in members]
        most = max(len(np.unique(x)) for x, _ in points)
        laws = [law for law in _families(direction) if law.num_parameters + 2 <= most]
        if len(laws) > 1 and all((values > 0).all() for values in points):
            told = compare(points, laws, delta=delta).sentence
            screen.print(f"{metric}: each size predicted from those below it: [bold]{told}[/bold]")
