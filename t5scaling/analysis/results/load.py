"""From what a user has to curves. Nothing is written: a study's directory stays as it is.

- A table: CSV, TSV or parquet, one row per measurement, with columns for x and y.
- A study of ours: its directory, or its results.csv; the curves are those of its report.
- A directory of T5X runs (`t5x_runs`): finetunings by the pretraining steps of the checkpoint they
  started from, each at its last measurement; or, where none was pretrained, metrics by step.
"""

import csv
import io
import itertools
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t5scaling import storage
from t5scaling.analysis.results.curves import Curve, Point, curves_of, parse_results, read_results
from t5scaling.analysis.results.forgotten import forgotten_group
from t5scaling.analysis.results.harvest import COLUMNS, RESULTS, tabulate
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError, first_line, nearest

if TYPE_CHECKING:
    import pandas

UNIT_GAP = 1e4  # between neighbouring sizes; more looks like two units


@dataclass(frozen=True)
class Columns:
    """Names in a table. x may be two names for a law of two sizes. sources: in place of x, tokens
    of each source, the target's first; unique: unique tokens of each. error: standard errors of y.
    group: columns that set curves apart. Of T5X runs and studies, y is a metric's name."""

    x: tuple[str, ...] = ()
    y: str | None = None
    group: tuple[str, ...] = ()
    error: str | None = None
    seed: str | None = None
    sources: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()


EVERYTHING = Columns()


def named(
    x: str | None,
    y: str | None,
    group: str | None,
    error: str | None,
    seed: str | None,
    sources: str | None = None,
    unique: str | None = None,
) -> Columns:
    """As the command line names them: x, group, sources and unique by commas."""
    several_x, groups, parts, once = (
        tuple(name for name in (text or "").split(",") if name)
        for text in (x, group, sources, unique)
    )
    return Columns(several_x, y, groups, error, seed, parts, once)


def load_curves(path: str | os.PathLike, columns: Columns = EVERYTHING) -> list[Curve]:
    """The curves of a file or directory.

    Raises:
      UserError: no such file or column, text in a number column, an x that is negative, or nothing
        to make curves of.
    """
    path = storage.path(path)
    if path.is_dir():
        return _of_directory(path, columns)
    header, rows = _read(path)
    if tuple(header) == COLUMNS and not columns.x and columns.y in (None, "value"):
        return _of_study(path, read_results(path))
    return _of_table(path, header, rows, columns)


def curves_of_frame(frame: "pandas.DataFrame", columns: Columns = EVERYTHING) -> list[Curve]:
    """The curves of a table in memory; rows are counted from 1. Raises as `load_curves`."""
    return _of_table(storage.path("the DataFrame"), *_cells_of(frame), columns)


