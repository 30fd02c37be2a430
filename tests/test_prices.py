"""What a token is worth: prices by language, the best mixture, the transfer gap."""

import json

import numpy as np
import pytest

from t5scaling.analysis.advise import advise
from t5scaling.analysis.conclusions.curve_fit import fit_one
from t5scaling.analysis.conclusions.decisions import Answer
from t5scaling.analysis.conclusions.prices import (
    gaps,
    prices_of_study,
    prices_of_table,
    worths,
)
from t5scaling.analysis.fitting import intervals
from t5scaling.analysis.laws import LAWS, of_sources
from t5scaling.analysis.presentation.advice import (
    sentence_of_worth,
    sentences_of_gaps,
    sentences_of_prices,
)
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.load import Columns
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError

NAMES = ("de", "en")
TOTALS = 1e6 * 2.0 ** np.arange(4)
SHARES = (0.0, 0.2, 0.8, 1.0)
ALONE = {"E": 1.5, "A": 300.0, "alpha": 0.4, "w_en": 0.5}
TOGETHER = {**ALONE, "w_en": 0.9, "w_pair": 2.0}


@pytest.fixture(autouse=True)
def few_replicates(monkeypatch):
    monkeypatch.setattr(intervals, "REPLICATES", 40)


def table(kind, planted, noise=0.002, seed=0, shares=SHARES):
    """Every mixture twice at every total."""
    x = np.array([(t * s, t * (1 - s)) for t in TOTALS for s in shares for _ in (0, 1)]).T
    y = of_sources(kind, NAMES).published(x, planted)
    y = y * np.exp(noise * np.random.default_rng(seed).standard_normal(len(y)))
    points = tuple(Point(sum(p), v, parts=tuple(p)) for p, v in zip(x.T, y, strict=True))
    return Curve(Place(), "loss", "de + en", points, sources=NAMES)


def test_the_price_of_a_token_and_a_best_mixture_that_was_measured():
    found = prices_of_table(table("sources", ALONE), 3e7)
    (price,) = found.prices
    assert found.target == "de" and price.source == "en" and found.pair is None
    assert found.fits_points and price.low < 0.5 < price.high < 0.6
    assert found.mixture.answer is Answer.NO and found.mixture.measured == {"de": 1.0, "en": 0.0}
    first, second = sentences_of_prices("loss", found)
    assert "a token of en is worth 0." in first and "tokens of de" in first
    assert "no mixture is expected to be better than a measured one: 100% de" in second


def test_both_sides_together_make_a_better_mixture_than_any_measured():
    found = prices_of_table(table("sources-pair", TOGETHER), 3e7)
    assert found.pair is not None and found.pair.low < 2.0 < found.pair.high
    best = found.mixture
    assert best.answer is Answer.YES and best.gain > best.low > 0
    assert 0.4 <= best.shares["de"] <= 0.65 and best.measured["de"] == 0.8
    assert "is expected to be better than 80% de and 20% en" in sentences_of_prices("", found)[1]


def test_equal_languages_make_no_better_mixture():
    equal = {**ALONE, "w_en": 1.0}
    answers = [
        prices_of_table(table("sources", equal, 0.01, seed, (0.2, 0.4, 0.6, 0.8)), 3e7)
        for seed in range(4)
    ]
    decided = [found.mixture.answer for found in answers if found.mixture]
    assert len(decided) >= 3 and decided.count(Answer.YES) <= 1
    assert decided.count(Answer.OPEN) >= 2
    assert any("the data do not show whether" in sentences_of_prices("", f)[1] for f in answers
               if f.mixture and f.mixture.answer is Answer.OPEN)  # fmt: skip


def test_a_law_that_misses_its_points_gives_no_price():
    curve = table("sources", ALONE)
    bent = tuple(
        Point(p.x, p.value * (1.3 if p.parts[0] == p.x == 4e6 else 1.0), parts=p.parts)
        for p in curve.points
    )
    found = prices_of_table(Curve(Place(), "loss", "tokens", bent, sources=NAMES), 3e7)
    assert found.fits_points is False and not found.prices and found.mixture is None
    (said,) = sentences_of_prices("loss", found)
    assert "no price of a token is reported" in said and "noise of a point is" in said


def study(law, planted, places, noise):
    """Losses after pretraining, two seeds each, as fits of curves: places are (data, share of de,
    pool), and the law takes the columns that `planted` is of."""
    draw = np.random.default_rng(1)
    fits = []
    for data, share, pool in places:
        x = [(t * share, t * (1 - share)) if share is not None else (t, pool) for t in TOTALS]
        values = np.repeat(law.published(np.array(x).T, planted), 2)
        values = values * np.exp(noise * draw.standard_normal(len(values)))
        points = tuple(
            Point(float(t), float(v), seed=i % 2)
            for i, (t, v) in enumerate(zip(np.repeat(TOTALS, 2), values, strict=True))
        )
        place = Place("tiny", data, "en_de", pool)
        facts = {"seed_noise": (noise * float(values.mean()), 8), "finetune_tokens": pool}
        fits.append(fit_one(Curve(place, "cross_entropy", "pretrain_tokens", points, facts=facts)))
    return fits


