"""Translation tasks, both directions of each pair of languages.

`techdoc_translate_{en_de,de_en,...}` read the embedded corpus, whose rows keep the order of the
file, in which a prefix is a fair sample. WMT comes from TFDS. All have the splits train, validation
and test.
"""

from tasks import definitions, vocabularies

LANGUAGES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
FILES = {"train": "finetune", "validation": "valid", "test": "test"}
WMT = {"de": "wmt17_translate/de-en", "fr": "wmt15_translate/fr-en", "ro": "wmt16_translate/ro-en"}


def prompt(source: str, target: str) -> str:
    """T5's: "translate English to German: "."""
    return f"translate {LANGUAGES[source]} to {LANGUAGES[target]}: "


def _both_ways(corpus: str, other: str, definition: dict) -> dict[str, definitions.Definition]:
    return {
        f"{corpus}_translate_{source}_{target}": {
            "kind": "translation",
            "source": source,
            "target": target,
            "prompt": prompt(source, target),
            **definition,
        }
        for source, target in (("en", other), (other, "en"))
    }


TASKS: dict[str, definitions.Definition] = {}
for _other, _name in WMT.items():
    TASKS |= _both_ways(
        "techdoc",
        _other,
        {
            "files": {
                split: str(vocabularies.CORPUS / f"{stem}.tsv.xz") for split, stem in FILES.items()
            },
            "format": "tsv",
            "metrics": ["bleu", "chrf"],
            "vocabulary": vocabularies.TECHDOC,
        },
    )
    TASKS |= _both_ways(
        _name.partition("_")[0],
        _other,
        {"tfds": f"{_name}:1.0.0", "vocabulary": vocabularies.MC4},
    )


def register() -> None:
    """Registers the tasks that are not registered yet."""
    definitions.add_missing(TASKS)
