"""Decoding against its peer and against our own plain version: ratios.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/decode.py [--blocks=5] [--params=FILE.npz]

The model is gin/models/tiny.gin's (T5 1.1, 2 + 2 layers, width 128, vocabulary 8,192) in float32;
the test set is 256 English sentences of the embedded corpus, 7 to 80 tokens long, in the batches of
64 of like length that `eval` and `infer` cut, ours at the widths that they use for many batches
(decode_widths.py compares these with what they do for few); an answer has 128 tokens at most. The
model is first trained on these very sentences for 300 steps (kept in FILE, if it is named and not
there yet), so that its answers end as real translations do. Greedy decoding, and beam search with 4
beams without length penalty: T5X's and transformers' penalties differ.

peer    Hugging Face transformers' `generate`, with the same parameters
plain   our model, decoded without the ways of t5scaling/model/decoding.py to save work: a cache
        of full length, beams that take their cache with them, keys and values of the encoder's
        output for each beam, the library's argmax and top-k

All in turn, each in a process of its own, on the CPU with all its cores; the first round of each,
in which ours compile, is not counted. Exits with 1 if answers differ. About 5 minutes on 2 cores.

A machine that has other work to do slows processes by different factors: a number that is to be
kept is taken while it has none. Times are medians, with the lowest and the highest in brackets.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from decode_worker import BATCH, BEAMS
from train_step import BENCHMARKS, Worker, note, spread, verdict

NAMES = {"ours": "t5scaling", "plain": "plain version", "peer": "transformers"}
TARGET = {"greedy": 2.0, f"beam{BEAMS}": 3.0}  # of tokens per CPU-second, over the peer's


class DecodeWorker(Worker):
    """A process of decode_worker.py."""

    def __init__(self, who: str, params: str):
        self._who = who
        self._process = subprocess.Popen(
            [sys.executable, str(BENCHMARKS / "decode_worker.py"), who, params],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._answer()

    def round(self, method: str) -> dict[str, Any]:
        """The test set once; see decode_worker.Round."""
        print(method, file=self._process.stdin, flush=True)
        return self._answer()


def compare(workers: dict[str, DecodeWorker], method: str, blocks: int) -> bool:
    """Prints the ratios; returns whether all gave the same answers."""
    answers = {who: worker.round(method)["answers"] for who, worker in workers.items()}
    seen: dict[str, list[dict[str, Any]]] = {who: [] for who in workers}
    for number in range(blocks):
        for who in workers if number % 2 == 0 else reversed(workers):
            seen[who].append(workers[who].round(method))
    lengths = [len(answer) for answer in answers["ours"]]
    tokens = sum(lengths)
    note(f"{len(lengths)} answers of {min(lengths)} to {max(lengths)} tokens, {tokens:,} in all")
    all_equal = True
    for who in ("plain", "peer"):
        equal = sum(a == b for a, b in zip(answers["ours"], answers[who], strict=True))
        all_equal &= equal == len(lengths)
        note(f"{equal} of {len(lengths)} are equal to those of {NAMES[who]}")
    for who, rounds in seen.items():
        cpu, wall = [r["cpu_s"] for r in rounds], [r["wall_s"] for r in rounds]
        note(
            f"{NAMES[who]}: {spread(cpu)} CPU-s, {spread(wall)} s of wall time; "
            f"{tokens / statistics.median(cpu):,.0f} tokens per CPU-s; "
            f"{sum(cpu) / sum(wall):.2f} cores used"
        )
    peer = [sum(r[unit] for r in seen["peer"]) for unit in ("cpu_s", "wall_s")]
    if peer[0] / peer[1] < 0.8 * os.cpu_count():
        note(
            f"NOT TO BE KEPT: other work held the cores ({peer[0] / peer[1]:.2f} of "
            f"{os.cpu_count()} used by the peer)"
        )
    for who in ("plain", "peer"):
        for unit, words in (("cpu_s", "CPU time"), ("wall_s", "wall time")):
            ratios = [b[unit] / a[unit] for a, b in zip(seen["ours"], seen[who], strict=True)]
            met = ""
            if (who, unit) == ("peer", "cpu_s"):
                met = "; " + verdict(statistics.median(ratios), TARGET[method], at_least=True)
            note(f"{NAMES[who]} / t5scaling in {words}: {spread(ratios, 2)}{met}")
    return all_equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=5, help="rounds of each that are timed")
    parser.add_argument("--params", help="npz file of the parameters; made if it is not there")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        params = arguments.params or f"{scratch}/parameters.npz"
        workers = {}
        for who in NAMES:
            workers[who] = DecodeWorker(who, params)
            stack.callback(workers[who].close)
        note(f"{workers['ours'].facts['input_tokens']:,} input tokens in batches of {BATCH}")
        all_equal = True
        for method in TARGET:
            print(method, flush=True)
            all_equal &= compare(workers, method, arguments.blocks)
    print(f"load average at the end {os.getloadavg()[0]:.2f}")
    if not all_equal:
        raise SystemExit("answers differ")


if __name__ == "__main__":
    main()
