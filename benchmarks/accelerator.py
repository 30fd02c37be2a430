"""What t5scaling does on one GPU, in parts of less than a minute or two: speed, memory, exactness.

    python benchmarks/accelerator.py PART [...] [--out=results/accelerator] [--flags=project]
                                     [--only=0,3] [--examples=runs/examples] [--rehearse]
    bash benchmarks/on_device.sh one     # the parts in order, each under a time limit: 5 minutes
    bash benchmarks/on_device.sh two     # what compares with others: 5 minutes more

ceiling    a product of 8192 x 8192 bfloat16 matrices and a copy; XLA's description of the chip
doctor     `run.py doctor` *
attention  plain, cuDNN and fused: milliseconds, memory, errors; see accelerator_attention.py
tune       block sizes of the fused kernels; see accelerator_tune.py
embed      the gradient of the embedding lookup, by hand and as JAX derives it
parity     loss and gradients against the CPU, for which it needs JAX_PLATFORMS=cuda,cpu
mfu        train steps of T5 1.1 in bfloat16, compiled side by side and run in order of memory
repeat     the same ten steps twice, bit for bit, and against the processes that did them before
trace      where a step's time on the device goes, by kernel
loop       the training loop against its step alone; needs carried examples
decode     greedy search and beam search of 128 positions
torch      transformers' T5 on PyTorch beside it; see accelerator_peer.py *
study      gin/studies/quick.gin; needs carried examples *

Every result is one line of output and one JSON record of accelerator.jsonl in the folder --out
(default: $OUT, else results/accelerator). What does not work has `failed` in its record, and the
part goes on. Parts marked * run in a process of their own and want the GPU's memory for themselves:
not after another part in one call. --flags: the XLA flags that run.py sets (project), those that
forbid everything that could differ between two runs (exact), or those that leave XLA free (tuned).
--only: numbers, from 0, of the programs (mfu, trace), cases (attention), decodings (decode) or what
the peer does (torch). --rehearse: sizes for a CPU, seconds a part. Parts may run at the same time:
they measure in turn, each with the device for itself.
"""

import argparse
import contextlib
import functools
import glob
import operator
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import accelerator_attention
import accelerator_step
import accelerator_tools as tools
import numpy as np
from accelerator_tools import Bench

FLAGS = {
    "project": "",
    "exact": "--xla_gpu_deterministic_ops=true --xla_gpu_enable_triton_gemm=false",
    # XLA's own defaults; run.py would else forbid it to time algorithms and to use Triton's.
    "tuned": "--xla_gpu_deterministic_ops=false --xla_gpu_autotune_level=4 "
    "--xla_gpu_enable_triton_gemm=true",
}
GEMM = "ceiling_gemm"  # the program whose compilation also writes down what chip it is for
DECODED = 128  # positions


def ceiling(bench: Bench) -> None:
    import jax
    import jax.numpy as jnp

    size, copied = (256, 1 << 16) if bench.rehearse else (8192, 1 << 30)

    def ceiling_gemm(a: jax.Array, b: jax.Array) -> jax.Array:
        return a @ b

    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in (0, 1))
    x = jax.random.normal(jax.random.key(2), (copied,), jnp.float32)
    with bench.alone():
        gemm_ms, _ = tools.timed_on_device(functools.partial(jax.jit(ceiling_gemm), a, b), 10)
        copy_ms, _ = tools.timed_on_device(functools.partial(jax.jit(jnp.copy), x))
    described = sorted(glob.glob(f"{_dump_folder(bench)}/*{GEMM}*gpu_target_config.pbtxt"))
    if described:
        shutil.copy(described[0], bench.out / "gpu_target_config.pbtxt")
    bench.record(
        "ceiling",
        device=jax.devices()[0].device_kind,
        gemm_tflops=2 * size**3 / gemm_ms / 1e9,
        copy_tb_per_s=2 * x.nbytes / copy_ms / 1e9,
        target_config=bool(described),
    )


def _dump_folder(bench: Bench) -> Path:
    return bench.out / "xla_dump"


def doctor(bench: Bench) -> None:
    start = time.perf_counter()
    command = [sys.executable, "run.py", "doctor", *(["--help"] if bench.rehearse else [])]
    status, lines = tools.run_and_show(command)
    passed = status == 0 and (bench.rehearse or any("self-test passed" in x for x in lines))
    if passed:
        bench.record("doctor", passed=True, wall_s=time.perf_counter() - start)
    else:
        bench.failed("doctor", f"exit status {status}: {' / '.join(lines[-3:])}", passed=False)


