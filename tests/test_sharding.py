"""Rules, errors, and the same training on every mesh."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t5scaling import compilation
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.training import sharding, step
from tests import mini
from tests.conftest import REPOSITORY, xla_flags

CONFIG = network.T5Config(
    vocab_size=96,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_dim=48,
    scan_layers=True,
)
# Quicker to compile, where neither layers nor their scan matter.
ONE_LAYER = dataclasses.replace(
    CONFIG, num_encoder_layers=1, num_decoder_layers=1, scan_layers=False
)

# One device, and each axis split: a mesh takes a compilation.
MESHES = {"1": {"data": 1}, "data 2 fsdp 2 model 2": {"data": 2, "fsdp": 2, "model": 2}}


def test_states_are_split_as_the_rules_say():
    layout = sharding.make_layout({"data": 1, "fsdp": 2})
    shardings = step.state_shardings(mini.CONFIG, layout)
    mlp = shardings.params["encoder"]["layers_0"]["mlp"]
    assert mlp["wi_0"]["kernel"].spec == PartitionSpec("fsdp", "model")
    assert mlp["wo"]["kernel"].spec == PartitionSpec("model", "fsdp")
    assert shardings.params["token_embedder"]["embedding"].spec == PartitionSpec("model", "fsdp")
    assert shardings.step.spec == PartitionSpec()
    # What is drawn comes in these shards; to ask for them takes no compilation.
    drawn = step.jit_init(mini.CONFIG, layout).eval_shape(np.uint32(0))
    assert jax.tree.map(lambda leaf: leaf.sharding, drawn) == shardings
    embedding = drawn.params["token_embedder"]["embedding"]
    assert embedding.sharding.shard_shape(embedding.shape) == (8192, 16)


def test_moments_are_split_as_their_parameter():
    config = network.T5Config(
        vocab_size=256,
        emb_dim=128,
        num_heads=4,
        head_dim=64,
        num_encoder_layers=3,
        num_decoder_layers=3,
        mlp_dim=512,
        scan_layers=True,
    )
    layout = sharding.make_layout({"data": 1, "model": 2})
    moments = step.state_shardings(config, layout).opt_state["encoder"]["layers"]["mlp"]
    # wi (3, 128, 512): the row means lack mlp, its largest axis; the column means lack embed.
    assert moments["wi_0"]["kernel"]["v_row"].spec == PartitionSpec(None, "fsdp")
    assert moments["wi_0"]["kernel"]["v_col"].spec == PartitionSpec(None, "model")
    abstract = step.abstract_state(config, layout)
    for leaf in jax.tree.leaves(abstract):
        leaf.sharding.shard_shape(leaf.shape)  # raises where a spec does not fit its shape


def temporary_bytes(mesh_shape, devices):
    """Of a program that computes the gradients of a model with a wide MLP."""
    config = network.T5Config(**{**vars(_plain(CONFIG)), "mlp_dim": 1024})
    layout = sharding.make_layout(mesh_shape, devices=devices)

    def gradients(params, batch):
        model = network.Transformer(config)
        with layout.constraints():
            return step.gradients(params, batch, None, model, step.Objective(), layout, 1)[0]

    lowered = jax.jit(gradients).lower(
        step.abstract_params(config, layout), sharding.put_batch(_batch(32), layout)
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes


@pytest.fixture(scope="module")
def on_one_device():
    return temporary_bytes({}, jax.devices()[:1])


@pytest.mark.parametrize("mesh_shape", [{"data": 1, "fsdp": 2}, {"data": 1, "model": 2}])
def test_activations_are_split(mesh_shape, on_one_device):
    """Inside scanned layers too, where the compiler left alone keeps whole batches."""
    assert temporary_bytes(mesh_shape, None) < 0.7 * on_one_device


@pytest.mark.parametrize(
    ("mesh_shape", "words"),
    [
        ({"data": 3}, ["data=3", "2 devices"]),
        ({"fdsp": 2}, ["'fdsp'", "did you mean 'fsdp'"]),
        ({"model": 0}, ["model is 0"]),
        ({"data": -1, "fsdp": -1}, ["data and fsdp", "only one"]),
        ({"model": 4}, ["model=4", "2 devices"]),
    ],
)
def test_a_wrong_mesh_is_named(mesh_shape, words):
    with pytest.raises(UserError) as error:
        sharding.make_layout(mesh_shape)
    assert all(word in str(error.value) for word in words), error.value


def test_wrong_rules_are_named():
    with pytest.raises(UserError, match=r"sharding rule mlp: no mesh axis 'modle'.*'model'"):
        sharding.Rules(mlp="modle")
    both = sharding.make_layout({"model": 2, "data": 1}, sharding.Rules(embed="model"))
    with pytest.raises(UserError, match=r"axes \w+ and \w+ of .*kernel .*mesh axis 'model'"):
        sharding.check(both, CONFIG)


def test_what_cannot_be_split_is_named():
    layout = sharding.make_layout({"model": 2, "data": 1})
    sharding.check(layout, CONFIG)
    odd = network.T5Config(**{**vars(CONFIG), "mlp_dim": 51})
    with pytest.raises(UserError, match="mlp axis of 51 cannot be split into 2 parts"):
        sharding.check(layout, odd)
    with pytest.raises(UserError, match=r"BATCH_SIZE=6 .*2 devices x 2 microbatches.*: 8"):
        sharding.check_batch_size(6, sharding.make_layout(), 2)


def test_rows_of_this_process():
    np.testing.assert_array_equal(sharding.local_rows(6, sharding.make_layout()), np.arange(6))
    batch = {"x": np.arange(12).reshape(6, 2)}
    put = sharding.put_batch(batch, sharding.make_layout(), np.arange(6))["x"]
    np.testing.assert_array_equal(put, batch["x"])
    assert {s.data.shape for s in put.addressable_shards} == {(3, 2)}


def test_microbatches_equal_the_whole_batch():
    """Rows with few and with many target tokens in different parts: tokens weigh, but not parts;
    and a row is dropped the same in each. Where sequences weigh, see the test of every mesh."""
    layout = sharding.make_layout()
    batch = sharding.put_batch(_batch(8), layout)
    objective = step.Objective(loss_normalizing_factor="NUM_REAL_TARGET_TOKENS", chunk_positions=16)
    params = _params(ONE_LAYER)

    @functools.partial(jax.jit, static_argnums=0)
    def gradients(microbatches, params, batch):
        model = network.Transformer(dataclasses.replace(ONE_LAYER, dropout_rate=0.3))
        key = jax.random.key(1)
        return step.gradients(params, batch, key, model, objective, layout, microbatches)

    whole = jax.device_get(gradients(1, params, batch))
    parts = jax.device_get(gradients(2, params, batch))
    for got, wanted in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        assert np.linalg.norm(got - wanted) <= 1e-6 * np.linalg.norm(wanted)


FACTORS = (None, 7.0, *step.NORMALIZERS)


def _losses(params, batch, segments):
    """The loss divided by each of FACTORS, from the sums of each sequence S."""
    sides = {k: batch[k] for k in ("encoder_segment_ids", "decoder_segment_ids") if k in batch}
    inputs = (batch["encoder_input_tokens"], batch["decoder_input_tokens"])
    logits = network.Transformer(ONE_LAYER).apply({"params": params}, *inputs, **sides)
    targets = batch["decoder_target_tokens"]
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    rows = np.arange(len(targets))[:, None]
    sequences = [
        (rows == row) & (segments == segment) & (targets > 0)
        for row in range(len(targets))
        for segment in np.unique(segments[row])
    ]
    sequences_SxBxT = np.stack([mine for mine in sequences if mine.any()])
    lengths_S = sequences_SxBxT.sum(axis=(1, 2))
    sums_S = jnp.where(sequences_SxBxT, losses, 0.0).sum(axis=(1, 2))
    total, of_sequences, tokens = sums_S.sum(), jnp.mean(sums_S / lengths_S), lengths_S.sum()
    return jnp.stack(
        [total, total / 7, total / tokens, total / targets.size, of_sequences]
    ), total / tokens


def test_the_loss_is_divided_by_what_t5x_divides_by():
    """Rows of 1 to 12 target tokens, one of them with none; packed, with two segments a row or,
    in half of the rows, one. What a sequence is without segments, test_loss.py tests."""
    batch = _batch(8)
    batch["decoder_target_tokens"][3] = batch["decoder_loss_weights"][3] = 0
    segments = np.where(np.arange(12) < np.arange(2, 10)[:, None], 1, 2).astype(np.int32)
    segments[::2] = 1
    segments[batch["decoder_target_tokens"] == 0] = 0
    halves = np.where(np.arange(16) < 7, 1, 2) * np.ones((8, 1), np.int32)
    batch |= {"decoder_segment_ids": segments, "encoder_segment_ids": halves.astype(np.int32)}
    layout = sharding.make_layout(devices=jax.devices()[:1])
    params = _params(ONE_LAYER)

    @jax.jit
    def ours(params, batch):
        return [
            step.gradients(
                params, batch, None, network.Transformer(ONE_LAYER),
                step.Objective(z_loss=0.0, loss_normalizing_factor=factor), layout, 1,
            )
            for factor in FACTORS
        ]  # fmt: skip

    expected, mean = jax.jit(jax.jacrev(lambda p: _losses(p, batch, segments), has_aux=True))(
        params
    )
    found = jax.device_get(ours(params, batch))
    for factor, (grads, total, _, tokens) in zip(FACTORS, found, strict=True):
        number = FACTORS.index(factor)
        for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            difference = np.linalg.norm(got - wanted[number])
            assert difference <= 1e-5 * np.linalg.norm(wanted[number]), factor
        # What is logged is in nats per target token all the same.
        assert total / tokens == pytest.approx(float(mean), rel=1e-6)
    with pytest.raises(UserError, match=r"is 'average'; expected None, a number > 0 or one of NUM"):
        step.Objective(loss_normalizing_factor="average")


def test_every_mesh_trains_the_same():
    """One device, and eight in a child process, which do the batch in two parts: losses and norms
    of gradients to 1e-5."""
    code = "from tests import test_sharding; test_sharding.print_steps()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "XLA_FLAGS": xla_flags(devices=8),
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    steps = json.loads(done.stdout.splitlines()[-1])
    assert steps.keys() == MESHES.keys()
    (first, _), *_, (last, _) = steps["1"]
    assert last < first - 0.01
    for mesh in MESHES:
        np.testing.assert_allclose(steps[mesh], steps["1"], rtol=1e-5, err_msg=mesh)


def print_steps():
    """Losses and norms of four steps on every mesh, as JSON; for a process with eight devices."""
    compilation.prepare()  # with its cache, for the next time
    steps = {}
    params = _params(CONFIG)
    for name, mesh_shape in MESHES.items():
        devices = jax.devices()[:1] if name == "1" else None
        layout = sharding.make_layout(mesh_shape, devices=devices)
        sharding.check(layout, CONFIG)
        split = jax.device_put(params, sharding.param_shardings(CONFIG, layout))
        state = step.jit_create(CONFIG, layout)(split)
        objective = step.Objective(
            loss_normalizing_factor="AVERAGE_PER_SEQUENCE", chunk_positions=7
        )
        parts = 1 if name == "1" else 2
        train_step = step.jit_train_step(_plain(CONFIG), objective, layout, parts)
        batch = sharding.put_batch(_batch(8), layout)
        steps[name] = []
        for _ in range(4):
            state, (window, _, _) = train_step(
                state, batch, np.float32(0.02), np.uint32(0), np.bool_(True)
            )
            loss = float(window.loss / window.target_tokens)
            steps[name].append((loss, float(window.grad_norm)))
    print(json.dumps(steps))


def _params(config):
    """Drawn by NumPy: the model's own initialisation would take a compilation."""
    draw = np.random.default_rng(0)
    shapes = network.abstract_params(config)
    return jax.tree.map(lambda leaf: draw.normal(0, 0.2, leaf.shape).astype(leaf.dtype), shapes)


def _plain(config):
    return network.T5Config(**{**vars(config), "dropout_rate": 0.0})


def _batch(rows):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 13, rows)
    lengths[0] = 12
    targets = np.where(np.arange(12) < lengths[:, None], rng.integers(2, 96, (rows, 12)), 0)
    return {
        "encoder_input_tokens": rng.integers(2, 96, (rows, 16)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1].astype(np.int32),
        "decoder_target_tokens": targets.astype(np.int32),
        "decoder_loss_weights": (targets > 0).astype(np.float32),
    }
