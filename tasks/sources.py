"""Where the text of a task comes from: TFDS, or files of the user's own."""

import glob
import gzip
import itertools
import json
import lzma
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf

CHUNK_ROWS, CHUNK_CHARS = 1024, 1 << 20  # rows go to TensorFlow together, up to so many characters
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


class LocalFiles(seqio.DataSource):
    """Text files, read line by line: {name: string} for each line that can be read.

    Lines that cannot are counted and left out (`take_report`), or end the reading if `strict`.
    Never more than a chunk is held in memory. Files may end in .gz or .xz.
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
        super().__init__(splits=tuple(files))
        self._files = {split: _patterns(patterns) for split, patterns in files.items()}
        self._open_reader = open_reader
        self._fields = tuple(fields)
        self._description = description
        self._strict = strict
        self._report: dict[str, dict] = {}
        self.error: Exception | None = None  # what ended the reading, as TensorFlow hides it

    def __repr__(self) -> str:
        # The embedded corpus is the same wherever it is installed.
        files = str(self._files).replace(os.path.dirname(__file__) + os.sep, "")
        return f"LocalFiles({self._description}, {files}, strict={self._strict})"

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> list[str]:
        return ["+".join(shard) for shard in self.shards(split)]

    def shards(self, split: str) -> list[Shard]:
        """The files of a split, sorted. Raises ValueError if a pattern matches none."""
        found: list[Shard] = []
        for patterns in self._files[split]:
            columns = [matching(pattern) for pattern in patterns]
            for pattern, names in zip(patterns, columns, strict=True):
                if not names:
                    raise ValueError(f"no file matches {pattern!r} (split {split})")
            if len({len(names) for names in columns}) > 1:
                counts = " and ".join(
                    f"{len(names)} match {pattern!r}"
                    for pattern, names in zip(patterns, columns, strict=True)
                )
                raise ValueError(f"source and target files must come in pairs, but {counts}")
            found += zip(*columns, strict=True)
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
        shards = self.shards(split)
        if shard_info is not None:
            shards = shards[shard_info.index :: shard_info.num_shards]

        def chunks() -> Iterator[dict[str, list[str]]]:
            try:
                for shard in shards:
                    for rows in _chunks(self._rows(shard)):
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

    def _rows(self, shard: Shard) -> Iterator[Row]:
        read, skipped = self._open_reader(shard)
        for number, lines in enumerate(_lines(shard), 1):
            if number <= skipped:
                continue
            try:
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


def _patterns(patterns: str | Sequence) -> list[tuple[str, ...]]:
    if isinstance(patterns, str):
        return [(patterns,)]
    return [(p,) if isinstance(p, str) else tuple(p) for p in patterns]


def open_lines(path: str) -> Iterator[bytes]:
    """The lines of a file, unpacked, without their ends. Raises ValueError if it cannot be read."""
    opener = {"gz": gzip.open, "xz": lzma.open}.get(path.rpartition(".")[2], open)
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):  # noqa: B007 (the message needs it)
                yield line.rstrip(b"\r\n")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{path}, after line {number}: {error}") from error


def matching(pattern: str) -> list[str]:
    """The files that a pattern names, sorted, each once: `**` follows links, which may go round.

    A pattern that is the name of a file is that file, and a folder is taken by its name before it
    is taken for a pattern: `[` may stand in both.
    """
    folder, name = os.path.split(pattern)
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(folder):
        pattern = os.path.join(glob.escape(folder), name)
    found: dict[str, str] = {}
    for path in sorted(glob.glob(pattern, recursive=True), key=lambda path: (len(path), path)):
        found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _lines(shard: Shard) -> Iterator[tuple[bytes, ...]]:
    """The lines of parallel files side by side. Raises ValueError for different lengths."""
    files = [open_lines(path) for path in shard]
    for number in itertools.count():
        lines = [next(file, None) for file in files]
        if all(line is None for line in lines):
            return
        if any(line is None for line in lines):
            counts = [
                number + (line is not None) + sum(1 for _ in file)
                for line, file in zip(lines, files, strict=True)
            ]
            told = " but ".join(f"{p} has {n:,} lines" for p, n in zip(shard, counts, strict=True))
            raise ValueError(f"parallel files differ in length: {told}")
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
        return line.decode()
    except UnicodeDecodeError:
        raise Broken("invalid UTF-8") from None


def json_of(line: bytes) -> dict:
    try:
        value = json.loads(text_of(line))
    except json.JSONDecodeError:
        raise Broken("broken JSON line") from None
    if not isinstance(value, dict):
        raise Broken("broken JSON line")
    return value


def _checked(row: Row) -> Row:
    """The row, if each side has text. JSON can hold halves of surrogate pairs: not UTF-8."""
    for value in row.values():
        if not isinstance(value, str):
            raise Broken("missing key")
        if not value.strip():
            raise Broken("empty document" if len(row) == 1 else "empty source or target")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Broken("invalid UTF-8") from None
    return row


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
        width, places = None, dict(columns)
        if has_header:
            lines = open_lines(shard[0])
            header = text_of(next(lines, b"")).split("\t")
            lines.close()
            width = len(header)
            for field, column in columns.items():
                if column not in header:
                    raise ValueError(
                        f"{shard[0]} has no column {column!r}; its header: {', '.join(header)}"
                    )
                places[field] = header.index(column)

        def read(line: bytes) -> Row:
            cells = text_of(line).split("\t")
            if len(cells) <= max(places.values()) or (width and len(cells) != width):
                raise Broken("wrong number of columns")
            return _checked({field: cells[place] for field, place in places.items()})

        return read, int(has_header)

    return open_reader


class Tfds(seqio.TfdsDataSource):
    """A TFDS data set that somebody has prepared: nothing is downloaded here."""

    def __init__(self, name: str, splits: Mapping[str, str], data_dir: str | None = None):
        self._told = (name, data_dir)
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
        return _Explained(*self._told)


class _Explained:
    """Turns whatever TFDS raises for data that are not there into one ValueError."""

    def __init__(self, name: str, data_dir: str | None):
        self._name, self._data_dir = name, data_dir

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if error is None or not isinstance(error, Exception):
            return
        import tensorflow_datasets as tfds

        where = self._data_dir or tfds.core.constants.DATA_DIR
        prepare = f"tfds build {self._name.partition(':')[0]}"
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"the TFDS data set {self._name} is not prepared in {where} ({first[:200]}); prepare "
            f"it by `{prepare} --data_dir={where}`, or name the folder that holds it by "
            "TFDS_DATA_DIR or the definition's data_dir"
        ) from error
