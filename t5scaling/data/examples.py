"""Examples: a task or mixture as a finite, numbered list of ready token sequences on disk.

An examples directory `<root>/<task>-<split>-<hash>/` is written once by `materialize` and holds

- `dataset.json`: the spec that was asked for, counts and provenance (see `materialize`);
- `vocabulary.model`: the SentencePiece model, without the sentinels (or what says that tokens are
  bytes, see `vocabulary`);
- `part-00000-of-0000N.array_record`, ...: the records in order.

A record is a msgpack map: `inputs` and `targets`, the tokens without padding as little-endian
int32 bytes, the segments of a packed row one after the other; `inputs_lengths` and
`targets_lengths`, the tokens of each segment; `text_tokens`, how many tokens of the corpus the row
covers; in evaluation splits also `inputs_pretokenized` and `targets_pretokenized`, the full text,
and `reference`, JSON of what a metric needs of the target where text is not enough.

Under a root in a bucket the directories are made on this machine and then copied, dataset.json
last; from there they are read part by part, each fetched into the cache when its first record is
asked for, so that who reads a prefix fetches a prefix. (ArrayRecord could open gs:// itself, but
makes a request for every record, one after the other: seconds a batch.)

This module needs neither SeqIO nor TensorFlow.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from t5scaling import records, storage, values
from t5scaling.data import provenance
from t5scaling.errors import UserError

FORMAT = 4  # of the directory; part of every hash, so that old directories are never misread
LONGEST_NAME = 180  # bytes of a task's: a file system takes 255, and names of files have endings
FIELDS = ("text", "inputs", "targets", "segments")
PARENT = "T5SCALING_PARENT"  # the process for which a child materialises, and with which it ends
META, VOCABULARY = "dataset.json", "vocabulary.model"  # in their directory, beside the parts
# What ArrayRecord and msgpack raise for bytes that are not what was written.
_UNREADABLE = (RuntimeError, ValueError, TypeError, KeyError, IndexError)


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What to materialise.

    Attributes:
        task: name of a SeqIO task or mixture.
        split: split of the task. Splits whose name starts with `train` are shuffled; all others
            are for evaluation: file order, with the full text beside the tokens.
        feature_lengths: tokens of a row, for `inputs` and `targets`.
        pack: several examples in a row, as segments.
        seed: of the shuffle and of random preprocessing.
        passes: task -> how often a mixture (or the task) may go through its data, 1 if not named.
            Every pass has noise and an order of its own.
        modules: importing these registers the task.
        definitions: tasks and mixtures from plain values, see `tasks.definitions`; name ->
            definition. They replace registered ones of the same names. Paths in them become
            absolute: a name of a file alone would mean another file elsewhere.
    """

    task: str
    split: values.Name
    feature_lengths: values.Lengths
    pack: bool = False
    seed: values.Seed = 0
    passes: Mapping[str, values.Positive] | None = None
    modules: tuple[values.Name, ...] = ("tasks.registry",)
    definitions: Mapping[str, Mapping] | None = None

    def __post_init__(self) -> None:
        # (a gin reference until it is set)
        if isinstance(self.task, str) and len(self.task.encode()) > LONGEST_NAME:
            raise UserError(
                f"the task {self.task[:40]}... has a name of {len(self.task.encode())} bytes; "
                f"expected at most {LONGEST_NAME}: files are called after it"
            )
        if isinstance(self.modules, str):
            raise UserError(
                f"modules are {self.modules!r}; expected a tuple of names, ({self.modules!r},)"
            )
        if isinstance(self.definitions, Mapping):
            found = {name: _with_absolute_paths(value) for name, value in self.definitions.items()}
            object.__setattr__(self, "definitions", found)

    def to_json(self) -> dict:
        """A canonical form: equal for specs that ask for the same examples."""
        passes = {task: n for task, n in sorted((self.passes or {}).items()) if n != 1}
        fields = {
            "task": self.task,
            "split": self.split,
            "feature_lengths": dict(sorted(self.feature_lengths.items())),
            "pack": self.pack,
            "seed": self.seed,
            "passes": passes,
            "modules": list(self.modules),
        }
        if self.definitions:
            try:
                fields["definitions"] = json.loads(
                    json.dumps(self._used_definitions(), sort_keys=True)
                )
            except TypeError as error:
                raise UserError(f"definitions of tasks must be plain values: {error}") from None
        return fields

    def _used_definitions(self) -> Mapping[str, Mapping]:
        """The definitions that decide what the task is: its own and those of its components, or,
        for a task that is registered elsewhere, all."""
        definitions = self.definitions or {}
        definition = definitions.get(self.task)
        if not isinstance(definition, Mapping):
            return definitions
        names = {self.task, *definition.get("rates", {})}
        return {name: value for name, value in definitions.items() if name in names}

    @classmethod
    def from_json(cls, fields: Mapping) -> "DataSpec":
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(fields) - known
        if unknown or not {"task", "split", "feature_lengths"} <= set(fields):
            raise UserError(
                f"a data spec has the fields {', '.join(sorted(known))} and needs task, split and "
                f"feature_lengths; got {', '.join(sorted(fields)) or 'none'}"
            )
        fields = dict(fields)
        if isinstance(fields.get("modules"), list):
            fields["modules"] = tuple(fields["modules"])
        return cls(**fields)

    @property
    def code_modules(self) -> tuple[str, ...]:
        """The modules that say what the examples are."""
        return (*self.modules, *(("tasks.definitions",) if self.definitions else ()))

    @property
    def is_training(self) -> bool:
        return self.split.startswith("train")

    @property
    def stem(self) -> str:
        """How the directory's name starts."""
        return f"{_file_name(self.task)}-{_file_name(self.split)}-"


