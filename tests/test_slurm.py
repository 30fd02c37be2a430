"""The Slurm executor, on a real slurmctld and slurmd."""

import json
import signal
import subprocess
import sys
import time

import pytest

import run
from t5scaling.errors import UserError
from t5scaling.study import status
from t5scaling.study.executors import slurm
from t5scaling.study.expand import Run
from t5scaling.training import checkpoint
from tests import mini, outside, slurm_cluster
from tests.conftest import REPOSITORY

RUNS = 1 + 1 + 3  # a pretraining, a baseline, finetunings from three checkpoints
JOBS_OF_FINETUNINGS = "runs/finetune/mini_span*/**/JOB"
SAVE_OFTEN = ("--gin.SAVE_MINUTES=0.01", "--gin.PRETRAIN_SAVE_MINUTES=0.0")
ON_SLURM = (
    "--gin_file=gin/executors/slurm.gin",
    "--gin.RUNS_PER_JOB=3",
    "--gin.SLURM_PRETRAIN={'time': '10:00'}",
    "--gin.SLURM_FINETUNE={'time': '10:00'}",
    "--gin.runner.run_study.poll_seconds=1.0",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if not outside.has_slurm():
        pytest.skip(outside.MISSING.format("Slurm"))
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture
def here(cluster, monkeypatch):
    """This process speaks to the cluster."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])


def on_slurm(folder, root, *extra):
    """The arguments of run.py. Runs save something when they have just begun, and after each step
    of pretraining: there are seconds between the first and the last, to be hit in."""
    return mini.study(folder, root, *SAVE_OFTEN, *ON_SLURM, *extra)


def until(found, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.2)
    return value


def job_of(run_directory):
    return json.loads((run_directory / "JOB").read_text())["job"]


def slurm_says(environment, *arguments):
    return subprocess.run(
        arguments, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_five_runs_give_what_they_give_without_slurm(
    cluster, here, mini_root, mini_study, tmp_path
):
    """With a job killed, a job sent back to the queue, and the controller killed and restarted."""
    there = tmp_path / "there"
    command = [sys.executable, "run.py", *on_slurm(there, mini_root)]
    controller = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=cluster,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    ways = {("scancel",): "pretrain/*", ("scontrol", "requeue"): "finetune/none/*/*/*/*/*"}
    struck = {}

    def has_saved():
        """How to strike next, and a run that has saved something."""
        for way, runs in ways.items():
            for found in there.glob(f"runs/{runs}"):
                if way not in struck and checkpoint.newest_step(str(found)):
                    return way, found
        return None

    while len(struck) < 2:  # each as soon as it trains: they do not start together
        way, hit = until(has_saved, controller)
        struck[way] = hit, job_of(hit)
        slurm_says(cluster, *way, job_of(hit))
        assert not (hit / "DONE").exists()
    (killed, first), (requeued, _) = (struck[way] for way in ways)
    until(lambda: job_of(killed) != first, controller)  # the controller saw it
    # Back in the queue, Slurm would let the other wait for two minutes.
    again = job_of(requeued)
    until(
        lambda: "PENDING" in slurm_says(cluster, "squeue", "--format=%T", "-j", again), controller
    )
    slurm_says(cluster, "scontrol", "update", f"JobId={again}", "StartTime=now")
    controller.send_signal(signal.SIGKILL)
    controller.communicate()
    assert len(list(there.glob("runs/**/JOB"))) == RUNS

    assert run.main(on_slurm(there, mini_root)) == 0
    assert (there / "results.csv").read_bytes() == (mini_study / "results.csv").read_bytes()
    names = sorted(
        path.relative_to(mini_study) for path in mini_study.glob("runs/**/metrics.jsonl")
    )
    assert len(names) == RUNS
    for name in names:
        assert (there / name).read_bytes() == (mini_study / name).read_bytes(), name
    assert slurm_says(cluster, "squeue", "--me", "--noheader") == ""
    # A job does several runs. (The controller may have been killed before it wrote down that they
    # have a job; the next one then submits those again.)
    assert len({job_of(path.parent) for path in there.glob(JOBS_OF_FINETUNINGS)}) < 3


def test_detach_and_cancel(cluster, here, mini_root, tmp_path, capsys):
    assert run.main(on_slurm(tmp_path, mini_root, "--detach")) == 0
    assert f"{RUNS} jobs are with the engine" in capsys.readouterr().out
    states = [run.state for run in status.statuses(str(tmp_path))]
    assert len(states) == RUNS and set(states) <= {"queued", "running"}
    jobs = [job_of(path.parent) for path in tmp_path.glob(JOBS_OF_FINETUNINGS)]
    assert len(jobs) == 3 and len(set(jobs)) == 1  # RUNS_PER_JOB
    assert run.main(on_slurm(tmp_path, mini_root, "--cancel")) == 0
    assert "jobs cancelled" in capsys.readouterr().out
    deadline = time.monotonic() + 60
    while slurm_says(cluster, "squeue", "--me", "--noheader"):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def a_run(kind="finetune"):
    return Run("finetune/x", (), {"MODEL_DIR": "x"}, (), {"kind": kind}, 1)


def test_slurms_refusals_are_one_line(here, tmp_path):
    wrong = slurm.Slurm(finetune={"partition": "nowhere"})
    with pytest.raises(UserError, match=r"^sbatch: .*artition"):
        wrong.submit(str(tmp_path), [a_run()], ())


def test_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch is not installed here"):
        slurm.Slurm().submit(str(tmp_path), [a_run()], ())


def test_settings_that_are_the_studys_own():
    with pytest.raises(UserError, match="array is set by the study"):
        slurm.Slurm(finetune={"array": "0-3"})
    with pytest.raises(UserError, match="runs_per_job=0"):
        slurm.Slurm(runs_per_job=0)
