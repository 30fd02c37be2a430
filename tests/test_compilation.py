"""Runs of one shape in one process compile once: what a study of many short runs lives by."""

import contextlib
import dataclasses

import jax
import pytest

from t5scaling import compilation
from t5scaling.evaluation import evaluate
from t5scaling.model import decoding
from t5scaling.training import optimizer, step
from tests import mini

COMPILED = "/jax/core/compile/backend_compile_duration"  # a hit in a cache on disk counts too
STEPS = 4


@contextlib.contextmanager
def compilations():
    """Inside, a list that grows by one name for each program that XLA is asked for."""
    names = []

    def note(event, duration_s, **about):
        if event == COMPILED:
            names.append(about.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="module")
def arguments(mini_root):
    """Of runs with all that a finetuning does: dropout, evaluation by two means, a checkpoint."""
    validation = evaluate.Evaluation(mini.VALIDATION, mini_root, batch_size=8)
    test = evaluate.Evaluation(
        mini.TEST, mini_root, batch_size=8, metrics="task", decoder=decoding.Greedy(),
        max_decode_len=8,
    )  # fmt: skip
    return {"train_steps": STEPS, "log_every": 3, "evaluators": (validation, test), "shuffle": True}


@pytest.fixture(scope="module")
def pretrained(arguments, mini_root, tmp_path_factory):
    """A first run, which has compiled all that runs from scratch need."""
    folder = tmp_path_factory.mktemp("pretrained")
    mini.train(folder, mini_root, **arguments)
    return str(folder / f"checkpoints/checkpoint_{STEPS}")


@pytest.fixture(scope="module")
def finetuned(arguments, pretrained, mini_root, tmp_path_factory):
    """A first run from a checkpoint."""
    folder = tmp_path_factory.mktemp("finetuned")
    mini.train(folder, mini_root, initial_checkpoint_path=pretrained, **arguments)
    return folder


@pytest.fixture
def alike(arguments, mini_root):
    """The arguments of another point of the grid: equal to the first's, but not the same objects,
    as when gin makes them anew for each run; another seed, pool and learning rate."""
    anew = [dataclasses.replace(evaluator) for evaluator in arguments["evaluators"]]
    return {
        **arguments,
        "evaluators": anew,
        "model": dataclasses.replace(mini.CONFIG),
        "objective": step.Objective(),
        "learning_rate_schedule": optimizer.inverse_square_root(0.1, 2),
        "seed": 7,
        "pool": 20_000,
    }


def test_the_second_run_of_a_shape_compiles_nothing(pretrained, alike, mini_root, tmp_path):
    with compilations() as names:
        mini.train(tmp_path / "second", mini_root, **alike)
    assert names == []


def test_nor_does_the_second_from_a_checkpoint(finetuned, pretrained, alike, mini_root, tmp_path):
    with compilations() as names:
        mini.train(tmp_path / "second", mini_root, initial_checkpoint_path=pretrained, **alike)
    assert names == []


def test_nor_does_a_run_that_goes_on(finetuned, pretrained, alike, mini_root, tmp_path):
    class Killed(BaseException):
        pass

    def kill(done, total, note):
        if done == STEPS - 1:
            raise Killed

    from_there = {**alike, "initial_checkpoint_path": pretrained, "checkpoint_steps": (2,)}
    with pytest.raises(Killed):
        mini.train(tmp_path / "killed", mini_root, **{**from_there, "progress": kill})
    with compilations() as names:
        mini.train(tmp_path / "killed", mini_root, **from_there)
    assert names == []


def test_another_shape_is_compiled(pretrained, alike, mini_root, tmp_path):
    """That the count above is of what it says. The shape is one that no other test has: theirs may
    have been compiled by this process before."""
    validation = dataclasses.replace(alike["evaluators"][0], batch_size=22)
    with compilations() as names:
        mini.train(tmp_path, mini_root, **{**alike, "evaluators": (validation,)})
    assert any("eval_step" in name for name in names), names


@pytest.mark.parametrize("asked", [None, "0"])
def test_one_kernel_draws_random_numbers_unless_the_user_says_otherwise(monkeypatch, asked):
    changes = {}
    monkeypatch.setattr(jax.config, "update", changes.__setitem__)
    monkeypatch.delenv("JAX_THREEFRY_GPU_KERNEL_LOWERING", raising=False)
    if asked is not None:
        monkeypatch.setenv("JAX_THREEFRY_GPU_KERNEL_LOWERING", asked)
    compilation.prepare()
    assert ("jax_threefry_gpu_kernel_lowering" in changes) == (asked is None)
