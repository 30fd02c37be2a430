"""The parts of accelerator.py about the train step: parity, mfu, repeat and trace."""

import contextlib
import dataclasses
import glob
import hashlib
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import accelerator_tools as tools
import numpy as np
from accelerator_tools import Bench

# Learning rate, dropout's seed, and a metrics window for each step.
SETTINGS = (np.float32(1e-3), np.uint32(0), np.bool_(True))


@dataclasses.dataclass(frozen=True)
class Program:
    """A train step: rows of a batch of T5 1.1 `size` with `changes` of its T5Config."""

    size: str
    rows: int
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    packed: bool = False

    @property
    def name(self) -> str:
        changes = "".join(f" {key}={value}" for key, value in self.changes.items())
        return f"{self.size} B{self.rows}{changes}{' packed' if self.packed else ''}"


PROGRAMS = (
    Program("base", 64),
    Program("base", 64, {"attention": "plain"}),
    Program("base", 64, {"attention": "cudnn"}),
    Program("base", 64, {"scan_layers": False}),
    Program("base", 64, packed=True),
    Program("base", 128),
    Program("large", 64, {"remat": "minimal"}),
    Program("large", 64),
    Program("small", 128),
    Program("base", 64, {"dropout_rate": 0.1}),
    Program("large", 128, {"remat": "minimal"}),
)
REHEARSAL = (
    Program("base", 4),
    Program("base", 4, {"attention": "no such attention"}),  # a variant that fails
)


def parity(bench: Bench) -> None:
    """The truth is the CPU's float32; its bfloat16 shows what the type alone costs."""
    import jax

    from t5scaling.model import network

    # Heads of 64, for which the fused kernels are made.
    heads = {} if bench.rehearse else {"vocab_size": 8192, "head_dim": 64}
    config = bench.config("tiny", dtype="float32", scan_layers=False, **heads)
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    runs = [
        (cpu, "bfloat16", "plain", "highest"),
        (device, "float32", "plain", "highest"),
        (device, "float32", "auto", "highest"),
        (device, "float32", "auto", "default"),
        (device, "bfloat16", "plain", "default"),
        (device, "bfloat16", "auto", "default"),
    ]
    with jax.default_device(cpu):
        params = jax.tree.map(np.asarray, network.init_params(config, jax.random.key(0)))
    for packed in (True,) if bench.rehearse else (False, True):
        rows, inputs, targets = (4, 16, 8) if bench.rehearse else (8, 128, 64)
        batch = tools.make_batch(rows, inputs, targets, config.vocab_size, packed)
        exact = dataclasses.replace(config, attention="plain")
        truth = _loss_and_gradients(exact, params, batch, cpu, "highest")
        for where, dtype, attention, precision in runs[: 1 if bench.rehearse else None]:
            names = {
                "packed": packed,
                "platform": where.platform,
                "dtype": dtype,
                "attention": attention,
                "precision": precision,
            }
            try:
                changed = dataclasses.replace(config, dtype=dtype, attention=attention)
                found = _loss_and_gradients(changed, params, batch, where, precision)
            except Exception as error:
                bench.failed("parity", error, **names)
                continue
            errors = {
                name: float(np.linalg.norm(found[1][name] - grad) / (np.linalg.norm(grad) + 1e-30))
                for name, grad in truth[1].items()
            }
            worst = max(errors, key=lambda name: errors[name])
            bench.record(
                "parity",
                **names,
                loss=found[0],
                loss_error=abs(found[0] / truth[0] - 1),
                median_gradient_error=statistics.median(errors.values()),
                worst_gradient_error=errors[worst],
                worst=worst,
            )


def _loss_and_gradients(
    config: Any, params: Any, batch: Any, device: Any, precision: str
) -> tuple[float, dict[str, np.ndarray]]:
    """-> (loss in nats per target token, path -> gradient), computed on `device`."""
    import jax

    from t5scaling.model import network
    from t5scaling.training import sharding, step

    layout = sharding.make_layout(devices=[device])
    model, objective = network.Transformer(config), step.Objective()

    def loss(params: Any, batch: Any) -> jax.Array:
        total, (_, weights) = step.loss_fn(params, batch, None, model, objective, layout)
        return total / weights

    with jax.default_device(device), jax.default_matmul_precision(precision):
        value, gradients = jax.jit(jax.value_and_grad(loss))(
            jax.device_put(params, device), jax.device_put(batch, device)
        )
    flat = jax.tree_util.tree_flatten_with_path(gradients)[0]
    return float(value), {
        "/".join(key.key for key in path): np.asarray(leaf, np.float32) for path, leaf in flat
    }


