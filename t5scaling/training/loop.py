"""The training loop: data, step, checkpoints and metrics put together, to be read top to bottom."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import jax
import numpy as np

from t5scaling import records, values
from t5scaling.data import loader
from t5scaling.data.examples import DataSpec, Examples, find_examples
from t5scaling.errors import Stopped, UserError
from t5scaling.model import network
from t5scaling.training import (
    calls,
    checkpoint,
    checks,
    distributed,
    origin,
    run_directory,
    sharding,
    throughput,
    tracker,
)
from t5scaling.training import state as state_lib
from t5scaling.training import step as step_lib


class Evaluator(Protocol):
    """What the loop asks of an evaluation: a line of metrics for the parameters at a step."""

    def __call__(
        self,
        params: Any,
        *,
        config: network.T5Config,
        layout: sharding.Layout,
        model_dir: str,
        step: int,
        note: Callable[[str], None],
    ) -> dict[str, Any]: ...

    def check_settings(self, layout: sharding.Layout) -> None:
        """Raises UserError for settings with which it could not be done at the run's end."""

    def check_data(self, training: Examples, model: network.T5Config) -> None:
        """Raises UserError for data with which it could not be done at the run's end."""


def train(
    *,
    model_dir: values.Path,
    model: network.T5Config,
    dataset: DataSpec,
    examples_root: values.Path,
    batch_size: values.Positive,
    train_steps: values.Positive,
    learning_rate_schedule: Callable[[int], float],
    objective: step_lib.Objective,
    seed: values.Seed = 0,
    microbatches: values.Positive = 1,
    steps_per_call: values.Positive = 1,
    mesh_shape: values.MeshShape | None = None,
    rules: sharding.Rules | None = None,
    initial_checkpoint_path: values.Path | None = None,
    pool: values.Positive | values.Name | None = None,
    max_epochs: values.Positive | None = 1,
    shuffle: bool = False,
    checkpoint_steps: Sequence[values.Positive] = (),
    checkpoint_minutes: values.NonNegativeNumber = 10.0,
    keep_checkpoint: bool = True,
    log_every: values.Positive = 20,
    evaluators: Sequence[Evaluator] = (),
    eval_every: values.Positive | None = None,
    mirrors: Sequence[Literal["wandb", "trackio"]] = (),
    progress: tracker.Progress | None = None,
) -> None:
    """Trains a T5 to `train_steps` and leaves its run directory in `model_dir`.

    Starts from the run's own newest checkpoint if there is one, else from the parameters of
    `initial_checkpoint_path` (with a fresh optimizer and at step 0, so that finetuning is the
    same procedure from every checkpoint), else from scratch.

    Args:
        model_dir: the run directory.
        model: architecture.
        dataset: the examples to train on; materialised first if they are not yet.
        examples_root: where materialised examples live.
        batch_size: rows (examples) a step over all devices.
        train_steps: steps in all, of this run alone.
        learning_rate_schedule: step -> learning rate.
        objective: z-loss, label smoothing, normalisation.
        seed: of initialisation, dropout and, with `shuffle`, the order of examples.
        microbatches: parts in which a batch is done, to save memory.
        steps_per_call: steps that the device takes at one call, where it would wait for the host
            between short ones. Whatever it is, metrics and checkpoints have the same bytes. No
            call crosses a line of metrics, a checkpoint of `checkpoint_steps` or an evaluation:
            steps before one that are too few for a call are taken one by one, so that a divisor
            of `log_every` is best. A signal to stop is heeded when a call ends, and checkpoints
            by the minute are saved then.
        mesh_shape: sizes of the mesh axes data, fsdp and model; all devices are "data" if None.
        rules: which axes of parameters and activations are split over which mesh axes.
        initial_checkpoint_path: a `checkpoint_<step>` directory.
        pool: train on the first examples only (D_f): as many as hold that many text tokens, or a
            share of them such as "1%"; None for all.
        max_epochs: passes allowed over the examples; None for as many as `train_steps` needs.
        shuffle: whether the first pass is permuted too; without it the first n steps see exactly
            the first n * batch_size examples.
        checkpoint_steps: steps whose checkpoints are kept for ever; the last step's always is.
        checkpoint_minutes: time between the other checkpoints, of which two are kept.
        keep_checkpoint: whether any stays when the run is done, `checkpoint_steps` apart.
        log_every: steps between lines of metrics.
        evaluators: run at the end, and each `eval_every` steps if that is given.
        mirrors: "wandb" or "trackio", which get the metrics too.
        progress: called with (steps done, steps in all, note); a progress bar if None.

    Raises:
        UserError: impossible settings, another vocabulary than the checkpoint's, a loss that is
            not finite (with its step and the last good checkpoint), a full disk.
        Stopped: SIGTERM or SIGINT; the state is saved and the same command goes on.
    """
    layout = checks.check_settings(
        model_dir=model_dir,
        model=model,
        batch_size=batch_size,
        train_steps=train_steps,
        seed=seed,
        microbatches=microbatches,
        steps_per_call=steps_per_call,
        mesh_shape=mesh_shape,
        rules=rules,
        initial_checkpoint_path=initial_checkpoint_path,
        checkpoint_steps=checkpoint_steps,
        log_every=log_every,
        evaluators=evaluators,
        eval_every=eval_every,
    )
    if records.is_done(model_dir, train_steps):
        print(f"{model_dir} is already done", flush=True)
        return
    examples = find_examples(dataset, examples_root)
    rows_there = checks.check_data(
        model_dir=model_dir,
        model=model,
        examples=examples,
        dataset=dataset,
        batch_size=batch_size,
        train_steps=train_steps,
        pool=pool,
        max_epochs=max_epochs,
        initial_checkpoint_path=initial_checkpoint_path,
        evaluators=evaluators,
    )
    if distributed.is_main():
        run_directory.start(model_dir, examples, model)

    with contextlib.ExitStack() as stack:
        if progress is None:
            name = os.path.basename(os.path.normpath(model_dir))
            bar = tracker.console_progress(name, shown=distributed.is_main())
            progress = stack.enter_context(bar)
        stop = stack.enter_context(_StopSignals())
        checkpoints = checkpoint.Checkpoints(model_dir, [*checkpoint_steps, train_steps])
        stack.callback(checkpoints.close)
        progress(0, train_steps, "starting")
        train_state = start_state(model, layout, seed, checkpoints, initial_checkpoint_path)
        start = int(train_state.step)
        if start > train_steps:
            raise UserError(f"{model_dir} is at step {start}, past TRAIN_STEPS={train_steps}")
        if start == 0:
            sums = origin.sums_of(train_state.params)
            if distributed.is_main():
                origin.note(model_dir, initial_checkpoint_path, sums)
        log = tracker.Tracker(
            model_dir,
            start,
            # A run made longer had a line at its old end, that it would not have had otherwise.
            is_logged=lambda step_then: step_then % log_every == 0 or step_then == train_steps,
            writes=distributed.is_main(),
            mirrors=mirrors,
            config={
                "model": dataclasses.asdict(model), "task": dataset.task, "seed": seed,
                "batch_size": batch_size, "train_steps": train_steps, "pool": pool,
                "initial_checkpoint_path": initial_checkpoint_path,
            },
            log_every=log_every,
        )  # fmt: skip
        stack.callback(log.close)
        clock = throughput.Clock(
            log,
            flops_per_step=batch_size * network.model_flops(model, *_lengths(dataset)),
            positions_per_step=batch_size * sum(_lengths(dataset)),
        )

        def write_metrics(logged: tuple[int, Any] | None) -> None:
            if logged is None:
                return
            step_then, on_device = logged
            window, tokens_seen, nonfinite_step = jax.device_get(on_device)
            _stop_if_nonfinite(int(nonfinite_step), checkpoints)
            tokens = max(float(window.target_tokens), 1.0)
            line = {
                "step": step_then,
                "split": "train",
                "task": dataset.task,
                "loss": float(window.loss) / tokens,
                "z_loss": float(window.z_loss) / tokens,
                "grad_norm": float(window.grad_norm),
                "learning_rate": learning_rate_schedule(step_then - 1),
                "target_tokens": int(window.target_tokens),
                "tokens_seen": state_lib.total_tokens(tokens_seen),
                "examples_seen": step_then * batch_size,
            }
            log.metrics(line)
            speed = clock.write(step_then, tokens / int(window.steps))
            progress(step_then, train_steps, f"loss {line['loss']:.3f}{speed}")

        def evaluate(step_now: int) -> None:
            for evaluator in evaluators:
                line = evaluator(
                    train_state.params,
                    config=model,
                    layout=layout,
                    model_dir=model_dir,
                    step=step_now,
                    note=lambda text: progress(step_now, train_steps, text),
                )
                log.metrics({"step": step_now, **line})
                log.flush()
                progress(step_now, train_steps, tracker.summary(line))

        def evaluation_due(step_now: int) -> bool:
            return bool(eval_every) and 0 < step_now < train_steps and step_now % eval_every == 0

        def agreed(step_now: int, *wishes: int) -> tuple[int, ...]:
            if jax.process_count() > 1 and step_now % log_every:
                return (0,) * len(wishes)  # asking at each step would cost each step
            return distributed.largest(*wishes)

        if evaluation_due(start):
            evaluate(start)  # a kill may have cut it in half; the tracker dropped its lines

        one_step = step_lib.jit_train_step(model, objective, layout, microbatches)
        several_steps = step_lib.jit_train_steps(model, objective, layout, microbatches)
        rows = sharding.local_rows(batch_size, layout)
        batches = loader.train_batches(
            examples,
            batch_size=batch_size,
            last=rows_there,
            start_step=start,
            num_steps=train_steps - start,
            seed=seed,
            shuffle=shuffle,
            rows=rows,
        )
        lengths = calls.lengths(
            start,
            train_steps,
            steps_per_call,
            every=(log_every, eval_every) if eval_every else (log_every,),
            at=checkpoint_steps,
        )
        last_saved = time.monotonic()
        waiting = None  # a step's metrics, fetched when the next call is on its way
        previous = None
        step_now = start
        compiled = set()  # steps of the calls whose programs are
        for call in calls.gather(
            batches,
            lengths,
            start=start,
            learning_rate_schedule=learning_rate_schedule,
            log_every=log_every,
        ):
            step_now += call.steps
            if call.steps not in compiled:  # which would count as the time of what is waiting
                write_metrics(waiting)
                waiting = None
            train_state, logged = (several_steps if call.stacked else one_step)(
                train_state,
                sharding.put_batch(call.batch, layout, rows, call.stacked),
                call.learning_rate,
                np.uint32(seed),
                call.new_window,
            )
            write_metrics(waiting)
            jax.block_until_ready(previous)  # at most one call ahead of the device
            previous = logged
            distributed.going_on(f"step {step_now} of {model_dir}")
            if call.steps not in compiled:
                compiled.add(call.steps)
                jax.block_until_ready(logged)
                clock.start(step_now)
            due = step_now % log_every == 0 or step_now == train_steps
            waiting = (step_now, logged) if due else None
            if due:
                checkpoints.check()
            else:
                progress(step_now, train_steps, "")

            # What only one process may know, all do at the same step.
            time_to_save = time.monotonic() - last_saved >= 60 * checkpoint_minutes
            stop_signal, time_to_save = agreed(step_now, stop.signal_number, time_to_save)
            if (
                step_now in checkpoint_steps
                or step_now == train_steps
                or evaluation_due(step_now)
                or time_to_save
                or stop_signal
            ):
                write_metrics(waiting)
                log.flush()  # before the save: a resumed run must find its lines
                waiting = None
                _stop_if_nonfinite(int(train_state.nonfinite_step), checkpoints)
                checkpoints.save(step_now, train_state)
                last_saved = time.monotonic()
            if stop_signal:
                checkpoints.wait()
                raise Stopped(
                    stop_signal,
                    f"stopped at step {step_now} of {train_steps}, saved in {model_dir}; "
                    "run the same command to go on",
                )
            if evaluation_due(step_now):
                evaluate(step_now)
        evaluate(train_steps)  # while the last checkpoint is written
        checkpoints.wait()
        clock.write(train_steps)
        progress(train_steps, train_steps, "")
        log.flush()
        if distributed.is_main():
            run_directory.finish(model_dir, train_steps)
            if not keep_checkpoint:
                checkpoints.delete_all_but(checkpoint_steps)
        if stop.signal_number:  # it came during the last evaluation; what follows must not start
            raise Stopped(stop.signal_number, f"stopped; {model_dir} is done")


