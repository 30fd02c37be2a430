"""T5X's checkpoints (google-research/t5x, commit cc342d4).

Two layouts are read:

legacy  checkpoint_<step>/checkpoint is msgpack, {"version", "optimizer": {"state": {"step",
        "param_states"}, "target"}}; a large leaf is there a TensorStore specification, and its zarr
        array lies beside the file in a folder named after its path, target.encoder.... The public
        checkpoints are of this kind.
Orbax   checkpoint_<step>/state holds the tree {"state": {"step", "param_states"}, "target"}.

What is written is the legacy file with every leaf inside it, which T5X restores in both of its
modes. T5X then wants the optimizer's slots too: m, v, v_row and v_col of every parameter; those not
in use are zeros of shape (1,).
"""

import os
import re
from collections.abc import Iterator, Mapping
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


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a directory is a checkpoint as T5X writes them."""
    folder = storage.path(path)
    return (folder / FILE).is_file() or (folder / ITEM / "_METADATA").is_file()


def shapes(path: str) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter. Reads no array that lies in a file of its own.

    Raises UserError as `read`.
    """
    if (storage.path(path) / FILE).is_file():
        target = _legacy_tree(path)["target"]
        return {name: tuple(np.shape(leaf)) for name, leaf in _flat_specifications(target)}
    tree = _orbax_metadata(path)
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree["target"])}


def read(path: str) -> Weights:
    """The checkpoint in directory `path`, with whatever second moments it has.

    Raises UserError if it is not one, damaged, or no T5.
    """
    if (storage.path(path) / FILE).is_file():
        step, target, states = _read_legacy(path)
    else:
        step, target, states = _read_orbax(path)
    if any(re.match(r"(encoder|decoder)/(encoder|decoder|layers)/", p) for p, _ in flatten(target)):
        raise UserError(
            f"{path} is a checkpoint of T5X's scanned layers (scalable_t5), which cannot be read; "
            "expected one of its unrolled T5"
        )
    params = unflatten({p: as_float32(p, leaf, path) for p, leaf in flatten(target)})
    config = architecture(shapes_of(params), path)
    slots = {p: np.asarray(leaf) for p, leaf in flatten(states)}
    used = {p: leaf.astype(np.float32) for p, leaf in slots.items() if leaf.shape != (1,)}
    moments = {p: leaf for p, leaf in used.items() if p.endswith(SECOND_MOMENTS)}
    left_out = ("Adafactor's momentum, which is not used here",) if len(moments) < len(used) else ()
    return Weights(config, params, step, unflatten(moments) or None, left_out=left_out)


def _legacy_tree(path: str) -> Tree:
    """{"state", "target"} with specifications in place of large arrays."""
    try:
        tree = flax.serialization.msgpack_restore((storage.path(path) / FILE).read_bytes())
    except OSError as error:
        raise UserError(f"{path}/{FILE} cannot be read: {error.strerror}") from None
    except Exception as error:  # msgpack raises many kinds for damaged bytes
        raise UserError(f"{path}/{FILE} is no whole msgpack file: {first_line(error)}") from None
    optimizer = tree.get("optimizer") if isinstance(tree, Mapping) else None
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("target"), Mapping):
        raise UserError(f"{path}/{FILE} is no checkpoint of T5X: it has no optimizer/target")
    return dict(optimizer)


def _flat_specifications(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`flatten`, with an array of no bytes for each specification."""
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if not isinstance(value, Mapping):
            yield name, value
        elif "kvstore" in value or "base" in value:
            shape = value.get("base", value).get("metadata", {}).get("shape", ())
            yield name, np.broadcast_to(np.float32(0), shape)
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


def _orbax_metadata(path: str) -> Tree:
    """The tree of an Orbax checkpoint, with what has a shape for leaves."""
    import orbax.checkpoint as ocp
    from etils import epath

    item = epath.Path(storage.absolute(path)) / ITEM
    if not (item / "_METADATA").is_file():
        raise UserError(f"{path} is no checkpoint of T5X: it has neither {FILE} nor {ITEM}/")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(item).item_metadata.tree
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    if not isinstance(tree, Mapping) or not isinstance(tree.get("target"), Mapping):
        raise UserError(f"{path}/{ITEM} is no checkpoint of T5X: it has no target")
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
