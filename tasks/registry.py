"""Importing this module registers every task and mixture of the project with SeqIO."""

from tasks import definitions, pretraining, superglue, translation, vocabularies


def superglue_task(benchmark: str) -> definitions.Definition:
    return {
        "kind": "superglue",
        "benchmark": benchmark,
        "tfds": f"super_glue/{benchmark}:1.0.2",
        "tfds_splits": {"train": "train", "validation": "validation"},
        "vocabulary": vocabularies.MC4,
    }


pretraining.register()
translation.register()
definitions.add_missing(
    {f"superglue_{name}": superglue_task(name) for name in superglue.BENCHMARKS}
)
