"""Backends of model/attention.py against each other; gradients that add in a fixed order."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5scaling.errors import UserError
from t5scaling.model import attention, layers, network
from t5scaling.model.network import T5Config, Transformer

# name: (T, S, causal, with bias, heads' dimension); blocks are 32 to 128 positions.
CASES = {
    "encoder": (96, 96, False, True, 64),
    "decoder": (140, 140, True, True, 64),
    "cross": (14, 130, False, False, 128),
}
TOLERANCE = {"float32": 1e-6, "bfloat16": 6e-3}


@pytest.mark.parametrize(
    ("packed", "dtype"), [(False, "float32"), (True, "float32"), (True, "bfloat16")]
)
@pytest.mark.parametrize("case", CASES)
def test_fused_equals_plain(case, packed, dtype):
    """Outputs and the gradients by q, k, v and the bias, of all queries that see a key."""
    (q, k, v, bias, cotangent), mask = _arrays(*CASES[case], packed, dtype)
    expected, found = (
        _outputs_and_gradients(backend, q, k, v, bias, cotangent, mask)
        for backend in ("plain", "fused")
    )
    for name in expected:
        error = jnp.linalg.norm(found[name] - expected[name]) / jnp.linalg.norm(expected[name])
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


def test_a_query_that_sees_no_key_gets_0_and_gives_no_gradient():
    (q, k, v, bias, _), mask = _arrays(16, 16, False, True, 64, True, "float32")
    mask = mask._replace(query_segments_BxT=jnp.full_like(mask.query_segments_BxT, 9))
    found = _outputs_and_gradients("fused", q, k, v, bias, jnp.ones_like(q), mask)
    assert all(np.all(np.asarray(x) == 0) for x in found.values())


def test_no_array_has_all_scores():
    """Neither pass holds (B, H, T, S)."""
    (q, k, v, bias, cotangent), mask = _arrays(128, 128, False, True, 64, True, "bfloat16")

    def both(backend, q, k, v, bias):
        out, back = jax.vjp(lambda *x: _attend(backend, *x, mask), q, k, v, bias)
        return out, back(cotangent)

    all_scores = f"[{len(q)},{q.shape[2]},128,128]"
    for backend, expected in (("plain", True), ("fused", False)):
        program = str(jax.make_jaxpr(functools.partial(both, backend))(q, k, v, bias))
        assert (all_scores in program) == expected


@pytest.mark.parametrize(
    ("setting", "platform", "dtype", "head_dim", "backend"),
    [
        ("auto", "cpu", "bfloat16", 64, "plain"),
        ("auto", "gpu", "bfloat16", 64, "fused"),
        ("auto", "gpu", "bfloat16", 128, "fused"),
        ("auto", "gpu", "bfloat16", 32, "plain"),
        ("auto", "gpu", "float32", 64, "plain"),
        ("plain", "gpu", "bfloat16", 64, "plain"),
        ("cudnn", "gpu", "bfloat16", 64, "cudnn"),
    ],
)
def test_the_backend_suits_the_device(setting, platform, dtype, head_dim, backend):
    for packed in (False, True):
        choice = attention.choose(
            setting, platform=platform, dtype=dtype, head_dim=head_dim, packed=packed
        )
        assert choice.backend == backend
        assert choice.reason


def test_gpus_without_bfloat16_products_take_the_plain_attention():
    asked = {"platform": "gpu", "dtype": "bfloat16", "head_dim": 64, "packed": False}
    assert attention.choose("auto", **asked, capability=7.5).backend == "plain"
    assert attention.choose("auto", **asked, capability=8.0).backend == "fused"


def test_cudnn_refuses_packed_rows():
    (q, k, v, bias, _), mask = _arrays(16, 16, False, True, 64, True, "bfloat16")
    with pytest.raises(UserError, match="packed rows need 'fused' or 'plain'"):
        _attend("cudnn", q, k, v, bias, mask)


@pytest.mark.parametrize(
    ("scan_layers", "remat", "packed"), [(False, "none", False), (True, "minimal", True)]
)
def test_a_model_with_fused_attention_learns_what_the_plain_one_does(scan_layers, remat, packed):
    config = T5Config(
        50, 16, 2, 16, 1, 1, 24, dropout_rate=0.1, scan_layers=scan_layers, remat=remat
    )
    found = [_loss_and_gradients(dataclasses.replace(config, attention=backend), packed)
             for backend in ("plain", "fused")]  # fmt: skip
    (loss, gradients), (fused_loss, fused_gradients) = found
    np.testing.assert_allclose(fused_loss, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(fused_gradients), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max())


def test_a_wrong_attention_is_named():
    with pytest.raises(UserError, match=r"T5Config\.attention is 'fusd'.*'fused'"):
        T5Config(50, 16, 2, 16, 2, 2, 24, attention="fusd")


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (1, 7), (7, 1), (4, 9), (9, 4)])
def test_sums_of_diagonals(queries, keys):
    x = np.random.default_rng(0).normal(size=(2, queries, keys)).astype(np.float32)
    expected = np.zeros((2, queries + keys - 1))
    for row, column in itertools.product(range(queries), range(keys)):
        expected[:, column - row + queries - 1] += x[:, row, column]
    np.testing.assert_allclose(layers.sums_of_diagonals(jnp.asarray(x)), expected, atol=1e-6)
    matrix = layers.diagonals_to_matrix(jnp.asarray(expected), queries, keys)
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
    tokens = jnp.asarray(draw.integers(0, 20, (3, 50)))
    cotangent = jnp.asarray(draw.normal(size=(3, 50, 8)), jnp.float32)

    def gradient(platform):
        with layers.placed(layers.Placement(platform)):
            look_up = jax.jit(lambda c: jax.vjp(lambda t: layers.lookup(t, tokens), table)[1](c)[0])
            return look_up(cotangent)

    np.testing.assert_allclose(gradient("gpu"), gradient("cpu"), atol=1e-5)


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

    expected = jax.vjp(derived, x, scale)[1](cotangent)
    found = jax.vjp(lambda x, s: layers.rms_norm(x, s, dtype), x, scale)[1](cotangent)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        tolerance = 2e-6 if dtype == "float32" else 2e-2
        np.testing.assert_allclose(b.astype("float32"), a.astype("float32"), atol=tolerance)


def _arrays(queries, keys, causal, biased, head_dim, packed, dtype, batch=2, heads=2):
    """-> (q, k, v, bias or None, cotangent of the output), mask."""
    draw = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), dtype)

    q = normal(batch, queries, heads, head_dim) * head_dim**-0.5
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
        mask = attention.Mask.of_rows(
            jnp.ones((batch, queries)), jnp.asarray(tokens), causal=causal
        )
    return (q, k, v, bias, normal(*q.shape)), mask


def _attend(backend, q, k, v, bias, mask):
    config = T5Config(1, 1, 1, 1, 1, 1, 1, attention=backend)
    return attention.attend(q, k, v, attention.share(config, mask, bias))


def _outputs_and_gradients(backend, q, k, v, bias, cotangent, mask):
    """float32, of the queries that see a key."""
    seen = jnp.broadcast_to(mask.visible().any(axis=-1), q.shape[:2])[..., None, None]

    @jax.jit
    def both(q, k, v, bias, cotangent):
        out, back = jax.vjp(lambda *x: _attend(backend, *x, mask), q, k, v, bias)
        return out, back(cotangent)

    with jax.default_matmul_precision("highest"):
        out, gradients = both(q, k, v, bias, jnp.where(seen, cotangent, 0))
    arrays = dict(zip(("q", "k", "v", "bias"), gradients, strict=True))
    arrays["out"] = jnp.where(seen | (backend == "fused"), out, 0)
    return {name: x.astype(jnp.float32) for name, x in arrays.items() if x is not None}


def _loss_and_gradients(config, packed):
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(1, 50, (3, 24)), draw.integers(1, 50, (3, 17))
    inputs[1, 15:], targets[2, 9:] = 0, 0
    segments = [None, None]
    if packed:
        segments = [
            jnp.asarray(np.where(x > 0, 1 + (np.arange(x.shape[1]) > 8), 0))
            for x in (inputs, targets)
        ]
    model = Transformer(config)
    params = network.init_params(config, jax.random.key(0))

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        logits = model.apply(
            {"params": params}, jnp.asarray(inputs), jnp.asarray(targets), *segments,
            deterministic=False, rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        return jnp.sum(jnp.where((targets > 0)[..., None], logits, 0.0) ** 2)

    value, gradients = loss(params)
    return value, jax.tree.map(np.asarray, gradients)
