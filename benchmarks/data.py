"""Data: materialisation against plain SeqIO, the loader against the train step, memory: ratios.

    python benchmarks/data.py [--blocks=3]
    python benchmarks/data.py --memory [--gigabytes=5] [--scratch=DIRECTORY]

materialise  tokens a second from the embedded corpus to an examples directory, shuffled, mixed and
             on disk, against one epoch of `seqio.get_dataset` of the same task with SeqIO's
             converter, neither shuffled nor written; in turn, in one process, with all its cores.
loader       batches a second from such a directory against steps a second of gin/models/tiny.gin's
             train step with batches of that very shape; in turn, in one process held to one core.
--memory     instead of these: materialises made-up JSON lines, as many gigabytes of text as asked
             for, and prints the highest resident memory of the process that does it. About 25
             minutes and three times the text's space in DIRECTORY, for 5 GB on 2 cores.

Tokens are those of the rows, inputs and targets. Times are medians, with the lowest and the highest
in brackets. About 3 minutes on 2 cores.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from train_step import note, spread, verdict

REPOSITORY = Path(__file__).resolve().parent.parent
TASKS = {
    "techdoc_span_en50_de50": ({"inputs": 128, "targets": 32}, False),
    "techdoc_translate_en_de": ({"inputs": 128, "targets": 128}, True),
}
MATERIALISE_TARGET, LOADER_TARGET = 1.5, 20.0
MEMORY_LIMIT_MB, MAX_LINE = 2000, 20_000  # characters of a document
GIGABYTE = 10**9


def timed(function: Callable[[], int]) -> tuple[float, float, int]:
    """-> (wall seconds, CPU seconds, what `function` counted)."""
    wall, cpu = time.perf_counter(), time.process_time()
    counted = function()
    return time.perf_counter() - wall, time.process_time() - cpu, counted


def materialise(task: str, lengths: dict[str, int], pack: bool) -> int:
    """Tokens that were written."""
    from rich.console import Console

    from t5scaling.data import materialize
    from t5scaling.data.examples import DataSpec, Examples

    spec = DataSpec(task, "train", lengths, pack=pack)
    with tempfile.TemporaryDirectory() as root, open(os.devnull, "w") as nowhere:
        examples = Examples(materialize.materialize(spec, root, Console(file=nowhere)))
        return sum(examples.tokens(len(examples), name) for name in ("inputs", "targets"))


def plain_seqio(task: str, lengths: dict[str, int], pack: bool) -> int:
    """Tokens of one epoch."""
    from t5scaling.data import reading

    seqio = reading.import_seqio()
    dataset = seqio.get_dataset(
        mixture_or_task_name=task,
        task_feature_lengths=lengths,
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        seed=0,
        feature_converter=seqio.EncDecFeatureConverter(pack=pack),
    )
    names = ("encoder_input_tokens", "decoder_target_tokens")
    return sum(int((row[name] > 0).sum()) for row in dataset.as_numpy_iterator() for name in names)


def compare_materialisation(blocks: int) -> None:
    from t5scaling.data import reading

    reading.import_seqio()
    import tasks.registry  # noqa: F401

    for task, (lengths, pack) in TASKS.items():
        print(task, flush=True)
        sides: dict[str, Callable] = {"t5scaling": materialise, "seqio": plain_seqio}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for block in range(blocks):
            for name in sides if block % 2 == 0 else reversed(sides):
                wall, cpu, tokens = timed(functools.partial(sides[name], task, lengths, pack))
                found[name].append((tokens / wall, tokens / cpu))
        for name, rates in found.items():
            walls, cpus = zip(*rates, strict=True)
            note(f"{name}: {spread(walls, 0)} tokens/s, {spread(cpus, 0)} tokens per CPU-s")
        for unit, words in ((0, "per second"), (1, "per CPU-second")):
            pairs = zip(found["t5scaling"], found["seqio"], strict=True)
            ratios = [ours[unit] / theirs[unit] for ours, theirs in pairs]
            met = "" if unit else "; " + verdict(median(ratios), MATERIALISE_TARGET, at_least=True)
            note(f"t5scaling / seqio in tokens {words}: {spread(ratios, 2)}{met}")


def compare_loader(blocks: int) -> None:
    """Runs in a process of its own, held to one core before JAX counts them."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import tiny

    tiny.prepare()
    import jax
    import numpy as np

    from t5scaling.data import loader
    from t5scaling.data.examples import DataSpec, find_examples
    from t5scaling.training import sharding, step

    lengths = {"inputs": tiny.LENGTH, "targets": tiny.LENGTH}
    vocabulary, task = 8192, "techdoc_translate_en_de"
    with tempfile.TemporaryDirectory() as root:
        examples = find_examples(DataSpec(task, "train", lengths, pack=True), root)

        def load(steps: int, start: int) -> None:
            batches = loader.train_batches(
                examples, batch_size=tiny.ROWS, start_step=start, num_steps=steps, shuffle=True
            )
            assert sum(1 for _ in batches) == steps

        layout, config = sharding.make_layout(), tiny.model(vocabulary)
        train_step = step.jit_train_step(config, step.Objective(), layout)
        state = step.jit_init(config, layout)(np.uint32(0))
        batch = next(iter(loader.train_batches(examples, batch_size=tiny.ROWS, num_steps=1)))
        batch = sharding.put_batch(batch, layout)

        def train(steps: int) -> None:
            nonlocal state
            for _ in range(steps):
                state, _ = train_step(state, batch, np.float32(0.01), np.uint32(0), np.bool_(False))
            jax.block_until_ready(state)

        train(2)
        load(50, 0)
        loads, steps, ratios = [], [], []
        for block in range(blocks):
            start = time.perf_counter()
            load(300, 300 * block)
            middle = time.perf_counter()
            train(8)
            loads.append((middle - start) / 300 * 1e3)
            steps.append((time.perf_counter() - middle) / 8 * 1e3)
            ratios.append(steps[-1] / loads[-1])
    note(f"loader: {spread(loads)} ms a batch of {tiny.ROWS} packed rows")
    note(f"train step: {spread(steps, 1)} ms")
    met = verdict(median(ratios), LOADER_TARGET, at_least=True)
    note(f"batches / steps in the same time on one core: {spread(ratios, 1)}; {met}")


