"""Translation tasks: English to German, French and Romanian on the techdoc corpus.

`techdoc_translate_en_{de,fr,ro}` have the splits train, validation and test. Rows keep the order
of the file, in which a prefix is a fair sample; rows without a translation are left out.
"""

import itertools
import lzma
from collections.abc import Callable, Iterator
from functools import partial

import seqio
import tensorflow as tf

from tasks import metrics, preprocessors, vocabularies

LANGUAGES = {"de": "German", "fr": "French", "ro": "Romanian"}
FILES = {"train": "finetune", "validation": "valid", "test": "test"}


def read_pairs(split: str, shuffle_files: bool, seed=None, *, language: str):
    """The pairs of one split in file order: {"source", "target"}. Nothing is shuffled here."""
    del shuffle_files, seed
    path = vocabularies.CORPUS / f"{FILES[split]}.tsv.xz"

    def pairs() -> Iterator[tuple[str, str]]:
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            columns = next(file).rstrip("\n").split("\t")
            source, target = columns.index("en"), columns.index(language)
            for line in file:
                cells = line.rstrip("\n").split("\t")
                if cells[target]:
                    yield cells[source], cells[target]

    def chunks() -> Iterator[dict[str, list[str]]]:
        # One call from TensorFlow into Python for many rows: a call costs more than a row.
        rows = pairs()
        while chunk := list(itertools.islice(rows, 1024)):
            source, target = zip(*chunk, strict=True)
            yield {"source": source, "target": target}

    strings = tf.TensorSpec([None], tf.string)
    return tf.data.Dataset.from_generator(
        chunks, output_signature={"source": strings, "target": strings}
    ).unbatch()


def _for_seqio(metric: Callable) -> Callable:
    """Wraps the signatures, which SeqIO's loggers would take for numbers."""

    def score(targets, predictions):
        return {
            name: seqio.metrics.Text(value) if isinstance(value, str) else value
            for name, value in metric(targets, predictions).items()
        }

    return score


def register() -> None:
    """Registers the tasks that are not registered yet."""
    features = vocabularies.text_to_text_features(vocabularies.techdoc())
    for language, name in LANGUAGES.items():
        task = f"techdoc_translate_en_{language}"
        if task not in seqio.TaskRegistry.names():
            seqio.TaskRegistry.add(
                task,
                source=seqio.FunctionDataSource(
                    partial(read_pairs, language=language), splits=list(FILES)
                ),
                preprocessors=[
                    partial(preprocessors.translation, prompt=f"translate English to {name}: ")
                ],
                output_features=features,
                metric_fns=[_for_seqio(metrics.bleu), _for_seqio(metrics.chrf)],
            )
