"""Materialisation: a SeqIO task or mixture becomes a finite list of ready examples on disk.

The only module of the package that imports SeqIO and TensorFlow, and only when it is put to work.
`t5scaling.data.examples` documents the directory it writes and opens it again. `dataset.json` has

- `spec`, `spec_sha256`, `fingerprint` (of the task's definition), `vocabulary` (sha256, size,
  extra_ids, eos_id), `content_sha256` (of all records in order);
- `num_examples`, `tokens` (totals of text, inputs and targets), `knots` (the same counts
  cumulated, at every `every`-th example from 0), `max_lengths`, `truncated` (examples cut to the
  feature length, per feature);
- `components`: for each task of a mixture its rate, passes, the examples available and used; and
  `ran_out`, the task that ended the list, if the mixture has more than one;
- `shards`: name, records and bytes of each file.

Run by hand: `python -m t5scaling.data.materialize '{"task": ..., ...}' ROOT`.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from t5scaling.data import examples as examples_lib
from t5scaling.data.examples import DataSpec, sha256_of
from t5scaling.data.mixing import interleave
from t5scaling.data.packing import pack
from t5scaling.data.writer import FEATURES, Table, counts, write_directory
from t5scaling.errors import UserError, nearest


def materialize(spec: DataSpec, root: str | os.PathLike, console: Console | None = None) -> Path:
    """Writes the examples of `spec` under `root`, unless they are there; returns the directory.

    The directory appears whole or not at all, also when several processes do this at once.
    Raises UserError for an unknown task, split or module, for feature lengths that do not fit
    the task, and for a full disk.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    seqio = _import_seqio()
    provider = _find(seqio, spec)
    vocabulary_file, vocabulary = _vocabulary(seqio, provider)
    meta = {
        "format": examples_lib.FORMAT,
        "spec": spec.to_json(),
        "spec_sha256": sha256_of(spec.to_json()),
        "fingerprint": _fingerprint(seqio, provider),
        "seqio": seqio.__version__,
        "vocabulary": vocabulary,
    }
    identity = {key: meta[key] for key in ("format", "spec", "fingerprint", "vocabulary")}
    final = Path(root) / (spec.stem + sha256_of(identity)[:12])
    if final.is_dir():
        return final

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} examples"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        table, order, mixed = _collect(seqio, provider, spec, progress)
        rows = _rows(table, order, spec)
        meta |= mixed | counts(table, rows)
        bar = progress.add_task(f"writing {final.name}", total=len(rows))
        meta = write_directory(
            final,
            meta,
            table,
            rows,
            vocabulary_file,
            lambda written: progress.update(bar, completed=written),
        )
    _report(console, spec, meta, final, time.monotonic() - started)
    return final


def _import_seqio():
    """SeqIO, with a TensorFlow that keeps quiet and leaves accelerators to others."""
    if "seqio" not in sys.modules:
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
        # What TensorFlow logs as it is loaded and looks for devices heeds no level.
        with (
            _environment(quiet | {"CUDA_VISIBLE_DEVICES": ""}),
            open(os.devnull, "w") as nowhere,
            _stderr_to(nowhere),
        ):
            import seqio
            import tensorflow as tf

            tf.constant(0)
    import seqio

    return seqio


