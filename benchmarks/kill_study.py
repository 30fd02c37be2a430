"""Kill a study with -9 at random moments and compare with one left alone.

    python benchmarks/kill_study.py [--gin_file=gin/studies/quick.gin] [--kills=5] [--seed=0]

Runs the study twice, once left alone and once killed `--kills` times at moments drawn uniformly
from three quarters of the first one's duration, each time started again. Prints whether
results.csv and every metrics.jsonl are equal byte for byte, and the wall time of both. Exits with
1 if they are not.
About twice the study's own time (quick.gin: under 15 minutes on 2 cores).
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def start(arguments: argparse.Namespace, folder: Path, examples: Path) -> subprocess.Popen:
    command = [sys.executable, "run.py", "study", f"--gin_file={arguments.gin_file}"]
    command += [f"--gin.STUDY_DIR={folder}", f"--gin.EXAMPLES_ROOT={examples}"]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, start_new_session=True
    )


def finish(arguments: argparse.Namespace, folder: Path, examples: Path) -> float:
    """Runs the study to its end; returns seconds."""
    began = time.monotonic()
    if start(arguments, folder, examples).wait():
        raise SystemExit(f"the study in {folder} failed")
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", default="gin/studies/quick.gin")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        examples = Path(scratch) / "examples"
        alone, killed = Path(scratch) / "alone", Path(scratch) / "killed"
        alone_s = finish(arguments, alone, examples)
        # Not from its whole length: what is compiled and materialised is not so again.
        moments = sorted(draw.uniform(0, 0.75 * alone_s) for _ in range(arguments.kills))
        # The moments divide the work: each launch lives for the gap between two of them, and for
        # what a launch costs before it does anything new.
        overhead_s = finish(arguments, alone, examples)
        for before, moment in zip([0.0, *moments], moments, strict=False):
            process = start(arguments, killed, examples)
            try:
                process.wait(timeout=overhead_s + moment - before)
                print(f"ended by itself before the kill at {moment:.1f} s")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done = len(list(killed.glob("runs/**/DONE")))
                print(f"killed at {moment:.1f} s of the work, {done} runs done", flush=True)
        last_s = finish(arguments, killed, examples)
        names = ["results.csv", *(str(p.relative_to(alone)) for p in alone.glob("runs/**/*.jsonl"))]
        names = [name for name in names if not name.endswith("timing.jsonl")]
        different = [n for n in names if (alone / n).read_bytes() != (killed / n).read_bytes()]
        print(
            f"left alone {alone_s:.0f} s; last launch after {arguments.kills} kills {last_s:.0f} s"
        )
        print(f"{len(names) - len(different)} of {len(names)} files equal byte for byte")
        for name in different:
            print(f"  differs: {name}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
