"""T5X's checkpoints (google-research/t5x, commit cc342d4).

Two layouts are read:

legacy  checkpoint_<step>/checkpoint is msgpack, {"version", "optimizer": {"state": {"step",
        "param_states"}, "target"}}; a large leaf is there a TensorStore specification, and its zarr
        array lies beside the file in a folder named after its path, target.encoder.... The public
        checkpoints are of this kind.
Orbax   checkpoint_<step>/state holds the tree {"state": {"step", "param_states"}, "target"}.

In either the layers may be scanned, as scalable_t5's are: encoder/encoder/mlp/wo/kernel (M, L, E)
has those of all L layers along its second axis, and the attention's have heads and their dimensions
apart, (E, L, H, D) and out (H, L, D, E). They are read one by one. The relative position biases are
of each layer; where all are alike, as in a T5 brought into this form, it is a T5.

What is written is the legacy file with every leaf inside it, which T5X restores in both of its
modes. T5X then wants the optimizer's slots too: m, v, v_row and v_col of every parameter; those not
in use are zeros of shape (1,).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.serialization
import numpy as np

from t5scaling import storage
from t5scaling.errors import UserError, first_line
from t5scaling.interop.weights import (
    Tree,
    Weights,
    architecture,
    as_float32,
    flatten,
    shapes_of,
    unflatten,
)

FILE, ITEM = "checkpoint", "state"
VERSION = 3
SLOTS = ("m", "v", "v_row", "v_col")
SECOND_MOMENTS = SLOTS[1:]
_NAME = re.compile(r"checkpoint_(\d+)")
_SCANNED = re.compile(r"(encoder|decoder)/\1/")
_BIAS = "relpos_bias/rel_embedding"


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a directory is a checkpoint as T5X writes them."""
    folder = storage.path(path)
    return (folder / FILE).is_file() or (folder / ITEM / "_METADATA").is_file()


def checkpoints(path: str | os.PathLike) -> dict[int, str]:
    """Step -> path of the checkpoints in a model directory of T5X; or of `path`, if it is one."""
    folder = storage.path(path)
    if is_checkpoint(path):
        named = _NAME.fullmatch(folder.name)
        return {int(named[1]) if named else _step_of(str(path)): str(path)}
    return {
        int(named[1]): os.path.join(path, child.name)
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (named := _NAME.fullmatch(child.name)) and is_checkpoint(child)
    }


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter. Reads no array that lies in a file of its own.

    Raises UserError as `read`.
    """
    if (storage.path(path) / FILE).is_file():
        leaves = dict(_flat_specifications(_legacy_tree(path)["target"]))
    else:
        target = _orbax_metadata(path)["target"]
        leaves = {name: _of_shape(leaf.shape) for name, leaf in flatten(target)}
    return {name: np.shape(leaf) for name, leaf in _each_layer(leaves, path).items()}


def read(path: str) -> Weights:
    """The checkpoint in directory `path`, with whatever second moments it has.

    Raises UserError if it is not one, damaged, or no T5.
    """
    if (storage.path(path) / FILE).is_file():
        step, target, states = _read_legacy(path)
    else:
        step, target, states = _read_orbax(path)
    leaves = {p: as_float32(p, leaf, path) for p, leaf in flatten(target)}
    params = unflatten(_each_layer(leaves, path))
    config = architecture(shapes_of(params), path)
    if any(map(_SCANNED.match, leaves)):
        left_out = ("the optimizer's moments, which T5X factors otherwise for scanned layers",)
        return Weights(config, params, step, left_out=left_out)
    slots = {p: np.asarray(leaf) for p, leaf in flatten(states)}
    used = {p: leaf.astype(np.float32) for p, leaf in slots.items() if leaf.shape != (1,)}
    moments = {p: leaf for p, leaf in used.items() if p.endswith(SECOND_MOMENTS)}
    left_out = ("Adafactor's momentum, which is not used here",) if len(moments) < len(used) else ()
    return Weights(config, params, step, unflatten(moments) or None, left_out=left_out)


def _each_layer(leaves: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The leaves, with one for each layer in place of one for all."""
    found: dict[str, Any] = {}
    for name, leaf in leaves.items():
        scanned = _SCANNED.match(name)
        if scanned is None:
            found[name] = leaf
            continue
        stack, rest = scanned[1], name[scanned.end() :]
        count = np.shape(leaf)[1] if np.ndim(leaf) > 1 else 0
        layers = [_join_heads(leaf[:, i], rest) for i in range(count)]
        if not layers:
            raise UserError(
                f"{path}: parameter {name} has shape {np.shape(leaf)}: no scanned layers"
            )
        if rest != _BIAS:
            found |= {f"{stack}/layers_{i}/{rest}": layer for i, layer in enumerate(layers)}
        elif all(np.array_equal(layer, layers[0]) for layer in layers):
            found[f"{stack}/{_BIAS}"] = layers[0]
        else:
            raise UserError(
                f"{path} has relative position biases of its own in every layer of the {stack}, as "
                "umT5; this model shares one in a stack"
            )
    return found


def _join_heads(kernel: np.ndarray, name: str) -> np.ndarray:
    """(E, H*D) of (E, H, D), or (H*D, E) of (H, D, E); all else as it is."""
    if kernel.ndim != 3:
        return kernel
    first, middle, last = kernel.shape
    shape = (first * middle, last) if name.endswith("/out/kernel") else (first, middle * last)
    return kernel.reshape(shape) if any(kernel.strides) else _of_shape(shape)