@contextlib.contextmanager
def _environment(variables: dict[str, str]):
    saved = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _stderr_to(file):
    """Sends the process's file descriptor 2 to `file`: native code writes there directly."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _find(seqio, spec: DataSpec):
    """The task or mixture of `spec`, after checking all that can be checked without reading."""
    for module in spec.modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            raise UserError(f"no module {module!r} to register tasks from") from None
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if spec.task not in names:
        raise UserError(f"unknown task or mixture {spec.task!r}{nearest(spec.task, names)}")
    provider = seqio.get_mixture_or_task(spec.task)
    tasks = _tasks(provider)
    for task in tasks:
        if spec.split not in task.splits:
            raise UserError(
                f"task {task.name} has no split {spec.split!r}{nearest(spec.split, task.splits)}"
            )
    task_names = [task.name for task in tasks]
    for name, passes in (spec.passes or {}).items():
        if name not in task_names:
            raise UserError(
                f"passes names {name!r}, which is not in {spec.task}{nearest(name, task_names)}"
            )
        if not isinstance(passes, int) or passes < 1:
            raise UserError(f"passes of {name} must be 1 or more, got {passes!r}")
    if set(spec.feature_lengths) != set(FEATURES):
        given = ", ".join(sorted(spec.feature_lengths)) or "none"
        raise UserError(f"feature lengths of {spec.task} are inputs and targets, got {given}")
    for name, length in spec.feature_lengths.items():
        if not isinstance(length, int) or length < 1:
            raise UserError(f"feature length {name} must be 1 or more tokens, got {length!r}")
    return provider


def _tasks(provider) -> list:
    return list(getattr(provider, "tasks", [provider]))


def _vocabulary(seqio, provider) -> tuple[str, dict]:
    vocabulary = provider.output_features["inputs"].vocabulary
    if (
        not isinstance(vocabulary, seqio.SentencePieceVocabulary)
        or vocabulary != provider.output_features["targets"].vocabulary
    ):
        raise UserError(
            f"{provider.name} must use one SentencePieceVocabulary for inputs and targets"
        )
    file = vocabulary.sentencepiece_model_file
    return file, {
        "sha256": hashlib.sha256(Path(file).read_bytes()).hexdigest(),
        "size": vocabulary.vocab_size,
        "extra_ids": vocabulary.extra_ids,
        "eos_id": vocabulary.eos_id,
    }


def _fingerprint(seqio, provider) -> str:
    """Changes with the definition of the task: source, steps, their arguments, mixing rates."""

    def describe(function):
        arguments = dict(getattr(function, "keywords", {}))
        return [seqio.utils.function_name(function), repr(sorted(arguments.items()))]

    return sha256_of(
        [
            {
                "task": task.name,
                "rate": _rate(provider, task),
                "source": [type(task.source).__name__, describe(_source_function(task.source))],
                "preprocessors": [describe(step) for step in task.preprocessors],
                "eos": [task.output_features[name].add_eos for name in FEATURES],
            }
            for task in _tasks(provider)
        ]
    )


def _source_function(source):
    return getattr(source, "_dataset_fn", functools.partial(repr, source))


def _rate(provider, task) -> float:
    return provider.get_rate(task) if provider is not task else 1.0


def _collect(seqio, provider, spec: DataSpec, progress: Progress) -> tuple[Table, np.ndarray, dict]:
    """Reads every component, shuffles it and mixes.

    Returns (all examples, the numbers of the chosen ones in order, what to say of the components).
    """
    tables, orders, components, offset = [], [], [], 0
    for task in _tasks(provider):
        passes = (spec.passes or {}).get(task.name, 1)
        first = offset
        order = []
        for number in range(passes):
            table = _read(task, spec, number, progress)
            order.append(offset + _permutation(len(table), spec, task.name, number))
            tables.append(table)
            offset += len(table)
        orders.append(np.concatenate(order))
        components.append(
            {
                "task": task.name,
                "rate": _rate(provider, task),
                "passes": passes,
                "available": offset - first,
            }
        )
    turns, ran_out = interleave(
        [component["rate"] for component in components], [len(order) for order in orders]
    )
    chosen = np.empty(len(turns), np.int64)
    for number, (order, component) in enumerate(zip(orders, components, strict=True)):
        mine = turns == number
        component["used"] = int(mine.sum())
        chosen[mine] = order[: component["used"]]
    if len(chosen) == 0:
        raise UserError(f"{spec.task} {spec.split} has no examples")
    ended_by = components[ran_out]["task"] if len(components) > 1 else None
    return Table.join(tables), chosen, {"components": components, "ran_out": ended_by}


def _seed(*parts) -> int:
    return int(sha256_of(parts), 16)


def _permutation(n: int, spec: DataSpec, task: str, number: int) -> np.ndarray:
    """The order of one pass over one task: the seed's when training, else as the task gives it."""
    if not spec.is_training:
        return np.arange(n)
    key = _seed("order", spec.seed, task, number) % 2**128
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


def _read(task, spec: DataSpec, number: int, progress: Progress) -> Table:
    """Pass `number` over a task, as SeqIO gives it, cut to the feature lengths and counted."""
    import tensorflow as tf

    try:
        dataset = task.get_dataset(
            sequence_length=dict(spec.feature_lengths),
            split=spec.split,
            shuffle=False,
            seed=_seed("noise", spec.seed, task.name, number) % 2**31,
            trim_output_features=False,  # trimmed here, where it can be counted
            try_in_mem_cache=False,
        )
    except ValueError as error:
        raise UserError(f"{task.name} {spec.split}: {error}") from None
    kept = {"inputs": -1, "targets": -1, "text_tokens": 0}
    if not spec.is_training:
        kept |= {f"{name}_pretokenized": "" for name in FEATURES}
    kept = {name: pad for name, pad in kept.items() if name in dataset.element_spec}
    if set(kept) != set(dataset.element_spec):
        dataset = dataset.map(lambda example: {name: example[name] for name in kept})
    # Per element TensorFlow costs more than the work itself, so elements come in batches.
    dataset = dataset.padded_batch(
        1024,
        padding_values={
            name: tf.constant(pad, dataset.element_spec[name].dtype) for name, pad in kept.items()
        },
    ).prefetch(2)
    # Tuning takes as long as the whole job, and then holds up the end of the iteration.
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)

    bar = progress.add_task(f"reading {task.name} {spec.split}", total=None)
    tables = []
    for batch in dataset.as_numpy_iterator():
        tables.append(_table(batch, spec, task.output_features["inputs"].vocabulary.eos_id))
        progress.advance(bar, len(tables[-1]))
    progress.update(bar, total=sum(map(len, tables)))
    if not tables:
        raise UserError(f"{task.name} {spec.split} has no examples")
    table = Table.join(tables)
    _refuse_if_all_truncated(table, task, spec)
    return table


