"""How far a study is, read from its run directories alone."""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from t5scaling import records, storage
from t5scaling.amounts import duration
from t5scaling.errors import UserError, first_line
from t5scaling.training import claim

ROWS = 40  # of a study with more runs, those done, queued or waiting share a row by their data
SHARE_A_ROW = frozenset({"done", "queued", "waiting"})


@dataclass(frozen=True)
class RunStatus:
    """One run.

    state: "done", "running", "stopped" (begun, and nobody is at it), "failed", "parked" (failed so
    often that nobody will try again), "queued" (an engine has a job for it), "waiting", or
    "damaged" (a file of it cannot be read; reason says which).
    elsewhere: a running one's claim is another machine's, whose holder may be dead.
    step, steps: done and in all; steps is 0 while it waits. loss: nats per target token over the
    last logged steps. tokens_per_s: target tokens a second there. wall_s: what it has taken so
    far. left_s: at that speed. reason: of a failure.
    """

    id: str
    state: str
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_s: float | None = None
    wall_s: float = 0.0
    left_s: float | None = None
    reason: str = ""
    elsewhere: bool = False


def statuses(study_dir: str) -> list[RunStatus]:
    """All runs of the study in their order. Raises UserError if there is no study."""
    listed = records.study_list(study_dir)
    if listed is None:
        path = os.path.join(study_dir, records.STUDY)
        raise UserError(f"{study_dir}: no study here (no file {path})")
    return storage.at_once(lambda run_id: _status(study_dir, run_id), listed["runs"])


def show(study_dir: str, console: Console | None = None, *, every_run: bool = False) -> None:
    """Prints the runs as a table, and their sum. every_run: each in a row of its own, however
    many there are."""
    console = console or Console(markup=False, emoji=False)
    if not console.is_terminal and console.file is sys.stdout:
        console.width = max(console.width, 110)  # into a file or a pipe
    runs = statuses(study_dir)
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for column in ("state", "step", "loss", "tokens/s", "time", "left"):
        table.add_column(column, justify="left" if column == "state" else "right")
    for name, run in _rows(runs, every_run):
        table.add_row(
            Text(name),
            run.state,
            f"{run.step}/{run.steps}" if run.steps else "",
            f"{run.loss:.3f}" if run.loss is not None else "",
            f"{run.tokens_per_s:,.0f}" if run.tokens_per_s is not None else "",
            duration(run.wall_s) if run.wall_s else "",
            duration(run.left_s) if run.left_s is not None else "",
        )
    console.print(table)
    for run in runs:
        if run.reason:
            console.print(f"{run.id}: {run.reason}", markup=False, highlight=False, soft_wrap=True)
    counts = Counter(run.state for run in runs)
    there = sum(run.elsewhere for run in runs)
    if there:
        console.print(
            f"{there} running on other machines: whether they are alive shows only when they are "
            f"watched for {claim.LEASE_S / 60:.0f} minutes, as `run.py study` does",
            highlight=False,
            soft_wrap=True,
        )
    order = ("done", "running", "stopped", "damaged", "failed", "parked", "queued", "waiting")
    parts = [f"{counts[state]} {state}" for state in order if counts[state]]
    spent = duration(sum(run.wall_s for run in runs))
    console.print(f"{len(runs)} runs: {', '.join(parts)}; {spent} so far", highlight=False)


def _rows(runs: Sequence[RunStatus], every_run: bool) -> list[tuple[str, RunStatus]]:
    """For each row, the text of the first column, and the run whose numbers are in the others."""
    if every_run or len(runs) <= ROWS:
        return [(run.id, run) for run in runs]
    groups: dict[tuple[str, str], list[RunStatus]] = {}
    for run in runs:
        together = run.state in SHARE_A_ROW and run.id.count("/") > 1
        name = "/".join(run.id.split("/")[:2]) if together else run.id
        groups.setdefault((name, run.state), []).append(run)
    rows = []
    for (name, state), members in groups.items():
        if len(members) == 1:
            rows.append((members[0].id, members[0]))
        else:
            spent = sum(run.wall_s for run in members)
            rows.append((f"{name}/...: {len(members)} runs", RunStatus(name, state, wall_s=spent)))
    return rows


def _status(study_dir: str, run_id: str) -> RunStatus:
    try:
        return _read_status(study_dir, run_id)
    except UserError as error:  # the others are shown all the same
        return RunStatus(run_id, "damaged", reason=first_line(error))


def _read_status(study_dir: str, run_id: str) -> RunStatus:
    folder = records.run_folder(study_dir, run_id)
    record = records.run_record(folder)
    if record is None:
        return RunStatus(run_id, "waiting")
    timing = records.timing(folder, growing=True)
    failure = records.failure(folder)
    done = records.is_done(folder)
    last = claim.latest(folder)
    queued = records.job(folder) is not None
    if done:
        state = "done"
    elif last and last.alive:
        state = "running"
    elif failure:
        state = "parked" if records.is_parked(failure) else "failed"
    elif last or timing:
        state = "stopped"
    else:
        state = "queued" if queued else "waiting"
    speed = next((line for line in reversed(timing) if "target_tokens_per_s" in line), {})
    train = [
        line
        for line in records.metrics(folder, growing=True)
        if line["split"] == "train" and "loss" in line
    ]
    step, steps = (train[-1]["step"] if train else 0), record["steps"]
    left = None
    if not done and speed and len(timing) > 1 and timing[-1]["step"] > timing[0]["step"]:
        seconds = timing[-1]["wall_s"] - timing[0]["wall_s"]
        left = (steps - step) * seconds / (timing[-1]["step"] - timing[0]["step"])
    return RunStatus(
        id=run_id,
        state=state,
        step=steps if done else step,
        steps=steps,
        loss=train[-1]["loss"] if train else None,
        tokens_per_s=speed.get("target_tokens_per_s"),
        wall_s=timing[-1]["wall_s"] if timing else 0.0,
        left_s=left,
        reason=first_line(failure["reason"]) if failure and not done else "",
        elsewhere=state == "running" and last is not None and not last.is_here,
    )
