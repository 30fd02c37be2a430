"""A user's own table, from a file or from standard input, to a header and rows of cells.

Read are CSV (separated by commas, semicolons, tabs, bars or spaces), JSON (a list of objects, an
object of columns, or lines of objects), parquet and Excel's .xlsx; as they are, or packed by gzip,
bzip2, xz or zip. What a file is says its content.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import numbers
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from t5scaling import storage
from t5scaling.analysis.results.cells import Cell, is_missing
from t5scaling.errors import UserError, first_line

if TYPE_CHECKING:
    import pandas

STANDARD_INPUT = "-"
_SEPARATORS = ("\t", ";", ",", "|")
_PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress,
}  # fmt: skip
_ZSTANDARD, _ZIP, _PARQUET = b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PAR1"
_KINDS = "CSV, TSV, JSON, JSON lines, parquet or xlsx"


@dataclass(frozen=True)
class Table:
    """name: in messages. rows: (number in the file, cells as many as the header's). text: of a file
    that is text, else ""."""

    name: str
    header: list[str]
    rows: list[tuple[int, list[Cell]]]
    text: str = ""


def read_table(path: str | os.PathLike) -> Table:
    """The table at that address; "-": of standard input.

    Raises UserError if there is none, or it is damaged.
    """
    if os.fspath(path) == STANDARD_INPUT:
        name, content = "standard input", sys.stdin.buffer.read()
    else:
        name, content = str(path), storage.read_bytes(path)
    if content is None:
        raise UserError(f"{name}: no such file")
    content = _unpacked(name, content)
    suffix = os.path.splitext(name)[1].lower()
    if content.startswith(_PARQUET) or suffix in (".parquet", ".pq"):
        return _of_parquet(name, content)
    if content.startswith(_ZIP) or suffix in (".xlsx", ".xlsm"):
        return _of_excel(name, content)
    text = _decoded(name, content)
    if not text.strip():
        raise UserError(f"{name}: empty; expected a header and rows")
    if text.lstrip()[0] in "[{":
        return _of_json(name, text)
    return _of_csv(name, text)


def _unpacked(name: str, content: bytes) -> bytes:
    for mark, unpack in _PACKED.items():
        if content.startswith(mark):
            try:
                return unpack(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise UserError(f"{name}: damaged: {first_line(error)}") from None
    if content.startswith(_ZSTANDARD):
        raise UserError(f"{name}: packed by zstd, which is not read here; unpack it first")
    if content.startswith(_ZIP):
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = archive.namelist()
                if "[Content_Types].xml" in names:  # of an office's file
                    return content
                if len(names) != 1:
                    raise UserError(
                        f"{name}: {len(names)} files in the archive, expected one table"
                    )
                return archive.read(names[0])
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            raise UserError(f"{name}: damaged: {first_line(error)}") from None
    return content


def _decoded(name: str, content: bytes) -> str:
    """UTF-8, or UTF-16 as Excel's "Unicode text" is."""
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name}: damaged: not UTF-8 text; expected {_KINDS}") from None


def _of_csv(name: str, text: str) -> Table:
    separator = _separator(text)
    # Lines end as csv says: a cell may hold any other end of line.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator == " "
    )
    lines = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{name}, row {reader.line_num}: not CSV or TSV ({error})") from None
    return _with_header(name, lines, text, separator)


def _separator(text: str) -> str:
    """What cuts the first lines into as many cells each, and into most; a comma if nothing does."""
    lines = [line for line in itertools.islice(io.StringIO(text), 50) if line.strip()]
    best, most = ",", 1
    for separator in _SEPARATORS:
        try:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=separator)]
        except csv.Error:
            continue
        if len(set(counts)) == 1 and counts[0] > most:
            best, most = separator, counts[0]
    if most > 1:
        return best
    present = [separator for separator in _SEPARATORS if separator in lines[0]]
    if present:  # lines of different lengths, which an error then says of the longest header
        return max(present, key=lines[0].count)
    return " " if len(lines[0].split()) > 1 else ","


