"""What a study costs beside its steps, in one process.

    python benchmarks/study_overhead.py [--runs=30] [--steps=30]

A study of finetunings of the tiny model on the embedded corpus at the settings of finetune.gin,
from one pretrained checkpoint and without evaluation, against its bare steps: the same number of
calls of the same compiled step on the same kind of batches, in the same process, half of them
before the study and half after. The first run of the study also imports and compiles; it is said
and left out. Wanted: at most 1.15 times the bare steps, and at most 0.5 s from the end of a run to
the first step of the next. 13 minutes on two cores.
"""
# ruff: noqa: E402 (compilation is prepared before JAX is imported)

import argparse
import contextlib
import io
import itertools
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from t5scaling import compilation

compilation.prepare()

import jax
import numpy as np

from t5scaling import config
from t5scaling.data import loader
from t5scaling.data.examples import find_examples
from t5scaling.study import expand, runner
from t5scaling.study.study import Study
from t5scaling.training import loop, sharding, step


class Watched:
    """Stands in for `step.jit_train_step` and notes when each run's first step begins."""

    def __init__(self):
        self.first_steps: list[float] = []
        self._make = step.jit_train_step

    def __call__(self, *arguments):
        compiled = self._make(*arguments)
        begun = []

        def train_step(*inputs):
            if not begun:
                self.first_steps.append(time.perf_counter())
                begun.append(True)
            return compiled(*inputs)

        return train_step


def bare(arguments: dict, steps: int) -> float:
    """Seconds of so many steps and nothing else."""
    layout = sharding.make_layout(arguments.get("mesh_shape"), arguments.get("rules"))
    state = step.jit_init(arguments["model"], layout)(np.uint32(0))
    train_step = step.jit_train_step(arguments["model"], arguments["objective"], layout, 1)
    examples = find_examples(arguments["dataset"], arguments["examples_root"])
    size = arguments["batch_size"]
    rows = sharding.local_rows(size, layout)
    some = list(
        itertools.islice(
            loader.train_batches(
                examples, batch_size=size, last=len(examples), start_step=0, num_steps=30,
                seed=0, shuffle=True, rows=rows,
            ),
            30,
        )
    )  # fmt: skip
    rate, seed, log = np.float32(0.005), np.uint32(0), np.bool_(False)
    for number in range(steps + 3):
        if number == 3:
            jax.block_until_ready(state)
            begin = time.perf_counter()
        batch = sharding.put_batch(some[number % len(some)], layout, rows)
        state, _ = train_step(state, batch, rate, seed, log)
    jax.block_until_ready(state)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--examples_root", default="runs/examples")
    arguments = parser.parse_args()
    study = Study(
        name="overhead",
        model_gin="gin/models/tiny.gin",
        pretrain_gin="gin/runs/pretrain.gin",
        finetune_gin="gin/runs/finetune.gin",
        pretrain_data={"techdoc_span_en50_de50": {"en": 0.5, "de": 0.5}},
        pretrain_steps=(3,),
        tasks={"techdoc_translate_en_de": ("en", "de")},
        finetune_pools=(200_000,),
        learning_rates=(0.005,),
        seeds=tuple(range(arguments.runs + 1)),
        finetune_settings={"TRAIN_STEPS": arguments.steps, "loop.train.evaluators": ()},
    )
    with tempfile.TemporaryDirectory() as folder:
        runs = expand.expand(study, folder, arguments.examples_root)
        config.load(runs[1].gin_files, runs[1].bindings)
        of_a_run = config.bindings_of(loop.train)
        compiling = time.perf_counter()
        bare(of_a_run, 1)
        compiling = time.perf_counter() - compiling
        before = bare(of_a_run, arguments.steps * arguments.runs // 2)

        watched = Watched()
        step.jit_train_step, kept = watched, step.jit_train_step
        ends: list[float] = []
        finish = runner.Display.finish
        runner.Display.finish = lambda self, run: (ends.append(time.perf_counter()),
                                                   finish(self, run))  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            config.load(["gin/studies/quick.gin"], {})  # what `run_study` writes down
            failed = runner.run_study(
                study=study, study_dir=folder, examples_root=arguments.examples_root
            )
        assert not failed, failed
        step.jit_train_step = kept
        after = bare(of_a_run, arguments.steps * arguments.runs // 2)
    # ends: pretraining, first finetuning (not counted), the others.
    took = ends[-1] - ends[1]
    steps = (before + after) * (arguments.runs * arguments.steps) / (
        2 * (arguments.steps * arguments.runs // 2)
    )  # fmt: skip
    gaps = [first - end for first, end in zip(watched.first_steps[2:], ends[1:], strict=False)]
    print(f"start and compilation of the first step, not counted: {compiling:.1f} s")
    print(f"{arguments.runs} finetunings of {arguments.steps} steps: {took:.1f} s")
    print(f"their bare steps: {steps:.1f} s (halves of {before:.1f} and {after:.1f} s)")
    print(f"ratio: {took / steps:.3f}")
    print(
        f"end of a run to the first step of the next: median {statistics.median(gaps):.3f} s, "
        f"largest {max(gaps):.3f} s"
    )
    whole = statistics.median(b - a for a, b in itertools.pairwise(ends[1:]))
    print(f"a run: {whole:.3f} s, of which bare steps {steps / arguments.runs:.3f} s")


if __name__ == "__main__":
    main()
