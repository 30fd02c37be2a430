"""Several steps a call: the same bytes as one step a call, wherever the run is cut."""

import dataclasses
import functools
import os
import signal

import jax
import numpy as np
import pytest

from t5scaling import config
from t5scaling.errors import Stopped, UserError
from t5scaling.evaluation import evaluate
from t5scaling.model import network
from t5scaling.study import expand, runner
from t5scaling.training import calls, checkpoint, loop, run_directory, sharding, step
from tests import mini
from tests.conftest import AS_A_USERS_ARE
from tests.test_compilation import compilations

# Lines at 9, 18 and 26, a kept checkpoint at 11, an evaluation at 13: calls of four steps alternate
# with single steps.
LAST, KEPT = 26, 11
LENGTHS = [4, 4, 1, 1, 1, 1, 1, 4, 1, 4, 4]


@pytest.fixture(scope="module")
def train(mini_root):
    """A run of LAST steps with all that may happen on the host between two of them."""
    validation = evaluate.Evaluation(mini.VALIDATION, mini_root, batch_size=8)
    return functools.partial(
        mini.train, root=mini_root, train_steps=LAST, log_every=9, evaluators=(validation,),
        eval_every=13, checkpoint_steps=(KEPT,), shuffle=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference(train, tmp_path_factory):
    """One step a call, never stopped: its folder, and what it `left`."""
    folder = tmp_path_factory.mktemp("reference")
    train(folder)
    return folder, left(folder)


@pytest.fixture(scope="module")
def seen():
    """The steps at which `by_four` reports its progress."""
    return []


@pytest.fixture(scope="module")
def by_four(train, seen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("by_four")
    train(folder, steps_per_call=4, progress=lambda done, *_: seen.append(done))
    return folder


def state_bytes(folder):
    """Path -> bytes of every array of the newest checkpoint: parameters, optimizer, counters."""
    checkpoints = checkpoint.Checkpoints(str(folder))
    restored = checkpoints.restore_latest(step.abstract_state(mini.CONFIG, sharding.make_layout()))
    checkpoints.close()
    return leaf_bytes(restored)


def leaf_bytes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def left(folder):
    """The bytes that a run leaves: of its metrics, of the checkpoint at KEPT and of the newest."""
    metrics = (folder / "metrics.jsonl").read_bytes()
    return metrics, leaf_bytes(mini.parameters(folder, KEPT)), state_bytes(folder)


def assert_same(folder, reference):
    for found, wanted in zip(left(folder), reference[1], strict=True):
        assert found == wanted


def test_four_steps_a_call_give_the_bytes_of_one(reference, by_four):
    assert [line["step"] for line in mini.lines(by_four)] == [9, 13, 18, 26, 26]
    names = [sorted(p.name for p in (f / "checkpoints").iterdir()) for f in (by_four, reference[0])]
    assert names[0] == names[1]
    assert_same(by_four, reference)


@pytest.mark.parametrize(("before", "at_step", "after"), [(4, 8, 1), (1, 15, 4)])
def test_stopped_and_gone_on_with_another_number(
    reference, train, tmp_path, before, at_step, after
):
    def stop(done, total, note):
        if done == at_step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match=f"stopped at step {at_step} of {LAST}"):
        train(tmp_path / "run", steps_per_call=before, progress=stop)
    train(tmp_path / "run", steps_per_call=after)
    assert_same(tmp_path / "run", reference)


def test_killed_after_a_checkpoint_by_the_minute(reference, train, tmp_path):
    class Killed(BaseException):
        pass

    def kill(done, total, note):
        if done == 8:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "run", steps_per_call=4, checkpoint_minutes=0.0, progress=kill)
    assert (tmp_path / "run/checkpoints/checkpoint_4").exists()
    train(tmp_path / "run", steps_per_call=4)
    assert_same(tmp_path / "run", reference)


def test_the_device_is_called_as_often_as_planned(train, by_four, seen, tmp_path):
    """By the steps at which progress is reported; and remainders need no programs of their own."""
    assert sorted(set(seen)) == [0, *np.cumsum(LENGTHS)]
    with compilations() as names:
        train(tmp_path / "other", steps_per_call=4, log_every=7, train_steps=15, eval_every=None)
    assert names == []


def test_a_loss_that_is_not_finite_within_a_call_names_its_step(mini_root, tmp_path):
    with pytest.raises(UserError, match="not finite at step 8; the last good checkpoint is step 4"):
        mini.train(
            tmp_path, mini_root, checkpoint_steps=(4,), log_every=10, steps_per_call=4,
            learning_rate_schedule=lambda at: 0.01 if at < 6 else float("inf"),
        )  # fmt: skip


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "4", None])
def test_a_wrong_number_is_named(mini_root, tmp_path, wrong):
    with pytest.raises(UserError) as error:
        mini.train(tmp_path / "run", mini_root, steps_per_call=wrong)
    assert str(error.value) == f"STEPS_PER_CALL={wrong!r}; expected a whole number >= 1"
    assert not (tmp_path / "run").exists()


def test_no_call_crosses_what_happens_on_the_host():
    of = functools.partial(calls.lengths, every=(20,))
    assert list(of(0, 40, 8)) == [8, 8, 1, 1, 1, 1] * 2
    assert list(of(0, 40, 10)) == [10] * 4
    assert list(of(37, 65, 10)) == [1, 1, 1, 10, 10, 1, 1, 1, 1, 1]
    assert list(of(5, 5, 8)) == [] and list(of(0, 7, 8)) == [1] * 7
    for start, size in ((0, 4), (3, 4), (9, 7), (2, 50), (11, 1)):
        found = list(calls.lengths(start, 61, size, every=(9, 13), at=(11, 40)))
        ends = set((start + np.cumsum(found)).tolist())
        assert set(found) <= {1, size} and max(ends) == 61
        stops = {n for n in range(start + 1, 62) if not n % 9 or not n % 13 or n in (11, 40)}
        assert stops <= ends


