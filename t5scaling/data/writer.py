"""Writing an examples directory: whole or not at all, also when several processes write it."""

import dataclasses
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from t5scaling.data.examples import encode_record
from t5scaling.errors import UserError

FEATURES = ("inputs", "targets")
MAX_KNOTS = 4096
SHARD_BYTES = 1 << 28


@dataclasses.dataclass
class Table:
    """Examples in memory, by columns: for each feature the tokens of all examples in a row."""

    tokens: dict[str, np.ndarray]  # int32
    lengths: dict[str, np.ndarray]  # int64 (n,)
    whole: dict[str, np.ndarray]  # int64 (n,): lengths before truncation
    text_tokens: np.ndarray  # int64 (n,)
    texts: dict[str, list[bytes]]  # `<feature>_pretokenized`, in evaluation splits

    def __len__(self) -> int:
        return len(self.text_tokens)

    @staticmethod
    def join(tables: Sequence["Table"]) -> "Table":
        def joined(attribute):
            columns = [getattr(table, attribute) for table in tables]
            return {key: np.concatenate([c[key] for c in columns]) for key in columns[0]}

        texts = [table.texts for table in tables]
        return Table(
            **{name: joined(name) for name in ("tokens", "lengths", "whole")},
            text_tokens=np.concatenate([table.text_tokens for table in tables]),
            texts={key: [text for t in texts for text in t[key]] for key in texts[0]},
        )


def counts(table: Table, rows: Sequence[Sequence[int]]) -> dict:
    """What dataset.json says of `rows`, lists of example numbers: totals, knots, truncation."""
    members = np.concatenate([np.asarray(row) for row in rows])
    ends = np.cumsum([len(row) for row in rows])
    per_example = {"text": table.text_tokens} | {name: table.lengths[name] for name in FEATURES}
    every = math.ceil((len(rows) + 1) / MAX_KNOTS)
    tokens, knots = {}, {"every": every}
    for field, column in per_example.items():
        cumulated = np.concatenate([[0], np.cumsum(column[members])[ends - 1]])
        knots[field] = cumulated[::every].tolist()
        tokens[field] = int(cumulated[-1])
    return {
        "num_examples": len(rows),
        "num_segments": len(members),
        "tokens": tokens,
        "max_lengths": {name: int(table.lengths[name][members].max()) for name in FEATURES},
        "truncated": {
            name: int((table.whole[name] > table.lengths[name])[members].sum()) for name in FEATURES
        },
        "knots": knots,
    }


def write_directory(
    final: Path,
    meta: dict,
    table: Table,
    rows: Sequence[Sequence[int]],
    vocabulary_file: str,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict:
    """Writes `final` under another name and renames it when it is complete.

    If another process has finished the same directory meanwhile, that one stays. `progress` is
    called with the rows written so far. Returns the contents of dataset.json. Raises UserError
    if the directory cannot be written; whatever is raised, nothing half-written stays.
    """
    temporary = final.with_name(
        f"{final.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.tmp"
    )
    try:
        _remove_abandoned(final)
        temporary.mkdir(parents=True)
        shutil.copyfile(vocabulary_file, temporary / "vocabulary.model")
        meta = meta | _write_shards(table, rows, temporary, progress)
        (temporary / "dataset.json").write_text(json.dumps(meta, indent=1) + "\n")
        _rename(temporary, final)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"cannot write {final}: {error}") from error
        raise UserError(
            f"no space left to write {final}: nothing was kept; free some space or choose "
            "another directory"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return meta


def _write_shards(table, rows, directory: Path, progress) -> dict:
    """Writes the ArrayRecord files, each a contiguous range of rows."""
    starts = {name: np.concatenate([[0], np.cumsum(table.lengths[name])]) for name in FEATURES}

    def segments(name, row):
        return [table.tokens[name][starts[name][i] : starts[name][i + 1]] for i in row]

    def record(row):
        texts = {key: b" ".join(column[i] for i in row) for key, column in table.texts.items()}
        return encode_record(
            segments("inputs", row),
            segments("targets", row),
            sum(table.text_tokens[i] for i in row),
            {key: text.decode() for key, text in texts.items()},
        )

    size = sum(table.tokens[name].nbytes for name in FEATURES)
    shards = min(math.ceil(size / SHARD_BYTES), len(rows))
    content, entries = hashlib.sha256(), []
    for shard, numbers in enumerate(np.array_split(np.arange(len(rows)), shards)):
        path = directory / f"part-{shard:05d}-of-{shards:05d}.array_record"
        # One record in a group, because rows are read in any order.
        writer = ArrayRecordWriter(str(path), "group_size:1,snappy")
        with _disk_errors(path):
            try:
                for number in numbers:
                    data = record(rows[number])
                    content.update(data)
                    writer.write(data)
                    if number % 1024 == 0:
                        progress(int(number))
            finally:
                writer.close()
        entries.append({"name": path.name, "records": len(numbers), "bytes": path.stat().st_size})
    progress(len(rows))
    return {"shards": entries, "content_sha256": content.hexdigest()}


class _disk_errors:
    """ArrayRecord reports a full disk as a RuntimeError; gives it back its number."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, RuntimeError):
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number), str(self._path)) from error


def _rename(temporary: Path, final: Path) -> None:
    try:
        temporary.rename(final)
    except OSError as error:
        # Another process was faster; its directory holds the same.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _remove_abandoned(final: Path) -> None:
    """Removes what processes of this machine left half-written when they were killed."""
    for path in final.parent.glob(f"{final.name}.{socket.gethostname()}-*.tmp"):
        process = path.name.removesuffix(".tmp").split("-")[-2]
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # alive, another user's
