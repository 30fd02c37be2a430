"""All checks of a run that are possible before its first step, in one place.

`check_settings` needs no data, and so is asked before examples are made; `check_data` needs them.
Neither changes anything.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from t5scaling import records, storage
from t5scaling.data.examples import DataSpec, Examples
from t5scaling.data.pool import pool_rows
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.training import calls, checkpoint, origin, run_directory, sharding
from t5scaling.training import step as step_lib

WHOLE_NUMBERS = {  # argument of `loop.train` -> (its name in gin files, the least it may be)
    "batch_size": ("BATCH_SIZE", 1),
    "train_steps": ("TRAIN_STEPS", 1),
    "log_every": ("LOG_EVERY", 1),
    "eval_every": ("eval_every", 1),
    "seed": ("SEED", 0),
}


def check_settings(
    *,
    model_dir: str,
    model: network.T5Config,
    batch_size: int,
    train_steps: int,
    seed: int = 0,
    microbatches: int = 1,
    steps_per_call: int = 1,
    mesh_shape: Mapping[str, int] | None = None,
    rules: sharding.Rules | None = None,
    initial_checkpoint_path: str | None = None,
    checkpoint_steps: Sequence[int] = (),
    log_every: int = 20,
    evaluators: Sequence[Any] = (),
    eval_every: int | None = None,
    **_: Any,
) -> sharding.Layout:
    """Returns the layout to train in. Arguments: those of `loop.train`.

    Raises UserError for a number that cannot be, rows or parameters that the devices cannot share,
    an evaluation that cannot be done, a checkpoint to start from that is missing or of another
    model, and a directory whose run started from another one.
    """
    given = {
        "batch_size": batch_size, "train_steps": train_steps, "log_every": log_every,
        "eval_every": 1 if eval_every is None else eval_every, "seed": seed,
    }  # fmt: skip
    for argument, (name, least) in WHOLE_NUMBERS.items():
        if not _is_whole(given[argument]) or given[argument] < least:
            raise UserError(f"{name} is {given[argument]!r}; expected a whole number >= {least}")
    for at_step in checkpoint_steps:
        if not _is_whole(at_step) or not 1 <= at_step <= train_steps:
            raise UserError(
                f"CHECKPOINT_STEPS has {at_step!r}; expected whole numbers from 1 to "
                f"TRAIN_STEPS={train_steps}"
            )
    layout = sharding.make_layout(mesh_shape, rules)
    sharding.check(layout, model)
    sharding.check_batch_size(batch_size, layout, microbatches)
    calls.check(steps_per_call, layout)
    for evaluator in evaluators:
        evaluator.check_settings(layout)
    newest = checkpoint.newest_step(model_dir)
    if newest:
        run_directory.check_model(model_dir, model)
    elif initial_checkpoint_path:
        check_initial(initial_checkpoint_path, model, layout)
    done = records.is_done(model_dir)
    if newest or done:
        origin.check(model_dir, initial_checkpoint_path, model, layout)
    longer = done and not records.is_done(model_dir, train_steps)
    if longer and newest != records.steps_done(model_dir):
        raise UserError(
            f"{model_dir} is done and did not keep its last checkpoint, so that it cannot go on to "
            f"TRAIN_STEPS={train_steps}; choose another MODEL_DIR"
        )
    return layout


def check_initial(path: str, model: network.T5Config, layout: sharding.Layout) -> None:
    """Raises UserError unless there is a checkpoint of this model, judged by its metadata."""
    run_directory.check_model(_run_of(path), model)
    checkpoint.check_params(path, step_lib.abstract_params(model, layout))


def check_data(
    *,
    model_dir: str,
    model: network.T5Config,
    examples: Examples,
    dataset: DataSpec,
    batch_size: int,
    train_steps: int,
    pool: int | str | None,
    max_epochs: int | None,
    initial_checkpoint_path: str | None,
    evaluators: Sequence[Any],
) -> int:
    """Returns the rows of the pool. Arguments: those of `loop.train`, and the opened examples.

    Raises UserError for another vocabulary than the run's or the checkpoint's, for more steps than
    there are examples, and for an evaluation that its examples do not serve.
    """
    run_directory.check_vocabulary(
        model_dir if checkpoint.newest_step(model_dir) else None, examples, model.vocab_size
    )
    if initial_checkpoint_path:
        pretraining = _run_of(initial_checkpoint_path)
        run_directory.check_vocabulary(pretraining, examples, model.vocab_size)
    rows = pool_rows(examples, pool)
    _check_repetition(train_steps * batch_size, rows, max_epochs, dataset.task)
    for evaluator in evaluators:
        evaluator.check_data(examples, model)
    return rows


def _run_of(checkpoint_path: str) -> storage.AnyPath:
    """The run directory of `<run directory>/checkpoints/checkpoint_<step>`."""
    return storage.path(checkpoint_path).parent.parent


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_repetition(needed: int, there: int, max_epochs: int | None, task: str) -> None:
    if max_epochs is not None and needed > there * max_epochs:
        passes = "one pass" if max_epochs == 1 else f"{max_epochs} passes"
        raise UserError(
            f"TRAIN_STEPS x BATCH_SIZE = {needed:,} examples, but {passes} over {task} gives "
            f"{there * max_epochs:,}; lower TRAIN_STEPS or allow repetition by MAX_EPOCHS"
        )
