"""SuperGLUE as text to text: T5's format of its tasks (Raffel et al. 2020, appendix D).

An example is the task's name followed by each field's name and value, "boolq passage: ...
question: ..."; its target is the label's text. ReCoRD has an example for each answer in training,
one for each query in evaluation. `reference` holds, as JSON, what the metrics of
tasks/superglue_metrics.py need.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from tasks.sources import Broken, LineReader, Row, Shard, json_of
from tasks.superglue_metrics import LABELS

BENCHMARKS = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic")
FIELDS = {
    "boolq": ("passage", "question"),
    "cb": ("hypothesis", "premise"),
    "copa": ("choice1", "choice2", "premise", "question"),
    "multirc": ("question", "answer", "paragraph"),
    "rte": ("hypothesis", "premise"),
    "wic": ("sentence1", "sentence2", "word"),
}
CHUNK = 256
ROW = ("inputs", "targets", "reference")


def examples(benchmark: str, fields: Mapping[str, Any], *, training: bool) -> Iterator[Row]:
    """The text examples of one example of SuperGLUE, in TFDS's fields with strings decoded and
    `label` a number of LABELS or its text."""
    if benchmark == "record":
        yield from _record(fields, training=training)
        return
    label = fields["label"]
    target = label if isinstance(label, str) else LABELS[benchmark][int(label)]
    if target not in LABELS[benchmark]:
        raise Broken("unknown label")
    text = " ".join(f"{name}: {fields[name]}" for name in FIELDS[benchmark])
    reference = {"target": target}
    if benchmark == "multirc":
        text = re.sub(r"</?b>", "", text.replace("<br>", " "))
        group = fields["idx"]
        reference = {"group": f"{group['paragraph']}-{group['question']}", **reference}
    yield _row(f"{benchmark} {text}", target, reference)


def _record(fields: Mapping[str, Any], *, training: bool) -> Iterator[Row]:
    # A highlight is a line of its own: it becomes a sentence of the passage.
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", fields["passage"])
    passage = passage.replace("\n@highlight\n", ". ")
    entities = ", ".join(fields["entities"])
    inputs = f"record query: {fields['query']} entities: {entities} passage: {passage}"
    answers = list(fields["answers"])
    group = f"{fields['idx']['passage']}-{fields['idx']['query']}"
    for answer in answers if training else answers[:1]:
        yield _row(inputs, answer, {"group": group, "answers": answers})


def _row(inputs: str, target: str, reference: Mapping[str, Any]) -> Row:
    reference_text = json.dumps(reference, ensure_ascii=False)
    return {"inputs": inputs, "targets": target, "reference": reference_text}


class SuperGlue(seqio.DataSource):
    """Text examples of a benchmark, from `source`: TFDS, or `LocalFiles` with this `reader`."""

    def __init__(self, source: seqio.DataSource, benchmark: str):
        super().__init__(splits=source.splits)
        self._splits = source.splits  # with their slices
        self._source: Any = source  # LocalFiles have more than a source of SeqIO's must have
        self._benchmark = benchmark

    def __repr__(self) -> str:
        return f"SuperGlue({self._benchmark}, {self._source!r})"

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    @property
    def error(self) -> Exception | None:
        return getattr(self._source, "error", None)

    def take_report(self) -> list[dict]:
        return self._source.take_report() if hasattr(self._source, "take_report") else []

    def patterns(self, split: str) -> list[str]:
        return self._source.patterns(split) if hasattr(self._source, "patterns") else []

    def files(self, split: str) -> list[str]:
        if hasattr(self._source, "files"):
            return self._source.files(split)
        return [file for file in self._source.list_shards(split) if os.path.isfile(file)]

    def list_shards(self, split: str) -> Sequence[str]:
        return self._source.list_shards(split)

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
        """{"inputs", "targets", "reference"}, strings."""
        dataset = self._source.get_dataset(split, shuffle, seed, shard_info)
        training = split.startswith("train")

        def rows() -> Iterator[Row]:
            for value in dataset.as_numpy_iterator():
                found = json.loads(value["fields"]) if "fields" in value else [_decoded(value)]
                for fields in found:
                    yield from examples(self._benchmark, fields, training=training)

        def chunks() -> Iterator[dict[str, list[str]]]:
            every = rows()
            while chunk := list(itertools.islice(every, CHUNK)):
                yield {name: [row[name] for row in chunk] for name in ROW}

        strings = tf.TensorSpec([None], tf.string)
        return tf.data.Dataset.from_generator(
            chunks, output_signature=dict.fromkeys(ROW, strings)
        ).unbatch()


def _decoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _decoded(entry) for name, entry in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if getattr(value, "dtype", None) == np.dtype(object):
        return [_decoded(entry) for entry in value.tolist()]
    return value


# The benchmark's own files: one JSON object a line, nested where a text has many questions.


def reader(benchmark: str) -> Callable[[Shard], tuple[LineReader, int]]:
    """What reads the lines of a released train.jsonl or val.jsonl, one row a line: {"fields":
    JSON of a list of examples}."""

    def read(line: bytes) -> Row:
        value = json_of(line)
        try:
            found = _flat(benchmark, value)
            for fields in found:  # one that cannot be written as text is reported with its line
                list(examples(benchmark, fields, training=True))
        except (KeyError, TypeError, IndexError):
            raise Broken("missing key") from None
        return {"fields": json.dumps(found)}

    return lambda shard: (read, 0)


def _flat(benchmark: str, value: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    """One line of SuperGLUE's files in TFDS's fields."""
    if benchmark == "multirc":
        passage = value["passage"]
        return [
            {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": int(answer["label"]),
                "idx": {"paragraph": value["idx"], "question": question["idx"]},
            }
            for question in passage["questions"]
            for answer in question["answers"]
        ]
    if benchmark == "record":
        text = value["passage"]["text"]
        spans = value["passage"]["entities"]
        entities = sorted({text[span["start"] : span["end"] + 1] for span in spans})
        return [
            {
                "passage": text,
                "query": query["query"],
                "entities": entities,
                "answers": sorted({answer["text"] for answer in query["answers"]}),
                "idx": {"passage": value["idx"], "query": query["idx"]},
            }
            for query in value["qas"]
        ]
    return [dict(value)]
