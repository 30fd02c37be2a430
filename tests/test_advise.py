"""Advice: decisions with their reasons from planted studies, in text, JSON and figures."""

import csv
import dataclasses
import io
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console

from t5scaling.analysis.advise import advise
from t5scaling.analysis.conclusions import exchange as exchanges
from t5scaling.analysis.conclusions.curve_fit import fit_one
from t5scaling.analysis.conclusions.decisions import Answer, worth_it
from t5scaling.analysis.conclusions.diagnosis import agreement, relate
from t5scaling.analysis.conclusions.shapes import Shape
from t5scaling.analysis.draw import draw
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.presentation.advice import sentence_of_exchange, times
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.load import Columns
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError

X = 1e6 * 2.0 ** np.arange(8)
BY_DATA = Columns(("D_p",), "bleu", ("data",), seed="seed")
TRUTH = {
    "both": lambda x: 40 - 30 * (x / 1e6) ** -0.35,
    "target": lambda x: 33 - 20 * (x / 1e6) ** -0.5,
    "source": lambda x: 25 - 22 * (x / 1e6) ** -0.25,
    "unrelated": lambda x: 8 + 3 * np.sin(np.log(x)),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path, draw_ = tmp_path_factory.mktemp("table") / "study.csv", np.random.default_rng(0)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["data", "D_p", "seed", "bleu"])
        for name, truth in TRUTH.items():
            for seed in (0, 1):
                for x in (0, *X):
                    value = (truth(x) if x else 8.0) * np.exp(0.02 * draw_.standard_normal())
                    rows.writerow([name, int(x), seed, repr(float(value))])
    return path


@pytest.fixture(scope="module")
def far(table):
    """The advice for far beyond the largest size."""
    return advise(table, BY_DATA, at=5.12e8, screen=Console(file=io.StringIO()))


def curve(metric, values, key=None, baseline=()):
    points = tuple(Point(x, float(v), seed=0) for x, v in zip(X, values, strict=True))
    base = tuple(Point(0.0, float(v)) for v in baseline)
    place = Place(columns=tuple((key or {}).items()))
    return Curve(place, metric, x_name="D_p", points=points, baseline=base)


def noisy(values, noise=0.003, seed=0):
    return values * np.exp(noise * np.random.default_rng(seed).standard_normal(len(values)))


def test_each_data_set_gets_its_decisions(far):
    by_name = {one.place.key["data"]: one for one in far.curves}
    for name in ("both", "target", "source"):
        one = by_name[name]
        assert (one.worth_it.answer, one.suffices.answer) == (Answer.YES, Answer.YES)
        assert one.forecast.low < TRUTH[name](5.12e8) < one.forecast.high
        assert one.forecast.decades == pytest.approx(math.log10(4))
        # Where the planted law crosses 8, the score without pretraining.
        crossing = {"both": 1e6 * (30 / 32) ** (1 / 0.35), "target": 1e6 * (20 / 25) ** 2,
                    "source": 1e6 * (22 / 17) ** 4}[name]  # fmt: skip
        assert one.break_even.low * 0.9 < crossing < one.break_even.high * 1.1
        assert one.next_runs and one.next_runs[-1].after < one.next_runs[0].before
    lost = by_name["unrelated"]
    assert (lost.worth_it.answer, lost.suffices.answer) == (Answer.NO, Answer.NO)
    assert lost.forecast is None and lost.curve_fit.verdict.shape is Shape.NONMONOTONIC


def test_data_sets_are_ranked_and_cross_where_they_were_planted_to(far):
    (choice,) = far.choices
    assert choice.names == ("both", "target", "source")
    assert choice.chances["both"] > 0.95
    (found,) = choice.crossings
    assert (found.overtaken, found.overtaking) == ("target", "both")
    crossing = found.at
    grid = np.geomspace(1e6, 1e8, 100_000)
    planted = grid[np.argmax(TRUTH["both"](grid) > TRUTH["target"](grid))]
    assert crossing.low * 0.8 < planted < crossing.high * 1.25
    assert 0.9 < crossing.share <= 1


