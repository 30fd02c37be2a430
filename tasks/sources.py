"""Where the text of a task comes from: TFDS, or files of the user's own."""

import collections
import glob
import gzip
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

CHUNK_ROWS, CHUNK_CHARS = 1024, 1 << 20  # rows go to TensorFlow together, up to so many characters
LINE_BYTES = 1 << 24  # of the longest line that is read: tokenising one takes 90 times as much
FIRST = 3  # places that are named of each problem

Row = dict[str, str]
Shard = tuple[str, ...]  # the files of one shard: one, or two that are parallel


class Broken(ValueError):
    """A line that gives no row; `problem` says why."""

    def __init__(self, problem: str):
        super().__init__(problem)
        self.problem = problem


# (line as bytes, ...one of each file) -> the row; raises Broken
LineReader = Callable[..., Row]


_SLICE = re.compile(r"([^][]+)\[(-?\d+%?)?:(-?\d+%?)?\]")


class _Splits(tuple):
    """Names of splits. A slice of one, "train[:1%]", is among them, which is what SeqIO asks."""

    def __contains__(self, split: object) -> bool:
        return super().__contains__(str(split).partition("[")[0])


def parse_split(split: str) -> tuple[str, str | None, str | None]:
    """(name, where a slice begins, where it ends) of "train" or "train[10%:]"; None for no bound.

    Raises ValueError for anything else.
    """
    if "[" not in split and "]" not in split:
        return split, None, None
    match = _SLICE.fullmatch(split)
    if match:
        name, first, last = match.groups()
        if not any(b and b[-1] == "%" and abs(int(b[:-1])) > 100 for b in (first, last)):
            return name, first, last
    name = split.partition("[")[0] or "train"
    raise ValueError(
        f"{split!r} is not a slice of a split; expected, for example, {name}[:1000], {name}[:1%] "
        f"or {name}[10%:]"
    )