def runs_of(places):
    records = [
        {
            "kind": "finetune", "task": "en_de", "languages": ["en", "de"], "pretrain_data": data,
            "pretrain_languages": {"de": share, "en": 1 - share},
        }
        for data, share, _ in places
    ]  # fmt: skip
    return [RunRecord(record, True, None, 1, 1.0, 1.0, "run.json") for record in records]


def test_a_study_has_prices_by_the_languages_of_its_runs():
    places = [("de", 1.0, 100), ("en", 0.0, 100), ("both", 0.5, 100)]
    fits = study(of_sources("sources", NAMES), ALONE, places, 0.003)
    (found,) = prices_of_study(fits, runs_of(places), 3e7)
    assert found.place == Place("tiny", None, "en_de", 100)
    assert found.target == "de" and found.fits_points
    assert found.prices[0].low < 0.5 < found.prices[0].high
    assert not list(prices_of_study(fits[:1], runs_of(places[:1]), 3e7))


def test_what_data_are_worth_is_read_off_without_a_law():
    places = [("de", 1.0, 100), ("en", 0.0, 100), ("both", 0.5, 100)]
    fits = study(of_sources("sources", NAMES), ALONE, places, 0.003)
    english, both = worths(fits, runs_of(places))
    assert (english.target, english.tokens, english.reach) == ("de", 8e6, 1.0)
    assert english.low < 0.5 < english.high and both.low < 0.75 < both.high
    assert english.place.data == "en" and english.least == 0.125
    assert "8,000,000 tokens of these data are worth 0." in sentence_of_worth("here", english)
    useless = study(of_sources("sources", NAMES), {**ALONE, "w_en": 0.01}, places, 0.003)
    worthless, _ = worths(useless, runs_of(places))
    assert "are worth less than 0.125 times as many of de" in sentence_of_worth("", worthless)


def test_the_transfer_gap_and_the_price_at_which_the_decision_turns():
    planted = {"E": 1.2, "G": 8.0, "A": 8e4, "alpha": 0.7, "beta": 0.2}
    pools = [1000, 10_000, 100_000]
    fits = study(LAWS["barnett"], planted, [("de", None, pool) for pool in pools], 0.002)
    found = gaps(fits, pools)
    assert found.fits_points and [g.pool for g in found.pools] == pools
    for g in found.pools:
        assert g.low <= planted["G"] / g.pool**0.2 <= g.high
        more = planted["A"] / 8e6**0.7
        by_pretraining = 0.7 * more / 8e6
        by_finetuning = 0.2 * (more + planted["G"]) / g.pool
        assert g.turn_low <= by_finetuning / by_pretraining <= g.turn_high
    said = sentences_of_gaps("cross-entropy", found)
    assert len(said) == 3 and "times the price of a pretraining token" in said[0]


def csv(folder, curve):
    rows = [f"{p.parts[0]},{p.parts[1]},{p.value}" for p in curve.points]
    path = folder / "mixtures.csv"
    path.write_text("\n".join(["de,en,loss", "0,0,7.5", *rows]) + "\n")
    return path


def test_advise_on_a_table_of_sources(tmp_path, capsys):
    path = csv(tmp_path, table("sources", ALONE))
    advise(path, Columns(y="loss", sources=NAMES), at=3e7)
    told = " ".join(capsys.readouterr().out.split())
    assert "a token of en is worth" in told and "For 30M tokens" in told
    advise(path, Columns(y="loss", sources=NAMES), as_json=True)
    record = json.loads(capsys.readouterr().out)
    assert record["prices"][0]["prices"][0]["source"] == "en" and record["curves"] == []


@pytest.mark.parametrize("at", [-5.0, 0.0, 1e20])
def test_a_total_that_no_law_reaches_is_refused(tmp_path, at):
    path = csv(tmp_path, table("sources", ALONE))
    with pytest.raises(UserError, match="expected a positive size"):
        advise(path, Columns(y="loss", sources=NAMES), at=at)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (Columns(x=("de",), y="loss", sources=NAMES), "give one of them"),
        (Columns(y="loss", sources=("de",)), "two or more different columns"),
        (Columns(y="loss", sources=NAMES, unique=("de",)), "a column for each of --sources=de,en"),
        (Columns(y="loss", sources=("de", "fr")), "no column 'fr'"),
    ],
)
def test_columns_that_cannot_be_sources(tmp_path, columns, said):
    with pytest.raises(UserError, match=said):
        advise(csv(tmp_path, table("sources", ALONE)), columns)
