"""The train step against its peer, what it costs when compiled, and what surrounds it: ratios.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/train_step.py [--parts=speed,t5x,flops,memory,rss,peak,loop] [--blocks=8]
                                    [--examples_root=runs/examples]

The model is a T5 1.1 of 1.84 million parameters in float32 (2 + 2 layers, width 128, 4 heads of 32,
MLP of 256, vocabulary 4,096), a step is 32 x (128 + 128) tokens with Adafactor, and everything runs
on the CPU with all its cores. About 6 minutes on 2 cores.

speed   our step and that of Hugging Face transformers' T5, in turn, each in a process of its own
t5x     our step and that of stock T5X in the same way, where T5X can be imported
flops   floating-point operations of the compiled step, loop bodies times their trips, against T5X
memory  temporary memory of the compiled step, against T5X
rss     resident memory of a process that trains with the largest vocabulary, against its bound
peak    what share of the machine's speed in matrix products the step reaches
loop    the training loop with data, metrics and progress bar against the step alone, in turn

A machine that has other work to do slows processes by different factors: a number that is to be
kept is taken while it has none. Times are medians, with the lowest and the highest in brackets.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tiny

BENCHMARKS = Path(__file__).resolve().parent

# Stock T5X at commit cc342d4, the same model and batch, its train step compiled for a CPU:
# vocabulary -> (GFLOP, MiB of temporary memory), and the ratios to stay below.
T5X = {4096: (55.3, 847), 32128: (265.0, 3929), 250112: (1895.0, 27879)}
FLOPS_TARGET = {4096: 0.68, 32128: 0.48, 250112: 0.44}
MEMORY_TARGET = {4096: 0.5, 32128: 0.15, 250112: 0.05}
RATE_TARGET = 6700  # token positions per CPU-second, twice stock T5X's 3,360
PEER_TARGET = 4.0
T5X_TARGET = 2.0
LOOP_TARGET = 1.03


def verdict(value: float, target: float, *, at_least: bool = False) -> str:
    met = value >= target if at_least else value <= target
    return f"target {'>=' if at_least else '<='} {target:,}: {'met' if met else 'MISSED'}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def note(text: str) -> None:
    print(f"  {text}", flush=True)


class Worker:
    """A process of step_worker.py: it runs blocks of steps when asked to and sleeps in between."""

    def __init__(self, who: str, exchange: str):
        self._who = who
        self._process = subprocess.Popen(
            [sys.executable, str(BENCHMARKS / "step_worker.py"), who, exchange],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self._who!r} failed")
        return json.loads(line)

    def block(self, steps: int) -> dict[str, Any]:
        print(steps, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def t5x(blocks: int) -> None:
    import t5x_peer

    if not t5x_peer.is_there():
        note(f"not measured: {t5x_peer.MISSING}")
        return
    speed(blocks, "t5x", "T5X", T5X_TARGET)


def speed(blocks: int, peer: str, peer_name: str, target: float) -> None:
    """`peer` is a kind of step_worker.py's."""
    names = {"ours": "t5scaling", peer: peer_name}
    steps = {"ours": 8, peer: 3}  # a few seconds a block
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        workers = {}
        for who in names:
            workers[who] = Worker(who, f"{scratch}/parameters.npz")
            stack.callback(workers[who].close)
        check_equal(workers["ours"].facts, workers[peer].facts)
        for who, worker in workers.items():
            worker.block(steps[who])  # compiles, and takes the memory that later blocks use
        seen: dict[str, list[dict[str, Any]]] = {who: [] for who in names}
        for number in range(blocks):
            for who in names if number % 2 == 0 else reversed(names):
                seen[who].append(workers[who].block(steps[who]))

    def per_step(who: str, unit: str) -> list[float]:
        return [block[unit] / block["steps"] for block in seen[who]]

    for who, name in names.items():
        cpu, wall = per_step(who, "cpu_s"), per_step(who, "wall_s")
        note(f"{name}: a step takes {spread(cpu)} CPU-s, {spread(wall)} s of wall time;")
        note(
            f"    {tiny.POSITIONS / statistics.median(cpu):,.0f} positions per CPU-s, "
            f"{tiny.POSITIONS / statistics.median(wall):,.0f} per s; "
            f"{sum(cpu) / sum(wall):.2f} cores used; "
            f"{statistics.median(per_step(who, 'page_faults')):,.0f} page faults a step"
        )
    used = sum(per_step(peer, "cpu_s")) / sum(per_step(peer, "wall_s"))
    if used < 0.8 * os.cpu_count():
        spinning = (
            "PyTorch's threads spin while they wait for one another, which counts as CPU time"
        )
        note(
            f"NOT TO BE KEPT: other work held the cores ({used:.2f} of {os.cpu_count()} used)"
            + (f"; {spinning}" if peer == "peer" else "")
        )
    for unit, words in (("cpu_s", "CPU time"), ("wall_s", "wall time")):
        ratios = [b / a for a, b in zip(per_step("ours", unit), per_step(peer, unit), strict=True)]
        met = verdict(statistics.median(ratios), target, at_least=True)
        note(f"{peer_name} / t5scaling in {words}: {spread(ratios, 2)}; {met}")
    rate = tiny.POSITIONS / statistics.median(per_step("ours", "cpu_s"))
    note(f"positions per CPU-s: {rate:,.0f}; {verdict(rate, RATE_TARGET, at_least=True)}")


def check_equal(ours: dict[str, Any], peer: dict[str, Any]) -> None:
    """Exits unless both are the same model: a comparison of others would mean nothing."""
    note(
        f"{ours['parameters']:,} and {peer['parameters']:,} parameters; with the same ones, "
        f"{ours['loss']:.6f} and {peer['loss']:.6f} nats per target token"
    )
    if ours["parameters"] != peer["parameters"]:
        raise SystemExit("the models differ in size")
    if not abs(ours["loss"] / peer["loss"] - 1) <= 1e-4:
        raise SystemExit("the models differ: their losses are not equal to 1e-4")


