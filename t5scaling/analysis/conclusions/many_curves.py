"""Fits of many curves, in several processes where that saves time.

A fit is thousands of short array operations, between which Python holds the interpreter: threads do
not help. Each curve has random numbers of its own, so the fits are the same in any process.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from t5scaling.analysis.conclusions.curve_fit import CurveFit, fit_one
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.results.curves import Curve

MANY = 40  # curves; a process takes most of a second to start
TOGETHER = 4  # curves that a process takes at once
MOST = 16  # processes

Job = tuple[Curve, Law, Mapping[str, Any]]


def fit_all(jobs: Sequence[Job]) -> Iterator[CurveFit]:
    """`curve_fit.fit_one` of each curve, law and options, in their order, as they become ready.

    Raises UserError as `fit_one` does.
    """
    processes = min(_cores(), MOST)
    # A formula of one's own has functions that are made here, and exist in no other process.
    elsewhere = all(LAWS.get(law.name) is law for _, law, _ in jobs)
    done = 0
    if len(jobs) >= MANY and processes > 1 and elsewhere:
        try:
            for found in _in_processes(jobs, processes):
                yield found
                done += 1
        except BrokenProcessPool:  # no process can be started here, or one was killed
            pass
    for job in jobs[done:]:
        yield _fit(job)


def _in_processes(jobs: Sequence[Job], processes: int) -> Iterator[CurveFit]:
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
    )
    try:
        yield from pool.map(_fit, jobs, chunksize=TOGETHER)
    finally:
        pool.shutdown(cancel_futures=True)


def _fit(job: Job) -> CurveFit:
    curve, law, options = job
    return fit_one(curve, law, **options)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; this one's parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