def write_text(folder: Path, gigabytes: float) -> None:
    """JSON lines of documents of several lengths, in files of at most half a gigabyte."""
    import random

    from t5scaling.data.vocabulary import Vocabulary

    pieces = Vocabulary(REPOSITORY / "tasks" / "corpus" / "spm8k.model")
    draw = random.Random(0)
    words = [pieces.decode([draw.randrange(300, 8000)]) or "x" for _ in range(20_000)]
    left, number = int(gigabytes * GIGABYTE), 0
    while left > 0:
        size = min(left, GIGABYTE // 2)
        left -= size
        with open(folder / f"text-{number:03d}.jsonl", "w", encoding="utf-8") as file:
            while size > 0:
                text = " ".join(draw.choices(words, k=draw.randrange(20, 800)))
                line = json.dumps({"text": text[:MAX_LINE]}, ensure_ascii=False) + "\n"
                size -= file.write(line)
        number += 1


def measure_memory(gigabytes: float, scratch: str | None) -> None:
    """Highest resident memory of a process that materialises so much text."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        text = Path(folder) / "text"
        text.mkdir()
        write_text(text, gigabytes)
        size = sum(path.stat().st_size for path in text.iterdir())
        print(f"{size / GIGABYTE:.2f} GB of text in {len(list(text.iterdir()))} files", flush=True)
        spec: dict[str, Any] = {
            "task": "made_up",
            "split": "train",
            "feature_lengths": {"inputs": 512, "targets": 114},
            "definitions": {
                "made_up": {
                    "kind": "span_corruption",
                    "files": {"train": str(text / "*.jsonl")},
                    "format": "jsonl",
                    "vocabulary": "techdoc",
                }
            },
        }
        command = [sys.executable, "-m", "t5scaling.data.materialize", json.dumps(spec), folder]
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=REPOSITORY)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"materialisation ended with {child.returncode}")
        (made,) = Path(folder).glob("made_up-train-*/dataset.json")
        meta = json.loads(made.read_text())
        shutil.rmtree(made.parent)
    tokens = meta["tokens"]["inputs"] + meta["tokens"]["targets"]
    seconds = time.perf_counter() - start
    note(f"{tokens:,} tokens in {seconds:.0f} s, {tokens / seconds:,.0f} a second")
    peak = usage.ru_maxrss * 1024 / 1e6
    note(f"highest resident memory: {peak:,.0f} MB; {verdict(peak, MEMORY_LIMIT_MB)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=3, help="rounds of each that are timed")
    parser.add_argument("--memory", action="store_true", help="memory for a large corpus instead")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="text of the large corpus")
    parser.add_argument("--scratch", help="where the large corpus is made")
    parser.add_argument("--loader", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loader:
        compare_loader(arguments.blocks)
    elif arguments.memory:
        measure_memory(arguments.gigabytes, arguments.scratch)
    else:
        print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}", flush=True)
        compare_materialisation(arguments.blocks)
        print("loader", flush=True)
        command = [sys.executable, __file__, "--loader", f"--blocks={arguments.blocks}"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
