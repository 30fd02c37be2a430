"""Stock T5X as the trainer of a run: gin/runs/t5x.gin, or gin/executors/t5x.gin for a study.

T5X (google-research/t5x, commit cc342d4) trains in a process of its own, on the examples that our
loop would read and in its order (`data.as_seqio`), from what `interop.t5x_gin` writes. Its model
directory is `<run>/checkpoints`, so that its checkpoints are the run's: the next run of a study
starts from them, and `eval` and `infer` read them. Its output goes to `<run>/t5x.log`, and its
metrics become lines of metrics.jsonl while it is at work. Then the run's evaluations are made by
`t5x_measure`, another process: this one must leave the devices to them.

A finetuning takes the parameters of its checkpoint and begins with a new optimizer at step 0, as by
our trainer; T5X itself would go on with both.
"""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import jax

from t5scaling import config, records, storage, values
from t5scaling.data import loader, provenance
from t5scaling.data.examples import PARENT, DataSpec, Examples, find_examples
from t5scaling.errors import Stopped, UserError
from t5scaling.interop import t5x_environment, t5x_gin
from t5scaling.model.config import T5Config
from t5scaling.study import t5x_measure
from t5scaling.training import (
    checkpoint,
    checks,
    digests,
    optimizer,
    origin,
    run_directory,
    sharding,
    tracker,
)
from t5scaling.training import step as step_lib

LOG, GIN = "t5x.log", "t5x.gin"
TOKENS_WITHIN = 1e-5  # of each other are numbers of which one has six digits
CHECKPOINTS = 10  # of a run by default, from which it can go on when it was killed
# A line of T5X's log, "... logging_writer.py:48] [20] collection=train accuracy=0.1, ...".
_METRICS = re.compile(r"\] \[(\d+)\] collection=train (.*)")
_ERROR = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception)|error): (.*)")


@dataclass(frozen=True)
class T5X:
    """Attributes:
    trainer: "t5x", by which a run's gin text says who did it.
    folder: of the environment that `t5x-setup` made; None for T5X of this Python, where it can be
        imported, else for the environment in its default place.
    checkpoint_every: steps between the checkpoints from which a killed run goes on; None for a
        tenth of the run.
    """

    trainer: Literal["t5x"] = "t5x"
    folder: values.Path | None = None
    checkpoint_every: values.Positive | None = None


def asked_for() -> T5X | None:
    """The trainer of the loaded configuration, if it names T5X."""
    bound = config.bindings_of(T5X)
    return T5X(**bound) if bound else None


def leave_the_devices() -> None:
    """Keeps this process on the CPU: accelerators are for T5X and the evaluation after it.

    Raises UserError if it has taken them already, or is one of several of a job.
    """
    jax.config.update("jax_platforms", "cpu")
    if jax.default_backend() != "cpu":
        raise UserError(
            f"this process has taken the {jax.default_backend()} that T5X needs; give the runs of "
            "T5X a process of their own"
        )
    if jax.process_count() > 1:
        raise UserError("T5X is started by one process, which has all devices of its machine")


def check_settings(**arguments: Any) -> None:
    """`training.checks.check_settings`, and what T5X cannot do. Raises UserError.

    Arguments: those of `loop.train`. How many devices there are, only T5X itself sees.
    """
    if arguments.get("eval_every"):
        raise UserError("eval_every: the runs of T5X are evaluated only at their end")
    if arguments.get("rules") is not None:
        raise UserError("rules: T5X splits parameters by its own; only MESH_SHAPE is handed on")
    if storage.in_bucket(arguments["model_dir"]):
        raise UserError(
            f"MODEL_DIR={arguments['model_dir']} is in a bucket; T5X's runs are made on a disk"
        )
    t5x_gin.check(
        arguments["model"],
        arguments.get("mesh_shape"),
        arguments["objective"].loss_normalizing_factor,
    )
    _factors(arguments["learning_rate_schedule"])
    here = {"mesh_shape": None, "steps_per_call": 1}
    checks.check_settings(**{**arguments, **here})


