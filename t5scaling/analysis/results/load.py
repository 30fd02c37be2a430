"""From what a user has to curves. Nothing is written: a study's directory stays as it is.

- A table (`tables`): one row per measurement, with columns for x and y.
- A study of ours: its directory, or its results.csv; the curves are those of its report.
- A directory of T5X runs (`t5x_runs`): finetunings by the pretraining steps of the checkpoint they
  started from, each at its last measurement; or, where none was pretrained, metrics by step.

What is odd about a table without being wrong is a warning, one for each kind, however many rows are
of that kind.
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t5scaling import storage
from t5scaling.analysis.results import cells
from t5scaling.analysis.results.cells import Cell
from t5scaling.analysis.results.curves import Curve, Point, curves_of, parse_results, read_results
from t5scaling.analysis.results.harvest import COLUMNS, tabulate
from t5scaling.analysis.results.places import Place
from t5scaling.analysis.results.tables import (
    STANDARD_INPUT,
    Table,
    read_table,
    table_of_frame,
)
from t5scaling.errors import UserError, nearest
from t5scaling.records import RESULTS

if TYPE_CHECKING:
    import pandas

UNIT_GAP = 1e4  # between neighbouring sizes; more looks like two units


# Words of a column that splits the points. Of truth values the column's name says what is true.
_FITTED = ("train", "training", "fit", "fitted")
_HELD_OUT = (
    "test", "held_out", "held out", "held-out", "holdout", "validation", "valid", "val", "dev",
    "eval", "check",
)  # fmt: skip
_TRUTH = {"true": True, "yes": True, "1": True, "1.0": True,
          "false": False, "no": False, "0": False, "0.0": False}  # fmt: skip

REPEATS = (
    2.0  # rows for each place of a curve; as many or more look like curves that were not set apart
)
MOST_GROUPS = 3  # columns that a warning names for that

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Columns:
    """Names in a table, and how to read it. Of T5X runs and studies, y is a metric's name.

    x may be two names for a law of two sizes. sources: in place of x, tokens of each source, the
    target's first; unique: unique tokens of each. group: columns that set curves apart. error: of
    standard errors of y. split: of what is fitted ("train" or "fit") and what is held out ("test").
    decimal: the decimal mark, where the cells do not say it.
    """

    x: tuple[str, ...] = ()
    y: str | None = None
    group: tuple[str, ...] = ()
    error: str | None = None
    seed: str | None = None
    split: str | None = None
    decimal: str | None = None
    sources: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()


EVERYTHING = Columns()


def named(
    x: str | None,
    y: str | None,
    group: str | None,
    error: str | None,
    seed: str | None,
    *,
    split: str | None = None,
    decimal: str | None = None,
    sources: str | None = None,
    unique: str | None = None,
) -> Columns:
    """As the command line names them: x, group, sources and unique by commas.

    Raises UserError for a decimal mark that is neither a dot nor a comma.
    """
    several_x, groups, parts, once = (
        tuple(name for name in (text or "").split(",") if name)
        for text in (x, group, sources, unique)
    )
    if decimal not in (None, cells.POINT, cells.COMMA):
        raise UserError(f"--decimal={decimal}: expected . or ,")
    return Columns(several_x, y, groups, error, seed, split, decimal, parts, once)


def warn(text: str) -> None:
    """On stderr, so that what is printed can be read by a program."""
    print(f"warning: {text}", file=sys.stderr)


def warn_and_keep(kept: list[str]) -> Warn:
    """A `warn` that also notes what it says, for JSON."""

    def both(text: str) -> None:
        kept.append(text)
        warn(text)

    return both


def load_curves(
    path: str | os.PathLike, columns: Columns = EVERYTHING, warn: Warn = warn
) -> list[Curve]:
    """The curves of a file or directory; "-" is standard input.

    Points that `columns.split` holds out are marked so. warn: takes each sentence on what is odd.

    Raises:
      UserError: no such file or column, text in a number column, an x that is negative, or nothing
        to make curves of.
    """
    if os.fspath(path) == STANDARD_INPUT:
        return _of_table(read_table(path), columns, warn)
    path = storage.path(path)
    if path.is_dir():
        return _of_directory(path, columns)
    table = read_table(path)
    if tuple(table.header) == COLUMNS and not columns.x and columns.y in (None, "value"):
        return _of_study(path, parse_results(table.text, path))
    return _of_table(table, columns, warn)


def curves_of_frame(
    frame: "pandas.DataFrame", columns: Columns = EVERYTHING, warn: Warn = warn
) -> list[Curve]:
    """The curves of a table in memory; rows are counted from 1. Raises as `load_curves`."""
    return _of_table(table_of_frame(frame), columns, warn)


def _of_directory(path: storage.AnyPath, columns: Columns) -> list[Curve]:
    from t5scaling.analysis.results import t5x_runs

    if columns != Columns(y=columns.y):
        raise UserError(
            f"{path} is a directory: --x, --sources, --group, --error, --seed, --split and "
            "--decimal are of the columns of a table; of runs only --y is chosen, a metric"
        )
    if (path / "runs").is_dir():
        table, _ = tabulate(path)  # what is on disk may be older than the runs
        curves = _of_study(path / RESULTS, parse_results(table, path / RESULTS))
    elif (path / RESULTS).exists():
        curves = _of_study(path / RESULTS, read_results(path / RESULTS))
    elif t5x_runs.is_t5x_directory(path):
        curves = _of_t5x(path, t5x_runs.read_t5x_runs(path))
    else:
        raise UserError(
            f"{path}: neither a study (runs/ or results.csv) nor T5X runs (inference_eval/, "
            "training_eval/ or train/ with their metrics)"
        )
    if columns.y is None:
        return curves
    wanted = [curve for curve in curves if curve.metric == columns.y]
    if not wanted:
        names = sorted({curve.metric for curve in curves})
        raise UserError(f"{path}: no metric {columns.y!r}{nearest(columns.y, names)}")
    return wanted


def _of_study(results: storage.AnyPath, rows: Sequence[dict[str, Any]]) -> list[Curve]:
    curves = curves_of(rows)
    if not curves:
        raise UserError(f"{results}: no result on the test split with pretrain_tokens > 0")
    return curves


def _of_t5x(path: storage.AnyPath, rows: Sequence[dict[str, Any]]) -> list[Curve]:
    rows = [row for row in rows if not row["metric"].startswith("timing/")]
    pretrained = any(row["pretrain_steps"] for row in rows)
    evaluated = [row for row in rows if row["source"] != "train"]
    if pretrained and evaluated:
        last: dict[tuple, dict] = {}
        for row in evaluated:  # sorted by step
            last[row["run"], row["task"], row["metric"], row["source"]] = row
        x_name, rows = "pretrain_steps", list(last.values())
    else:
        x_name = "step"
    groups: dict[tuple, list[Point]] = {}
    baselines: dict[tuple, list[Point]] = {}
    for row in rows:
        place = row["pretrain_run"] if pretrained else row["run"]
        key = (row["task"], row["source"], row["metric"])
        point = Point(float(row[x_name]), row["value"], step=row["step"], run=row["run"])
        if point.x:
            groups.setdefault((place, *key), []).append(point)
        elif pretrained:
            baselines.setdefault(key, []).append(point)
    names = ("pretrain_run" if pretrained else "run", "task", "source")
    curves = [
        Curve(
            place=Place(columns=tuple((n, v) for n, v in zip(names, key, strict=False) if v)),
            metric=key[3],
            x_name=x_name, points=tuple(points), baseline=tuple(baselines.get(key[1:], ())),
        )
        for key, points in groups.items()
    ]  # fmt: skip
    if not curves:
        raise UserError(f"{path}: the T5X runs hold no measurement after step 0")
    return curves


def _of_table(table: Table, columns: Columns, warn: Warn) -> list[Curve]:
    xs, y = _sizes_and_value(table, columns)
    sources = columns.sources
    numbers, rows = _numbers(table, columns, xs, y, warn)
    at = {name: i for i, name in enumerate(table.header)}
    points: dict[tuple, list[Point]] = {}
    baselines: dict[tuple, list[Point]] = {}
    for i, (row, cells_of_row) in enumerate(rows):
        sizes = [numbers[x][i] for x in xs]
        for x, size in zip(xs, sizes, strict=True):
            if size < 0 or (size == 0 and x != xs[0] and not sources):
                raise UserError(
                    f"{table.name}, row {row}: {x} = {cells_of_row[at[x]]}: sizes must be "
                    "positive, or 0 for a baseline without pretraining"
                )
        key = tuple(_text(cells_of_row[at[name]]) for name in columns.group)
        split = cells_of_row[at[columns.split]] if columns.split else None
        total = sum(sizes[: len(sources)]) if sources else sizes[0]
        point = Point(
            total, numbers[y][i],
            seed=_text(cells_of_row[at[columns.seed]]) or None if columns.seed else None,
            x2=sizes[1] if len(sizes) == 2 and not sources else None,
            parts=tuple(sizes) if sources else (),
            error=numbers[columns.error][i] if columns.error else None,
            held_out=split is not None and _is_held_out(table, row, columns.split or "", split),
        )  # fmt: skip
        (points if total else baselines).setdefault(key, []).append(point)
    if not points:
        raise UserError(f"{table.name}: no rows with {xs[0]} > 0 and a value of {y}")
    curves = [
        Curve(
            place=Place(columns=tuple(zip(columns.group, key, strict=True))), metric=y,
            x_name=" + ".join(sources) or xs[0],
            x2_name=xs[1] if len(xs) == 2 and not sources else None, points=tuple(members),
            baseline=tuple(baselines.get(key, ())), sources=sources,
        )
        for key, members in points.items()
    ]  # fmt: skip
    _warn_of_repeated_rows(table, rows, warn)
    _warn_of_mixed_units(table, curves, warn)
    _warn_of_missing_group(table, rows, columns, xs, y, warn)
    return curves


def _sizes_and_value(table: Table, columns: Columns) -> tuple[tuple[str, ...], str]:
    """The columns of x and y: those that are named, or what the others leave."""
    header = table.header
    named = [
        name
        for name in (
            *columns.x, *columns.sources, *columns.unique, columns.y, *columns.group,
            columns.error, columns.seed, columns.split,
        )
        if name is not None
    ]  # fmt: skip
    for name in named:
        if name not in header:
            _check_header(table, header)
            raise UserError(f"{table.name}: no column {name!r}{nearest(name, header)}")
    if len(columns.x) > 2:
        raise UserError(f"x = {','.join(columns.x)}: expected one column, or two by a comma")
    _check_sources(table, columns)
    xs, y = columns.x or (*columns.sources, *columns.unique), columns.y
    if not xs or y is None:
        # A column without a name numbers the rows, as pandas writes it.
        free = [name for name in header if name and name not in named]
        if len(free) + bool(xs) + (y is not None) != 2:
            _check_header(table, header)
            rest = [name for name in header if name and name not in columns.group]
            raise UserError(
                f"{table.name}: {len(rest)} columns ({', '.join(rest[:8])}): say which is x and "
                "which is y (and which set curves apart)"
            )
        xs = xs or (free.pop(0),)
        y = y or free.pop(0)
    _check_header(table, [*xs, y])
    if not table.rows:
        raise UserError(f"{table.name}: no rows under the header")
    return xs, y


def _check_sources(table: Table, columns: Columns) -> None:
    if columns.sources and columns.x:
        raise UserError(
            f"{table.name}: --x and --sources both say what the sizes are: give one of them"
        )
    if len(set(columns.sources)) < max(len(columns.sources), 2 if columns.sources else 0):
        raise UserError(
            f"--sources={','.join(columns.sources)}: expected two or more different columns"
        )
    if columns.unique and len(columns.unique) != len(columns.sources):
        raise UserError(
            f"--unique={','.join(columns.unique)}: expected a column for each of --sources="
            f"{','.join(columns.sources)}"
        )


def _check_header(table: Table, names: Sequence[str]) -> None:
    """Raises UserError if the names are numbers: of a table whose first row is one of values."""
    if any(cells.is_number(name) for name in names):
        shown = ", ".join(table.header[:6])
        raise UserError(
            f"{table.name}: the header is missing: the first row is {shown}; put the names of the "
            "columns above it, such as tokens,loss"
        )


def _numbers(
    table: Table, columns: Columns, xs: Sequence[str], y: str, warn: Warn
) -> tuple[dict[str, list[float]], list[tuple[int, list[Cell]]]]:
    """The columns of numbers, and the rows that have all of them; of the others it warns."""
    names = [*xs, y, *([columns.error] if columns.error else [])]
    at = {name: i for i, name in enumerate(table.header)}
    needed = [*names, *([columns.split] if columns.split else [])]
    rows, missing = [], Counter()
    for row in table.rows:
        absent = next((name for name in needed if cells.is_missing(row[1][at[name]])), None)
        if absent is None:
            rows.append(row)
        else:
            missing[absent] += 1
    for name, count in missing.items():
        warn(f"{table.name}: {_rows(count)} left out: no value of {name}")
    numbers = cells.numbers_of(
        table.name,
        {name: [(row, cells_of_row[at[name]]) for row, cells_of_row in rows] for name in names},
        sizes=xs, decimal=columns.decimal,
    )  # fmt: skip
    return numbers, rows


def _rows(count: int) -> str:
    return f"{count:,} {'row' if count == 1 else 'rows'}"


def _text(cell: Cell) -> str:
    return cell.strip() if isinstance(cell, str) else str(cell)


def _is_held_out(table: Table, row: int, column: str, cell: Cell) -> bool:
    """What a cell of the split's column says. Raises UserError if that is not clear."""
    word = _text(cell).lower()
    if word in _FITTED or word in _HELD_OUT:
        return word in _HELD_OUT
    where = f"{table.name}, row {row}: {column} = {_text(cell)}"
    if word not in _TRUTH:
        raise UserError(f"{where}: expected train or test, fit or held_out, true or false")
    name = column.lower()
    fitted, held_out = (any(w in name for w in words) for words in (_FITTED, _HELD_OUT))
    if fitted == held_out:
        raise UserError(
            f"{where} does not say whether true means fitted: call the column train or test"
        )
    return _TRUTH[word] == held_out


