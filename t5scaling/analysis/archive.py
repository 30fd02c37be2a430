"""A study as one file: what `report` needs, and no checkpoints.

`NAME.tar.gz` holds, under `NAME/`, the study's gin text, its list of runs, results.csv, runs.jsonl,
fits.json, report.html and figures/, and of each run whose directory is there config.gin, run.json,
metrics.jsonl, timing.jsonl, DONE or FAILED, and the tables of its evaluations; with `predictions`,
also what its models answered. The same files give the same archive, byte for byte.
"""

import gzip
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from t5scaling import storage
from t5scaling.analysis.harvest import LOG, RESULTS, read_directories, results_of
from t5scaling.errors import UserError

SUFFIX = ".tar.gz"
_STUDY = ("study.gin", "study.json", RESULTS, LOG, "fits.json", "report.html", "figures/*")
_RUN = (
    "config.gin", "run.json", "metrics.jsonl", "timing.jsonl", "DONE", "FAILED",
    "inference_eval/*-metrics.jsonl",
)  # fmt: skip
_PREDICTIONS = ("inference_eval/*.jsonl",)


def export(
    study_dir: str, output: str | None = None, *, predictions: bool = False
) -> storage.AnyPath:
    """Writes the archive of a study and returns its path.

    Args:
      output: its path; None: `<study_dir>.tar.gz`.
      predictions: whether the models' answers go in too.

    Raises UserError if there is no study, or the archive cannot be written.
    """
    folder = storage.path(study_dir)
    runs = []
    if (folder / "runs").is_dir():  # there is a study, and its records can be read
        runs = [place for place, _ in read_directories(folder)]
    else:
        results_of(folder)
    path = storage.path(output or f"{folder}{SUFFIX}")
    if not path.name.endswith(SUFFIX):
        raise UserError(f"{path}: expected a name that ends in {SUFFIX}")
    name = path.name.removesuffix(SUFFIX)
    files = sorted(set(_files(folder, runs, predictions)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    with storage.replacing(path) as raw:
        with (
            gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for file in files:
                content = file.read_bytes()
                entry = tarfile.TarInfo(f"{name}/{file.relative_to(folder).as_posix()}")
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
        size = raw.tell()
    print(f"{path}: {len(files)} files, {size / 2**20:.1f} MiB")
    return path


def opened(path: str) -> str:
    """The directory of a study: `path` itself, or that of an archive, which is unpacked beside it.

    Raises UserError if it is no archive of a study, or its place is taken by other files.
    """
    if not path.endswith(SUFFIX):
        return path
    if storage.in_bucket(path):
        raise UserError(f"{path}: an archive is unpacked on this machine; copy it here first")
    file = Path(path)
    folder = file.with_name(file.name.removesuffix(SUFFIX))
    if not file.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with tarfile.open(file, "r:gz") as tar:
            entries = tar.getmembers()
            tops = {entry.name.split("/")[0] for entry in entries}
            if len(tops) != 1 or not any(
                entry.name.endswith(("/run.json", f"/{LOG}")) for entry in entries
            ):
                raise UserError(f"{path}: no archive of a study (run.py export makes them)")
            (top,) = tops
            for entry in entries:
                entry.name = entry.name.removeprefix(f"{top}/")
            _refuse_overwriting(folder, tar, entries)
            tar.extractall(folder, members=entries, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path}: cannot be unpacked into {folder} ({error})") from error
    return str(folder)


def _files(
    folder: storage.AnyPath, runs: Sequence[storage.AnyPath], predictions: bool
) -> Iterator[storage.AnyPath]:
    for pattern in _STUDY:
        yield from (file for file in folder.glob(pattern) if file.is_file())
    for run in runs:
        for pattern in _RUN + (_PREDICTIONS if predictions else ()):
            yield from run.glob(pattern)


def _refuse_overwriting(folder: Path, tar: tarfile.TarFile, entries: list[tarfile.TarInfo]) -> None:
    """Results and report may be made again from the runs; the runs' own files may not differ."""
    for entry in entries:
        there = folder / entry.name
        if entry.name.startswith("runs/") and there.exists():
            packed = tar.extractfile(entry)
            if packed is None or packed.read() != there.read_bytes():
                raise UserError(f"{there} differs from the archive's; move it away first")
