"""Promises of a study whose directories are in a bucket, on an emulator of Cloud Storage."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import run
from t5scaling import records, storage
from t5scaling.analysis import archive
from t5scaling.analysis.results import harvest, t5x_runs
from t5scaling.data.examples import Examples, find_all_examples
from t5scaling.errors import UserError
from t5scaling.study import status
from t5scaling.training import checkpoint, claim
from tests import gcs_emulator, mini
from tests.conftest import REPOSITORY

RUNS = 3  # a pretraining, the baseline, a finetuning
PRETRAINED = "runs/pretrain/mini_span_en50_de50"
FINETUNED = "runs/finetune/mini_span_en50_de50/dp=12k/mini_translate_en_de/df=3k/lr=0.01/seed=0"


@pytest.fixture(scope="module", autouse=True)
def bucket(tmp_path_factory):
    """The address of an empty bucket; this process and its children know where it is."""
    with gcs_emulator.running() as port, pytest.MonkeyPatch.context() as patch:
        for name, value in gcs_emulator.environment(port).items():
            patch.setenv(name, value)
        yield f"gs://{gcs_emulator.BUCKET}"


@pytest.fixture(scope="module")
def root(bucket, mini_root):
    """Examples in the bucket, published as a materialisation is."""
    for spec in (mini.SPAN, mini.PAIRS, mini.VALIDATION, mini.TEST):
        (made,) = (e.path for e in find_all_examples([spec], mini_root))
        storage.publish(made, storage.path(f"{bucket}/examples/{made.name}"), last="dataset.json")
    return f"{bucket}/examples"


def python(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def study(study_dir, root, *extra):
    """The arguments of run.py for the miniature study without its two smaller budgets."""
    settings = {**mini.SMALL, "runner.run_study.poll_seconds": 0.5}
    given = (f"--gin.{name}={value}" for name, value in settings.items())
    return mini.study(study_dir, root, *given, *extra)


# What a process does once the study is done: it finds the runs done, measures one, and starts from
# another's weights.
AFTERWARDS = """
import sys, run
print("status", [run.main(call) for call in {calls!r}])
print("loaded", {{"tensorflow", "orbax", "gcsfs"}} & sys.modules.keys())
"""


@dataclass(frozen=True)
class Shared:
    """A study in the bucket by two processes at once, of which one was killed with -9 in a run that
    had saved something; what the other printed."""

    place: str
    killed_in: str
    done_by_the_killed: set[str]
    said: str


@pytest.fixture(scope="module")
def shared(bucket, root, mini_study):
    place = f"{bucket}/studies/shared"
    finetuned = f"{place}/{FINETUNED}"
    last = checkpoint.newest_step(str(mini_study / PRETRAINED))
    calls = [
        study(place, root),
        ["work", place, FINETUNED.removeprefix("runs/")],
        [
            "eval",
            "--gin_file=tests/mini/model.gin",
            "--gin_file=gin/runs/eval.gin",
            "--gin.MIXTURE_OR_TASK_NAME=mini_translate_en_de",
            "--gin.EVAL_FEATURE_LENGTHS={'inputs': 160, 'targets': 160}",
            "--gin.EVAL_BATCH_SIZE=8",
            "--gin.TASK_MODULES=('tests.mini_tasks',)",
            f"--gin.MODEL_DIR={finetuned}",
            f"--gin.EXAMPLES_ROOT={root}",
            "--gin.MAX_DECODE_LENGTH=16",
        ],
        [
            "train",
            f"--gin_file={finetuned}/config.gin",
            f"--gin.MODEL_DIR={place}-more",
            f"--gin.INITIAL_CHECKPOINT_PATH={place}/{PRETRAINED}/checkpoints/checkpoint_{last}/",
            "--gin.CHECKPOINT_MINUTES=10.0",
        ],
    ]
    often = study(place, root, "--gin.SAVE_MINUTES=0.0")
    killed = python("run.py", *often, start_new_session=True)
    other = python("-c", AFTERWARDS.format(calls=calls))
    deadline = time.monotonic() + 600
    while not (killed_in := run_that_has_saved(killed.pid, place)):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not records.is_done(f"{place}/runs/{killed_in}"), (
        "the run ended before it could be killed"
    )
    done = {run for run, holder in holders(place).items() if holder.pid == killed.pid}
    done = {run for run in done if records.is_done(f"{place}/runs/{run}")}
    said, errors = other.communicate()
    assert "status [0, 0, 0, 0]" in said, errors
    return Shared(place, killed_in, done, said)


def holders(place):
    """Run -> its last claim."""
    listed = records.study_list(place) or {"runs": []}
    claims = {run: claim.latest(f"{place}/runs/{run}") for run in listed["runs"]}
    return {run: holder for run, holder in claims.items() if holder}


def run_that_has_saved(pid, place):
    """One that the process is at work on and of which there is a checkpoint."""
    for name, holder in holders(place).items():
        at_work = holder.alive and holder.pid == pid
        if at_work and checkpoint.newest_step(f"{place}/runs/{name}"):
            return name
    return None


def test_two_processes_one_of_which_is_killed_give_the_results_of_a_disk(shared, mini_study):
    done = re.findall(r"\] (\S+): \d+ s", shared.said)
    assert shared.killed_in in done and not shared.done_by_the_killed & set(done)
    assert len(done) == len(set(done)) == RUNS - len(shared.done_by_the_killed)
    there = storage.path(shared.place)
    names = sorted(name for name in storage.sizes(there) if name.endswith("/metrics.jsonl"))
    assert len(names) == RUNS
    for name in names:
        assert (there / name).read_bytes() == (mini_study / name).read_bytes(), name
    assert (there / "results.csv").read_text() == mini.results_of_small(mini_study)


def test_status_report_and_export(shared, mini_study, tmp_path):
    last = checkpoint.newest_step(str(mini_study / PRETRAINED))
    runs = status.statuses(shared.place)
    assert [(run.state, run.step) for run in runs] == [("done", last), ("done", 10), ("done", 10)]
    assert harvest.is_reported(shared.place)
    html = (storage.path(shared.place) / "report.html").read_bytes()
    figures = [name for name in storage.sizes(f"{shared.place}/figures") if name.endswith(".svg")]
    assert figures and html.count(b"data:image/svg") == len(figures)
    packed = archive.export(shared.place, str(tmp_path / "shared.tar.gz"))
    assert archive.export(shared.place) == storage.path(f"{shared.place}.tar.gz")
    assert storage.path(f"{shared.place}.tar.gz").read_bytes() == packed.read_bytes()
    with tarfile.open(packed) as tar:
        names = set(tar.getnames())
    assert {f"shared/{FINETUNED}/metrics.jsonl", "shared/study.json"} <= names


def test_work_eval_and_finetuning_from_there(shared, tmp_path):
    """`work` finds the runs done, `eval` measures one, and `train` starts from another's weights,
    without TensorFlow, though it is installed."""
    loaded = shared.said.rpartition("loaded ")[2]
    assert "orbax" in loaded and "gcsfs" in loaded and "tensorflow" not in loaded
    first, second = map(storage.path, (f"{shared.place}/{FINETUNED}", f"{shared.place}-more"))
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    in_training = json.loads((first / "metrics.jsonl").read_text().splitlines()[-1])
    (line,) = map(json.loads, (first / "eval.jsonl").read_text().splitlines())
    assert line["step"] == 10 and line["split"] == "test" and in_training["split"] == "test"
    assert line["cross_entropy"] == in_training["cross_entropy"]
    (events,) = (second / "tensorboard").iterdir()
    (tmp_path / "events").write_bytes(events.read_bytes())
    tags = {tag for _, _, tag, _ in t5x_runs._read_events(tmp_path / "events")}
    assert {"train/mini_translate_en_de/loss", "test/mini_translate_en_de/bleu"} <= tags


def test_one_of_many_creators_wins(bucket):
    def create(number):
        return storage.create(f"{bucket}/race", str(number).encode())

    with ThreadPoolExecutor(16) as threads:
        won = list(threads.map(create, range(16)))
    assert won.count(True) == 1
    assert storage.path(f"{bucket}/race").read_text() == str(won.index(True))


def test_a_run_is_claimed(bucket):
    run = f"{bucket}/claimed"
    with claim.hold(run, step=7):
        assert claim.holder(run).pid == os.getpid()
        with pytest.raises(claim.Taken, match="is at work on this run"), claim.hold(run):
            pass
    assert claim.holder(run) is None
    with claim.hold(run):
        assert list(storage.sizes(f"{run}/claims")) == ["2"]


def test_damaged_and_unfinished_checkpoints(bucket, capsys):
    run = f"{bucket}/damaged"
    states = {step: {"w": jnp.full(8, float(step))} for step in (1, 2, 3)}
    saves = checkpoint.Checkpoints(run, named_steps=[1])
    for step, state in states.items():
        saves.save(step, state)
    saves.wait()
    saves.close()
    assert saves.steps() == [1, 2, 3]
    there = storage.path(run) / "checkpoints"
    largest = max(storage.sizes(there / "checkpoint_3").items(), key=lambda item: item[1])[0]
    storage.write(there / "checkpoint_3" / largest, b"cut")
    storage.write(there / "checkpoint_4" / "default" / "_METADATA", b"killed while saving")
    assert checkpoint.newest_step(run) == 3

    again = checkpoint.Checkpoints(run, named_steps=[1])
    assert not (there / "checkpoint_4").exists()
    abstract = jax.tree.map(abstract_of, states[1])
    np.testing.assert_array_equal(again.restore_latest(abstract)["w"], np.full(8, 2.0))
    assert "checkpoint_3 cannot be read" in capsys.readouterr().out
    assert (there / "broken-checkpoint_3" / "digests.json").exists()
    assert [step for step, _ in checkpoint.choose(run, "all")] == [1, 2]
    again.delete_all_but([1])
    again.close()
    assert [step for step, _ in checkpoint.choose(run, "all")] == [1]


def abstract_of(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def test_a_growing_object_is_rewritten_now_and_then_and_when_it_must_be_there(bucket, monkeypatch):
    there = storage.path(f"{bucket}/growing.jsonl")
    file = storage.GrowingFile(there, "a\n")
    file.append("b\n")
    assert there.read_text() == "a\nb\n"
    file.append("c\n")
    assert there.read_text() == "a\nb\n"
    file.flush()
    assert there.read_text() == "a\nb\nc\n"
    monkeypatch.setattr(storage, "REWRITE_S", 0.0)
    file.append("d\n")
    assert there.read_text() == "a\nb\nc\nd\n"


def test_parts_of_examples_are_fetched_when_they_are_read(
    root, mini_root, tmp_path, monkeypatch, bucket
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (here,) = find_all_examples([mini.PAIRS], mini_root)
    (there,) = find_all_examples([mini.PAIRS], root)
    assert not list(tmp_path.rglob("part-*"))
    assert there.read(5)["inputs"].tolist() == here.read(5)["inputs"].tolist()
    assert [file.name for file in tmp_path.rglob("part-*")] == ["part-00000-of-00001.array_record"]
    # A damaged copy is fetched again.
    (copy,) = tmp_path.rglob("part-*")
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    assert Examples(there.path).read(5)["inputs"].tolist() == here.read(5)["inputs"].tolist()
    # Not all there yet: its dataset.json comes last.
    name = there.path.name
    storage.publish(here.path, storage.path(f"{bucket}/half/{name}"), last="dataset.json")
    (storage.path(f"{bucket}/half") / name / "part-00000-of-00001.array_record").unlink()
    with pytest.raises(UserError, match=r"part-00000-of-00001\.array_record is missing"):
        Examples(f"{bucket}/half/{name}")


def test_examples_are_made_here_and_published(
    bucket, materialised_here, mini_root, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (here,) = find_all_examples([mini.VALIDATION], mini_root)
    unfinished = f"{bucket}/made/{here.path.name}/vocabulary.model"
    storage.write(unfinished, b"by a process that was killed")
    (made,) = find_all_examples([mini.VALIDATION], f"{bucket}/made")
    assert os.fspath(made.path) == f"{bucket}/made/{here.path.name}"
    assert storage.sizes(made.path) == storage.sizes(here.path)
    assert made.meta == here.meta


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("gs://nowhere/study", "gs://nowhere: there is no such bucket; gcloud storage buckets"),
        ("gs://forbidden/study", "gs://forbidden: no permission to list it (nobody has"),
        ("gs://bucket/nothing", "gs://bucket/nothing: no study here"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(address, says, capfd):
    assert run.main(["status", address]) == 2
    errors = capfd.readouterr().err
    assert errors.startswith(f"error: {says}") and errors.count("\n") == 1


def test_a_process_that_met_a_bucket_ends_without_a_word(bucket):
    process = python("run.py", "status", f"{bucket}/nothing")
    _, errors = process.communicate()
    assert process.returncode == 2 and errors.count("\n") == 1, errors


def test_a_missing_package_is_named():
    code = "import sys\nsys.modules['gcsfs'] = None\nimport run\nsys.exit(run.main(sys.argv[1:]))"
    process = python("-c", code, "train", "--gin_file=gs://bucket/run/config.gin")
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == (
        "error: gs://bucket needs the package gcsfs, which is not installed: "
        'pip install -e ".[gcs]"\n'
    )


def test_what_cannot_be_written_is_said(bucket, monkeypatch):
    def refuse(*_, **__):
        raise OSError("Forbidden: b/o\nno storage.objects.create access")

    monkeypatch.setattr(storage, "_system", lambda: type("Refusing", (), {"put_file": refuse}))
    with pytest.raises(UserError, match=r"cannot write gs://bucket/x: no storage.objects.create"):
        storage.write(f"{bucket}/x", "text")
