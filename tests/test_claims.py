"""Claims on made-up studies in which each is true, false, or cannot be told, by construction."""

import dataclasses
import math

import pytest

from t5scaling.analysis.conclusions.choice_of_law import law_of_metric
from t5scaling.analysis.conclusions.claims import judge_claims
from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.decisions import Answer
from t5scaling.analysis.conclusions.evidence import Evidence, Range, majority, mean_range
from t5scaling.analysis.conclusions.shapes import Shape, judge
from t5scaling.analysis.fitting.rollout import Prediction
from t5scaling.analysis.metrics import LOWER_IS_BETTER, resolution_of
from t5scaling.analysis.results.curves import curves_of, read_results
from t5scaling.analysis.results.harvest import harvest, read_runs
from t5scaling.analysis.results.roles import (
    BALANCED,
    MIXED,
    OTHER,
    SOURCE,
    TARGET,
    UNRELATED,
    role_of,
)
from tests.analysis_made_up_grid import cross_entropy, noise, ordinary, write_grid

REPRODUCED, REFUTED, OPEN = Answer.YES, Answer.NO, Answer.OPEN


def judged(folder, value, **grid):
    """letter -> claim. Curves have verdicts and no laws: those cost time, and claims ask verdicts,
    which are those of a law that is met; a law that fails is made by `value`, which then may name
    the verdict word itself."""
    words = grid.pop("words", lambda curve, roles: None)
    write_grid(folder, value, **grid)
    rows, runs = read_results(harvest(folder)), read_runs(folder)
    fits = []
    for curve in curves_of(rows):
        x, y = curve.arrays
        verdict = judge(
            x, y, lower_is_better=curve.metric in LOWER_IS_BETTER,
            resolution=resolution_of(curve.metric), seed_noise=curve.facts.get("seed_noise"),
            check=[Prediction(0, 3, x[-1], 0.3, y[-1], y[-1], y[-1], y[-1], last=y[0])],
        )  # fmt: skip
        fits.append(CurveFit(curve, law_of_metric(curve.metric), None, "", verdict))
    evidence = Evidence(fits, runs, rows)
    for i, this in enumerate(fits):
        word = words(this.curve, evidence.roles.kind(this.curve.place))
        if word:
            verdict = dataclasses.replace(this.verdict, shape=Shape(word), reason="made up")
            fits[i] = CurveFit(this.curve, this.law, None, "", verdict)
    claims, absent = judge_claims(Evidence(fits, runs, rows))
    return {claim.letter: claim for claim in claims}, absent


def verdicts(claims):
    return {letter: claim.answer for letter, claim in claims.items()}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return judged(tmp_path_factory.mktemp("usual"), ordinary)


def test_a_study_like_the_paper(usual):
    claims, absent = usual
    found = verdicts(claims)
    assert [found[letter] for letter in "acde"] == [REPRODUCED] * 4
    assert found["g"] == REPRODUCED
    assert [text[:3] for text in absent] == ["(h)", "(i)", "(j)"]
    for claim in claims.values():
        assert len(claim.findings) == 3  # en-de, en-fr, en-ro
        assert all(finding.measured for finding in claim.findings)
        assert bool(claim.needed) == (claim.answer == OPEN)
    french = next(f for f in claims["c"].findings if f.pair == "en-fr")
    assert "breaks while cross-entropy improves in 6 of 6 curves" in french.measured
    # Beside it: unmatched data do not break the other pairs, which is not what the claim is about.
    assert {f.answer for f in claims["c"].findings if f.pair != "en-fr"} == {REFUTED}
    assert claims["c"].differ
    assert "target-only 0." in claims["e"].findings[0].measured


def test_bleu_near_zero_decides_nothing(tmp_path):
    def value(metric, pair, role, size, pool, seed):
        if metric == "bleu":  # of no translation, however clear its order
            return 0.1 + 0.05 * math.log2(1 + size / 100_000)
        if metric == "chrf":
            return 5.0 + 0.5 * math.log2(1 + size / 100_000)
        return ordinary(metric, pair, role, size, pool, seed)

    claims, _ = judged(tmp_path, value, pairs=("en-fr",), pools=(1_000, 8_000))
    assert {verdicts(claims)[letter] for letter in "acdfg"} == {OPEN}
    assert verdicts(claims)["e"] == REPRODUCED  # by cross-entropy alone
    assert "BLEU stays at" in claims["c"].findings[0].measured
    assert "so that BLEU rises above 1" in claims["c"].needed


