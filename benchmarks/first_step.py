"""What a new run compiles before its first step: how its parameters are drawn, and the step.

As the peer Flax draws the same parameters, one after the other; the numbers are compared. Each is
traced and compiled in turn, without a compilation cache. CPU seconds, as XLA compiles in several
threads. On 2 cores about 8 minutes.

    python benchmarks/first_step.py [--layers=2,4,12] [--repeats=3]
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", default="2,4,12", help="of each stack, e.g. 2,4,12")
    parser.add_argument("--repeats", type=int, default=3, help="the median is printed")
    options = parser.parse_args()
    tiny.prepare()
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    for layers in map(int, options.layers.split(",")):
        for scan_layers in (False, True):
            model = dataclasses.replace(
                tiny.model(), num_encoder_layers=layers, num_decoder_layers=layers,
                scan_layers=scan_layers, dropout_rate=0.1,
            )  # fmt: skip
            measure(model, options.repeats)


def measure(model: Any, repeats: int) -> None:
    import flax.linen as nn
    import jax
    import numpy as np

    from t5scaling.model import network
    from t5scaling.training import sharding, step

    tokens, layout = np.ones((1, 1), np.int32), sharding.make_layout()

    def by_flax(seed: jax.Array) -> Any:
        variables = network.Transformer(model).init(jax.random.key(seed), tokens, tokens)
        return nn.unbox(variables["params"])

    def ours(seed: jax.Array) -> Any:
        return network.init_params(model, jax.random.key(seed))

    batch = sharding.put_batch(tiny.make_batch(), layout)
    state, rate = step.abstract_state(model, layout), np.float32(0.1)
    programs = {
        "drawn by Flax": lambda: jax.jit(by_flax).lower(np.uint32(0)),
        "drawn by us": lambda: jax.jit(ours).lower(np.uint32(0)),
        "training step": lambda: step.jit_train_step(
            model, step.Objective(), layout
        ).lower(state, batch, rate, np.uint32(0), False),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    compiled: dict[str, Any] = {}
    for _ in range(repeats):
        for name, lower in programs.items():
            jax.clear_caches()
            step.jit_train_step.cache_clear()
            network._declared_by.cache_clear()  # a new run traces the model to know its parameters
            compiled[name], took = timed(lambda lower=lower: lower().compile())
            seconds[name].append(took)
    if not model.scan_layers:  # Flax starts stacked layers from other keys
        drawn = [
            jax.tree.leaves(compiled[f"drawn by {who}"](np.uint32(7))) for who in ("Flax", "us")
        ]
        assert all(np.array_equal(a, b) for a, b in zip(*drawn, strict=True)), "other numbers"
    median = {name: statistics.median(values) for name, values in seconds.items()}
    how = "scanned" if model.scan_layers else "unrolled"
    print(f"{model.num_encoder_layers} + {model.num_decoder_layers} layers, {how}:", end=" ")
    print(", ".join(f"{name} {value:.1f} s" for name, value in median.items()), end="; ")
    ratio = median["drawn by Flax"] / median["drawn by us"]
    print(f"Flax takes {ratio:.1f} times as long to compile as we do", flush=True)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


if __name__ == "__main__":
    main()