def test_saturating_scores_choose_a_ceiling_and_say_that_the_log_law_overshoots(table):
    text = io.StringIO()
    advice = advise(table, BY_DATA, screen=Console(file=text, width=200))
    assert all(f.families[0].name == "ceiling" for c in advice.choices for f in c.forecasts)
    said = text.getvalue()
    assert "the log-law overshoots" in said
    assert "Do the data suffice for a law? no: the curve is nonmonotonic" in said
    assert "assumed (a finetuning costs 1 unit" in said


def test_json_holds_the_same(table, capsys):
    advice = advise(table, BY_DATA, as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert [c["place"]["data"] for c in record["curves"]] == list(TRUTH)
    assert (record["schema"], record["level"]) == (1, 0.9)
    assert record["target"] == advice.target == 4 * X[-1]
    assert record["curves"][3]["forecast"] is None
    assert record["comparisons"][0]["families"][0]["law"] == "ceiling"


def test_figures_of_a_table(table, tmp_path):
    figures = draw(table, BY_DATA, output=tmp_path / "out")
    names = {figure.stem.name for figure in figures}
    assert {"bleu--by--data", "rollout--bleu", "families--bleu"} <= names
    assert sum(name.startswith("next-run") for name in names) == 3
    for figure in figures:
        for ending in (".png", ".svg", ".csv"):
            file = figure.stem.with_name(figure.stem.name + ending)
            assert file.stat().st_size > 100
    numbers = list(csv.DictReader((tmp_path / "out" / "bleu--by--data.csv").open()))
    fitted = [row for row in numbers if row["kind"] == "fitted" and row["data"] == "both"]
    assert {float(row["D_p"]) for row in fitted} == set(X)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"at": -1.0}, "--at = -1"), ({"budget": 0.0}, "--budget = 0"),
     ({"cost_per_run": -2.0}, "--cost_per_run = -2")],
)  # fmt: skip
def test_mistakes(table, options, message):
    with pytest.raises(UserError, match=message):
        advise(table, BY_DATA, **options)


def test_no_gain_and_no_baseline_are_told_apart():
    flat = fit_one(curve("bleu", noisy(np.full(8, 20.0)), baseline=[20.0, 20.1]))
    assert worth_it(flat).answer is Answer.NO
    alone = fit_one(curve("bleu", noisy(10 + np.log(X / 1e6))))
    assert worth_it(alone).answer is Answer.OPEN
    falling = fit_one(curve("cross_entropy", noisy(2 + (X / 1e6) ** -0.3), baseline=[4.0]))
    assert worth_it(falling).answer is Answer.YES  # less is better


def test_a_gain_is_as_sure_as_the_seeds_of_its_task_let_it_be():
    """Student's interval with the spread of all its seeds, and as many degrees of freedom."""
    line = curve("cross_entropy", 3 - 0.1 * np.log(X / 1e6), baseline=[4.0, 4.2])
    one = fit_one(dataclasses.replace(line, facts={"seed_noise": (0.05, 9)}))
    gain = worth_it(one)
    half = 1.833 * 0.05 * math.sqrt(1 + 1 / 2)  # t of 9 degrees of freedom at 95 %
    assert gain.high - gain.value == pytest.approx(half, rel=1e-3)
    assert gain.value - gain.low == pytest.approx(half, rel=1e-3)


def test_scores_that_break_while_the_loss_falls_are_pointed_out():
    loss = fit_one(curve("cross_entropy", noisy(2 + (X / 1e6) ** -0.3)))
    rising = fit_one(curve("bleu", noisy(900 * np.exp(-1.4 * (2 + (X / 1e6) ** -0.3)))))
    broken = fit_one(curve("bleu", noisy(np.array([10, 15, 20, 24, 22, 17, 14, 11.0]))))
    good, bad = relate(rising, loss), relate(broken, loss)
    assert good.agree is True and good.exponential and good.tau == pytest.approx(1.0)
    assert good.fit.coefficients["k"][1] < -1.4 < good.fit.coefficients["k"][2]
    assert bad.agree is False and not bad.exponential
    assert "DISAGREE" in bad.sentence and "may not match the task" in bad.sentence