def embed(bench: Bench) -> None:
    """Tokens of Zipf's frequencies, so that many rows of the gradient are sums of many."""
    import jax
    import jax.numpy as jnp

    from t5scaling.model import layers

    width, positions = (16, 64) if bench.rehearse else (768, 40064)
    for vocab_size in (128,) if bench.rehearse else (tools.VOCABULARY, 250112):
        draw = np.random.default_rng(0).random(positions)
        tokens = jnp.asarray(np.int32(vocab_size**draw) - 1)
        dy_NxE = jax.random.normal(jax.random.key(1), (positions, width), jnp.bfloat16)
        table_VxE = jnp.ones((vocab_size, width), jnp.float32)
        exact = np.zeros((vocab_size, width))
        np.add.at(exact, np.asarray(tokens), np.asarray(dy_NxE, np.float64))
        for name in ("lookup", "scatter"):
            names = {"gradient": name, "vocabulary": vocab_size}
            try:
                look_up = layers.lookup if name == "lookup" else operator.getitem
                gradient = jax.jit(functools.partial(_lookup_gradient, look_up))
                call = functools.partial(gradient, table_VxE, tokens, dy_NxE)
                found, repeats = np.asarray(call()), True
                with bench.alone():
                    ms, spread = tools.timed_on_device(call)
                for _ in range(3):
                    repeats &= np.array_equal(found, np.asarray(call()))
            except Exception as error:
                bench.failed("embed", error, **names)
            else:
                error = float(np.linalg.norm(found - exact) / np.linalg.norm(exact))
                bench.record(
                    "embed", **names, ms=ms, spread_ms=spread, error=error, repeats=repeats
                )


def _lookup_gradient(look_up: Any, table_VxE: Any, tokens: Any, dy_NxE: Any) -> Any:
    import jax

    def call(table_VxE: Any) -> Any:
        return look_up(table_VxE, tokens).astype(dy_NxE.dtype)

    return jax.vjp(call, table_VxE)[1](dy_NxE)[0]


def loop(bench: Bench) -> None:
    import loop_overhead
    import tiny

    from t5scaling.data.examples import DataSpec

    lengths = {"inputs": 128, "targets": 32}  # gin/runs/pretrain.gin's
    if not _carried(bench, DataSpec(loop_overhead.TASK, "train", lengths).stem):
        bench.record("loop", skipped=f"no examples of {loop_overhead.TASK} in {bench.examples}")
        return

    def spec(**fields: Any) -> DataSpec:
        return DataSpec(**(fields | {"feature_lengths": lengths}))

    shared = {"vocab_size": loop_overhead.VOCABULARY}
    for size, rows, changes in (
        ("tiny", 32, {"dtype": "float32", "scan_layers": False}),
        ("small", 128, {}),
    ):
        config = bench.config(size, **shared, **changes)
        # From one line of metrics to another, where every call ends; and as many batches as one
        # pass over the examples can give.
        several = loop_overhead.LOG_EVERY
        measured = (1 if bench.rehearse else 10) * several
        counts = {"SKIPPED": several, "MEASURED": measured, "NEVER_DONE": 400}
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(loop_overhead, DataSpec=spec, **counts))
            model = lambda vocab_size=0, config=config: config
            stack.enter_context(mock.patch.multiple(tiny, ROWS=rows, model=model))
            try:
                pairs = loop_overhead.measure(bench.examples, 2, print)
                legs = [
                    loop_overhead.loop_leg(config, bench.examples, rows, several) for _ in range(3)
                ]
            except Exception as error:
                bench.failed("loop", error, size=size, rows=rows)
                continue
        alone, whole = (min(pair[i].wall_s for pair in pairs) * 1e3 for i in (0, 1))
        at_once = min(leg.wall_s for leg in legs[1:]) * 1e3  # the first compiles
        bench.record(
            "loop",
            size=size,
            rows=rows,
            step_ms=alone,
            loop_ms=whole,
            ratio=whole / alone,
            steps_per_call=several,
            loop_ms_at_once=at_once,
            ratio_at_once=at_once / alone,
        )


def _carried(bench: Bench, stem: str) -> bool:
    return any((tools.REPOSITORY / bench.examples).glob(f"{stem}*/dataset.json"))


