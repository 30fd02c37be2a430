"""Files of runs, studies and examples, on this machine or in a bucket: one way for both.

`path` returns for an address what one reads and writes with: a `pathlib.Path`, or for `gs://` an
`epath.Path` over gcsfs, which has the same methods. The functions here do what those lack. In a
bucket there are objects only: folders are there when something is in them, an object appears whole,
and it is never appended to or renamed, only written anew.
"""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from etils import epath

from t5scaling.errors import UserError, first_line

BUCKETS = "gs://"
REWRITE_S = 30.0  # between two versions of a growing object
_AT_ONCE = 32  # requests: each takes some 50 ms, wherever the bucket is

AnyPath = Path | epath.Path


def path(address: str | os.PathLike) -> AnyPath:
    """The file or folder of that address.

    Raises UserError for a bucket that is not there or may not be read, or if gcsfs is missing.
    """
    if not in_bucket(address):
        return Path(address)
    _open_bucket(os.fspath(address).removeprefix(BUCKETS).split("/")[0])
    return epath.Path(address)


def unfit(address: str | os.PathLike) -> str:
    """Why checkpoints cannot be kept below a folder of that address; "" if they can.

    What writes and looks for them takes `[`, `]` and `\\` in a path for a pattern, finds nothing,
    and a run that says it is done could never be read again.
    """
    found = sorted(set("[]\\") & set(os.fspath(address)))
    return f"{' and '.join(found)} in a path would be taken for a pattern" if found else ""


def check_fit(address: str | os.PathLike, what: str) -> None:
    """Raises UserError for an address that is empty, or below which no checkpoint can be kept."""
    reason = unfit(address) if os.fspath(address) else "it is empty"
    if reason:
        raise UserError(f"{what}={os.fspath(address)!r}: {reason}; choose another path")


def in_bucket(address: str | os.PathLike) -> bool:
    return os.fspath(address).startswith(BUCKETS)


def expanded(address: str) -> str:
    """The address with the home folder in the place of a leading ~.

    Raises UserError if nothing says where that is.
    """
    found = os.path.expanduser(address)
    if found.startswith("~"):
        raise UserError(f"{address}: no home folder is known for {found.split(os.sep)[0]}; "
                        "set HOME, or write the whole path")  # fmt: skip
    return found


def absolute(address: str | os.PathLike) -> str:
    """The address from wherever one is."""
    return os.fspath(path(address)) if in_bucket(address) else os.path.abspath(address)


def create(address: str | os.PathLike, data: bytes) -> bool:
    """Makes a file that must not exist yet; returns False if it does. If several processes try, one
    succeeds.

    Raises UserError if it cannot be written; then nothing is there.
    """
    with _cannot("write", os.fspath(address)):
        try:
            if in_bucket(address):
                _system().pipe_file(os.fspath(address), data, mode="create")
                return True
            file = open(address, "xb")  # noqa: SIM115 - closed below, whatever happens
        except FileExistsError:
            return False
        try:
            with file:
                file.write(data)
        except OSError:  # a full disk: an empty file would say that somebody has been here
            Path(address).unlink(missing_ok=True)
            raise
    return True


def make_folder(address: str | os.PathLike) -> AnyPath:
    """The folder of that address, made if need be. Raises UserError if it cannot be."""
    with _cannot("make the folder", os.fspath(address)):
        folder = path(address)
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_writable(folder: str | os.PathLike) -> None:
    """Raises UserError if nothing can be written in a folder: to be asked before hours of work.

    Makes the folder. Permissions alone do not decide it: a disk may be full or mounted read-only.
    """
    probe = make_folder(folder) / f".{_temporary('probe')}"
    write(probe, b"")
    probe.unlink()


def read_bytes(address: str | os.PathLike) -> bytes | None:
    """What a file holds; None if there is no such file. Raises UserError if it is a folder or may
    not be read."""
    with _cannot("read", os.fspath(address)):
        try:
            return content_of(address)
        except FileNotFoundError:
            return None


def content_of(address: str | os.PathLike) -> bytes:
    """What a file holds, or a pipe gives. Raises OSError, also for a device: some never end."""
    if not in_bucket(address):
        kind = os.stat(address).st_mode
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            raise OSError(errno.ENODEV, "it is a device, not a file", os.fspath(address))
    return path(address).read_bytes()


def read_text(address: str | os.PathLike) -> str | None:
    """The text of a UTF-8 file; None if there is no such file. Raises UserError as `read_bytes`,
    and for a file that is not UTF-8."""
    content = read_bytes(address)
    try:
        return None if content is None else content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{address}: damaged: not UTF-8 text") from None


def exists(address: str | os.PathLike) -> bool:
    """Whether there is such a file or folder. Raises UserError if that may not be known."""
    with _cannot("look for", os.fspath(address)):
        return path(address).exists()


