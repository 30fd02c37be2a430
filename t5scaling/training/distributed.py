"""Several processes as one job: who is in it, what they agree on, and how it ends.

All processes run the same command and share a file system or a bucket. Process 0 writes what is
written once (metrics, DONE, predictions); checkpoints are written by all, each its own shards.
"""

import contextlib
import glob
import importlib.util
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from t5scaling.errors import Stopped, UserError, first_line

HEARTBEAT_TIMEOUT_S = 30  # a process not heard of for so long is dead, and ends the job
START_TIMEOUT_S = 300  # for all processes to come
SAY_AFTER_S = 600.0  # without a step, a batch or a word between processes
END_AFTER_S = 6 * 3600.0  # longer than anything that one process may do while the others wait


@contextlib.contextmanager
def job(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Joins the job's processes for the time of the block; does nothing if there is only one.

    The job is given by all three arguments (`coordinator` is process 0's HOST:PORT), or by
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or found from Slurm (srun) or
    Cloud TPU.

    An error in one process of several ends that process at once: the others notice, since its
    heartbeats stop, and end too. Raises UserError for arguments that do not describe a job.
    """
    settings = _settings(coordinator, num_processes, process_id, os.environ)
    if settings is None:
        yield
        return
    # What processes on CPUs talk by; other devices have means of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # SIGTERM is noted by the training loop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _giving_up(settings):
            jax.distributed.initialize(
                **settings,
                # Longer than ours: at its end JAX aborts the process under a stack of C++.
                initialization_timeout=START_TIMEOUT_S + 60,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of the job could not connect to each other: {first_line(error)}"
        ) from error
    if jax.process_count() == 1:
        yield
        return
    with _if_killed() as reports:
        try:
            with _watched(reports):
                yield
        except Stopped:  # at the same step in all: an orderly end
            raise
        except BaseException as error:
            reports()
            # At an orderly exit a process waits for the others, who may be waiting for it.
            os._exit(_exit_status(error))


# Prints what it has read, unless that ends with a line "reports": then the sender has printed a
# message of its own.
_WITNESS = """
import sys
text = sys.stdin.read()
if not text.endswith("reports\\n"):
    print(text.strip(), file=sys.stderr, flush=True)
"""


@contextlib.contextmanager
def _if_killed() -> Iterator[Callable[[], None]]:
    """Prints one last sentence if this process dies inside the block without a message
    of its own: JAX aborts it, under a stack of C++, when another process of the job is gone.

    Yields a function to call before this process prints its own message.
    """
    witness = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WITNESS],
        stdin=subprocess.PIPE,
        start_new_session=True,  # signals that are meant for the job
        text=True,
    )

    def reports() -> None:
        with contextlib.suppress(OSError, ValueError):
            witness.communicate("reports\n", timeout=5)

    assert witness.stdin is not None  # it is a pipe
    witness.stdin.write(
        f"process {jax.process_index()} of {jax.process_count()} was killed or ended by JAX, as "
        "happens when another process of the job dies or cannot be reached; start the job again: "
        "it goes on from its last checkpoint\n"
    )
    witness.stdin.flush()
    try:
        yield reports
    except Stopped:
        reports()
        raise
    else:
        reports()


_went_on = (0.0, "its start")  # when this process last did, by its monotonic clock, and at what


def going_on(place: str) -> None:
    """Records that this process has made progress and has come to this place."""
    global _went_on
    _went_on = (time.monotonic(), place)


@contextlib.contextmanager
def _watched(reports: Callable[[], None]) -> Iterator[None]:
    """Prints a message when this process has made no progress for SAY_AFTER_S, and ends it after
    END_AFTER_S.

    Where another process of the job hangs, or does something else, but lives, whoever waits for it
    in a collective would wait for ever.
    """
    going_on("its start")
    over = threading.Event()

    def watch() -> None:
        reported = None
        while not over.wait(min(SAY_AFTER_S, END_AFTER_S) / 20):
            since, place = _went_on
            silent_s = time.monotonic() - since
            who = f"process {jax.process_index()} of {jax.process_count()}"
            stays = (
                f"has made no progress for {silent_s / 60:.0f} minutes after {place}: another "
                "process of the job may hang or do something else; look at the last message of each"
            )
            if silent_s >= END_AFTER_S:
                reports()
                print(f"error: {who} {stays}; start the job again: it goes on from its last "
                      "checkpoint", file=sys.stderr, flush=True)  # fmt: skip
                os._exit(1)
            if silent_s >= SAY_AFTER_S and reported != since:
                reported = since
                print(f"warning: {who} {stays}", file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def _giving_up(settings: Mapping[str, Any]) -> Iterator[None]:
    """Ends this process with one line if the block, which nothing can interrupt, takes longer than
    START_TIMEOUT_S; prints what it waits for when a tenth of that is over."""
    count, index = settings.get("num_processes"), settings.get("process_id")
    who = f"process {index} of {count}" if count else "this process"
    place = settings.get("coordinator_address", "the address that the cluster gives")

    def say() -> None:
        print(
            f"{who} waits for the others at {place}, {START_TIMEOUT_S:.0f} s at most",
            file=sys.stderr,
            flush=True,
        )

    def give_up() -> None:
        print(
            f"error: {who} could not reach the other processes at {place} in "
            f"{START_TIMEOUT_S:.0f} s; start all of them with the same address, which each "
            "can reach, or leave out --coordinator, --num_processes and --process_id for a "
            "process alone",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timers = [
        threading.Timer(START_TIMEOUT_S / 10, say),
        threading.Timer(START_TIMEOUT_S, give_up),
    ]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _settings(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str],
) -> dict[str, Any] | None:
    """Arguments for jax.distributed.initialize; None for a process alone."""
    given = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    from_environment = {name: environment.get(name) for name in names}
    for values in (given, from_environment):
        missing = [name for name, value in values.items() if value is None]
        if missing and len(missing) < len(values):
            raise UserError(f"{' and '.join(missing)} missing: give all of {', '.join(values)}")
        if not missing:
            address, *numbers = values.values()
            return _explicit(str(address), numbers, tuple(values))
    if "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        return {"cluster_detection_method": "slurm"}
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if chips and importlib.util.find_spec("libtpu") and "TPU_SKIP_MDS_QUERY" not in environment:
        return {}  # JAX asks the Cloud TPU machine itself
    return None


def _explicit(address: str, numbers: Sequence[Any], names: Sequence[str]) -> dict[str, Any] | None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{names[0]} is {address!r}; expected HOST:PORT of process 0")
    try:
        count, index = (int(number) for number in numbers)
    except ValueError:
        raise UserError(f"{names[1]} and {names[2]} are {numbers}; expected numbers") from None
    if not 0 <= index < count:
        raise UserError(f"{names[2]} is {index}; expected 0 to {count - 1}, as {names[1]}={count}")
    if count == 1:
        return None
    return {"coordinator_address": address, "num_processes": count, "process_id": index}


def _exit_status(error: BaseException) -> int:
    """Prints why this process ends; returns its exit status."""
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UserError):
        text, status = f"error: {error} ({who})", 2
    elif isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in first_line(error):
        # (what fails while it is dispatched, as steps on a CPU do, comes as a ValueError)
        text = (
            f"{who} ends: another process of the job died, or cannot be reached "
            f"({first_line(error)}); start the job again: it goes on from its last checkpoint"
        )
        status = 1
    else:
        text, status = f"{who} ends:\n{''.join(traceback.format_exception(error))}", 1
    with contextlib.suppress(OSError, ValueError):  # nobody reads it any more; it ends all the same
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    return status


def is_main() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def largest(*values: int) -> tuple[int, ...]:
    """The largest of each value over all processes; all must call it at the same place."""
    if jax.process_count() == 1:
        return values
    gathered = multihost_utils.process_allgather(np.asarray(values, np.int32))
    going_on("an exchange with the other processes")
    return tuple(int(value) for value in gathered.max(axis=0))


def wait_for_all(place: str) -> None:
    """Returns when all processes have come to this place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)
        going_on(place)
