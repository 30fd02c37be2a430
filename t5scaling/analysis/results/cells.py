"""Numbers as people write them: 1,234.5 or 1.234,5, 100M, 1.6B, 25.6%.

Whether a comma or a dot is the decimal mark is decided by all cells of a column; where those allow
both, by the other columns of numbers in the same table; and where these do not decide either, a
column with commas is refused: 1,234 could be 1234 or 1.234. Dots alone are decimal marks then.
"""

import math
import numbers
import re
from collections.abc import Mapping, Sequence

from t5scaling.errors import UserError

Cell = str | float | bool  # numbers where the file itself has types

POINT, COMMA = ".", ","  # the decimal mark
_MISSING = frozenset(
    ("", "na", "n/a", "nan", "-nan", "null", "none", "<na>", "#n/a", "-", "--", "–", "—")
)
_SPACES = " '’_\u00a0\u2009\u202f"  # between thousands, whatever the decimal mark
_NUMBER = {
    mark: re.compile(
        rf"(?P<whole>[+-]?(?:[1-9]\d{{0,2}}(?P<mark>[{other}{_SPACES}])\d{{3}}(?:(?P=mark)\d{{3}})*"
        rf"|\d*))(?:{re.escape(mark)}(?P<part>\d*))?"
        r"(?:[eE](?P<power>[+-]?\d+)|\s*(?P<unit>[kKmMbBgGtT]|bn|%))?"
    )
    for mark, other in ((POINT, COMMA), (COMMA, POINT))
}
_POWERS = {"k": "e3", "m": "e6", "b": "e9", "bn": "e9", "g": "e9", "t": "e12"}


def is_missing(cell: Cell) -> bool:
    """Whether nobody wrote a value there."""
    if isinstance(cell, str):
        return cell.strip().lower() in _MISSING
    return isinstance(cell, float) and math.isnan(cell)


def is_number(cell: Cell) -> bool:
    """Whether it is one by any of the ways to write it."""
    return any(_value(cell, mark, size=True) is not None for mark in (POINT, COMMA))


def size_of(text: str) -> float | None:
    """The size that an argument of the command line names, such as 1.4e12 or 70B; None for anything
    but a finite number above 0."""
    value = _value(text, POINT, size=True)
    if value is None or text.strip().endswith("%") or not 0 < value < math.inf:
        return None
    return value


def numbers_of(
    table: str,
    columns: Mapping[str, Sequence[tuple[int, Cell]]],
    *,
    sizes: Sequence[str] = (),
    decimal: str | None = None,
) -> dict[str, list[float]]:
    """The numbers of columns, whose cells come with the rows that errors name; none is missing.

    Args:
      table: its name in errors.
      sizes: columns in which 100m is 100 million; elsewhere it could be a thousandth.
      decimal: the decimal mark; None: found as above.

    Raises:
      UserError: a cell that is no finite number, or one that could be two.
    """
    allowed = {
        name: [decimal] if decimal else _marks(table, name, cells, name in sizes)
        for name, cells in columns.items()
    }
    known = {marks[0] for marks in allowed.values() if len(marks) == 1}
    found = {}
    for name, cells in columns.items():
        marks = allowed[name]
        mark = marks[0] if len(marks) == 1 else _chosen(table, name, cells, known)
        found[name] = [_number(table, name, row, cell, mark, name in sizes) for row, cell in cells]
        _check_unit(table, name, cells)
    return found


def _marks(table: str, name: str, cells: Sequence[tuple[int, Cell]], size: bool) -> list[str]:
    """The decimal marks by which every cell is a number; one where both mean the same."""
    texts: dict[str, int] = {}
    for row, cell in cells:
        if isinstance(cell, str):
            texts.setdefault(cell, row)
    same, only = True, {}
    for text, row in texts.items():
        by_point, by_comma = (_value(text, mark, size=size) for mark in (POINT, COMMA))
        if by_point is None and by_comma is None:
            raise _not_a_number(table, name, row, text)
        same = same and by_point == by_comma
        if by_point is None or by_comma is None:
            only.setdefault(COMMA if by_point is None else POINT, (row, text))
    if len(only) == 2:
        (one, first), (two, second) = sorted(only.values())
        raise UserError(
            f"{table}: the decimal mark of {name} is not the same in row {one} ({first.strip()}) "
            f"and row {two} ({second.strip()})"
        )
    if only:
        return list(only)
    return [] if same else [POINT, COMMA]


def _chosen(table: str, name: str, cells: Sequence[tuple[int, Cell]], known: set[str]) -> str:
    """The decimal mark of a column that allows both."""
    if len(known) == 1:
        return next(iter(known))
    for row, cell in cells:
        if isinstance(cell, str) and (COMMA in cell or known):
            one, two = (_value(cell, mark, size=True) for mark in (POINT, COMMA))
            if one is not None and two is not None and one != two:
                raise UserError(
                    f"{table}, row {row}: {name} = {cell.strip()} could be {one:.10g} or "
                    f"{two:.10g}, and no other cell decides: say --decimal=. or --decimal=,"
                )
    return POINT


def _value(cell: Cell, mark: str, *, size: bool) -> float | None:
    """The number by that decimal mark; None if it is none."""
    if isinstance(cell, bool):
        return None
    if not isinstance(cell, str):
        return float(cell) if isinstance(cell, numbers.Real) else None
    found = _NUMBER[mark].fullmatch(cell.strip())
    if not found:
        return None
    whole, part, unit = found["whole"], found["part"], found["unit"]
    if found["mark"]:
        whole = whole.replace(found["mark"], "")
    if not whole.lstrip("+-") and not part:
        return None
    if unit == "m" and not size:
        return None
    power = f"e{found['power']}" if found["power"] else _POWERS.get((unit or "").lower(), "")
    return float(f"{whole}.{part or ''}{power}")


def _number(table: str, name: str, row: int, cell: Cell, mark: str, size: bool) -> float:
    value = _value(cell, mark, size=size)
    if value is None or not math.isfinite(value):
        raise _not_a_number(table, name, row, cell)
    return value


def _not_a_number(table: str, name: str, row: int, cell: Cell) -> UserError:
    text = str(cell).strip()
    hint = "; write 100M for millions" if re.fullmatch(r"[\d.,]+\s*m", text) else ""
    return UserError(f"{table}, row {row}: {name} = {text!r} is not a number{hint}")


def _check_unit(table: str, name: str, cells: Sequence[tuple[int, Cell]]) -> None:
    """A column is in per cent or it is not: 25.6% and 0.256 side by side are two units."""
    marked = {isinstance(cell, str) and cell.rstrip().endswith("%"): row for row, cell in cells}
    if len(marked) == 2:
        raise UserError(
            f"{table}: {name} is in per cent in row {marked[True]} and not in row "
            f"{marked[False]}; write all of its values alike"
        )
