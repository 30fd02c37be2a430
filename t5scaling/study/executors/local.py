"""The local executor: one run after the other in this process.

Runs of one shape share their compilation, and nothing is imported twice. The jobs of the other
executors do their runs by it too (`work`).
"""

import contextlib
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import jax

from t5scaling import config, records, storage
from t5scaling.errors import Stopped, UserError, nearest
from t5scaling.study import t5x
from t5scaling.study.display import Display
from t5scaling.study.executors import State
from t5scaling.study.expand import Run, data_specs
from t5scaling.training import (
    agreement,
    checkpoint,
    checks,
    claim,
    distributed,
    loop,
    run_directory,
    tracker,
)


class Watcher(Protocol):
    """Follows the runs, to show them."""

    def start(self, run: Run) -> None: ...
    def progress(self, done: int, total: int, note: str) -> None: ...
    def finish(self, run: Run) -> None: ...
    def fail(self, run: Run, reason: str) -> None: ...
    def leave(self, run: Run, reason: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class Local:
    """Does runs immediately, in this process."""

    watch: Watcher | None = None
    orders_jobs: ClassVar[bool] = True

    def submit(self, study_dir: str, runs: Sequence[Run], after: Sequence[str]) -> list[str]:
        """Returns when each run is done, has failed, or was found not ready or taken.

        Raises Stopped; the run in progress is saved.
        """
        for run in runs:
            if _all_agree(distributed.is_main() and _is_ready(run, study_dir)):
                self._do(run)
        return [""] * len(runs)

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        return dict.fromkeys(jobs, "gone")

    def cancel(self, jobs: Collection[str]) -> None:
        """Does nothing: a local run is over when `submit` returns."""

    def _do(self, run: Run) -> None:
        if self.watch:
            self.watch.start(run)
        try:
            text = config.load(run.gin_files, run.bindings)
            train(text, run.record, self.watch.progress if self.watch else None)
        except Stopped:
            raise
        except claim.Taken as taken:
            if self.watch:
                self.watch.leave(run, str(taken))
        except Exception as error:  # one run's failure must not stop the others
            if jax.process_count() > 1:
                raise  # the processes of a job must stay together
            if self.watch:
                self.watch.fail(run, str(error) or type(error).__name__)
        else:
            if self.watch:
                self.watch.finish(run)


def work(study_dir: str, run_ids: Sequence[str]) -> list[str]:
    """Does these runs of a study by the configurations in their directories: what the job of an
    engine calls.

    Returns the ids of those that are not done. Raises UserError for an unknown run.
    """
    runs = [_from_directory(study_dir, run_id) for run_id in run_ids]
    if any(run.record.get("trainer") == "t5x" for run in runs):
        t5x.leave_the_devices()
    if distributed.is_main():  # a job before this one may have died on its machine
        claim.watch(run.directory for run in runs if not records.is_done(run.directory))
    with Display(os.path.basename(os.path.normpath(study_dir)), runs) as display:
        Local(display).submit(study_dir, runs, ())
    return [run.id for run in runs if not records.is_done(run.directory)]


def train(
    config_text: str,
    record: Mapping[str, Any] | None = None,
    progress: tracker.Progress | None = None,
) -> None:
    """Does the training run whose gin configuration is loaded, or goes on with it.

    The run directory gets config.gin and `record`, at the end DONE, or FAILED with the reason.

    Args:
        config_text: what `config.load` returned.
        record: the run's place in a study.
        progress: as for `loop.train`.

    Raises:
        claim.Taken: another process is at work on it.
        Whatever stops it: UserError, Stopped, or an unexpected error.
    """
    config.require(loop.train)
    arguments = config.bindings_of(loop.train)
    by_t5x = t5x.asked_for()
    if by_t5x:
        t5x.leave_the_devices()
    model_dir = arguments["model_dir"]
    storage.check_fit(model_dir, "MODEL_DIR")
    if arguments.get("initial_checkpoint_path"):
        storage.check_fit(arguments["initial_checkpoint_path"], "INITIAL_CHECKPOINT_PATH")
    if distributed.is_main():
        run_directory.refuse_changed(model_dir, config_text, may_grow=record is None)
    agreement.check(
        {
            "setting": config_text,
            f"newest checkpoint in {model_dir}": str(checkpoint.newest_step(model_dir)),
            f"number of steps done in {model_dir}": str(records.steps_done(model_dir)),
        }
    )
    try:
        (t5x.check_settings if by_t5x else checks.check_settings)(**arguments)
        # All the run's examples in one child process, and every mistake in them before the first
        # step.
        agreement.ready_examples(data_specs(arguments), arguments["examples_root"])
    except UserError as error:
        # (a mistake of somebody who starts one run leaves no directory)
        if record is not None and distributed.is_main():
            storage.make_folder(model_dir)
            run_directory.fail(model_dir, error)
        raise
    if not distributed.is_main():  # the first process alone writes
        config.call(loop.train, progress=progress)
        return
    with claim.hold(model_dir, step=checkpoint.newest_step(model_dir)):
        run_directory.begin(model_dir, config_text, record)
        try:
            if by_t5x:
                t5x.train(by_t5x, **arguments, progress=progress)
            else:
                config.call(loop.train, progress=progress)
        except Stopped:
            raise
        except Exception as error:
            with contextlib.suppress(UserError):  # a full disk: the error itself says so
                run_directory.fail(model_dir, error)
            raise


def lost_checkpoint(run: Run) -> str:
    """What to do if a run's pretraining is done but the checkpoint to start from is gone; "" if it
    is there, or if the run has its own to go on from."""
    path = run.bindings.get("INITIAL_CHECKPOINT_PATH")
    if not path or storage.path(path).exists() or checkpoint.newest_step(run.directory):
        return ""
    pretraining = storage.path(path).parent.parent
    return (
        f"{path} is gone, though its run is done: delete the folder {pretraining} and start the "
        "study again, which then does that run again"
    )


def _is_ready(run: Run, study_dir: str) -> bool:
    """Whether the run is not done, can be done now, and is done by no other process."""
    needed = [records.run_folder(study_dir, needed) for needed in run.needs]
    if records.is_done(run.directory) or not all(map(records.is_done, needed)):
        return False
    last = claim.latest(run.directory)
    if last and last.alive:
        return False
    if lost_checkpoint(run):  # no failure of this run's, which will go on by itself
        return False
    if last and last.beat and last.job and last.step == checkpoint.newest_step(run.directory):
        # Killed by hand a run may be any number of times; an engine's job that dies before it has
        # saved anything new may well do so for ever.
        died = UserError(f"{last} ended without an error message, and had saved nothing new")
        run_directory.fail(run.directory, died)
    return not records.is_parked(records.failure(run.directory))


def _all_agree(first_says: bool) -> bool:
    """The answer of the first process of the job, in every process; the others pass False."""
    return bool(distributed.largest(int(first_says))[0])


def _from_directory(study_dir: str, run_id: str) -> Run:
    folder = records.run_folder(study_dir, run_id)
    record = records.run_record(folder)
    if record is None:
        study = records.study_list(study_dir)
        known = study["runs"] if study else []
        if run_id in known:
            raise UserError(
                f"{study_dir}: {run_id} is not prepared; `run.py study` does it, or has an "
                "executor do it"
            )
        raise UserError(f"{study_dir}: no run {run_id!r} here{nearest(run_id, known)}")
    return Run(
        id=run_id,
        gin_files=(os.path.join(folder, records.CONFIG),),
        bindings={"MODEL_DIR": folder},
        needs=tuple(record.get("needs", ())),
        record=record,
        positions=record["steps"],
    )
