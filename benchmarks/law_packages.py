"""Fits of scaling laws against the packages that offer them: seconds, optimum, prediction.

    pip install chinchilla==0.2.0 scaling-audit==0.1.0  # in an environment of its own
    pip install --no-deps -e .
    python benchmarks/law_packages.py [--curves=20] [--points=3]

Planted curves of 6 data sizes with 3 seeds each and 1 % of noise are fitted in turn by t5scaling
(`best_theta`: the best of all its starts, no intervals) and by each package, in one process. For
each job: seconds of a fit, the objective that was reached (the same sum of losses of log values,
taken here, for both), and how far the prediction one decade on is from the planted law, in logs.
About 2 minutes on 2 cores, nearly all of it chinchilla's; with `--points=5 --curves=2` about 3.

What the packages can do:

chinchilla 0.2.0 fits one law, L(N, D) = E + A / N^alpha + B / D^beta: scipy's BFGS with numerical
    derivatives in extended precision, from each point of a grid that the user gives. It has no
    intervals, held-out points, bounds or other laws; besides, it allots compute, simulates and
    plots. A curve of one size it fits too if N = 1 everywhere: A then adds to E. Its default loss
    counts an overestimate tenfold; here it gets its `log_huber` with the delta of ours. BFGS stops
    once the gradient is below 1e-5, which with a loss this small is early: it is run with the loss
    as it is, from `--points` starting values per parameter, and divided by delta^2, from 2. Both
    are taken from the ranges of its manual's grid, which has 5 values per parameter. That makes
    27 and 8 starts for one size, 243 and 32 for two (3,125 with 5); ours are 32 and 36. `fit` draws
    a figure each time, which is left out, and runs in this process (`parallel=False`).

scaling-audit 0.1.0 fits no law with a floor. It has linear least squares under linear
    constraints, `ConstrainedLinearRegression`, thus the pure power law and its product over
    several sizes, as lines and planes in logs; the rest is held-out scores of any scikit-learn
    estimator, by group or from small to large. On those two laws it is compared under squares,
    where its answer is exact; on a law with a floor it shows what a line costs a decade on.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
from train_step import note, spread, verdict

from t5scaling.analysis.fitting.least_squares import huber
from t5scaling.analysis.fitting.problem import Problem, best_theta
from t5scaling.analysis.laws import LAWS

SIZES, SEEDS, NOISE, DELTA = 6, 3, 0.01, 1e-3
RATIO_TARGET, WORSE_TARGET = 20.0, 1e-9

# Sizes (N,) or (2, N) and values (N,) -> the fitted law: sizes -> log values.
Fitted = Callable[[np.ndarray], np.ndarray]
Fitter = Callable[[np.ndarray, np.ndarray], Fitted]


def one_size() -> np.ndarray:
    return np.repeat(1e8 * 4.0 ** np.arange(SIZES), SEEDS)


def two_sizes() -> np.ndarray:
    """4 sizes of the one for each of the other: (2, 4 * SIZES * SEEDS)."""
    first, second = np.meshgrid(1e8 * 4.0 ** np.arange(4), 2e9 * 4.0 ** np.arange(SIZES))
    return np.repeat([first.ravel(), second.ravel()], SEEDS, axis=1)


def ours(name: str, delta: float) -> Fitter:
    law = LAWS[name]

    def fit(x: np.ndarray, y: np.ndarray) -> Fitted:
        problem = Problem.of(law, x, y, delta)
        theta = best_theta(problem)[0]
        return lambda x: law.log_value(theta, np.log(x), problem.frame)

    return fit


def chinchilla_package(points: int, scale: float, scratch: str) -> Fitter:
    """`scale` multiplies its loss, which moves no minimum but when its BFGS stops."""
    import pandas as pd
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    def fit(x: np.ndarray, y: np.ndarray) -> Fitted:
        def both(x):
            return x if x.ndim == 2 else np.stack([np.ones_like(x), x])

        alone = x.ndim == 1
        grid = {
            "E": np.linspace(1, 2, points),
            "a": [-20.0] if alone else np.linspace(1, 10, points),
            "b": np.linspace(1, 10, points),
            "alpha": [0.5] if alone else np.linspace(0.1, 0.7, points),
            "beta": np.linspace(0.1, 0.7, points),
        }
        peer = Chinchilla(
            scratch, grid, loss_fn=lambda y, p: scale * log_huber(y, p, DELTA), log_level=50
        )
        peer.visualizer.optim = lambda *_, **__: None
        model, data = both(x)
        columns = {"C": 6 * model * data, "N": model, "D": data, "loss": y}
        peer.database.df = pd.DataFrame(columns)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # logs of negative predictions on its way
            peer.fit(parallel=False)
        return lambda x: np.log(np.asarray(peer.predict_loss(*both(x)), float))

    return fit


def audit_package() -> Fitter:
    from scaling_audit import ConstrainedLinearRegression

    def fit(x: np.ndarray, y: np.ndarray) -> Fitted:
        peer = ConstrainedLinearRegression().fit(np.log(x).T, np.log(y))
        return lambda x: peer.predict(np.log(x).T)

    return fit


def compare(
    title: str, truth: Callable, x: np.ndarray, fitter: Fitter, peers: dict, delta: float,
    curves: int, *, same_law: bool = True, ratio_target: float | None = None,
) -> None:  # fmt: skip
    """Prints one job. peers: name -> Fitter."""
    print(f"{title}; {'squares' if np.isinf(delta) else f'Huber, delta {delta:g}'}", flush=True)
    fitters = {"t5scaling": fitter, **peers}
    seconds, objectives, errors = ({name: [] for name in fitters} for _ in range(3))
    draw = np.random.default_rng(0)
    onward = 10 * x[..., -1:]  # the largest
    for fit in fitters.values():
        fit(x, truth(x))  # warms up
    for _ in range(curves):
        y = truth(x) * np.exp(NOISE * draw.standard_normal(x.shape[-1]))
        for name, fit in fitters.items():
            begin = time.perf_counter()
            fitted = fit(x, y)
            seconds[name].append(time.perf_counter() - begin)
            objectives[name].append(float(huber(np.log(y) - fitted(x), delta).sum()))
            errors[name].append(abs(float(fitted(onward)[0] - np.log(truth(onward))[0])))
    for name in fitters:
        note(
            f"{name}: {1e3 * np.median(seconds[name]):.2f} ms a fit; objective "
            f"{np.median(objectives[name]):.6e}; error a decade on {spread(errors[name], 4)}"
        )
    for name in peers:
        ratio = float(np.median(np.divide(seconds[name], seconds["t5scaling"])))
        met = "" if ratio_target is None else f"; {verdict(ratio, ratio_target, at_least=True)}"
        note(f"{name} / t5scaling in seconds: {ratio:.3g}{met}")
        worse = np.divide(objectives["t5scaling"], objectives[name]) - 1
        met = f"; median {verdict(float(np.median(worse)), WORSE_TARGET)}" if same_law else ""
        low, middle, high = worse.min(), np.median(worse), worse.max()
        note(f"    our objective over its, less 1: {middle:.1e} ({low:.1e} to {high:.1e}){met}")


def available(package: str, makers: dict[str, Callable[[], Fitter]]) -> dict[str, Fitter]:
    """The fitters of a package, none if it is not there."""
    try:
        made = {name: make() for name, make in makers.items()}
    except ImportError as error:
        note(f"{package}: left out, it cannot be imported ({error})")
        return {}
    note(f"{package} {version(package)}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", type=int, default=20)
    parser.add_argument("--points", type=int, default=3, help="starts per parameter of chinchilla")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}", flush=True)
    curves, points = arguments.curves, arguments.points
    with tempfile.TemporaryDirectory() as scratch:
        chinchilla = available("chinchilla", {
            f"chinchilla, {points} starts a parameter":
                lambda: chinchilla_package(points, 1.0, scratch),
            "chinchilla, 2, loss / delta^2": lambda: chinchilla_package(2, DELTA**-2, scratch),
        })  # fmt: skip
        audit = available("scaling-audit", {"scaling-audit": audit_package})
        floor = "L(D) = E + A / D^alpha", lambda x: 1.69 + 410.7 / x**0.285, one_size()
        compare(*floor, ours("power", DELTA), chinchilla, DELTA, curves, ratio_target=RATIO_TARGET)
        compare("The same curves, a line in logs for scaling-audit", *floor[1:],
                ours("power", DELTA), audit, DELTA, curves, same_law=False)  # fmt: skip
        compare("L(D) = b / D^c", lambda x: 30 / x**0.095, one_size(), ours("m1", np.inf), audit,
                np.inf, curves)  # fmt: skip
        compare("D_T = k * D_F^a * N^b", lambda x: 1.9e4 * x[0] ** 0.18 * x[1] ** 0.38, two_sizes(),
                ours("hernandez", np.inf), audit, np.inf, curves)  # fmt: skip
        compare("L(N, D) = E + A / N^alpha + B / D^beta",
                lambda x: 1.69 + 406.4 / x[0] ** 0.339 + 410.7 / x[1] ** 0.285, two_sizes(),
                ours("chinchilla", DELTA), chinchilla, DELTA, curves,
                ratio_target=RATIO_TARGET)  # fmt: skip


if __name__ == "__main__":
    main()
