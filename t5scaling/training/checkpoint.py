"""Checkpoints of a run with Orbax, and where a run starts from."""

import json
import os
import re
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from t5scaling import storage
from t5scaling.errors import UserError
from t5scaling.training import distributed

PREFIX = "checkpoint"  # directories are named checkpoint_<step>, as T5X's
SIZES = "sizes.json"


def choose(model_dir: str, steps: Sequence[int] | str) -> list[tuple[int, str]]:
    """(step, path) of the checkpoints of a run, which may still be training.

    `steps`: "last", "all", or a list. Raises UserError if there is no run or no such step.
    """
    folder = storage.path(model_dir) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{model_dir} is no run directory: it has no checkpoints")
    there = sorted(
        int(name[1])
        for path in folder.iterdir()
        if (name := re.fullmatch(rf"{PREFIX}_(\d+)", path.name)) and _is_whole(path)
    )
    if not there:
        raise UserError(f"{model_dir} has no checkpoint yet")
    if isinstance(steps, str) and steps not in ("last", "all"):
        raise UserError(f"steps is {steps!r}; expected 'last', 'all' or a list of steps")
    wanted = there[-1:] if steps == "last" else there if steps == "all" else list(steps)
    for step in wanted:
        if step not in there:
            raise UserError(
                f"{model_dir} has no checkpoint of step {step}; there: {', '.join(map(str, there))}"
            )
    return [(step, str(folder / f"{PREFIX}_{step}")) for step in wanted]


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
        self.directory = epath.Path(storage.absolute(model_dir)) / "checkpoints"
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
        there already. Raises UserError if the disk is full; earlier checkpoints stay whole."""
        if step in self._manager.all_steps():
            return
        self.wait()  # the one before still takes its room
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        # (no directory: it is still to be made, or a bucket, which is never full)
        if os.path.isdir(self.directory) and shutil.disk_usage(self.directory).free < needed:
            raise _disk_full(self.directory)
        with _disk_errors(self.directory):
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def delete_all_but(self, steps: Sequence[int]) -> None:
        """Removes what nobody wants any more; for the first process of a job."""
        for step in self.steps():
            if step not in steps:
                self._folder(step).rmtree()

    def wait(self) -> None:
        """Returns when everything saved so far is on disk."""
        with _disk_errors(self.directory):
            self._manager.wait_until_finished()
            if distributed.is_main():
                for step in self.steps():
                    _write_sizes(self._folder(step))

    def _folder(self, step: int) -> epath.Path:
        return self.directory / f"{PREFIX}_{step}"

    def restore_latest(self, abstract_state: Any) -> Any | None:
        """The newest readable state, laid out as `abstract_state`; None if nothing was ever saved.

        A checkpoint that cannot be read is set aside as `broken-checkpoint_<step>`, which is said,
        and the one before is taken. Raises UserError if there are some but none can be read.
        """
        steps = self.steps()
        if distributed.is_main():
            self._set_aside_truncated(steps)
        distributed.wait_for_all("truncated checkpoints are set aside")
        self._manager.reload()
        for step in reversed(self.steps()):
            try:
                return self._manager.restore(step, args=ocp.args.StandardRestore(abstract_state))
            except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file
                if _wrong_shape(error):
                    raise UserError(
                        f"{self._folder(step)} holds another model: "
                        f"{_first_line(error)}; choose another MODEL_DIR"
                    ) from error
                if jax.process_count() > 1:  # others may be waiting inside the restore
                    raise UserError(
                        f"checkpoint {self._folder(step)} cannot be read ({_first_line(error)}); "
                        "delete it to go back to the one before"
                    ) from error
                self._set_aside(step, error)
                self._manager.reload()
        if steps:
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read; "
                "delete the run's directory to start it again"
            )
        return None

    def _set_aside_truncated(self, steps: Sequence[int]) -> None:
        """Orbax would find them out as well, with a page of errors for every file."""
        for step in reversed(steps):
            try:
                _check_sizes(self._folder(step))
                return
            except (ValueError, OSError) as error:
                self._set_aside(step, error)

    def _set_aside(self, step: int, error: Exception) -> None:
        print(
            f"warning: checkpoint {self._folder(step)} cannot be read "
            f"({_first_line(error)}); set aside, going back to the one before",
            flush=True,
        )
        broken = self.directory / f"broken-{PREFIX}_{step}"
        if broken.exists():
            broken.rmtree()
        self._folder(step).rename(broken)

    def close(self) -> None:
        with _disk_errors(self.directory):
            self._manager.close()


def restore_params(path: str, abstract_params: Any) -> Any:
    """The parameters alone from a checkpoint directory `.../checkpoint_<step>`.

    Raises UserError if it is missing, damaged or of another model.
    """
    directory = epath.Path(storage.absolute(path))
    item = directory / "default"
    if not (item.exists() and _is_whole(directory)):
        there = sorted(p.name for p in directory.parent.glob(f"{PREFIX}_*") if _is_whole(p))
        raise UserError(f"no checkpoint at {path}; there: {', '.join(there) if there else 'none'}")
    restore_args = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
        ),
        {"params": abstract_params},
    )
    try:
        _check_sizes(directory)
        with ocp.PyTreeCheckpointer() as checkpointer:
            restored = checkpointer.restore(
                item,
                args=ocp.args.PyTreeRestore(
                    item={"params": abstract_params},
                    restore_args=restore_args,
                    partial_restore=True,
                ),
            )
    except Exception as error:
        raise UserError(
            f"cannot start from {path}: {_first_line(error)}; is it of the same model, and whole?"
        ) from error
    return restored["params"]


class _disk_errors:
    """Says in one line that the disk is full, however deep the error comes from."""

    def __init__(self, directory: Any):
        self._directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None and not isinstance(error, UserError):
            text = str(error)
            if "No space left" in text or "RESOURCE_EXHAUSTED" in text or "ENOSPC" in text:
                raise _disk_full(self._directory) from error


def _disk_full(directory: Any) -> UserError:
    return UserError(
        f"disk full while saving to {directory}; free some space and run the same command again: "
        "it goes on from the last whole checkpoint"
    )


def _write_sizes(folder: epath.Path) -> None:
    """Notes the size of every file of a whole checkpoint, in `sizes.json` beside them."""
    path = folder / SIZES
    if not path.exists():
        storage.write(path, json.dumps(_sizes(folder), indent=1, sort_keys=True) + "\n")


def _check_sizes(folder: epath.Path) -> None:
    """Raises ValueError if a file is missing or has another size than when it was saved."""
    path = folder / SIZES
    if not path.exists():  # killed right after the save
        return
    there = _sizes(folder)
    for name, size in json.loads(path.read_text()).items():
        if there.get(name) != size:
            raise ValueError(f"{name} has {there.get(name, 0):,} bytes instead of {size:,}")


def _sizes(folder: epath.Path) -> dict[str, int]:
    """Path within the checkpoint -> bytes, of every file but `sizes.json`."""
    there = storage.sizes(folder)
    return {name: size for name, size in there.items() if not name.startswith(SIZES)}


def _is_whole(path: storage.AnyPath) -> bool:
    """Orbax gives a checkpoint its name when it is whole; in a bucket, where nothing is renamed,
    its objects have their names from the start and a last one says so."""
    return not storage.in_bucket(path) or (path / "commit_success.txt").exists()


def _wrong_shape(error: Exception) -> bool:
    text = _first_line(error)  # further lines may quote a specification of the array
    return isinstance(error, ValueError) and ("shape" in text or "structure" in text)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
