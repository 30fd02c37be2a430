"""The Cloud TPU executor: jobs that SkyPilot's own parser accepts, what it is asked and told."""

import dataclasses
import json
import os
import subprocess

import pytest

from t5scaling import config
from t5scaling.errors import UserError
from t5scaling.study import runner
from t5scaling.study.executors import cloud_tpu
from t5scaling.study.expand import Run
from tests import outside
from tests.conftest import REPOSITORY

STUDY = "gs://my-bucket/paper"
PARSE = """
import json, sys, sky
for description in json.load(sys.stdin):
    try:
        task = sky.Task.from_yaml_config(description)
    except ValueError as error:
        print("ANSWER", json.dumps({"refused": str(error)}))
        continue
    (resources,) = task.resources
    print("ANSWER", json.dumps({
        "accelerators": resources.accelerators, "spot": resources.use_spot, "run": task.run,
        "setup": task.setup, "name": task.name, "envs": task.envs, "nodes": task.num_nodes,
        "mounts": list(task.storage_mounts),
    }))
"""
FAKE = """#!/bin/sh
echo "$@" >> "$SKY_LOG"
case "$2" in
launch) for last; do :; done; cat "$last" >> "$SKY_LOG.yaml"; echo >> "$SKY_LOG.yaml" ;;
queue) cat "$SKY_LOG.queue" ;;
esac
exit ${SKY_STATUS:-0}
"""


def a_run(number, kind="finetune"):
    bindings = {"MODEL_DIR": "x", "EXAMPLES_ROOT": "gs://my-bucket/examples"}
    return Run(f"{kind}/{number}", (), bindings, (), {"kind": kind}, 1)


def executor(**changes):
    settings = {
        "pretrain": "tpu-v4-128",
        "finetune": "tpu-v5litepod-16",
    }
    return cloud_tpu.CloudTPU(**{**settings, **changes})


def test_skypilots_parser_reads_what_was_meant(tmp_path):
    """And would refuse another word, so that its consent means something."""
    if not outside.has_skypilot():
        pytest.skip(outside.MISSING.format("SkyPilot"))
    one = executor(infra="gcp/us-central2/us-central2-b", runtime_version="tpu-ubuntu2204-base")
    descriptions = [
        one.description("a-job", STUDY, [a_run(1, "pretrain")]),
        executor(spot=False).description("b-job", STUDY, [a_run(1), a_run("lr=2")]),
        {**executor().description("a", STUDY, [a_run(1)]), "runn": "x"},
    ]
    done = subprocess.run(
        [outside.skypilot_python(), "-c", PARSE],
        input=json.dumps(descriptions),
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    first, second, wrong = (json.loads(line.removeprefix("ANSWER")) for line in lines)
    assert first["accelerators"] == {"tpu-v4-128": 1} and first["spot"] is True
    assert first["mounts"] == []
    assert first["run"].split() == [
        "exec", "~/t5scaling/bin/python", "run.py", "work", STUDY, "pretrain/1",
    ]  # fmt: skip
    assert first["envs"] == {"T5SCALING_JOB": "job a-job"} and first["nodes"] == 1
    assert "pip install" in first["setup"]
    assert second["accelerators"] == {"tpu-v5litepod-16": 1} and second["spot"] is False
    assert second["run"].split()[-2:] == ["finetune/1", "finetune/lr=2"]
    assert "did you mean 'run'" in wrong["refused"]


@pytest.fixture
def fake_sky(tmp_path, monkeypatch):
    """Answers as SkyPilot 0.14's command does: `jobs queue --output json` is a list of records with
    job_name and status."""
    (tmp_path / "sky").write_text(FAKE)
    (tmp_path / "sky").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SKY_LOG", str(tmp_path / "log"))
    return tmp_path


def test_a_job_for_each_group_of_runs(fake_sky):
    runs = [a_run(number) for number in range(3)]
    jobs = executor(runs_per_job=2).submit("gs://my-bucket/My Study", runs, ())
    assert jobs[0] == jobs[1] != jobs[2]
    assert all(job.startswith("t5s-my-study-finetune-") for job in jobs)
    described = [json.loads(line) for line in (fake_sky / "log.yaml").read_text().splitlines()]
    assert [one["name"] for one in described] == [jobs[0], jobs[2]]
    assert "work 'gs://my-bucket/My Study' finetune/0 finetune/1\n" in described[0]["run"]
    assert described[0]["workdir"] == REPOSITORY


def test_states_and_cancel(fake_sky):
    records = [
        {"job_name": "a", "status": "RUNNING"},
        {"job_name": "b", "status": "RECOVERING"},
        {"job_name": "c", "status": "FAILED_SETUP"},
        {"job_name": "somebody's", "status": "RUNNING"},
    ]
    (fake_sky / "log.queue").write_text("a line before\n" + json.dumps(records))
    states = executor().states(["a", "b", "c", "d"])
    assert states == {"a": "running", "b": "queued", "c": "gone", "d": "gone"}
    executor().cancel(["b", "a", "a"])
    cancelled = [line for line in (fake_sky / "log").read_text().splitlines() if "cancel" in line]
    assert cancelled == [f"jobs cancel --yes --name {name}" for name in "ab"]
    (fake_sky / "log.queue").write_text("no controller")
    with pytest.raises(UserError, match="expected JSON"):
        executor().states(["a"])


def test_refusals(fake_sky, monkeypatch):
    with pytest.raises(UserError, match="STUDY_DIR=runs/here is on this machine"):
        executor().submit("runs/here", [a_run(1)], ())
    elsewhere = dataclasses.replace(a_run(1), bindings={"EXAMPLES_ROOT": "runs/examples"})
    with pytest.raises(UserError, match="EXAMPLES_ROOT=runs/examples is on this machine"):
        executor().submit(STUDY, [elsewhere], ())
    for wrong in ({"pretrain": "v4-8"}, {"runs_per_job": 0}):
        with pytest.raises(UserError, match=f"CloudTPU.{next(iter(wrong))}="):
            executor(**wrong)
    monkeypatch.setenv("SKY_STATUS", "1")
    with pytest.raises(UserError, match=r"^sky jobs launch: "):
        executor().submit(STUDY, [a_run(1)], ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="sky is not installed"):
        executor().states(["a"])


def test_the_gin_file_binds_it(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    files = ["gin/studies/quick.gin", "gin/executors/cloud_tpu.gin"]
    config.load(files, {"TPU_FINETUNE": "tpu-v4-8"})
    bound = config.bindings_of(runner.run_study)["executor"]
    assert (bound.pretrain, bound.finetune, bound.orders_jobs) == ("tpu-v4-128", "tpu-v4-8", False)
