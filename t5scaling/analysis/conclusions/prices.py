"""What a token is worth: of each language in tokens of the target's, and of pretraining at all.

A law of effective data gives the price of a token of each language and the best mixture of them;
the law of the transfer gap says how much of a loss no amount of the pretraining data takes away,
and up to which price finetuning data are the better purchase. Both are reported only if the law
meets the measurements (`exchange.lack_of_fit`). What data are worth in the target's own is also
read off between measured sizes, which takes no law.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.decisions import Answer
from t5scaling.analysis.conclusions.exchange import lack_of_fit, marginal_rate, noises
from t5scaling.analysis.fitting.fit import Fit, check_positive, fit_curve
from t5scaling.analysis.fitting.problem import Problem, best_theta
from t5scaling.analysis.fitting.significance import (
    SIGNIFICANCE,
    TAILS,
    f_tail,
    student_half_width,
)
from t5scaling.analysis.laws import LAWS, of_sources
from t5scaling.analysis.laws.base import Law
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError

STEPS = {2: 100, 3: 20, 4: 20, 5: 10}  # of a share, by the number of languages; beyond, CORNERS
CORNERS = 4  # steps where there are many languages
SAME = 0.05  # shares that differ by less are one mixture


@dataclass(frozen=True)
class Price:
    """How many tokens of the target a token of a source is worth."""

    source: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BestMixture:
    """The mixture that the law expects most of at `total` tokens, and the best measured one there.

    gain, low, high: how far the first lies below the second, in the metric, less what choosing the
    best by the same fit adds on average. answer: whether the first is better; "no" where it is a
    measured one, or as good as that.
    """

    total: float
    shares: Mapping[str, float]
    expected: float
    measured: Mapping[str, float]
    gain: float
    low: float
    high: float
    answer: Answer


@dataclass(frozen=True)
class Prices:
    """Of the languages of one place (without its data), with `target`'s tokens as the unit.

    prices: of the other languages. pair: what both sides of the language pair together are worth,
    of the law that has this term. miss, noise, fits_points: as of an `Exchange`; fits_points None
    where the noise of a point is not known. No prices and no mixture if the law misses its points.
    """

    place: Place
    metric: str
    target: str
    law: Law
    miss: float
    noise: float
    fits_points: bool | None
    prices: tuple[Price, ...] = ()
    pair: Price | None = None
    mixture: BestMixture | None = None


def prices_of_table(curve: Curve, total: float) -> Prices:
    """Of a table's curve of several sources, with the best mixture of `total` tokens.

    Raises UserError for points that no law of effective data can be fitted to.
    """
    x, y = curve.arrays
    _, where = np.unique(x, axis=1, return_inverse=True)
    again = np.bincount(where.ravel())[where.ravel()] > 1
    known: list[tuple[float, int]] = []
    if again.any():
        means = np.bincount(where.ravel(), y) / np.bincount(where.ravel())
        freedom = int(again.sum() - len(set(where.ravel()[again])))
        squares = np.sum((y - means[where.ravel()])[again] ** 2)
        known = [(float(np.sqrt(squares / freedom)), freedom)]
    return _prices(curve.place, curve.metric, curve.sources, x, y, known, total)


def prices_of_study(
    curve_fits: Sequence[CurveFit], runs: Sequence[RunRecord], total: float
) -> Iterator[Prices]:
    """Of each task and pool whose losses were measured after enough mixtures of languages.

    The tokens of a language are its share in the data, as the runs' records give it, of D_p.
    """
    languages, shares = _languages(runs)
    groups = _same_but_data(curve_fits, languages, shares)
    for (place, metric), members in groups.items():
        source, target = languages[str(place.task)]
        found = {name for one in members for name in shares[str(one.curve.place.data)]}
        order = tuple(n for n in (target, source) if n in found)
        order += tuple(sorted(found - {source, target}))
        if target not in found or len(order) < 2:
            continue
        rows = [
            ([p.x * float(shares[str(one.curve.place.data)].get(n, 0.0)) for n in order], p.value)
            for one in members
            for p in one.curve.points
        ]
        x, y = np.array([row for row, _ in rows]).T, np.array([value for _, value in rows])
        with suppress(UserError):  # too few mixtures to tell the languages apart
            yield _prices(place, metric, order, x, y, noises(members), total)


def _languages(
    runs: Sequence[RunRecord],
) -> tuple[dict[str, tuple[str, str]], dict[str, Mapping[str, Any]]]:
    """(source and target of each task, shares of languages in each pretraining data)."""
    languages: dict[str, tuple[str, str]] = {}
    shares: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        if run["kind"] == "finetune":
            two = run.record.get("languages") or ()
            if len(two) == 2:
                languages[run["task"]] = (two[0], two[1])
            if run["pretrain_data"] and run.record.get("pretrain_languages"):
                shares[run["pretrain_data"]] = run.record["pretrain_languages"]
    return languages, shares


def _same_but_data(
    curve_fits: Sequence[CurveFit], languages: Mapping[str, Any], shares: Mapping[str, Any]
) -> dict[tuple[Place, str], list[CurveFit]]:
    """Losses of each place and metric that differ in the pretraining data, with known languages."""
    groups: dict[tuple[Place, str], list[CurveFit]] = {}
    for one in curve_fits:
        place = one.curve.place
        if place.task in languages and place.data in shares and one.law.direction < 0:
            groups.setdefault((place.beside_data, one.curve.metric), []).append(one)
    return groups


def _prices(
    place: Place,
    metric: str,
    sources: tuple[str, ...],
    x: np.ndarray,
    y: np.ndarray,
    known: Sequence[tuple[float, int]],
    total: float,
) -> Prices:
    if len(x) > len(sources):
        laws = [of_sources("sources-repeated", sources)]
    else:
        both = x[0].any() and x[1].any() and (x[0] * x[1]).any()
        laws = [of_sources(kind, sources) for kind in ("sources", "sources-pair")[: 1 + both]]
    check_positive(laws[0], x, y, "tokens", metric)
    laws[0].check_design(np.unique(x, axis=1))
    if len(y) <= laws[0].num_parameters + 1:
        raise UserError(
            f"{len(y)} points: too few for the {laws[0].title}, which has "
            f"{laws[0].num_parameters} coefficients, and to check it"
        )
    residuals = [_residuals(law, x, y) for law in laws if len(y) > law.num_parameters + 1]
    chosen = 1 if len(residuals) > 1 and _needed(residuals, laws[1]) else 0
    law = laws[chosen]
    miss, noise, meets = lack_of_fit(residuals[chosen], law, known)
    found = Prices(place, metric, sources[0], law, miss, noise, meets if known else None)
    if known and not meets:
        return found
    fit = fit_curve(law, x, y, hold_out=0, x_name="tokens", y_name=metric)
    listed = {
        name.removeprefix("w_"): Price(name.removeprefix("w_"), *numbers)
        for name, numbers in fit.coefficients.items()
        if name.startswith("w_")
    }
    pair = listed.pop("pair", None) if "pair" not in sources else None
    prices = tuple(listed[name] for name in sources[1:])
    return replace(found, prices=prices, pair=pair, mixture=best_mixture(fit, total))


def _residuals(law: Law, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the best fit, without intervals, in the metric."""
    problem = Problem.of(law, x, y)
    return y - np.exp(problem.log_values(best_theta(problem)[0]))


