"""Fits of the log-law against a loop over scipy.optimize.curve_fit: speed and optimum.

    python benchmarks/laws.py [--replicates=10000] [--peer=40]

A curve of the log-law at 6 sizes with 3 seeds each, as a study of realistic size has them, with
3 % of noise; its parametric bootstrap is fitted with Huber's loss from 30 starts for each
replicate. The peer fits the first so many of the very same replicates from the very same starts, in
the parametrisation (log s, t, beta) and with the same bounds of D0, by curve_fit with Huber's loss
(scipy.optimize.least_squares' "trf"), one after another; the best of its starts counts. In one
process on the CPU with all its cores. About half a minute on 2 cores.
"""

import argparse
import os
import time

import numpy as np
from scipy.optimize import curve_fit
from train_step import note, spread, verdict

from t5scaling.analysis.fitting.least_squares import huber
from t5scaling.analysis.fitting.problem import Problem, refit
from t5scaling.analysis.laws import LAWS
from t5scaling.analysis.laws.base import Frame

SIZES, SEEDS, NOISE, STARTS, DELTA = 6, 3, 0.03, 30, 0.1
SECONDS_TARGET, RATIO_TARGET = 30.0, 20.0


def study() -> tuple[np.ndarray, np.ndarray]:
    """-> (log sizes (N,), log values (N,) without noise)."""
    log_x = np.log(np.repeat(1e8 * 2.0 ** np.arange(SIZES), SEEDS))
    return log_x, np.log(5 * (log_x - np.log(2e7)) ** 0.8)


def peer_start(law, theta: np.ndarray, frame: Frame) -> np.ndarray:
    """The same curve as (log s, t, beta)."""
    coefficients = law.coefficients(theta, frame)
    return np.array([np.log(coefficients["s"]), theta[2], coefficients["beta"]])


def peer_fit(log_x: np.ndarray, log_y: np.ndarray, starts: np.ndarray, frame: Frame) -> float:
    """The lowest objective over all starts; those that curve_fit gives up are passed over."""

    def log_law(log_x, log_s, t, beta):
        return log_s + beta * np.log(log_x - frame.log_min + np.exp(t))

    best = np.inf
    bounds = ([-300.0, -5.0, 1e-6], [300.0, 6.0, 1e4])
    for start in starts:
        try:
            found, _ = curve_fit(
                log_law, log_x, log_y, np.clip(start, *bounds), bounds=bounds,
                loss="huber", f_scale=DELTA,
            )  # fmt: skip
        except RuntimeError:
            continue
        best = min(best, huber(log_y - log_law(log_x, *found), DELTA).sum())
    return float(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=10_000)
    parser.add_argument("--peer", type=int, default=40, help="replicates that the peer fits")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}", flush=True)
    law, (log_x, truth) = LAWS["log"], study()
    draw = np.random.default_rng(0)
    curves = truth + NOISE * draw.standard_normal((arguments.replicates, len(log_x)))
    problem = Problem.of(law, np.exp(log_x), np.exp(truth), DELTA)
    frame = problem.frame
    grid = law.starts(log_x, truth, frame)
    more = grid[draw.choice(len(grid), STARTS - len(grid), replace=False)] * 1.1
    starts = np.clip(np.vstack([grid, more]), *law.bounds(frame))

    begin = time.perf_counter()
    theta, objective, converged = refit(problem, curves, starts)
    ours = time.perf_counter() - begin
    fits = len(curves) * len(starts)
    note(f"t5scaling: {len(curves):,} replicates from {len(starts)} starts in {ours:.1f} s; "
         f"{converged.mean():.2%} converged; {verdict(ours, SECONDS_TARGET)}")  # fmt: skip
    predicted = law.log_value(theta, np.array([log_x[-1] + np.log(4)]), frame)[:, 0]
    note(f"prediction two doublings on, logs: {np.mean(predicted):.3f} +- {np.std(predicted):.3f}")

    count = min(arguments.peer, len(curves))
    peer_starts = np.array([peer_start(law, theta, frame) for theta in starts])
    begin = time.perf_counter()
    peer = np.array([peer_fit(log_x, curve, peer_starts, frame) for curve in curves[:count]])
    theirs = time.perf_counter() - begin
    rates = fits / ours, count * len(starts) / theirs
    note(f"curve_fit: {count} replicates in {theirs:.1f} s, {rates[1]:,.0f} fits a second; "
         f"t5scaling {rates[0]:,.0f}")  # fmt: skip
    ratio = rates[0] / rates[1]
    note(f"ratio: {ratio:.0f}; {verdict(ratio, RATIO_TARGET, at_least=True)}")
    worse = objective[:count] / peer - 1
    note(f"our objective over its: {spread(1 + worse, 6)}; median "
         f"{verdict(float(np.median(worse)), 1e-9)}")  # fmt: skip


if __name__ == "__main__":
    main()