def _of_shape(shape: Sequence[int]) -> np.ndarray:
    """An array that takes no memory."""
    return np.broadcast_to(np.float32(0), tuple(shape))


def _legacy_tree(path: str) -> Tree:
    """{"state", "target"} with specifications in place of large arrays."""
    try:
        tree = flax.serialization.msgpack_restore((storage.path(path) / FILE).read_bytes())
    except OSError as error:
        raise UserError(f"{path}/{FILE} cannot be read: {error.strerror}") from None
    except Exception as error:  # msgpack raises many kinds for damaged bytes
        raise UserError(
            f"{path}/{FILE} is not a complete msgpack file: {first_line(error)}"
        ) from None
    optimizer = tree.get("optimizer") if isinstance(tree, Mapping) else None
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("target"), Mapping):
        raise UserError(f"{path}/{FILE} is not a checkpoint of T5X: it has no optimizer/target")
    return dict(optimizer)


def _flat_specifications(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`flatten`, with an array of no bytes for each specification."""
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if not isinstance(value, Mapping):
            yield name, value
        elif "kvstore" in value or "base" in value:
            shape = value.get("base", value).get("metadata", {}).get("shape", ())
            yield name, _of_shape(shape)
        else:
            yield from _flat_specifications(value, name)


def _read_legacy(path: str) -> tuple[int, Tree, Tree]:
    tree = _legacy_tree(path)
    state = tree.get("state") or {}
    target = _load_arrays(tree["target"], "target", path)
    states = _load_arrays(state.get("param_states") or {}, "state.param_states", path)
    return _step(state, path), target, states


def _load_arrays(tree: Mapping[str, Any], name: str, path: str) -> Tree:
    """The tree with the arrays that its TensorStore specifications stand for.

    The arrays are looked for beside the file, whatever folder or bucket they were written in.
    """
    found: Tree = {}
    for key, value in tree.items():
        where = f"{name}.{key}"
        if not isinstance(value, Mapping):
            found[key] = value
        elif "kvstore" in value or "base" in value:
            found[key] = _read_zarr(value, where, path)
        else:
            found[key] = _load_arrays(value, where, path)
    return found


def _read_zarr(spec: Mapping[str, Any], name: str, path: str) -> np.ndarray:
    import tensorstore

    driver = spec.get("driver")
    if driver == "cast":  # bfloat16 checkpoints cast what they read
        spec = spec["base"] | {"dtype": spec.get("dtype")}
        driver = spec.get("driver")
    recorded = str(spec.get("kvstore", {}).get("path", name)).rstrip("/")
    folder = os.path.join(storage.absolute(path), os.path.basename(recorded))
    try:
        store = tensorstore.open(
            {"driver": driver, "kvstore": _store(folder)}, open=True, create=False
        ).result()
        return np.asarray(store.read().result())
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {name} cannot be read: {first_line(error)}") from None


def _store(folder: str) -> dict[str, str]:
    if storage.in_bucket(folder):
        bucket, _, key = folder.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": key + "/"}
    return {"driver": "file", "path": folder + "/"}


def _step(state: Mapping[str, Any], path: str) -> int:
    """The steps done. Raises UserError if the checkpoint does not say how many."""
    step = np.asarray(state.get("step", ""))
    if step.dtype.kind not in "iu" or step.size != 1:
        raise UserError(f"{path} is damaged: it does not say which step it is of")
    return int(step.item())


def _step_of(path: str) -> int:
    """Of a checkpoint whose folder does not say it."""
    legacy = (storage.path(path) / FILE).is_file()
    return _step(_legacy_tree(path).get("state") or {}, path) if legacy else _read_orbax(path)[0]


def _orbax_metadata(path: str) -> Tree:
    """The tree of an Orbax checkpoint, with what has a shape for leaves."""
    import orbax.checkpoint as ocp
    from etils import epath

    item = epath.Path(storage.absolute(path)) / ITEM
    if not (item / "_METADATA").is_file():
        raise UserError(f"{path} is not a checkpoint of T5X: it has neither {FILE} nor {ITEM}/")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(item).item_metadata.tree
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(tree, Mapping) or not isinstance(tree.get("target"), Mapping):
        raise UserError(f"{path}/{ITEM} is not a checkpoint of T5X: it has no target")
    return dict(tree)


def _read_orbax(path: str) -> tuple[int, Tree, Tree]:
    import jax
    import orbax.checkpoint as ocp
    from etils import epath

    restore_args = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), _orbax_metadata(path)
    )
    item = epath.Path(storage.absolute(path)) / ITEM
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.restore(
                item, args=ocp.args.PyTreeRestore(restore_args=restore_args)
            )
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    state = tree.get("state") or {}
    return _step(state, path), tree["target"], state.get("param_states") or {}


def write(path: str, weights: Weights) -> None:
    """Writes directory `path`, checkpoint_<step> by T5X's custom, with one msgpack file.

    `weights.moments` must have the second moments of every parameter.
    """
    unused = np.zeros((1,), np.float32)
    known = dict(flatten(weights.moments or {}))
    states = {
        f"{name}/{slot}": np.asarray(known.get(f"{name}/{slot}", unused), np.float32)
        for name, _ in flatten(weights.params)
        for slot in SLOTS
    }
    tree = {
        "version": VERSION,
        "optimizer": {
            "target": weights.params,
            "state": {"step": np.int32(weights.step), "param_states": unflatten(states)},
        },
    }
    folder = storage.path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(flax.serialization.msgpack_serialize(tree))
