"""A self-test: whether a train step works on this machine's devices, how fast, and how exactly.

Only the doctor uses it, once JAX is known to be there.
"""

import dataclasses
import math
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5scaling.model import attention, layers, network
from t5scaling.training import sharding, throughput
from t5scaling.training import step as step_lib

STEPS = 10
LEARNING_RATE = 0.01
# The batch's tokens are drawn from so many: their frequencies are what a few steps can learn.
TOKENS_IN_USE = 32

# Relative errors of a float32 matrix product above which its operands were rounded: float32 itself
# reaches 1e-6, TF32 (10 bits of mantissa) 3e-4 and bfloat16 (7 bits) 2e-3.
FLOAT32_ERROR = 1e-5
TF32_ERROR = 1e-3

# Rows of each accelerator: as many as it has memory for, by an upper bound. Compiled for an H100,
# the step of 32 rows takes 4.5 GiB with fused attention, 8.6 GiB with plain attention, and 12.1 GiB
# with plain attention and its layers in a loop (8 rows: 4.0 GiB), to which a tenth is added.
ACCELERATOR_ROWS = (32, 16, 8, 4)
STATE_GIB, ROW_GIB = 1.4, 0.37


@dataclasses.dataclass(frozen=True)
class Workload:
    """What is trained: a T5, the rows of each device, the positions of a row."""

    config: network.T5Config
    rows: int
    input_len: int
    target_len: int


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured. Losses are in nats per target token, one for each step.

    `peak_share` is the model's FLOP/s over the peak of `throughput.peak_flops_per_s`;
    `product_errors` are those of the function of that name.
    """

    parameters: int
    losses: tuple[float, ...]
    compile_s: float
    from_cache: bool  # the compiled step was loaded, not compiled
    steps_per_s: float
    positions_per_s: float
    model_tflops_per_s: float
    peak_share: float
    repeats: bool  # a second run gave the same parameters, bit for bit
    product_errors: tuple[float, float]

    def failures(self) -> list[str]:
        """The problems as sentences; empty if there are none."""
        first, last = self.losses[0], self.losses[-1]
        found = []
        if not all(math.isfinite(loss) for loss in self.losses):
            found.append(f"a loss is not finite: {', '.join(f'{x:.3f}' for x in self.losses)}")
        elif last >= first:
            found.append(f"the loss does not fall: {first:.3f} -> {last:.3f} nats per target token")
        if not self.repeats:
            found.append("the same steps taken twice give different parameters")
        if not self.product_errors[0] < FLOAT32_ERROR:
            found.append(
                f"float32 products have a relative error of {self.product_errors[0]:.1e} at JAX's "
                f"highest precision; expected less than {FLOAT32_ERROR:g}"
            )
        return found


def default_workload(platform: str, memory: int | None) -> Workload:
    """On a CPU a model for seconds; elsewhere rows and layers that keep an accelerator busy.

    `platform` and `memory` are as from `this_device`. Where there is little memory it is fewer
    rows, and on the smallest cards the model for CPUs.
    """
    sizes = {
        "vocab_size": 4096,
        "emb_dim": 128,
        "num_heads": 4,
        "head_dim": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "mlp_dim": 256,
        "dropout_rate": 0.0,
    }
    rows = [n for n in ACCELERATOR_ROWS if memory is None or _bytes_needed(n) <= memory]
    if platform == "cpu" or not rows:
        return Workload(network.T5Config(**sizes), rows=32, input_len=128, target_len=128)
    sizes |= {"vocab_size": 32128, "emb_dim": 1024, "num_heads": 16, "head_dim": 64}
    sizes |= {"num_encoder_layers": 4, "num_decoder_layers": 4, "mlp_dim": 2816}
    config = network.T5Config(**sizes, dtype="bfloat16", scan_layers=True)
    return Workload(config, rows=rows[0], input_len=512, target_len=128)


def _bytes_needed(rows: int) -> int:
    """Of an accelerator, for its part of the step."""
    return int((STATE_GIB + rows * ROW_GIB) * 2**30)


def this_device() -> tuple[str, int | None]:
    """The platform as JAX names it, and the bytes that a device of it has left for this process;
    None if it does not say."""
    memory = jax.local_devices()[0].memory_stats()  # None on a CPU
    if memory is None or not {"bytes_limit", "bytes_in_use"} <= memory.keys():
        return jax.default_backend(), None
    return jax.default_backend(), memory["bytes_limit"] - memory["bytes_in_use"]


def attention_choices(
    config: network.T5Config, platform: str
) -> dict[str, attention.Implementation]:
    """Kind of rows -> what such a model takes on this platform."""

    capability = layers.compute_capability(jax.local_devices()[0])

    def choose(packed: bool) -> attention.Implementation:
        return attention.choose(config, platform=platform, packed=packed, capability=capability)

    return {"unpacked rows": choose(packed=False), "packed rows": choose(packed=True)}


def product_errors(size: int = 1024) -> tuple[float, float]:
    """Relative errors of a float32 product of matrices (size, size) on the device: at JAX's highest
    precision, at which float32 models take all of theirs, and at its default.

    They are those of the difference to the host's float64 product, by Frobenius norms.
    """
    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)

    def error(precision: str | None) -> float:
        product = np.asarray(jnp.matmul(a, b, precision=precision))
        return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))

    return error("highest"), error(None)


def run(workload: Workload, steps: int = STEPS) -> Result:
    """Trains twice for `steps` on one batch, data parallel on all devices; see Result."""
    config, layout = workload.config, sharding.make_layout()
    rows = workload.rows * jax.device_count()
    batch = sharding.put_batch(_batch(workload, rows), layout)
    init = step_lib.jit_init(config, layout)
    settings = (np.float32(LEARNING_RATE), np.uint32(0), np.bool_(True))  # a window of each step

    entries = _cache_entries()
    start = time.perf_counter()
    jitted = step_lib.jit_train_step(config, step_lib.Objective(), layout)
    compiled = jitted.lower(step_lib.abstract_state(config, layout), batch, *settings).compile()
    compile_s = time.perf_counter() - start
    from_cache = bool(entries) and _cache_entries() == entries

    def train() -> tuple[float, list[float], Any]:
        state = jax.block_until_ready(init(np.uint32(0)))
        start = time.perf_counter()
        windows = []
        for _ in range(steps):
            state, (window, *_) = compiled(state, batch, *settings)
            windows.append(window)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        losses = [float(w.loss) / float(w.target_tokens) for w in windows]
        return seconds, losses, jax.device_get(state.params)

    first_s, losses, params = train()
    second_s, _, params_again = train()
    same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), params, params_again)

    steps_per_s = steps / min(first_s, second_s)
    lengths = (workload.input_len, workload.target_len)
    flops_per_s = steps_per_s * rows * network.model_flops(config, *lengths)
    return Result(
        parameters=network.count_parameters(config),
        losses=tuple(losses),
        compile_s=compile_s,
        from_cache=from_cache,
        steps_per_s=steps_per_s,
        positions_per_s=steps_per_s * rows * sum(lengths),
        model_tflops_per_s=flops_per_s / 1e12,
        peak_share=flops_per_s / throughput.peak_flops_per_s(),
        repeats=all(jax.tree.leaves(same)),
        product_errors=product_errors(),
    )


def _batch(workload: Workload, rows: int) -> dict[str, np.ndarray]:
    """The arrays (rows, length) of one training batch, without padding."""
    rng = np.random.default_rng(0)

    def draw(length: int) -> np.ndarray:
        return rng.integers(1, 1 + TOKENS_IN_USE, (rows, length), np.int32)

    targets = draw(workload.target_len)
    return {
        "encoder_input_tokens": draw(workload.input_len),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones(targets.shape, np.float32),
    }


def _cache_entries() -> set[str]:
    """Files of JAX's compilation cache, if one is in use."""
    folder: str | None = jax.config.values["jax_compilation_cache_dir"]
    names = os.listdir(folder) if folder and os.path.isdir(folder) else []
    return {name for name in names if name.endswith("-cache")}
