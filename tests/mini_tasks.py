"""Small tasks for tests: the head of the embedded corpus, registered on import."""

from functools import partial

import seqio

import tasks.registry  # noqa: F401 (registers what these take the head of)
from tasks import definitions, metrics, preprocessors, translation, vocabularies

ROWS = {"train": 300, "validation": 24, "test": 24}


def _head(split, shuffle_files, seed=None, *, task, rows):
    return seqio.get_mixture_or_task(task).source.get_dataset(split).take(rows[split])


def _source(task, rows):
    return seqio.FunctionDataSource(partial(_head, task=task, rows=rows), splits=list(rows))


_features = vocabularies.text_to_text_features(vocabularies.techdoc())
for _language in ("en", "de"):
    seqio.TaskRegistry.add(
        f"mini_span_{_language}",
        source=_source(f"techdoc_span_{_language}", {"train": 60}),
        preprocessors=[preprocessors.concatenate_documents, preprocessors.span_corruption],
        output_features=_features,
    )
seqio.MixtureRegistry.add("mini_span_en50_de50", [("mini_span_en", 50), ("mini_span_de", 50)])
for _pair in (("en", "de"), ("de", "en"), ("en", "fr")):
    seqio.TaskRegistry.add(
        f"mini_translate_{_pair[0]}_{_pair[1]}",
        source=_source(f"techdoc_translate_{_pair[0]}_{_pair[1]}", ROWS),
        preprocessors=[
            partial(preprocessors.translation, prompt=translation.prompt(*_pair)),
        ],
        output_features=_features,
        metric_fns=[definitions.for_seqio(metrics.bleu), definitions.for_seqio(metrics.chrf)],
    )
