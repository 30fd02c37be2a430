"""Compiles the train step for devices that need not be present, and reports the memory it takes.

For a TPU slice or a GPU the work is done in a child process, whose environment keeps JAX from
looking for such a device. The JAX of this process, and its devices, are left as they are. It is
`python -m t5scaling.study.ahead_of_time`: a program as JSON on stdin, the result as JSON on stdout.

Times are never taken from the compiler: XLA's cost analysis counts the body of a loop once.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import progress as rich_progress
from rich.console import Console

from t5scaling import compilation
from t5scaling.data import provenance
from t5scaling.errors import UserError, first_line
from t5scaling.model import network
from t5scaling.study import gpus, topologies
from t5scaling.training import sharding, throughput
from t5scaling.training import step as step_lib

# libtpu asks a metadata server what machine it is on, and waits for an answer, unless these say so.
# Any machine will do: the slice that is compiled for comes with the topology's name.
_NO_TPU_HERE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at once: no chip is held
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What decides how a train step is compiled, but for the devices.

    Attributes:
        config, objective: of the step.
        batch_size: rows over all devices.
        input_length, target_length: positions of a row.
        packed: whether rows hold several examples, with segment ids.
        microbatches, mesh_shape, rules: as for `loop.train`.
    """

    config: network.T5Config
    objective: step_lib.Objective
    batch_size: int
    input_length: int
    target_length: int
    packed: bool = False
    microbatches: int = 1
    mesh_shape: Mapping[str, int] | None = None
    rules: sharding.Rules | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Program":
        fields = dict(fields)
        fields["config"] = network.T5Config(**fields["config"])
        fields["objective"] = step_lib.Objective(**fields["objective"])
        fields["rules"] = fields["rules"] and sharding.Rules(**fields["rules"])
        return cls(**fields)

    def summary(self) -> str:
        """The settings that a search changes, as text."""
        mesh = " x ".join(
            f"{axis} {'rest' if size == -1 else size}"
            for axis, size in (self.mesh_shape or {}).items()
        )
        parts = [f"remat {self.config.remat}", f"mesh {mesh or 'data parallel'}"]
        if self.microbatches > 1:
            parts.append(f"{self.microbatches} microbatches")
        return ", ".join(parts)

    def abstract_batch(self, layout: sharding.Layout) -> dict[str, jax.ShapeDtypeStruct]:
        """What `loader.train_batches` yields, as shapes in their place on the mesh."""

        def array(length: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
            rows = sharding.batch_sharding(layout)
            return jax.ShapeDtypeStruct((self.batch_size, length), dtype, sharding=rows)

        batch = {
            "encoder_input_tokens": array(self.input_length),
            "decoder_input_tokens": array(self.target_length),
            "decoder_target_tokens": array(self.target_length),
            "decoder_loss_weights": array(self.target_length, jnp.float32),
        }
        if self.packed:
            batch["encoder_segment_ids"] = array(self.input_length)
            batch["decoder_segment_ids"] = array(self.target_length)
        return batch


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler reports about a program on some devices. Bytes are those of one device.

    Attributes:
        device_kind: JAX's name of the devices.
        mesh: mesh axis -> its size.
        hosts: machines (processes) that the devices belong to.
        parameters: of the model, all devices together.
        checkpoint_bytes: of parameters, optimizer and counters, all devices together.
        parameter_bytes, optimizer_bytes, batch_bytes: of a device's part, counted from shapes.
        argument_bytes: of all arguments as the compiler lays them out, padding included.
        temporary_bytes: everything that lives only within the step, and what lies idle between.
        output_bytes: of outputs that do not take the place of an argument.
        code_bytes: of the program itself.
        peak_bytes: arguments, temporaries and outputs alive at the same time, at most, in all of
            a chip's memories: a small model's temporaries may never leave the compute units.
        memory_bytes: that a program may use.
        whole_memory_bytes: all of the device's, of which `memory_bytes` is a share that the user
            may change (`gpus.memory_fraction`); None where there is no such share.
        peak_flops_per_s: of a device.
        seconds: tracing and compiling took.
        refused: the compiler's words, when it found the program too large; the bytes that it
            would have reported are 0 then.
    """

    device_kind: str
    mesh: Mapping[str, int]
    hosts: int
    parameters: int
    checkpoint_bytes: int
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    memory_bytes: int
    peak_flops_per_s: float
    seconds: float
    argument_bytes: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    code_bytes: int = 0
    peak_bytes: int = 0
    refused: str | None = None
    whole_memory_bytes: int | None = None

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def total_bytes(self) -> int:
        """What has to be free for the step: temporaries are one block, taken as a whole."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes + self.code_bytes

    @property
    def fits(self) -> bool:
        return self.refused is None and self.total_bytes <= self.memory_bytes


def compile_program(program: Program, topology: topologies.Topology | None) -> Compiled:
    """Compiles for `topology`, or for the devices that JAX finds here if it is None.

    Raises UserError if the mesh or the batch cannot be split over the devices, if libtpu or the
    CUDA plugin is missing, or if it refuses the topology.
    """
    if topology is None:
        with _clock(f"compiling for {topologies.LOCAL} devices ({program.summary()})"):
            return compile_on(program, jax.devices(), _local_memory(), local_peak())
    if isinstance(topology, gpus.Gpus):
        gpus.check_plugin(topology)
    elif importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"planning for {topology.name} needs libtpu, which is not installed; "
            "pip install libtpu, or install t5scaling with the extra [tpu]"
        )
    with _clock(f"compiling for {topology.name} ({program.summary()})"):
        return _compile_in_child(program, topology)


