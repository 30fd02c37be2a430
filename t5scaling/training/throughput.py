"""Model-FLOPs utilisation: the FLOPs the model needs over the FLOPs the devices could have done."""

import functools
import time

import jax
import jax.numpy as jnp

from t5scaling.training import tracker

# Dense matmul peak of one device in TFLOP/s as JAX counts devices, bfloat16, from the vendors'
# data sheets. The longest matching prefix of device_kind counts.
PEAK_TFLOPS = {
    "TPU v2": 22.5,
    "TPU v3": 61.5,
    "TPU v4": 275.0,
    "TPU v4 lite": 138.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v5p": 459.0,
    "TPU v6 lite": 918.0,
    "TPU v6e": 918.0,
    "NVIDIA H200": 989.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA A100": 312.0,
    "NVIDIA L4": 121.0,
    "Tesla V100": 125.0,
    "Tesla T4": 65.0,
}


def known_peak(device_kind: str) -> float | None:
    """FLOP/s of a device, from the table above; None if it does not hold such devices."""
    matches = [name for name in PEAK_TFLOPS if device_kind.startswith(name)]
    return PEAK_TFLOPS[max(matches, key=len)] * 1e12 if matches else None


@functools.cache
def peak_flops_per_s() -> float:
    """Peak FLOP/s of all devices together.

    From the table above for known accelerators; measured by a float32 matrix product otherwise
    (a CPU: its simulated devices share the cores, so the product is counted once).
    """
    kind = jax.devices()[0].device_kind
    known = known_peak(kind)
    if known is not None:
        return known * jax.device_count()
    return _measured_flops_per_s() * (1 if kind == "cpu" else jax.device_count())


def _measured_flops_per_s(size: int = 1024, repeats: int = 10) -> float:
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Clock:
    """Lines of timing.jsonl: what the run has cost and how fast it goes."""

    def __init__(self, log: tracker.Tracker, *, flops_per_step: float, positions_per_step: int):
        self._log = log
        self._flops_per_step = flops_per_step
        self._positions_per_step = positions_per_step
        # Of a CPU no data sheet gives one, and what a product reaches beside other work, on cores
        # that wake and sleep, is none: runs had ten times of that.
        self._peak_flops_per_s = known_peak(jax.devices()[0].device_kind)
        self._since: tuple[int, float] | None = None  # (step, time) of the line before

    def start(self, step: int) -> None:
        """A program's first call, with its compilation, is done: speed is measured from here."""
        self._since = (step, time.monotonic())

    def write(self, step: int, tokens_per_step: float = 0.0) -> str:
        """Writes the line of `step`; `tokens_per_step` are its target tokens since the line before.

        Returns the speed as text, for the progress bar.
        """
        line = {"step": step, **self._log.spent(jax.device_count())}
        now = time.monotonic()
        if self._since is not None and step > self._since[0]:
            steps, seconds = step - self._since[0], now - self._since[1]
            flops_per_s = steps * self._flops_per_step / seconds
            line["positions_per_s"] = steps * self._positions_per_step / seconds
            line["target_tokens_per_s"] = steps * tokens_per_step / seconds
            line["model_tflops_per_s"] = flops_per_s / 1e12
            if self._peak_flops_per_s:
                line["mfu"] = flops_per_s / (self._peak_flops_per_s * jax.device_count())
        self._since = (step, now)
        self._log.timing(line)
        if "target_tokens_per_s" not in line:
            return ""
        use = f", MFU {line['mfu']:.0%}" if "mfu" in line else ""
        return f", {line['target_tokens_per_s']:,.0f} target tokens/s{use}"
