"""A model's first parameters: from the keys and initialisers that Flax would draw them with.

Flax draws one parameter after the other, each a loop of its own to compile; a model of 24 layers
would take minutes. Here all of one shape and one initialiser are drawn by one loop: the same
numbers, and with the layers grows only what cuts them apart.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]


def draw(
    shapes: Mapping[str, Any], initializers: Mapping[Path, Callable], rng: jax.Array
) -> dict[str, Any]:
    """The float32 parameters of a tree of `shapes`, drawn from `rng` (a typed key).

    `initializers` has those of all paths, one object where they are the same. Stacked layers, of
    the path (stack, "layers", ...), are drawn as (stack, "layers_0", ...) and so on.

    Raises ValueError for two parameters of one module, which would be drawn from one key.
    """
    alike: dict[Any, list[Path]] = {}
    layers: dict[Path, list[Path]] = {}  # of a path: those that Flax would draw
    leaves: dict[Path, Any] = flatten_dict(shapes)
    if len({path[:-1] for path in leaves}) < len(leaves):
        raise ValueError(f"a module has two parameters, and one key: {sorted(leaves)}")
    for path, leaf in leaves.items():
        layers[path], shape = [path], leaf.shape
        if path[1] == "layers":
            count, *shape = shape
            layers[path] = [(path[0], f"layers_{n}", *path[2:]) for n in range(count)]
        alike.setdefault((initializers[path], tuple(shape)), []).append(path)
    groups = [[name for path in paths for name in layers[path]] for paths in alike.values()]
    numbers = np.array([_number(name) for names in groups for name in names])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, numbers)
    drawn = {}
    for ((init, shape), paths), names in zip(alike.items(), groups, strict=True):
        own_keys, keys = jnp.split(keys, [len(names)])
        # A loop, whose body is compiled once: XLA would put the formula of a batched draw into
        # every parameter that is cut out of it.
        one = functools.partial(init, shape=shape, dtype=jnp.float32)
        values = jax.lax.map(one, own_keys)
        for path in paths:
            own, values = jnp.split(values, [len(layers[path])])
            drawn[path] = own if path[1] == "layers" else own[0]
    return unflatten_dict(drawn)


def _number(path: Path) -> np.uint32:
    """What Flax folds into its key for the first parameter of the module of `path`."""
    digest = hashlib.sha1("".join(path[:-1]).encode() + b"\1").digest()
    return np.uint32(int.from_bytes(digest[:4], "big"))
