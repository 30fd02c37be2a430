"""How long `fit` takes on a table of many curves, and how much it prints.

    python benchmarks/many_curves.py [--curves=200] [--points=180]

makes a table of planted curves (losses that fall to a floor and scores that rise, measured at many
steps of many runs, with noise; some of them trendless), fits it as `t5scaling fit` does, and prints
seconds of CPU (of all processes), seconds of the clock, and lines. Asked for: 36,000 rows in 200
curves in at most 20 seconds and 50 lines, on 2 cores.
"""

import argparse
import contextlib
import csv
import io
import resource
import tempfile
import time
from pathlib import Path

import numpy as np


def write_table(path: Path, curves: int, points: int) -> None:
    """Columns run, steps, loss, in the curves' order."""
    rng = np.random.default_rng(0)
    steps = np.unique(np.geomspace(1e3, 1e6, points).round())
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["run", "steps", "loss"])
        for curve in range(curves):
            floor, height, exponent = rng.uniform((1.0, 5.0, 0.1), (3.0, 50.0, 0.5))
            values = floor + height * steps**-exponent
            if curve % 10 == 9:
                values = np.full(len(steps), floor)
            values = values * np.exp(0.01 * rng.standard_normal(len(steps)))
            table.writerows((f"run{curve}", int(x), f"{y:.6g}")
                            for x, y in zip(steps, values, strict=True))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=200)
    parser.add_argument("--points", type=int, default=180)
    arguments = parser.parse_args()
    from t5scaling.command_line import main as t5scaling

    def used() -> float:
        return sum(resource.getrusage(who).ru_utime for who in
                   (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_table(path, arguments.curves, arguments.points)
        rows = path.read_text().count("\n") - 1
        said, warned = io.StringIO(), io.StringIO()
        cpu, clock = used(), time.perf_counter()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(warned):
            status = t5scaling(["fit", str(path), "--x=steps", "--y=loss", "--group=run"])
        cpu, clock = used() - cpu, time.perf_counter() - clock
    print(said.getvalue(), warned.getvalue(), sep="")
    lines = said.getvalue().count("\n") + warned.getvalue().count("\n")
    print(
        f"{rows:,} rows in {arguments.curves} curves: {cpu:.1f} s of CPU, {clock:.1f} s by the "
        f"clock, {lines} lines, exit status {status}"
    )


if __name__ == "__main__":
    main()
