"""Two processes on this machine as one job."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import run
from t5scaling.errors import UserError
from t5scaling.training import agreement, distributed
from tests import mini
from tests.conftest import REPOSITORY, xla_flags

STEPS = 12


def _arguments(model_dir, root, **changes):
    settings = {
        "MIXTURE_OR_TASK_NAME": "mini_span_en50_de50",
        "TASK_MODULES": str(mini.MODULES),
        "TASK_FEATURE_LENGTHS": str(mini.SPAN.feature_lengths),
        "EXAMPLES_ROOT": root,
        "BATCH_SIZE": 8,
        "TRAIN_STEPS": STEPS,
        "MAX_EPOCHS": None,
        "LOG_EVERY": 4,  # a multiple of STEPS_PER_CALL: single steps are another program
        "MODEL_DIR": str(model_dir),
        **changes,
    }
    files = ("tests/mini/model.gin", "gin/runs/pretrain.gin")
    return [
        "train",
        *(f"--gin_file={os.path.join(REPOSITORY, file)}" for file in files),
        *(f"--gin.{name}={value}" for name, value in settings.items()),
    ]


def _launch(arguments):
    """The two processes, each with one device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": xla_flags(devices=1),
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
    }
    return [
        subprocess.Popen(
            [sys.executable, os.path.join(REPOSITORY, "run.py"), *arguments],
            cwd=REPOSITORY,
            env=environment | {"JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


def test_two_processes_train_as_one_and_survive_a_kill(mini_root, tmp_path):
    two = tmp_path / "two"
    first, second = _launch(_arguments(two, mini_root, STEPS_PER_CALL=2, CHECKPOINT_MINUTES=0.0))
    saved = two / "checkpoints/checkpoint_4"
    while not saved.exists() and first.poll() is None and second.poll() is None:
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    said, _ = first.communicate(timeout=60)
    assert first.returncode not in (0, None), said[-2000:]
    assert "start the job again: it goes on from its last checkpoint" in said.splitlines()[-1]
    second.communicate()

    for process in _launch(_arguments(two, mini_root, STEPS_PER_CALL=2)):
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said[-2000:]
    assert run.main(_arguments(tmp_path / "one", mini_root)) == 0
    one, two = (mini.parameters(tmp_path / name, STEPS) for name in ("one", "two"))
    for name in one:
        difference = np.linalg.norm(one[name] - two[name])
        assert difference <= 1e-6 * np.linalg.norm(one[name]), name

    alone, together = (mini.lines(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    for a, b in zip(alone, together, strict=True):
        assert a["tokens_seen"] == b["tokens_seen"]
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    assert json.loads((tmp_path / "two/DONE").read_text()) == {
        "step": STEPS,
        "metrics_sha256": hashlib.sha256((tmp_path / "two/metrics.jsonl").read_bytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    ("arguments", "environment", "expected"),
    [
        ((None, None, None), {}, None),
        (("a:1", 2, 1), {}, {"coordinator_address": "a:1", "num_processes": 2, "process_id": 1}),
        (("a:1", 1, 0), {}, None),
        (
            (None, None, None),
            {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"},
            {"cluster_detection_method": "slurm"},
        ),
        ((None, None, None), {"SLURM_NTASKS": "2"}, None),  # the batch script itself: no step
    ],
)
def test_where_a_job_is_found(arguments, environment, expected):
    assert distributed._settings(*arguments, environment) == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("a:1", 2, None), {}, ["--process_id missing", "--num_processes"]),
        (("a", 2, 0), {}, ["--coordinator is 'a'", "HOST:PORT"]),
        (("a:1", 2, 2), {}, ["--process_id is 2", "0 to 1"]),
        ((None, None, None), {"JAX_NUM_PROCESSES": "2"}, ["JAX_COORDINATOR_ADDRESS", "missing"]),
        (
            (None, None, None),
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "x", "JAX_PROCESS_ID": "0"},
            ["JAX_NUM_PROCESSES", "expected numbers"],
        ),
    ],
)
def test_half_a_job_is_refused(arguments, environment, words):
    with pytest.raises(UserError) as error:
        distributed._settings(*arguments, environment)
    assert all(word in str(error.value) for word in words), error.value


def test_nobody_to_talk_to(monkeypatch):
    """The process ends with our line, where JAX would abort under a stack of C++."""
    code = (
        "import sys, t5scaling.training.distributed as d\n"
        "d.START_TIMEOUT_S = 2\n"
        "with d.job(f'127.0.0.1:{sys.argv[1]}', 2, int(sys.argv[2])): pass"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(port + place), str(place)],
            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )
        for place in (0, 1)
    ]  # fmt: skip
    for place, process in enumerate(started):
        said = process.communicate(timeout=100)[1].strip().splitlines()
        assert process.returncode == 2
        assert said[-1].startswith(
            f"error: process {place} of 2 could not reach the other processes at 127.0.0.1"
        )
        assert any(f"process {place} of 2 waits for the others" in line for line in said)


def test_processes_with_other_settings_end_at_once():
    code = (
        "import sys\n"
        "from t5scaling.training import agreement, distributed\n"
        "with distributed.job(sys.argv[1], 2, int(sys.argv[2])):\n"
        "    agreement.check({**agreement.code(), 'setting': f'A = 1\\nSEED = {sys.argv[2]}'})"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(place)],
            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )
        for place in (0, 1)
    ]  # fmt: skip
    for process in started:
        said = process.communicate(timeout=100)[1].strip().splitlines()
        assert process.returncode == 2
        assert said[-1].startswith(
            "error: process 1 has another setting (SEED = 1) than process 0 (SEED = 0); "
        )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ([{"setting": ["A = 1"]}] * 3, None),
        (
            [{"verb": ["train"], "setting": ["A"]}, {"verb": ["eval"], "setting": ["B"]}],
            "process 1 has another verb (eval) than process 0 (train)",
        ),
        (
            [{"file": ["a 1", "b 2"]}, {"file": ["a 1", "b 2"]}, {"file": ["a 1", "b 2", "c 3"]}],
            "process 2 has another file (c 3) than process 0 (none)",
        ),
        (
            [{"checkpoint": ["10", "20"]}, {"checkpoint": []}],
            "process 1 has another checkpoint (none) than process 0 (10)",
        ),
        (
            [{"run": ["a", "b"]}, {"run": ["b", "a"]}],
            "process 1 has another run (b) than process 0 (a)",
        ),
        ([{"run": ["a"]}, {"run": ["a", "a"]}], "process 1 has another run (a) than process 0 (n"),
        ([{"run": ["a"]}, {}], "process 1 has another run (none) than process 0 (a)"),
    ],
)
def test_what_two_processes_do_not_have_alike_is_named(facts, words):
    found = agreement.difference(facts)
    assert found is None if words is None else found.startswith(words)


