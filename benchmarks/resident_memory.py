"""Resident memory of a process that trains with a vocabulary of 250,112, and what bounds it.

    python benchmarks/resident_memory.py

Prints one line of JSON, in MiB: `terms` of the bound, the `peak` (VmHWM of this process, so it must
do nothing else), and what was resident after each stage. Linux.

Peak <= process with its compiled program + parameters + Adafactor's moments + gradients
        + 3 x 4 bytes x (positions of a chunk) x (vocabulary) + activations

Three times a chunk's logits: they, their exponentials (whose place their gradient takes), and the
copy that the matrix product of the output projection's gradient makes of it to have it in order.
The activations are the temporary memory of the same step with a vocabulary of 128.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny

VOCABULARY = 250112
STEPS = 3


def status_mib(field: str) -> float:
    """A line of this process's /proc entry: VmRSS is what is resident, VmHWM its peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}")


def main() -> None:
    tiny.prepare()
    import compiled_costs
    import jax

    from t5scaling.model import loss
    from t5scaling.training import sharding, step

    # Compiling takes memory too: it is not to be spared by an earlier run.
    jax.config.update("jax_enable_compilation_cache", False)
    config, layout = tiny.model(VOCABULARY), sharding.make_layout()
    jax.block_until_ready(jax.jit(lambda x: x @ x)(np.ones((8, 8), np.float32)))
    stages = {"start-up": status_mib("VmRSS")}
    train_step = compiled_costs.lower_train_step(config).compile()
    stages["compilation"] = status_mib("VmRSS")
    train_state = step.jit_init(config, layout)(np.uint32(0))
    jax.block_until_ready(train_state)
    stages["initialisation"] = status_mib("VmRSS")
    batch = sharding.put_batch(tiny.make_batch(VOCABULARY), layout)
    previous = None
    for _ in range(STEPS):
        train_state, logged = train_step(
            train_state, batch, np.float32(0.01), np.uint32(0), np.bool_(True)
        )
        jax.block_until_ready(previous)  # at most one step ahead, as the training loop
        previous = logged
    jax.block_until_ready(train_state)
    if not np.isfinite(float(logged[0].loss)):
        raise SystemExit("the loss is not finite")
    stages[f"{STEPS} steps"] = status_mib("VmRSS")
    peak = status_mib("VmHWM")

    def mib(tree: Any) -> float:
        return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 2**20

    chunk = 4 * loss.positions_at_a_time("cpu", VOCABULARY) * VOCABULARY
    activations = compiled_costs.train_step_temporary_bytes(tiny.model(128))
    terms = {
        "process with its compiled program": stages["compilation"],
        "parameters": mib(train_state.params),
        "Adafactor's moments": mib(train_state.opt_state),
        "gradients": mib(train_state.params),
        "3 x a chunk's logits": 3 * chunk / 2**20,
        "activations": activations / 2**20,
    }
    print(json.dumps({"terms": terms, "peak": peak, "stages": stages}))


if __name__ == "__main__":
    main()
