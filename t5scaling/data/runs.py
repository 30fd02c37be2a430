"""Runs: examples on disk in the order of their keys, in files of bounded size.

The global shuffle is a sort by random keys that needs no more memory than one run: examples are
written as sorted runs, and whoever wants those with keys in some range takes a slice of each run.

A run is one file, `keys | index | tokens | texts`: uint64 keys in ascending order; for each example
a record of INDEX; then each example's tokens as int32, inputs before targets; then what else there
is, msgpack maps. All little-endian.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5scaling.data import work as work_lib

FEATURES = ("inputs", "targets")
RUN_BYTES = 1 << 26  # of tokens and texts
# What is known of an example: where its tokens and texts end within the run, in bytes; the tokens
# of its features, as they are and before truncation; and how many tokens are of the corpus.
INDEX = np.dtype(
    [("tokens_end", "<i8"), ("texts_end", "<i8")]
    + [(name, "<i4") for name in (*FEATURES, *(f"{name}_whole" for name in FEATURES))]
    + [("text_tokens", "<i4")]
)


@dataclasses.dataclass
class Block:
    """Some examples: `index` (n,) of INDEX; the bytes of all tokens and texts, one after another.

    `texts` is empty if the examples have none.
    """

    index: np.ndarray
    tokens: bytes | bytearray
    texts: bytes | bytearray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return len(self.tokens) + len(self.texts)


class RunWriter:
    """Collects examples and writes them as runs `<name>-<number>.run` into `<work>/read`.

    `files` has the runs so far: file within the work directory -> bytes; `runs` their sizes, see
    `open_run`.
    """

    def __init__(self, work: Path, name: str):
        self._work, self._name = work, name
        self._keys: list[np.ndarray] = []
        self._blocks: list[Block] = []
        self.files: dict[str, int] = {}
        self.runs: list[dict] = []

    def add(self, keys: np.ndarray, block: Block) -> None:
        """Adds examples with these keys, uint64 (n,); equal keys keep the order of addition."""
        self._keys.append(keys)
        self._blocks.append(block)
        if sum(block.nbytes for block in self._blocks) >= RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is left."""
        blocks, self._blocks = self._blocks, []
        keys, self._keys = self._keys, []
        if not sum(map(len, blocks)):
            return
        keys = np.concatenate(keys)
        order = np.argsort(keys, kind="stable")
        index = np.concatenate([block.index for block in blocks])
        columns = {name: _joined(blocks, name) for name in ("tokens", "texts")}
        del blocks
        path = self._work / "read" / f"{self._name}-{len(self.runs):04d}.run"
        index = index[order]
        with work_lib.new_file(self._work, path) as temporary, open(temporary, "wb") as file:
            for name, (_, sizes) in columns.items():
                index[f"{name}_end"] = np.cumsum(sizes[order])
            file.write(keys[order].astype("<u8").data)
            file.write(index.data)
            for data, sizes in columns.values():
                ends = np.cumsum(sizes)
                starts = ends - sizes
                for chunk in np.array_split(order, len(order) // 4096 + 1):
                    places = zip(starts[chunk].tolist(), ends[chunk].tolist(), strict=True)
                    file.write(b"".join([data[start:end] for start, end in places]))
            size = file.tell()
        name = str(path.relative_to(self._work))
        self.files[name] = size
        last = index[-1]
        sizes = {"tokens": int(last["tokens_end"]), "texts": int(last["texts_end"])}
        self.runs.append({"file": name, "examples": len(index)} | sizes)


def _joined(blocks: Sequence[Block], column: str) -> tuple[bytes, np.ndarray]:
    """A column of all blocks, and how many bytes of it each example has."""
    sizes = [np.diff(block.index[f"{column}_end"], prepend=0) for block in blocks]
    return b"".join(getattr(block, column) for block in blocks), np.concatenate(sizes)


class SortedRun:
    """A run, opened for reading; `entry` as `RunWriter.runs` has it."""

    def __init__(self, work: Path, entry: dict):
        self._path, self._size = work / entry["file"], entry["examples"]
        self._index_at = 8 * self._size
        self._tokens_at = self._index_at + INDEX.itemsize * self._size
        self._texts_at = self._tokens_at + entry["tokens"]

    def keys(self) -> np.ndarray:
        """All keys, uint64, on disk until they are looked at."""
        return np.memmap(self._path, "<u8", "r", shape=(self._size,))

    def read(self, first: int, last: int) -> tuple[np.ndarray, Block]:
        """Keys and examples at places [first, last), `last` > `first`."""
        with open(self._path, "rb") as file:

            def part(start: int, size: int) -> bytearray:
                data = bytearray(size)
                file.seek(start)
                if file.readinto(data) != size:
                    raise OSError(f"{self._path} is shorter than it was")
                return data

            keys = np.frombuffer(part(8 * first, 8 * (last - first)), "<u8")
            # One more, whose ends are where the first example starts.
            before = min(first, 1)
            size = INDEX.itemsize
            places = (first - before, last - first + before)
            data = part(self._index_at + size * places[0], size * places[1])
            index = np.frombuffer(data, INDEX)
            columns = {}
            for column, at in (("tokens", self._tokens_at), ("texts", self._texts_at)):
                ends = index[f"{column}_end"]
                start = int(ends[0]) if before else 0
                columns[column] = part(at + start, int(ends[-1]) - start)
                ends -= start
            return keys, Block(index[before:], **columns)