def _table(batch: dict[str, np.ndarray], spec: DataSpec, eos_id: int) -> Table:
    """One padded batch as columns.

    Text tokens lost by truncation are taken off; a lost end-of-sequence token is not text.
    """
    tokens, lengths, whole, text_tokens, lost = {}, {}, {}, 0, 0
    for name in FEATURES:
        rows, limit = batch[name], spec.feature_lengths[name]
        size = (rows >= 0).sum(axis=1)
        has_eos = rows[np.arange(len(rows)), np.maximum(size - 1, 0)] == eos_id
        kept = rows[:, :limit]
        tokens[name] = kept[kept >= 0].astype(np.int32)
        lengths[name] = np.minimum(size, limit)
        whole[name] = size
        text_tokens = text_tokens + size - has_eos
        lost = lost + np.maximum(size - limit - has_eos, 0)
    if "text_tokens" in batch:
        text_tokens = batch["text_tokens"].astype(np.int64)
    return Table(
        tokens=tokens,
        lengths=lengths,
        whole=whole,
        text_tokens=np.maximum(text_tokens - lost, 0),
        texts={
            f"{name}_pretokenized": batch[f"{name}_pretokenized"].tolist()
            for name in FEATURES
            if f"{name}_pretokenized" in batch
        },
    )


def _refuse_if_all_truncated(table: Table, task, spec: DataSpec) -> None:
    limits = spec.feature_lengths
    fits = np.logical_and(*(table.whole[name] <= limits[name] for name in FEATURES))
    if not fits.any():
        shortest = np.argmin(sum(table.whole[name] for name in FEATURES))
        needed = ", ".join(f"{name}={table.whole[name][shortest]}" for name in FEATURES)
        given = ", ".join(f"{name}={limits[name]}" for name in FEATURES)
        raise UserError(
            f"feature lengths {given} are too short for every example of {task.name} "
            f"{spec.split}: the shortest needs {needed}"
        )


def _rows(table: Table, order: np.ndarray, spec: DataSpec) -> list[list[int]]:
    """The rows of the list: which examples each holds."""
    if not spec.pack:
        return [[example] for example in order.tolist()]
    lengths = [table.lengths[name][order] for name in FEATURES]
    rows = pack(lengths, [spec.feature_lengths[name] for name in FEATURES])
    return [[int(order[i]) for i in row] for row in rows]


def _report(console: Console, spec: DataSpec, meta: dict, path: Path, seconds: float) -> None:
    console.print(
        f"{spec.task} {spec.split}: {meta['num_examples']:,} examples, "
        f"{meta['tokens']['text']:,} text tokens in {seconds:.1f} s -> {path}",
        highlight=False,
        soft_wrap=True,
    )
    if meta["ran_out"]:
        unused = ", ".join(
            f"{c['available'] - c['used']:,} of {c['available']:,} examples of {c['task']}"
            for c in meta["components"]
            if c["task"] != meta["ran_out"]
        )
        console.print(
            f"  {meta['ran_out']} ran out first and ends the list; unused: {unused}",
            highlight=False,
            soft_wrap=True,
        )
    for name, count in meta["truncated"].items():
        if count:
            console.print(
                f"  {count:,} of {meta['num_segments']:,} examples have {name} cut to "
                f"{spec.feature_lengths[name]} tokens",
                highlight=False,
                soft_wrap=True,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the directories on stdout, one a line; progress goes to stderr.

    For a user's mistake prints the one-line reason on stdout instead and returns 2.
    """
    parser = argparse.ArgumentParser(
        prog="python -m t5scaling.data.materialize",
        description="Write the examples of SeqIO tasks or mixtures to disk.",
    )
    parser.add_argument("spec", help="JSON of a data spec, or of a list of them")
    parser.add_argument("root", help="directory of the examples directories")
    arguments = parser.parse_args(argv)
    # A polite kill unwinds, so that nothing half-written stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        fields = json.loads(arguments.spec)
        paths = [
            materialize(DataSpec.from_json(f), arguments.root)
            for f in (fields if isinstance(fields, list) else [fields])
        ]
    except json.JSONDecodeError as error:
        print(f"the spec is not JSON: {error}")
        return 2
    except UserError as error:
        print(error)
        return 2
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