class LocalFiles(seqio.DataSource):
    """Text files, read line by line: {name: string} for each line that can be read.

    Of a split one can ask for a slice, as TFDS has them: "train[:1000]", "train[:1%]",
    "train[10%:]", "train[-5%:]". They count lines, of all files in their order, also those that
    cannot be read; a percentage is rounded to whole lines, so that [:1%] and [1%:] are together the
    whole. All lines are counted before the first one is read.

    Lines that cannot are counted and left out (`take_report`), or end the reading if `strict`.
    Never more than a chunk is held in memory. Files may end in .gz or .xz. They are UTF-8, with or
    without a byte order mark.
    """

    def __init__(
        self,
        files: Mapping[str, str | Sequence],
        open_reader: Callable[[Shard], tuple[LineReader, int]],
        fields: Sequence[str],
        *,
        description: str,
        strict: bool = False,
    ):
        """`files`: split -> pattern, list of patterns, or list of [source, target] pairs.
        `open_reader`: shard -> (what reads its lines, lines to skip at the start).
        `fields`: the keys of a row. `description`: the same for sources that read the same rows.
        """
        super().__init__(splits=files)
        self._splits = _Splits(files)
        self._files = {split: _patterns(patterns) for split, patterns in files.items()}
        self._open_reader = open_reader
        self._fields = tuple(fields)
        self._description = description
        self._strict = strict
        self._report: dict[str, dict] = {}
        self._counts: dict[tuple, int] = {}
        self.error: Exception | None = None  # what ended the reading, as TensorFlow hides it

    def __repr__(self) -> str:
        # The embedded corpus is the same wherever it is installed.
        files = str(self._files).replace(os.path.dirname(__file__) + os.sep, "")
        return f"LocalFiles({self._description}, {files}, strict={self._strict})"

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> list[str]:
        return ["+".join(shard) for shard, _, _ in self._pieces(split)]

    def patterns(self, split: str) -> list[str]:
        """What names the files of a split."""
        name, _, _ = parse_split(split)
        return [pattern for patterns in self._files[name] for pattern in patterns]

    def files(self, split: str) -> list[str]:
        """All files of a split."""
        return [file for shard in self.shards(split) for file in shard]

    def shards(self, split: str) -> list[Shard]:
        """The files of a split, sorted; parallel ones belong together if what the wildcards of
        their patterns stand for is the same.

        Raises ValueError if a pattern matches none, for files without a partner, and for a file
        that two patterns match.
        """
        split, _, _ = parse_split(split)
        found: list[Shard] = []
        for patterns in self._files[split]:
            columns = [_matches(pattern) for pattern in patterns]
            for pattern, names in zip(patterns, columns, strict=True):
                if not names:
                    raise ValueError(f"no file matches {pattern!r} (split {split})")
            found += _paired(patterns, columns)
        (shard, times), *_ = collections.Counter(found).most_common(1)
        if times > 1:
            raise ValueError(f"{' and '.join(shard)}: matched by two patterns of split {split}")
        return found

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = False,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """The rows in file order. Of several shards, those of `shard_info`."""
        pieces = self._pieces(split)
        if shard_info is not None:
            pieces = pieces[shard_info.index :: shard_info.num_shards]

        def chunks() -> Iterator[dict[str, list[str]]]:
            try:
                for piece in pieces:
                    for rows in _chunks(self._rows(*piece)):
                        yield {name: [row[name] for row in rows] for name in self._fields}
            except Exception as error:
                self.error = error
                raise

        # One call from TensorFlow into Python for many rows: a call costs more than a row.
        strings = tf.TensorSpec([None], tf.string)
        return tf.data.Dataset.from_generator(
            chunks, output_signature=dict.fromkeys(self._fields, strings)
        ).unbatch()

    def take_report(self) -> list[dict]:
        """What was left out since the last call, a dict for each kind of problem: `problem`,
        `count`, and `first`, the first places as "file:line"."""
        report, self._report = self._report, {}
        return [{"problem": problem, **found} for problem, found in sorted(report.items())]

    def _pieces(self, split: str) -> list[tuple[Shard, int, int | None]]:
        """(shard, first line, line after the last, or None for all) of a split or a slice of it.

        Raises ValueError as `parse_split` and `shards`, and for a slice that has no lines.
        """
        _, begin, end = parse_split(split)
        shards = self.shards(split)
        if begin is end is None:
            return [(shard, 0, None) for shard in shards]
        counts = [self._count(shard) for shard in shards]
        first, last = (_line(bound, sum(counts), split) for bound in (begin or "0", end or "100%"))
        if first >= last:
            raise ValueError(f"{split!r} has no lines; the whole has {sum(counts):,}")
        pieces, before = [], 0
        for shard, count in zip(shards, counts, strict=True):
            mine = max(first - before, 0), min(last - before, count)
            if mine[0] < mine[1]:
                pieces.append((shard, *mine))
            before += count
        return pieces

    def _count(self, shard: Shard) -> int:
        """How many lines a shard has, without the header."""
        found = os.stat(shard[0])
        key = (shard, found.st_size, found.st_mtime_ns)
        if key not in self._counts:
            lines = sum(1 for _ in open_lines(shard[0]))
            self._counts[key] = max(lines - self._open_reader(shard)[1], 0)
        return self._counts[key]

    def _rows(self, shard: Shard, first: int, last: int | None) -> Iterator[Row]:
        read, skipped = self._open_reader(shard)
        for number, lines in enumerate(_lines(shard), 1):
            if number <= skipped + first:
                continue
            if last is not None and number > skipped + last:
                return
            try:
                if None in lines:
                    raise Broken(f"line of more than {LINE_BYTES >> 20} MiB")
                row = read(*lines)
            except Broken as error:
                self._note(error.problem, shard[0], number)
                continue
            yield row

    def _note(self, problem: str, file: str, line: int) -> None:
        if self._strict:
            raise ValueError(f"{file}, line {line}: {problem}")
        found = self._report.setdefault(problem, {"count": 0, "first": []})
        found["count"] += 1
        if len(found["first"]) < FIRST:
            found["first"].append(f"{file}:{line}")


def _line(bound: str, count: int, split: str) -> int:
    """The number of a line, from 0, at which a slice begins or ends."""
    share = bound.removesuffix("%")
    number = int(share) if share == bound else round(int(share) * count / 100)
    if abs(number) > count:
        raise ValueError(f"{split!r}: there are only {count:,} lines")
    return count + number if bound.startswith("-") else number


def _patterns(patterns: str | Sequence) -> list[tuple[str, ...]]:
    """Absolute, as a source is read from more than one folder."""
    if isinstance(patterns, str):
        patterns = [patterns]
    found = [(p,) if isinstance(p, str) else tuple(p) for p in patterns]
    return [tuple(os.path.abspath(os.path.expanduser(p)) for p in several) for several in found]


def _matches(pattern: str) -> list[str]:
    """The files of a pattern, sorted, each once though links lead to it on several ways."""
    found = _glob(pattern)
    for name in found:
        # Text is read once for every pass, and again after a kill.
        if not os.path.isfile(name):
            raise ValueError(f"{name} is not a file, but a device or a pipe")
    return found