def train(
    trainer: T5X,
    *,
    model_dir: str,
    model: T5Config,
    dataset: DataSpec,
    examples_root: str,
    batch_size: int,
    train_steps: int,
    learning_rate_schedule: optimizer.Schedule,
    objective: step_lib.Objective,
    seed: int = 0,
    microbatches: int = 1,
    mesh_shape: Mapping[str, int] | None = None,
    initial_checkpoint_path: str | None = None,
    pool: int | str | None = None,
    max_epochs: int | None = 1,
    shuffle: bool = False,
    checkpoint_steps: Sequence[int] = (),
    keep_checkpoint: bool = True,
    log_every: int = 20,
    evaluators: Sequence[Any] = (),
    mirrors: Sequence[str] = (),
    progress: tracker.Progress | None = None,
    **_: Any,
) -> None:
    """Trains to `train_steps` by T5X, evaluates the result, and leaves a finished run directory.

    Arguments: those of `loop.train`, as far as `check_settings` lets them be set. Goes on from the
    newest checkpoint of `model_dir`, where there is one, with the batch after it.

    Raises:
        UserError: T5X is not to be had, it failed (with its last words), or a loss that is not
            finite.
        Stopped: SIGTERM or SIGINT; the same command goes on from T5X's last checkpoint.
    """
    if records.is_done(model_dir, train_steps):
        print(f"{model_dir} is already done", flush=True)
        return
    command, search_path = t5x_environment.command(trainer.folder)
    examples = find_examples(dataset, examples_root)
    rows = checks.check_data(
        model_dir=model_dir, model=model, examples=examples, dataset=dataset,
        batch_size=batch_size, train_steps=train_steps, pool=pool, max_epochs=max_epochs,
        initial_checkpoint_path=initial_checkpoint_path, evaluators=evaluators,
    )  # fmt: skip
    run_directory.start(model_dir, examples, model)
    start = checkpoint.newest_step(model_dir)
    if start > train_steps:
        raise UserError(f"{model_dir} is at step {start}, past TRAIN_STEPS={train_steps}")
    if start == 0:
        origin.note(model_dir, initial_checkpoint_path, _sums(initial_checkpoint_path, model))
    factors, rate, warmup_steps = _factors(learning_rate_schedule)
    folder = os.path.join(os.path.abspath(model_dir), records.CHECKPOINTS)
    training = t5x_gin.Training(
        model_dir=folder, model=model, examples=os.path.abspath(examples.path),
        feature_lengths=dataset.feature_lengths, packed=dataset.pack, batch_size=batch_size,
        rows=rows, shuffle=shuffle, seed=seed, first_step=start, last_step=train_steps,
        factors=factors, rate=rate, warmup_steps=warmup_steps, z_loss=objective.z_loss,
        label_smoothing=objective.label_smoothing,
        loss_normalizing_factor=objective.loss_normalizing_factor, microbatches=microbatches,
        mesh_shape=mesh_shape or {}, checkpoint_steps=checkpoint_steps, log_every=log_every,
        initial_checkpoint=initial_checkpoint_path and os.path.abspath(initial_checkpoint_path),
        checkpoint_every=trainer.checkpoint_every
        or log_every * math.ceil(train_steps / CHECKPOINTS / log_every),
    )  # fmt: skip
    gin_file = os.path.join(model_dir, GIN)
    storage.write(gin_file, t5x_gin.text(training))
    storage.make_folder(folder)
    with contextlib.ExitStack() as stack:
        if progress is None:
            name = os.path.basename(os.path.normpath(model_dir))
            progress = stack.enter_context(tracker.console_progress(name))
        log = tracker.Tracker(
            model_dir, start, mirrors=mirrors,
            config={"trainer": "t5x", "task": dataset.task, "seed": seed, "batch_size": batch_size,
                    "train_steps": train_steps, "pool": pool},
        )  # fmt: skip
        stack.callback(log.close)
        progress(start, train_steps, "T5X is starting")
        devices = 1
        if start < train_steps:
            arguments = [*command, "-m", "t5x.train", f"--gin_file={gin_file}", "--verbosity=0",
                         "--alsologtostderr"]  # fmt: skip
            log_file = os.path.join(model_dir, LOG)
            environment = os.environ | {"PYTHONPATH": search_path, PARENT: str(os.getpid())}
            last = start
            output = _output_of(arguments, environment, log_file, "T5X")
            lines = stack.enter_context(closing(output))
            for line in lines:
                scalars = metrics_of(line)
                if scalars is None:
                    continue
                if not math.isfinite(scalars["loss"]):
                    _drop_checkpoints(model_dir, after=last)
                    raise UserError(
                        f"the loss is not finite between steps {last} and {scalars['step']}; lower "
                        "the learning rate or look at the data of those steps"
                    )
                steps = scalars["step"] - last
                places = range(last * batch_size, scalars["step"] * batch_size)
                last = scalars["step"]
                tokens = target_tokens(examples, places, rows, seed, shuffle)
                positions = len(places) * dataset.feature_lengths["targets"]
                factor = objective.loss_normalizing_factor
                found = train_line(scalars, steps, tokens, positions, factor)
                log.metrics({"step": last, "split": "train", "task": dataset.task, **found,
                             "examples_seen": last * batch_size})  # fmt: skip
                devices = _devices(scalars)
                timing = {"step": last, **log.spent(devices)}
                if seconds := scalars.get("timing/seconds"):
                    timing["target_tokens_per_s"] = found["target_tokens"] / seconds
                log.timing(timing)
                log.flush()
                progress(last, train_steps, f"loss {found['loss']:.3f}")
            if last != train_steps:
                raise UserError(
                    f"T5X ended at step {last} of {train_steps}; the reason is in {log_file}"
                )
        wanted = [*checkpoint_steps, train_steps]
        _check_checkpoints(model_dir, wanted, model)
        for line in _measured(model_dir, train_steps, evaluators, progress):
            log.metrics({"step": train_steps, **line})
        log.timing({"step": train_steps, **log.spent(devices)})
        log.flush()
        run_directory.finish(model_dir, train_steps)
        kept = wanted if keep_checkpoint else list(checkpoint_steps)
        _keep_checkpoints(model_dir, kept)
        progress(train_steps, train_steps, "")


