"""What a launch of a study prints while it works: a bar and a line per run."""

import sys
import time
from collections.abc import Mapping, Sequence

from rich import progress as rich_progress
from rich.console import Console

from t5scaling.errors import first_line
from t5scaling.study.expand import Run


class Display:
    """One bar for the study and one for the run in progress; plain lines where there is no
    terminal to draw on."""

    def __init__(self, name: str, runs: Sequence[Run]):
        self._console = Console(file=sys.stdout, soft_wrap=True, markup=False, emoji=False)
        self._runs = runs
        self._total = sum(run.positions for run in runs)
        self._worked = self._skipped = 0  # positions: done now, found done
        self._seconds = 0.0
        self._done = 0
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(bar_width=24),
            rich_progress.TaskProgressColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._study = self._bar.add_task(f"study {name}", total=self._total, note="")
        self._current = self._bar.add_task("", total=None, note="", visible=False)
        self._run: Run | None = None
        self._started = 0.0
        self.failures: dict[str, str] = {}  # run -> the reason of its last failure here

    def __enter__(self) -> "Display":
        self._console.print(f"{len(self._runs)} runs, {self._total:,} token positions to train on")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, run: Run) -> None:
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

    def skip(self, run: Run, text: str = "already done") -> None:
        """Shows a run that was found done, or that another process has done."""
        self._skipped += run.positions
        self._done += 1
        self._line(run, text)

    def elsewhere(self, shares: Mapping[str, float], note: str) -> None:
        """Shows the progress of runs that other processes do: id -> share."""
        positions = sum(shares.get(run.id, 0.0) * run.positions for run in self._runs)
        self._bar.update(self._study, completed=self._skipped + positions, note=note)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def finish(self, run: Run) -> None:
        seconds = self._end(run)
        self._done += 1
        self._line(run, f"{seconds:.0f} s, {self._left(0.0)}")

    def fail(self, run: Run, reason: str) -> None:
        self._end(run)
        self.failures[run.id] = reason
        self._line(run, f"FAILED: {first_line(reason)}")

    def leave(self, run: Run, reason: str) -> None:
        """Shows a run that another process has taken: nothing has failed."""
        self._line(run, f"left alone: {first_line(reason)}")

    def summary(self, failed: Mapping[str, str]) -> None:
        if not failed:
            self._console.print(f"all {len(self._runs)} runs are done")
            return
        self._console.print(f"{len(failed)} of {len(self._runs)} runs are not done:")
        for run_id, reason in failed.items():
            self._console.print(f"  {run_id}: {first_line(reason)}", markup=False, highlight=False)

    def _end(self, run: Run) -> float:
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

    def _line(self, run: Run, text: str) -> None:
        count = f"[{self._done}/{len(self._runs)}]"
        self._console.print(f"{count} {run.id}: {text}", markup=False, highlight=False)
