"""Two layouts of the same parameters: T5X's tree with a sub-tree per layer, and stacked layers.

per layer  encoder/layers_0/mlp/wo/kernel (M, E), encoder/layers_1/...
stacked    encoder/layers/mlp/wo/kernel (N, M, E), as `T5Config.scan_layers` needs them
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5scaling.model import network

STACKS = ("encoder", "decoder")
STACKED = "layers"


def are_stacked(params: Any) -> bool:
    return STACKED in params["encoder"]


def stack_layers(params: Any) -> Any:
    """Per-layer tree, of arrays of JAX or NumPy -> stacked tree."""
    stacked = dict(params)
    for name in STACKS:
        stack = {k: v for k, v in params[name].items() if not k.startswith(f"{STACKED}_")}
        count = len(params[name]) - len(stack)
        layers = [params[name][f"{STACKED}_{i}"] for i in range(count)]
        stack[STACKED] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        stacked[name] = stack
    return stacked


def unstack_layers(params: Any) -> Any:
    """Stacked tree -> per-layer tree, T5X's."""
    per_layer = dict(params)
    for name in STACKS:
        stack = {k: v for k, v in params[name].items() if k != STACKED}
        layers = params[name][STACKED]
        for i in range(len(jax.tree.leaves(layers)[0])):
            stack[f"{STACKED}_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
        per_layer[name] = stack
    return per_layer


def abstract_of_other_layout(abstract_params: Any) -> Any:
    """Shapes, dtypes and shardings of parameters -> those of the same in the other layout.

    The axis that counts layers is not split.
    """
    stacked = are_stacked(abstract_params)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), abstract_params
    )
    other = jax.eval_shape(unstack_layers if stacked else stack_layers, shapes)

    def placed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path]
        layered = len(names) > 1 and names[1].startswith(STACKED)
        if layered:
            names[1] = STACKED if stacked else f"{STACKED}_0"
        here = abstract_params
        for name in names:
            here = here[name]
        spec = tuple(here.sharding.spec)
        if layered:
            spec = spec[1:] if stacked else (None, *spec)
        sharding = jax.sharding.NamedSharding(here.sharding.mesh, jax.sharding.PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map_with_path(placed, other)


def unrolled(model: network.Transformer, params: Any) -> tuple[network.Transformer, Any]:
    """The same model with its layers unrolled, to decode with."""
    if not model.config.scan_layers:
        return model, params
    config = dataclasses.replace(model.config, scan_layers=False, remat="none")
    return network.Transformer(config), unstack_layers(params)
