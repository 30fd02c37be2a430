"""A record of what a run started from, so that it never goes on from anything else.

`start.json` in a run's directory holds

- `checkpoint`: the checkpoint's path relative to the run's directory (so that a study may move), or
  null for a start from scratch;
- `files`: one digest of that checkpoint's files, null where it has none;
- `parameters`: a fingerprint of the parameters that it gave. A pretraining that was done again has
  other files, but the same parameters.
"""

import hashlib
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5scaling import records, storage
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.training import checkpoint, digests, run_directory, sharding
from t5scaling.training import step as step_lib

_FIELDS: records.Fields = {
    "checkpoint": records.TEXT_OR_NULL, "files": records.TEXT_OR_NULL, "parameters": records.TEXT,
}  # fmt: skip


def note(model_dir: str, path: str | None, sums: dict[str, tuple[int, int]]) -> None:
    """Writes start.json; `sums` are the `sums_of` the parameters at step 0."""
    record = {"checkpoint": None, "files": None, "parameters": _fingerprint(sums)}
    if path:
        record["checkpoint"] = _seen_from(model_dir, path)
        record["files"] = digests.checkpoint_digest(storage.path(path))
    run_directory.write_json(os.path.join(model_dir, records.START), record)


def check(
    model_dir: str, path: str | None, model: network.T5Config, layout: sharding.Layout
) -> None:
    """Raises UserError if the run there did not start from the checkpoint `path`, or from scratch
    for None.

    A checkpoint that has been deleted since is compared by its name alone. Parameters are read only
    where neither the name nor the files say that it is the one.
    """
    record = records.read_object(os.path.join(model_dir, records.START), _FIELDS)
    if record is None:
        return  # it had not started
    before = record["checkpoint"]
    if not path and not before:
        return
    if not path or not before:
        raise _other(model_dir, before, path)
    folder = storage.path(path)
    if not folder.is_dir() and _seen_from(model_dir, path) == before:
        return
    with_digests = folder.is_dir() and (folder / digests.FILE).exists()
    if with_digests and _files(folder) == record["files"]:
        return
    params = checkpoint.restore_params(path, step_lib.abstract_params(model, layout))
    if _fingerprint(sums_of(params)) != record["parameters"]:
        raise _other(model_dir, before, path)


def _files(folder: storage.AnyPath) -> str | None:
    try:
        return digests.checkpoint_digest(folder)
    except ValueError:
        return None  # reading it will say so


def _other(model_dir: str, before: str | None, path: str | None) -> UserError:
    started = "from scratch" if before is None else f"from {before} (relative to it)"
    now = "nothing" if not path else f"{path}, which is another checkpoint"
    return UserError(
        f"the run in {model_dir} started {started}, now INITIAL_CHECKPOINT_PATH is {now}; "
        "choose another MODEL_DIR"
    )


def _seen_from(model_dir: str, path: str) -> str:
    if storage.in_bucket(path) or storage.in_bucket(model_dir):
        there, here = storage.absolute(path), storage.absolute(model_dir)
        common = os.path.commonpath([there, here]) if there[:5] == here[:5] else ""
        if common in ("", "gs:"):
            return there
        return os.path.relpath(there, here)
    return os.path.relpath(path, model_dir)


def sums_of(params: Any) -> dict[str, tuple[int, int]]:
    """Path of each array of parameters -> two sums over its bits and their places, which differ
    for arrays that differ. They are exact, however the arrays are split over devices."""
    sums = jax.device_get(_sums(params))
    names = jax.tree.leaves_with_path(sums, is_leaf=lambda leaf: isinstance(leaf, tuple))
    return {jax.tree_util.keystr(name): (int(a), int(b)) for name, (a, b) in names}


@jax.jit
def _sums(params: Any) -> Any:
    def one(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
        place = jnp.zeros(values.shape, jnp.uint32)
        for axis, stride in enumerate(np.cumprod([1, *values.shape[:0:-1]])[::-1]):
            along = jax.lax.broadcasted_iota(jnp.uint32, values.shape, axis)
            place += along * jnp.uint32(stride % 2**32)
        mixed = (bits ^ (bits >> 15)) * (place * jnp.uint32(0x9E3779B2) | 1)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32), jnp.sum(mixed, dtype=jnp.uint32)

    return jax.tree.map(one, params)


def _fingerprint(sums: dict[str, tuple[int, int]]) -> str:
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
