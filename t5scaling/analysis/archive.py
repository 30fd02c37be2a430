"""A study as one file: what `report` needs, and no checkpoints.

`NAME.tar.gz` holds, under `NAME/`, the study's gin text, its list of runs, results.csv, runs.jsonl,
fits.json, findings.json, report.html and figures/, and of each run whose directory is there
config.gin, run.json, metrics.jsonl, timing.jsonl, DONE or FAILED, and the tables of its
evaluations; with `predictions`, also what its models answered. Last comes SHA256SUMS, the digests
of all of these, as `sha256sum` writes them. The same files give the same archive, byte for byte. In
gin texts and reasons of failures, paths are written relative to the study, and of paths outside it
only the last name: the rest tells of the machine.

An archive may come from anybody. It is read to its end, so that its checksum and digests are
compared, before a first file is written; it may hold files and folders only, below one folder; its
files are written here, not by tarfile; and nothing that was there before is written over.
"""

import ast
import gzip
import hashlib
import io
import os
import re
import secrets
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any, cast

from t5scaling import storage
from t5scaling.analysis.conclusions.curve_fit import FILE as FITS
from t5scaling.analysis.conclusions.findings import FILE as FINDINGS
from t5scaling.analysis.results.harvest import (
    LOG,
    finished_finetunings,
    is_of_t5x,
    read_directories,
    results_of,
    without_places,
)
from t5scaling.errors import UserError, first_line
from t5scaling.records import (
    CONFIG,
    DONE,
    FAILED,
    METRICS,
    RECORD,
    REPORT,
    RESULTS,
    STUDY,
    STUDY_CONFIG,
    TIMING,
)  # fmt: skip

SUFFIX, DIGESTS = ".tar.gz", "SHA256SUMS"
_STUDY = (STUDY_CONFIG, STUDY, RESULTS, LOG, FITS, FINDINGS, REPORT)
_RUN = (CONFIG, RECORD, METRICS, TIMING, DONE, FAILED)
_DERIVED = (FITS, FINDINGS, REPORT, "figures/*")  # `report` makes them again
MOST_FILES = 200_000
# Of what an archive unpacks to: more times its own size than any study's files shrink by, and at
# least so much that small ones need not be counted.
MOST_TIMES, AT_LEAST, MOST_BYTES = 100, 64 * 2**20, 8 * 2**30
_PIECE = 2**20  # bytes at a time
_DAMAGE = (
    tarfile.TarError, EOFError, OSError, zlib.error, struct.error, ValueError, OverflowError,
    RecursionError,
)  # fmt: skip