def _needed(residuals: Sequence[np.ndarray], larger: Law) -> bool:
    """Whether one more coefficient makes the second residuals smaller than chance does (F test)."""
    few, more = (float(np.sum(r**2)) for r in residuals)
    freedom = residuals[1].size - larger.num_parameters
    ratio = (few - more) / max(more / freedom, 1e-300)
    return f_tail(max(ratio, 0.0), 1, freedom) < SIGNIFICANCE


def best_mixture(fit: Fit, total: float) -> BestMixture:
    """Of the languages of a law of several sources, at `total` tokens that are all new."""
    law = fit.law
    count = len(law.sources)
    steps = STEPS.get(count, CORNERS)
    grid = np.array(
        [parts for parts in itertools.product(range(steps + 1), repeat=count - 1)
         if sum(parts) <= steps]
    ).T / steps  # fmt: skip
    grid = np.concatenate([grid, 1 - grid.sum(0, keepdims=True)])
    tokens = fit.x[:count]
    measured = np.unique(np.round(tokens / tokens.sum(0), 2), axis=1)
    grid, measured = (shares / shares.sum(0) for shares in (grid, measured))
    count = grid.shape[1]
    places = _sizes(law, np.concatenate([grid, measured], axis=1) * total)
    own, draws = fit.predict(places), np.exp(fit.log_values(places, fit.replicates))
    best, known = int(own[:count].argmin()), count + int(own[count:].argmin())
    # Among many mixtures the one that looks best is one that luck favours. Each replicate chooses
    # its own, as the points did, and knows from the fit, its truth, how wrong it is about the gain.
    each, its_best = np.arange(len(draws)), draws[:, :count].argmin(1)
    its_known = count + draws[:, count:].argmin(1)
    errors = (draws[each, its_known] - draws[each, its_best]) - (own[its_known] - own[its_best])
    seen = own[known] - own[best]
    below, above = np.quantile(errors, TAILS, method="inverted_cdf")
    gain, low, high = (float(seen - error) for error in (errors.mean(), above, below))
    one, other = (np.concatenate([grid, measured], axis=1)[:, i] for i in (best, known))
    if np.abs(one - other).max() < SAME or seen <= 0:
        answer = Answer.NO
    else:
        answer = Answer.YES if low > 0 else Answer.OPEN
    return BestMixture(
        total, _named(law.sources, one), float(own[best]), _named(law.sources, other),
        gain, low, high, answer,
    )  # fmt: skip


