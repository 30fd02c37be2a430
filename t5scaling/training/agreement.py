"""Checks that the processes of a job agree, before one of them waits for another.

Processes with other code, other settings or another folder under the same name would compute
different programs, or look for files that nobody makes: each would wait for the others for ever.
"""

import hashlib
import itertools
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
import numpy as np
from jax.experimental import multihost_utils

from t5scaling import storage
from t5scaling.data import provenance
from t5scaling.data.examples import DataSpec, find_all_examples, finished
from t5scaling.errors import UserError
from t5scaling.training import distributed

PACKAGE = Path(__file__).resolve().parents[1]
SEEN_S = 90.0  # after which a file system that is shared shows to all what one has written
_SHOWN = 120  # characters of a difference


def check(facts: Mapping[str, str | Sequence[str]]) -> None:
    """Raises UserError in every process of the job unless all have the same `facts`: what each
    is -> one line, or many. All must call it at the same place."""
    if jax.process_count() == 1:
        return
    mine = json.dumps({name: _lines(value) for name, value in facts.items()}).encode()
    (size,) = distributed.largest(len(mine))
    padded = np.frombuffer(mine.ljust(size), np.uint8)
    gathered = multihost_utils.process_allgather(padded)
    found = difference([json.loads(row.tobytes()) for row in gathered])
    if found:
        raise UserError(
            f"{found}; all processes of a job need the same code, the same settings and folders "
            "that they share"
        )


def difference(facts: Sequence[Mapping[str, Sequence[str]]]) -> str | None:
    """A sentence about the first fact in which two processes differ; None if there is none."""
    first = facts[0]
    for process, other in enumerate(facts):
        for name in first:
            if other.get(name) != first[name]:
                here, there = _first_unlike(first[name], other.get(name, ()))
                return f"process {process} has another {name} ({there}) than process 0 ({here})"
    return None


def _first_unlike(one: Sequence[str], other: Sequence[str]) -> tuple[str, str]:
    here = next((line for line in one if line not in other), "none")
    there = next((line for line in other if line not in one), "none")
    if here == there:  # the same lines in another order, or more often
        pairs = itertools.zip_longest(one, other, fillvalue="none")
        here, there = next(pair for pair in pairs if pair[0] != pair[1])
    return here[:_SHOWN], there[:_SHOWN]


def _lines(value: str | Sequence[str]) -> list[str]:
    return value.splitlines() if isinstance(value, str) else list(value)


def code() -> dict[str, Sequence[str]]:
    """The facts of the code that this process runs: ours, and the versions of what compiles it."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {
        "version of Python, JAX or jaxlib": [
            f"Python {platform.python_version()}",
            f"JAX {jax.__version__}",
            f"jaxlib {jaxlib.version.__version__}",
        ],
        "file of t5scaling": [
            f"{file.relative_to(PACKAGE)} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
            for file in files
        ],
    }


def ready_examples(specs: Sequence[DataSpec], root: str) -> None:
    """Returns when the examples are where every process finds them: process 0 makes what is
    missing, for which the others wait.

    Raises UserError in every process if one of them cannot go on.
    """
    if jax.process_count() == 1:
        find_all_examples(specs, root)
        return
    names = ", ".join(f"{spec.task} {spec.split}" for spec in specs)
    modules = sorted({module for spec in specs for module in spec.code_modules})
    check(
        {
            "data": [json.dumps(spec.to_json(), sort_keys=True) for spec in specs],
            "code of tasks": [f"{n} {digest[:12]}" for n, (_, digest) in _code_of(modules)],
        }
    )
    made = _made(lambda: find_all_examples(specs, root))
    if not distributed.is_main() and missing(specs, root, 0.0):
        print(
            f"process {jax.process_index()} waits for process 0, which makes the examples of "
            f"{names} in {root}",
            flush=True,
        )
    while not distributed.largest(int(made is not None and made.done()))[0]:
        time.sleep(0.5)
    error = made.exception() if made is not None else None
    if distributed.largest(int(error is not None))[0]:
        raise error or UserError(
            f"process 0 could not make the examples of {names}: its own message gives the reason"
        )
    unseen = missing(specs, root, SEEN_S)
    if distributed.largest(int(bool(unseen)))[0]:
        raise UserError(
            f"process {jax.process_index()} does not find {unseen} in {root}, where process 0 has "
            "it; EXAMPLES_ROOT must be a folder that all processes share, and the text and code "
            "behind it the same for all"
            if unseen
            else f"another process does not find the examples of {names} in {root}: its own "
            "message names them"
        )


def _code_of(modules: Sequence[str]) -> list[tuple[str, list[str]]]:
    return list(provenance.code(modules).items())


def _made(function: Callable[[], Any]) -> Future | None:
    """In process 0, what the function returns or raises, which another thread finds out: this one
    goes on giving the others signs of life. None in the others."""
    if not distributed.is_main():
        return None
    return ThreadPoolExecutor(1).submit(function)


def missing(specs: Sequence[DataSpec], root: str, patience_s: float) -> str:
    """The first data whose examples this process does not find within `patience_s`; "" if none."""
    until = time.monotonic() + patience_s
    while True:
        lacking = [spec for spec in specs if finished(spec, storage.path(root)) is None]
        if not lacking:
            return ""
        if time.monotonic() >= until:
            return f"{lacking[0].task} {lacking[0].split}"
        time.sleep(1.0)
