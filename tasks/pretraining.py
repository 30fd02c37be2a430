"""Pretraining tasks: span corruption on the techdoc corpus, per language and mixed.

`techdoc_span_{en,de,fr,ro}` are tasks with one split, train. `techdoc_span_en50_de50` and its like
are mixtures whose names hold the rates in percent of the examples.
"""

import itertools
import json
import lzma
from collections.abc import Iterator
from functools import partial

import seqio
import tensorflow as tf

from tasks import preprocessors, vocabularies

LANGUAGES = ("en", "de", "fr", "ro")
ENGLISH_PERCENT = (30, 50, 70)


def read_documents(split: str, shuffle_files: bool, seed=None, *, language: str):
    """The documents of one language in file order: {"text": string}. Nothing is shuffled here."""
    del split, shuffle_files, seed
    path = vocabularies.CORPUS / f"pretrain.{language}.jsonl.xz"

    def chunks() -> Iterator[dict[str, list[str]]]:
        # One call from TensorFlow into Python for many documents: a call costs more than reading.
        with lzma.open(path, "rt", encoding="utf-8") as file:
            while lines := list(itertools.islice(file, 64)):
                yield {"text": [json.loads(line)["text"] for line in lines]}

    return tf.data.Dataset.from_generator(
        chunks, output_signature={"text": tf.TensorSpec([None], tf.string)}
    ).unbatch()


def register() -> None:
    """Registers the tasks and mixtures that are not registered yet."""
    features = vocabularies.text_to_text_features(vocabularies.techdoc())
    tasks = {language: f"techdoc_span_{language}" for language in LANGUAGES}
    for language, name in tasks.items():
        if name not in seqio.TaskRegistry.names():
            seqio.TaskRegistry.add(
                name,
                source=seqio.FunctionDataSource(
                    partial(read_documents, language=language), splits=["train"]
                ),
                preprocessors=[preprocessors.concatenate_documents, preprocessors.span_corruption],
                output_features=features,
                metric_fns=[],
            )
    for other in LANGUAGES[1:]:
        for percent in ENGLISH_PERCENT:
            name = f"techdoc_span_en{percent}_{other}{100 - percent}"
            if name not in seqio.MixtureRegistry.names():
                seqio.MixtureRegistry.add(
                    name, [(tasks["en"], percent), (tasks[other], 100 - percent)]
                )
