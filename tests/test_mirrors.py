"""Metrics told to other trackers, and their failures kept from the training."""

import json
import sys
import types

import pytest

from t5scaling.errors import UserError
from t5scaling.training import tracker


class Fake(types.ModuleType):
    """Speaks as wandb and trackio do: init(...) -> a run with log(values, step=) and finish()."""

    def __init__(self, fails=""):
        super().__init__("fake")
        self.said, self.fails = [], fails

    def init(self, **arguments):
        self._say("init", arguments)
        return types.SimpleNamespace(
            log=lambda values, step: self._say("log", (step, values)),
            finish=lambda: self._say("finish", None),
        )

    def _say(self, what, content):
        if what == self.fails:
            raise ConnectionError("no network")
        self.said.append((what, content))


def write(folder, package):
    log = tracker.Tracker(str(folder), 0, mirrors=[package], config={"seed": 3})
    log.metrics({"step": 5, "split": "train", "task": "t", "loss": 2.5})
    log.timing({"step": 5, "wall_s": 1.0})
    log.close()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_both_are_told_what_metrics_jsonl_says(package, tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, package, fake)
    folder = tmp_path / "quick/runs/finetune/a/seed=0"
    write(folder, package)
    (_, begun), first, second, last = fake.said
    assert (begun["project"], begun["name"]) == ("t5scaling", "quick/finetune/a/seed=0")
    assert begun["config"] == {"seed": 3}
    assert first == ("log", (5, {"train/t/loss": 2.5}))
    assert second == ("log", (5, {"timing/wall_s": 1.0}))
    assert last == ("finish", None)


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_their_failures_stop_nothing_and_are_said_once(what, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", Fake(fails=what))
    write(tmp_path, "wandb")
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.5
    assert capsys.readouterr().err == "wandb no longer follows this run: no network\n"


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="trackio is not installed; pip install trackio"):
        write(tmp_path, "trackio")
    with pytest.raises(UserError, match="no tracker 'wanddb'; did you mean 'wandb'"):
        write(tmp_path, "wanddb")