def start_state(
    model: network.T5Config,
    layout: sharding.Layout,
    seed: int,
    checkpoints: checkpoint.Checkpoints,
    initial_checkpoint_path: str | None,
) -> state_lib.TrainState:
    """Own checkpoint > given checkpoint > scratch.

    A run that has ever saved goes on from its own checkpoints or not at all: falling back to the
    pretrained weights in silence would make a preempted finetune a different experiment.
    """
    abstract = step_lib.abstract_state(model, layout)
    own = checkpoints.restore_latest(abstract)
    if own is not None:
        return own
    if initial_checkpoint_path:
        params = checkpoint.restore_params(initial_checkpoint_path, abstract.params)
        return step_lib.jit_create(model, layout)(params)
    return step_lib.jit_init(model, layout)(np.uint32(seed))


def _lengths(dataset: DataSpec) -> tuple[int, int]:
    return dataset.feature_lengths["inputs"], dataset.feature_lengths["targets"]


def _stop_if_nonfinite(nonfinite_step: int, checkpoints: checkpoint.Checkpoints) -> None:
    """No checkpoint is ever saved after a step whose loss was not finite, so all are good."""
    if nonfinite_step >= 0:
        steps = checkpoints.steps()
        last = f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint yet"
        raise UserError(
            f"the loss is not finite at step {nonfinite_step}; {last}; "
            "lower the learning rate or look at the data of that step"
        )


class _StopSignals:
    """Notes SIGTERM and SIGINT so that the loop can stop between two calls.

    A second SIGINT gets through as KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.signal_number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        if self.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
