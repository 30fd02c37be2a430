"""Checkpoints of a run with Orbax, and where a run starts from."""

import errno
import os
import re
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from t5scaling import records, storage
from t5scaling.errors import UserError, first_line
from t5scaling.interop import huggingface, t5x, weights
from t5scaling.model import stacking
from t5scaling.training import agreement, digests, distributed

# What a disk does to a file that is written.
_OF_DISKS = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG,
    errno.ESTALE,
)  # fmt: skip
PREFIX = "checkpoint"  # directories are named checkpoint_<step>, as T5X's


def is_run(model_dir: str) -> bool:
    """Whether this is a run directory of this program."""
    return (storage.path(model_dir) / records.CHECKPOINTS).is_dir()


def choose(
    model_dir: str, steps: Sequence[int] | str, of_t5x: bool = False
) -> list[tuple[int, str]]:
    """(step, path) of the checkpoints of a run, which may still be training.

    `steps`: "last", "all", or a list. `of_t5x`: whether `model_dir` may be a model directory of
    T5X, or one of its checkpoints. Raises UserError if there is no run or no such step.
    """
    storage.check_fit(model_dir, "MODEL_DIR")
    folder = storage.path(model_dir) / records.CHECKPOINTS
    if is_run(model_dir):
        paths = {
            int(name[1]): str(path)
            for path in folder.iterdir()
            if (name := re.fullmatch(rf"{PREFIX}_(\d+)", path.name)) and _is_whole(path)
        }
        if not paths:
            raise UserError(f"{model_dir} has no checkpoint yet")
    else:
        paths = t5x.checkpoints(model_dir) if of_t5x else {}
        if not paths:
            raise UserError(_no_run(model_dir, of_t5x))
    there = sorted(paths)
    if isinstance(steps, str) and steps not in ("last", "all"):
        raise UserError(f"steps is {steps!r}; expected 'last', 'all' or a list of steps")
    wanted = there[-1:] if steps == "last" else there if steps == "all" else list(steps)
    for step in wanted:
        if step not in there:
            raise UserError(
                f"{model_dir} has no checkpoint of step {step}; there: {', '.join(map(str, there))}"
            )
    return [(step, paths[step]) for step in wanted]


def _no_run(model_dir: str, of_t5x: bool) -> str:
    message = f"{model_dir} is not a run directory: it has no checkpoints"
    if of_t5x:
        message += ", of this program or of T5X"
    return f"{message}; {_what_there_is(model_dir)}"


def _what_there_is(path: str) -> str:
    folder = storage.path(path)
    if not folder.is_dir():
        return f"{path} is a file" if folder.exists() else f"there is no {path}"
    if huggingface.is_checkpoint(path):
        return "it is a model of Hugging Face: run.py convert makes a run directory of it"
    names = sorted(child.name for child in folder.iterdir())
    return f"there: {', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}"


def newest_step(model_dir: str) -> int:
    """The step of the newest checkpoint of a run, 0 without one."""
    try:
        return choose(model_dir, "last")[0][0]
    except UserError:
        return 0