@dataclasses.dataclass(frozen=True)
class Step:
    """A program's configuration, layout, batch on the device, and the jitted train step."""

    config: Any
    layout: Any
    batch: Mapping[str, Any]
    jitted: Any

    def lower(self) -> Any:
        from t5scaling.training import step

        state = step.abstract_state(self.config, self.layout)
        return self.jitted.lower(state, self.batch, *SETTINGS)

    def lower_init(self) -> Any:
        from t5scaling.training import step

        return step.jit_init(self.config, self.layout).lower(np.uint32(0))


def _prepare(bench: Bench, program: Program) -> Step:
    import jax

    from t5scaling.training import sharding, step

    config = bench.config(program.size, **program.changes)
    layout = sharding.make_layout(devices=jax.devices()[:1])
    arrays = tools.make_batch(program.rows, *bench.lengths(), config.vocab_size, program.packed)
    jitted = step.jit_train_step(config, step.Objective(), layout)
    return Step(config, layout, sharding.put_batch(arrays, layout), jitted)


def _programs(bench: Bench) -> list[Program]:
    return bench.chosen(REHEARSAL if bench.rehearse else PROGRAMS)


def mfu(bench: Bench) -> None:
    ready: list[tuple[Program, Step]] = []
    for program in _programs(bench):
        try:
            ready.append((program, _prepare(bench, program)))
        except Exception as error:
            bench.failed("mfu", error, program=program.name)
    start = time.perf_counter()
    with bench.alone() if bench.flags == "tuned" else contextlib.nullcontext():  # XLA times kernels
        compiled = tools.compile_together(
            [lower for _, step in ready for lower in (step.lower, step.lower_init)]
        )
    bench.record("mfu", compiled=len(ready), wall_s=time.perf_counter() - start)
    runnable = []
    pairs = zip(compiled[::2], compiled[1::2], strict=True)
    for (program, step), ((executable, seconds), (init, _)) in zip(ready, pairs, strict=True):
        if isinstance(executable, Exception):
            bench.failed("mfu", executable, program=program.name, compile_s=seconds)
        else:
            runnable.append((_planned_bytes(executable), program, step, executable, init, seconds))
    # The allocator's peak is that of the process so far: only in this order is it a program's own.
    for planned, program, step, executable, init, seconds in sorted(runnable, key=lambda x: x[0]):
        try:
            with bench.alone():
                found = _measure_step(bench, program, step, executable, init)
        except Exception as error:
            bench.failed("mfu", error, program=program.name, planned_gib=planned / 2**30)
        else:
            names = {"program": program.name, "compile_s": seconds, "planned_gib": planned / 2**30}
            bench.record("mfu", **names, **found)


def _planned_bytes(executable: Any) -> int:
    memory = executable.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes  # the rest is donated
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _measure_step(
    bench: Bench, program: Program, step: Step, executable: Any, init: Any
) -> dict[str, Any]:
    import jax

    from t5scaling.model import network
    from t5scaling.training import throughput

    state, logged = init(np.uint32(0)), None

    def one() -> Any:
        nonlocal state, logged
        state, logged = executable(state, step.batch, *SETTINGS)
        return logged

    tools.timed_on_device(one, 1)  # the first steps are slower
    ms, spread = tools.timed_on_device(one, 2 if bench.rehearse else 5)
    flops = program.rows * network.model_flops(step.config, *bench.lengths())
    memory = jax.devices()[0].memory_stats() or {}
    window = logged[0]
    return {
        "ms": ms,
        "spread_ms": spread,
        "tflops": flops / ms / 1e9,
        "mfu": flops / ms * 1e3 / (throughput.peak_flops_per_s() / jax.device_count()),
        "rows_per_s": program.rows / ms * 1e3,
        "peak_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
        "loss": float(window.loss) / float(window.target_tokens),
    }


