"""The work directory of a materialisation: one process at a time, nothing half-written is read.

`<final>.work/` lies beside the directory that it becomes and holds what is finished so far:
`read/` (sorted runs of examples), `written/` (what is known of each part) and `final/` (the parts).
Files come into being under `tmp/` and are renamed when they are whole, so that a job that was
killed goes on with what is there.
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from t5scaling import storage
from t5scaling.errors import UserError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class DiskError(UserError):
    """A file could not be written. What is finished is kept: the next launch goes on with it."""


def end_with(parent: int) -> None:
    """Sends this process SIGTERM when the process `parent`, which started it, is gone: its work
    must not go on without it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def path_for(final: Path) -> Path:
    return final.with_name(f"{final.name}.work")


@contextlib.contextmanager
def locked(final: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the one lock on `final`; calls `waiting` first if another process has it."""
    path = final.with_name(f"{final.name}.lock")
    storage.make_folder(path.parent)
    with storage.locked(path, waiting):
        yield


def prepare(work: Path, plan: dict) -> None:
    """Makes the work directory; begins anew if it is there for another plan (other data).

    What earlier processes left half-written goes.
    """
    with disk_errors(work):
        if work.is_dir() and read_json(work / "plan.json") != plan:
            shutil.rmtree(work)
        shutil.rmtree(work / "tmp", ignore_errors=True)
        for folder in ("tmp", "read", "written", "final"):
            (work / folder).mkdir(parents=True, exist_ok=True)
    write_json(work, work / "plan.json", plan)
    (work / "error.json").unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(work: Path, path: Path) -> Iterator[Path]:
    """Gives a path to write to, which becomes `path` when the block ends without an error."""
    unique = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = work / "tmp" / f"{path.name}.{unique}"
    try:
        with disk_errors(path):
            yield temporary
            temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(work: Path, path: Path, value: Any) -> None:
    with new_file(work, path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """None if there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def finished(work: Path, folder: str, name: str) -> dict | None:
    """The manifest of a finished item, if every file it names is there as it was written."""
    manifest = read_json(work / folder / f"{name}.json")
    if manifest is None:
        return None
    for file, size in manifest["files"].items():
        try:
            if (work / file).stat().st_size != size:
                return None
        except FileNotFoundError:
            return None
    return manifest


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an error of the file system, ArrayRecord's among them, into a DiskError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = _number(error)
        if number is None:
            raise
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"no space left to write {path}: what is finished is kept, so free some space and "
                "start again"
            ) from error
        raise DiskError(f"cannot write {path}: {os.strerror(number)}") from error


def _number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # ArrayRecord has only the words.
    return next((number for number in _DISK if os.strerror(number) in str(error)), None)


def note_error(work: Path, error: UserError) -> None:
    """Writes a user's mistake to a file that the process that started the work reads."""
    with contextlib.suppress(DiskError):
        value = {"message": str(error), "disk": isinstance(error, DiskError)}
        write_json(work, work / "error.json", value)


def raise_noted(work: Path) -> None:
    """Raises what `note_error` left, if anything."""
    noted = read_json(work / "error.json")
    if noted:
        raise (DiskError if noted["disk"] else UserError)(noted["message"])