def metrics_of(line: str) -> dict[str, Any] | None:
    """{"step", and T5X's scalars} of a line of its log; None for any other line."""
    found = _METRICS.search(line)
    if not found or "loss=" not in found[2]:
        return None
    scalars: dict[str, Any] = {"step": int(found[1])}
    for pair in found[2].strip().split(", "):
        name, equals, value = pair.partition("=")
        with contextlib.suppress(ValueError):
            if equals:
                scalars[name] = float(value)
    return scalars


def train_line(
    scalars: Mapping[str, float],
    steps: int,
    tokens: int,
    positions: int,
    normalizer: float | str | None,
) -> dict[str, Any]:
    """T5X's scalars over `steps` steps in the words of metrics.jsonl, nats per target token.

    T5X's loss, cross_ent_loss and z_loss are means over steps of a batch's sums, divided by
    LOSS_NORMALIZING_FACTOR. Where that factor is the number of tokens, a window's loss is the mean
    of its batches' losses. `tokens`, `positions`: target tokens, and positions for them, of the
    steps together. Raises UserError if T5X, which prints six digits, trained on another number of
    them.
    """
    loss, each = scalars["loss"], scalars["loss_per_nonpadding_target_token"]
    seen = loss * steps / each if each else 0.0
    if abs(seen - tokens) > max(0.5, TOKENS_WITHIN * tokens):
        raise UserError(
            f"T5X trained on {seen:,.0f} target tokens in the {steps} steps before step "
            f"{scalars['step']}, but the batches of this run have {tokens:,}: it was given other "
            "batches"
        )
    per_token = steps / max(tokens, 1.0)  # of a mean over steps
    if isinstance(normalizer, str):
        by_position = t5x_gin.NORMALIZERS[normalizer] == t5x_gin.ALL_POSITIONS
        per_token = positions / max(tokens, 1) if by_position else 1.0
    elif normalizer is not None:
        per_token *= normalizer
    return {
        "loss": scalars["cross_ent_loss"] * per_token,
        "z_loss": scalars["z_loss"] * per_token,
        "learning_rate": scalars["learning_rate"],
        "target_tokens": tokens,
    }


def target_tokens(examples: Examples, places: range, rows: int, seed: int, shuffle: bool) -> int:
    """Target tokens at these places of the stream of `loader.train_batches`, counted."""
    if not shuffle and places.stop <= rows:  # the stored order
        return examples.tokens(places.stop, "targets") - examples.tokens(places.start, "targets")
    example_at = loader.order(examples, last=rows, seed=seed, shuffle=shuffle)
    return sum(examples.row_tokens([example_at(place) for place in places], "targets"))


def _devices(scalars: Mapping[str, float]) -> int:
    """The number of devices that T5X uses: it reports a rate for all of them and for each."""
    each = scalars.get("timing/seqs_per_second_per_core", 0.0)
    return round(scalars.get("timing/seqs_per_second", 0.0) / each) if each else 1