def _warn_of_repeated_rows(
    table: Table, rows: Sequence[tuple[int, list[Cell]]], warn: Warn
) -> None:
    seen: dict[tuple, int] = {}
    repeats = []
    for row, cells_of_row in rows:
        first = seen.setdefault(tuple(cells_of_row), row)
        if first != row:
            repeats.append((row, first))
    if len(repeats) == 1:
        ((row, first),) = repeats
        warn(f"{table.name}, row {row} repeats row {first}: both count, as two measurements")
    elif repeats:
        row, first = repeats[0]
        warn(
            f"{table.name}: {len(repeats):,} rows repeat others (the first: row {row} repeats row "
            f"{first}): all count, as further measurements"
        )


def _warn_of_mixed_units(table: Table, curves: Sequence[Curve], warn: Warn) -> None:
    """Sizes of one study lie within a few powers of ten; a gap of four is a change of unit."""
    gaps = []
    for curve in curves:
        sizes = sorted({point.x for point in curve.points})
        gaps += [(small, large) for small, large in itertools.pairwise(sizes)
                 if large / small >= UNIT_GAP]  # fmt: skip
    if gaps:
        small, large = gaps[0]
        more = f" (and {len(gaps) - 1:,} more such gaps)" if len(gaps) > 1 else ""
        warn(
            f"{table.name}: {curves[0].x_name} goes from {small:g} to {large:g} without a point "
            f"between{more}: are some given in millions or billions?"
        )


