"""`run.py predict`: numbers at named places and budgets, as text and as data; mistakes."""

import json

import numpy as np
import pandas as pd
import pytest

from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.predict import predict
from t5scaling.analysis.results.load import Columns
from t5scaling.command_line import main
from t5scaling.errors import UserError

X = 1e6 * 2.0 ** np.arange(6)
NOISE = np.exp(0.002 * np.random.default_rng(0).standard_normal(6))
LOSS = (2.0 + 60.0 * X**-0.25) * NOISE
PLANTED = {"E": 1.8, "A": 480.0, "B": 150.0, "alpha": 0.34, "beta": 0.37}
GRID = np.array([(n, d) for n in 1e8 * 4.0 ** np.arange(4) for d in 1e9 * 4.0 ** np.arange(4)]).T


@pytest.fixture(autouse=True)
def fewer_replicates(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 60)


@pytest.fixture
def one(tmp_path):
    path = tmp_path / "one.csv"
    pd.DataFrame({"tokens": X, "loss": LOSS}).to_csv(path, index=False)
    return path


@pytest.fixture
def two(tmp_path):
    path = tmp_path / "two.csv"
    loss = LAWS["chinchilla"].published(GRID, PLANTED)
    pd.DataFrame({"N": GRID[0], "D": GRID[1], "loss": loss}).to_csv(path, index=False)
    return path


def test_one_size(one, capsys):
    (found,) = predict(one, at=["1e9", "8e6", "1e5"])
    far, inside, below = found.expected
    assert far.value == pytest.approx(2 + 60 * 1e9**-0.25, rel=0.01)
    assert far.low < far.value < far.high
    assert far.decades == pytest.approx((np.log10(1e9 / X[-1]),))
    assert inside.decades == (0.0,) and below.decades == pytest.approx((-1.0,))
    assert len(found.curve_fit.fit.y) == len(X)  # all points
    printed = capsys.readouterr().out
    for part in ("fitted to all 6 points", "1.49 decades beyond the largest tokens",
                 "within the data", "1.00 decades below the smallest tokens"):  # fmt: skip
        assert part in printed, part


def test_two_sizes_and_a_budget_on_the_command_line(two, capsys):
    arguments = ["predict", str(two), "--x=N,D", "--y=loss", "--at=70B,1.4T", "--at=1e9,1e10",
                 "--compute=1e21", "--compute=1e24", "--json"]  # fmt: skip
    assert main(arguments) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["level"] == 0.9
    (curve,) = record["curves"]
    assert (curve["law"], curve["x"], curve["x2"]) == ("chinchilla", "N", "D")
    assert curve["coefficients"]["alpha"]["value"] == pytest.approx(0.34, rel=1e-3)
    first, second = curve["predictions"]
    expected = LAWS["chinchilla"].published(np.array([[7e10], [1.4e12]]), PLANTED)[0]
    assert first["value"] == pytest.approx(expected, rel=1e-4)
    assert (first["x"], first["x2"]) == (7e10, 1.4e12)
    assert all(far > 0 for far in first["decades"]) and second["decades"] == [0.0, 0.0]
    small, large = curve["optima"]
    for best in (small, large):
        product = 6 * best["x"]["value"] * best["x2"]["value"]
        assert product == pytest.approx(best["compute"]) and best["flops"] == 6
    growth = np.log(large["x"]["value"] / small["x"]["value"]) / np.log(1e3)
    assert growth == pytest.approx(small["exponent"]["value"], rel=1e-3)
    assert growth == pytest.approx(0.37 / 0.71, rel=1e-3)
    assert main([argument for argument in arguments if argument != "--json"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("best split of a budget C = 6 * N * D", "The best N grows as C^0.521",
                 "decades beyond the largest N and", "D / N"):  # fmt: skip
        assert part in printed, part


def test_curves_apart_and_a_formula(one, tmp_path):
    frame = pd.read_csv(one)
    path = tmp_path / "both.csv"
    pd.concat([frame.assign(run="a"), frame.assign(run="b", loss=frame.loss * 2)]).to_csv(
        path, index=False
    )
    found = predict(path, Columns(("tokens",), "loss", ("run",)), at=["1e8"],
                    law="E + A/tokens^alpha", bounds="alpha=0:1")  # fmt: skip
    (a,), (b,) = (each.expected for each in found)
    assert b.value == pytest.approx(2 * a.value, rel=1e-5)
    (known,) = predict(one, at=["1e8"], law="power")
    assert a.value == pytest.approx(known.expected[0].value, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "predict needs --at"),
        ({"at": ["1e9,1e9"]}, "2 numbers, but the power law with floor is a law of D"),
        ({"at": ["big"]}, "--at=big: expected a positive size such as 1e9 or 70B"),
        ({"at": ["-1"]}, "--at=-1: expected a positive size"),
        ({"at": ["nan"]}, "--at=nan: expected a positive size"),
        ({"at": ["1e9"], "law": "all"}, "predict takes one law"),
        ({"at": ["1e9"], "law": "powr"}, "did you mean 'power'"),
        ({"at": ["1e9"], "law": "E + A/D**a"}, "does not hold tokens, the column of x"),
        ({"at": ["1e9"], "bounds": "E=0:"}, "they are for the coefficients of a formula"),
        ({"compute": [1e21]}, "a budget of compute is shared by a model's size and its data"),
        ({"at": ["1e9"], "law": "chinchilla"}, "is a law of N and D"),
    ],
)
def test_mistakes_are_one_line(one, settings, message):
    with pytest.raises(UserError, match=message):
        predict(one, **settings)


def test_the_best_size_grows_as_a_power_of_compute(tmp_path):
    compute = 10.0 ** np.arange(18, 24)
    path = tmp_path / "optima.csv"
    pd.DataFrame({"C": compute, "best": 0.1 * compute**0.5}).to_csv(path, index=False)
    for law in ("rising", "rising-floor"):
        (found,) = predict(path, at=["1e26"], law=law)
        assert found.curve_fit.fit.coefficients["c"][0] == pytest.approx(0.5, rel=1e-3)
        assert found.expected[0].value == pytest.approx(1e12, rel=1e-2)