def _glob(pattern: str) -> list[str]:
    """(`t5scaling.data.provenance.matches` does the same.)"""
    if os.path.exists(pattern):
        names = [pattern]
    else:
        names = sorted(glob.glob(_in_its_folder(pattern, glob.escape), recursive=True))
    there: dict[str, str] = {}
    for name in names:
        if not os.path.isdir(name):
            there.setdefault(os.path.realpath(name), name)
    return list(there.values())


def _in_its_folder(pattern: str, literally: Callable[[str], str]) -> str:
    """The pattern, with its folder taken `literally` if there is one of that name: [1] may be no
    wildcard."""
    folder, name = os.path.split(pattern)
    return os.path.join(literally(folder), name) if os.path.isdir(folder) else pattern


def _paired(patterns: Sequence[str], columns: Sequence[list[str]]) -> list[Shard]:
    """One file of each column, by what their patterns' wildcards stand for in their names."""
    if len(columns) == 1:
        return [(name,) for name in columns[0]]
    (sources, targets), (by_source, by_target) = patterns, map(_by_open_parts, patterns, columns)
    widths = {len(key) for by_key in (by_source, by_target) for key in by_key}
    if len(widths) > 1 and len(by_source) == len(by_target) == 1:
        return [(columns[0][0], columns[1][0])]  # one of each, named in two ways
    for pattern, mine, others, other in (
        (sources, by_source, by_target, targets),
        (targets, by_target, by_source, sources),
    ):
        for key, name in mine.items():
            if key not in others:
                raise ValueError(
                    f"source and target files must come in pairs, but {name} has no partner: no "
                    f"file matches {other!r} with {'/'.join(key)!r} where {pattern!r} leaves the "
                    "name open"
                )
    return [(by_source[key], by_target[key]) for key in by_source]


def _by_open_parts(pattern: str, names: Sequence[str]) -> dict[tuple[str, ...], str]:
    """Maps the texts that the wildcards of `pattern` match in a name to that name."""
    expression = ""
    for part in re.findall(
        r"\*\*/?|\*|\?|\[!?\]?[^]]*\]|\\.|.", _in_its_folder(pattern, _escaped), re.DOTALL
    ):
        if len(part) == 2 and part[0] == "\\":
            expression += part
        elif part.startswith("**"):
            expression += "((?:.*/)?)" if part == "**/" else "(.*)"
        elif part == "*":
            expression += "([^/]*)"
        elif part == "?":
            expression += "([^/])"
        elif len(part) > 1:
            inside = part[1:-1].replace("\\", "\\\\")
            expression += f"([{'^' + inside[1:] if inside[0] == '!' else inside}])"
        else:
            expression += re.escape(part)
    found: dict[tuple[str, ...], str] = {}
    for name in names:
        match = None if name == pattern else re.fullmatch(expression, name, re.DOTALL)
        key = match.groups() if match else ()
        if key in found:
            raise ValueError(f"{pattern!r} does not distinguish {found[key]} from {name}, as "
                             "pairs of files need")  # fmt: skip
        found[key] = name
    return found


def _escaped(folder: str) -> str:
    return re.sub(r"([\\*?\[\]])", r"\\\1", folder)


def open_lines(path: str) -> Generator[bytes | None, None, None]:
    """The lines of a file, unpacked, without their ends and a byte order mark; None for a line of
    more than LINE_BYTES. Raises ValueError if the file cannot be read, or is not UTF-8 by its
    first bytes."""
    opener = {"gz": gzip.open, "xz": lzma.open}.get(path.rpartition(".")[2], open)
    number = 0
    try:
        with opener(path, "rb") as file:
            while line := file.readline(LINE_BYTES):
                if not number:
                    line = _first(line, path)
                number += 1
                if len(line) < LINE_BYTES or line.endswith(b"\n"):
                    yield line.rstrip(b"\r\n")
                    continue
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
                yield None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{path}, after line {number}: {reason}") from error