@pytest.fixture
def second_of_two(monkeypatch):
    """This process is the second of two; the test says what the first one says in their talks."""
    first_says = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "largest", lambda *mine: (max(*mine, first_says.pop(0)),))
    monkeypatch.setattr(agreement, "check", lambda facts: None)
    monkeypatch.setattr(agreement, "SEEN_S", 0.0)
    return first_says


@pytest.mark.parametrize(
    ("first_says", "words"),
    [
        ((0, 0, 1, 0, 0), "does not find mini_translate_en_de test in"),
        ((1, 1), "process 0 could not make the examples of mini_translate_en_de test"),
    ],
)
def test_a_process_does_not_wait_for_examples_that_will_not_come(
    second_of_two, first_says, words, tmp_path, capsys
):
    second_of_two[:] = first_says
    with pytest.raises(UserError, match=words):
        agreement.ready_examples([mini.TEST], str(tmp_path))
    assert "waits for process 0, which makes the examples of mini_tr" in capsys.readouterr().out


def test_examples_that_another_process_lacks_end_this_one_too(second_of_two, mini_root):
    second_of_two[:] = (1, 0, 1)
    with pytest.raises(UserError, match="another process does not find the examples"):
        agreement.ready_examples([mini.TEST], mini_root)


def test_a_process_that_does_not_go_on_says_so_and_ends(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "SAY_AFTER_S", 0.05)
    monkeypatch.setattr(distributed, "END_AFTER_S", 0.2)
    ended = threading.Event()

    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    with distributed._watched(lambda: None):
        distributed.going_on("step 7")
        assert ended.wait(10)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "warning: process 0 of 1 has made no progress for 0 minutes after step 7"
    )
    assert last.startswith("error: process 0 of 1 has made no progress")
    assert last.endswith("start the job again: it goes on from its last checkpoint")


def test_one_process_agrees_with_itself():
    assert distributed.largest(0, 15) == (0, 15)
    assert distributed.is_main() and jax.process_count() == 1


def test_what_materialises_for_a_process_ends_with_it():
    inner = (
        "import os, time; from t5scaling.data import work; work.end_with(os.getppid()); "
        "print(1, flush=True); time.sleep(60)"
    )
    outer = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", outer, inner], stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout.readline() == b"1\n"
    process.kill()
    started = time.monotonic()
    assert process.stdout.read() == b""  # when the inner one, which shares it, is gone too
    assert time.monotonic() - started < 30
    process.wait()