def _with_absolute_paths(definition: Any) -> Any:
    """A definition of `tasks.definitions`; a value of another kind is returned as it is, for the
    check there."""
    if not isinstance(definition, Mapping):
        return definition
    changed = dict(definition)
    files = definition.get("files")
    if isinstance(files, Mapping):
        changed["files"] = {split: _absolute(patterns) for split, patterns in files.items()}
    if isinstance(definition.get("data_dir"), str):
        changed["data_dir"] = _absolute(definition["data_dir"])
    vocabulary = definition.get("vocabulary")
    if isinstance(vocabulary, str) and (os.sep in vocabulary or "." in vocabulary):
        changed["vocabulary"] = _absolute(vocabulary)  # others are names
    return changed


def _absolute(paths: Any) -> Any:
    if isinstance(paths, str) and paths:
        return paths if "://" in paths else os.path.abspath(storage.expanded(paths))
    return [_absolute(path) for path in paths] if isinstance(paths, list | tuple) else paths


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.]+", "_", name)[:80]  # a digest follows; the spec is compared


def sha256_of(value) -> str:
    """Hexadecimal sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def encode_record(inputs: Sequence, targets: Sequence, text_tokens: int, text: dict) -> bytes:
    """Packs one row: `inputs` and `targets` are lists of segments, int32 arrays."""
    record = {
        "inputs": np.concatenate(inputs).astype("<i4").tobytes(),
        "targets": np.concatenate(targets).astype("<i4").tobytes(),
        "inputs_lengths": [len(segment) for segment in inputs],
        "targets_lengths": [len(segment) for segment in targets],
        "text_tokens": int(text_tokens),
    }
    return to_msgpack(record | text)


def to_msgpack(value: dict[str, Any]) -> bytes:
    """The value as msgpack."""
    data = msgpack.packb(value)
    assert data is not None  # its stubs allow None, which only a `Packer` without reset gives
    return data


def decode_record(data: bytes) -> dict:
    """The record as a dict; `inputs` and `targets` are read-only int32 arrays."""
    record = msgpack.unpackb(data)
    for name in ("inputs", "targets"):
        record[name] = np.frombuffer(record[name], "<i4")
    return record


class Examples:
    """An examples directory, opened for reading.

    Reading is thread-safe. Every file is compared with the digest that was noted when it was
    written, once in a process: at once where they are small together, else when the first record of
    a file is asked for. Raises UserError if the directory is incomplete or damaged.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = storage.path(path)
        self.meta = _read_meta(self.path)
        if self.meta["format"] != FORMAT:
            raise UserError(
                f"{self.path} is of format {self.meta['format']}, of another version of this "
                f"program; expected format {FORMAT}"
            )
        self.spec = DataSpec.from_json(self.meta["spec"])
        self._shards = [self.path / shard["name"] for shard in self.meta["shards"]]
        self._starts = np.cumsum([0] + [s["records"] for s in self.meta["shards"]]).tolist()
        self._readers: dict[int, ArrayRecordReader] = {}
        self._opening = threading.Lock()
        self._check_sizes()
        size = sum(shard["bytes"] for shard in self.meta["shards"])
        if size <= provenance.HASHED_BYTES and not storage.in_bucket(self.path):
            for number in range(len(self._shards)):  # damage is found before the first step
                self._reader(number)
        vocabulary = self.path / VOCABULARY
        if not vocabulary.is_file():
            raise self._damaged(vocabulary, "is missing")
        self.vocabulary = storage.fetch(vocabulary)
        wanted = self.meta.get("vocabulary", {}).get("sha256")
        if wanted and hashlib.sha256(self.vocabulary.read_bytes()).hexdigest() != wanted:
            raise self._damaged(vocabulary, "is not the vocabulary that the examples were made of")

    def __len__(self) -> int:
        return self.meta["num_examples"]

    def __repr__(self) -> str:
        return f"Examples({str(self.path)!r}, {len(self)} examples)"

    def __reduce__(self):
        return Examples, (self.path,)

    def read(self, index: int) -> dict:
        """Record number `index`, 0 <= index < len(self), decoded."""
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[dict]:
        """The records with these numbers, in this order.

        One call for many is some 20 times faster than a call for each.
        """
        by_shard: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            if not 0 <= index < len(self):
                raise IndexError(f"example {index} of {len(self)} in {self.path}")
            by_shard.setdefault(bisect_right(self._starts, index) - 1, []).append(place)
        records: list[dict] = [{}] * len(indices)
        for shard, places in by_shard.items():
            local = [int(indices[place]) - self._starts[shard] for place in places]
            try:
                found = [decode_record(data) for data in self._reader(shard).read(local)]
            except _UNREADABLE as error:
                raise self._damaged(self._shards[shard], "holds damaged records") from error
            for place, record in zip(places, found, strict=True):
                records[place] = record
        return records

    def tokens(self, n: int, field: str = "text") -> int:
        """Tokens of the first `n` examples (rows) together, exactly.

        `field`: `text` (tokens of the corpus), `inputs` or `targets` (tokens of the rows without
        padding, with end-of-sequence tokens and sentinels), or `segments`: not tokens, but how
        many examples of the task are packed in the rows.
        """
        if field not in FIELDS:
            raise ValueError(f"field {field!r} is not one of {FIELDS}")
        if not 0 <= n <= len(self):
            raise IndexError(f"first {n} of {len(self)} examples in {self.path}")
        if n == len(self):
            return self.meta["tokens"][field]
        knots = self.meta["knots"]
        knot, rest = divmod(n, knots["every"])
        return knots[field][knot] + sum(self.row_tokens(range(n - rest, n), field))

    def row_tokens(self, indices: Sequence[int], field: str = "text") -> list[int]:
        """Tokens of each of these examples, `field` as in `tokens`."""
        count = {
            "text": lambda record: record["text_tokens"],
            "segments": lambda record: len(record["targets_lengths"]),
        }.get(field, lambda record: len(record[field]))
        return [count(record) for record in self.read_many(indices)]

    def _check_sizes(self) -> None:
        there = storage.sizes(self.path)
        for shard, entry in zip(self._shards, self.meta["shards"], strict=True):
            size, wanted = there.get(entry["name"]), entry["bytes"]
            if size is None:
                raise self._damaged(shard, "is missing")
            if size != wanted:
                raise self._damaged(shard, f"has {size:,} bytes instead of {wanted:,}")

    def _reader(self, number: int) -> ArrayRecordReader:
        with self._opening:
            if number not in self._readers:
                entry = self.meta["shards"][number]
                file = self._checked(self._shards[number], entry["sha256"])
                self._readers[number] = self._open(self._shards[number], file, entry["records"])
            return self._readers[number]

    def _checked(self, shard: storage.AnyPath, wanted: str) -> Path:
        """The file of a shard on this machine, which is what was written."""
        try:
            file = storage.fetch(shard)
            if _sha256_of_file(file) != wanted and file != shard:
                file.unlink()  # the copy may be what is damaged
                file = storage.fetch(shard)
            if _sha256_of_file(file) != wanted:
                raise self._damaged(shard, "is not what was written: its digest differs")
        except OSError as error:
            raise self._damaged(shard, f"cannot be read ({error.strerror})") from error
        return file

    def _open(self, shard: storage.AnyPath, file: Path, records: int) -> ArrayRecordReader:
        try:
            # Without read-ahead: records are read one by one, from many places.
            reader = ArrayRecordReader(str(file), "readahead_buffer_size:0,max_parallelism:0")
            found = reader.num_records()
        except (RuntimeError, ValueError) as error:
            raise self._damaged(shard, "is not a readable ArrayRecord file") from error
        if found != records:
            raise self._damaged(shard, f"holds {found:,} records instead of {records:,}")
        return reader

    def _damaged(self, file: storage.AnyPath, problem: str) -> UserError:
        return UserError(
            f"{file} {problem}: delete the directory {self.path} and materialise it again"
        )


