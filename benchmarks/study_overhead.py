"""What a study costs beside its steps, and what it costs to start one that is finished.

    python benchmarks/study_overhead.py [--parts=steps,evaluation,finished]

steps       30 finetunings of 30 steps of gin/models/tiny.gin on the embedded corpus, at the
            settings of gin/runs/finetune.gin but without evaluation, from one checkpoint. Before
            each one its bare steps: as many calls of the same compiled step on batches of the same
            kind, in a plain loop. Wanted: at most 1.15 times the bare steps, at most 0.5 s from the
            end of a run to the first step of the next, and nothing compiled in between.
evaluation  Some of them with evaluation as finetune.gin has it (validation and test sets,
            cross-entropy on both, greedy text on the test set).
finished    `run.py study` on a finished study of that many made-up runs: once to write the report,
            then twice with nothing left to do. Wanted: less than 5 s from launch to exit.

Runs are timed from the executor's call to its return, and what the runner does around them is
divided among them. 22, 4 and 2 minutes on two cores. Measured there: 1.064, 0.224 s (at most
0.456 s), and 2.5 to 2.7 s for a finished study of 7 runs, 3.9 to 4.3 s for one of 997.
"""
# ruff: noqa: E402 (compilation is prepared before JAX is imported)

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tiny

tiny.prepare()

import jax
import numpy as np

from t5scaling import config
from t5scaling.data import loader
from t5scaling.data.examples import find_examples
from t5scaling.study import expand, runner
from t5scaling.study.executors import local
from t5scaling.study.study import Study
from t5scaling.training import run_directory, sharding, step

QUICK = "gin/studies/quick.gin"
TASK = "techdoc_translate_en_de"
PRETRAINING_STEPS = 3
COMPILED = "/jax/core/compile/backend_compile_duration"


def study(runs: int, steps: int, evaluated: bool) -> Study:
    settings: dict[str, Any] = {"TRAIN_STEPS": steps}
    if not evaluated:
        settings["loop.train.evaluators"] = ()
    return Study(
        name="overhead",
        model_gin="gin/models/tiny.gin",
        pretrain_gin="gin/runs/pretrain.gin",
        finetune_gin="gin/runs/finetune.gin",
        pretrain_data={"techdoc_span_en50_de50": {"en": 0.5, "de": 0.5}},
        pretrain_steps=(PRETRAINING_STEPS,),
        tasks={TASK: ("en", "de")},
        finetune_pools=(None,),
        learning_rates=(0.005,),
        seeds=tuple(range(runs)),
        finetune_settings=settings,
    )


class BareSteps:
    """The compiled step in a plain loop, with the batches in memory."""

    def __init__(self, arguments: dict[str, Any], examples_root: str):
        self._layout = sharding.make_layout(arguments["mesh_shape"])
        self._init = step.jit_init(arguments["model"], self._layout)
        self._step = step.jit_train_step(arguments["model"], arguments["objective"], self._layout)
        self._steps, size = arguments["train_steps"], arguments["batch_size"]
        self._rows = sharding.local_rows(size, self._layout)
        examples = find_examples(arguments["dataset"], examples_root)
        batches = loader.train_batches(
            examples, batch_size=size, num_steps=self._steps, shuffle=True, rows=self._rows
        )
        self._batches = list(batches)

    def __call__(self) -> float:
        """Seconds of the steps of one run."""
        train_state = jax.block_until_ready(self._init(np.uint32(0)))
        begun = time.perf_counter()
        for number, batch in enumerate(self._batches):
            train_state, _ = self._step(
                train_state,
                sharding.put_batch(batch, self._layout, self._rows),
                np.float32(0.005),
                np.uint32(0),
                number % 20 == 0,
            )
        jax.block_until_ready(train_state)
        return time.perf_counter() - begun


@dataclasses.dataclass
class Timing:
    """One run: seconds of its bare steps, when it began and ended, when its first step began, and
    how many programs were compiled meanwhile."""

    kind: str
    bare_s: float
    begun: float
    first_step: float = 0.0
    ended: float = 0.0
    compiled: int = 0

    @property
    def wall_s(self) -> float:
        return self.ended - self.begun


@dataclasses.dataclass(frozen=True)
class Timed(local.Local):
    """The local executor, run by run with the clock beside it."""

    timings: list[Timing] = dataclasses.field(default_factory=list)
    bare: Callable[[], float] | None = None

    def submit(self, study_dir: str, runs: Sequence[expand.Run], after: Sequence[str]) -> list[str]:
        for run in runs:
            kind = run.record["kind"]
            bare_s = self.bare() if self.bare and kind == "finetune" else 0.0
            timing = Timing(kind, bare_s, time.perf_counter())
            with _watched(timing):
                super().submit(study_dir, [run], after)
            timing.ended = time.perf_counter()
            self.timings.append(timing)
        return [""] * len(runs)


@contextlib.contextmanager
def _watched(timing: Timing) -> Iterator[None]:
    """Notes the first call of a compiled train step, and compilations."""
    make = step.jit_train_step

    def watched(*arguments: Any) -> Callable:
        compiled = make(*arguments)

        def train_step(*inputs: Any) -> Any:
            timing.first_step = timing.first_step or time.perf_counter()
            return compiled(*inputs)

        return train_step

    def count(event: str, duration_s: float, **_: Any) -> None:
        timing.compiled += event == COMPILED

    jax.monitoring.register_event_duration_secs_listener(count)
    step.jit_train_step = watched
    try:
        yield
    finally:
        step.jit_train_step = make
        jax.monitoring.unregister_event_duration_listener(count)


