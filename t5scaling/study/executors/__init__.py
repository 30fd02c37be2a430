"""Executors, which do the runs of a study. The runner decides which are left; an executor hands
them to an engine."""

from collections.abc import Collection, Sequence
from typing import ClassVar, Literal, Protocol

from t5scaling.study.expand import Run

State = Literal["queued", "running", "gone"]


class Executor(Protocol):
    """Hands runs to an engine that does them by `run.py work STUDY_DIR RUN_ID...`.

    orders_jobs: whether the engine itself starts a job after others; else the runner holds it back.
    """

    orders_jobs: ClassVar[bool]

    def submit(self, study_dir: str, runs: Sequence[Run], after: Sequence[str]) -> list[str]:
        """Hands over runs of one kind and with the same needs, to start when the jobs `after` have
        succeeded. Returns the job of each, in their order; "" if it is over already."""
        ...

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        """The state of each job: "gone" if it failed, ended or is unknown."""
        ...

    def cancel(self, jobs: Collection[str]) -> None:
        """Ends jobs; a run in progress saves a checkpoint if the engine leaves it the time."""
        ...