def test_the_exchange_rate_is_that_of_the_planted_joint_law():
    law, planted = LAWS["zhang"], {"E": 1.0, "A": 60.0, "a": 0.15, "b": 0.1}
    pools = (1e4, 1e5, 1e6)
    fits = []
    for i, pool in enumerate(pools):
        values = law.published(np.array([X, np.full(8, pool)]), planted)
        fits.append(fit_one(curve("cross_entropy", noisy(values, 0.001, i), {"pool": pool})))
    found = exchanges.exchange(fits, pools)
    assert found.fit.law is law
    assert found.fits_points and found.miss < 2 * found.noise
    rate = (0.15 / X[-1]) / (0.1 / 1e6)
    assert found.rate == pytest.approx(rate, rel=0.05) and found.low < rate < found.high
    assert found.doubling == pytest.approx(2 ** (0.15 / 0.1), rel=0.06)
    scores = [fit_one(curve("bleu", noisy(X**0.1, seed=i), {"pool": i})) for i in range(2)]
    with pytest.raises(UserError, match="joint laws are of losses"):
        exchanges.exchange(scores, pools[:2])


def test_figures_by_data_and_by_model_and_the_joint_plan(tmp_path, monkeypatch):
    """A study of two models and two mixtures: the curves of a figure differ in one thing alone."""
    from t5scaling.analysis.conclusions.advice import advise_curves
    from t5scaling.analysis.conclusions.findings import advice_record
    from t5scaling.analysis.presentation import figures as figures_lib

    curves, law = [], LAWS["zhang"]
    for i, model in enumerate(("small", "large")):
        for j, data in enumerate(("en50_de50", "en")):
            for pool in (1_000, 100_000):
                planted = {"E": 1.6 - 0.3 * i, "A": 40.0 + 5 * j, "a": 0.15, "b": 0.1}
                values = law.published(np.array([X, np.full(8, 50.0 * pool)]), planted)
                made = curve("cross_entropy", noisy(values, seed=len(curves)))
                place = Place(model, data, "wmt", pool)
                facts = {"finetune_tokens": 50 * pool}
                curves.append(Curve(place, made.metric, "pretrain_tokens", made.points, (), facts))
    save = figures_lib.save

    def save_some(page, stem):  # each takes as long as a fit
        if "--by--model--" in stem.name and stem.name.endswith("--1000"):
            save(page, stem)

    monkeypatch.setattr(figures_lib, "save", save_some)
    figures = figures_lib.draw_all([fit_one(c) for c in curves], tmp_path)
    shown = {figure.stem.name: figure for figure in figures}
    by = {column: [f for f in figures if f.by == column] for column in ("pretrain_data", "model")}
    assert len(figures) == 4 + 4 + 4 and all(len(found) == 4 for found in by.values())
    assert len(list(tmp_path.glob("*--by--model--*.svg"))) == 2
    figure = shown["cross_entropy--by--pretrain_data--small--wmt--1000"]
    assert {c.curve.place.data for c in figure.curve_fits} == {"en50_de50", "en"}
    assert {c.curve.place.model for c in figure.curve_fits} == {"small"}

    advice = advise_curves(curves)
    assert len(advice.exchanges) == 4
    exchange = advice.exchanges[0]
    runs = exchange.next_runs
    assert exchange.rate == pytest.approx((0.15 / X[-1]) / (0.1 / 5e6), rel=0.3)
    assert runs and all(run.x2 in (5e4, 5e6) for run in runs)
    assert runs[-1].after < runs[0].before
    assert json.dumps(advice_record(advice))


