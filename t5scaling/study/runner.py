"""Runs what is left of a study. Its only memory is the run directories, so kill it and start again.

A run is skipped when it is DONE with unchanged settings. A run that fails leaves FAILED with the
reason and does not stop the others; those that need it wait. Failed runs are tried again at the
next start.
"""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Iterator

from rich import progress as rich_progress
from rich.console import Console

from t5scaling import config
from t5scaling.data.examples import find_all_examples
from t5scaling.errors import Stopped, UserError
from t5scaling.study import status
from t5scaling.study import study as studies
from t5scaling.study.executors import local
from t5scaling.training import loop, run_directory


def run_study(*, study: studies.Study, study_dir: str, examples_root: str) -> list[str]:
    """Does all runs of `study` that are not done yet, in `<study_dir>/runs`.

    Args:
        study: the grid.
        study_dir: where runs, results and report go.
        examples_root: where materialised examples live; may be shared by studies.

    Returns:
        The ids of the runs that failed or had to wait for a failed one.

    Raises:
        UserError: a grid that the data cannot serve, settings that changed since a run was made,
            or another process at work on the same study.
        Stopped: SIGTERM or SIGINT; the run in progress is saved.
    """
    os.makedirs(study_dir, exist_ok=True)
    with _lock(study_dir):
        runs = studies.expand(study, study_dir, examples_root)
        _refuse_changed(runs)
        run_directory.write_json(
            os.path.join(study_dir, "study.json"),
            {"study": study.name, "runs": [run.id for run in runs]},
        )
        failed: dict[str, str] = {}
        with _Display(study.name, runs) as display:
            for run in runs:
                if run_directory.is_done(run.bindings["MODEL_DIR"]):
                    display.skip(run)
                    continue
                waits_for = [needed for needed in run.needs if needed in failed]
                if waits_for:
                    failed[run.id] = f"waits for {waits_for[0]}"
                    continue
                display.start(run)
                try:
                    text = config.load(run.gin_files, run.bindings)
                    local.train(text, run.record, display.progress)
                except Stopped:
                    raise
                except Exception as error:  # one run's failure must not stop the others
                    failed[run.id] = str(error) or type(error).__name__
                    display.fail(run, failed[run.id])
                else:
                    display.finish(run)
        display.summary(failed)
    return list(failed)


def materialize(beam: str | None = None) -> None:
    """Writes the examples that the loaded gin configuration, of a study or of a run, asks for.

    With `beam`, Apache Beam's pipeline options, on Beam; else in one process of this machine.
    """
    arguments = config.bindings_of(run_study)
    if arguments:
        runs = studies.expand(**arguments, beam=beam)
        print(f"the examples of {len(runs)} runs are in {arguments['examples_root']}")
        return
    arguments = config.bindings_of(loop.train)
    if config.macro("MIXTURE_OR_TASK_NAME") is config.REQUIRED:
        raise UserError("which examples? set --gin.MIXTURE_OR_TASK_NAME=")
    specs = studies.data_specs(arguments)
    for examples in find_all_examples(specs, arguments["examples_root"], beam):
        print(f"{examples.path}: {len(examples):,} examples")


def _refuse_changed(runs: list[studies.Run]) -> None:
    for run in runs:
        if os.path.isdir(run.bindings["MODEL_DIR"]):
            text = config.load(run.gin_files, run.bindings)
            run_directory.refuse_changed(run.bindings["MODEL_DIR"], text)


@contextlib.contextmanager
def _lock(study_dir: str) -> Iterator[None]:
    """Two processes on one study would write the same runs. The kernel frees it at any death."""
    with open(os.path.join(study_dir, status.LOCK), "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is at work on the study in {study_dir}") from None
        yield


class _Display:
    """One bar for the study and one for the run in progress; plain lines where there is no
    terminal to draw on."""

    def __init__(self, name: str, runs: list[studies.Run]):
        self._console = Console(file=sys.stdout, soft_wrap=True)
        self._runs = runs
        self._total = sum(run.positions for run in runs)
        self._worked = self._skipped = 0  # positions: done now, found done
        self._seconds = 0.0
        self._done = 0
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(bar_width=24),
            rich_progress.TaskProgressColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._study = self._bar.add_task(f"study {name}", total=self._total, note="")
        self._current = self._bar.add_task("", total=None, note="", visible=False)
        self._run: studies.Run | None = None
        self._started = 0.0

    def __enter__(self) -> "_Display":
        self._console.print(f"{len(self._runs)} runs, {self._total:,} token positions to train on")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, run: studies.Run) -> None:
        self._run, self._started = run, time.monotonic()
        self._bar.reset(self._current, description=run.id, visible=True, note="")

    def progress(self, done: int, total: int, note: str) -> None:
        assert self._run is not None
        share = done / total if total else 0.0
        self._bar.update(self._current, completed=done, total=total)
        if note:
            self._bar.update(self._current, note=note)
        self._bar.update(
            self._study,
            completed=self._skipped + self._worked + share * self._run.positions,
            note=self._left(share),
        )

    def skip(self, run: studies.Run) -> None:
        self._skipped += run.positions
        self._done += 1
        self._line(run, "done already")

    def finish(self, run: studies.Run) -> None:
        seconds = self._end(run)
        self._done += 1
        self._line(run, f"{seconds:.0f} s, {self._left(0.0)}")

    def fail(self, run: studies.Run, reason: str) -> None:
        self._end(run)
        self._line(run, f"FAILED: {reason.splitlines()[0]}")

    def summary(self, failed: dict[str, str]) -> None:
        if not failed:
            self._console.print(f"all {len(self._runs)} runs are done")
            return
        self._console.print(f"{len(failed)} of {len(self._runs)} runs are not done:")
        for run_id, reason in failed.items():
            self._console.print(f"  {run_id}: {reason.splitlines()[0]}", markup=False)

    def _end(self, run: studies.Run) -> float:
        seconds = time.monotonic() - self._started
        self._seconds += seconds
        self._worked += run.positions
        self._bar.update(self._study, completed=self._skipped + self._worked)
        return seconds

    def _left(self, share: float) -> str:
        """Time left, at the pace of the runs of this launch."""
        now = share * self._run.positions if self._run and share else 0.0
        worked = self._worked + now
        if not worked:
            return ""
        seconds = self._seconds + (time.monotonic() - self._started if now else 0.0)
        left = (self._total - self._skipped - worked) * seconds / worked
        return f"about {left / 60:.1f} min left" if left > 0 else ""

    def _line(self, run: studies.Run, text: str) -> None:
        count = f"[{self._done}/{len(self._runs)}]"
        self._console.print(f"{count} {run.id}: {text}", markup=False, highlight=False)
