"""Who is at work on a run: a claim in its directory, so that two processes never do it at once.

`<model_dir>/claims/<n>` holds {"owner", "host", "pid", "started", "job", "step", "beat"}: the
process, the engine's job that it belongs to, the step it went on from, and how many signs of life
it has given. The highest n counts. A new claim is a file that must not exist yet, which file
systems and object stores alike grant to one process only. A claim is over when it was given back or
when its process is gone from this machine. On another machine, the holder counts as dead when an
observer has seen no new sign of life for LEASE_S by the observer's own clock: clocks of two
machines are never compared. So a first look never finds such a holder dead; `watch` looks for long
enough. A claim that cannot be read, as a full disk or a kill leaves one, gives no sign of life
either.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from t5scaling import records, storage
from t5scaling.errors import UserError
from t5scaling.records import NAME, NUMBER

JOB_VARIABLE = "T5SCALING_JOB"  # set in the jobs of an engine: their name there
BEAT_S, LEASE_S = 30.0, 180.0
_FIELDS = {
    "owner": NAME, "host": NAME, "pid": NUMBER, "started": NAME, "job": NAME, "step": NUMBER,
    "beat": NUMBER,
}  # fmt: skip


class Taken(UserError):
    """Another process is at work on the run."""


@dataclass(frozen=True)
class Holder:
    """A claim as it is written. `beat`: signs of life so far; 0 once it was given back.

    silent_s: not written: for how long this process has seen no new one, by its own clock.
    """

    owner: str
    host: str
    pid: int
    started: str
    job: str
    step: int
    beat: float
    silent_s: float = 0.0

    @property
    def is_here(self) -> bool:
        """Whether the process is one of this machine, so that it can be looked for."""
        return self.host == _host()

    @property
    def alive(self) -> bool:
        if not self.beat:
            return False
        if self.is_here:
            return _started(self.pid) == self.started
        return self.silent_s < LEASE_S

    def __str__(self) -> str:
        if not self.owner:
            return "a process whose claim cannot be read"
        job = f" ({self.job})" if self.job else ""
        return f"process {self.pid} on {self.host.split('/')[0]}{job}"


def holder(model_dir: str) -> Holder | None:
    """Who is at work on the run now, or None; on another machine, after a first look, who may
    be."""
    last = latest(model_dir)
    return last if last and last.alive else None


def latest(model_dir: str) -> Holder | None:
    """The last claim, of a process that may be gone."""
    number = _last_number(model_dir)
    return _look(_path(model_dir, number)) if number else None


def watch(model_dirs: Iterable[str]) -> None:
    """Returns when it is known of each run whether its holder on another machine is alive: it has
    given a sign of life, or none for LEASE_S. Prints a line if that takes a while."""
    open_ones = {}
    for model_dir in model_dirs:
        last = latest(model_dir)
        if last and last.alive and not last.is_here:
            open_ones[model_dir] = last
    for model_dir, last in open_ones.items():
        print(
            f"{model_dir}: {last} has a claim on this run; waiting to see whether it is alive, "
            f"{LEASE_S - last.silent_s:.0f} s at most",
            file=sys.stderr,
            flush=True,
        )
    while open_ones:
        time.sleep(min(BEAT_S, LEASE_S) / 10)
        for model_dir, before in list(open_ones.items()):
            now = latest(model_dir)
            # (no beat from a claim that cannot be read: one that can be follows it)
            if now is None or not now.alive or (now.owner, now.beat) != (before.owner, before.beat):
                del open_ones[model_dir]


@contextlib.contextmanager
def hold(model_dir: str, step: int = 0) -> Iterator[None]:
    """Claims the run for the time of the block. `step`: of its newest checkpoint.

    Watches a holder on another machine first, to know whether it is alive. Raises Taken if a
    living process has the run, and UserError if the claim cannot be written.
    """
    watch([model_dir])
    number = _last_number(model_dir)
    before = _look(_path(model_dir, number)) if number else None
    if before and before.alive:
        raise _taken(model_dir, before)
    mine = Holder(
        owner=uuid.uuid4().hex,
        host=_host(),
        pid=os.getpid(),
        started=_started(os.getpid()),
        job=os.environ.get(JOB_VARIABLE, ""),
        step=step,
        beat=1,
    )
    path = _path(model_dir, number + 1)
    storage.make_folder(path.parent)
    # Whom it names has it: of two at once a mounted bucket may keep the later one, and a request
    # whose answer was lost is repeated and then refused.
    storage.create(path, _text(mine).encode())
    winner = _look(path)
    if winner is None or winner.owner != mine.owner:
        raise _taken(model_dir, winner)
    if _last_number(model_dir) != number + 1:  # ours came after it was cleared as an old one
        path.unlink(missing_ok=True)
        raise Taken(f"{model_dir}: another process is at work on this run")
    if number:
        with contextlib.suppress(OSError):  # whatever it is, it counts no more
            _path(model_dir, number).unlink()
    done = threading.Event()
    beats = threading.Thread(target=_beat, args=(model_dir, number + 1, mine, done), daemon=True)
    beats.start()
    try:
        yield
    finally:
        done.set()
        beats.join()
        with contextlib.suppress(UserError):  # a full disk: it is over with this process
            storage.write(path, _text(replace(mine, beat=0)))


def _beat(model_dir: str, number: int, mine: Holder, done: threading.Event) -> None:
    beat = mine.beat
    while not done.wait(BEAT_S):
        beat += 1
        with contextlib.suppress(Exception):  # the next one may get through
            if _last_number(model_dir) > number:
                # This process was not heard of for so long that another one has taken over.
                # Whatever it wrote now would spoil the other's work.
                print(
                    f"{model_dir}: another process has taken over; this one ends", file=sys.stderr
                )
                sys.stderr.flush()
                os._exit(1)
            storage.write(_path(model_dir, number), _text(replace(mine, beat=beat)))


def _taken(model_dir: str, by: Holder | None) -> Taken:
    return Taken(f"{model_dir}: {by or 'another process'} is at work on this run")


def _path(model_dir: str, number: int) -> storage.AnyPath:
    return storage.path(model_dir) / records.CLAIMS / str(number)


def _last_number(model_dir: str) -> int:
    folder = storage.path(model_dir) / records.CLAIMS
    try:
        names = [p.name for p in folder.iterdir()]
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    return max((int(n) for n in names if n.isascii() and n.isdecimal() and len(n) < 10), default=0)


_seen: dict[str, tuple[tuple[str, float], float]] = {}  # file -> (owner and beat, when first seen)


def _look(path: storage.AnyPath) -> Holder | None:
    """The claim, and for how long it has been as it is; None if it was cleared by its successor."""
    try:
        found = records.read_object(path, _FIELDS)
        if found is None:
            return None
        claim = Holder(**{name: found[name] for name in _FIELDS})
    except UserError:  # being written just now, or left so by a full disk
        claim = Holder("", "an unknown machine", pid=0, started="", job="", step=0, beat=1)
    now, sign = time.monotonic(), (claim.owner, claim.beat)
    before, since = _seen.get(str(path), (None, now))
    if before != sign:
        since = now
    _seen[str(path)] = sign, since
    return replace(claim, silent_s=now - since)


def _text(claim: Holder) -> str:
    written = asdict(claim)
    del written["silent_s"]
    return json.dumps(written) + "\n"


def _host() -> str:
    """This machine, since it was started; containers on it differ by the processes they see."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        parts.append(file.read().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _started(pid: int) -> str:
    """When the process began, as the system writes it; "" if there is no process of that number."""
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
