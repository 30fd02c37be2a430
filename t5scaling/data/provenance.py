"""What examples were made of: the files of text, the vocabulary's file and the task's code.

Examples answer to a spec, and a spec names files and modules, which may have changed since. So
dataset.json holds, as `made_from`, what `describe` found when they were made, and whoever opens
them asks `changed` whether it is still so. Neither imports the task: the training process loads no
SeqIO.

`made_from` is a map of
- `patterns` and `files`: the patterns of a task's local files, and the files that they matched, as
  [path, bytes, time of change in ns, sha256 or None];
- `vocabulary`: one such file, or None if it lies in a bucket;
- `code`: module -> [path, sha256], of the modules that register the task and all that they import,
  without installed packages and without the metrics.

Time alone does not tell a replaced file from one that was copied or checked out anew, so contents
decide wherever they are few enough to be read again (HASHED_BYTES); above that, size and time do.
Data in a bucket and those of FunctionDataSource are known by name alone.
"""

import ast
import functools
import glob
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5scaling.errors import UserError

HASHED_BYTES = 1 << 30  # of all files of a task together: a second of reading
REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OURS = "{repository}"  # what the repository's folder is written as: it is not the same everywhere
# What measures answers does not make examples.
_MEASURING = ("tasks.metrics", "tasks.superglue_metrics", "tasks.bootstrap")

File = list  # [path, bytes, time of change in ns, sha256 or None]


def describe(
    modules: Sequence[str], patterns: Iterable[str], files: Iterable[str], vocabulary: str
) -> dict[str, Any]:
    """`made_from` as it is now. Raises UserError for a file that cannot be read."""
    paths = sorted(set(files))
    sizes = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    hashed = sizes <= HASHED_BYTES
    there = "://" not in vocabulary and os.path.isfile(vocabulary)
    return {
        "patterns": [_portable(pattern) for pattern in sorted(set(patterns))],
        "files": [_file(path, hashed) for path in paths],
        "vocabulary": _file(os.path.abspath(vocabulary), True) if there else None,
        "code": code(modules),
    }


