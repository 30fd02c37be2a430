"""The validation pairs as documents for span corruption: valid.{en,de,fr,ro}.jsonl.xz.

    python tasks/corpus/build/validation_texts.py

Each cell of valid.tsv.xz is a document, in the order of its rows. They share no 8-gram with the
pretraining text, which stays as it is.
"""

import csv
import json
import lzma
from pathlib import Path

CORPUS = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "de", "fr", "ro")


def documents(language: str) -> str:
    """JSON lines, as those of pretrain.*.jsonl.xz."""
    with lzma.open(CORPUS / "valid.tsv.xz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    found = ({"source": r["source"], "doc": r["doc"], "text": r[language]} for r in rows)
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in found)


def main() -> None:
    for language in LANGUAGES:
        path = CORPUS / f"valid.{language}.jsonl.xz"
        path.write_bytes(lzma.compress(documents(language).encode(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
