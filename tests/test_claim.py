"""Two processes never do one run at once, and a dead one's claim holds nobody up."""

import errno
import io
import json
import os
import subprocess
import sys
import time
from unittest import mock

import pytest

from t5scaling import config, storage
from t5scaling.errors import UserError
from t5scaling.study.executors import local
from t5scaling.study.expand import Run
from t5scaling.training import claim
from tests.conftest import REPOSITORY

RACE = """
import sys, time
from t5scaling.training import claim
while time.time() < float(sys.argv[2]):
    pass
try:
    with claim.hold(sys.argv[1]):
        print("won", flush=True)
        time.sleep(2)
except claim.Taken:
    print("lost", flush=True)
"""


def contents(run):
    (file,) = (run / "claims").iterdir()
    return file, json.loads(file.read_text())


def rewrite(run, **changes):
    file, now = contents(run)
    file.write_text(json.dumps({**now, **changes}))


def test_a_run_is_claimed_for_a_block(tmp_path):
    run = str(tmp_path)
    assert claim.holder(run) is None
    with claim.hold(run, step=7):
        held = claim.holder(run)
        assert (held.pid, held.step) == (os.getpid(), 7)
        refusal = pytest.raises(claim.Taken, match=f"process {os.getpid()} on .* is at work")
        with refusal, claim.hold(run):
            pass
    assert claim.holder(run) is None
    with claim.hold(run):
        assert claim.holder(run)
    assert len(list((tmp_path / "claims").iterdir())) == 1


def test_one_of_several_processes_wins(tmp_path):
    start = str(time.time() + 4)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), start],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for _ in range(4)
    ]
    assert sorted(racer.communicate()[0].strip() for racer in racers) == ["lost"] * 3 + ["won"]


def test_a_dead_process_is_known_at_once(tmp_path):
    code = f"""
import os
from t5scaling.training import claim
with claim.hold({str(tmp_path)!r}):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == -9
    assert contents(tmp_path)[1]["beat"] > 0
    assert claim.holder(str(tmp_path)) is None
    with claim.hold(str(tmp_path)):
        assert claim.holder(str(tmp_path)).pid == os.getpid()


def test_a_number_that_another_process_got_since_is_not_it(tmp_path):
    with claim.hold(str(tmp_path)):
        pass
    rewrite(tmp_path, beat=1)
    assert claim.holder(str(tmp_path))
    rewrite(tmp_path, started="1")
    assert claim.holder(str(tmp_path)) is None


@pytest.fixture
def clock(monkeypatch):
    """This process's own clock, which sleeping moves; what is to happen at a time can be added."""

    class Clock:
        now, events = 1000.0, ()

        def sleep(self, seconds):
            self.now += seconds
            for at, event in self.events:
                if self.now - seconds < at <= self.now:
                    event()

    made = Clock()
    monkeypatch.setattr(claim.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(claim.time, "sleep", made.sleep)
    return made


@pytest.mark.parametrize("off", [-86400, -240, 0, 240, 86400])
def test_clocks_of_two_machines_are_never_compared(tmp_path, clock, off, monkeypatch):
    """A holder elsewhere that gives signs of life keeps the run, whatever its clock says, and one
    that gives none loses it after the lease, by the clock of whoever looks."""
    run = str(tmp_path)
    with claim.hold(run):
        pass
    file, _ = contents(tmp_path)
    rewrite(tmp_path, host="elsewhere", beat=7)
    monkeypatch.setattr(claim.time, "time", lambda: clock.now + off)
    os.utime(file, (clock.now + off, clock.now + off))
    assert claim.holder(run).pid == os.getpid()
    clock.events = [(clock.now + 100, lambda: rewrite(tmp_path, beat=8))]
    with pytest.raises(claim.Taken, match="on elsewhere"), claim.hold(run):
        pass
    assert clock.now == pytest.approx(1100, abs=claim.BEAT_S / 10)
    clock.now += claim.LEASE_S - 1  # between two looks nobody was here to see
    assert claim.holder(run)
    clock.now += 2
    assert claim.holder(run) is None
    with claim.hold(run):
        assert claim.holder(run).host != "elsewhere"


def test_one_that_is_silent_is_waited_for_once(tmp_path, clock, capsys):
    with claim.hold(str(tmp_path)):
        pass
    rewrite(tmp_path, host="elsewhere", beat=7)
    with claim.hold(str(tmp_path)):
        assert clock.now == pytest.approx(1000 + claim.LEASE_S, abs=claim.BEAT_S / 10)
    assert "waiting to see whether it is alive, 180 s at most" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"owner": 1}', "\0\xff", "[" * 100_000])
def test_a_claim_that_cannot_be_read_locks_nobody_out(tmp_path, clock, text):
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims/3").write_bytes(text.encode("latin-1"))
    assert claim.holder(str(tmp_path))  # it may be being written
    with claim.hold(str(tmp_path)):
        assert clock.now == pytest.approx(1000 + claim.LEASE_S, abs=claim.BEAT_S / 10)
        assert [file.name for file in (tmp_path / "claims").iterdir()] == ["4"]


def test_what_is_no_claim_in_its_folder(tmp_path, clock):
    for name in ("9999999999999", "²", "x", "5.0123.tmp"):
        (tmp_path / "claims" / name).mkdir(parents=True)
    (tmp_path / "claims/1").mkdir()
    with claim.hold(str(tmp_path)):
        assert claim.holder(str(tmp_path)).pid == os.getpid()


def test_a_full_disk_leaves_no_claim(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opened(path, mode, *rest):
        open_before(path, mode).close()
        return Full()

    open_before = open
    monkeypatch.setattr("builtins.open", opened)
    with pytest.raises(UserError, match="No space left"):
        storage.create(tmp_path / "claim", b"mine")
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


def test_a_process_that_lost_its_claim_ends(tmp_path):
    code = f"""
import pathlib, time
from t5scaling.training import claim
claim.BEAT_S = 0.2
with claim.hold({str(tmp_path)!r}):
    (number,) = pathlib.Path({str(tmp_path)!r}, "claims").iterdir()
    number.with_name(str(int(number.name) + 1)).write_text(number.read_text())
    time.sleep(60)
print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 1 and "went on" not in done.stdout
    assert "another process has taken over" in done.stderr


def test_a_run_that_another_process_claims_a_moment_before_has_not_failed(tmp_path, monkeypatch):
    def train(*_):
        raise claim.Taken("the run: process 7 on elsewhere is at work on this run")

    monkeypatch.setattr(local, "train", train)
    monkeypatch.setattr(config, "load", lambda *_: "")
    run = Run("a", (), {"MODEL_DIR": str(tmp_path / "a")}, (), {}, 1)
    watcher = mock.Mock()
    local.Local(watcher).submit(str(tmp_path), [run], ())
    assert [name for name, *_ in watcher.mock_calls] == ["start", "leave"]