def identity(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `made_from` that is equal for equal data and code, for a hash."""
    files = [
        [path, size, digest or changed_ns] for path, size, changed_ns, digest in made_from["files"]
    ]
    return {"patterns": made_from["patterns"], "files": files, "code": made_from["code"]}


def changed(made_from: Mapping[str, Any], modules: Sequence[str]) -> str | None:
    """A sentence about the first thing that changed; None if nothing did.

    Where none of the files is there any more, as on a machine that was given the examples alone,
    there is nothing to compare them with.
    """
    return (
        _changed_files(made_from)
        or _changed_file(made_from["vocabulary"], "the vocabulary ")
        or _changed_code(made_from["code"], modules)
    )


def matches(pattern: str) -> list[str]:
    """The files of a pattern, sorted, as `tasks.sources` finds them."""
    folder, name = os.path.split(pattern)
    if os.path.exists(pattern):
        names = [pattern]
    else:
        literally = os.path.join(glob.escape(folder), name) if os.path.isdir(folder) else pattern
        names = sorted(glob.glob(literally, recursive=True))
    there: dict[str, str] = {}
    for name in names:
        if not os.path.isdir(name):
            there.setdefault(os.path.realpath(name), name)
    return list(there.values())


def search_path() -> list[str]:
    """Where a child finds modules: what this process finds, and last what lies in the folder.

    The folder comes last so that a tasks.py or queue.py in it never hides a module of ours or of
    Python's.
    """
    here = os.getcwd()
    before = [entry for entry in sys.path if entry and os.path.abspath(entry) != here]
    if REPOSITORY not in map(os.path.abspath, before):
        before.insert(0, REPOSITORY)
    return before if here == REPOSITORY else [*before, here]


def child(module: str, *arguments: str) -> list[str]:
    """The command of a Python process that calls `main` of a module of ours, in the environment of
    `child_environment`.

    Python itself would look for modules in the current folder first, and could take a queue.py
    there for its own.
    """
    place, _, name = module.rpartition(".")
    code = (
        "import sys; sys.path[:] = [entry for entry in sys.path if entry]; "
        f"from {place} import {name}; sys.exit({name}.main())"
    )
    return [sys.executable, "-c", code, *arguments]


def child_environment(**more: str) -> dict[str, str]:
    """The environment of such a process: this one's, with its PYTHONPATH and `more` variables."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search_path()), **more}


def code(modules: Sequence[str]) -> dict[str, list[str]]:
    """Module -> [path, sha256 of its source] of `modules` and the uninstalled ones they import."""
    found: dict[str, list[str]] = {}
    places = tuple(search_path())
    left = list(modules)
    while left:
        name = left.pop()
        path = _source_of(name, places)
        if path is None or name in found or name in _MEASURING:
            continue
        digest, imported = _read_code(path, os.stat(path).st_mtime_ns, name)
        found[name] = [_portable(path), digest]
        left += imported
    return dict(sorted(found.items()))


def _source_of(name: str, places: Sequence[str]) -> str | None:
    """The file of a module that is not in an installed package, found by its name alone."""
    if name.split(".")[0] in ("t5scaling", *sys.stdlib_module_names):
        return None
    inside = name.replace(".", os.sep)
    for place in places:
        for file in (os.path.join(inside, "__init__.py"), f"{inside}.py"):
            path = os.path.abspath(os.path.join(place, file))
            if os.path.isfile(path):
                own = path.startswith(os.path.join(REPOSITORY, "tasks") + os.sep)
                return path if own or not path.startswith(_installed()) else None
    return None


@functools.cache
def _installed() -> tuple[str, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(sysconfig.get_path(name) + os.sep for name in names)


@functools.lru_cache(maxsize=1024)
def _read_code(path: str, modified_ns: int, name: str) -> tuple[str, tuple[str, ...]]:
    """(sha256 of a source file, the names it may import); `modified_ns` makes it read anew."""
    del modified_ns
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        tree = ast.Module([], [])  # importing it says what is wrong
    package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
    return hashlib.sha256(source).hexdigest(), tuple(_imported(tree, package))


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _portable(path: str) -> str:
    return OURS + path[len(REPOSITORY) :] if path.startswith(REPOSITORY + os.sep) else path


def _here(path: str) -> str:
    return REPOSITORY + path[len(OURS) :] if path.startswith(OURS) else path


def _file(path: str, hashed: bool) -> File:
    try:
        found = os.stat(path)
        digest = _sha256(path) if hashed else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return [_portable(path), found.st_size, found.st_mtime_ns, digest]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _changed_files(made_from: Mapping[str, Any]) -> str | None:
    recorded = {_here(file[0]): file for file in made_from["files"]}
    if recorded and not any(map(os.path.isfile, recorded)):
        return None
    for pattern in made_from["patterns"]:
        for path in matches(_here(pattern)):
            if path not in recorded:
                return f"{path} was added"
    for path, file in recorded.items():
        if not os.path.isfile(path):
            return f"{path} is gone"
        if difference := _changed_file(file):
            return difference
    return None


def _changed_file(file: File | None, what: str = "") -> str | None:
    """A file that is not there cannot be compared."""
    if file is None or not os.path.isfile(_here(file[0])):
        return None
    path, size, modified_ns, digest = file
    found = os.stat(_here(path))
    if found.st_size != size:
        return f"{what}{_here(path)} has {found.st_size:,} bytes, not {size:,}"
    if found.st_mtime_ns != modified_ns and (digest is None or _sha256(_here(path)) != digest):
        return f"{what}{_here(path)} was changed"
    return None


def _changed_code(recorded: Mapping[str, list[str]], modules: Sequence[str]) -> str | None:
    now = code(modules)
    if not any(module in now for module in modules):
        return None  # not a machine that could make them
    for name in sorted({*recorded, *now}):
        was, found = recorded.get(name), now.get(name)
        if was != found:
            if found is None:
                return f"the task's code no longer has {name}"
            if was is None:
                return f"the task's code now also has {name}"
            where = f"{_here(was[0])}, not {_here(found[0])}" if was[0] != found[0] else ""
            return f"{name} was {where}" if where else f"{_here(found[0])} was changed"
    return None