def decode(bench: Bench) -> None:
    """No token ends an answer: every row takes every position, as in the peer."""
    import jax

    from t5scaling.model import decoding, network
    from t5scaling.training import sharding

    layout = sharding.make_layout(devices=jax.devices()[:1])
    rows, width, length = (4, 16, 8) if bench.rehearse else (128, 256, DECODED)
    greedy, beam4 = decoding.Greedy(), decoding.BeamSearch(4)
    decodings = (("base", greedy), ("base", beam4), ("small", greedy))
    for size, decoder in bench.chosen(decodings):
        config = bench.config(size, scan_layers=False)
        few = rows if decoder is greedy else rows // 4
        tokens = tools.decoder_inputs(few, width, config.vocab_size)
        names = {"size": size, "decoder": decoder.name, "rows": few, "inputs": width}
        try:
            on_device = sharding.put_batch({"tokens": tokens}, layout)["tokens"]
            model = network.Transformer(config)
            params = tools.random_params(config)
            options = {"max_decode_len": length, "eos_id": -1}
            call = functools.partial(decoder, model, params, on_device, **options)
            start = time.perf_counter()
            jax.block_until_ready(call())
            compile_s = time.perf_counter() - start
            with bench.alone():
                ms, spread = tools.timed_on_device(call, 1)
        except Exception as error:
            bench.failed("decode", error, **names)
            continue
        bench.record(
            "decode",
            **names,
            positions=length,
            ms=ms,
            spread_ms=spread,
            ms_per_position=ms / length,
            tokens_per_s=few * length / ms * 1e3,
            compile_s=compile_s,
        )


def torch(bench: Bench) -> None:
    command = [sys.executable, "benchmarks/accelerator_peer.py", f"--out={bench.out.resolve()}"]
    command += [f"--only={','.join(map(str, bench.only))}"] if bench.only else []
    status, lines = tools.run_and_show([*command, *(["--rehearse"] if bench.rehearse else [])])
    if status:
        bench.failed("torch", f"exit status {status}: {' / '.join(lines[-3:])}")


def study(bench: Bench) -> None:
    if not (bench.rehearse or _carried(bench, "techdoc_span_en50_de50-train-")):
        bench.record("study", skipped=f"no examples of gin/studies/quick.gin in {bench.examples}")
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "run.py", "study", "--gin_file=gin/studies/quick.gin"]
        command += [f"--gin.STUDY_DIR={folder}", f"--gin.EXAMPLES_ROOT={bench.examples}"]
        start = time.perf_counter()
        status, lines = tools.run_and_show([*command, *(["--help"] if bench.rehearse else [])])
        seconds = time.perf_counter() - start
        copied = []
        for name in ("results.csv", "fits.json", "report.html"):
            if os.path.isfile(f"{folder}/{name}"):
                shutil.copy(f"{folder}/{name}", bench.out)
                copied.append(name)
    if status:
        bench.failed("study", f"exit status {status}: {' / '.join(lines[-3:])}", wall_s=seconds)
    else:
        bench.record("study", wall_s=seconds, files=" ".join(copied))


def tune(bench: Bench) -> None:
    import accelerator_tune

    accelerator_tune.tune(bench)


PARTS: dict[str, Callable[[Bench], None]] = {
    "ceiling": ceiling,
    "doctor": doctor,
    "attention": accelerator_attention.attention,
    "tune": tune,
    "embed": embed,
    "parity": accelerator_step.parity,
    "mfu": accelerator_step.mfu,
    "repeat": accelerator_step.repeat,
    "trace": accelerator_step.trace,
    "loop": loop,
    "decode": decode,
    "torch": torch,
    "study": study,
}
ALONE = ("doctor", "torch", "study")  # JAX must not have taken the GPU's memory


def prepare(bench: Bench, parts: Iterable[str]) -> None:
    """What has to be settled before JAX starts, and a record of it."""
    if bench.rehearse:
        os.environ["JAX_PLATFORMS"] = "cpu"
    flags = [os.environ.get("XLA_FLAGS", ""), FLAGS[bench.flags]]
    if "ceiling" in parts:
        flags += [f"--xla_dump_to={_dump_folder(bench)}", f"--xla_dump_hlo_module_re={GEMM}"]
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
    if set(parts) <= set(ALONE):
        return
    from t5scaling import compilation

    compilation.prepare()
    import jax

    bench.record(
        "setup",
        parts=" ".join(parts),
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
        python=platform.python_version(),
        xla_flags=os.environ["XLA_FLAGS"],
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART")
    parser.add_argument("--out", default=os.environ.get("OUT", "results/accelerator"))
    parser.add_argument("--flags", choices=FLAGS, default="project")
    parser.add_argument("--only", default="", help="numbers, comma-separated")
    parser.add_argument("--examples", default="runs/examples")
    parser.add_argument("--rehearse", action="store_true")
    chosen = parser.parse_args(arguments)
    out = Path(chosen.out)
    out.mkdir(parents=True, exist_ok=True)
    only = tuple(int(number) for number in chosen.only.split(",") if number)
    bench = Bench(out, chosen.rehearse, chosen.flags, only, chosen.examples)
    prepare(bench, chosen.parts)
    broken = 0
    for part in chosen.parts:
        start = time.perf_counter()
        try:
            PARTS[part](bench)
        except Exception as error:
            broken += 1
            bench.failed(part, error)
        bench.record(part, took_s=time.perf_counter() - start)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