@functools.lru_cache
def checkpoint_bytes(config: network.T5Config) -> int:
    """Of parameters, optimizer and counters."""
    layout = sharding.make_layout(None, None, jax.devices()[:1])
    state = step_lib.abstract_state(config, layout)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def compile_on(
    program: Program, devices: list[Any], memory_bytes: int, peak_flops_per_s: float
) -> Compiled:
    """Compiles in this process for `devices`, which may be only described."""
    config = program.config
    layout = sharding.make_layout(program.mesh_shape, program.rules, devices)
    sharding.check(layout, config)
    sharding.check_batch_size(program.batch_size, layout, program.microbatches)
    state, batch = step_lib.abstract_state(config, layout), program.abstract_batch(layout)
    found = Compiled(
        device_kind=devices[0].device_kind,
        mesh=dict(layout.mesh.shape),
        hosts=len({device.process_index for device in devices}),
        parameters=network.count_parameters(config),
        checkpoint_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        parameter_bytes=_shard_bytes(state.params),
        optimizer_bytes=_shard_bytes(state.opt_state),
        batch_bytes=_shard_bytes(batch),
        memory_bytes=memory_bytes,
        peak_flops_per_s=peak_flops_per_s,
        seconds=0.0,
    )
    train_step = step_lib.jit_train_step(config, program.objective, layout, program.microbatches)
    scalars = [jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, jnp.uint32, jnp.bool_)]
    started = time.monotonic()
    try:
        memory = train_step.lower(state, batch, *scalars).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(
            found, refused=_reason(error), seconds=time.monotonic() - started
        )
    return dataclasses.replace(
        found,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        peak_bytes=memory.peak_memory_in_bytes,
        seconds=time.monotonic() - started,
    )


def _shard_bytes(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _local_memory() -> int:
    """A device's memory; devices simulated on a CPU share the machine's."""
    device = jax.local_devices()[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return machine // jax.local_device_count()


def local_peak() -> float:
    """FLOP/s of a device here."""
    return throughput.peak_flops_per_s() / jax.device_count()


@contextlib.contextmanager
def _clock(doing: str) -> Any:
    """The time that has passed, on a terminal; a line elsewhere."""
    console = Console(file=sys.stderr, soft_wrap=True)
    if not console.is_terminal:
        print(f"{doing} ...", file=sys.stderr, flush=True)
        yield
        return
    with rich_progress.Progress(
        rich_progress.SpinnerColumn(),
        rich_progress.TextColumn("{task.description}, minutes for a large model", markup=False),
        rich_progress.TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        bar.add_task(doing, total=None)
        yield


def _child_environment(topology: topologies.Topology) -> dict[str, str]:
    if not isinstance(topology, gpus.Gpus):
        return _NO_TPU_HERE
    # Of flags that are given twice XLA heeds the last.
    flags = " ".join([os.environ.get("XLA_FLAGS", ""), *compilation.GPU_FLAGS]).strip()
    return {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2", "XLA_FLAGS": flags}


def _compile_in_child(program: Program, topology: topologies.Topology) -> Compiled:
    request = json.dumps({"topology": topology.name, "program": program.to_json()})
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            provenance.child("t5scaling.study.ahead_of_time"),
            input=request,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=provenance.child_environment(**_child_environment(topology)),
        )
        log.seek(0)
        complaints = [line.strip() for line in log if line.strip()]
    if done.returncode == 2:
        raise UserError(done.stdout.strip())
    if done.returncode == -9:
        raise UserError(
            f"the compiler was killed while compiling for {topology.name}, as happens when memory "
            "runs out; compile on a machine with more"
        )
    if done.returncode != 0:
        last = complaints[-1] if complaints else "it printed nothing"
        raise RuntimeError(
            f"compiling for {topology.name} ended with status {done.returncode}: {last}"
        )
    return Compiled(**json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    request = json.load(sys.stdin)
    topology = topologies.parse(request["topology"])
    assert topology is not None
    try:
        devices, unready = _described(topology)
        try:
            compiled = compile_on(
                Program.from_json(request["program"]),
                devices,
                topology.memory_bytes,
                topology.peak_flops_per_s,
            )
        except UserError:
            raise
        except Exception as error:
            if not unready:
                raise
            raise UserError(f"{_reason(error)} ({unready})") from None
    except UserError as error:
        print(error)
        return 2
    compiled = dataclasses.replace(compiled, whole_memory_bytes=topology.whole_memory_bytes)
    print(json.dumps(dataclasses.asdict(compiled)))
    return 0


def _described(topology: topologies.Topology) -> tuple[list[Any], str]:
    """The devices of a topology that is not here, and what could not be prepared for them."""
    try:
        if isinstance(topology, gpus.Gpus):
            return gpus.describe(topology), gpus.prepare_lowering(topology.card)
        return topologies.describe(topology), ""
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        who = "JAX's CUDA plugin" if isinstance(topology, gpus.Gpus) else "libtpu"
        raise UserError(f"{who} refuses the topology {topology.name}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What XLA refuses, without the status code and XLA's number of it."""
    return re.sub(r"^[A-Z_]+: (E\d+: )?", "", first_line(error, 1000))


if __name__ == "__main__":
    sys.exit(main())
