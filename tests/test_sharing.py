"""Processes that share a study: what each gets, and that none is left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from t5scaling import nvidia
from t5scaling.errors import Stopped, UserError
from t5scaling.study import sharing
from t5scaling.training import tracker

# In place of run.py: says what it was given, and ends with 3, or at a signal once it has "saved".
PROGRAM = """
import json, os, signal, sys, time
place, what = sys.argv[1:]
def save(*_):
    open(f"{place}/saved-{os.getpid()}", "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
given = {
    "cores": sorted(os.sched_getaffinity(0)),
    "pipes": os.environ.get("CUDA_MPS_PIPE_DIRECTORY"),
    "shared_by": os.environ["T5SCALING_SHARED_BY"],
    "preallocate": os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"],
    "session": os.getsid(0),
}
with open(f"{place}/began-{os.getpid()}.tmp", "w") as file:
    json.dump(given, file)
os.rename(file.name, file.name.removesuffix(".tmp") + ".json")
print("works")
if what == "fail":
    sys.exit(3)
while what == "wait" or not os.path.exists(f"{place}/go"):
    time.sleep(0.01)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The first argument of a program that stands in for run.py; a test adds what it shall do."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setenv(tracker.SHARED_BY, "1")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.delenv("CUDA_MPS_LOG_DIRECTORY", raising=False)
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: False)
    cores = os.sched_getaffinity(0)
    handler = signal.getsignal(signal.SIGTERM)
    yield [str(tmp_path)]
    os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGTERM, handler)


def began(folder, count):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = sorted(folder.glob("began-*.json"))
        if len(found) == count:
            return [json.loads(path.read_text()) for path in found]
        time.sleep(0.01)
    raise AssertionError(f"{len(found)} of {count} began")


def test_the_others_share_the_cores_and_are_waited_for(command, tmp_path, capsys):
    cores = os.sched_getaffinity(0)
    with sharing.shared(3, [*command, "go"], str(tmp_path / "study")):
        others = began(tmp_path, 2)
        own = os.sched_getaffinity(0)
        (tmp_path / "go").touch()
    shares = [own, *(set(other["cores"]) for other in others)]
    assert set.union(*shares) == cores
    assert len(cores) < 3 or sum(map(len, shares)) == len(cores)
    assert {other["preallocate"] for other in others} == {"false"}
    assert {other["shared_by"] for other in others} == {os.environ["T5SCALING_SHARED_BY"]} == {"3"}
    assert os.getsid(0) not in {other["session"] for other in others}
    logs = tmp_path / "study/jobs"
    assert [path.read_text() for path in sorted(logs.iterdir())] == ["works\n"] * 2
    assert f"3 processes share the study; those beside this one write to {logs}" in (
        capsys.readouterr().out
    )


def test_a_process_that_ends_badly_is_named(command, tmp_path, capsys):
    with sharing.shared(2, [*command, "fail"], str(tmp_path)):
        pass
    assert f"process 2 ended with status 3; see {tmp_path}/jobs/process-2.log" in (
        capsys.readouterr().out
    )


def test_stopped_they_save_and_end(command, tmp_path):
    """SIGTERM reaches the process while it waits for the others."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    others = sharing.shared(3, [*command, "wait"], str(tmp_path))
    with pytest.raises(Stopped) as stopped, others:
        began(tmp_path, 2)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.signal_number == signal.SIGTERM
    assert len(list(tmp_path.glob("saved-*"))) == 2


def test_an_error_ends_them_too(command, tmp_path):
    others = sharing.shared(2, [*command, "wait"], str(tmp_path))
    with pytest.raises(UserError, match="a mistake"), others:
        began(tmp_path, 1)
        raise UserError("a mistake")
    assert len(list(tmp_path.glob("saved-*"))) == 1


def test_one_process_is_as_ever(tmp_path):
    before = dict(os.environ)
    with sharing.shared(1, [], str(tmp_path / "study")):
        assert dict(os.environ) == before
    assert not (tmp_path / "study").exists()


def test_no_process(tmp_path):
    expected = "--processes is 0; expected a whole number >= 1"
    with pytest.raises(UserError, match=expected), sharing.shared(0, [], str(tmp_path)):
        pass


@pytest.mark.parametrize("usable", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_cores(monkeypatch, usable, processes):
    """Every core is used, and none twice where there are enough."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    shares = sharing.cores_of(processes)
    assert len(shares) == processes and all(shares)
    assert set.union(*shares) == set(range(usable))
    sizes = [len(share) for share in shares]
    if usable >= processes:
        assert sum(sizes) == usable and max(sizes) - min(sizes) <= 1


CONTROL = """#!/bin/sh
if [ "$1" = -d ]; then echo "$CUDA_MPS_PIPE_DIRECTORY" > {place}/began; exit {status}; fi
cat > {place}/commands
"""


@pytest.mark.parametrize("status, probed", [(0, 0), (0, 1), (1, 0)])
def test_the_service_of_a_gpu(command, tmp_path, monkeypatch, capsys, status, probed):
    """Used if it begins and JAX can; it ends with the process that began it, or at once."""
    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(CONTROL.format(place=tmp_path, status=status))
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: True)
    monkeypatch.setattr(sharing, "_USUAL_PIPES", str(tmp_path / "none"))
    monkeypatch.setattr(sharing, "_PROBE", f"raise SystemExit({probed})")
    watched = subprocess.Popen(["sleep", "60"])
    monkeypatch.setattr(os, "getpid", lambda: watched.pid)
    (tmp_path / "go").touch()
    with sharing.shared(2, [*command, "go"], str(tmp_path)):
        (other,) = began(tmp_path, 1)
    works = not status and not probed
    pipes = (tmp_path / "began").read_text().strip()
    assert other["pipes"] == (pipes if works else None)
    assert ("take turns" in capsys.readouterr().out) == (not works)
    commands = tmp_path / "commands"
    assert commands.exists() == (not status and probed == 1)
    watched.kill()
    watched.wait()
    until = time.monotonic() + 20
    while works and not (commands.exists() and commands.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not works or commands.read_text() == "quit\n"


def test_no_service(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(nvidia, "driver_is_here", lambda: True)
    monkeypatch.setattr(sharing, "_USUAL_PIPES", str(tmp_path / "none"))
    monkeypatch.setattr(sharing, "_CONTROL", "no-such-program")
    (tmp_path / "go").touch()
    with sharing.shared(2, [*command, "go"], str(tmp_path)):
        pass
    assert "take turns on the GPU" in capsys.readouterr().out
