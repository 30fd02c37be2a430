"""Backends of model/attention.py against each other; gradients that add in a fixed order."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.errors import UserError
from t5scaling.model import attention, layers, network
from t5scaling.model.network import T5Config, Transformer
from t5scaling.training import sharding, step

# name: (T, S, causal, with bias, heads' dimension); blocks are 32 to 128 positions.
CASES = {
    "encoder": (96, 96, False, True, 64),
    "decoder": (140, 140, True, True, 64),
    "cross": (14, 130, False, False, 128),
}
TOLERANCE = {"float32": 1e-6, "bfloat16": 6e-3}


@pytest.mark.parametrize(
    ("case", "packed", "dtype"),
    [
        ("encoder", False, "float32"),
        ("decoder", False, "float32"),
        ("decoder", True, "float32"),
        ("decoder", True, "bfloat16"),
        ("cross", True, "float32"),
    ],
)
def test_fused_equals_plain(case, packed, dtype):
    """Outputs and the gradients by q, k, v and the bias, of all queries that see a key."""
    (q, k, v, bias, cotangent), mask = _arrays(*CASES[case], packed, dtype)
    found = _outputs_and_gradients("fused", q, k, v, bias, cotangent, mask)
    _assert_close(found, _expected(case, packed, dtype), TOLERANCE[dtype])


def _assert_close(found, expected, tolerance):
    for name in expected:
        error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert error <= tolerance, f"{name}: {error:.1e}"


def test_a_query_that_sees_no_key_gets_0_and_gives_no_gradient():
    (q, k, v, bias, _), mask = _arrays(16, 16, False, True, 64, True, "float32")
    mask = mask._replace(query_segments_BxT=jnp.full_like(mask.query_segments_BxT, 9))
    found = _outputs_and_gradients("fused", q, k, v, bias, jnp.ones_like(q), mask)
    assert all(np.all(x == 0) for x in found.values())


def test_no_array_has_all_scores():
    """Neither pass holds (B, H, T, S)."""
    (q, k, v, bias, cotangent), mask = _arrays(128, 128, False, True, 64, True, "bfloat16")

    def both(backend, q, k, v, bias):
        with _one_device():
            out, back = jax.vjp(lambda *x: _attend(backend, *x, mask), q, k, v, bias)
            return out, back(cotangent)

    all_scores = f"[{len(q)},{q.shape[2]},128,128]"
    for backend, expected in (("plain", True), ("fused", False)):
        program = str(jax.make_jaxpr(functools.partial(both, backend))(q, k, v, bias))
        assert (all_scores in program) == expected


def model_of(head_dim=64, dtype="bfloat16", attention="auto"):
    return T5Config(1, 1, 1, head_dim, 1, 1, 1, dtype=dtype, attention=attention)


@pytest.mark.parametrize(
    ("model", "platform", "capability", "backend"),
    [
        (model_of(), "cpu", None, "plain"),
        (model_of(), "gpu", 9.0, "fused"),
        (model_of(), "gpu", None, "fused"),
        (model_of(128), "gpu", 8.0, "fused"),
        (model_of(), "gpu", 7.5, "plain"),
        (model_of(), "gpu", 0.0, "plain"),  # of another vendor
        (model_of(32), "gpu", 9.0, "plain"),
        (model_of(dtype="float32"), "gpu", 9.0, "plain"),
        (model_of(attention="plain"), "gpu", 9.0, "plain"),
        (model_of(32, attention="fused"), "gpu", 9.0, "fused"),
    ],
)
def test_the_backend_suits_the_device(model, platform, capability, backend):
    for packed in (False, True):
        choice = attention.choose(model, platform=platform, packed=packed, capability=capability)
        assert choice.backend == backend
        assert choice.reason


@pytest.mark.parametrize(
    ("model", "platform", "packed", "words"),
    [
        (model_of(attention="cudnn"), "gpu", True, "it has no segments, which packed rows need"),
        (model_of(attention="cudnn"), "cpu", False, "it runs on NVIDIA's GPUs alone"),
        (model_of(dtype="float32", attention="cudnn"), "gpu", False, "the model is float32"),
        (model_of(80, attention="fused"), "gpu", False, "heads are a power of 2, .* they are 80"),
        (model_of(32, attention="fused"), "tpu", False, "heads are 64 or 128; they are 32"),
    ],
)
def test_a_backend_that_cannot_run_is_refused(model, platform, packed, words):
    assert attention.choose(model_of(), platform=platform, packed=packed)
    with pytest.raises(UserError, match=f"ATTENTION='.*' cannot be used: .*{words}"):
        attention.choose(model, platform=platform, packed=packed, capability=9.0)


def test_cudnn_is_for_rows_that_are_not_packed():
    model = model_of(attention="cudnn")
    assert attention.choose(model, platform="gpu", packed=False).backend == "cudnn"


def test_vendors_and_devices_without_cuda():
    kinds = {"9.0": 9.0, "gfx90a": 0.0, None: None}
    for given, expected in kinds.items():
        device = types.SimpleNamespace(compute_capability=given)
        assert layers.compute_capability(device) == expected
    assert layers.compute_capability(object()) is None


def test_several_devices_without_a_mesh_take_the_plain_attention():
    assert jax.device_count() > 1  # see conftest.py
    mask = attention.Mask.unpacked(jnp.ones((2, 4)), jnp.ones((2, 4)))
    assert attention.share(model_of(attention="fused"), mask).backend == "plain"


@pytest.mark.parametrize("mesh", [{"data": 2}, {"data": 1, "model": 2}, {"data": 1, "fsdp": 2}])
def test_each_device_attends_for_its_rows_and_heads(mesh):
    """Outputs and gradients on two devices are those of plain attention, the bias's too."""
    (q, k, v, bias, cotangent), mask = _arrays(*CASES["decoder"], True, "float32")
    layout = sharding.make_layout(mesh)
    found = _outputs_and_gradients("fused", q, k, v, bias, cotangent, mask, layout.constraints)
    _assert_close(found, _expected("decoder", True, "float32"), 1e-6)


