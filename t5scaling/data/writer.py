"""Writing: from sorted runs of examples to the parts of an examples directory.

`Mixture` says which examples come where: of every task its passes one after another, each in the
order of its keys; the tasks by turns. Parts are equal ranges of that list, so each can be written
alone, by anybody who sees the work directory.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from t5scaling.data import work
from t5scaling.data.examples import FIELDS, META, VOCABULARY, DataSpec, encode_record, sha256_of
from t5scaling.data.mixing import interleave
from t5scaling.data.packing import pack
from t5scaling.data.runs import FEATURES, Block, SortedRun

MAX_KNOTS = 4096
PART_BYTES = 1 << 27  # of tokens and texts


class Pass:
    """One pass over a task: its runs together, in the order of the keys."""

    def __init__(self, at: Path, entries: Sequence[dict]):
        self._runs = [SortedRun(at, entry) for entry in entries]
        self._sizes = [entry["examples"] for entry in entries]
        self.bytes = sum(entry["tokens"] + entry["texts"] for entry in entries)

    def __len__(self) -> int:
        return sum(self._sizes)

    @functools.cached_property
    def _keys(self) -> list[np.ndarray]:
        return [run.keys() for run in self._runs]

    def take(self, first: int, last: int) -> list[tuple[np.ndarray, Block]]:
        """The examples ranked [first, last): keys and examples of every run that has some."""
        slices = zip(self._runs, self._split(first), self._split(last), strict=True)
        return [run.read(start, end) for run, start, end in slices if end > start]

    def _split(self, rank: int) -> list[int]:
        """How many examples of each run are among the first `rank` of all."""
        if rank == len(self):
            return list(self._sizes)
        # The key of the example ranked `rank`: the smallest with more than `rank` up to it.
        low, high = 0, 2**64 - 1
        while low < high:
            middle = (low + high) // 2
            if sum(self._up_to(middle)) > rank:
                high = middle
            else:
                low = middle + 1
        below = self._up_to(low - 1) if low else [0] * len(self._runs)
        # Equal keys count in the order of the runs.
        left = rank - sum(below)
        for number, equal in enumerate(self._up_to(low)):
            more = min(left, equal - below[number])
            below[number] += more
            left -= more
        return below

    def _up_to(self, key: int) -> list[int]:
        wanted = np.uint64(key)
        return [int(keys.searchsorted(wanted, side="right")) for keys in self._keys]


class Mixture:
    """The list of examples that becomes a directory; see the module.

    Attributes:
        components: what dataset.json says of each task.
        ran_out: the task that ended the list, if there is more than one.
        size: examples in the list.
        parts: files it is written to.
    """

    def __init__(self, at: Path, components: Sequence[dict]):
        """`components`: for each task its `task` (name), `rate`, and `passes`, runs of each."""
        self._passes = [[Pass(at, runs) for runs in entry["passes"]] for entry in components]
        available = [sum(map(len, passes)) for passes in self._passes]
        rates = [entry["rate"] for entry in components]
        self._schedule, self.size, ran_out = interleave(rates, available)
        self.ran_out = components[ran_out]["task"] if len(components) > 1 else None
        used = self._schedule.before(self.size).tolist()
        self.components = [
            {
                "task": entry["task"],
                "rate": entry["rate"],
                "passes": len(entry["passes"]),
                "available": have,
                "used": use,
            }
            for entry, have, use in zip(components, available, used, strict=True)
        ]
        size = sum(
            sum(p.bytes for p in passes) * use // max(have, 1)
            for passes, have, use in zip(self._passes, available, used, strict=True)
        )
        self.parts = max(min(math.ceil(size / PART_BYTES), self.size), 1)

    def part(self, number: int) -> tuple[Block, np.ndarray]:
        """The examples of a part, in no order, and their places in the order they belong, int64."""
        first, last = (self.size * n // self.parts for n in (number, number + 1))
        turns = self._schedule.turns(first, last)
        lows, highs = self._schedule.before(first), self._schedule.before(last)
        blocks: list[Block] = []
        order = np.empty(last - first, np.int64)
        size = 0
        for component, passes in enumerate(self._passes):
            taken, start = [], 0
            for one in passes:
                low = max(int(lows[component]) - start, 0)
                high = min(int(highs[component]) - start, len(one))
                start += len(one)
                if high <= low:
                    continue
                found = one.take(low, high)
                keys = np.concatenate([keys for keys, _ in found])
                blocks += [block for _, block in found]
                taken.append(size + np.argsort(keys, kind="stable"))
                size += len(keys)
            if taken:
                order[turns == component] = np.concatenate(taken)
        return _join(blocks), order


def _join(blocks: list[Block]) -> Block:
    index = np.concatenate([block.index for block in blocks])
    for column in ("tokens", "texts"):
        sizes = [len(getattr(block, column)) for block in blocks]
        starts = np.cumsum([0, *sizes[:-1]])
        index[f"{column}_end"] += np.repeat(starts, [len(block) for block in blocks])
    return Block(
        index,
        b"".join(block.tokens for block in blocks),
        b"".join(block.texts for block in blocks),
    )


def save_mixture(at: Path, spec: DataSpec, components: Sequence[dict]) -> Mixture:
    """Leaves in the work directory what `write_part` needs."""
    work.write_json(at, at / "mixture.json", {"spec": spec.to_json(), "components": components})
    return Mixture(at, components)


@functools.lru_cache(maxsize=1)
def _load_mixture(at: Path, changed: int) -> tuple[DataSpec, Mixture]:
    saved = json.loads((at / "mixture.json").read_text(encoding="utf-8"))
    return DataSpec.from_json(saved["spec"]), Mixture(at, saved["components"])


def part_name(number: int, parts: int) -> str:
    return f"part-{number:05d}-of-{parts:05d}.array_record"


def write_part(at: Path, number: int, count: Callable[[int], None] = lambda rows: None) -> None:
    """Writes a part to `final/`, and to `written/` what is known of it, unless they are there.

    `count` is called with numbers of rows as they are written.
    """
    spec, mixture = _load_mixture(at, (at / "mixture.json").stat().st_mtime_ns)
    name = part_name(number, mixture.parts)
    if work.finished(at, "written", name):
        return
    block, order = mixture.part(number)
    rows = _rows(block.index, order, spec)
    digest = hashlib.sha256()
    path = at / "final" / name
    with work.new_file(at, path) as temporary:
        # One record in a group, because rows are read in any order.
        writer = ArrayRecordWriter(str(temporary), "group_size:1,snappy")
        try:
            for place, data in enumerate(_records(block, rows)):
                digest.update(data)
                writer.write(data)
                if place % 1024 == 1023:
                    count(1024)
        finally:
            writer.close()
        with open(temporary, "rb") as file:
            of_file = hashlib.file_digest(file, "sha256").hexdigest()
    count(len(rows) % 1024)
    table = at / "written" / f"{name}.npy"
    with work.new_file(at, table) as temporary, open(temporary, "wb") as file:
        np.save(file, _count_rows(block.index, rows))
    chosen = block.index[order]
    size = path.stat().st_size
    manifest = {
        "files": {f"final/{name}": size, f"written/{name}.npy": table.stat().st_size},
        "name": name,
        "records": len(rows),
        "bytes": size,
        "sha256": of_file,
        "records_sha256": digest.hexdigest(),
        "segments": len(order),
        "max_lengths": {feature: int(chosen[feature].max()) for feature in FEATURES},
        "truncated": {
            feature: int((chosen[f"{feature}_whole"] > chosen[feature]).sum())
            for feature in FEATURES
        },
    }
    work.write_json(at, at / "written" / f"{name}.json", manifest)


def _rows(index: np.ndarray, order: np.ndarray, spec: DataSpec) -> list[list[int]]:
    """The rows of the part: which examples each holds."""
    if not spec.pack:
        return order[:, np.newaxis].tolist()
    limits = [spec.feature_lengths[name] for name in FEATURES]
    rows = pack([index[name][order] for name in FEATURES], limits)
    places = order.tolist()
    return [[places[i] for i in row] for row in rows]


def _records(block: Block, rows: Sequence[Sequence[int]]):
    index = block.index
    tokens = np.frombuffer(block.tokens, "<i4")
    split = (index["tokens_end"] // 4 - index["targets"]).tolist()
    starts = (index["tokens_end"] // 4 - index["targets"] - index["inputs"]).tolist()
    ends = (index["tokens_end"] // 4).tolist()
    text_tokens = index["text_tokens"].tolist()
    texts = [0, *index["texts_end"].tolist()]
    for row in rows:
        maps = [msgpack.unpackb(block.texts[texts[i] : texts[i + 1]]) for i in row if block.texts]
        yield encode_record(
            [tokens[starts[i] : split[i]] for i in row],
            [tokens[split[i] : ends[i]] for i in row],
            sum(text_tokens[i] for i in row),
            {name: " ".join(found[name] for found in maps) for name in (maps[0] if maps else ())},
        )


def _count_rows(index: np.ndarray, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """What each row has of each of FIELDS, int32 (fields, rows)."""
    sizes = [len(row) for row in rows]
    members = index[np.concatenate([np.asarray(row) for row in rows])]
    starts = np.cumsum([0, *sizes[:-1]])
    columns = {"text": members["text_tokens"]} | {name: members[name] for name in FEATURES}
    columns["segments"] = np.ones(len(members), np.int32)
    return np.stack([np.add.reduceat(columns[field], starts) for field in FIELDS])


def finish(at: Path, final: Path, meta: dict, mixture: Mixture, vocabulary: bytes) -> dict:
    """Adds vocabulary.model and dataset.json to the parts, and moves the directory to `final`.

    Returns the contents of dataset.json.
    """
    manifests = []
    for number in range(mixture.parts):
        name = part_name(number, mixture.parts)
        found = work.finished(at, "written", name)
        if found is None:
            raise work.DiskError(f"{at / 'final' / name} was lost: start again")
        manifests.append(found)
    rows = sum(found["records"] for found in manifests)
    every = math.ceil((rows + 1) / MAX_KNOTS)
    knots: dict[str, list[int]] = {field: [0] for field in FIELDS}
    totals = np.zeros((len(FIELDS), 1), np.int64)
    done = 0
    for found in manifests:
        table = np.load(at / "written" / f"{found['name']}.npy")
        cumulated = totals + np.cumsum(table, axis=1, dtype=np.int64)
        # Column j is the total of the first done + j + 1 rows.
        for field, column in zip(FIELDS, cumulated[:, -(done + 1) % every :: every], strict=True):
            knots[field] += column.tolist()
        totals, done = cumulated[:, -1:], done + table.shape[1]
    content = hashlib.sha256("".join(found["records_sha256"] for found in manifests).encode())
    meta = meta | {
        "components": mixture.components,
        "ran_out": mixture.ran_out,
        "num_examples": rows,
        "num_segments": mixture.size,
        "tokens": dict(zip(FIELDS, totals[:, 0].tolist(), strict=True)),
        "max_lengths": {
            name: max(found["max_lengths"][name] for found in manifests) for name in FEATURES
        },
        "truncated": {
            name: sum(found["truncated"][name] for found in manifests) for name in FEATURES
        },
        "knots": {"every": every} | knots,
        "shards": [
            {key: found[key] for key in ("name", "records", "bytes", "sha256")}
            for found in manifests
        ],
        "content_sha256": content.hexdigest(),
    }
    meta = json.loads(json.dumps(meta))  # as it is read
    meta["dataset_sha256"] = sha256_of(meta)
    with work.new_file(at, at / "final" / VOCABULARY) as temporary:
        temporary.write_bytes(vocabulary)
    work.write_json(at, at / "final" / META, meta)
    with work.disk_errors(final):
        (at / "final").rename(final)
    return meta