def test_one_pair_and_one_pool(tmp_path):
    claims, _ = judged(
        tmp_path, ordinary, pairs=("en-ro",), pools=(1_000,), roles=("balanced",), extra=()
    )
    assert verdicts(claims) == dict.fromkeys("bcdef", OPEN) | {"a": REPRODUCED, "g": REPRODUCED}
    assert claims["b"].needed == "a second finetuning pool"
    assert claims["c"].needed.startswith("en-fr")
    assert "target-only and source-only data for en-ro" in claims["e"].needed


def test_aligned_data_that_do_not_follow(tmp_path):
    """(a): against where BLEU of aligned data breaks, or the law misses; open where it is noise."""

    def value(metric, pair, role, size, pool, seed):
        if metric == "bleu" and pair == "en-de" and size:
            return 10 + (3 if math.log2(size / 100_000) % 2 else -3)
        return ordinary(metric, pair, role, size, pool, seed)

    grid = {"roles": ("balanced",), "extra": (), "pools": (1_000,)}
    claims, _ = judged(
        tmp_path / "1", value, pairs=("en-de", "en-ro"), **grid,
        words=lambda curve, role: "unpredicted" if "en_ro" in curve.place.task
        and curve.metric == "bleu" else None,
    )  # fmt: skip
    by_pair = {f.pair: f.answer for f in claims["a"].findings}
    # One vote of the loss for, one of BLEU against: neither pair is decided by one curve each.
    assert by_pair == {"en-de": OPEN, "en-ro": OPEN}
    grid["pools"] = (1_000, 8_000)

    def loss_too(metric, pair, role, size, pool, seed):
        if metric == "cross_entropy" and pool == 8_000:
            return 6 - (0.5 if size and math.log2(size / 100_000) % 2 else 0) + noise(0.01, size)
        return value(metric, pair, role, size, pool, seed)

    claims, _ = judged(tmp_path / "2", loss_too, pairs=("en-de",), **grid)
    assert verdicts(claims)["a"] == REFUTED


def test_gains_by_pool(tmp_path):
    """(b): for where the gain vanishes, against where it stays, open where pools are not seen."""

    def value(shrinks):
        def of(metric, pair, role, size, pool, seed):
            share = shrinks if pool == 60_000 else 1.0
            gain = share * math.log2(1 + size / 100_000)
            if metric == "cross_entropy":
                return 6 - 0.3 * gain + noise(0.01, metric, size, pool, seed)
            if metric == "bleu":
                return 5 + 2 * gain + noise(0.05, metric, size, pool, seed)
            return None

        return of

    grid = {"pairs": ("en-de",), "roles": ("balanced",), "pools": (1_000, 60_000)}
    for name, shrinks, steps, verdict in (
        ("vanishes", 0.05, 2_000, REPRODUCED), ("stays", 1.0, 2_000, REFUTED),
        ("grows", 1.5, 2_000, REFUTED), ("half", 0.5, 2_000, REFUTED),
        ("unseen", 0.05, 10, OPEN),
    ):  # fmt: skip
        claims, _ = judged(tmp_path / name, value(shrinks), steps=steps, **grid)
        assert verdicts(claims)["b"] == verdict, name
    half, _ = judged(tmp_path / "again", value(0.5), **grid)
    assert "The gain shrinks, but does not vanish" in half["b"].findings[0].measured
    assert "-fold" in half["b"].findings[0].measured


def test_unmatched_data_that_do_not_break(tmp_path):
    """(c) against, and so where target-only data break as well."""

    def no_break(metric, pair, role, size, pool, seed):
        pair = "en-de" if metric != "cross_entropy" else pair  # whose BLEU does not break
        return ordinary(metric, pair, role, size, pool, seed)

    def all_break(metric, pair, role, size, pool, seed):
        role = "source only" if metric == "bleu" and role == "target only" else role
        return ordinary(metric, pair, role, size, pool, seed)

    grid = {"pairs": ("en-fr",), "pools": (1_000, 8_000)}
    assert verdicts(judged(tmp_path / "1", no_break, **grid)[0])["c"] == REFUTED
    assert verdicts(judged(tmp_path / "2", all_break, **grid)[0])["c"] == REFUTED


def test_unrelated_data_that_break_german(tmp_path):
    def value(metric, pair, role, size, pool, seed):
        pair = "en-fr" if role == "unrelated" and metric == "bleu" else pair
        return ordinary(metric, pair, role, size, pool, seed)

    claims, _ = judged(tmp_path, value, pairs=("en-de",), pools=(1_000, 8_000))
    assert verdicts(claims)["d"] == REFUTED


