"""How often 90 % intervals hold the truth, for every family of laws, with what users get.

    python benchmarks/coverage.py [--studies=500] [--laws=log,power] [--situations=even,seeds]
        [--interval=noise] [--delta=inf] [--first=20000] [--checkpoints=24]
    python benchmarks/coverage.py --pairs [--studies=500]
    python benchmarks/coverage.py --scores [--studies=500]

Each simulated study plants a law with known coefficients at 6 doubling sizes with 3 seeds each
(joint laws: 6 x 3 sizes) and normal noise on log values, and fits it to all points, with each law's
own Huber threshold unless one is given. Counted: how often the interval of each coefficient that
the design determines holds the planted one, and how often the band of predictions holds a new
measurement at half, at 2 and at 8 times the largest size. 87 to 93 % are wanted for noise that is
independent and even, 80 % or more in the other situations:

- even: independent noise of one size;
- growing: its standard deviation grows 3 times over the fitted sizes, and on beyond them;
- steep: the same, 8 times;
- seeds: half of the variance is a shift of a seed's whole curve;
- checkpoints: 24 checkpoints of one run in place of 6 sizes (--checkpoints=N), with AR(1) errors
  of 0.9 (--correlation=0 shows what intervals of uncorrelated ones are);
- outlier: one point is 10 standard deviations off.

--scores plants BLEU that no family of ours is the law of (an exponential of a power of the data, as
Gordon et al. 2021 found from 5 MB of text on: 6 at the smallest size, 18 at the largest), lets the
law be chosen as for a table of that one curve, and asks how often the band of the chosen law and
the interval of the forecast, which spans the families that take part, hold a new measurement.

--pairs plants two data sets at a time: the same law in both, where a chance of 95 % or more to be
the better one (at twice the largest size) should be seen in 10 % of the pairs, and two that cross
there, which the interval of the crossing should hold in 90 %.

On one core of the CPU about 4 minutes for all families and 500 studies of even noise, without m4
and bnsl, which take that long each.
"""

import argparse
import time

import numpy as np

from t5scaling.analysis.conclusions.curve_fit import fit_one
from t5scaling.analysis.conclusions.forecast import Outlook, chance_of_best, outlooks, overtakes
from t5scaling.analysis.conclusions.named_law import laws_of
from t5scaling.analysis.fitting.fit import fit_curve
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.results.curves import Curve, Point
from t5scaling.analysis.results.places import Place

SIZES, SEEDS = 1e8 * 2.0 ** np.arange(6), 3
# law -> (planted coefficients, noise of a log value, coefficients that the design determines)
PLANTED = {
    "log": ({"s": 5.0, "D0": 2e7, "beta": 0.8}, 0.03, ("beta", "D0", "s")),
    "power": ({"E": 1.5, "A": 0.8 * 1e8**0.4, "alpha": 0.4}, 0.01, ("E", "alpha")),
    "m1": ({"b": 3 * 1e8**0.15, "c": 0.15}, 0.01, ("c",)),
    "m3": ({"b": 2 * 1e8**0.4, "g": 0.15 / 1e8, "c": 0.4}, 0.01, ("c", "g")),
    "onset": ({"b": 5.0, "d": 4e8, "c": 0.3}, 0.01, ("b", "d", "c")),
    "m4": ({"e": 1.0, "e0": 6.0, "a": 0.8, "b": 4.8e8, "c": 1.0}, 0.005, ("c", "e", "e0")),
    "bnsl": (
        {"a": 1.0, "b": 4.0, "c0": 0.05, "c1": 0.5, "d1": 6e8, "f1": 0.3}, 0.005, ("d1",),
    ),
    "ceiling": ({"C": 40.0, "A": 30 * 1e8**0.5, "alpha": 0.5}, 0.02, ("C", "alpha")),
    "hill": ({"C": 35.0, "D_half": 4e8, "k": 0.9}, 0.03, ("C", "k", "D_half")),
    "gordon": ({"C": 900.0, "k": -1.4}, 0.03, ("k",)),
    "gadre": ({"e": 0.8, "k": 2.0, "g": 0.9}, 0.02, ("e", "g")),
    "zhang": ({"E": 1.5, "A": 60.0, "a": 0.12, "b": 0.1}, 0.005, ("a", "b")),
    "zhang-additive": (
        {"E": 1.5, "A": 200.0, "B": 60.0, "a": 0.3, "b": 0.35}, 0.005, ("a", "E"),
    ),
    "chinchilla": (
        {"E": 1.8, "A": 480.0, "B": 150.0, "alpha": 0.34, "beta": 0.37}, 0.005, ("alpha", "E"),
    ),
    "kaplan": ({"Nc": 9e13, "Dc": 5e9, "aN": 0.076, "aD": 0.103}, 0.005, ("aD",)),
    "hernandez": ({"k": 2.0, "a": 0.2, "b": 0.4}, 0.03, ("a", "b")),
    "muennighoff": ({"E": 1.9, "B": 900.0, "beta": 0.36, "R*": 15.39}, 0.005, ("beta", "R*")),
    "barnett": (
        {"E": 1.2, "G": 20.0, "A": 8e4, "alpha": 0.45, "beta": 0.2}, 0.005, ("alpha", "beta", "G"),
    ),
    "lin": ({"E": 1.5, "B": 3e5, "D_l": 1e5, "beta": 0.6}, 0.005, ("E", "beta")),
    "ghorbani": ({"E": 1.4, "A": 150.0, "p_e": 0.16, "p_d": 0.2}, 0.005, ("p_e", "p_d")),
    "clark": ({"a": -0.082, "b": -0.108, "c": 0.0039, "d": 2.5}, 0.005, ("a", "b", "c")),
}  # fmt: skip
TIMES = (0.5, 2.0, 8.0)
SITUATIONS = ("even", "growing", "steep", "seeds", "checkpoints", "outlier")
CHECKPOINTS, AR = 24, 0.9
# Number of the first study, from which its random numbers come. The odds that noise.py gives each
# kind of noise before it sees the points were chosen on studies below 20,000.
FIRST = 20_000


