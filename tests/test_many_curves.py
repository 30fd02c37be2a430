"""Many curves: a screen of text for all of them, and figures in which each can be found."""

import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from t5scaling.analysis.conclusions import many_curves
from t5scaling.analysis.conclusions.curve_fit import fit_one
from t5scaling.analysis.fit_table import fit_table
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.presentation.figures import CURVES, draw_all
from t5scaling.analysis.presentation.style import look, size_axis
from t5scaling.analysis.presentation.summary import print_summary
from t5scaling.analysis.presentation.terminal import console
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.load import Columns
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError

X = 1e6 * 2.0 ** np.arange(6)


def curve(run, data="en", values=None, x=X):
    values = 2.0 + 60.0 * x**-0.25 if values is None else values
    points = tuple(Point(float(a), float(b)) for a, b in zip(x, values, strict=True))
    return Curve(Place(columns=(("run", run), ("data", data))), "loss", "tokens", points)


@pytest.fixture(scope="module")
def fits():
    """Two kinds of curves, of which a few cannot be fitted."""
    good = fit_one(curve("a"))
    bad = fit_one(curve("b", values=[1.0, 2.0], x=X[:2]))
    members = []
    for i in range(60):
        one = bad if i % 10 == 9 else good
        place = Place(columns=(("run", f"run{i}"), ("data", "en" if i % 2 else "de")))
        members.append(replace(one, curve=replace(one.curve, place=place)))
    return members


def test_a_screen_for_all_of_them(fits, capsys):
    print_summary(fits, console())
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) < 50
    assert printed[0].startswith("60 fits: 54 predictable, 6 ")
    assert printed[1].startswith("6 not fitted: 2 distinct tokens")
    assert sum(line.startswith("run") for line in printed) == 30
    assert any(line == "... and 30 more" for line in printed)
    (line,) = (line for line in printed if line.startswith("run3 "))
    assert "power" in line and "E 2, A 60, alpha 0.25" in line and "predictable" in line
    assert "--group_by=run,data" in printed[-1]


def test_a_line_for_each_value_of_a_column(fits, capsys):
    print_summary(fits, console(), ["data"])
    printed = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in printed if line.startswith(("de", "en"))]
    assert [row[:3] for row in rows] == [["de", "30", "power"], ["en", "30", "power"]]
    assert "medians: E 2, A 60, alpha 0.25" in " ".join(printed)
    with pytest.raises(UserError, match=r"--group_by=dta: .* did you mean 'data'"):
        print_summary(fits, console(), ["dta"])


def test_few_curves_are_printed_in_full(tmp_path, capsys, monkeypatch):
    from t5scaling.analysis import fit_table as verb

    monkeypatch.setattr(verb, "FEW", 1)
    rows = [f"{run},{x},{2 + 60 * x**-0.25}" for run in "ab" for x in X[:4]] + ["a,9e6,"]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["run,tokens,loss", *rows]))
    columns = Columns(("tokens",), "loss", ("run",))
    fit_table(path, columns)
    captured = capsys.readouterr()
    assert captured.out.startswith("2 fits: ") and "coefficient " not in captured.out
    assert "1 row left out" in captured.err
    fit_table(path, columns, every=True)
    assert capsys.readouterr().out.count("coefficient ") == 2
    fit_table(path, columns, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert [warning.partition(": ")[2] for warning in record["warnings"]] == [
        "1 row left out: no value of loss"
    ]
    assert "falls as tokens grows" in record["curves"][0]["law_reason"]


def test_curves_of_a_figure_look_different():
    assert len(set(look(CURVES))) == CURVES == 36
    colours, markers = zip(*look(8), strict=True)
    assert len(set(colours)) == 6 and len(set(markers)) == 7


def test_more_curves_than_a_figure_can_show(fits, tmp_path, monkeypatch):
    from t5scaling.analysis.presentation import figures

    drawn = []
    monkeypatch.setattr(figures, "save", lambda page, stem: drawn.append(stem.name))
    monkeypatch.setattr(figures, "save_rows", lambda rows, stem: None)
    monkeypatch.setattr(figures, "_draw", lambda figure, colour_of: None)
    one_column = [
        replace(f, curve=replace(f.curve, place=Place(columns=f.curve.place.columns[:1])))
        for f in fits
    ]
    found = draw_all(one_column, tmp_path)
    assert drawn == ["loss--by--run--part1", "loss--by--run--part2"]
    assert [len(figure.curve_fits) for figure in found] == [36, 24]


def test_the_axis_follows_the_data_and_not_a_runaway_law():
    from t5scaling.analysis.presentation.figures import StudyFigure, _draw

    x = 2.0 ** np.arange(8)
    rising = curve("a", values=[1, 2, 4, 8, 8.5, 8.8, 8.9, 9], x=x)
    fitted = fit_one(rising, hold_out=4)
    page = _draw(StudyFigure("", Path("a"), (fitted,), "run"))
    low, high = page.axes[0].get_ylim()
    assert low <= 1 and 9 < high < 9 + 0.5 * 8


@pytest.mark.parametrize(
    "sizes",
    [[1e6, 1.12e6, 1.25e6, 1e9], [3.5e17, 4e17, 1e18, 8e19], [1, 2, 3, 4, 5, 6, 7],
     [1e3 * 1.3**i for i in range(40)], [1e3, 1.001e3]],
)  # fmt: skip
def test_labels_of_sizes_do_not_touch(sizes):
    page = Figure(figsize=(6.4, 5.0), layout="constrained", dpi=100)
    axes = page.add_subplot()
    axes.set_xscale("log")
    size_axis(axes, sizes)
    page.draw_without_rendering()
    low, high = axes.get_xlim()
    boxes = [
        label.get_window_extent()
        for label in axes.get_xticklabels()
        if label.get_text() and low <= label.get_position()[0] <= high
    ]
    assert boxes
    for left, right in itertools.pairwise(boxes):
        assert left.x1 < right.x0


def test_fits_are_the_same_in_other_processes(monkeypatch):
    monkeypatch.setattr(many_curves, "MANY", 2)
    monkeypatch.setattr(many_curves, "_cores", lambda: 2)
    noise = np.random.default_rng(0)
    curves = [
        curve(str(i), values=(2.0 + 60.0 * X**-0.25) * np.exp(0.01 * noise.standard_normal(len(X))))
        for i in range(5)
    ]
    jobs = [(one, LAWS["m3"], {"lower_is_better": True}) for one in (*curves, curve("c", x=X[:2]))]
    here = [fit_one(one, law, **options) for one, law, options in jobs]
    assert repr(list(many_curves.fit_all(jobs))) == repr(here)
    with pytest.raises(UserError, match="intervals over seeds need a seed"):
        list(many_curves.fit_all([(one, law, {"interval": "seeds"}) for one, law, _ in jobs]))


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_a_law_is_itself_again_in_another_process(law):
    assert pickle.loads(pickle.dumps(law)) is law