SMALL = network.T5Config(
    vocab_size=96, emb_dim=32, num_heads=4, head_dim=8, num_encoder_layers=1,
    num_decoder_layers=1, mlp_dim=48, dropout_rate=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("mesh", "changes", "microbatches", "compiled"),
    [
        # As users train; a fully optimised program is what takes longest here.
        ({"data": 2}, {"scan_layers": True, "dropout_rate": 0.1}, 1, AS_A_USERS_ARE),
        (
            {"data": 1, "model": 2},
            {"remat": "full", "dtype": "bfloat16", "logits_via_embedding": True},
            2,
            {},
        ),
    ],
)
def test_both_programs_compute_the_same_bits(mesh, changes, microbatches, compiled):
    model, layout = dataclasses.replace(SMALL, **changes), sharding.make_layout(mesh)
    draw, count = np.random.default_rng(0), 3
    tokens = draw.integers(1, 96, (count, 2, 8, 16)).astype(np.int32)
    tokens[:, :, ::3, 11:] = 0
    stacked = {
        "encoder_input_tokens": tokens[:, 0],
        "decoder_input_tokens": np.roll(tokens[:, 1], 1, axis=-1),
        "decoder_target_tokens": tokens[:, 1],
        "decoder_loss_weights": (tokens[:, 1] > 0).astype(np.float32),
    }
    rates = np.linspace(0.1, 0.3, count, dtype=np.float32)
    new = np.arange(count) % 2 == 0
    arguments = (model, step.Objective(loss_normalizing_factor="NUM_REAL_TARGET_TOKENS"), layout)
    shapes = step.abstract_params(model, layout)
    params = jax.tree.map(
        lambda leaf: 0.2 * draw.normal(size=leaf.shape).astype(np.float32), shapes
    )

    def start():  # a step overwrites the state that it is given
        return step.jit_create(model, layout)(params)

    state, one_step = start(), step.jit_train_step(*arguments, microbatches)
    for number in range(count):
        batch = sharding.put_batch({k: v[number] for k, v in stacked.items()}, layout)
        inputs = state, batch, rates[number], np.uint32(5), new[number]
        if number == 0:
            one_step = one_step.lower(*inputs).compile(compiler_options=compiled)
        state, logged = one_step(*inputs)
    batch = sharding.put_batch(stacked, layout, stacked=True)
    assert {s.data.shape[0] for s in batch["encoder_input_tokens"].addressable_shards} == {count}
    inputs = start(), batch, rates, np.uint32(5), new
    all_steps = step.jit_train_steps(*arguments, microbatches).lower(*inputs)
    together = all_steps.compile(compiler_options=compiled)(*inputs)
    assert leaf_bytes(together) == leaf_bytes((state, logged))


def test_split_parameters_are_refused():
    whole, split = sharding.make_layout({"data": 2}), sharding.make_layout({"fsdp": 2, "data": 1})
    calls.check(4, whole)
    calls.check(1, split)
    rules = sharding.Rules(mlp="data")
    for layout in (split, sharding.make_layout({"data": 2}, rules)):
        with pytest.raises(
            UserError, match=r"split over the mesh axis .* expected STEPS_PER_CALL=1"
        ):
            calls.check(4, layout)


def test_a_run_goes_on_with_another_number_and_so_does_one_that_knows_none(tmp_path):
    files = ["tests/mini/model.gin", "gin/runs/pretrain.gin"]
    values = {"MIXTURE_OR_TASK_NAME": "a", "MODEL_DIR": "b", "TRAIN_STEPS": 3}
    text = config.load(files, values)
    assert "STEPS_PER_CALL = 1" in text
    older = "".join(t for t in text.splitlines(keepends=True) if "STEPS_PER_CALL" not in t)
    for name, before in (("now", text), ("older", older)):
        folder = str(tmp_path / name)
        run_directory.begin(folder, before)
        (tmp_path / name / "checkpoints/checkpoint_1").mkdir(parents=True)  # something to lose
        run_directory.refuse_changed(folder, config.load(files, {**values, "STEPS_PER_CALL": 8}))
        with pytest.raises(UserError, match=r"\(SEED = 0 there, SEED = 1 now\)"):
            run_directory.refuse_changed(folder, config.load(files, {**values, "SEED": 1}))


def test_a_study_takes_it_as_a_setting_of_its_runs(mini_root, tmp_path):
    config.load(["tests/mini/study.gin"], {"STUDY_DIR": str(tmp_path), "EXAMPLES_ROOT": mini_root})
    arguments = config.bindings_of(runner.run_study)
    plain = arguments["study"]
    settings = {
        name: {**getattr(plain, name), "STEPS_PER_CALL": 7}
        for name in ("pretrain_settings", "finetune_settings")
    }
    runs, others = (
        expand.expand(**{**arguments, "study": study})
        for study in (plain, dataclasses.replace(plain, **settings))
    )
    assert [run.id for run in runs] == [run.id for run in others]
    for run, other in zip(runs, others, strict=True):
        config.load(other.gin_files, other.bindings)
        assert config.bindings_of(loop.train)["steps_per_call"] == 7
        # To a study the run is the same: one that is done stays done, another goes on.
        assert run.record == other.record