@pytest.mark.parametrize(
    ("platform", "dtype", "scattered"),
    [
        ("gpu", "float32", False),
        ("gpu", "bfloat16", False),
        ("cpu", "float32", True),  # the test sees them
    ],
)
def test_nothing_is_scattered_on_a_gpu(platform, dtype, scattered):
    """There, threads add to one place in the order in which they come."""
    model = T5Config(50, 32, 2, 64, 1, 1, 24, dtype=dtype, dropout_rate=0.1, scan_layers=True)
    tokens = jnp.ones((2, 16), jnp.int32)
    arrays = dict.fromkeys(("encoder_input_tokens", "decoder_input_tokens"), tokens)
    arrays |= {"decoder_target_tokens": tokens, "decoder_loss_weights": jnp.ones((2, 16))}
    layout = sharding.make_layout(devices=jax.devices()[:1])

    def gradients(params):
        return step.gradients(
            params, arrays, jax.random.key(1), network.Transformer(model), step.Objective(),
            layout, 1,
        )  # fmt: skip

    with layout.constraints(), layers.placed(layers.Placement(platform)):
        program = str(jax.make_jaxpr(gradients)(network.abstract_params(model)))
    assert ("scatter" in program) == scattered


def test_a_model_with_fused_attention_learns_what_the_plain_one_does():
    """In scanned layers, whose products alone are kept, on packed rows."""
    config = T5Config(50, 16, 2, 16, 1, 1, 24, dropout_rate=0.0, scan_layers=True, remat="minimal")
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: draw.normal(size=leaf.shape).astype(np.float32) / leaf.shape[-1] ** 0.5,
        network.abstract_params(config),
    )
    found = [_loss_and_gradients(dataclasses.replace(config, attention=backend), params)
             for backend in ("plain", "fused")]  # fmt: skip
    (loss, gradients), (fused_loss, fused_gradients) = found
    np.testing.assert_allclose(fused_loss, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(fused_gradients), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())


def test_a_wrong_attention_is_named():
    with pytest.raises(UserError, match=r"T5Config\.attention is 'fusd'.*'fused'"):
        T5Config(50, 16, 2, 16, 2, 2, 24, attention="fusd")


@pytest.mark.parametrize(("queries", "keys"), [(1, 7), (7, 1), (4, 9), (9, 4)])
def test_sums_of_diagonals(queries, keys):
    x = np.random.default_rng(0).normal(size=(2, queries, keys)).astype(np.float32)
    expected = np.zeros((2, queries + keys - 1))
    for row, column in itertools.product(range(queries), range(keys)):
        expected[:, column - row + queries - 1] += x[:, row, column]
    np.testing.assert_allclose(jax.jit(layers.sums_of_diagonals)(x), expected, atol=1e-6)
    there = jax.jit(layers.diagonals_to_matrix, static_argnums=(1, 2))
    matrix = there(expected.astype(np.float32), queries, keys)
    np.testing.assert_array_equal(matrix[:, 0], expected.astype(np.float32)[:, queries - 1 :])


@pytest.mark.parametrize(
    ("rows", "vocabulary", "used"), [(1000, 50, 5), (257, 1000, 1000), (5, 7, 7), (300, 4, 1)]
)
def test_rows_are_summed_by_token(rows, vocabulary, used):
    """Tokens of one row, of several chunks of rows, of no row; the last token of the vocabulary."""
    draw = np.random.default_rng(rows)
    tokens = draw.integers(vocabulary - used, vocabulary, rows)
    x = draw.normal(size=(rows, 8)).astype(np.float32)
    expected = np.zeros((vocabulary, 8))
    np.add.at(expected, tokens, x)
    summed = jax.jit(layers.sums_by_token, static_argnums=2)
    found = summed(jnp.asarray(tokens), jnp.asarray(x), vocabulary)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert found.dtype == jnp.float32


