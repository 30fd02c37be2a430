"""Slurm: runs as jobs of an array, in Slurm's own order of dependencies.

Each job does `runs_per_job` runs by `run.py work`, one after the other in one process, and is
requeued by Slurm when it is preempted or its node fails. A job that ends otherwise without its runs
done is submitted again when the study next looks at it. Nothing here keeps a list of jobs: each run
directory names its own.
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from t5scaling import records, storage
from t5scaling.config import REPOSITORY
from t5scaling.errors import UserError
from t5scaling.study.executors import State
from t5scaling.study.expand import Run
from t5scaling.training.claim import JOB_VARIABLE

_RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
_OURS = {"array", "chdir", "dependency", "job-name", "output", "parsable", "wrap"}


@dataclasses.dataclass(frozen=True)
class Slurm:
    """Attributes:
    pretrain, finetune: options of sbatch for jobs of that kind, long names without dashes, such
        as {"partition": "gpu", "gpus": 8, "time": "48:00:00"}; True for one without a value.
        Several tasks (ntasks) are the processes of one training.
    runs_per_job: finetunings that a job does, sharing their start and compilation.
    at_once: jobs of one array that may run at the same time; None for as many as fit.
    setup: shell commands before the first run, such as "module load cuda".
    python: of the environment that t5scaling is installed in.
    """

    pretrain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runs_per_job: int = 1
    at_once: int | None = None
    setup: Sequence[str] = ()
    python: str = sys.executable
    orders_jobs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("runs_per_job", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"Slurm.{name}={value}: expected at least 1")
        for kind in ("pretrain", "finetune"):
            ours = sorted(_OURS & getattr(self, kind).keys())
            if ours:
                raise UserError(f"Slurm.{kind}: {', '.join(ours)} is set by the study itself")

    def submit(self, study_dir: str, runs: Sequence[Run], after: Sequence[str]) -> list[str]:
        """Submits one array; the job of a run is "<array>_<index>"."""
        if storage.in_bucket(study_dir):
            raise UserError(
                f"STUDY_DIR={study_dir}: Slurm writes its logs there, so it must be a directory "
                "that this machine and the nodes share"
            )
        kind = runs[0].record["kind"]
        size = self.runs_per_job if kind == "finetune" else 1
        chunks = [runs[i : i + size] for i in range(0, len(runs), size)]
        logs = os.path.join(os.path.abspath(study_dir), records.JOBS)
        os.makedirs(logs, exist_ok=True)
        limit = f"%{self.at_once}" if self.at_once else ""
        options = {
            "requeue": True,
            "open-mode": "append",
            # A minute before the time is up the run saves itself, and another job goes on with it.
            "signal": "TERM@60",
            **getattr(self, kind),
            "job-name": f"{kind}-{os.path.basename(os.path.normpath(study_dir))}",
            "array": f"0-{len(chunks) - 1}{limit}",
            "output": os.path.join(logs, "%A_%a.log"),
            "chdir": os.getcwd(),
            "parsable": True,
        }
        if after:
            options["dependency"] = "afterok:" + ":".join(after)
            options["kill-on-invalid-dep"] = "yes"
        flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in options.items()]
        answer = _slurm("sbatch", *flags, stdin=self._script(study_dir, chunks))
        array = answer.strip().split(";")[0]
        return [f"{array}_{i}" for i, chunk in enumerate(chunks) for _ in chunk]

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        found: dict[str, State] = dict.fromkeys(jobs, "gone")
        # All of the user's jobs: naming one that Slurm has forgotten would be an error.
        for line in _slurm(
            "squeue", "--me", "--array", "--noheader", "--format=%i|%T"
        ).splitlines():
            job, _, state = line.strip().partition("|")
            if job in found:
                found[job] = "running" if state in _RUNNING else "queued"
        return found

    def cancel(self, jobs: Collection[str]) -> None:
        if jobs:
            _slurm("scancel", *sorted(jobs))

    def _script(self, study_dir: str, chunks: Sequence[Sequence[Run]]) -> str:
        run_py = os.path.join(REPOSITORY, "run.py")
        work = shlex.join([self.python, run_py, "work", study_dir])
        lines = [shlex.quote(" ".join(run.id for run in chunk)) for chunk in chunks]
        return "\n".join(
            [
                "#!/bin/bash",
                *self.setup,
                f'export {JOB_VARIABLE}="job ${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"',
                "RUNS=(",
                *lines,
                ")",
                # exec: Slurm's signals reach the run itself, not a shell in front of it.
                f"exec srun --kill-on-bad-exit=1 {work} ${{RUNS[$SLURM_ARRAY_TASK_ID]}}",
                "",
            ]
        )


def _slurm(command: str, *arguments: str, stdin: str = "") -> str:
    if shutil.which(command) is None:
        raise UserError(f"{command} is not installed here: start the study on a Slurm login node")
    done = subprocess.run([command, *arguments], input=stdin, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise UserError(f"{command}: {lines[-1].removeprefix(f'{command}: ')}")
    return done.stdout
