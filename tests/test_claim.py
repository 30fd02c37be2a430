"""Two processes never do one run at once, and a dead one's claim holds nobody up."""

import json
import os
import subprocess
import sys
import time

import pytest

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
    rewrite(tmp_path, beat=time.time())
    assert claim.holder(str(tmp_path))
    rewrite(tmp_path, started="1")
    assert claim.holder(str(tmp_path)) is None


def test_another_machine_is_believed_for_a_while(tmp_path):
    with claim.hold(str(tmp_path)):
        pass
    rewrite(tmp_path, host="elsewhere", beat=time.time() - claim.LEASE_S / 2)
    with pytest.raises(claim.Taken, match="on elsewhere"), claim.hold(str(tmp_path)):
        pass
    rewrite(tmp_path, beat=time.time() - 2 * claim.LEASE_S)
    with claim.hold(str(tmp_path)):
        assert claim.holder(str(tmp_path)).host != "elsewhere"


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