def _of_directory(path: storage.AnyPath, columns: Columns) -> list[Curve]:
    from t5scaling.analysis.results import t5x_runs

    if columns.x or columns.group or columns.error or columns.seed or columns.sources:
        raise UserError(
            f"{path} is a directory: --x, --sources, --group, --error and --seed name columns of a "
            "table; of runs only --y is chosen, a metric"
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


def _read(path: storage.AnyPath) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (line number, cells) of each row that is not empty."""
    if path.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(path)
    try:
        text = storage.read_text(path)
    except UserError as error:
        raise UserError(f"{error}; expected CSV, TSV or parquet") from None
    if text is None:
        raise UserError(f"{path}: no such file")
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise UserError(f"{path}: empty; expected a header and rows")
    first = text.lstrip().split("\n")[0]
    tabs = path.suffix.lower() == ".tsv" or ("\t" in first and "," not in first)
    # Lines end as csv says: a cell may hold any other end of line.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",")
    header, rows = None, []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [name.strip() for name in cells]
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise UserError(f"{path}: two columns are called {twice[0]!r}")
            elif len(cells) != len(header):
                raise UserError(
                    f"{path}, row {reader.line_num}: {len(cells)} cells, the header has "
                    f"{len(header)}"
                )
            else:
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{path}, row {reader.line_num}: not CSV or TSV ({error})") from None
    return header or [], rows


def _read_parquet(path: storage.AnyPath) -> tuple[list[str], list[tuple[int, list[str]]]]:
    import pandas

    try:
        table = pandas.read_parquet(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ImportError:
        raise UserError(f"{path}: reading parquet needs `pip install pyarrow`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file ({first_line(error)})") from None
    return _cells_of(table)


def _cells_of(table: "pandas.DataFrame") -> tuple[list[str], list[tuple[int, list[str]]]]:
    import pandas

    rows = [
        (number, ["" if pandas.isna(cell) else str(cell) for cell in cells])
        for number, cells in enumerate(table.itertuples(index=False), 1)
    ]
    return [str(name) for name in table.columns], rows


def _of_table(path: storage.AnyPath, header, rows, columns: Columns) -> list[Curve]:
    parts = (*columns.sources, *columns.unique)
    named = (*columns.x, *parts, columns.y, *columns.group, columns.error, columns.seed)
    for name in named:
        if name is not None and name not in header:
            raise UserError(f"{path}: no column {name!r}{nearest(name, header)}")
    if len(columns.x) > 2:
        raise UserError(f"x = {','.join(columns.x)}: expected one column, or two by a comma")
    _check_sources(path, columns)
    xs, y = columns.x or parts, columns.y
    if not xs or y is None:
        free = [name for name in header if name not in named]
        if len(free) + bool(xs) + (y is not None) != 2:
            rest = [name for name in header if name not in columns.group]
            raise UserError(
                f"{path}: {len(rest)} columns ({', '.join(rest[:8])}): say which is x and which is "
                "y (and which set curves apart)"
            )
        xs = xs or (free.pop(0),)
        y = y or free.pop(0)
    points: dict[tuple, list[Point]] = {}
    baselines: dict[tuple, list[Point]] = {}
    unused: dict[tuple, list[list[str]]] = {}
    free = [i for i, name in enumerate(header) if name not in (*named, *xs, y)]
    seen: dict[tuple, int] = {}
    for line, cells in rows:
        cell = dict(zip(header, cells, strict=True))
        sizes = [_number(path, line, x, cell[x]) for x in xs]
        for x, size in zip(xs, sizes, strict=True):
            if size < 0 or (size == 0 and x != xs[0] and not parts):
                raise UserError(
                    f"{path}, row {line}: {x} = {cell[x].strip()}: sizes must be positive, or 0 "
                    "for a baseline without pretraining"
                )
        key = tuple(cell[name] for name in columns.group)
        error = None if columns.error is None else cell[columns.error]
        total = sum(sizes[: len(columns.sources)]) if parts else sizes[0]
        point = Point(
            total, _number(path, line, y, cell[y]),
            seed=None if columns.seed is None else cell[columns.seed].strip(),
            x2=sizes[1] if len(sizes) == 2 and not parts else None,
            parts=tuple(sizes) if parts else (),
            error=None if error is None else _number(path, line, columns.error, error),
        )  # fmt: skip
        (points if total else baselines).setdefault(key, []).append(point)
        if total:
            unused.setdefault(key, []).append([cells[i].strip() for i in free])
        first = seen.setdefault((*cells,), line)
        if first != line:
            warn(f"{path}, row {line} repeats row {first}: both count, as two measurements")
    if not points:
        raise UserError(f"{path}: no rows with {xs[0]} > 0 under the header")
    curves = [
        Curve(
            place=Place(columns=tuple(zip(columns.group, key, strict=True))), metric=y,
            x_name=" + ".join(columns.sources) or xs[0],
            x2_name=xs[1] if len(xs) == 2 and not parts else None, points=tuple(members),
            baseline=tuple(baselines.get(key, ())), sources=columns.sources,
        )
        for key, members in points.items()
    ]  # fmt: skip
    for curve in curves:
        _warn_of_mixed_units(path, curve)
    _warn_of_forgotten_group(path, curves, [header[i] for i in free], list(unused.values()))
    return curves


def _check_sources(path: storage.AnyPath, columns: Columns) -> None:
    if columns.sources and columns.x:
        raise UserError(f"{path}: --x and --sources both say what the sizes are: give one of them")
    if len(set(columns.sources)) < max(len(columns.sources), 2 if columns.sources else 0):
        raise UserError(
            f"--sources={','.join(columns.sources)}: expected two or more different columns"
        )
    if columns.unique and len(columns.unique) != len(columns.sources):
        raise UserError(
            f"--unique={','.join(columns.unique)}: expected a column for each of --sources="
            f"{','.join(columns.sources)}"
        )


def _warn_of_forgotten_group(
    path: storage.AnyPath,
    curves: Sequence[Curve],
    names: Sequence[str],
    unused: Sequence[Sequence[Sequence[str]]],
) -> None:
    """One warning for all curves; `unused`: the cells of the columns `names`, by curve and row."""
    for curve, rows in zip(curves, unused, strict=True):
        others = {
            name: [cells[i] for cells in rows] for i, name in enumerate(names)
            if "seed" not in name.lower()
        }  # fmt: skip
        if curve.x2_name or curve.sources:
            continue
        sizes, values = [p.x for p in curve.points], [p.value for p in curve.points]
        column = forgotten_group(sizes, values, others)
        if column:
            warn(
                f"{path}: {curve.x_name} repeats, and most of how {curve.metric} differs there "
                f"goes with {column}: if that sets curves apart, give --group={column}"
            )
            return


def _warn_of_mixed_units(path: storage.AnyPath, curve: Curve) -> None:
    """Sizes of one study lie within a few powers of ten; a gap of four is a change of unit."""
    sizes = sorted({point.x for point in curve.points})
    for small, large in itertools.pairwise(sizes):
        if large / small >= UNIT_GAP:
            warn(
                f"{path}: {curve.x_name} goes from {small:g} to {large:g} without a point between: "
                "are some given in millions or billions?"
            )


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _number(path: storage.AnyPath, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}, row {line}: {column} = {text.strip()!r} is not a number")
    return value
