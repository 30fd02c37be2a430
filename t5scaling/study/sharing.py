"""Several processes of this machine that share a study: `run.py study --processes=14`.

A process whose model is small leaves most of a GPU idle, and two processes of one core each do more
than one of two. Each run is done by one of them (`training.claim`). The first is the one that was
called, and shows the study; the others write to `<study_dir>/jobs/process-<n>.log`.

On a GPU they take turns, unless NVIDIA's Multi-Process Service lets their kernels run at the same
time: it is started if it is there and works, and ends after them. On CPUs they divide the cores.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from t5scaling import nvidia, records, storage
from t5scaling.errors import Stopped, UserError
from t5scaling.training import tracker

ENDING_S = 60.0  # for the others to save their runs, when this process is stopped
_PIPES, _LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
_USUAL_PIPES = "/tmp/nvidia-mps"  # where NVIDIA puts them by default
_CONTROL = "nvidia-cuda-mps-control"
_FOLDERS = "/usr/local/nvidia/bin", "/usr/bin"  # beside those of $PATH
_PROBE = (
    "import jax; jax.numpy.ones(8).sum().block_until_ready(); "
    "assert jax.devices()[0].platform == 'gpu', 'JAX sees no GPU'"
)
# Ends the service when this process is gone, however it went.
_WATCHER = 'while kill -0 "$0" 2> /dev/null; do sleep 1; done; echo quit | "$1"'


@contextlib.contextmanager
def shared(processes: int, command: Sequence[str], study_dir: str) -> Iterator[None]:
    """Within the block `processes` - 1 others do `command`; this process is meant to do the same.

    Waits for them at the end of the block. If that is left by an exception, a signal's too, they
    are asked to save their runs and end, and are killed after ENDING_S.

    Args:
        processes: at least 1, this one counted.
        command: the arguments of run.py.
        study_dir: where their logs go; of a study in a bucket, to a temporary folder instead.

    Raises:
        UserError: for fewer than one process.
    """
    if processes < 1:
        raise UserError(f"--processes is {processes}; expected a whole number >= 1")
    if processes == 1:
        yield
        return
    # Each takes as much of a GPU's memory as it needs, not three quarters of it at its start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ[tracker.SHARED_BY] = str(processes)  # a second of the devices counts once
    if nvidia.driver_is_here():
        _serve_together()
        shares: list[set[int]] = []
    else:
        shares = cores_of(processes)
    logs = _log_folder(study_dir)
    others = []
    try:  # from the first that is started on, none is left behind
        # SIGTERM by itself would end this process and leave the others at work.
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _stop)
        for number in range(2, processes + 1):
            if shares:
                os.sched_setaffinity(0, shares[number - 1])  # what it starts inherits it
            with open(logs / f"process-{number}.log", "ab") as log:
                # In a session of its own: a Ctrl-C of the terminal is for this process, which asks
                # the others to end once.
                others.append(
                    subprocess.Popen(
                        [sys.executable, sys.argv[0], *command],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        if shares:
            os.sched_setaffinity(0, shares[0])
        print(f"{processes} processes share the study; those beside this one write to {logs}")
        yield
        for other in others:
            other.wait()
    except BaseException:
        _end(others)
        raise
    for number, other in enumerate(others, start=2):
        # (1: some runs failed, which this process says itself)
        if other.returncode not in (0, 1):
            log = logs / f"process-{number}.log"
            print(f"process {number} ended with status {other.returncode}; see {log}")


def cores_of(processes: int) -> list[set[int]]:
    """The cores of each process: all that this one may use, divided evenly; one each, some of them
    twice, if there are fewer cores than processes. Empty where a system cannot bind to cores."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < processes:
        return [{cores[i % len(cores)]} for i in range(processes)]
    ends = [len(cores) * i // processes for i in range(processes + 1)]
    return [set(cores[first:end]) for first, end in itertools.pairwise(ends)]


def _log_folder(study_dir: str) -> Path:
    folder = storage.path(study_dir) / records.JOBS
    if not isinstance(folder, Path):
        return Path(tempfile.mkdtemp(prefix="t5scaling-processes-"))
    storage.make_folder(folder)
    return folder


def _stop(number: int, frame: object) -> None:
    raise Stopped(number, "stopped; run the same command to go on")


def _end(others: Sequence[subprocess.Popen]) -> None:
    for other in others:
        other.terminate()
    for other in others:
        try:
            other.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            other.kill()


def _serve_together() -> None:
    """Starts NVIDIA's Multi-Process Service for this process and those that it starts; prints a
    line if there is none, or if it does not work here."""
    if _PIPES in os.environ or os.path.exists(f"{_USUAL_PIPES}/control"):
        return  # it runs already
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS])
    control = shutil.which(_CONTROL, path=path)
    if control is None:
        print(f"{_CONTROL} is not installed: the processes take turns on the GPU")
        return
    folder = tempfile.mkdtemp(prefix="t5scaling-mps-")
    environment = os.environ | {_PIPES: folder, _LOGS: folder}
    try:
        subprocess.run(
            [control, "-d"], env=environment, check=True, capture_output=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        print(f"the processes take turns on the GPU: {error}")
        return
    probe = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True)
    if probe.returncode:
        last = probe.stderr.decode(errors="replace").strip().splitlines()[-1:]
        print(f"the processes take turns on the GPU: {control} does not work here: {''.join(last)}")
        subprocess.run([control], input=b"quit\n", env=environment, capture_output=True)
        return
    os.environ |= {_PIPES: folder, _LOGS: folder}
    subprocess.Popen(
        ["sh", "-c", _WATCHER, str(os.getpid()), control],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
