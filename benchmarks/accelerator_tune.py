"""The part `tune` of accelerator.py: block sizes of the fused attention kernels, each by itself.

For each kernel of t5scaling/model/attention_gpu.py and each case, every tile of the grid below is
compiled, side by side, and timed; the record of a kernel lists its fastest tiles. They are what
`attention_gpu.Tiles` should hold.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import accelerator_tools as tools

CASES = {  # name: (B, H, T, S, D), causal, with bias
    "encoder 512": ((64, 12, 512, 512, 64), False, True),
    "head_dim 128": ((32, 16, 512, 512, 128), False, True),
    "cross": ((64, 12, 128, 512, 64), False, False),
}
QUERIES, KEYS, WARPS, STAGES = (64, 128), (32, 64, 128), (4, 8), (2, 3)
SHOWN = 6  # tiles of a kernel in its record


def tune(bench: tools.Bench) -> None:
    import jax

    from t5scaling.model import attention_gpu

    grid = [attention_gpu.Tile(*t) for t in itertools.product(QUERIES, KEYS, WARPS, STAGES)]
    cases = {"rehearsal": ((2, 2, 64, 64, 16), False, True)} if bench.rehearse else CASES
    if bench.rehearse:
        grid = grid[:2]
    names = bench.chosen(list(cases))
    for name in names:
        shape, causal, biased = cases[name]
        operands = _operands(*shape, biased)
        kernels = [k for k in attention_gpu.KERNELS if biased or k != "by_bias"]
        variants = [(kernel, tile) for kernel in kernels for tile in grid]
        calls = [_call(kernel, tile, causal, shape[3], bench.rehearse) for kernel, tile in variants]
        jitted = [jax.jit(call) for call in calls]
        compiled = tools.compile_together([functools.partial(j.lower, operands) for j in jitted])
        found: dict[str, list[tuple[float, Any]]] = {kernel: [] for kernel in kernels}
        refused = 0
        for (kernel, tile), (executable, _) in zip(variants, compiled, strict=True):
            if isinstance(executable, Exception):  # more shared memory than there is, for one
                refused += 1
                continue
            ms, _ = tools.timed_on_device(functools.partial(executable, operands), 3)
            found[kernel].append((ms, tile))
        for kernel, times in found.items():
            times.sort(key=lambda each: each[0])
            best = [
                f"{t.queries}x{t.keys} {t.warps}w {t.stages}s {ms:.3f}" for ms, t in times[:SHOWN]
            ]
            fields = {"case": name, "kernel": kernel, "refused": refused}
            bench.record("tune", **fields, best=", ".join(best), ms=times[0][0] if times else None)


def _call(kernel: str, tile: Any, causal: bool, keys: int, interpret: bool) -> Callable[[Any], Any]:
    from t5scaling.model import attention_gpu

    settings = attention_gpu.Settings(packed=False, causal=causal, interpret=interpret)
    tiles = attention_gpu.Tiles(*[tile] * 4)

    def call(x: dict[str, Any]) -> Any:
        given = [x[key] for key in ("q", "k", "v", "bias", "q_segments", "k_segments")]
        more = [x["do"], x["row"], x["o" if kernel == "by_queries" else "row"]]
        operands = given if kernel == "output" else [*given, *more]
        return attention_gpu.run(kernel, operands, settings, tiles)

    return call


def _operands(B: int, H: int, T: int, S: int, D: int, biased: bool) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    def normal(seed: int, *shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(jnp.bfloat16)

    bias = jax.random.normal(jax.random.key(5), (H, T + S - 1), jnp.float32) if biased else None
    return {
        "q": normal(0, B, T, H, D) * D**-0.5,
        "k": normal(1, B, S, H, D),
        "v": normal(2, B, S, H, D),
        "do": normal(3, B, T, H, D),
        "o": normal(4, B, T, H, D),
        "bias": bias,
        "q_segments": jnp.ones((B, T), jnp.int32),
        "k_segments": jnp.ones((B, S), jnp.int32),
        "row": jnp.full((B, H, T), 8.0),
    }
