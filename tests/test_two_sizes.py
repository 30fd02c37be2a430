"""`run.py advise` and `run.py figures` of a table whose x is two columns."""

import json

import numpy as np
import pandas as pd
import pytest

from t5scaling.analysis import two_sizes
from t5scaling.analysis.conclusions.findings import versioned
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.presentation.joint import record
from t5scaling.analysis.results.load import Columns
from t5scaling.command_line import main

PLANTED = {"E": 1.8, "A": 480.0, "B": 150.0, "alpha": 0.34, "beta": 0.37}
GRID = np.array([(n, d) for n in 1e8 * 4.0 ** np.arange(4) for d in 1e9 * 4.0 ** np.arange(4)]).T


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 60)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(16))
    path = tmp_path / "two.csv"
    loss = LAWS["chinchilla"].published(GRID, PLANTED) * noise
    pd.DataFrame({"N": GRID[0], "D": GRID[1], "loss": loss, "who": "us"}).to_csv(path, index=False)
    return [str(path), "--x=N,D", "--y=loss", "--group=who"]


def test_advice_as_data_and_as_text(table, capsys):
    columns = Columns(("N", "D"), "loss", ("who",))
    (advice,) = two_sizes.advise(table[0], columns, at=(1e10, 2e11), compute=1e22)
    printed = " ".join(capsys.readouterr().out.split())
    (found,) = versioned({"joint": [record(advice)]})["joint"]
    assert (found["law"], found["x"], found["x2"], found["place"]) == (
        "chinchilla", "N", "D", {"who": "us"},
    )  # fmt: skip
    assert found["held_out_rms_log_error"] < 0.02
    assert found["dearest"] == GRID[:, -1].tolist()
    for i, one in enumerate(found["doublings"]):
        both = np.repeat(GRID[:, -1:], 2, axis=1)
        both[i, 1] *= 2
        change = np.diff(LAWS["chinchilla"].published(both, PLANTED))[0]
        assert one["size"] == "ND"[i] and one["value"] == pytest.approx(change, rel=0.2)
        assert one["low"] < one["value"] < one["high"] < 0
    there = LAWS["chinchilla"].published(np.array([1e10, 2e11]), PLANTED)
    assert found["forecast"]["value"] == pytest.approx(there, rel=0.02)
    best = found["optimum"]
    assert 6 * best["x"]["value"] * best["x2"]["value"] == pytest.approx(1e22)
    assert found["next_run"]["after"] < found["next_run"]["before"]
    assert np.prod(found["next_run"]["place"]) <= GRID.prod(0).max() * 1.01
    for sentence in found["sentences"]:
        assert " ".join(sentence.split()) in printed
    for part in ("it expects loss of", "beyond the largest N", "twice the N changes loss by -",
                 "A budget of 1e+22 operations is split best at N =", "Next run:"):  # fmt: skip
        assert part in printed, part


def test_a_law_without_a_best_split_gives_the_rest(table, capsys):
    assert main(["advise", *table, "--at=4e10,1e12", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["joint"]
    assert found["law"] == "zhang" and found["optimum"] is None
    assert [found["forecast"][x] for x in ("x", "x2")] == [4e10, 1e12]


def test_figures_with_the_best_split(table, tmp_path, capsys):
    folder = tmp_path / "drawn"
    assert main(["figures", *table, "--law=chinchilla", f"--output={folder}"]) == 0
    assert {path.name for path in folder.iterdir()} == {
        f"joint--loss--us.{ending}" for ending in ("png", "svg", "csv")
    }
    rows = pd.read_csv(folder / "joint--loss--us.csv")
    assert set(rows.kind) == {"measured", "law", "best split"}
    assert (rows.kind == "measured").sum() == 16
    assert "1 figure as .png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["advise", "--cost_per_run=2"], "--cost_per_run is for tables of one size"),
        (["advise", "--at=1e9"], "1 numbers, but the multiplicative joint law is a law of"),
        (["advise", "--law=zhang", "--compute=1e21"], "a budget of compute is shared"),
        (["advise", "--law=all"], "expected one law"),
        (["advise", "--law=power"], "is a law of D"),
        (["figures", "--at=1e9"], "--at is for figures of one size"),
        (["figures", "--law=power"], "is a law of D"),
        (["figures", "--law=E+A/N"], "does not hold D"),
    ],
)
def test_mistakes_are_one_line(table, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([arguments[0], *table, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "figures").exists()


def test_what_is_for_two_sizes_is_refused_for_one(tmp_path, capsys):
    path = tmp_path / "one.csv"
    pd.DataFrame({"D": GRID[1], "loss": 2 + 60 * GRID[1] ** -0.25}).to_csv(path, index=False)
    assert main(["advise", str(path), "--compute=1e21"]) == 2
    assert "are for two columns of x" in capsys.readouterr().err
    assert main(["advise", str(path), "--at=1,2"]) == 2
    assert "expected one size" in capsys.readouterr().err