def flops() -> None:
    import compiled_costs

    from t5scaling.model import network

    for vocab_size, (t5x, _) in T5X.items():
        gflop = compiled_costs.train_step_flops(tiny.model(vocab_size)) / 1e9
        needed = network.model_flops(tiny.model(vocab_size), tiny.LENGTH, tiny.LENGTH)
        ratio, target = gflop / t5x, FLOPS_TARGET[vocab_size]
        note(
            f"vocabulary {vocab_size:7,}: {gflop:7.2f} GFLOP, of which the model needs "
            f"{tiny.ROWS * needed / 1e9:.2f}; T5X {t5x:6.1f}; ratio {ratio:.4f}; "
            f"{verdict(ratio, target)}"
        )


def memory() -> None:
    import compiled_costs

    for vocab_size, (_, t5x) in T5X.items():
        mib = compiled_costs.train_step_temporary_bytes(tiny.model(vocab_size)) / 2**20
        ratio, target = mib / t5x, MEMORY_TARGET[vocab_size]
        note(
            f"vocabulary {vocab_size:7,}: {mib:5,.0f} MiB; T5X {t5x:6,}; ratio {ratio:.3f}; "
            f"{verdict(ratio, target)}"
        )


def rss() -> None:
    command = [sys.executable, str(BENCHMARKS / "resident_memory.py")]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    facts = json.loads(answer.splitlines()[-1])
    bound = sum(facts["terms"].values())
    for name, mib in facts["terms"].items():
        note(f"{name:36} {mib:6,.0f} MiB")
    holds = "holds" if facts["peak"] <= bound else "DOES NOT HOLD"
    note(f"{'bound':36} {bound:6,.0f} MiB")
    note(f"{'peak resident memory':36} {facts['peak']:6,.0f} MiB: the bound {holds}")
    stages = ", ".join(f"{mib:,.0f} after {name}" for name, mib in facts["stages"].items())
    note(f"(resident: {stages}; T5X's temporary memory alone: {max(T5X.values())[1]:,} MiB)")


def peak() -> None:
    """The step and matrix products in turn, so that both meet the machine in the same state."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from t5scaling.model import network
    from t5scaling.training import sharding, step

    def timed(run: Any, repeats: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            result = run()
        jax.block_until_ready(result)
        return (
            (time.perf_counter() - wall) / repeats,
            (time.process_time() - cpu) / repeats,
        )

    product = jax.jit(jnp.matmul)
    squares = {n: jnp.ones((n, n), jnp.float32) for n in (512, 1024, 2048, 4096)}
    config, layout = tiny.model(), sharding.make_layout()
    train_step = step.jit_train_step(config, step.Objective(), layout)
    batch = sharding.put_batch(tiny.make_batch(), layout)
    train_state = step.jit_init(config, layout)(np.uint32(0))

    def one_step() -> Any:
        nonlocal train_state
        train_state, logged = train_step(
            train_state, batch, np.float32(0.01), np.uint32(0), np.bool_(True)
        )
        return logged

    best: dict[int, list[float]] = {n: [0.0, 0.0] for n in squares}  # FLOP/s of wall, CPU time
    steps = []
    timed(one_step, 5)
    for _ in range(6):
        for n, square in squares.items():
            product(square, square).block_until_ready()
            times = timed(lambda x=square: product(x, x), max(1, 2**33 // n**3))
            best[n] = [max(b, 2 * n**3 / t) for b, t in zip(best[n], times, strict=True)]
        steps.append(timed(one_step, 5))
    for n, (by_wall, by_cpu) in best.items():
        note(f"{n} x {n}: {by_wall / 1e9:.0f} GFLOP/s, {by_cpu / 1e9:.0f} per core (CPU-second)")
    needed = tiny.ROWS * network.model_flops(config, tiny.LENGTH, tiny.LENGTH)
    for place, words in enumerate(("with all cores, wall time", "per CPU-second")):
        peak_rate = max(rates[place] for rates in best.values())
        rate = needed / statistics.median(times[place] for times in steps)
        note(
            f"{words}: the step's {needed / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s are "
            f"{rate / peak_rate:.0%} of the peak of {peak_rate / 1e9:.0f}"
        )


def loop(examples_root: str, legs: int) -> None:
    import loop_overhead

    pairs = loop_overhead.measure(examples_root, legs, note)
    for unit, words in (("cpu_s", "CPU time"), ("wall_s", "wall time")):
        ratios = [getattr(whole, unit) / getattr(bare, unit) for bare, whole in pairs]
        met = verdict(statistics.median(ratios), LOOP_TARGET)
        note(f"loop / step in {words}: {spread(ratios)}; {met}")


def main() -> None:
    everything = ("speed", "t5x", "flops", "memory", "rss", "peak", "loop")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(everything), help="comma-separated")
    parser.add_argument("--blocks", type=int, default=8, help="pairs that are timed")
    parser.add_argument("--examples_root", default="runs/examples")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := sorted(set(parts) - set(everything)):
        parser.error(f"unknown parts {unknown}; there are {', '.join(everything)}")
    tiny.prepare()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}", flush=True)
    calls = {
        "speed": lambda: speed(arguments.blocks, "peer", "transformers", PEER_TARGET),
        "t5x": lambda: t5x(arguments.blocks),
        "flops": flops,
        "memory": memory,
        "rss": rss,
        "peak": peak,
        "loop": lambda: loop(arguments.examples_root, arguments.blocks),
    }
    for part in parts:
        print(part, flush=True)
        calls[part]()
    print(f"load average at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