def _with_header(
    name: str, lines: Iterable[tuple[int, list[Cell]]], text: str = "", separator: str = ""
) -> Table:
    """The first line is the header."""
    (_, first), *rows = lines
    header = [str(cell).strip() for cell in first]
    twice = sorted({title for title in header if title and header.count(title) > 1})
    if twice:
        raise UserError(f"{name}: two columns are called {twice[0]!r}")
    for row, cells in rows:
        if len(cells) != len(header):
            hint = " (a decimal comma needs another separator, such as ;)"
            raise UserError(
                f"{name}, row {row}: {len(cells)} cells, the header has {len(header)}"
                f"{hint if separator == ',' and len(cells) > len(header) else ''}"
            )
    return Table(name, header, rows, text)


def _of_json(name: str, text: str) -> Table:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        return _of_json_lines(name, text, error)
    if isinstance(content, dict) and all(isinstance(v, dict) for v in content.values()):
        # As pandas writes it: column -> row -> value.
        rows = {row: None for column in content.values() for row in column}
        content = [{k: v.get(row) for k, v in content.items()} for row in rows]
    elif isinstance(content, dict) and all(isinstance(v, list) for v in content.values()):
        lengths = {len(column) for column in content.values()}
        if len(lengths) > 1:
            raise UserError(f"{name}: columns of {min(lengths)} to {max(lengths)} values")
        content = [dict(zip(content, row, strict=True))
                   for row in zip(*content.values(), strict=True)]  # fmt: skip
    elif isinstance(content, dict):
        content = [content]
    return _of_objects(name, list(enumerate(content, 1)), text)


def _of_json_lines(name: str, text: str, damage: json.JSONDecodeError) -> Table:
    objects = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                objects.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                at = error if objects else damage  # damaged lines, or a damaged whole
                row = number if objects else damage.lineno
                raise UserError(f"{name}, row {row}: not JSON ({at.msg})") from None
    return _of_objects(name, objects, text)


def _of_objects(name: str, objects: list[tuple[int, Any]], text: str) -> Table:
    header: dict[str, None] = {}
    for number, record in objects:
        if not isinstance(record, dict):
            raise UserError(f"{name}, row {number}: expected an object of columns")
        for column, value in record.items():
            header[column.strip()] = None
            if isinstance(value, dict | list):
                raise UserError(
                    f"{name}, row {number}: {column} holds several values; expected a number or "
                    "a text"
                )
    rows = [
        (number, [_cell(record.get(column)) for column in header]) for number, record in objects
    ]
    return Table(name, list(header), [row for row in rows if _is_filled(row[1])], text)


def _of_parquet(name: str, content: bytes) -> Table:
    import pandas

    try:
        table = pandas.read_parquet(io.BytesIO(content))
    except ImportError:
        raise UserError(f"{name}: reading parquet needs `pip install pyarrow`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: not a parquet file ({first_line(error)})") from None
    return _of_frame(name, table)


def table_of_frame(frame: "pandas.DataFrame") -> Table:
    """A table in memory; rows are counted from 1."""
    return _of_frame("the DataFrame", frame)


def _of_frame(name: str, frame: "pandas.DataFrame") -> Table:
    rows = [
        (number, [_of_pandas(cell) for cell in cells])
        for number, cells in enumerate(frame.itertuples(index=False), 1)
    ]
    return Table(name, [str(title) for title in frame.columns], rows)


def _of_excel(name: str, content: bytes) -> Table:
    """The first sheet."""
    import pandas

    try:
        sheet = pandas.read_excel(io.BytesIO(content), header=None, dtype=object, engine="openpyxl")
    except ImportError:
        raise UserError(
            f"{name}: reading xlsx needs the Python package openpyxl: pip install 't5scaling[xlsx]'"
        ) from None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{name}: not an xlsx file ({first_line(error)})") from None
    lines = [
        (number, [_of_pandas(cell) for cell in cells])
        for number, cells in enumerate(sheet.itertuples(index=False), 1)
    ]
    filled = [line for line in lines if _is_filled(line[1])]
    if not filled:
        raise UserError(f"{name}: empty; expected a header and rows in the first sheet")
    return _with_header(name, filled)


def _of_pandas(value: Any) -> Cell:
    import pandas

    return "" if pandas.isna(value) else _cell(value)


def _cell(value: Any) -> Cell:
    """Numbers stay numbers, all else is text."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else str(value)


def _is_filled(cells: Iterable[Cell]) -> bool:
    return not all(is_missing(cell) for cell in cells)
