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


def unrolled(model: network.Transformer, params: Any) -> tuple[network.Transformer, Any]:
    """The same model with its layers unrolled, to decode with."""
    if not model.config.scan_layers:
        return model, params
    config = dataclasses.replace(model.config, scan_layers=False, remat="none")
    return network.Transformer(config), unstack_layers(params)
