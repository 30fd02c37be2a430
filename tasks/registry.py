"""Importing this module registers every task and mixture of the project with SeqIO."""

from tasks import definitions, pretraining, superglue, translation, vocabularies

pretraining.register()
translation.register()
definitions.add_missing(
    {
        f"superglue_{benchmark}": {
            "kind": "superglue",
            "benchmark": benchmark,
            "tfds": f"super_glue/{benchmark}:1.0.2",
            "tfds_splits": {"train": "train", "validation": "validation"},
            "vocabulary": vocabularies.MC4,
        }
        for benchmark in superglue.BENCHMARKS
    }
)