def _sha256_of_file(file: Path) -> str:
    found = os.stat(file)
    return _digest(str(file), found.st_size, found.st_mtime_ns, found.st_ino)


@functools.cache
def _digest(file: str, *identity: int) -> str:
    """The digest of a file; `identity` is there so that a changed file is read again."""
    del identity
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


_META = {
    "format": records.COUNT, "spec": records.OBJECT, "spec_sha256?": records.NAME,
    "num_examples": records.COUNT, "tokens": records.COUNT_OF, "knots": records.OBJECT,
    "shards": records.OBJECTS, "vocabulary?": records.OBJECT, "metrics?": records.NAMES,
    "truncated": records.COUNT_OF, "max_lengths": records.COUNT_OF, "dataset_sha256": records.NAME,
}  # fmt: skip
_SHARD = {
    "name": records.NAME, "records": records.COUNT, "bytes": records.COUNT, "sha256": records.NAME,
}  # fmt: skip


def _read_meta(path: storage.AnyPath) -> dict:
    """What dataset.json holds. Raises UserError if its parts do not agree with each other."""
    file = path / META
    anew = f"delete the directory {path} and materialise it again"
    try:
        meta = records.read_object(file, {"format": records.COUNT})
        if meta is not None and meta["format"] == FORMAT:  # nobody reads on in another's
            _check_meta(records.check(meta, _META, str(file)), str(file))
    except UserError as error:
        raise UserError(f"damaged: {error}: {anew}") from None
    if meta is None:
        raise UserError(f"{path} is not an examples directory: no dataset.json in it")
    return meta