def _factors(schedule: optimizer.Schedule) -> tuple[str, float, int]:
    """(factors, base rate, warm-up steps) of T5X's scheduler. Raises UserError if it has none."""
    if isinstance(schedule, optimizer.Constant):
        return "constant", schedule.learning_rate, 0
    if isinstance(schedule, optimizer.InverseSquareRoot):
        return "constant * rsqrt_decay", schedule.base_learning_rate, schedule.warmup_steps
    raise UserError(
        "learning_rate_schedule: expected @optimizer.constant() or "
        "@optimizer.inverse_square_root(), the two that T5X can be given"
    )


def _sums(path: str | None, model: T5Config) -> dict[str, tuple[int, int]]:
    """A fingerprint of the parameters to start from; none for random ones, which T5X draws."""
    if not path:
        return {}
    abstract = step_lib.abstract_params(model, sharding.make_layout())
    return origin.sums_of(checkpoint.restore_params(path, abstract))


def _check_checkpoints(model_dir: str, steps: Sequence[int], model: T5Config) -> None:
    """Raises UserError unless T5X has written all of these checkpoints, complete and of this
    model."""
    abstract = step_lib.abstract_params(model, sharding.make_layout())
    for _, path in checkpoint.choose(model_dir, sorted(set(steps))):
        checkpoint.check_params(path, abstract)


def _keep_checkpoints(model_dir: str, steps: Sequence[int]) -> None:
    """Removes all other checkpoints, and writes the digests of these."""
    for step, path in checkpoint.choose(model_dir, "all"):
        if step in steps:
            digests.write(storage.path(path))
        else:
            shutil.rmtree(path)


def _drop_checkpoints(model_dir: str, after: int) -> None:
    """Removes the checkpoints that may hold parameters from a loss that is not finite."""
    with contextlib.suppress(UserError):  # there is none
        for step, path in checkpoint.choose(model_dir, "all"):
            if step > after:
                shutil.rmtree(path)


def _measured(
    model_dir: str, step: int, evaluators: Sequence[Any], progress: tracker.Progress
) -> list[dict[str, Any]]:
    """The lines of the run's evaluations, made by a process that may take the devices."""
    if not evaluators:
        return []
    with tempfile.TemporaryDirectory(prefix="t5x-") as folder:
        answer = os.path.join(folder, "lines.json")
        command = provenance.child("t5scaling.study.t5x_measure", model_dir, answer)
        environment = provenance.child_environment(**{PARENT: str(os.getpid())})
        log_file = os.path.join(model_dir, LOG)
        with closing(_output_of(command, environment, log_file, "the evaluation")) as lines:
            for line in lines:
                if line.startswith(t5x_measure.NOTE):
                    progress(step, step, line.removeprefix(t5x_measure.NOTE).strip())
        with open(answer, encoding="utf-8") as file:
            return json.load(file)


def _output_of(
    command: Sequence[str], environment: Mapping[str, str], log_file: str, who: str
) -> Generator[str, None, None]:
    """The lines of a child's output, which also go to the end of `log_file`.

    Raises UserError with its last message if it fails, and Stopped after SIGTERM or SIGINT, which
    end it. Closing the generator ends the child.
    """
    with open(log_file, "a", encoding="utf-8") as log:
        child = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
            start_new_session=True,  # Ctrl-C is for this process, which ends the child
        )  # fmt: skip
        error = last = ""
        assert child.stdout is not None  # it is a pipe
        with _signals_end(child) as signals:
            try:
                for line in child.stdout:
                    log.write(line)
                    log.flush()
                    last = line.strip()[:300] or last
                    error = _error_in(line) or error
                    yield line
                code = child.wait()
            finally:
                _end(child)
        if signals:
            raise Stopped(
                signals[0],
                "stopped; the same command goes on from T5X's last checkpoint (T5X's output is in "
                f"{log_file})",
            )
        if code:
            killed = code == -signal.SIGKILL
            words = "it was killed, as happens when memory runs out" if killed else error
            raise UserError(
                f"{who} ended with status {code}: {words or last} (its whole output is in "
                f"{log_file})"
            )


def _error_in(line: str) -> str:
    """The error that a line of a traceback, or of `run.py`, names; "" for any other."""
    found = _ERROR.match(line.strip())
    if not found:
        return ""
    ours = found[1] in ("UserError", "error")
    return found[2].strip() if ours else f"{found[1]}: {found[2].strip()}"[:300]


@contextlib.contextmanager
def _signals_end(child: subprocess.Popen) -> Iterator[list[int]]:
    """Inside, SIGTERM and SIGINT end the child; gives the list of those that came."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        (child.terminate if len(came) == 1 else child.kill)()

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(child: subprocess.Popen) -> None:
    """Ends the child, and returns when it is gone."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout is not None:
        child.stdout.close()
