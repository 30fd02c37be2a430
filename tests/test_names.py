"""Names from anywhere are text wherever they are shown: page, figures, terminal."""

import csv
import io
import json
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from t5scaling.analysis import fit_table, report
from t5scaling.analysis.presentation import style
from t5scaling.analysis.presentation.html.render import Badge, Range, Table, render
from t5scaling.analysis.presentation.terminal import console
from t5scaling.analysis.results.load import Columns, load_curves
from tests.analysis_made_up_study import DATA, SIZES, TASK, write_study

NASTY = "<script>&$x_{$[bold]:smile:[/][red]\"'"
# The page's own; svg's are of its main figure, which is drawn in the page itself.
TAGS = (
    "html head meta title style body header h1 h2 h3 p div span figure figcaption b i svg line "
    "polyline circle nav a main section details summary ul li table tr th td article code img "
    "footer"
)


class Tags(HTMLParser):
    """Which elements there are, with which attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose task, data, model, metric and failure all have such names."""
    folder = tmp_path_factory.mktemp("names") / "study"
    write_study(folder, sizes=SIZES[:5], pools=(1_000,), rates=(0.005,))
    for path in folder.glob("runs/**/*"):
        if path.is_file():
            text = path.read_text()
            for name in (DATA, TASK):
                text = text.replace(json.dumps(name), json.dumps(name + NASTY))
            text = text.replace('"tiny"', json.dumps("tiny" + NASTY))
            text = text.replace('"quick"', json.dumps("quick" + NASTY))
            text = text.replace('"chrf', '"' + json.dumps("chrf" + NASTY)[1:-1])
            path.write_text(text)
    failed = next(folder.glob("runs/pretrain/**/DONE"))
    failed.unlink()
    failed.with_name("FAILED").write_text(json.dumps({"reason": f"no {NASTY}\u2028line"}))
    return folder


@pytest.fixture(scope="module")
def reported(study):
    """That study with its report: (folder, page, what the terminal said)."""
    screen = console(io.StringIO(), width=400)
    page = report.report(study, screen=screen).read_text()
    return study, page, screen.file.getvalue()


def test_on_the_page_and_the_terminal(reported):
    _, page, said = reported
    found = Tags(page)
    assert found.tags <= set(TAGS.split()), found.tags - set(TAGS.split())
    assert not {name for name in found.attributes if name.startswith("on")}
    assert f"quick{NASTY}" in found.text and f"no {NASTY}" in found.text
    assert f"{TASK}{NASTY}" in said and f"chrf{NASTY}" in said


