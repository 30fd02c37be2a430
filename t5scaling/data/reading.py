"""Reading: what SeqIO says of a task, and its examples, shard by shard, as sorted runs on disk.

The only module of the package that imports SeqIO and TensorFlow, and only when it is put to work.
"""

import contextlib
import dataclasses
import gc
import hashlib
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import sentencepiece

from t5scaling import values
from t5scaling.data import provenance, runs, vocabulary, work
from t5scaling.data.examples import DataSpec, sha256_of, to_msgpack
from t5scaling.data.runs import FEATURES
from t5scaling.errors import UserError, first_line, in_one_line, nearest

BATCH = 1024  # examples that TensorFlow hands over at once
MAX_ITEMS = 1024  # shards of one pass over a task
ITEM_BYTES = 1 << 26  # of text; smaller shards are read together
TEXTS = ("inputs_pretokenized", "targets_pretokenized", "reference")
_PLAIN = (str, int, float, bool, type(None), tuple, list, dict)

# SeqIO's seeds and a source's report belong to the process, not to a thread.
_one_reader = threading.Lock()


def import_seqio():
    """SeqIO, with a TensorFlow that logs nothing and uses no accelerator."""
    if "seqio" not in sys.modules:
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
        # What TensorFlow logs as it is loaded and looks for devices heeds no level.
        with (
            _environment(quiet | {"CUDA_VISIBLE_DEVICES": ""}),
            open(os.devnull, "w") as nowhere,
            _stderr_to(nowhere),
            _without_collector(),
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
def _without_collector():
    """Python's garbage collector rests: what a large import makes stays, and the collector would
    go through all of it again and again, for a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


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


# What is to be read


def find(spec: DataSpec):
    """The task or mixture of `spec`, after checking all that can be checked without reading."""
    seqio = import_seqio()
    for module in spec.modules:
        _import(module)
    if spec.definitions:
        try:
            importlib.import_module("tasks.definitions").register(spec.definitions)
        except ValueError as error:
            raise UserError(str(error)) from None
        except Exception as error:
            raise UserError(f"definitions of tasks: {in_one_line(error)}") from error
    names = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if spec.task not in names:
        raise UserError(f"unknown task or mixture {spec.task!r}{nearest(spec.task, names)}")
    provider = seqio.get_mixture_or_task(spec.task)
    tasks = tasks_of(provider)
    for task in tasks:
        if spec.split not in task.splits:
            hint = nearest(spec.split, task.splits)
            if "[" in spec.split:
                hint = "; slices are of local files, and of TFDS named in a task's tfds_splits"
            raise UserError(f"task {task.name} has no split {spec.split!r}{hint}")
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
        if not isinstance(length, int) or not 1 <= length <= values.LONGEST:
            raise UserError(
                f"feature length {name} must be 1 to {values.LONGEST:,} tokens, got {length!r}"
            )
    return provider


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"module {module!r}, which registers tasks: {error}") from None
        top = module.partition(".")[0]
        file = getattr(sys.modules.get(top), "__file__", None) or ""
        own = [name for name in (top, f"{top}.py") if os.path.exists(name)]
        hint = ""
        if own and not file.startswith(os.path.abspath(own[0])):
            hint = f": {top} is {file}; rename {os.path.abspath(own[0])}, or it is not found"
        raise UserError(f"no module {module!r} to register tasks from{hint}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"module {module!r} cannot be imported: {in_one_line(error)}") from error


def tasks_of(provider) -> list:
    return list(getattr(provider, "tasks", [provider]))


def rate_of(provider, task) -> float:
    return provider.get_rate(task) if provider is not task else 1.0


def read_vocabulary(provider) -> tuple[bytes, dict]:
    """The contents of the vocabulary's file, and what dataset.json says of it."""
    seqio = import_seqio()
    found = provider.output_features["inputs"].vocabulary
    known = isinstance(found, seqio.SentencePieceVocabulary | seqio.ByteVocabulary)
    if not known or found != provider.output_features["targets"].vocabulary:
        raise UserError(
            f"{provider.name} must use one SentencePieceVocabulary or ByteVocabulary for inputs "
            "and targets"
        )
    content, inside = vocabulary.BYTES, 0
    if isinstance(found, seqio.SentencePieceVocabulary):
        content, inside = _read_model(found.sentencepiece_model_file, provider.name)
    return content, {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": found.vocab_size,
        "extra_ids": found.extra_ids,
        "sentinels": found.extra_ids or inside,
        "eos_id": found.eos_id,
    }


def _read_model(file: str, name: str) -> tuple[bytes, int]:
    """A SentencePiece model's bytes, and how many of its pieces are sentinels."""
    import tensorflow as tf

    try:
        content = tf.io.gfile.GFile(file, "rb").read()
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        vocabulary.check(pieces, f"the vocabulary {file} of {name}")
    except (OSError, tf.errors.OpError, RuntimeError) as error:
        raise UserError(
            f"cannot read the vocabulary {file} of {name} ({first_line(error)}): name a local "
            "copy as 'vocabulary' in the task's definition, as gin/tasks shows"
        ) from None
    return content, pieces.get_piece_size() - vocabulary.text_pieces(pieces)


def fingerprint(provider) -> str:
    """A hash of the task's definition: source, steps, their arguments, mixing rates."""
    return sha256_of(
        [
            {
                "task": task.name,
                "rate": rate_of(provider, task),
                "source": _describe_source(task.source),
                "preprocessors": [_describe(step) for step in task.preprocessors],
                "eos": [task.output_features[name].add_eos for name in FEATURES],
            }
            for task in tasks_of(provider)
        ]
    )


def made_from(provider, spec: DataSpec) -> dict:
    """The files and the code of the task as they are now, see `provenance`."""
    patterns: list[str] = []
    files: list[str] = []
    for task in tasks_of(provider):
        if isinstance(task.source, import_seqio().FunctionDataSource):
            continue  # whose shards are names of splits
        patterns += getattr(task.source, "patterns", lambda split: [])(spec.split)
        with _explained(task, spec):
            if hasattr(task.source, "files"):
                files += task.source.files(spec.split)
            else:
                files += [f for f in task.source.list_shards(spec.split) if os.path.isfile(f)]
    found = provider.output_features["inputs"].vocabulary
    model = getattr(found, "sentencepiece_model_file", "")  # bytes need none
    return provenance.describe(spec.code_modules, patterns, files, model)


def _describe(function) -> list:
    arguments = dict(getattr(function, "keywords", {}))
    return [import_seqio().utils.function_name(function), repr(sorted(arguments.items()))]


def _describe_source(source) -> list:
    kind = type(source).__name__
    if hasattr(source, "_dataset_fn"):
        return [kind, _describe(source._dataset_fn)]
    if type(source).__repr__ is not object.__repr__:
        return [kind, repr(source)]
    plain = {k: repr(v) for k, v in vars(source).items() if isinstance(v, _PLAIN)}
    return [kind, plain]


def metrics_of(provider) -> list[str]:
    """Dotted names of the plain functions behind the metrics of the first task that has any."""
    for task in tasks_of(provider):
        names = [getattr(function, "metric", None) for function in task.metric_fns]
        if any(names):
            return [name for name in names if name]
    return []


# Items: what is read at once


@dataclasses.dataclass(frozen=True)
class Item:
    """One shard of one pass over a task."""

    component: int  # which task of the mixture
    task: str
    number: int  # of the pass
    shard: int
    shards: int

    @property
    def name(self) -> str:
        return f"{self.component:03d}-{self.number:03d}-{self.shard:05d}"


def items_of(provider, spec: DataSpec) -> tuple[list[Item], list]:
    """All items in order, and what is known of the files they come from.

    Evaluation splits keep their order, and so are read in one.
    """
    items, files = [], []
    for component, task in enumerate(tasks_of(provider)):
        with _explained(task, spec):
            shards = list(task.source.list_shards(spec.split))
        found = [file for file in map(_stat, shards) if file]
        files += found
        count = min(len(shards), MAX_ITEMS)
        if len(found) == len(shards):
            count = min(count, -(-sum(size for _, size, _ in found) // ITEM_BYTES) or 1)
        count = max(count, 1) if spec.is_training else 1
        for number in range((spec.passes or {}).get(task.name, 1)):
            items += [Item(component, task.name, number, i, count) for i in range(count)]
    return items, files


def _stat(shard: str) -> list | None:
    """[shard, bytes, time of change] of local files; parallel ones are joined by a plus sign."""
    paths = [shard] if os.path.isfile(shard) else shard.split("+")
    try:
        found = [os.stat(path) for path in paths]
    except OSError:
        return None
    return [shard, sum(s.st_size for s in found), max(s.st_mtime_ns for s in found)]


# Reading an item


def read_item(
    spec: DataSpec, at: Path, item: Item, count: Callable[[int], None] = lambda examples: None
) -> None:
    """Reads an item into the work directory `at`, unless it is there.

    Its manifest `read/<name>.json` has the runs, how many examples they hold, and what was met.
    """
    if work.finished(at, "read", item.name):
        return
    with _one_reader:
        manifest = _read(spec, at, item, count)
    work.write_json(at, at / "read" / f"{item.name}.json", manifest)


def _read(spec: DataSpec, at: Path, item: Item, count: Callable[[int], None]) -> dict:
    task = tasks_of(find(spec))[item.component]
    take_report = getattr(task.source, "take_report", list)
    take_report()  # of nothing but this item from here on
    writer = runs.RunWriter(at, item.name)
    eos_id = task.output_features["inputs"].vocabulary.eos_id
    draw = _keys(spec, item)
    examples = empty = fit = 0
    shortest: list[int] | None = None
    for batch in _batches(task, spec, item):
        block, has_text = _block(batch, spec, eos_id)
        empty += int((~has_text).sum())
        if not len(block):
            continue
        fits, least = _fits(block.index, spec)
        fit += fits
        shortest = min(shortest or least, least, key=sum)
        writer.add(draw(len(block)), block)
        examples += len(block)
        count(len(block))
    writer.flush()
    return {
        "files": writer.files,
        "runs": writer.runs,
        "examples": examples,
        "empty": empty,
        "fit": fit,
        "shortest": shortest,
        "skipped": take_report(),
    }


def _keys(spec: DataSpec, item: Item) -> Callable[[int], np.ndarray]:
    """Returns the next n keys to sort by: random ones from the seed for training, else the numbers
    of the examples."""
    if spec.is_training:
        seed = _seed("order", spec.seed, item.task, item.number, item.shard)
        random = np.random.Generator(np.random.Philox(key=seed % 2**128))
        return lambda n: random.integers(0, 2**64, size=n, dtype=np.uint64)
    given = 0

    def numbers(n: int) -> np.ndarray:
        nonlocal given
        given += n
        return np.arange(given - n, given, dtype=np.uint64)

    return numbers


def _seed(*parts) -> int:
    return int(sha256_of(parts), 16)


@contextlib.contextmanager
def _explained(task, spec: DataSpec) -> Iterator[None]:
    """Turns any error about the data into a UserError, also where TensorFlow has wrapped it."""
    import tensorflow as tf

    try:
        yield
    except ValueError as error:
        raise UserError(f"{task.name} {spec.split}: {error}") from None
    except tf.errors.OpError as error:
        cause = getattr(task.source, "error", None)
        if isinstance(cause, ValueError):
            raise UserError(f"{task.name} {spec.split}: {cause}") from None
        reason = first_line(error.message, 300)
        raise UserError(f"{task.name} {spec.split} cannot be read: {reason}") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of a task's own code
        raise UserError(f"{task.name} {spec.split}: {in_one_line(error)}") from error


def _batches(task, spec: DataSpec, item: Item) -> Iterator[dict[str, np.ndarray]]:
    """The examples of an item as SeqIO gives them, in batches.

    Tokens are cut to the feature lengths and padded with -1; `<feature>_whole` and `<feature>_last`
    are how many there were and, (n, 1), the last.
    """
    seqio = import_seqio()
    import tensorflow as tf

    with _explained(task, spec):
        dataset = task.get_dataset(
            sequence_length=dict(spec.feature_lengths),
            split=spec.split,
            shuffle=False,
            seed=_seed("noise", spec.seed, item.task, item.number, item.shard) % 2**31,
            shard_info=seqio.ShardInfo(item.shard, item.shards) if item.shards > 1 else None,
            trim_output_features=False,  # trimmed here, where it can be counted
            try_in_mem_cache=False,
        )
        texts = () if spec.is_training else TEXTS
        kept = [n for n in ("text_tokens", *texts) if n in dataset.element_spec]

        def cut(example):
            # Here already, or one giant line would make a batch as wide.
            found = {name: example[name] for name in kept}
            for name in FEATURES:
                found[name] = example[name][: spec.feature_lengths[name]]
                found[f"{name}_whole"] = tf.size(example[name])
                found[f"{name}_last"] = example[name][-1:]
            return found

        dataset = dataset.map(cut)
        # Per element TensorFlow costs more than the work itself, so elements come in batches.
        dataset = dataset.padded_batch(
            BATCH,
            padding_values={
                name: tf.constant("" if element.dtype == tf.string else -1, element.dtype)
                for name, element in dataset.element_spec.items()
            },
        ).prefetch(2)
        # Tuning takes as long as the whole job, and then holds up the end of the iteration.
        options = tf.data.Options()
        options.autotune.enabled = False
        yield from dataset.with_options(options).as_numpy_iterator()


def _block(
    batch: dict[str, np.ndarray], spec: DataSpec, eos_id: int
) -> tuple[runs.Block, np.ndarray]:
    """One padded batch without its empty examples; and which of the batch are not empty, bool.

    Text tokens lost by truncation are taken off; a lost end-of-sequence token is not text. An
    example is empty if it has no token of the corpus.
    """
    index = np.zeros(len(batch["inputs"]), runs.INDEX)
    text_tokens = lost = np.zeros(len(batch["inputs"]), np.int64)
    for name in FEATURES:
        whole, limit = batch[f"{name}_whole"], spec.feature_lengths[name]
        has_eos = (batch[f"{name}_last"] == eos_id).any(axis=1)
        index[name] = np.minimum(whole, limit)
        index[f"{name}_whole"] = whole
        text_tokens = text_tokens + whole - has_eos
        lost = lost + np.maximum(whole - limit - has_eos, 0)
    if "text_tokens" in batch:
        text_tokens = batch["text_tokens"]
    index["text_tokens"] = np.maximum(text_tokens - lost, 0)
    has_text = text_tokens > 0
    index = index[has_text]
    rows = np.concatenate([batch[name] for name in FEATURES], axis=1)[has_text]
    tokens = rows[rows >= 0].astype("<i4").tobytes()
    index["tokens_end"] = 4 * np.cumsum(index["inputs"] + index["targets"], dtype=np.int64)
    texts = b""
    names = [name for name in TEXTS if name in batch]
    if names:
        columns = [batch[name][has_text].tolist() for name in names]
        packed = [
            to_msgpack({name: text.decode() for name, text in zip(names, row, strict=True)})
            for row in zip(*columns, strict=True)
        ]
        index["texts_end"] = np.cumsum([len(text) for text in packed])
        texts = b"".join(packed)
    return runs.Block(index, tokens, texts), has_text


def _fits(index: np.ndarray, spec: DataSpec) -> tuple[int, list[int]]:
    """How many examples need no truncation; tokens per feature of the shortest example."""
    whole = np.stack([index[f"{name}_whole"] for name in FEATURES])
    limits = np.array([[spec.feature_lengths[name]] for name in FEATURES])
    fits = int((whole <= limits).all(axis=0).sum())
    return fits, whole[:, np.argmin(whole.sum(axis=0))].tolist()