def _check_meta(meta: dict, file: str) -> None:
    """Raises UserError unless counts, sums and digests agree with each other."""
    rows, knots = meta["num_examples"], meta["knots"]
    for number, shard in enumerate(meta["shards"]):
        records.check(shard, _SHARD, f"{file}, shard {number}")
    if sum(shard["records"] for shard in meta["shards"]) != rows:
        raise UserError(f"{file}: the shards do not hold num_examples = {rows:,} together")
    if meta.get("spec_sha256", sha256_of(meta["spec"])) != sha256_of(meta["spec"]):
        raise UserError(f"{file}: spec_sha256 is not that of the spec")
    records.check(knots, {"every": records.COUNT, **dict.fromkeys(FIELDS, records.COUNTS)}, file)
    records.check(meta["tokens"], dict.fromkeys(FIELDS, records.COUNT), file)
    for field in FIELDS:
        sums = [*knots[field], meta["tokens"][field]]
        whole = knots["every"] > 0 and len(knots[field]) == 1 + rows // knots["every"]
        if not whole or sums[0] != 0 or sums != sorted(sums):
            raise UserError(f"{file}: the sums of {field} tokens cannot be of {rows:,} examples")
    rest = {name: value for name, value in meta.items() if name != "dataset_sha256"}
    if sha256_of(rest) != meta["dataset_sha256"]:
        raise UserError(f"{file}: it is not what was written: its digest differs")


