"""Digests of a checkpoint's files: what was written is what is read, or it is refused.

`digests.json` in a checkpoint's folder holds {path within it: {"bytes": n, "sha256": hex}} for
every other file in it; in a bucket, where the store keeps a checksum of each object and compares it
whenever the object is read, {"bytes": n, "crc32c": base64} as the store says. It is written when
the checkpoint is whole, and compared before one is read.
"""

import hashlib
import json
import os
from typing import Any

from t5scaling import storage

FILE = "digests.json"


def write(folder: storage.AnyPath) -> None:
    """Notes the digests of a whole checkpoint, unless they are noted."""
    path = folder / FILE
    if not path.exists():
        there = storage.sizes(folder)
        found = _digests(folder, [name for name in there if not name.startswith(FILE)], there)
        storage.write(path, json.dumps(found, indent=1, sort_keys=True) + "\n")


def check(folder: storage.AnyPath) -> None:
    """Raises ValueError if a file is missing or is not what it was when it was saved.

    Checks nothing in a checkpoint that has no digests: the process was killed right after the save.
    """
    path = folder / FILE
    if not path.exists():
        return
    noted = _read(path)
    there = storage.sizes(folder)
    for name, entry in noted.items():  # damage that is cheap to find comes first
        if name not in there:
            raise ValueError(f"{name} is missing")
        if there[name] != entry["bytes"]:
            raise ValueError(f"{name} has {there[name]:,} bytes instead of {entry['bytes']:,}")
    found = _digests(folder, list(noted), there)
    for name, entry in noted.items():
        if found[name] != entry:
            raise ValueError(f"{name} is not what was written: its digest differs")


def checkpoint_digest(folder: storage.AnyPath) -> str | None:
    """One digest of all files, equal for equal checkpoints and for copies of one; None if the
    checkpoint has no digests.

    Raises ValueError for a damaged file of digests.
    """
    path = folder / FILE
    if not path.exists():
        return None
    return hashlib.sha256(json.dumps(_read(path), sort_keys=True).encode()).hexdigest()


def _read(path: storage.AnyPath) -> dict[str, dict[str, Any]]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{FILE} is damaged") from None
    entries = noted.values() if isinstance(noted, dict) else [None]
    if not all(isinstance(e, dict) and isinstance(e.get("bytes"), int) for e in entries):
        raise ValueError(f"{FILE} is damaged")
    return noted


def _digests(
    folder: storage.AnyPath, names: list[str], sizes: dict[str, int]
) -> dict[str, dict[str, Any]]:
    if storage.in_bucket(folder):
        sums = storage.checksums(folder)
        return {name: {"bytes": sizes[name], "crc32c": sums[name]} for name in names}

    def digest(name: str) -> dict[str, Any]:
        with open(os.path.join(folder, name), "rb") as file:
            return {"bytes": sizes[name], "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    return dict(zip(names, storage.at_once(digest, names), strict=True))