def export(
    study_dir: str, output: str | None = None, *, predictions: bool = False
) -> storage.AnyPath:
    """Writes the archive of a study and returns its path.

    Args:
      output: its path; None: `<study_dir>.tar.gz`.
      predictions: whether the models' answers go in too.

    Raises UserError if there is no study, a finished run has lost measurements, a file cannot be
    read, or the archive cannot be written.
    """
    folder = storage.path(study_dir)
    runs = []
    # there is a study, and its records can be read
    if storage.exists(folder / "runs") and not is_of_t5x(folder):
        found = read_directories(folder)
        finished_finetunings(folder, found)
        runs = [place for place, _ in found]
    else:
        results_of(folder)
    path = storage.path(output or f"{os.fspath(folder).rstrip('/')}{SUFFIX}")
    name = _name_of(path)
    files = sorted(set(_files(folder, runs, predictions)))
    storage.make_folder(path.parent)
    roots = _forms(study_dir)
    digests = []
    with storage.replacing(path) as raw:
        with (
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for file in files:
                content = storage.read_bytes(folder / file)
                if content is None:
                    raise UserError(f"{folder / file} has just been removed; try again")
                content = _portable(file, content, roots)
                digests.append(f"{hashlib.sha256(content).hexdigest()}  {file}\n")
                _add(tar, f"{name}/{file}", content)
            _add(tar, f"{name}/{DIGESTS}", "".join(digests).encode())
            unpacked = packed.tell()
        size = raw.tell()
        if len(files) >= MOST_FILES or unpacked > _most(size):
            raise UserError(
                f"{path}: {len(files):,} files of {unpacked:,} bytes are more than `report` takes "
                "out of an archive of that size; leave out --predictions"
            )
    print(f"{path}: {len(files)} files, {size / 2**20:.1f} MiB")
    return path


def opened(path: str) -> str:
    """The directory of a study: `path` itself, or that of an archive, which is unpacked beside it.

    A directory that is there already must be the archive's; then nothing is unpacked.

    Raises UserError, and leaves everything as it was, if it is no archive of a study, if it is
    damaged, too large or holds anything but files and folders below one folder, or if its place is
    taken.
    """
    if not path.endswith(SUFFIX):
        return path
    if storage.in_bucket(path):
        raise UserError(f"{path}: an archive is unpacked on this machine; copy it here first")
    file = Path(path)
    folder = file.with_name(_name_of(file))
    if not file.is_file():
        raise UserError(
            f"{path}: {'a folder, not an archive' if file.is_dir() else 'no such file'}"
        )
    try:
        digests = _survey(file)
        if os.path.lexists(folder):
            _refuse_other(folder, digests)
        else:
            _unpack(file, folder, digests)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except _DAMAGE as error:
        raise UserError(
            f"{path}: cannot be unpacked into {folder} ({first_line(error)})"
        ) from error
    return str(folder)


def _name_of(path: storage.AnyPath) -> str:
    """Of the folder that an archive of this path is unpacked into."""
    name = path.name.removesuffix(SUFFIX)
    if not path.name.endswith(SUFFIX) or name in ("", ".", ".."):
        raise UserError(f"{path}: expected a name that ends in {SUFFIX}, such as study{SUFFIX}")
    return name


def _most(packed: int) -> int:
    """Bytes that an archive of so many may unpack to."""
    return min(MOST_BYTES, max(AT_LEAST, MOST_TIMES * packed))


def _files(
    folder: storage.AnyPath, runs: Sequence[storage.AnyPath], predictions: bool
) -> Iterator[str]:
    """The files to pack, by their names from `folder` on."""
    yield from (name for name in _STUDY if storage.exists(folder / name))
    figures = storage.sizes(folder / "figures")
    yield from (f"figures/{name}" for name in figures if not name.endswith(".tmp"))
    for run in runs:
        place = run.relative_to(folder).as_posix()
        yield from (f"{place}/{name}" for name in _RUN if storage.exists(run / name))
        for name in storage.sizes(run / "inference_eval"):
            if name.endswith("-metrics.jsonl") or (predictions and name.endswith(".jsonl")):
                yield f"{place}/inference_eval/{name}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))


def _forms(study_dir: str) -> list[str]:
    """The study's folder as texts may name it, the longest first."""
    forms = {os.fspath(study_dir), storage.absolute(study_dir)}
    if not storage.in_bucket(study_dir):
        forms |= {os.path.realpath(study_dir), os.path.normpath(study_dir)}
    return sorted((form.rstrip("/") for form in forms if form not in ("", ".", "/")), key=len)[::-1]


def _portable(name: str, content: bytes, roots: Sequence[str]) -> bytes:
    """What the archive holds of a file: gin texts and failures without the machine's places."""
    if not name.endswith((".gin", FAILED)):
        return content
    text = content.decode(errors="replace")
    if name.endswith(".gin"):
        literal = r"(?:'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")"
        # (gin writes a long text as several, side by side)
        return re.sub(
            rf"{literal}(?:\s+{literal})*", lambda found: _literal(found[0], roots), text
        ).encode()
    for root in roots:
        text = text.replace(f"{root}/", "")
    return without_places(text).encode()


def _literal(text: str, roots: Sequence[str]) -> str:
    """A text of gin with its quotes; a path among them without what tells of the machine."""
    try:
        value = ast.literal_eval(f"({text})")
    except (SyntaxError, ValueError):  # of a comment
        return text
    for root in roots:
        if value == root:
            return repr(".")
        if value.startswith(f"{root}/"):
            return repr(value.removeprefix(f"{root}/"))
    if len(value) > 1 and (value.startswith("/") or re.match(r"\w+://", value)):
        return repr(value.rstrip("/").rpartition("/")[2])
    return text


class _Bounded:
    """What is packed in an archive, to be read in pieces up to a limit: a small file may claim to
    hold far more, and the header of a member as well."""

    def __init__(self, packed: IO[bytes], limit: int):
        self._packed, self._limit = packed, limit

    def read(self, size: int = _PIECE) -> bytes:
        if not 0 <= size <= _PIECE:
            raise UserError(f"a header of {size:,} bytes; expected an archive as `export` makes it")
        data = self._packed.read(size)
        self._check(self._packed.tell())
        return data

    def seek(self, place: int, whence: int = 0) -> int:
        self._check(place)
        return self._packed.seek(place, whence)

    def tell(self) -> int:
        return self._packed.tell()

    def _check(self, place: int) -> None:
        if place > self._limit:
            raise UserError(
                f"it unpacks to more than {self._limit:,} bytes, the limit for its size"
            )