DRAWING = (
    "width", "height", "x1", "x2", "y1", "y2", "cx", "cy", "r", "stroke", "stroke-width",
    "stroke-dasharray", "fill", "viewbox", "preserveaspectratio", "points", "vector-effect",
)  # fmt: skip
TABLE = Table([NASTY], [[NASTY, Badge(NASTY, NASTY), Range(1, 2, 3, 4)]])
CLAIM = {
    **dict.fromkeys(("letter", "title", "paper", "css", "needed", "sentence"), NASTY),
    "badge": Badge("badge", NASTY), "overview": (NASTY, TABLE),
    "findings": [{
        **dict.fromkeys(("pair", "measured", "needed"), NASTY), "badge": Badge("badge", NASTY),
        "show_badge": True, "tables": [TABLE],
    }],
}  # fmt: skip
CURVE = {
    **dict.fromkeys(("title", "law", "formula", "unit", "objective", "note"), NASTY),
    "badge": Badge("word", NASTY), "sentences": [NASTY], "coefficients": TABLE, "held_out": TABLE,
}  # fmt: skip
FIGURE = dict.fromkeys(("heading", "title", "image", "caption"), NASTY)
_MARK = dict.fromkeys(
    ("x", "y", "text", "colour", "fill", "points", "dashed"), NASTY
)  # fmt: skip
PANEL = {
    **dict.fromkeys(("alt", "title", "metric"), NASTY), "ticks": [_MARK], "ends": [_MARK],
    "sizes": [_MARK], "baseline": _MARK, "lines": [_MARK], "points": [_MARK],
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("method.html", {"rules": [NASTY], "signatures": [(NASTY, NASTY)]}),
        ("limits.html", {"sentences": [NASTY]}),
        ("study.html", {"facts": [NASTY], "failed": [(NASTY, NASTY)], "costs": None,
                        "pools": Table([NASTY], [[NASTY]])}),
        ("results.html", {"note": NASTY, "tasks": [(NASTY, [(NASTY, Table([], [[NASTY]]))])],
                          "rates": Table([NASTY], [[Badge("word", NASTY)]]),
                          "steps": Table([NASTY], [[NASTY]])}),
        ("advice.html", {"level": "90%", "target": NASTY, "cost_source": NASTY, "worth": [NASTY],
                         "agreement": [NASTY], "gaps": [NASTY], "prices": [NASTY],
                         "worths": [NASTY], "reasons": [(NASTY, [NASTY])], "groups": []}),
        ("claims.html", {"level": NASTY, "decided": [CLAIM], "undecided": [CLAIM],
                         "absent": [NASTY]}),
        ("laws.html", {"overview": Table([NASTY], [[NASTY]]), "tasks": [(NASTY, [
            CURVE, {**CURVE, "coefficients": None}])]}),
        ("figures.html", {"curves": [FIGURE], "behind": [FIGURE]}),
        ("panels.html", {"columns": 1, "rows": False, "panels": [PANEL, None], "key": {
            "roles": [dict.fromkeys(("text_colour", "colour", "text"), NASTY)],
            "baseline_colour": NASTY, "predicted": True}}),
    ],
)  # fmt: skip
def test_in_the_templates(template, values):
    """Whatever door a text comes in by, it leaves as text: also in attributes."""
    found = Tags(str(render(template, **values)))
    assert "script" not in found.tags and found.attributes <= {
        "class", "tabindex", "role", "aria-label", "aria-hidden", "scope", "href", "alt", "src",
        "style", *DRAWING,
    }  # fmt: skip
    assert NASTY in found.text


def test_in_figures(reported):
    drawn = sorted((reported[0] / "figures").glob("*.svg"))
    assert len(drawn) >= 3
    for path in drawn:
        xml.etree.ElementTree.parse(path)


@pytest.mark.parametrize("name", [NASTY, "\\", "[", "%s{0}", "\u2028x", 'a,"b"\nc', "\x85x"])
def test_in_a_users_own_table(tmp_path, name):
    """Headers and cells hold what csv lets them hold."""
    path = own_table(tmp_path, name)
    curves = load_curves(path, Columns(("x" + name,), "y" + name, ("g" + name,)))
    assert [(c.metric, dict(c.place.key)) for c in curves] == [
        ("y" + name, {"g" + name: "a" + name})
    ]
    assert [p.x for p in curves[0].points] == [1, 10, 100, 1000]


def test_each_curve_is_headed_by_its_metric(tmp_path, capsys):
    path = own_table(tmp_path, NASTY)
    fit_table.fit_table(path, Columns(("x" + NASTY,), "y" + NASTY, ("g" + NASTY,)))
    said = capsys.readouterr().out
    assert said.startswith(f"y{NASTY} · a{NASTY}\n")
    assert f"D = x{NASTY}" in said


def own_table(folder, name):
    with open(folder / "t.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["x" + name, "y" + name, "g" + name])
        for place in range(4):
            table.writerow([10**place, 5 - 0.7 * place, "a" + name])
    return folder / "t.csv"


def test_stems_of_figures():
    taken = {}
    one, two = (style.stem_of(Path("f"), ["of", name], taken) for name in ("a/b", "a b"))
    assert one.name == "of--a-b" and two.name.startswith("of--a-b-") and len(two.name) == 16
    long = [style.stem_of(Path("f"), ["x" * 300 + end], taken).name for end in "ab"]
    assert len(set(long)) == 2 and all(len(name) < 200 for name in long)