class Checkpoints:
    """The checkpoints `<model_dir>/checkpoints/checkpoint_<step>` of one run.

    Named steps are kept for ever; of all others the latest two, so that a damaged last one
    leaves one to go back to. A save interrupted by a kill leaves only what does not count as a
    checkpoint: a temporary directory or, in a bucket, objects without commit_success.txt. It is
    cleared here.
    """

    def __init__(self, model_dir: str, named_steps: Sequence[int] = ()):
        self.directory = epath.Path(storage.absolute(model_dir)) / records.CHECKPOINTS
        self._saving: int | None = None  # the step that is being written in the background
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                step_prefix=PREFIX,
                cleanup_tmp_directories=True,
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [
                        preservation_policy.LatestN(2),
                        preservation_policy.CustomSteps(list(named_steps)),
                    ]
                ),
            ),
        )

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any) -> None:
        """Copies `state` to the host and writes it in the background. Does nothing if `step` is
        there already. Raises UserError if it, or the one before, cannot be written; earlier
        checkpoints stay whole."""
        if step in self._manager.all_steps():
            return
        self.wait()  # the one before still takes its room
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        # (no directory: it is still to be made, or a bucket, which is never full)
        if os.path.isdir(self.directory) and shutil.disk_usage(self.directory).free < needed:
            raise _not_saved(self.directory, "disk full")
        with _disk_errors(self.directory):
            self._manager.save(step, args=ocp.args.StandardSave(state))
        self._saving = step

    def check(self) -> None:
        """Raises UserError if the save in the background has failed; does not wait for it."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def delete_all_but(self, steps: Sequence[int]) -> None:
        """Removes checkpoints that are no longer kept; to be called by the first process of a
        job."""
        for step in self.steps():
            if step not in steps:
                self._folder(step).rmtree()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk. Raises UserError as `save`."""
        with _disk_errors(self.directory):
            self._manager.wait_until_finished()
            saved, self._saving = self._saving, None
            if distributed.is_main():
                if saved is not None and not self._is_there(saved):
                    raise _not_saved(self.directory, f"step {saved} was not written")
                for step in self.steps():
                    digests.write(self._folder(step))

    def _is_there(self, step: int) -> bool:
        return self._folder(step).exists() and _is_whole(self._folder(step))

    def _folder(self, step: int) -> epath.Path:
        return self.directory / f"{PREFIX}_{step}"

    def restore_latest(self, abstract_state: Any) -> Any | None:
        """The newest readable state, laid out as `abstract_state`; None if nothing was ever saved.

        A checkpoint that cannot be read is set aside as `broken-checkpoint_<step>`, with a warning,
        and the one before is taken. Raises UserError if there are some but none can be read, or if
        they hold another model.
        """
        ever_saved = bool(self.steps())
        while True:
            if distributed.is_main():
                self._set_aside_damaged()
            distributed.wait_for_all("damaged checkpoints are set aside")
            self._manager.reload()
            agreement.check({f"checkpoint in {self.directory}": list(map(str, self.steps()))})
            if not self.steps():
                break
            step = self.steps()[-1]
            folder = self._folder(step)
            try:
                # Each is read by itself: the manager would look at the others too, and take what is
                # wrong with one of them for a fault of this one.
                difference = first_difference(_stored(folder / "default"), abstract_state)
                if difference is None:
                    return _restore(folder / "default", abstract_state)
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
                if jax.process_count() > 1:  # others may be waiting inside the restore
                    raise UserError(
                        f"checkpoint {folder} cannot be read ({first_line(error)}); "
                        "delete it to go back to the one before"
                    ) from error
                self._set_aside(step, error)
            else:
                raise UserError(
                    f"{folder} holds another model: {difference}; choose another MODEL_DIR"
                )
        if ever_saved:
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read: they are set aside as "
                f"broken-{PREFIX}_*; the same command, given again, starts the run from its "
                "beginning"
            )
        return None

    def _set_aside_damaged(self) -> None:
        """Raises one clear error for a damaged checkpoint: Orbax does not notice most damage, and
        reports the rest by a page of errors for each file."""
        for step in reversed(self.steps()):
            try:
                digests.check(self._folder(step))
                return
            except (ValueError, OSError) as error:
                self._set_aside(step, error)

    def _set_aside(self, step: int, error: Exception) -> None:
        print(
            f"warning: checkpoint {self._folder(step)} cannot be read "
            f"({first_line(error)}); set aside, going back to the one before",
            flush=True,
        )
        broken = self.directory / f"broken-{PREFIX}_{step}"
        if broken.exists():
            broken.rmtree()
        self._folder(step).rename(broken)

    def close(self) -> None:
        with _disk_errors(self.directory):
            self._manager.close()


def _restore_from_t5x(path: str, abstract_params: Any) -> Any:
    """The parameters of a checkpoint of T5X, each laid out as `abstract_params` says."""
    found = dict(weights.flatten(t5x.read(path).params))

    def one(key_path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = "/".join(key.key for key in key_path)
        stack, stacked, rest = name.partition(f"/{stacking.STACKED}/")
        if stacked:
            layers = [f"{stack}/{stacking.STACKED}_{i}/{rest}" for i in range(leaf.shape[0])]
            values = np.stack([found[layer] for layer in layers])
        else:
            values = found[name]
        values = values.astype(leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda at: values[at])

    return jax.tree.map_with_path(one, abstract_params)


def check_params(path: str, abstract_params: Any) -> None:
    """Raises UserError as `restore_params` would, from the checkpoint's metadata: it reads no
    array."""
    _find_params(path, abstract_params)


def restore_state(path: str, abstract_state: Any) -> Any:
    """A whole state from a checkpoint directory `.../checkpoint_<step>`, laid out as
    `abstract_state`.

    Raises UserError if it is missing, damaged or of another model.
    """
    directory = epath.Path(storage.absolute(path))
    try:
        digests.check(directory)
        difference = first_difference(_stored(directory / "default"), abstract_state)
        if difference is None:
            return _restore(directory / "default", abstract_state)
    except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
        raise _cannot_start(path, error) from error
    raise UserError(f"{path} holds another model: {difference}")


def restore_params(path: str, abstract_params: Any) -> Any:
    """The parameters alone from a checkpoint directory `.../checkpoint_<step>`.

    Layers are stacked, or unstacked, where the checkpoint has them the other way. A checkpoint of
    T5X is taken as it is.
    Raises UserError if it is missing, damaged or of another model.
    """
    directory, stored = _find_params(path, abstract_params)
    if t5x.is_checkpoint(path):
        return _restore_from_t5x(path, abstract_params)
    stacked, want_stacked = stacking.are_stacked(stored), stacking.are_stacked(abstract_params)
    error = None
    if distributed.is_main():  # which checks it for all
        try:
            digests.check(directory)
        except (ValueError, OSError) as problem:
            error = problem
    if distributed.largest(int(error is not None)) != (0,):
        raise _cannot_start(path, error or ValueError("process 0 reports the reason")) from error
    try:
        if stacked == want_stacked:
            return _restore(directory / "default", {"params": abstract_params}, True)["params"]
        change = stacking.stack_layers if want_stacked else stacking.unstack_layers
        as_stored = stacking.abstract_of_other_layout(abstract_params)
        params = _restore(directory / "default", {"params": as_stored}, True)["params"]
    except Exception as error:
        raise _cannot_start(path, error) from error
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_params)
    return jax.jit(change, out_shardings=shardings)(params)


