"""How far a study is, read from its run directories."""

import io
import json

import pytest
from rich.console import Console

from t5scaling.errors import UserError
from t5scaling.study import status
from t5scaling.training import claim, run_directory


def write_run(study, run_id, steps, *, losses=(), speed=100.0, done=False, failure=None):
    """A run directory with a line of metrics and timing every 10 steps, 2 s apart."""
    folder = study / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"id": run_id, "steps": steps}))
    for number, loss in enumerate(losses, 1):
        line = {"step": 10 * number, "split": "train", "loss": loss}
        timing = {"step": 10 * number, "wall_s": 5.0 + 2 * number, "target_tokens_per_s": speed}
        for name, value in (("metrics", line), ("timing", timing)):
            with open(folder / f"{name}.jsonl", "a") as file:
                file.write(json.dumps(value) + "\n")
    if done:
        (folder / "DONE").write_text(json.dumps({"step": steps}))
    if failure:
        (folder / "FAILED").write_text(json.dumps({"reason": failure}))


@pytest.fixture
def study(tmp_path):
    ids = ["pretrain/a", "finetune/b", "finetune/c", "finetune/d"]
    (tmp_path / "study.json").write_text(json.dumps({"study": "s", "runs": ids}))
    write_run(tmp_path, "pretrain/a", 20, losses=(7.0, 6.5), done=True)
    write_run(tmp_path, "finetune/b", 100, failure="a loss that is not finite\nmore")
    write_run(tmp_path, "finetune/c", 100, losses=(6.0, 5.5, 5.25), speed=250.0)
    return tmp_path


def test_states_losses_and_time_left(study):
    a, b, c, d = status.statuses(str(study))
    assert [run.state for run in (a, b, c, d)] == ["done", "failed", "stopped", "waiting"]
    assert (a.step, a.steps, a.loss, a.left_s) == (20, 20, 6.5, None)
    assert b.reason == "a loss that is not finite"
    assert (c.step, c.loss, c.tokens_per_s) == (30, 5.25, 250.0)
    assert c.left_s == pytest.approx(70 * 2 / 10)
    assert (d.step, d.loss) == (0, None)


def test_the_run_at_work_is_known_by_its_claim(study):
    with claim.hold(str(study / "runs/finetune/c")):
        assert [run.state for run in status.statuses(str(study))][2] == "running"
    assert [run.state for run in status.statuses(str(study))][2] == "stopped"


def test_runs_with_an_engine_and_runs_left_alone(study):
    write_run(study, "finetune/d", 100)
    assert status.statuses(str(study))[3].state == "waiting"
    (study / "runs/finetune/d/JOB").write_text('{"job": "17_0"}')
    assert status.statuses(str(study))[3].state == "queued"
    for _ in range(2):
        run_directory.fail(str(study / "runs/finetune/b"), UserError("again"))
    b = status.statuses(str(study))[1]
    assert (b.state, b.reason) == ("parked", "again")


def test_the_table_and_its_sum(study):
    with open(study / "runs/finetune/c/metrics.jsonl", "a") as file:
        file.write('{"step": 40, "spl')  # being written
    shown = io.StringIO()
    status.show(str(study), Console(file=shown, width=100))
    lines = shown.getvalue().splitlines()
    row = next(line.split() for line in lines if line.startswith(" finetune/c"))
    assert row == ["finetune/c", "stopped", "30/100", "5.250", "250", "11", "s", "14", "s"]
    assert "finetune/b: a loss that is not finite" in lines
    assert lines[-1] == "4 runs: 1 done, 1 stopped, 1 failed, 1 waiting; 20 s so far"


def test_many_runs_share_rows_by_state_and_data(study):
    more = [f"finetune/en/dp={n}/x" for n in range(50)]
    ids = ["pretrain/a", "finetune/b", "finetune/c", "finetune/d", *more]
    (study / "study.json").write_text(json.dumps({"study": "s", "runs": ids}))
    for run in more[:20]:
        write_run(study, run, 20, losses=(7.0, 6.5), done=True)
    write_run(study, more[20], 20, losses=(7.0,))

    def rows(**options):
        shown = io.StringIO()
        status.show(str(study), Console(file=shown, width=100), **options)
        return shown.getvalue().splitlines()

    short = [line.split() for line in rows()]
    assert ["finetune/en/...:", "20", "runs", "done", "3", "min"] in short
    assert ["finetune/en/...:", "29", "runs", "waiting"] in short
    assert ["finetune/en/dp=20/x", "stopped", "10/20", "7.000", "100"] in [r[:5] for r in short]
    assert "finetune/b: a loss that is not finite" in rows()
    every = rows(every_run=True)
    assert sum("finetune/en/dp=" in line for line in every) == 50
    assert rows()[-1] == every[-1]


def test_no_study(tmp_path):
    with pytest.raises(UserError, match="no study here"):
        status.statuses(str(tmp_path / "none"))
