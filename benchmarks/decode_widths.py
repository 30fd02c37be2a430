"""What it costs and saves to decode each batch at the narrowest width: compilation against run.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/decode_widths.py [--params=FILE.npz] [--batches 4 40]

The model, its parameters and the 256 sentences are those of decode.py (FILE.npz keeps the
parameters of either); 40 batches of 64 are the sentences ten times. They are answered by
evaluation's `Generator`, greedily and with 4 beams:

four    each batch at the narrowest of the four widths that holds it
shared  a width of its own for generate.MIN_BATCHES batches or more, as evaluation does

Each in a new process twice: first with an empty compilation cache on disk, then with the cache that
the first has left. A process answers all batches two times; its first time less its second is what
starting costs: to trace, and to compile or to read the cache. Seconds are CPU-seconds of all
threads, which other work on the machine changes less than wall time. Exits with 1 if answers
differ. About 10 minutes on 2 cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import decode_worker
import numpy as np
import tiny
from train_step import BENCHMARKS, note

METHODS = ("greedy", f"beam{decode_worker.BEAMS}")


def work(params_file: str, method: str, min_batches: int, batches: int) -> dict[str, Any]:
    """Of this process: CPU-seconds of both times, the widths, and the answers with their scores."""
    from t5scaling.data.vocabulary import Vocabulary
    from t5scaling.evaluation import generate
    from t5scaling.model import decoding
    from t5scaling.training import sharding

    generate.MIN_BATCHES = min_batches or generate.MIN_BATCHES
    sentences = [source for source, _ in decode_worker.test_set()]
    inputs = sentences * (batches * decode_worker.BATCH // len(sentences))
    decoders = (decoding.Greedy(), decoding.BeamSearch(decode_worker.BEAMS, alpha=0.0))
    generator = generate.Generator(
        tiny.model(decode_worker.VOCABULARY),
        decode_worker.load(params_file),
        sharding.make_layout(),
        Vocabulary(decode_worker.CORPUS / "spm8k.model"),
        dict(zip(METHODS, decoders, strict=True))[method],
        input_length=decode_worker.LIMIT,
        max_decode_len=decode_worker.LIMIT,
        batch_size=decode_worker.BATCH,
    )
    shares = [len(tokens) / decode_worker.LIMIT for tokens in inputs]
    cut = generate.batches_by_length(shares, decode_worker.BATCH, generate.MIN_BATCHES)
    widths = [int(share * decode_worker.LIMIT) for _, share in cut]
    cpu_s = []
    for _ in range(2):
        before = time.process_time()
        answers = generator(inputs)
        cpu_s.append(time.process_time() - before)
    return {
        "cpu_s": cpu_s,
        "widths": {width: widths.count(width) for width in sorted(set(widths))},
        "texts": [answer.text for answer in answers],
        "scores": [answer.score for answer in answers],
    }


def launch(*arguments: Any, cache: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", *map(str, arguments)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def compare(params: str, method: str, batches: int) -> bool:
    """Prints the seconds; returns whether both ways gave the same answers."""
    found = {}
    for name, min_batches in (("four", 1), ("shared", 0)):
        with tempfile.TemporaryDirectory() as cache:
            first, second = (
                launch(params, method, min_batches, batches, cache=cache) for _ in range(2)
            )
        found[name] = first
        starts = [done["cpu_s"][0] - done["cpu_s"][1] for done in (first, second)]
        again = (first["cpu_s"][1] + second["cpu_s"][1]) / 2
        note(
            f"{method}, {batches} batches, {name}: batches by width {first['widths']}; to start "
            f"{starts[0]:.1f} CPU-s, {starts[1]:.1f} from the cache; to run {again:.1f}"
        )
    equal = found["four"]["texts"] == found["shared"]["texts"]
    scores = [np.array(found[name]["scores"]) for name in found]
    difference = np.max(np.abs(scores[0] - scores[1]))
    note(f"answers {'equal' if equal else 'NOT equal'}, scores within {difference:.1e} nats")
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", help="npz file of the parameters; made if it is not there")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 40], help="multiples of 4")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        # What libraries print must not be mistaken for the result.
        output = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        tiny.prepare()
        params, method, *numbers = arguments.work
        json.dump(work(params, method, *map(int, numbers)), output)
        output.close()
        return
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        params = arguments.params or f"{scratch}/parameters.npz"
        if not os.path.exists(params):
            subprocess.run(
                [sys.executable, str(BENCHMARKS / "decode_worker.py"), "ours", params],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        all_equal = [
            compare(params, method, batches) for method in METHODS for batches in arguments.batches
        ]
    print(f"load average at the end {os.getloadavg()[0]:.2f}")
    if not all(all_equal):
        raise SystemExit("answers differ")


if __name__ == "__main__":
    main()
