"""What the parts of accelerator.py share: records, timing, compilation, models and batches.

Axes in array names are those of t5scaling/model/network.py.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:  # where the package is not installed
    sys.path.insert(0, str(REPOSITORY))

VOCABULARY = 32128
INPUTS, TARGETS = 512, 114  # tokens of a row: span corruption of 568 tokens, as T5's
# T5 1.1 (Raffel et al. 2020): width, heads, head dimension, layers of each stack, MLP width. A
# rehearsal uses the sizes of "rehearsal" whatever model is asked for.
SIZES = {
    "rehearsal": (32, 2, 16, 1, 64),
    "tiny": (128, 4, 32, 2, 256),
    "small": (512, 6, 64, 8, 1024),
    "base": (768, 12, 64, 12, 2048),
    "large": (1024, 16, 64, 24, 2816),
}
Value = str | int | float | bool | None


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where the results go, and how the parts are to run.

    out: folder of accelerator.jsonl.
    rehearse: tiny sizes, so that a CPU does every part in seconds.
    flags: name of the XLA flags, see accelerator.py; a part of every record.
    only: numbers of the programs, cases or sizes that a part runs; empty for all.
    examples: folder of the carried examples.
    """

    out: Path
    rehearse: bool = False
    flags: str = "project"
    only: tuple[int, ...] = ()
    examples: str = "runs/examples"
    start: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def file(self) -> Path:
        return self.out / "accelerator.jsonl"

    def record(self, part: str, **fields: Value) -> None:
        """One line of output, and one of accelerator.jsonl."""
        fields = {name: _short(value) for name, value in fields.items()}
        seconds = round(time.monotonic() - self.start, 1)
        line = {"part": part, "t": seconds, "flags": self.flags} | fields
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(part, *(f"{name}={value}" for name, value in fields.items()), flush=True)

    def failed(self, part: str, error: BaseException | str, **fields: Value) -> None:
        """The record of a variant that did not work; the part goes on."""
        if isinstance(error, BaseException):
            error = f"{type(error).__name__}: {error}"
        self.record(part, **fields, failed=" ".join(error.split())[:600])

    def records(self, part: str) -> list[dict[str, Any]]:
        """What earlier runs, or this one, have recorded of a part."""
        if not self.file.is_file():
            return []
        lines = map(json.loads, self.file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["part"] == part]

    def chosen(self, everything: Sequence[Any]) -> list[Any]:
        return [each for i, each in enumerate(everything) if not self.only or i in self.only]

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process of these benchmarks measures: so several may compile at once."""
        with open(f"{tempfile.gettempdir()}/t5scaling_accelerator.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def config(self, size: str, **changes: Any) -> Any:
        """T5Config of T5 1.1 in bfloat16, without dropout, its layers scanned."""
        from t5scaling.model import network

        emb_dim, heads, head_dim, layers, mlp_dim = SIZES["rehearsal" if self.rehearse else size]
        fields = {
            "vocab_size": 128 if self.rehearse else VOCABULARY,
            "emb_dim": emb_dim,
            "num_heads": heads,
            "head_dim": head_dim,
            "num_encoder_layers": layers,
            "num_decoder_layers": layers,
            "mlp_dim": mlp_dim,
            "dropout_rate": 0.0,
            "dtype": "bfloat16",
            "scan_layers": True,
        }
        return network.T5Config(**(fields | changes))

    def lengths(self) -> tuple[int, int]:
        """Tokens of a row, inputs and targets."""
        return (16, 8) if self.rehearse else (INPUTS, TARGETS)


def random_params(config: Any) -> Any:
    """Parameters of a model whose answers do not matter, on the device, and nothing to compile."""
    import jax

    from t5scaling.model import network

    draw = np.random.default_rng(0)

    def one(leaf: Any) -> jax.Array:
        return jax.device_put(0.05 * draw.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(one, network.abstract_params(config))


def _short(value: Value) -> Value:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def segments(rows: int, length: int, packed: bool, seed: int = 0) -> np.ndarray:
    """(rows, length) int32: examples of a row from 1, and 0 at padding.

    Packed: three examples of random lengths in each row, and a little padding. Otherwise one, and
    every fourth row's last quarter is padding. Rows of one seed have the same examples whatever
    their length.
    """
    found = np.ones((rows, length), np.int32)
    if not packed:
        found[::4, length * 3 // 4 :] = 0
        return found
    shares = np.random.default_rng(seed).uniform(0.05, 0.95, (rows, 2, 1))
    found += (np.arange(length) >= shares * length).sum(1).astype(np.int32)
    found[:, length - length // 16 - 1 :] = 0
    return found


def make_batch(
    rows: int, inputs: int, targets: int, vocab_size: int, packed: bool = False
) -> dict[str, np.ndarray]:
    """Random tokens, padded or packed as in `segments`."""
    draw = np.random.default_rng(0)
    input_segments = segments(rows, inputs, packed)
    target_segments = segments(rows, targets, packed)
    x = draw.integers(3, vocab_size, (rows, inputs)).astype(np.int32) * (input_segments > 0)
    y = draw.integers(3, vocab_size, (rows, targets)).astype(np.int32) * (target_segments > 0)
    shifted = np.pad(y, ((0, 0), (1, 0)))[:, :-1]
    first = np.diff(target_segments, axis=1, prepend=0) != 0
    batch = {
        "encoder_input_tokens": x,
        "decoder_input_tokens": np.where(first, 0, shifted).astype(np.int32),
        "decoder_target_tokens": y,
        "decoder_loss_weights": (y > 0).astype(np.float32),
    }
    if packed:
        batch |= {"encoder_segment_ids": input_segments, "decoder_segment_ids": target_segments}
    return batch


def decoder_inputs(rows: int, width: int, vocab_size: int) -> np.ndarray:
    """(rows, width) int32: random tokens of random lengths, a quarter of the width at least."""
    draw = np.random.default_rng(1)
    x = draw.integers(3, vocab_size, (rows, width)).astype(np.int32)
    lengths = draw.integers(width // 4, width, rows)
    return x * (np.arange(width) < lengths[:, None])


def timed(
    call: Callable[[], Any], wait: Callable[[Any], Any], repeats: int = 5, blocks: int = 3
) -> tuple[float, float]:
    """(median, spread) over blocks of milliseconds a call; the first call is left out.

    `wait` waits for the result of the last call of a block.
    """
    wait(call())
    times = []
    for _ in range(blocks):
        start = time.perf_counter()
        for _ in range(repeats):
            result = call()
        wait(result)
        times.append((time.perf_counter() - start) / repeats * 1e3)
    return statistics.median(times), max(times) - min(times)


def timed_on_device(call: Callable[[], Any], repeats: int = 5) -> tuple[float, float]:
    """`timed`, of a call of JAX."""
    import jax

    return timed(call, jax.block_until_ready, repeats)


def compile_together(
    programs: Sequence[Callable[[], Any]],
) -> list[tuple[Any, float]]:
    """(compiled program, or the exception that stopped it; seconds) of each, side by side.

    Each of `programs` returns a jax.stages.Lowered.
    """

    def one(lower: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        try:
            compiled = lower().compile()
        except Exception as error:  # what a flag or a kernel of this XLA refuses
            compiled = error
        return compiled, time.perf_counter() - start

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, programs))


def compiled_program(outcome: tuple[Any, float]) -> Any:
    """The program of one outcome of `compile_together`; raises what stopped it."""
    program, _ = outcome
    if isinstance(program, Exception):
        raise program
    return program


def run_and_show(command: Sequence[str], **changes: str) -> tuple[int, list[str]]:
    """(exit status, lines of output) of a command in the repository; shows its output meanwhile.

    `changes` are variables of its environment.
    """
    environment: Mapping[str, str] = {**os.environ, **changes}
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines = []
    for line in process.stdout or ():
        lines.append(line.rstrip())
        print(lines[-1], flush=True)
    return process.wait(), lines
