"""Cloud TPU slices, by SkyPilot's managed jobs (docs/cloud_tpu.md: why SkyPilot, and how).

Each job is a slice of its own that does its runs by `run.py work` on all of its hosts. SkyPilot
finds the slice, copies the repository there and starts the job again elsewhere when the slice is
preempted. Study and examples lie in a bucket, by their gs:// addresses here and there. SkyPilot has
no dependencies between jobs: the runner holds a finetuning back until its pretraining is DONE.
"""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from t5scaling import storage
from t5scaling.config import REPOSITORY
from t5scaling.errors import UserError
from t5scaling.study.executors import State
from t5scaling.study.expand import Run
from t5scaling.training.claim import JOB_VARIABLE

# Statuses of SkyPilot 0.14's managed jobs that are not over yet.
_ALIVE: dict[str, State] = {
    "PENDING": "queued",
    "SUBMITTED": "queued",
    "STARTING": "queued",
    "RECOVERING": "queued",
    "RUNNING": "running",
    "WINDING_DOWN": "running",
    "CANCELLING": "running",
}
_SETUP = """\
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --allow-existing --python 3.11 ~/t5scaling
~/.local/bin/uv pip install --quiet --python ~/t5scaling/bin/python \\
  --constraint constraints.txt --editable '.[tpu]'
"""


@dataclasses.dataclass(frozen=True)
class CloudTPU:
    """Attributes:
    pretrain, finetune: accelerators as SkyPilot names them, such as "tpu-v4-64".
    spot: whether preemptible slices will do.
    infra: "gcp", "gcp/REGION" or "gcp/REGION/ZONE".
    runtime_version: software of the TPU VMs; None for SkyPilot's choice.
    runs_per_job: finetunings that a slice does, sharing its start and compilation.
    setup: shell commands that make ~/t5scaling, an environment with the repository installed.
    """

    pretrain: str
    finetune: str
    spot: bool = True
    infra: str = "gcp"
    runtime_version: str | None = None
    runs_per_job: int = 8
    setup: str = _SETUP
    orders_jobs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for kind in ("pretrain", "finetune"):
            name = getattr(self, kind)
            if not re.fullmatch(r"tpu-v\w+-\d+", name):
                raise UserError(
                    f"CloudTPU.{kind}={name!r}: expected an accelerator such as 'tpu-v4-64' or "
                    "'tpu-v5litepod-16'"
                )
        if self.runs_per_job < 1:
            raise UserError(f"CloudTPU.runs_per_job={self.runs_per_job}: expected at least 1")

    def submit(self, study_dir: str, runs: Sequence[Run], after: Sequence[str]) -> list[str]:
        """Launches a managed job for each group of runs; the job of a run is its unique name."""
        places = {"STUDY_DIR": study_dir, "EXAMPLES_ROOT": runs[0].bindings["EXAMPLES_ROOT"]}
        for name, place in places.items():
            if not storage.in_bucket(place):
                raise UserError(
                    f"{name}={place} is on this machine, which the slices do not see; expected "
                    "gs://BUCKET/..."
                )
        kind = runs[0].record["kind"]
        size = self.runs_per_job if kind == "finetune" else 1
        jobs = []
        for first in range(0, len(runs), size):
            chunk = runs[first : first + size]
            name = _job_name(kind, study_dir)
            with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
                json.dump(self.description(name, study_dir, chunk), file)  # JSON is YAML
            try:
                _sky("jobs", "launch", "--yes", "--async", "--name", name, file.name)
            finally:
                os.unlink(file.name)
            jobs += [name] * len(chunk)
        return jobs

    def description(self, name: str, study_dir: str, runs: Sequence[Run]) -> dict[str, Any]:
        """A job as SkyPilot reads it."""
        kind = runs[0].record["kind"]
        work = shlex.join(["work", study_dir, *(run.id for run in runs)])
        arguments = {"runtime_version": self.runtime_version} if self.runtime_version else {}
        return {
            "name": name,
            "workdir": REPOSITORY,
            "resources": {
                "infra": self.infra,
                "accelerators": getattr(self, kind),
                "use_spot": self.spot,
                **({"accelerator_args": arguments} if arguments else {}),
            },
            "envs": {JOB_VARIABLE: f"job {name}"},
            "setup": self.setup,
            "run": f"exec ~/t5scaling/bin/python run.py {work}\n",
        }

    def states(self, jobs: Collection[str]) -> dict[str, State]:
        found: dict[str, State] = dict.fromkeys(jobs, "gone")
        output = _sky("jobs", "queue", "--skip-finished", "--all", "--output", "json")
        try:
            records = json.loads(output[output.index("[") :])
        except ValueError:
            raise UserError(f"sky jobs queue: expected JSON, got {output.strip()[:80]!r}") from None
        for record in records:
            if record.get("job_name") in found:
                found[record["job_name"]] = _ALIVE.get(record.get("status"), "gone")
        return found

    def cancel(self, jobs: Collection[str]) -> None:
        for job in sorted(set(jobs)):
            _sky("jobs", "cancel", "--yes", "--name", job)


def _job_name(kind: str, study_dir: str) -> str:
    study = re.sub(r"[^a-z0-9]+", "-", os.path.basename(os.path.normpath(study_dir)).lower())
    return f"t5s-{study.strip('-')}-{kind}-{uuid.uuid4().hex[:8]}"


def _sky(*arguments: str) -> str:
    if shutil.which("sky") is None:
        raise UserError(
            "sky is not installed: pip install 'skypilot[gcp]' into an environment of its own, "
            "and put its sky on the PATH"
        )
    done = subprocess.run(["sky", *arguments], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason given"]
        raise UserError(f"sky {' '.join(arguments[:2])}: {lines[-1]}")
    return done.stdout
