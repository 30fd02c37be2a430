"""Where arrays live: rules from logical axis names to mesh axes, and the mesh.

Mesh axes: "data" (rows of a batch), "fsdp" (rows too, and the parameters with them: fully sharded
data parallelism), "model" (heads, MLP and vocabulary: tensor parallelism).
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5scaling.errors import UserError, nearest
from t5scaling.model import layers, network
from t5scaling.model import loss as loss_lib

MESH_AXES = ("data", "fsdp", "model")
Target = str | tuple[str, ...] | None


def _axes(target: Target) -> tuple[str, ...]:
    return () if target is None else (target,) if isinstance(target, str) else tuple(target)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axis, or axes, over which each logical axis is split; None for none.

    The names are T5X's; those of activations are apart, since a parameter's "embed" may be split
    where an activation's must not be.
    """

    # parameters
    vocab: Target = "model"
    embed: Target = "fsdp"
    joined_kv: Target = "model"
    heads: Target = "model"
    mlp: Target = "model"
    relpos_buckets: Target = None
    layers: Target = None
    # activations
    batch: Target = ("data", "fsdp")
    lookup_batch: Target = "data"  # while embeddings, split along "embed", are looked up
    activation_length: Target = None
    activation_embed: Target = None
    activation_heads: Target = "model"
    activation_kv: Target = None
    activation_mlp: Target = "model"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            target = getattr(self, field.name)
            if isinstance(target, list):  # gin writes either; the rules must be hashable
                target = tuple(target)
                object.__setattr__(self, field.name, target)
            for axis in _axes(target):
                if axis not in MESH_AXES:
                    choice = nearest(str(axis), MESH_AXES)
                    raise UserError(f"sharding rule {field.name}: no mesh axis {axis!r}{choice}")

    def spec(self, logical_axes: Sequence[str | None]) -> PartitionSpec:
        return PartitionSpec(*(name and getattr(self, name) for name in logical_axes))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules to use it."""

    mesh: Mesh
    rules: Rules = Rules()

    def sharding(self, *logical_axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, self.rules.spec(logical_axes))

    def axes(self, logical_axis: str) -> set[str]:
        """The mesh axes over which a logical axis is split."""
        return set(_axes(getattr(self.rules, logical_axis)))

    def size(self, logical_axis: str) -> int:
        """Parts into which a logical axis is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes(logical_axis))

    def loss_split(self) -> loss_lib.Split:
        """The split of the loss, whose rows and vocabulary must not share a mesh axis: rows go
        first."""
        batch = _axes(self.rules.batch)
        vocab = tuple(axis for axis in _axes(self.rules.vocab) if axis not in batch)
        wide = {axis for axis in self.axes("embed") if self.mesh.shape[axis] > 1}
        shared = tuple(axis for axis in batch if axis in wide)
        return loss_lib.Split(self.mesh, batch, vocab, shared)

    @property
    def platform(self) -> str:
        """The platform of the mesh's devices: "cpu", "gpu" or "tpu"."""
        platform = self.mesh.devices.flat[0].platform
        return "gpu" if platform in ("cuda", "rocm") else platform

    def constraints(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the model is traced for this mesh and its activations are held to the rules."""

        def hold(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, self.sharding(*axes))

        def on_each_device(function: Callable, in_axes: Sequence, out_axes: Sequence) -> Callable:
            if self.mesh.size == 1:
                return function
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=tuple(axes and self.rules.spec(axes) for axes in in_axes),
                out_specs=self.rules.spec(out_axes),
                check_vma=False,  # kernels of Pallas do not say how their results vary
            )

        capability = layers.compute_capability(self.mesh.devices.flat[0])
        return layers.placed(layers.Placement(self.platform, capability, hold, on_each_device))


def make_layout(
    mesh_shape: Mapping[str, int] | None = None,
    rules: Rules | None = None,
    devices: Sequence[Any] | None = None,
) -> Layout:
    """A layout over all devices, data parallel unless `mesh_shape` says otherwise.

    `mesh_shape` gives the size of mesh axes, e.g. {"data": -1, "fsdp": 4}; -1 means what is
    left, an axis not named has size 1 (or what is left, for "data"). `devices` may be those of a
    topology description. Raises UserError if the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = {"data": -1, "fsdp": 1, "model": 1} | dict(mesh_shape or {})
    for axis, size in shape.items():
        if axis not in MESH_AXES:
            raise UserError(f"MESH_SHAPE: no mesh axis {axis!r}{nearest(str(axis), MESH_AXES)}")
        if not isinstance(size, int) or isinstance(size, bool) or not (size == -1 or size >= 1):
            raise UserError(f"MESH_SHAPE: {axis} is {size!r}; expected a number >= 1, or -1")
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise UserError(f"MESH_SHAPE: {' and '.join(free)} are -1; only one axis can take the rest")
    fixed = math.prod(size for size in shape.values() if size != -1)
    if free:
        shape[free[0]] = max(1, len(devices) // fixed)
    sizes = [shape[axis] for axis in MESH_AXES]
    if math.prod(sizes) != len(devices):
        product = " x ".join(f"{axis}={shape[axis]}" for axis in MESH_AXES)
        raise UserError(f"MESH_SHAPE {product} does not make {len(devices)} devices")
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Layout(Mesh(grid, MESH_AXES), rules or Rules())


def check(layout: Layout, config: network.T5Config) -> None:
    """Raises UserError unless every parameter can be split as the rules say."""
    shapes = jax.tree.leaves(network.abstract_params(config))
    named = jax.tree_util.tree_leaves_with_path(
        network.param_logical_axes(config), is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    for shape, (path, axes) in zip(shapes, named, strict=True):
        name = "/".join(key.key for key in path)
        for one, other in itertools.combinations(axes, 2):
            shared = layout.axes(one) & layout.axes(other)
            if shared:
                raise UserError(
                    f"sharding rules: axes {one} and {other} of {name} are both on mesh axis "
                    f"{shared.pop()!r}; choose another axis, or None, for one of them"
                )
        for size, axis in zip(shape.shape, axes, strict=True):
            parts = layout.size(axis)
            if size % parts:
                fits = max(d for d in range(1, parts + 1) if size % d == 0)
                over = " x ".join(sorted(layout.axes(axis)))
                raise UserError(
                    f"{name}: its {axis} axis of {size} cannot be split into {parts} parts (mesh "
                    f"axis {over}); nearest size that can: {fits}"
                )


def check_batch_size(
    batch_size: int, layout: Layout, microbatches: int = 1, name: str = "BATCH_SIZE"
) -> None:
    """Raises UserError unless every device gets the same number of rows of each microbatch."""
    if not isinstance(microbatches, int) or microbatches < 1:
        raise UserError(f"MICROBATCHES={microbatches!r}; expected a number >= 1")
    unit = layout.size("batch") * microbatches
    if batch_size < 1 or batch_size % unit:
        parts = f"{layout.size('batch')} devices"
        parts += f" x {microbatches} microbatches" if microbatches > 1 else ""
        raise UserError(
            f"{name}={batch_size} cannot be split over {parts}; nearest that can: "
            f"{max(1, round(batch_size / unit)) * unit}"
        )


def param_shardings(config: network.T5Config, layout: Layout) -> Any:
    """The tree of parameters with a NamedSharding for each leaf."""
    return jax.tree.map(
        lambda axes: layout.sharding(*axes),
        network.param_logical_axes(config),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def batch_sharding(layout: Layout, stacked: bool = False) -> NamedSharding:
    """Rows of a batch over the data axes; of batches that are `stacked`, along the second axis."""
    return layout.sharding(None, "batch") if stacked else layout.sharding("batch")


def replicated(layout: Layout) -> NamedSharding:
    return layout.sharding()


def local_rows(batch_size: int, layout: Layout) -> np.ndarray:
    """The rows of a batch that this process's devices hold, ascending.

    Processes hold the same rows where a tensor-parallel group spans them.
    """
    indices = batch_sharding(layout).addressable_devices_indices_map((batch_size,))
    parts = [part for index in indices.values() for part in index or ()]
    return np.asarray(sorted({row for part in parts for row in range(*part.indices(batch_size))}))


def put_batch(
    batch: Mapping[str, np.ndarray],
    layout: Layout,
    rows: np.ndarray | None = None,
    stacked: bool = False,
) -> dict[str, jax.Array]:
    """Arrays in host memory -> global arrays (B, L) over the data axes.

    `batch` holds the `rows` that `local_rows` gives this process, or all B if that is None. Batches
    that are `stacked` are arrays (N, B, L).
    """
    sharding = batch_sharding(layout, stacked)
    if sharding.is_fully_addressable:  # one process, which holds all rows: all arrays at once
        return jax.device_put(dict(batch), sharding)
    axis = int(stacked)

    def put_all(values: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(values.shape, sharding, lambda i: values[i])

    def put_rows(values: np.ndarray, rows: np.ndarray) -> jax.Array:
        batch_size = layout.size("batch") * len(rows) // _local_parts(layout)

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # these are this process's devices
            start, stop, _ = index[axis].indices(batch_size)
            first = int(np.searchsorted(rows, start))
            return values[(*index[:axis], slice(first, first + stop - start))]

        shape = (*values.shape[:axis], batch_size, *values.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, sharding, part)

    return {
        name: put_all(values) if rows is None else put_rows(values, rows)
        for name, values in batch.items()
    }


def _local_parts(layout: Layout) -> int:
    """How many of the batch's parts this process holds."""
    return len(local_rows(layout.size("batch"), layout))
