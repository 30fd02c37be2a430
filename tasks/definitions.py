"""Tasks and mixtures from plain values, so that a gin file can make one without Python.

A definition is a mapping. Its `kind` is one of
  span_corruption  noise_density, mean_noise_span_length
  translation      prompt, metrics
  superglue        benchmark
  mixture          rates: {task: rate}
Every kind but mixture has `vocabulary`, the path of a SentencePiece model, "mc4", "techdoc" or
"bytes" (ByT5's), and says where its text comes from, either
  tfds             "name/config:version"; tfds_splits: {split: split of the data set}, data_dir
or
  files            {split: pattern, [patterns] or [[source pattern, target pattern]]}
  format           "jsonl", "text" (a document a line), "tsv" or "parallel" (two files, line by
                   line); .gz and .xz are unpacked
  text_key         key of a document in JSON lines ("text")
  source, target   languages or names: keys of TFDS or JSON lines, columns of a TSV file (their
                   names in its header, or numbers from 0 if it has none)
  strict           stop at the first line that cannot be read, rather than count and skip it
"""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import seqio

from tasks import metrics, preprocessors, sources, superglue, superglue_metrics, vocabularies

Definition = Mapping[str, Any]

KEYS = {
    "span_corruption": {"noise_density", "mean_noise_span_length", "text_key"},
    "translation": {"prompt", "metrics", "source", "target"},
    "superglue": {"benchmark"},
}
SOURCE_KEYS = {"vocabulary", "tfds", "tfds_splits", "data_dir", "files", "format", "strict"}
FORMATS = {
    "span_corruption": ("jsonl", "text"),
    "translation": ("jsonl", "tsv", "parallel"),
    "superglue": ("jsonl",),
}
METRICS = ("bleu", "bleu_intl", "chrf", "rouge", "exact_match", "f1", "accuracy")
TRANSLATION_METRICS = ("bleu", "bleu_intl", "chrf")


def register(definitions: Mapping[str, Definition]) -> None:
    """Registers tasks, then mixtures; a name that is taken gets the new definition.

    Mixtures of a task that changed follow it. Raises ValueError for a definition that is wrong.
    """
    mixtures = {n: d for n, d in definitions.items() if _get(n, d, "kind") == "mixture"}
    changed = [name for name in definitions if name not in mixtures]
    for name in changed:
        _replace(seqio.TaskRegistry, name)
        _add_task(name, definitions[name])
    for name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
        if set(rates) & set(changed):
            mixtures = {name: {"kind": "mixture", "rates": rates}, **mixtures}
    for name, definition in mixtures.items():
        _check_keys(name, definition, {"rates"})
        rates = _get(name, definition, "rates")
        if not isinstance(rates, Mapping) or not rates:
            raise ValueError(f"{name}: rates is {rates!r}; expected {{task: rate}}")
        for task in rates:
            _number(name, rates, task, 0.0, math.inf)
            if task not in seqio.TaskRegistry.names():
                raise _wrong(name, "rates", task, seqio.TaskRegistry.names(), "a task")
        _replace(seqio.MixtureRegistry, name)
        seqio.MixtureRegistry.add(name, list(rates.items()))


def add_missing(definitions: Mapping[str, Definition]) -> None:
    """As `register`, but leaves alone what is registered: importing a module twice is harmless."""
    there = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    register({name: d for name, d in definitions.items() if name not in there})


def _replace(registry: Any, name: str) -> None:
    if name in registry.names():
        registry.remove(name)


def _add_task(name: str, definition: Definition) -> None:
    kind = _get(name, definition, "kind")
    if kind not in KEYS:
        raise _wrong(name, "kind", kind, (*KEYS, "mixture"))
    _check_keys(name, definition, KEYS[kind] | SOURCE_KEYS)
    for key in ("vocabulary", "tfds", "data_dir", "format", "text_key", "prompt", "benchmark"):
        absent = key == "data_dir" and definition.get(key) is None
        if key in definition and not absent and not isinstance(definition[key], str):
            raise ValueError(f"{name}: {key} is {definition[key]!r}; expected text")
    if not isinstance(definition.get("strict", False), bool):
        raise ValueError(f"{name}: strict is {definition['strict']!r}; expected True or False")
    vocabulary = vocabularies.load(_get(name, definition, "vocabulary"))
    build = {
        "span_corruption": _span_corruption,
        "translation": _translation,
        "superglue": _superglue,
    }[kind]
    seqio.TaskRegistry.add(
        name,
        output_features=vocabularies.text_to_text_features(vocabulary),
        **build(name, definition),
    )


def _span_corruption(name: str, definition: Definition) -> dict[str, Any]:
    noise = {
        key: _number(name, definition, key, *limits)
        for key, limits in (
            # Nearer to 1 ever more text goes into one row, and no end is found of it.
            ("noise_density", (0.0, 0.9)),
            ("mean_noise_span_length", (1.0, 1e6)),
        )
        if key in definition
    }
    readers = {
        "jsonl": sources.jsonl_reader({"text": definition.get("text_key", "text")}),
        "text": sources.text_reader,
    }
    return {
        "source": _source(name, definition, readers, ("text",)),
        "preprocessors": [
            preprocessors.concatenate_documents,
            partial(preprocessors.span_corruption, **noise),
        ],
        "metric_fns": [],
    }