def test_no_rate_of_exchange_by_a_law_that_misses_its_points():
    """Pretraining helps in the small pools alone, as a study may find."""
    gains = {1e4: 0.4, 1e5: 0.1, 1e6: 0.0}
    fits = []
    for i, (pool, gain) in enumerate(gains.items()):
        values = 1 + 5 * (pool / 1e4) ** -0.2 - gain * np.log2(X / 5e5) / 2
        fits.append(fit_one(curve("cross_entropy", noisy(values, 0.004, i), {"pool": pool})))
    found = exchanges.exchange(fits, list(gains))
    assert not found.fits_points and found.miss > 3 * found.noise
    said = sentence_of_exchange("here", found)
    assert "no exchange rate is reported" in said and "replaces" not in said


def test_effective_data_are_read_off_the_runs_without_pretraining():
    """As of 6 times the data in the smallest pool, beyond all pools in the next, nothing after."""
    pools = (1e4, 1e5, 1e6)
    scratch = [6 * (pool / 1e4) ** -0.2 for pool in pools]
    reached = (6 * 6**-0.2, scratch[2] - 0.1, scratch[2] + 0.2)
    fits = []
    for i, (none, best) in enumerate(zip(scratch, reached, strict=True)):
        values = best + 0.2 * (7 - np.arange(8)) * (1 if best < none else -1)
        made = curve("cross_entropy", noisy(values, 1e-4, i), {"pool": i}, (none, none))
        fits.append(fit_one(made))
    small, middle = exchanges.transfers(fits[::-1], pools[::-1])  # in any order
    assert (small.pool, small.pretrain, small.reach) == (1e4, X[-1], 100)
    assert small.factor == pytest.approx(6, rel=0.01) and small.low < small.factor < small.high
    assert times(small).startswith(f"{small.factor:.2f} (") and times(small).endswith(") times")
    assert math.isinf(middle.factor) and times(middle) == "more than 10 times"
    assert times(dataclasses.replace(small, high=math.inf)).endswith("to more than 100) times")
    assert exchanges.transfers(fits[:1], pools[:1]) == []
    # Where more data without pretraining do not help, nothing can be read off.
    assert exchanges.transfers(fits, pools[::-1]) == []


def test_many_curves_get_a_line_each(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 60)

    path, draw_ = tmp_path / "many.csv", np.random.default_rng(0)
    rows = ["data,D_p,bleu"]
    for i in range(34):  # more than are written in full, and than have a line of their own
        falls = i % 2
        for x in (0, *X[:5]):
            value = 20.0 - 3.0 * falls * np.log(x / 1e5 if x else 1.0)
            value = value if falls else 40 - 32 * (max(x, 1e5) / 1e5) ** -0.35
            rows.append(
                f"run{i},{int(x)},{float(max(value, 0.5)) * math.exp(0.01 * draw_.normal())!r}"
            )
    path.write_text("\n".join(rows))
    columns = Columns(("D_p",), "bleu", ("data",))
    found = advise(path, columns)
    text = capsys.readouterr().out
    assert len(found.curves) == 34
    counts = re.search(r"34 curves, worth it: (.*)", text).group(1)
    assert sum(map(int, re.findall(r"of (\d+)", counts))) == 34
    assert "... and 4 more" in text and "--all: everything on every curve" in text
    lines = [line for line in text.splitlines() if line.startswith("BLEU · run")]
    assert len(lines) == 30 and len({line.split()[2] for line in lines}) == 30
    assert len(text.splitlines()) < 60


def test_the_agreement_of_scores_and_losses_is_kendalls_tau():
    """With ties, and beside SciPy's."""
    from scipy.stats import kendalltau

    draw_ = np.random.default_rng(0)
    for _ in range(20):
        scores, losses = draw_.integers(1, 6, (2, len(X))).astype(float)
        found = agreement(curve("bleu", scores), curve("cross_entropy", losses))
        expected = kendalltau(scores, -losses).statistic
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