def _members(file: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """(name below the one folder, its content in pieces) of each file, which must be read in their
    order. Raises UserError, or what tarfile and gzip raise, for anything that is not as it must be.
    """
    tops, names = set(), set()
    with open(file, "rb") as raw, gzip.GzipFile(fileobj=raw) as packed:
        # A GzipFile reads bytes as any other file; its stub does not say that it is IO[bytes].
        bounded: Any = _Bounded(cast(IO[bytes], packed), _most(file.stat().st_size))
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            for count, entry in enumerate(tar, 1):
                if count > MOST_FILES:
                    raise UserError(f"more than {MOST_FILES:,} files")
                top, _, name = entry.name.partition("/")
                _check_name(entry, top, name)
                tops.add(top)
                if len(tops) > 1:
                    raise UserError(f"several folders at its top: {', '.join(sorted(tops))}")
                if entry.isdir():
                    continue
                if name in names:
                    raise UserError(f"{name} is in it twice")
                names.add(name)
                yield name, _pieces(tar, entry)
        while bounded.read():  # to the end, where gzip has its checksum
            pass


def _check_name(entry: tarfile.TarInfo, top: str, name: str) -> None:
    """Raises UserError for a member that is no file or folder, or leads elsewhere."""
    shown = ascii(entry.name)[:100]
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or entry.issparse():
        raise UserError(f"{shown} is a link, a device or another thing that is no file or folder")
    parts = [top, *name.split("/")] if name or not entry.isdir() else [top]
    if any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{shown} is no name below the archive's folder")
    if "\\" in entry.name or not entry.name.isprintable():
        raise UserError(f"{shown} is no name of a file of a study")


def _pieces(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    content = tar.extractfile(entry)
    assert content is not None  # only of what is no file
    while piece := content.read(_PIECE):
        yield piece


def _survey(file: Path) -> dict[str, str]:
    """Name -> sha256 of every file in the archive, which is read whole and compared with its own
    list of them."""
    found, listed = {}, b""
    for name, pieces in _members(file):
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
            listed += piece if name == DIGESTS else b""
        found[name] = digest.hexdigest()
    if found.pop(DIGESTS, None) is None or not any(
        name == LOG or name.endswith(f"/{RECORD}") for name in found
    ):
        raise UserError("no archive of a study (run.py export makes them)")
    expected = "".join(f"{digest}  {name}\n" for name, digest in found.items())
    if listed != expected.encode():
        raise UserError(f"its files are not those that its {DIGESTS} lists: damaged, or changed")
    return found


def _unpack(file: Path, folder: Path, digests: dict[str, str]) -> None:
    """All of it or nothing."""
    temporary = folder.with_name(f"{folder.name[:60]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir()
        for name, pieces in _members(file):
            if name == DIGESTS:
                continue
            target, digest = temporary / name, hashlib.sha256()
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "xb") as out:
                for piece in pieces:
                    digest.update(piece)
                    out.write(piece)
            if digests.get(name) != digest.hexdigest():
                raise UserError("it changed while it was read; try again")
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_other(folder: Path, digests: dict[str, str]) -> None:
    """Raises UserError unless the folder is what the archive would be unpacked to. What `report`
    makes again may be of another version."""
    if not folder.is_dir():
        raise UserError(f"{folder} is there already, and is no folder; move it away first")
    of_runs = any(name.endswith(f"/{RECORD}") for name in digests)
    derived = (*_DERIVED, *((RESULTS, LOG) if of_runs else ()))
    here = {f"runs/{name}" for name in storage.sizes(folder / "runs") if _is_record(name)}
    for name in sorted(here - digests.keys()):
        raise UserError(
            f"{folder} is there already, with a run that is not in the archive ({name}); move it "
            f"away first, or report on it as it is: run.py report {folder}"
        )
    for name, digest in digests.items():
        if any(fnmatch(name, pattern) for pattern in derived):
            continue
        content = storage.read_bytes(folder / name)
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            raise UserError(
                f"{folder} is there already, and {name} in it differs from the archive's; move it "
                f"away first, or report on it as it is: run.py report {folder}"
            )


def _is_record(name: str) -> bool:
    return name.rpartition("/")[2] == RECORD