def do(grid: Study, folder: str, examples_root: str, bare: BareSteps | None) -> list[Timing]:
    """Does the study; returns the timings of its finetunings."""
    executor = Timed(bare=bare)
    begun = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        config.load([QUICK], {})  # what `run_study` writes down
        failed = runner.run_study(
            study=grid, study_dir=folder, examples_root=examples_root, executor=executor
        )
    whole = time.perf_counter() - begun
    assert not failed, failed
    around = whole - sum(timing.wall_s + timing.bare_s for timing in executor.timings)
    finetunings = [timing for timing in executor.timings if timing.kind == "finetune"]
    print(f"the runner around {len(executor.timings)} runs: {around:.2f} s")
    for timing in finetunings:  # all together give the study
        timing.ended += around / len(executor.timings)
    return finetunings


def beside_steps(runs: int, steps: int, examples_root: str) -> None:
    grid = study(runs, steps, evaluated=False)
    with tempfile.TemporaryDirectory() as folder:
        of_a_run = expand.train_arguments(grid, "finetune", TASK, examples_root)[1]
        begun = time.perf_counter()
        bare = BareSteps(of_a_run, examples_root)
        first = bare()
        begun = time.perf_counter() - begun - first
        print(f"the steps' first call, compilation included: {first:.1f} s; not counted")
        timings = do(grid, folder, examples_root, bare)
    walls, bares = [t.wall_s for t in timings], [t.bare_s for t in timings]
    ratios = sorted(wall / alone for wall, alone in zip(walls, bares, strict=True))
    print(f"{runs} finetunings of {steps} steps: {sum(walls):.1f} s")
    print(f"their bare steps: {sum(bares):.1f} s")
    print(f"ratio: {sum(walls) / sum(bares):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})")
    starts = sorted(t.first_step - t.begun for t in timings[1:])
    print(
        f"from the end of a run to the first step of the next: {statistics.median(starts):.3f} s "
        f"({starts[0]:.3f}-{starts[-1]:.3f})"
    )
    print(
        f"programs compiled in the first: {timings[0].compiled}, in all others: "
        f"{sum(t.compiled for t in timings[1:])}"
    )


def beside_evaluation(runs: int, steps: int, examples_root: str) -> None:
    grid = study(runs + 1, steps, evaluated=True)
    with tempfile.TemporaryDirectory() as folder:
        of_a_run = expand.train_arguments(grid, "finetune", TASK, examples_root)[1]
        bare = BareSteps(of_a_run, examples_root)
        bare()
        first, *timings = do(grid, folder, examples_root, bare)
    wall, alone = (statistics.mean(getattr(t, name) for t in timings) for name in
                   ("wall_s", "bare_s"))  # fmt: skip
    print(f"with evaluation: {wall:.1f} s a run, {alone:.1f} s of them bare steps")
    print(f"the first, which compiles the evaluation: {first.wall_s:.1f} s")
    print(f"programs compiled in all others: {sum(t.compiled for t in timings)}")


def finished(runs: int, examples_root: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sizes = 5  # D_p of the quick study beside the baseline
        settings = {
            "STUDY_DIR": folder,
            "EXAMPLES_ROOT": examples_root,
            "study.Study.seeds": repr(tuple(range(max(1, runs // (sizes + 1))))),
        }
        config.load([QUICK], settings)
        made_up = expand.expand(**config.bindings_of(runner.run_study))
        for number, run in enumerate(made_up):
            text = config.load(run.gin_files, run.bindings)
            run_directory.begin(run.directory, text, run.record)
            lines = [{"step": run.record["steps"], "split": "train", "loss": 6.0}]
            for split in ("validation", "test"):
                value = (
                    6.5 - 0.05 * np.log1p(run.record.get("pretrain_tokens", 0)) + number % 7 / 99
                )
                lines.append({**lines[0], "split": split, "task": TASK, "cross_entropy": value})
            with open(os.path.join(run.directory, "metrics.jsonl"), "w") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            run_directory.finish(run.directory, run.record["steps"])
        command = [sys.executable, "run.py", "study", f"--gin_file={QUICK}"]
        command += [f"--gin.{name}={value}" for name, value in settings.items()]
        for what in ("report to be written", "nothing to do", "nothing to do"):
            begun = time.perf_counter()
            done = subprocess.run(
                command, cwd=config.REPOSITORY, stdout=subprocess.DEVNULL, check=True
            )
            assert done.returncode == 0
            print(f"{len(made_up)} finished runs, {what}: {time.perf_counter() - begun:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="steps,evaluation,finished")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--evaluated_runs", type=int, default=3)
    parser.add_argument("--finished_runs", type=int, nargs="+", default=(6, 1000))
    parser.add_argument("--examples_root", default="runs/examples")
    arguments = parser.parse_args()
    examples_root = os.path.abspath(arguments.examples_root)
    parts = arguments.parts.split(",")
    if "steps" in parts:
        beside_steps(arguments.runs, arguments.steps, examples_root)
    if "evaluation" in parts:
        beside_evaluation(arguments.evaluated_runs, arguments.steps, examples_root)
    if "finished" in parts:
        for runs in arguments.finished_runs:
            finished(runs, examples_root)


if __name__ == "__main__":
    main()