def test_the_lookup_of_a_gpu_has_the_same_gradient():
    draw = np.random.default_rng(0)
    table = jnp.asarray(draw.normal(size=(20, 8)), jnp.float32)
    tokens = jnp.asarray(draw.integers(0, 20, (4, 50)))
    cotangent = jnp.asarray(draw.normal(size=(4, 50, 8)), jnp.float32)

    def gradient(platform, mesh=None):
        layout = sharding.make_layout(
            mesh or {"data": 1}, devices=jax.devices()[: 2 if mesh else 1]
        )
        with layout.constraints():
            there = layers.placement()._replace(platform=platform)
        with layers.placed(there):
            look_up = jax.jit(lambda c: jax.vjp(lambda t: layers.lookup(t, tokens), table)[1](c)[0])
            return look_up(cotangent)

    expected = gradient("cpu")
    for mesh in (None, {"data": 2}, {"data": 1, "fsdp": 2}):
        np.testing.assert_allclose(gradient("gpu", mesh), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_norms_gradient_is_the_derived_one(dtype):
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(3, 5, 16)), dtype)
    scale = jnp.asarray(draw.normal(size=16), jnp.float32)
    cotangent = jnp.asarray(draw.normal(size=(3, 5, 16)), dtype)

    def derived(x, scale):
        x = x.astype(jnp.float32)
        root = jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        return (x / root * scale).astype(dtype)

    def gradients(norm):
        return jax.jit(lambda x, s, c: jax.vjp(norm, x, s)[1](c))(x, scale, cotangent)

    expected, found = gradients(derived), gradients(lambda x, s: layers.rms_norm(x, s, dtype))
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        tolerance = 2e-6 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(b.astype("float32"), a.astype("float32"), atol=tolerance)


def _arrays(queries, keys, causal, biased, head_dim, packed, dtype, batch=2, heads=2):
    """-> (q, k, v, bias or None, cotangent of the output), mask."""
    draw = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return jnp.asarray(draw.normal(size=shape) * scale, dtype)

    q = normal(batch, queries, heads, head_dim, scale=head_dim**-0.5)
    k, v = normal(batch, keys, heads, head_dim), normal(batch, keys, heads, head_dim)
    bias = normal(heads, queries + keys - 1).astype(jnp.float32) if biased else None

    def segments(length):  # 1 1 1 2 2 3 0 0: of several examples and padding
        return jnp.asarray(-np.sort(-draw.integers(0, 4, (batch, length)), axis=1))

    if packed:
        own = segments(queries)
        mask = attention.Mask(own, own if queries == keys else segments(keys), causal, packed=True)
    else:
        tokens = np.ones((batch, keys), np.int32)
        tokens[::2, keys * 3 // 4 :] = 0
        tokens[-1] = 0  # a row of padding
        mask = attention.Mask.unpacked(
            jnp.ones((batch, queries)), jnp.asarray(tokens), causal=causal
        )
    return (q, k, v, bias, normal(*q.shape)), mask


def _attend(backend, q, k, v, bias, mask):
    config = model_of(q.shape[-1], q.dtype.name, backend)
    shared = attention.share(config, mask, bias)
    assert shared.backend == backend
    return attention.attend(q, k, v, shared)


def _one_device():
    return layers.placed(layers.Placement("cpu"))


def _outputs_and_gradients(backend, q, k, v, bias, cotangent, mask, placed=_one_device):
    """float32, of the queries that see a key."""
    seen = np.asarray(jax.jit(lambda: mask.visible().any(axis=-1))())
    seen = np.broadcast_to(seen, q.shape[:2])[..., None, None]

    @jax.jit
    def both(q, k, v, bias, cotangent):
        with placed():
            out, back = jax.vjp(lambda *x: _attend(backend, *x, mask), q, k, v, bias)
            return out, back(cotangent)

    with jax.default_matmul_precision("highest"):
        out, gradients = both(q, k, v, bias, np.where(seen, cotangent, 0).astype(cotangent.dtype))
    arrays = dict(zip(("q", "k", "v", "bias"), gradients, strict=True))
    arrays["out"] = np.where(seen | (backend == "fused"), out, 0)
    return {name: np.asarray(x, np.float32) for name, x in arrays.items() if x is not None}


@functools.cache
def _expected(case, packed, dtype):
    """What the plain backend computes."""
    (q, k, v, bias, cotangent), mask = _arrays(*CASES[case], packed, dtype)
    return _outputs_and_gradients("plain", q, k, v, bias, cotangent, mask)


def _loss_and_gradients(config, params):
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(1, 50, (3, 24)), draw.integers(1, 50, (3, 17))
    inputs[1, 15:], targets[2, 9:] = 0, 0
    segments = [np.where(x > 0, 1 + (np.arange(x.shape[1]) > 8), 0) for x in (inputs, targets)]
    model = Transformer(config)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        arrays = map(jnp.asarray, (inputs, targets, *segments))
        logits = model.apply({"params": params}, *arrays)
        return jnp.sum(jnp.where((targets > 0)[..., None], logits, 0.0) ** 2)

    with _one_device():
        return jax.tree.map(np.asarray, loss(params))
