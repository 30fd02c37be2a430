"""Pretraining tasks: span corruption, per language and mixed.

`techdoc_span_{en,de,fr,ro}` read the embedded corpus, `mc4_span_{en,de,fr,ro}` mC4 from TFDS.
`techdoc_span_en50_de50` and its like are mixtures whose names hold the rates in percent of the
examples.
"""

from tasks import definitions, vocabularies

LANGUAGES = ("en", "de", "fr", "ro")
ENGLISH_PERCENT = (30, 50, 70)


def _mixtures(corpus: str) -> dict[str, definitions.Definition]:
    return {
        f"{corpus}_span_en{percent}_{other}{100 - percent}": {
            "kind": "mixture",
            "rates": {f"{corpus}_span_en": percent, f"{corpus}_span_{other}": 100 - percent},
        }
        for other in LANGUAGES[1:]
        for percent in ENGLISH_PERCENT
    }


TECHDOC = {
    f"techdoc_span_{language}": {
        "kind": "span_corruption",
        "files": {
            split: str(vocabularies.CORPUS / f"{stem}.{language}.jsonl.xz")
            for split, stem in {"train": "pretrain", "validation": "valid"}.items()
        },
        "format": "jsonl",
        "vocabulary": vocabularies.TECHDOC,
    }
    for language in LANGUAGES
} | _mixtures("techdoc")

MC4 = {
    f"mc4_span_{language}": {
        "kind": "span_corruption",
        "tfds": "c4/multilingual:3.1.0",
        "tfds_splits": {"train": language, "validation": f"{language}-validation"},
        "vocabulary": vocabularies.MC4,
    }
    for language in LANGUAGES
} | _mixtures("mc4")


def register() -> None:
    """Registers the tasks and mixtures that are not registered yet."""
    definitions.add_missing(TECHDOC | MC4)