def _translation(name: str, definition: Definition) -> dict[str, Any]:
    columns = {side: definition.get(side, side) for side in ("source", "target")}
    for side, column in columns.items():
        counted = isinstance(column, int) and not isinstance(column, bool) and column >= 0
        if not counted and not (isinstance(column, str) and column):
            raise ValueError(
                f"{name}: {side} is {column!r}; expected the name of a key or column, or a "
                "column's number from 0"
            )
    names = {side: str(column) for side, column in columns.items()}
    readers = {
        "jsonl": sources.jsonl_reader(names),
        "tsv": sources.tsv_reader(columns),
        "parallel": sources.text_reader,
    }
    chosen = definition.get("metrics", TRANSLATION_METRICS)
    if isinstance(chosen, str) or not isinstance(chosen, Sequence):
        raise ValueError(f"{name}: metrics is {chosen!r}; expected a list, such as ['bleu']")
    for metric in chosen:
        if metric not in METRICS:
            raise _wrong(name, "metrics", metric, METRICS)
    steps: list[Callable] = [
        partial(preprocessors.translation, prompt=_get(name, definition, "prompt"))
    ]
    if "tfds" in definition:
        steps.insert(0, partial(preprocessors.rename, **names))
    return {
        "source": _source(name, definition, readers, ("source", "target")),
        "preprocessors": steps,
        "metric_fns": [for_seqio(getattr(metrics, metric)) for metric in chosen],
    }


def _superglue(name: str, definition: Definition) -> dict[str, Any]:
    benchmark = _get(name, definition, "benchmark")
    if benchmark not in superglue.BENCHMARKS:
        raise _wrong(name, "benchmark", benchmark, superglue.BENCHMARKS)
    readers = {"jsonl": superglue.reader(benchmark)}
    source = _source(name, definition, readers, ("fields",))
    return {
        "source": superglue.SuperGlue(source, benchmark),
        "preprocessors": [preprocessors.text_to_text],
        "postprocess_fn": reference_or_text,
        "metric_fns": [for_seqio(getattr(superglue_metrics, benchmark))],
    }


def reference_or_text(output: str, example: Any = None, is_target: bool = False) -> Any:
    """What the metrics get: the target's reference, the prediction's text.

    example: a mapping; SeqIO leaves it out for a prediction.
    """
    return json.loads(example["reference"]) if is_target else output


def for_seqio(metric: Callable) -> Callable:
    """Wraps the signatures, which SeqIO's loggers would take for numbers.

    `metric` of the result is the dotted name of the plain function.
    """

    def score(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, Any]:
        return {
            name: seqio.metrics.Text(value) if isinstance(value, str) else value
            for name, value in metric(targets, predictions).items()
        }

    score.metric = f"{metric.__module__}.{metric.__name__}"
    return score


def _source(
    name: str,
    definition: Definition,
    readers: Mapping[str, Callable],
    fields: Sequence[str],
) -> seqio.DataSource:
    if ("tfds" in definition) == ("files" in definition):
        raise ValueError(f"{name}: expected either 'tfds' or 'files' in its definition")
    if "tfds" in definition:
        splits = definition.get("tfds_splits", {s: s for s in ("train", "validation", "test")})
        return sources.Tfds(definition["tfds"], splits, definition.get("data_dir"))
    file_format = _get(name, definition, "format")
    if file_format not in FORMATS[definition["kind"]]:
        raise _wrong(name, "format", file_format, FORMATS[definition["kind"]])
    files = definition["files"]
    if not isinstance(files, Mapping) or not files:
        raise ValueError(f"{name}: files is {files!r}; expected {{split: pattern}}")
    width = 2 if file_format == "parallel" else 1
    for split, patterns in files.items():
        expected = "[[source, target]]" if width == 2 else "a pattern or a list of them"
        listed = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(listed, list | tuple) or not listed:
            raise ValueError(f"{name}: files of {split} are {patterns!r}; expected {expected}")
        for pattern in listed:
            several = [pattern] if isinstance(pattern, str) else pattern
            are_texts = isinstance(several, list | tuple) and all(
                isinstance(part, str) and part for part in several
            )
            if not are_texts or len(several) != width:
                raise ValueError(f"{name}: files of {split} are {patterns!r}; expected {expected}")
    return sources.LocalFiles(
        files,
        readers[file_format],
        fields,
        description=json.dumps({k: v for k, v in definition.items() if k != "files"}),
        strict=definition.get("strict", False),
    )


def _number(name: str, definition: Definition, key: str, low: float, high: float) -> float:
    """The value of a key, a number above 0 and in [low, high]."""
    value = definition[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (low <= value <= high and 0 < value < math.inf):
        expected = f"a number above {low:g}" if low == 0 else f"a number from {low:g}"
        raise ValueError(f"{name}: {key} is {value!r}; expected {expected} to {high:g}")
    return value


def _get(name: str, definition: Definition, key: str) -> Any:
    if not isinstance(definition, Mapping) or key not in definition:
        raise ValueError(f"{name}: its definition needs {key!r}")
    return definition[key]


def _check_keys(name: str, definition: Definition, known: set[str]) -> None:
    for key in definition:
        if key not in known | {"kind"}:
            raise _wrong(name, "definition", key, sorted(known), "a key")


def _wrong(name: str, where: str, value: Any, known: Iterable[str], what: str = "") -> ValueError:
    close = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    expected = f"; expected {what or 'one of ' + ', '.join(map(str, known))}"
    return ValueError(f"{name}: {where} has {value!r}{expected}{hint}")