def truth(name: str, x: np.ndarray) -> np.ndarray:
    """The planted law; the log-law by what is identified."""
    planted = PLANTED[name][0]
    if name == "log":
        return planted["s"] * np.log(x / planted["D0"]) ** planted["beta"]
    return LAWS[name].published(x, planted)


def design(
    name: str, situation: str, checkpoints: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> (sizes of the points, seeds of the points, places of the new measurements)."""
    law = LAWS[name]
    count = checkpoints if situation == "checkpoints" else len(SIZES)
    seeds = 1 if situation == "checkpoints" else SEEDS
    sizes = np.geomspace(SIZES[0], SIZES[-1], count)
    if name == "muennighoff":
        x = np.array([(u * e, u) for u in (1e7, 4e7, 1.6e8) for e in sizes / SIZES[0]]).T
    elif len(law.sizes) == 2:
        x = np.array([(a, b) for a in sizes for b in (1e5, 1e6, 1e7)]).T
    else:
        x = np.repeat(np.linspace(2.0, 4.0, count) if law.of_loss else sizes, seeds)
        places = np.array([2.5, 1.8, 1.6]) if law.of_loss else x.max() * np.array(TIMES)
        return x, np.arange(len(x)) % seeds, places
    return x, np.zeros(x.shape[1], int), x[:, -1:] * np.array([TIMES, (1.0, 1.0, 1.0)])


def errors(
    situation: str,
    x: np.ndarray,
    seeds: np.ndarray,
    places: np.ndarray,
    draw: np.random.Generator,
    correlation: float,
) -> tuple[np.ndarray, np.ndarray]:
    """-> (of the points, of the new measurements), in standard deviations."""
    size, far = (np.log(np.atleast_2d(rows)[0]) for rows in (x, places))
    own, new = draw.standard_normal(len(size)), draw.standard_normal(len(far))
    if situation in ("growing", "steep"):
        factor = np.log(3.0 if situation == "growing" else 8.0) / np.ptp(size)
        middle = (size.max() + size.min()) / 2
        own, new = own * np.exp(factor * (size - middle)), new * np.exp(factor * (far - middle))
    elif situation == "seeds":
        own = (own + draw.standard_normal(seeds.max() + 1)[seeds]) / np.sqrt(2)
    elif situation == "checkpoints":
        step = len(np.unique(x, axis=-1).T) // len(np.unique(size))  # second sizes side by side
        for i in range(step, len(own)):
            own[i] = correlation * own[i - step] + np.sqrt(1 - correlation**2) * own[i]
    elif situation == "outlier":
        own[draw.integers(len(own))] += 10 * draw.choice([-1, 1])
    return own, new


def cover(
    name: str, situation: str, numbers: range, checkpoints: int, correlation: float, **options
) -> dict[str, float]:
    """Shares of the studies of these numbers."""
    planted, noise, determined = PLANTED[name]
    x, seeds, places = design(name, situation, checkpoints)
    y, wanted = truth(name, x), truth(name, places)
    hits = dict.fromkeys((*determined, *(f"at {t:g} times" for t in TIMES), "converged"), 0)
    for study in numbers:
        draw = np.random.default_rng((study, list(PLANTED).index(name)))
        own, new = errors(situation, x, seeds, places, draw, correlation)
        fit = fit_curve(
            LAWS[name], x, y * np.exp(noise * own), hold_out=0, seeds=list(seeds), **options
        )  # fmt: skip
        hits["converged"] += fit.converged
        for key in determined:
            _, low, high = fit.coefficients[key]
            hits[key] += low <= planted[key] <= high
        low, high = fit.band(places)
        measured = wanted * np.exp(noise * new)
        for t, inside in zip(TIMES, (low <= measured) & (measured <= high), strict=True):
            hits[f"at {t:g} times"] += inside
    return {key: count / len(numbers) for key, count in hits.items()}


def scores(numbers: range) -> dict[str, float]:
    """Shares of the studies."""
    x, noise = np.repeat(5e6 * 2.0 ** np.arange(6), SEEDS), 0.02
    places = x.max() * np.array(TIMES)

    def bleu(at: np.ndarray) -> np.ndarray:
        return 38.0 * np.exp(-1.8 * (at / x.min()) ** -0.25)

    hits = dict.fromkeys(
        [f"{what} at {t:g} times" for t in TIMES for what in ("band", "forecast")], 0
    )
    for study in numbers:
        draw = np.random.default_rng((study, 99))
        y = bleu(x) * np.exp(noise * draw.standard_normal(len(x)))
        new = bleu(places) * np.exp(noise * draw.standard_normal(len(TIMES)))
        points = tuple(
            Point(float(a), float(b), seed=i % SEEDS)
            for i, (a, b) in enumerate(zip(x, y, strict=True))
        )
        curve = Curve(Place(), "bleu", "D_p", points)
        curve_fit = fit_one(curve, laws_of(None, [curve])[0][1])
        assert curve_fit.fit is not None
        (expected,) = outlooks([curve_fit])[0].values()
        for t, at, measured in zip(TIMES, places, new, strict=True):
            low, high = (float(end[0]) for end in curve_fit.fit.band(np.array([at])))
            hits[f"band at {t:g} times"] += low <= measured <= high
            found = expected.at(at)
            hits[f"forecast at {t:g} times"] += found.low <= measured <= found.high
    return {key: count / len(numbers) for key, count in hits.items()}


def outlook(x: np.ndarray, y: np.ndarray) -> Outlook:
    points = tuple(Point(float(a), float(b)) for a, b in zip(x, y, strict=True))
    return Outlook(Curve(Place(), "cross_entropy", "D_p", points), [LAWS["power"]])


def pairs(numbers: range) -> dict[str, float]:
    """Shares of the pairs of these numbers."""
    x = np.repeat(SIZES, SEEDS)
    meet, noise = SIZES[-1] * 2, 0.01

    def law(at: np.ndarray | float, exponent: float):
        """All exponents have the same value where they meet."""
        return 1.5 + 0.3 * (at / meet) ** -exponent

    hits = dict.fromkeys(("sure of one of two equal laws", "crossing", "crosses at all"), 0.0)
    for study in numbers:
        draw = np.random.default_rng(study)

        def curve(exponent: float, draw=draw) -> Outlook:
            y = law(x, exponent) * np.exp(noise * draw.standard_normal(len(x)))
            return outlook(x, y)

        first, twin, steeper = curve(0.3), curve(0.3), curve(0.8)
        chances = chance_of_best({"one": first, "two": twin}, meet, -1)
        hits["sure of one of two equal laws"] += max(chances.values()) >= 0.95
        crossing = overtakes(first, steeper)
        if crossing and crossing.low is not None and crossing.high is not None:
            hits["crosses at all"] += 1
            hits["crossing"] += crossing.low <= meet <= crossing.high
    hits["crossing"] *= len(numbers) / max(hits["crosses at all"], 1)
    return {key: count / len(numbers) for key, count in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS)
    parser.add_argument("--correlation", type=float, default=AR)
    parser.add_argument("--laws", default=",".join(PLANTED))
    parser.add_argument("--situations", default="even")
    parser.add_argument("--interval", default="noise")
    parser.add_argument("--delta", type=float)
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--scores", action="store_true")
    arguments = parser.parse_args()
    numbers = range(arguments.first, arguments.first + arguments.studies)
    if unknown := set(arguments.situations.split(",")) - set(SITUATIONS):
        parser.error(f"situations {', '.join(unknown)}: unknown; known: {', '.join(SITUATIONS)}")

    def show(title: str, shares: dict[str, float], begin: float) -> None:
        said = ", ".join(f"{key} {share:.1%}" for key, share in shares.items())
        print(f"{title}: {said}; {time.perf_counter() - begin:.0f} s", flush=True)

    for title, count in (("pairs", pairs), ("scores", scores)):
        if getattr(arguments, title):
            begin = time.perf_counter()
            return show(title, count(numbers), begin)
    for situation in arguments.situations.split(","):
        for name in arguments.laws.split(","):
            begin = time.perf_counter()
            shares = cover(
                name, situation, numbers, arguments.checkpoints, arguments.correlation,
                interval=arguments.interval, delta=arguments.delta,
            )  # fmt: skip
            show(f"{name}, {situation}", shares, begin)


if __name__ == "__main__":
    main()