def _first(line: bytes, path: str) -> bytes:
    """The first line without its byte order mark."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4096]:
        raise ValueError(
            f"{path} is not UTF-8 text, but UTF-16 or binary; iconv -f UTF-16 -t UTF-8 makes UTF-8 "
            "of UTF-16"
        )
    return line.removeprefix(b"\xef\xbb\xbf")


def _lines(shard: Shard) -> Iterator[tuple[bytes | None, ...]]:
    """The lines of parallel files side by side. Raises ValueError for different lengths."""
    files = [open_lines(path) for path in shard]
    over: Any = object()
    for number in itertools.count():
        lines = [next(file, over) for file in files]
        if all(line is over for line in lines):
            return
        if any(line is over for line in lines):
            counts = [
                number + (line is not over) + sum(1 for _ in file)
                for line, file in zip(lines, files, strict=True)
            ]
            lengths = (f"{path} has {n:,} lines" for path, n in zip(shard, counts, strict=True))
            raise ValueError(f"parallel files differ in length: {' but '.join(lengths)}")
        yield tuple(lines)


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += sum(map(len, row.values()))
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


# Readers of one line


def text_of(line: bytes) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise Broken("invalid UTF-8") from None
    if "\0" in text:
        raise Broken("NUL character")
    return text


def json_of(line: bytes) -> dict:
    text = text_of(line)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # a number of thousands of digits, a thousand brackets
        raise Broken("broken JSON line") from None
    if not isinstance(value, dict):
        raise Broken("broken JSON line")
    return value


def _checked(row: Mapping[str, object]) -> Row:
    """The row, if each side has text. JSON can hold halves of surrogate pairs: not UTF-8."""
    checked: Row = {}
    for field, value in row.items():
        if not isinstance(value, str):
            raise Broken("missing key")
        if not value.strip():
            raise Broken("empty document" if len(row) == 1 else "empty source or target")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Broken("invalid UTF-8") from None
        checked[field] = value
    return checked


def jsonl_reader(keys: Mapping[str, str]) -> Callable[[Shard], tuple[LineReader, int]]:
    """Lines of JSON; `keys`: field of the row -> key in the object."""

    def read(line: bytes) -> Row:
        value = json_of(line)
        return _checked({field: value.get(key) for field, key in keys.items()})

    return lambda shard: (read, 0)


def text_reader(shard: Shard) -> tuple[LineReader, int]:
    """One document a line, or one sentence a line in each of two parallel files."""
    fields = ("text",) if len(shard) == 1 else ("source", "target")

    def read(*lines: bytes) -> Row:
        texts = (text_of(line) for line in lines)
        return _checked(dict(zip(fields, texts, strict=True)))

    return read, 0


def tsv_reader(
    columns: Mapping[str, str | int],
) -> Callable[[Shard], tuple[LineReader, int]]:
    """Cells between tabs; `columns`: field of the row -> name in the header line, or number of the
    column, from 0, where there is no header."""
    has_header = any(isinstance(column, str) for column in columns.values())

    def open_reader(shard: Shard) -> tuple[LineReader, int]:
        places: dict[str, int] = {}
        lines = open_lines(shard[0])
        try:
            header = text_of(next(lines, None) or b"").split("\t")
        except Broken as error:
            if has_header:
                raise ValueError(f"{shard[0]}, line 1: {error.problem}") from None
            header = []
        lines.close()
        width = len(header)
        for field, column in columns.items():
            if isinstance(column, int) and not has_header:
                places[field] = column
                continue
            found = [i for i, name in enumerate(header) if name == column]
            if len(found) > 1:
                raise ValueError(f"{shard[0]} has {len(found)} columns {column!r}")
            if not found:
                raise ValueError(
                    f"{shard[0]} has no column {column!r}; its header: {', '.join(header)}"
                )
            places[field] = found[0]

        def read(line: bytes) -> Row:
            cells = text_of(line).split("\t")
            if len(cells) <= max(places.values()) or len(cells) != (width or len(cells)):
                raise Broken("wrong number of columns")
            return _checked({field: cells[place] for field, place in places.items()})

        return read, int(has_header)

    return open_reader


class Tfds(seqio.TfdsDataSource):
    """A TFDS data set that somebody has prepared: nothing is downloaded here."""

    def __init__(self, name: str, splits: Mapping[str, str], data_dir: str | None = None):
        self._name_and_folder = (name, data_dir)
        super().__init__(
            tfds_name=name, tfds_data_dir=data_dir, splits=dict(splits), read_only=True
        )

    def list_shards(self, split: str) -> Sequence[str]:
        with self._explained():
            return super().list_shards(split)

    def get_dataset(self, *args, **kwargs) -> tf.data.Dataset:
        with self._explained():
            return super().get_dataset(*args, **kwargs)

    def _explained(self) -> "_Explained":
        return _Explained(*self._name_and_folder)


class _Explained:
    """Turns whatever TFDS raises for data that are not there into one ValueError."""

    def __init__(self, name: str, data_dir: str | None):
        self._name, self._data_dir = name, data_dir

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None or not isinstance(error, Exception):
            return
        from tensorflow_datasets.core import constants

        where = self._data_dir or constants.DATA_DIR
        prepare = f"tfds build {self._name.partition(':')[0]}"
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"the TFDS data set {self._name} is not prepared in {where} ({first[:200]}); prepare "
            f"it by `{prepare} --data_dir={where}`, or name the folder that holds it by "
            "TFDS_DATA_DIR or the definition's data_dir"
        ) from error