def _sizes(law: Law, tokens: np.ndarray) -> np.ndarray:
    """Tokens as the law takes them; where it knows repeats, all of them are new."""
    return np.concatenate([tokens, tokens]) if len(law.sizes) > len(tokens) else tokens


def _named(sources: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    return dict(zip(sources, (round(float(share), 4) for share in shares), strict=True))


@dataclass(frozen=True)
class Gap:
    """The transfer gap in one finetuning pool: what of the loss no amount of these pretraining data
    takes away, G / D_f^beta, and only more finetuning data do.

    open, open_low, open_high: what more pretraining data than `pretrain` can still take away there.
    turn, turn_low, turn_high: how many times the price of a pretraining token a finetuning token
    may cost and still be the better purchase, from `pretrain` and `pool` on.
    """

    place: Place
    metric: str
    pool: float
    pretrain: float
    gap: float
    low: float
    high: float
    open: float
    open_low: float
    open_high: float
    turn: float
    turn_low: float
    turn_high: float


@dataclass(frozen=True)
class Gaps:
    """Of all pools of a place. miss, noise, fits_points: as of an `Exchange`; no pools if the law
    does not meet its points."""

    place: Place
    metric: str
    law: Law
    miss: float
    noise: float
    fits_points: bool
    pools: tuple[Gap, ...] = ()


def gaps(curve_fits: Sequence[CurveFit], pool_sizes: Sequence[float]) -> Gaps:
    """From losses that differ in the finetuning pool alone.

    Args:
      pool_sizes: D_f of each curve, in the unit of x.

    Raises:
      UserError: too few points for the law of the transfer gap.
    """
    rows = [
        (p.x, pool, p.value)
        for curve_fit, pool in zip(curve_fits, pool_sizes, strict=True)
        for p in curve_fit.curve.points
    ]
    first, second, y = np.array(rows, float).T
    curve = curve_fits[0].curve
    law, x = LAWS["barnett"], np.array([first, second])
    law.check_design(np.unique(x, axis=1))
    check_positive(law, x, y, "size", curve.metric)
    check = lack_of_fit(_residuals(law, x, y), law, noises(curve_fits))
    found = Gaps(curve.place.beside_pool, curve.metric, law, *check)
    if not found.fits_points:
        return found
    fit = fit_curve(law, x, y, hold_out=0)
    pools = sorted(zip(pool_sizes, curve_fits, strict=True), key=lambda pair: pair[0])
    return replace(
        found,
        pools=tuple(
            _gap(found, fit, pool, max(p.x for p in one.curve.points)) for pool, one in pools
        ),
    )


def _gap(found: Gaps, fit: Fit, pool: float, pretrain: float) -> Gap:
    at = np.array([[pretrain], [pool]])

    def numbers(theta: np.ndarray) -> np.ndarray:
        """(gap, what is open, price ratio) of thetas (R, P), (3, R)."""
        c = fit.law.coefficients(theta, fit.frame)
        gap, open_part = (c["G"] / pool ** c["beta"]), c["A"] / pretrain ** c["alpha"]
        with np.errstate(divide="ignore"):
            turn = 1 / marginal_rate(fit, at, theta)
        return np.array([gap, open_part / pool ** c["beta"], turn])

    own, draws = numbers(fit.theta[None])[:, 0], numbers(fit.replicates)
    low, high = np.quantile(draws, TAILS, axis=1, method="inverted_cdf")
    ends = (float(v) for triple in zip(own, low, high, strict=True) for v in triple)
    return Gap(found.place, found.metric, pool, pretrain, *ends)


@dataclass(frozen=True)
class Worth:
    """What tokens of some pretraining data are worth in those of the target language alone, read
    off between measured sizes without any law.

    tokens: the largest size of the data. value, low, high: tokens of the target that reach the same
    loss, over `tokens`; inf above what was measured, where `reach` is the most that can be read
    off, and 0 below, where it is under `least`. The interval is that of the data's own loss there;
    the curve of the target is taken as it was measured.
    """

    place: Place
    metric: str
    target: str
    tokens: float
    value: float
    low: float
    high: float
    least: float
    reach: float


def worths(curve_fits: Sequence[CurveFit], runs: Sequence[RunRecord]) -> Iterator[Worth]:
    """Of every data set but the target's own, where the loss after the target's own falls from each
    size to the next."""
    languages, shares = _languages(runs)
    groups = _same_but_data(curve_fits, languages, shares)
    for (place, _), members in groups.items():
        target = languages[str(place.task)][1]
        alone = [m for m in members if shares[str(m.curve.place.data)].get(target, 0.0) == 1.0]
        if len(alone) != 1:
            continue
        sizes, losses = _means(alone[0])
        if len(sizes) < 2 or (np.diff(losses) >= 0).any() or not (losses > 0).all():
            continue
        for one in members:
            if one is not alone[0] and one.verdict.noise:
                yield _worth(one, target, sizes, losses)


def _means(curve_fit: CurveFit) -> tuple[np.ndarray, np.ndarray]:
    """Sizes, rising, and the mean loss at each; sizes within 1 % of each other are one."""
    points = sorted(curve_fit.curve.points, key=lambda p: p.x)
    groups = [[points[0]]]
    for point in points[1:]:
        if point.x <= 1.01 * groups[-1][0].x:
            groups[-1].append(point)
        else:
            groups.append([point])
    sizes = np.array([np.mean([p.x for p in group]) for group in groups])
    return sizes, np.array([np.mean([p.value for p in group]) for group in groups])


def _worth(one: CurveFit, target: str, sizes: np.ndarray, losses: np.ndarray) -> Worth:
    """Of one data set, by the sizes and the falling losses of the target's own data."""
    mine, reached = _means(one)
    count = sum(point.x >= mine[-1] / 1.01 for point in one.curve.points)
    width = student_half_width(one.verdict.noise / np.sqrt(count), one.verdict.noise_df)

    def factor(loss: float) -> float:
        if loss < losses[-1]:
            return math.inf
        if loss > losses[0]:
            return 0.0
        return float(np.exp(np.interp(-np.log(loss), -np.log(losses), np.log(sizes))) / mine[-1])

    loss = float(reached[-1])
    return Worth(
        one.curve.place, one.curve.metric, target, float(mine[-1]), factor(loss),
        factor(loss + width), factor(loss - width), float(sizes[0] / mine[-1]),
        float(sizes[-1] / mine[-1]),
    )  # fmt: skip
