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
from tests import slurm_cluster
from tests.conftest import REPOSITORY

STUDY = (
    f"--gin_file={REPOSITORY}/tests/mini/study.gin",
    "--gin.LEARNING_RATES=(0.01, 0.02)",
    "--gin.study.Study.pretrain_tokens=(0, 9_000)",
    "--gin.study.Study.pretrain_data="
    "{'mini_span_en50_de50': {'en': 0.5, 'de': 0.5}, 'mini_span_en': {'en': 1.0}}",
)
RUNS = 2 + 2 + 2 * 2  # pretrainings, baselines by two learning rates, finetunings by two
ON_SLURM = (
    "--gin_file=gin/executors/slurm.gin",
    "--gin.RUNS_PER_JOB=3",
    "--gin.SLURM_PRETRAIN={'time': '10:00'}",
    "--gin.SLURM_FINETUNE={'time': '10:00'}",
    "--gin.runner.run_study.poll_seconds=1.0",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    why = slurm_cluster.missing()
    if why:
        pytest.skip(why)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def command(folder, root, minutes, *extra):
    """The arguments of run.py. Each step of pretraining is logged, and saved after so many minutes:
    with 0 there are seconds between the first and the last, to be hit in."""
    settings = {
        "BATCH_SIZE": 8,
        "LOG_EVERY": 1,
        "CHECKPOINT_MINUTES": minutes,
        "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 24},
        "TASK_MODULES": ("tests.mini_tasks",),
    }
    places = f"--gin.STUDY_DIR={folder}", f"--gin.EXAMPLES_ROOT={root}"
    return ["study", *STUDY, f"--gin.study.Study.pretrain_settings={settings}", *places, *extra]


def start(folder, root, environment, *extra):
    return subprocess.Popen(
        [sys.executable, "run.py", *command(folder, root, 0.0, *extra)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(found, process, seconds=240):
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.1)
    return value


def job_of(run_directory):
    return json.loads((run_directory / "JOB").read_text())["job"]


def slurm_says(environment, *arguments):
    return subprocess.run(
        arguments, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_eight_runs_give_what_they_give_here(cluster, mini_root, tmp_path):
    """With a job killed, a job sent back to the queue, and the controller killed and restarted."""
    here, there = tmp_path / "here", tmp_path / "there"
    assert run.main(command(here, mini_root, 10.0)) == 0

    controller = start(there, mini_root, cluster, *ON_SLURM)
    killed, requeued = (there / "runs/pretrain" / name for name in
                        ("mini_span_en50_de50", "mini_span_en"))  # fmt: skip
    strike = {killed: ("scancel",), requeued: ("scontrol", "requeue")}
    struck = {}
    while len(struck) < 2:  # each as soon as it trains: they do not start together
        hit = until(
            lambda: next(
                (r for r in strike if r not in struck and (r / "metrics.jsonl").exists()), 0
            ),
            controller,
        )
        struck[hit] = job_of(hit)
        slurm_says(cluster, *strike[hit], struck[hit])
        assert not (hit / "DONE").exists()
    first = struck[killed]
    until(lambda: job_of(killed) != first, controller)  # the controller saw it
    # Back in the queue, Slurm would let the other wait for two minutes.
    again = job_of(requeued)
    until(
        lambda: "PENDING" in slurm_says(cluster, "squeue", "--format=%T", "-j", again), controller
    )
    slurm_says(cluster, "scontrol", "update", f"JobId={again}", "StartTime=now")
    controller.send_signal(signal.SIGKILL)
    controller.communicate()
    jobs = {path: path.read_text() for path in there.glob("runs/**/JOB")}
    assert len(jobs) == RUNS

    controller = start(there, mini_root, cluster, *ON_SLURM)
    said = controller.communicate(timeout=600)[0]
    assert controller.returncode == 0, said
    assert (there / "results.csv").read_bytes() == (here / "results.csv").read_bytes()
    names = sorted(path.relative_to(here) for path in here.glob("runs/**/metrics.jsonl"))
    assert len(names) == RUNS
    for name in names:
        assert (there / name).read_bytes() == (here / name).read_bytes(), name
    assert slurm_says(cluster, "squeue", "--me", "--noheader") == ""
    # Runs of one job are one process: the baselines were done by the same one.
    assert len({path.read_text() for path in there.glob("runs/finetune/none/**/JOB")}) == 1


def test_detach_and_cancel(cluster, mini_root, tmp_path):
    left = start(tmp_path, mini_root, cluster, *ON_SLURM, "--detach")
    said = left.communicate()[0]
    assert left.returncode == 0 and f"{RUNS} jobs are with the engine" in said, said
    states = [run.state for run in status.statuses(str(tmp_path))]
    assert set(states) <= {"queued", "running"}
    ended = start(tmp_path, mini_root, cluster, *ON_SLURM, "--cancel")
    assert "jobs cancelled" in ended.communicate()[0]
    deadline = time.monotonic() + 60
    while slurm_says(cluster, "squeue", "--me", "--noheader"):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def a_run(kind="finetune"):
    return Run("finetune/x", (), {"MODEL_DIR": "x"}, (), {"kind": kind}, 1)


def test_slurms_refusals_are_one_line(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
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