def test_which_language_suffices(tmp_path):
    """(e) against where source-only data are the better ones; open where all do alike."""

    def swapped(metric, pair, role, size, pool, seed):
        role = {"source only": "target only", "target only": "source only"}.get(role, role)
        return ordinary(metric, pair, role, size, pool, seed)

    def alike(metric, pair, role, size, pool, seed):
        loss = cross_entropy(pair, "balanced", size, pool)
        return loss + noise(0.05, role, size, pool, seed) if metric == "cross_entropy" else None

    grid = {"pairs": ("en-de",), "pools": (1_000, 8_000)}
    assert verdicts(judged(tmp_path / "1", swapped, **grid)[0])["e"] == REFUTED
    assert verdicts(judged(tmp_path / "2", alike, **grid)[0])["e"] == OPEN


def test_exponential_only_where_aligned(tmp_path):
    """(f): for in en-fr, whose unmatched data break; against where they follow it as well."""
    grid = {"pools": (1_000,), "roles": ("balanced", "source only"), "extra": ()}
    claims, _ = judged(tmp_path / "1", ordinary, pairs=("en-fr",), **grid)
    assert verdicts(claims)["f"] == REPRODUCED
    claims, _ = judged(tmp_path / "2", ordinary, pairs=("en-de",), **grid)
    assert verdicts(claims)["f"] == REFUTED
    claims, _ = judged(
        tmp_path / "3", ordinary, pairs=("en-de",), **grid | {"roles": ("balanced",)}
    )
    assert verdicts(claims)["f"] == OPEN


def test_length_that_moves_bleu(tmp_path):
    """(g) against where the brevity penalty does it; open where it was not recorded."""

    def short(metric, pair, role, size, pool, seed):
        penalty = 1 - 0.6 * math.exp(-size / 800_000)
        if metric == "brevity_penalty":
            return penalty
        return 20 * penalty + noise(0.1, size, seed) if metric == "bleu" else 5 - size / 1e7

    def unknown(metric, *place):
        return None if metric == "brevity_penalty" else ordinary(metric, *place)

    grid = {"pairs": ("en-de",), "pools": (1_000,), "roles": ("balanced",)}
    claims, _ = judged(tmp_path / "1", short, **grid, metrics=("cross_entropy", "bleu"))
    assert verdicts(claims)["g"] == REFUTED
    claims, _ = judged(tmp_path / "2", unknown, **grid)
    assert verdicts(claims)["g"] == OPEN and "BLEU's parts" in claims["g"].needed


def test_other_data_of_a_study(tmp_path):
    """(h) and (j) where COMET and a second model are there."""

    def value(metric, *place):
        return ordinary("bleu" if metric == "comet" else metric, *place)

    folder = tmp_path / "study"
    grid = {"pairs": ("en-fr",), "pools": (1_000,), "metrics": ("cross_entropy", "bleu", "comet")}
    write_grid(folder, value, model="small", **grid)
    claims, absent = judged(folder, value, **grid)
    assert verdicts(claims)["h"] == verdicts(claims)["j"] == REPRODUCED
    assert [text[:3] for text in absent] == ["(i)"]


@pytest.mark.parametrize(
    ("shares", "kind", "label"),
    [
        ({"en": 0.5, "de": 0.5}, BALANCED, "en+de"), ({"en": 0.3, "de": 0.7}, MIXED, "30:70"),
        ({"en": 1.0}, SOURCE, "en"), ({"de": 1.0}, TARGET, "de"), ({"ro": 1.0}, UNRELATED, "ro"),
        ({"fr": 0.5, "ro": 0.5}, UNRELATED, "fr+ro"), ({"en": 0.5, "fr": 0.5}, OTHER, "mine"),
        ({}, OTHER, "mine"),
    ],
)  # fmt: skip
def test_roles(shares, kind, label):
    role = role_of(shares, ("en", "de"), "mine")
    assert (role.kind, role.label) == (kind, label)
    assert role_of(shares, ("en",), "mine").kind == OTHER


def test_votes_and_means():
    assert majority([True, True, False, None]) is True
    assert majority([True, False]) is majority([None]) is majority([]) is None
    assert mean_range([1.0, 2.0]) is None
    found = mean_range([1.0, 2.0, 3.0])
    assert (found.value, found.count, found.sure) == (2.0, 3, 1)
    assert found.high - found.value == pytest.approx(2.919986 / math.sqrt(3))
    assert Range(0.1, -0.1, 0.3).sure == 0