def _warn_of_missing_group(
    table: Table,
    rows: Sequence[tuple[int, list[Cell]]],
    columns: Columns,
    xs: Sequence[str],
    y: str,
    warn: Warn,
) -> None:
    """Of an x that is repeated many times while other columns vary: curves that belong apart.

    A column can set them apart if each of its values has several sizes; those are taken that leave
    the fewest rows at one place.
    """
    used = {*xs, y, columns.error, columns.split, *columns.group, columns.seed}
    apart = [*columns.group, *xs, *([columns.seed] if columns.seed else [])]
    if len(rows) < REPEATS * _places(table, rows, apart):
        return
    found: list[str] = []
    while len(found) < MOST_GROUPS:
        before = _places(table, rows, [*apart, *found])
        counts = {}
        for name in table.header:
            if name and name not in used and name not in found:
                groups = _places(table, rows, [*columns.group, *found, name])
                places = _places(table, rows, [*apart, *found, name])
                if places >= 2 * groups and places >= 1.5 * before:
                    counts[name] = places, -groups
        if not counts:
            break
        found.append(max(counts, key=lambda name: counts[name]))
        if len(rows) < REPEATS * _places(table, rows, [*apart, *found]):
            break
    if not found:
        return
    seeds = [name for name in found if "seed" in name.lower()]
    groups = [*columns.group, *(name for name in found if name not in seeds)]
    advice = [f"--group={','.join(groups)}"] if len(seeds) < len(found) else []
    advice += [f"--seed={seeds[0]}"] if seeds else []
    warn(
        f"{table.name}: {len(rows):,} rows at {_places(table, rows, apart):,} places, which differ "
        f"in {' and '.join(found)}: did you mean {' '.join(advice)}?"
    )


def _places(table: Table, rows: Sequence[tuple[int, list[Cell]]], names: Sequence[str]) -> int:
    at = [table.header.index(name) for name in names]
    return len({tuple(cells_of_row[i] for i in at) for _, cells_of_row in rows})
