"""Small tasks for tests: the head of the embedded corpus, registered on import."""

from functools import partial

import seqio

from tasks import preprocessors, pretraining, translation, vocabularies

ROWS = {"train": 300, "validation": 24, "test": 24}


def _documents(split, shuffle_files, seed=None, *, language):
    return pretraining.read_documents(split, shuffle_files, seed, language=language).take(60)


def _pairs(split, shuffle_files, seed=None):
    return translation.read_pairs(split, shuffle_files, seed, language="de").take(ROWS[split])


_features = vocabularies.text_to_text_features(vocabularies.techdoc())
for _language in ("en", "de"):
    seqio.TaskRegistry.add(
        f"mini_span_{_language}",
        source=seqio.FunctionDataSource(partial(_documents, language=_language), splits=["train"]),
        preprocessors=[preprocessors.concatenate_documents, preprocessors.span_corruption],
        output_features=_features,
    )
seqio.MixtureRegistry.add("mini_span_en50_de50", [("mini_span_en", 50), ("mini_span_de", 50)])
seqio.TaskRegistry.add(
    "mini_translate_en_de",
    source=seqio.FunctionDataSource(_pairs, splits=list(ROWS)),
    preprocessors=[partial(preprocessors.translation, prompt="translate English to German: ")],
    output_features=_features,
)