def repeat(bench: Bench) -> None:
    """Dropout is on: what is drawn must be the same too."""
    import jax

    program = Program("base", 4 if bench.rehearse else 64, {"dropout_rate": 0.1})
    step, steps = _prepare(bench, program), 3 if bench.rehearse else 10
    compiled = tools.compile_together([step.lower, step.lower_init])
    executable, init = (tools.compiled_program(each) for each in compiled)
    initial = init(np.uint32(0))

    def run() -> tuple[str, float]:
        state, logged = jax.tree.map(lambda x: x.copy(), initial), None
        for _ in range(steps):
            state, logged = executable(state, step.batch, *SETTINGS)
        window = logged[0]
        return _digest(state.params), float(window.loss) / float(window.target_tokens)

    with bench.alone():
        (first, loss), (second, _) = run(), run()
    names = {"program": program.name, "steps": steps, "device": jax.devices()[0].device_kind}
    alike = {**names, "flags": bench.flags}
    before = [x["digest"] for x in bench.records("repeat") if alike.items() <= x.items()]
    bench.record(
        "repeat",
        **names,
        loss=loss,
        digest=first,
        repeats=first == second,
        as_other_processes=all(digest == first for digest in before) if before else None,
    )


def _digest(params: Any) -> str:
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def trace(bench: Bench) -> None:
    import jax

    steps = 3
    for program in _programs(bench) if bench.only else _programs(bench)[:1]:
        try:
            step = _prepare(bench, program)
            compiled = tools.compile_together([step.lower, step.lower_init])
            executable, init = (tools.compiled_program(each) for each in compiled)
            with tempfile.TemporaryDirectory() as folder, bench.alone():
                state = init(np.uint32(0))
                for _ in range(steps):
                    state, _ = executable(state, step.batch, *SETTINGS)
                jax.block_until_ready(state)
                with jax.profiler.trace(folder):
                    for _ in range(steps):
                        state, _ = executable(state, step.batch, *SETTINGS)
                    jax.block_until_ready(state)
                summary, kernels = summarise_trace(read_trace(folder), steps)
        except Exception as error:
            bench.failed("trace", error, program=program.name)
            continue
        bench.record("trace", program=program.name, **summary)
        for kernel in kernels:
            bench.record("trace", program=program.name, **kernel)


Kernel = tuple[str, float, float]  # name, start and duration in nanoseconds


def read_trace(folder: str) -> list[Kernel]:
    """What ran on a GPU's streams; for a rehearsal, on the CPU's threads."""
    import jax

    (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    planes = list(jax.profiler.ProfileData.from_file(file).planes)
    gpus = [
        line
        for plane in planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
    ]
    threads = [line for plane in planes if plane.name == "/host:CPU" for line in plane.lines]
    return [
        (event.name, event.start_ns, event.duration_ns)
        for line in gpus or threads
        for event in line.events
        if event.duration_ns > 0 and not event.name.startswith("$")  # a Python frame
    ]


def summarise_trace(
    kernels: Iterable[Kernel], steps: int, longest: int = 30
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """-> (a step's device time, kernels and idle share; the longest kernels), times by step."""
    spent: Counter[str] = Counter()
    count: Counter[str] = Counter()
    busy, start, end = 0.0, None, 0.0
    for name, begin, duration in sorted(kernels, key=lambda kernel: kernel[1]):
        spent[name] += duration
        count[name] += 1
        start = begin if start is None else start
        busy += max(0.0, begin + duration - max(begin, end))  # streams overlap
        end = max(end, begin + duration)
    if start is None:
        raise ValueError("the trace has no kernels")
    span = end - start
    summary = {
        "span_ms": span / steps / 1e6,
        "busy_ms": busy / steps / 1e6,
        "idle": 1 - busy / span,
        "kernels": sum(count.values()) // steps,
    }
    total = sum(spent.values())
    rows = [
        {
            "kernel": name[:120],
            "ms": duration / steps / 1e6,
            "share": duration / total,
            "times": count[name] / steps,
        }
        for name, duration in spent.most_common(longest)
    ]
    return summary, rows
