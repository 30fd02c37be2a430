"""Who is at work on a run: a claim in its directory, so that two processes never do it at once.

`<model_dir>/claims/<n>` holds {"owner", "host", "pid", "started", "job", "step", "beat"}: the
process, the engine's job that it belongs to, the step it went on from, and when it was last heard
of. The highest n counts. A new claim is a file that must not exist yet, which file systems and
object stores alike grant to one process only. A claim is over when it was given back, when its
process is gone from this machine, or, on another machine, was not heard of for LEASE_S.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from t5scaling import storage
from t5scaling.errors import UserError

FOLDER = "claims"
JOB_VARIABLE = "T5SCALING_JOB"  # set in the jobs of an engine: their name there
BEAT_S, LEASE_S = 30.0, 180.0


class Taken(UserError):
    """Another process is at work on the run."""


@dataclass(frozen=True)
class Holder:
    """A claim as it is written. `beat`: seconds since the epoch; 0 once it was given back."""

    owner: str
    host: str
    pid: int
    started: str
    job: str
    step: int
    beat: float

    @property
    def alive(self) -> bool:
        if self.beat and self.host == _host():
            return _started(self.pid) == self.started
        return time.time() - self.beat < LEASE_S

    def __str__(self) -> str:
        job = f" ({self.job})" if self.job else ""
        return f"process {self.pid} on {self.host.split('/')[0]}{job}"


def holder(model_dir: str) -> Holder | None:
    """Who is at work on the run now, or None."""
    last = latest(model_dir)
    return last if last and last.alive else None


def latest(model_dir: str) -> Holder | None:
    """The last claim, of a process that may be gone."""
    number = _last_number(model_dir)
    return _read(_path(model_dir, number)) if number else None


@contextlib.contextmanager
def hold(model_dir: str, step: int = 0) -> Iterator[None]:
    """Claims the run for the time of the block. `step`: of its newest checkpoint.

    Raises Taken if a living process has it.
    """
    number = _last_number(model_dir)
    before = _read(_path(model_dir, number)) if number else None
    if before and before.alive:
        raise _taken(model_dir, before)
    mine = Holder(
        owner=uuid.uuid4().hex,
        host=_host(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        job=os.environ.get(JOB_VARIABLE, ""),
        step=step,
        beat=time.time(),
    )
    path = _path(model_dir, number + 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whom it names has it: of two at once a mounted bucket may keep the later one, and a request
    # whose answer was lost is repeated and then refused.
    storage.create(path, _text(mine).encode())
    if (winner := _read(path)).owner != mine.owner:
        raise _taken(model_dir, winner)
    if _last_number(model_dir) != number + 1:  # ours came after it was cleared as an old one
        path.unlink(missing_ok=True)
        raise Taken(f"{model_dir}: another process is at work on this run")
    if number:
        _path(model_dir, number).unlink(missing_ok=True)
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(model_dir, number + 1, mine, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        storage.write(path, _text(Holder(**{**asdict(mine), "beat": 0.0})))


def _beat(model_dir: str, number: int, mine: Holder, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        with contextlib.suppress(Exception):  # the next one may get through
            if _last_number(model_dir) > number:
                # This process was not heard of for so long that another one has taken over.
                # Whatever it wrote now would spoil the other's work.
                print(
                    f"{model_dir}: another process has taken over; this one ends", file=sys.stderr
                )
                sys.stderr.flush()
                os._exit(1)
            storage.write(
                _path(model_dir, number), _text(Holder(**{**asdict(mine), "beat": time.time()}))
            )


def _taken(model_dir: str, by: Holder) -> Taken:
    return Taken(f"{model_dir}: {by} is at work on this run")


def _path(model_dir: str, number: int) -> storage.AnyPath:
    return storage.path(model_dir) / FOLDER / str(number)


def _last_number(model_dir: str) -> int:
    folder = storage.path(model_dir) / FOLDER
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0)
    return 0


def _read(path: storage.AnyPath) -> Holder:
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        # Being written just now, or cleared by its successor: somebody is at it.
        return Holder("", "another machine", 0, "", "", 0, time.time())


def _text(claim: Holder) -> str:
    return json.dumps(asdict(claim)) + "\n"


def _host() -> str:
    """This machine, since it was started; containers on it differ by the processes they see."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _started(pid: int) -> str:
    """When the process began, as the system writes it; "" if there is none of that number."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return ""
        with contextlib.suppress(PermissionError):  # it lives, and belongs to somebody else
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return ""
        return "?"  # no /proc here: its number has to do
    return "" if fields[0] in "ZX" else fields[19]  # a zombie does nothing any more
