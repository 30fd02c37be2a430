"""The parts of benchmarks/ that can be wrong without being slow."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import compiled_costs
import step_worker
import tiny
import train_step

from t5scaling.model import network
from t5scaling.training import sharding, step
from tests.conftest import AS_A_USERS_ARE

SQUARE = jax.ShapeDtypeStruct((32, 32), jnp.float32)
PRODUCT = 2 * 32**3  # floating-point operations of one matrix product


def flops_of(function):
    return compiled_costs.count_flops(lambda: jax.jit(function).lower(SQUARE))


def test_flops_are_counted_times_the_trips_of_a_scan():
    def three(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=3)[0]

    def five_times_three(x):
        return jax.lax.scan(lambda carry, _: (three(carry), None), x, None, length=5)[0]

    def over_inputs(x):
        return jax.lax.scan(lambda total, row: (total + row @ x, None), x[0], x[:7])[0]

    assert flops_of(three) == 3 * PRODUCT
    alone = jax.jit(lambda x: three(x)).lower(SQUARE).compile().cost_analysis()["flops"]
    assert alone < 2 * PRODUCT  # what XLA counts by itself: the reason for counting otherwise
    assert flops_of(five_times_three) == 15 * PRODUCT
    assert flops_of(over_inputs) == 7 * (PRODUCT / 32 + 32)  # each row also a sum of 32


def test_flops_of_loops_that_cannot_be_unrolled_are_refused():
    def fixed(x):
        return jax.lax.fori_loop(0, 4, lambda _, carry: carry @ x, x)

    def open_ended(x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 1.0, lambda c: c @ x, x)

    for function in (fixed, open_ended):
        with pytest.raises(compiled_costs.Uncountable, match="a loop is left"):
            flops_of(function)


def test_scans_are_loops_again_afterwards():
    def three(x):
        return jax.lax.scan(lambda carry, _: (carry @ x, None), x, None, length=3)[0]

    with compiled_costs.unrolled_scans():
        pass
    assert "while(" in jax.jit(three).lower(SQUARE).compile().as_text()


def test_flops_of_the_step_are_the_formula_and_the_elementwise_ones():
    config = dataclasses.replace(tiny.model(1024), num_encoder_layers=1)
    needed = tiny.ROWS * network.model_flops(config, tiny.LENGTH, tiny.LENGTH)
    # The other options say how far LLVM goes, which changes no operation that is counted.
    options = {"xla_cpu_use_fusion_emitters": AS_A_USERS_ARE["xla_cpu_use_fusion_emitters"]}
    counted = compiled_costs.train_step_flops(config, compiler_options=options)
    assert 1.0 < counted / needed < 1.05


def test_batch_is_shifted_and_padded():
    batch = tiny.make_batch(512)
    inputs, shifted = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    assert (shifted[:, 0] == 0).all() and (shifted[:, 1:] == targets[:, :-1]).all()
    assert ((targets > 0) == (weights == 1)).all()
    assert inputs.shape == targets.shape == (tiny.ROWS, tiny.LENGTH)
    assert 0.0 < np.mean(inputs == 0) < 0.25 and 0.0 < np.mean(targets == 0) < 0.25


def test_unequal_models_are_not_compared():
    ours = {"parameters": 10, "loss": 8.0}
    train_step.check_equal(ours, {"parameters": 10, "loss": 8.0004})
    for peer in ({"parameters": 11, "loss": 8.0}, {"parameters": 10, "loss": 8.002}):
        with pytest.raises(SystemExit, match="differ"):
            train_step.check_equal(ours, peer)
    with pytest.raises(SystemExit, match="differ"):
        train_step.check_equal(ours, {"parameters": 10, "loss": float("nan")})


def test_each_parameter_has_a_name_of_its_own_in_the_peer():
    shapes = jax.tree_util.tree_leaves_with_path(network.abstract_params(tiny.model(512)))
    names = [step_worker.peer_name("/".join(k.key for k in path)) for path, _ in shapes]
    assert len(set(names)) == len(names)
    assert "decoder.block.1.layer.2.DenseReluDense.wi_0.weight" in names
    assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in names


def test_peer_with_our_parameters_has_our_loss():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    config, layout = tiny.model(512), sharding.make_layout({"data": 1}, devices=jax.devices()[:1])
    batch = tiny.make_batch(512)
    params = step.jit_init(config, layout)(np.uint32(1)).params
    total, tokens = step.jit_eval_step(config, layout)(params, sharding.put_batch(batch, layout))
    flat = jax.tree_util.tree_leaves_with_path(params)
    by_path = {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in flat}
    peer = step_worker.peer_model(512, tiny.ARCHITECTURE, by_path)
    assert sum(p.numel() for p in peer.parameters()) == network.count_parameters(config)
    with torch.no_grad():
        loss = peer(**step_worker.peer_batch(batch)).loss.item()
    np.testing.assert_allclose(loss, float(total) / float(tokens), rtol=1e-4)
    del by_path["decoder/decoder_norm/scale"]
    with pytest.raises(ValueError, match="only one model has"):
        step_worker.peer_model(512, tiny.ARCHITECTURE, by_path)