def _find_params(path: str, abstract_params: Any) -> tuple[epath.Path, Any]:
    """The checkpoint's folder, and the shapes of the parameters in it."""
    directory = epath.Path(storage.absolute(path))
    if not (directory.exists() and _is_whole(directory)):
        there = sorted(p.name for p in directory.parent.glob(f"{PREFIX}_*") if _is_whole(p))
        raise UserError(f"no checkpoint at {path}; there: {', '.join(there) if there else 'none'}")
    of_t5x = t5x.is_checkpoint(path)
    if not (of_t5x or (directory / "default").exists()):
        raise UserError(
            f"{path} is a checkpoint neither of this program nor of T5X; {_what_there_is(path)}"
        )
    try:
        if of_t5x:
            shapes = t5x.shapes(path)
            stored = weights.unflatten(
                {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
            )
        else:
            stored = _stored(directory / "default")["params"]
        per_layer = _per_layer(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise _cannot_start(path, error) from error
    difference = first_difference(per_layer, _per_layer(abstract_params))
    if difference:
        raise UserError(f"{path} holds another model: {difference}")
    return directory, stored


def _cannot_start(path: str, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint {path} is damaged ({first_line(error)}); choose another one, or have its "
        "run make it again"
    )


def first_difference(stored: Any, wanted: Any) -> str | None:
    """The first array that a checkpoint and a model do not have alike, in words; None if none.

    Both are trees of what has a shape.
    """
    there, here = _shapes(stored), _shapes(wanted)
    names = there.keys() | here.keys()
    for name in sorted(names, key=lambda name: (not name.startswith("params"), name)):
        if name not in there:
            return f"it has no {name}, which this model has with the shape {here[name]}"
        if name not in here:
            return f"it has {name} with the shape {there[name]}, which this model does not have"
        if there[name] != here[name]:
            return f"its {name} has the shape {there[name]}, this model's {here[name]}"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path of each array, such as encoder/encoder_norm/scale, -> its shape."""
    return {
        "/".join(str(getattr(key, "key", getattr(key, "name", None))) for key in path): tuple(
            leaf.shape
        )
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _per_layer(params: Any) -> Any:
    """Shapes of parameters in the layout that has a sub-tree for each layer."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    stacked = stacking.are_stacked(shapes)
    return jax.eval_shape(stacking.unstack_layers, shapes) if stacked else shapes


def _stored(item: epath.Path) -> dict[str, Any]:
    """The tree of shapes that a checkpoint says it holds. Raises ValueError if it is damaged."""
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(item).item_metadata.tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise ValueError("it does not say what arrays it holds") from error


def _restore(item: epath.Path, abstract: Any, partial: bool = False) -> Any:
    """The arrays of `abstract`, laid out as it says; with `partial` the checkpoint has more."""
    restore_args = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
        ),
        abstract,
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            item,
            args=ocp.args.PyTreeRestore(
                item=abstract, restore_args=restore_args, partial_restore=partial
            ),
        )


class _disk_errors:
    """Turns an error while a checkpoint is written into one line with the reason."""

    def __init__(self, directory: Any):
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            text = str(error)
            if "RESOURCE_EXHAUSTED" in text or "ENOSPC" in text:
                raise _not_saved(self._directory, "disk full") from error
            number = getattr(error, "errno", None)
            for of_disk in _OF_DISKS:  # TensorStore has only the words
                if number == of_disk or os.strerror(of_disk) in text:
                    full = of_disk == errno.ENOSPC
                    reason = "disk full" if full else os.strerror(of_disk)
                    raise _not_saved(self._directory, reason) from error


def _not_saved(directory: Any, reason: str) -> UserError:
    mend = "free some space" if reason == "disk full" else "mend that"
    return UserError(
        f"{reason} while saving to {directory}; {mend} and run the same command again: it goes on "
        "from the last whole checkpoint"
    )


def _is_whole(path: storage.AnyPath) -> bool:
    """Orbax gives a checkpoint its name when it is whole; in a bucket, where nothing is renamed,
    its objects have their names from the start and a last one says so, or T5X's older file."""
    last = (path / "commit_success.txt", path / t5x.FILE)
    return not storage.in_bucket(path) or any(map(storage.exists, last))