@contextlib.contextmanager
def replacing(address: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file to write. It appears under its name, complete, when the block ends; if the block
    fails, what was there before stays.

    Raises UserError if it cannot be written.
    """
    name = os.fspath(address)
    with contextlib.ExitStack() as stack:
        if in_bucket(name):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            temporary = os.path.join(folder, "object")
        else:
            temporary = os.path.join(os.path.dirname(name), _temporary(os.path.basename(name)))
            stack.callback(Path(temporary).unlink, missing_ok=True)
        with _cannot("write", name):
            with open(temporary, "wb") as file:
                yield file
            if in_bucket(name):
                _system().put_file(temporary, name)
            else:
                os.replace(temporary, name)


def write(address: str | os.PathLike, content: str | bytes) -> None:
    """The file is there whole or not at all. Raises UserError if it cannot be written."""
    with replacing(address) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def _temporary(name: str) -> str:
    """A name beside `name` that no other process gives, on this machine or in another container:
    process numbers repeat from one container to the next. As long as a file's name may be."""
    return f"{name[:60]}.{secrets.token_hex(8)}.tmp"


class GrowingFile:
    """A text file that is added to. What was appended is there after `flush`, come what may.

    A file is appended to at once. An object is written anew: at each `flush`, and else not more
    often than every REWRITE_S.
    """

    def __init__(self, address: str | os.PathLike, text: str = ""):
        """`text`: what it holds."""
        self._name = os.fspath(address)
        self._texts, self._waiting, self._written = [text], False, -REWRITE_S

    def append(self, text: str) -> None:
        """Raises UserError if it cannot be written."""
        if in_bucket(self._name):
            self._texts.append(text)
            self._waiting = True
            if time.monotonic() - self._written >= REWRITE_S:
                self.flush()
        else:
            with _cannot("write", self._name), open(self._name, "a", encoding="utf-8") as file:
                file.write(text)

    def flush(self) -> None:
        if self._waiting:
            write(self._name, "".join(self._texts))
            self._waiting, self._written = False, time.monotonic()


class Folder:
    """A folder for packages that write to this machine only.

    Attributes:
        local: where they write: the folder itself, or a temporary one that `upload` copies.
    """

    def __init__(self, address: str | os.PathLike):
        self._target = path(address)
        self._sizes: dict[str, int] = {}  # as uploaded; the files of such packages grow
        self._temporary = tempfile.TemporaryDirectory() if in_bucket(address) else None
        self.local = Path(self._temporary.name if self._temporary else self._target)

    def upload(self) -> None:
        """Copies what is new or longer than when it was copied last."""
        if self._temporary:
            there = sizes(self.local)
            new = [name for name, size in there.items() if self._sizes.get(name) != size]
            with _cannot("write", str(self._target)):
                at_once(lambda n: _system().put_file(self.local / n, f"{self._target}/{n}"), new)
            self._sizes = there

    def close(self) -> None:
        self.upload()
        if self._temporary:
            self._temporary.cleanup()


def sizes(folder: str | os.PathLike) -> dict[str, int]:
    """Path within the folder -> bytes, of all files at any depth; {} if there is no such folder.

    Links to folders are followed, each folder once. Raises UserError if a folder within may not be
    read: whoever counts what is there must not count less in silence.
    """
    found = {}
    if in_bucket(folder):
        return {name: entry["size"] for name, entry in _objects(folder).items()}
    seen: set[tuple[int, int]] = set()
    with _cannot("read", os.fspath(folder)):
        for place, folders, names in os.walk(folder, onerror=_unless_gone, followlinks=True):
            folders[:] = [f for f in sorted(folders) if _is_new(os.path.join(place, f), seen)]
            for name in names:
                file = os.path.join(place, name)
                with contextlib.suppress(FileNotFoundError):  # gone since
                    found[os.path.relpath(file, folder)] = os.stat(file).st_size
    return found


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _is_new(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Whether the folder is not among `seen`, to which it is added: links may go round."""
    try:
        status = os.stat(folder)
    except FileNotFoundError:
        return False
    place = status.st_dev, status.st_ino
    if place in seen:
        return False
    seen.add(place)
    return True


def checksums(folder: str | os.PathLike) -> dict[str, str]:
    """Path within a bucket's folder -> the CRC32C that the store keeps of the object, base64."""
    return {name: entry["crc32c"] for name, entry in _objects(folder).items()}


def _objects(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Path within a bucket's folder -> what the store says of the object."""
    root = os.fspath(path(folder)).removeprefix(BUCKETS) + "/"
    found = _system().find(root, detail=True)
    # (a name that ends in / is what some programs put there for a folder)
    return {n.removeprefix(root): entry for n, entry in found.items() if not n.endswith("/")}


def modified_ns(address: str | os.PathLike) -> int:
    """When a file, or the entries of a folder, were changed last, in nanoseconds since the epoch.

    Raises FileNotFoundError.
    """
    if not in_bucket(address):
        return os.stat(address).st_mtime_ns
    name = os.fspath(path(address)).removeprefix(BUCKETS)
    found = _system().find(name, detail=True).values()
    if not found:
        raise FileNotFoundError(address)
    return max(int(entry["mtime"].timestamp() * 1e6) * 1000 for entry in found)


def cached(address: str | os.PathLike, kind: str) -> Path:
    """The file or folder itself, or the place on this machine for a copy of what is in a bucket.

    `kind`: "fetched" from there, or "made" to be copied there.
    """
    if not in_bucket(address):
        return Path(address)
    return cache_folder(kind, os.fspath(path(address)).removeprefix(BUCKETS))


def cache_folder(*names: str) -> Path:
    """The folder of that name within `$XDG_CACHE_HOME/t5scaling`, or `~/.cache/t5scaling`.

    Raises UserError if nothing says where the home folder is.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")
    return Path(cache, "t5scaling", *names)


def fetch(file: AnyPath) -> Path:
    """The file itself, or its copy on this machine, made unless there is one of its size.

    For files that never change. Raises FileNotFoundError.
    """
    here = cached(file, "fetched")
    if isinstance(file, Path):
        return file
    if not (here.is_file() and here.stat().st_size == file.stat().length):
        with _cannot("write", str(here)):
            here.parent.mkdir(parents=True, exist_ok=True)
            temporary = here.with_name(_temporary(here.name))
            _system().get_file(os.fspath(file), os.fspath(temporary))
            os.replace(temporary, here)
    return here


def publish(local: Path, target: AnyPath, last: str) -> None:
    """Copies a finished folder to its place, its file `last` at the end: whoever sees that file
    sees all."""
    if local == target:
        return
    with _cannot("write", str(target)):
        names = [name for name in sizes(local) if name != last]
        at_once(lambda name: _system().put_file(local / name, f"{target}/{name}"), names)
        _system().put_file(local / last, f"{target}/{last}")


@contextlib.contextmanager
def locked(place: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the one lock on a folder of this machine, or on a file that is there for it alone.

    Calls `waiting` first if another process has it; what that raises ends the wait. The kernel
    frees the lock at any death of its holder; a file is removed in the end. (The package filelock
    leaves its files behind, cannot lock a folder, and where a file system knows no locks replaces
    them by a file that a killed process leaves locked.)

    Raises UserError if the place cannot be opened, or its file system knows no locks.
    """
    while True:
        is_folder = place.is_dir()
        with _cannot("lock", str(place)):
            flags = os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT
            descriptor = os.open(place, flags, 0o666)
        try:
            with _cannot("lock", str(place)):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The holder before may have removed the file; then the lock is one on nothing.
            if not _is_open_at(descriptor, place):
                continue
            try:
                yield
            finally:
                if not is_folder:
                    place.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_open_at(descriptor: int, place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(place))
    except FileNotFoundError:
        return False


def at_once(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """[function(item) for item in items], many at a time: they wait for requests."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(function, items))


@functools.cache
def _open_bucket(bucket: str) -> None:
    """Sees to it that the bucket can be used, at its first use, or says what is missing."""
    import fsspec.config

    # What a process has listed once it would go on believing, and others write there as well.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it raises what it logs
    where = f"{BUCKETS}{bucket}"
    try:
        _system().call("GET", "b/{}/o", bucket, maxResults=1)
    except ImportError:
        raise UserError(
            f'{where} needs the package gcsfs, which is not installed: pip install -e ".[gcs]"'
        ) from None
    except FileNotFoundError:
        raise UserError(
            f"{where}: there is no such bucket; gcloud storage buckets create {where}, or "
            "correct its name"
        ) from None
    except Exception as error:  # of gcsfs, google-auth and aiohttp, which share no base
        if "Forbidden" in str(error) or getattr(error, "code", None) in (401, 403):
            raise UserError(
                f"{where}: no permission to list it ({_reason(error)}); gcloud auth "
                "application-default login, or ask its owner for the role Storage Object User"
            ) from None
        raise UserError(f"{where} cannot be reached ({_reason(error)})") from error


def _system() -> Any:
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils asks for it: one for both


@contextlib.contextmanager
def _cannot(verb: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # The file that the error is about may lie deeper than the one that was asked for.
        inside = error.filename if isinstance(error.filename, str) else name
        where = inside if inside.startswith(name + os.sep) and ".tmp" not in inside else name
        raise UserError(f"cannot {verb} {where}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return getattr(error, "strerror", None) or first_line(lines[-1] if lines else error)[:200]