def find_examples(spec: DataSpec, root: str | os.PathLike) -> Examples:
    """Opens the examples of `spec` under `root`; materialises them first if there are none."""
    return find_all_examples([spec], root)[0]


def find_all_examples(
    specs: Sequence[DataSpec], root: str | os.PathLike, beam: str | None = None
) -> list[Examples]:
    """As `find_examples` for several specs, materialising all missing ones in one process.

    With `beam`, options of an Apache Beam runner, that process hands the work to it. It is a child:
    SeqIO and TensorFlow never enter this one. Its progress goes to the terminal. Raises UserError
    for a wrong spec, for damaged data, and if more than one directory holds what was asked for.
    """
    there = storage.path(root)
    found = [finished(spec, there, explain=True) for spec in specs]
    missing = [spec for spec, path in zip(specs, found, strict=True) if path is None]
    if missing:
        here = storage.cached(root, "made")
        made = iter(_materialize_in_child(missing, here, beam))
        for place, path in enumerate(found):
            if path is None:
                new = next(made)
                storage.publish(new, there / new.name, last=META)
                found[place] = there / new.name
    return [Examples(path) for path in found if path is not None]


def finished(
    spec: DataSpec, root: storage.AnyPath, explain: bool = False
) -> storage.AnyPath | None:
    """The finished directory for `spec`, made of what is there now.

    If `explain`, says on stderr why others that were made for this spec are not taken.
    """
    wanted = spec.to_json()
    matches, stale = [], []
    for path in sorted(root.glob(f"{spec.stem}*")):
        if path.suffix == ".work" or not path.is_dir():
            continue
        if storage.in_bucket(path) and not (path / META).exists():
            continue  # being copied there
        meta = _read_meta(path)
        if meta.get("format") == FORMAT and meta["spec"] == wanted:
            made_from = meta.get("made_from")
            why = made_from and provenance.changed(made_from, spec.code_modules)
            if why:
                stale.append(f"{path} is not taken: {why} since it was made")
            else:
                matches.append(path)
    if len(matches) > 1:
        raise UserError(
            f"{len(matches)} directories hold {spec.task} {spec.split} as asked for, from "
            f"different versions of the task: keep one, delete the others: "
            + ", ".join(str(path) for path in matches)
        )
    if explain and stale and not matches:
        for line in stale:
            print(f"{line}; making {spec.task} {spec.split} anew", file=sys.stderr, flush=True)
    return matches[0] if matches else None


def _materialize_in_child(specs: Sequence[DataSpec], root: Path, beam: str | None) -> list[Path]:
    """The finished directories. What the child says of a mistake is raised here."""
    command = provenance.child("t5scaling.data.materialize", "-", str(root))
    if beam is not None:
        command.append(f"--beam={beam}")
    done = subprocess.run(
        command,
        input=json.dumps([spec.to_json() for spec in specs]),
        stdout=subprocess.PIPE,
        text=True,
        # What the data are made of may be on gs:// too, and there TensorFlow may read it.
        env=provenance.child_environment(**{"EPATH_USE_TF": "true", PARENT: str(os.getpid())}),
    )
    lines = done.stdout.splitlines()
    if done.returncode == 0:
        return [Path(line) for line in lines]
    names = ", ".join(f"{spec.task} {spec.split}" for spec in specs)
    if done.returncode == 2 and lines:
        raise UserError(lines[-1])
    if done.returncode == -signal.SIGKILL:
        raise UserError(
            f"materialising {names} was killed, as happens when memory runs out; what is finished "
            "is kept, and the same command goes on from there"
        )
    raise UserError(f"materialising {names} ended with status {done.returncode}")
