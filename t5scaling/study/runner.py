"""Does what is left of a study. Its only memory is the run directories, so it can be killed and
started again at any time.

A run is over when it is DONE with unchanged settings. One that fails leaves FAILED with the reason
and does not stop the others; those that need it wait. It is tried again, at the next launch if the
reason is a mistake in its settings, and parked when it has failed three times.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from t5scaling import config, records, storage, values
from t5scaling.data.examples import find_all_examples
from t5scaling.errors import UserError
from t5scaling.study import expand, t5x
from t5scaling.study.display import Display
from t5scaling.study.executors import Executor, local
from t5scaling.study.study import Study, parts_of
from t5scaling.training import claim, loop, run_directory


def run_study(
    *,
    study: Study | Sequence[Study],
    study_dir: values.Path,
    examples_root: values.Path,
    executor: Executor | None = None,
    detach: bool = False,
    poll_seconds: values.PositiveNumber = 10.0,
) -> list[str]:
    """Does all runs of `study` that are not done yet, in `<study_dir>/runs`.

    Any number of processes may do so at once: each run is claimed by the one that does it.

    Args:
        study: the grid, or grids of one name.
        study_dir: where runs, results and report go.
        examples_root: where materialised examples live; may be shared by studies.
        executor: who does them; None: this process, one after the other.
        detach: do not wait for an engine's jobs.
        poll_seconds: between two looks at runs that are done elsewhere.

    Returns:
        The ids of the runs that failed or had to wait for a failed one.

    Raises:
        UserError: a grid that the data cannot serve, or settings that changed since a run was made.
        Stopped: SIGTERM or SIGINT; the run in progress is saved, and an engine's jobs go on.
    """
    name = parts_of(study)[0].name
    if any(part.trainer_gin for part in parts_of(study)):
        t5x.leave_the_devices()  # before anything here takes one
    storage.check_fit(study_dir, "STUDY_DIR")
    configured = config.text()  # before the runs load configurations of their own
    storage.make_folder(study_dir)
    runs = expand.expand(study, study_dir, examples_root)
    _refuse_changed(runs)
    _write_list(study_dir, name, runs)
    storage.write(os.path.join(study_dir, records.STUDY_CONFIG), configured)
    with Display(name, runs) as display:
        if executor is None or isinstance(executor, local.Local):
            executor = local.Local(watch=display)
        launch = _Launch(study_dir, runs, executor, display)
        try:
            while (left := launch.go_on()) and not detach:
                if left == "elsewhere":
                    time.sleep(poll_seconds)
        except KeyboardInterrupt:
            jobs = launch.jobs()
            if jobs:
                display.say(f"{len(jobs)} jobs go on; the same command watches them, with --cancel "
                            "it ends them")  # fmt: skip
            raise
        if detach:
            display.say(f"{len(launch.jobs())} jobs are with the engine; run.py status {study_dir}")
        else:
            display.summary(launch.given_up)
    return list(launch.given_up)


def cancel(
    *, study: Study | Sequence[Study], study_dir: str, executor: Executor | None = None, **_: object
) -> None:
    """Ends the engine's jobs for the runs of a study."""
    if executor is None:
        raise UserError("--cancel is for an engine's jobs, and no executor is given")
    listed = records.study_list(study_dir) or {"runs": []}
    folders = [records.run_folder(study_dir, run_id) for run_id in listed["runs"]]
    jobs = [job for job in storage.at_once(records.job, folders) if job]
    alive = [job for job, state in executor.states(jobs).items() if state != "gone"]
    executor.cancel(alive)
    print(f"{len(alive)} jobs cancelled")


def materialize(beam: str | None = None) -> None:
    """Writes the examples that the loaded gin configuration, of a study or of a run, asks for.

    With `beam`, Apache Beam's pipeline options, on Beam; else in one process of this machine.
    """
    arguments = config.bindings_of(run_study)
    if arguments:
        places = arguments["study_dir"], arguments["examples_root"]
        runs = expand.expand(arguments["study"], *places, beam=beam)
        print(f"the examples of {len(runs)} runs are in {arguments['examples_root']}")
        return
    arguments = config.bindings_of(loop.train)
    if config.macro("MIXTURE_OR_TASK_NAME") is config.REQUIRED:
        raise UserError("which examples? set --gin.MIXTURE_OR_TASK_NAME=")
    specs = expand.data_specs(arguments)
    for examples in find_all_examples(specs, arguments["examples_root"], beam):
        print(f"{examples.path}: {len(examples):,} examples")


class _Launch:
    """One call of `run_study`. It keeps in memory only what it has already reported."""

    def __init__(
        self, study_dir: str, runs: Sequence[expand.Run], executor: Executor, display: Display
    ):
        self.given_up: dict[str, str] = {}  # run -> why this launch leaves it alone
        self._study_dir, self._executor, self._display = study_dir, executor, display
        self._runs = {run.id: run for run in runs}
        self._done: set[str] = set()
        self._tries: Counter[str] = Counter()  # hand-overs that could have done it
        counts = storage.at_once(_failures, runs)  # when the launch began
        self._failures = {run.id: count for run, count in zip(runs, counts, strict=True)}
        self._elsewhere: dict[str, str] = {}  # run -> "queued", "running" as last reported
        for run, done in zip(runs, _are_done(runs), strict=True):
            if done:
                self._done.add(run.id)
                display.skip(run)

    def jobs(self) -> dict[str, str]:
        """Runs that are not done -> the engine's job for them, while that is queued or running."""
        runs = self._open()
        jobs = storage.at_once(lambda run: records.job(run.directory), runs)
        found = {run.id: job for run, job in zip(runs, jobs, strict=True) if job}
        states = self._executor.states(set(found.values())) if found else {}
        return {i: job for i, job in found.items() if states.get(job, "gone") != "gone"}

    def go_on(self) -> Literal["", "here", "elsewhere"]:
        """Hands over the runs that are ready; returns "here" or "elsewhere", where something may
        change next, or "" if all is over."""
        jobs = self.jobs()
        ready: dict[str, expand.Run] = {}
        pending = False
        runs = self._open()
        looks = storage.at_once(
            lambda run: (records.failure(run.directory), claim.holder(run.directory)), runs
        )
        for run, (failed, holder) in zip(runs, looks, strict=True):
            lacking = [n for n in run.needs if n not in self._done]
            if holder:
                pending = True
                self._note(run, f"at work: {holder}")
            elif records.is_parked(failed):
                self._give_up(run, f"parked after {failed['failures']} failures, until its FAILED "
                              f"is deleted: {failed['reason']}")  # fmt: skip
            elif failed and failed["failures"] > self._failures[run.id] and self._final(failed):
                self._give_up(run, failed["reason"])
            elif run.id in jobs:
                pending = True
                self._note(run, f"queued: {jobs[run.id]}")
            elif self._tries[run.id] >= records.MOST_FAILURES:
                self._give_up(run, self._silent(run))
            elif any(needed in self.given_up for needed in lacking):
                self._give_up(run, f"waits for {lacking[0]}")
            elif not lacking and (gone := local.lost_checkpoint(run)):
                self._give_up(run, gone)
            elif lacking and not (
                self._executor.orders_jobs and all(n in ready or n in jobs for n in lacking)
            ):
                pending = True
            else:
                ready[run.id] = run
        for group in _groups(list(ready.values())):
            # Jobs of needed runs in this round are known by now: those come first.
            lacking = [n for n in group[0].needs if n not in self._done]
            self._hand_over(group, sorted({jobs[n] for n in lacking if n in jobs}), jobs)
        if ready and isinstance(self._executor, local.Local):
            return "here"
        return "elsewhere" if ready or pending else ""

    def _hand_over(
        self, group: Sequence[expand.Run], after: Sequence[str], jobs: dict[str, str]
    ) -> None:
        remote = not isinstance(self._executor, local.Local)
        for run in group:
            self._tries[run.id] += all(needed in self._done for needed in run.needs)
        if remote:
            for run in group:
                text = config.load(run.gin_files, run.bindings)
                run_directory.begin(run.directory, text, run.record)
        for run, job in zip(
            group, self._executor.submit(self._study_dir, group, after), strict=True
        ):
            if job:
                run_directory.write_json(os.path.join(run.directory, records.JOB), {"job": job})
                jobs[run.id] = job
            if not remote and records.is_done(run.directory):
                self._done.add(run.id)

    def _open(self) -> list[expand.Run]:
        """The runs that are neither done nor given up."""
        left = [run for run in self._runs.values() if run.id not in self._done]
        for run, done in zip(left, _are_done(left), strict=True):
            if done:
                self._done.add(run.id)
                self._display.skip(run, "done")
        closed = self._done | self.given_up.keys()
        return [run for run in self._runs.values() if run.id not in closed]

    def _final(self, failed: Mapping[str, object]) -> bool:
        """Whether the failure is a user's mistake, which is tried only once per launch."""
        return "traceback" not in failed

    def _silent(self, run: expand.Run) -> str:
        logs = os.path.join(self._study_dir, records.JOBS)
        unknown = f"its jobs left neither DONE nor FAILED; their logs are in {logs}"
        reason = self._display.failures.get(run.id, unknown)
        return f"tried {self._tries[run.id]} times in this launch: {reason}"

    def _give_up(self, run: expand.Run, reason: str) -> None:
        self.given_up[run.id] = reason

    def _note(self, run: expand.Run, text: str) -> None:
        if self._elsewhere.get(run.id) != text:
            self._elsewhere[run.id] = text
            self._display.say(f"{run.id}: {text}")


def _groups(runs: Sequence[expand.Run]) -> list[list[expand.Run]]:
    """Runs of one kind, gin files and needs together, in their order."""
    groups: dict[tuple, list[expand.Run]] = {}
    for run in runs:
        groups.setdefault((run.record["kind"], run.gin_files, run.needs), []).append(run)
    return list(groups.values())


def _refuse_changed(runs: Sequence[expand.Run]) -> None:
    folders = [run.directory for run in runs]
    for run, record in zip(runs, storage.at_once(records.run_record, folders), strict=True):
        if record is None or record.get("settings") != run.record["settings"]:
            text = config.load(run.gin_files, run.bindings)
            run_directory.refuse_changed(run.directory, text)


def _write_list(study_dir: str, name: str, runs: Sequence[expand.Run]) -> None:
    """The list of runs for `status`. Runs of other subsets of the study stay in it."""
    path = os.path.join(study_dir, records.STUDY)
    before = records.study_list(study_dir) or {"runs": []}
    mine = [run.id for run in runs]
    others = [
        run_id
        for run_id in before["runs"]
        if run_id not in set(mine) and storage.path(records.run_folder(study_dir, run_id)).is_dir()
    ]
    listed = {"study": name, "runs": mine + others}
    if listed != before:
        run_directory.write_json(path, listed)


def _are_done(runs: Sequence[expand.Run]) -> list[bool]:
    return storage.at_once(lambda run: records.is_done(run.directory), runs)


def _failures(run: expand.Run) -> int:
    failed = records.failure(run.directory)
    return failed["failures"] if failed else 0
