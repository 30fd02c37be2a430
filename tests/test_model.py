import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from t5scaling.errors import UserError
from t5scaling.model import drawing, network
from t5scaling.model.layers import (
    SITES,
    Noise,
    keys_of_sites,
    matmul,
    relative_position_bucket,
    repeat_over_batch,
)
from t5scaling.model.loss import cross_entropy
from t5scaling.model.network import (
    T5Config,
    Transformer,
    abstract_params,
    count_parameters,
    init_params,
    model_flops,
    output_kernel,
    param_logical_axes,
)
from t5scaling.model.stacking import stack_layers, unstack_layers

T5_1_1 = T5Config(
    vocab_size=96,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=48,
)
T5_1_0 = dataclasses.replace(T5_1_1, mlp_activations=("relu",), logits_via_embedding=True)


@functools.cache
def _params(config, seed=0):
    """Random parameters from NumPy: cheaper than compiling `init_params`, and fixed for good."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        values = rng.normal(size=shape.shape).astype(np.float32)
        if path[-1].key == "scale":
            return 1.0 + 0.1 * values
        return values if path[-1].key == "embedding" else values / math.sqrt(shape.shape[0])

    return jax.tree.map_with_path(draw, abstract_params(config))


@pytest.fixture(params=[T5_1_1, T5_1_0], ids=["1.1", "1.0"])
def both(request):
    return request.param, _params(request.param)


@pytest.fixture(scope="module")
def initialised():
    """(config, parameters drawn by init_params) of two layers and wide matrices."""
    config = dataclasses.replace(
        T5_1_1, vocab_size=512, emb_dim=256, mlp_dim=512, num_decoder_layers=2, dropout_rate=0.3
    )
    return config, init_params(config, jax.random.key(5))


def _tokens(seed, *shape, vocab=96):
    return np.random.default_rng(seed).integers(2, vocab, shape).astype(np.int32)


def _rows(rows=2):
    """(inputs, shifted targets), of one shape in all tests that can do with it."""
    return _tokens(0, rows, 9), _shift_right(_tokens(1, rows, 7))


def _shift_right(targets):
    return np.pad(targets, ((0, 0), (1, 0)))[:, :-1]


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, *inputs, **options):
    return Transformer(config).apply({"params": params}, *inputs, **options)


# --- architecture -------------------------------------------------------------------------------


def test_t5_1_0_has_one_mlp_branch_and_no_output_matrix():
    tied = flatten_dict(param_logical_axes(T5_1_0), sep="/")
    gated = flatten_dict(param_logical_axes(T5_1_1), sep="/")
    assert tied["encoder/layers_0/mlp/wi/kernel"] == ("embed", "mlp")
    assert gated["decoder/logits_dense/kernel"] == ("embed", "vocab")
    layers = [f"{s}/layers_{i}/mlp" for s in ("encoder", "decoder") for i in (0,)]
    only_tied = {f"{layer}/wi/kernel" for layer in layers}
    only_gated = {f"{layer}/wi_{k}/kernel" for layer in layers for k in (0, 1)}
    assert tied.keys() - gated.keys() == only_tied
    assert gated.keys() - tied.keys() == only_gated | {"decoder/logits_dense/kernel"}


def test_tied_logits_are_divided_by_the_square_root_of_the_width():
    params = _params(T5_1_0)
    untied = dataclasses.replace(T5_1_0, logits_via_embedding=False)
    kernel = {"logits_dense": {"kernel": params["token_embedder"]["embedding"].T}}
    with_kernel = {**params, "decoder": {**params["decoder"], **kernel}}
    divided = _logits(T5_1_0, params, *_rows())
    plain = _logits(untied, with_kernel, *_rows())
    np.testing.assert_allclose(divided, plain / math.sqrt(32), rtol=1e-5, atol=1e-5)


def test_logical_axes_name_every_axis(both):
    config, params = both
    axes = flatten_dict(param_logical_axes(config), sep="/")
    shapes = {k: v.shape for k, v in flatten_dict(params, sep="/").items()}
    assert axes.keys() == shapes.keys()
    assert {k: len(v) for k, v in axes.items()} == {k: len(v) for k, v in shapes.items()}
    sizes = {
        "vocab": 96,
        "embed": 32,
        "joined_kv": 32,
        "mlp": 48,
        "heads": 4,
        "relpos_buckets": 32,
    }
    for name, names in axes.items():
        assert tuple(sizes[n] for n in names) == shapes[name], name


@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_known_of_parameters_ahead_is_what_is_drawn(scan_layers):
    """Their names, axes, shapes and dtypes, on which dtype, dropout and remat have no influence."""
    config = dataclasses.replace(
        T5_1_1, num_encoder_layers=1, num_decoder_layers=2, scan_layers=scan_layers,
        dtype="bfloat16", dropout_rate=0.1, remat="full",
    )  # fmt: skip
    drawn = jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))
    known = network.abstract_params(config)
    assert jax.tree.structure(known) == jax.tree.structure(drawn)
    assert jax.tree.leaves(known) == jax.tree.leaves(drawn)


def test_parameters_are_those_that_flax_draws_one_by_one():
    config = dataclasses.replace(T5_1_1, num_decoder_layers=2)
    tokens = np.ones((1, 1), np.int32)
    flax_draws = jax.jit(lambda key: Transformer(config).init(key, tokens, tokens)["params"])
    wanted = flatten_dict(nn.unbox(flax_draws(jax.random.key(5))), sep="/")
    drawn = flatten_dict(init_params(config, jax.random.key(5)), sep="/")
    assert drawn.keys() == wanted.keys()
    assert all(np.array_equal(drawn[name], wanted[name]) for name in wanted)


def test_no_two_parameters_and_no_two_masks_come_from_one_key():
    shape = jax.ShapeDtypeStruct((2,), np.float32)
    with pytest.raises(ValueError, match="a module has two parameters, and one key"):
        drawing.draw({"norm": {"scale": shape, "bias": shape}}, {}, jax.random.key(0))
    keys_LxSxB = keys_of_sites(jax.random.split(jax.random.key(0), 3), (0, 2, 5))
    assert len(np.unique(jax.random.key_data(keys_LxSxB).reshape(-1, 2), axis=0)) == 3 * SITES * 3
    with pytest.raises(ValueError, match=f"dropout's site {SITES} in a layer; there are {SITES}"):
        Noise(keys_LxSxB[0]).mask(SITES, (1, 4), 0.9)


def test_initial_scales(initialised):
    params = {k: np.asarray(v) for k, v in flatten_dict(initialised[1], sep="/").items()}
    deviation = {k: float(np.std(v)) for k, v in params.items()}
    attention = "decoder/layers_0/self_attention"
    fan_in = 256**-0.5
    assert deviation["token_embedder/embedding"] == pytest.approx(1.0, rel=0.05)
    assert deviation[f"{attention}/key/kernel"] == pytest.approx(fan_in, rel=0.05)
    # The query carries the 1/sqrt(head_dim) that attention logits lack.
    query = deviation[f"{attention}/query/kernel"]
    assert query == pytest.approx(fan_in / math.sqrt(8), rel=0.05)
    wo = params["encoder/layers_0/mlp/wo/kernel"]
    assert float(np.std(wo)) == pytest.approx(512**-0.5, rel=0.05)
    # Truncated at two standard deviations of the untruncated normal, then rescaled.
    assert float(np.abs(wo).max()) < 2.3 * 512**-0.5
    assert np.all(params["encoder/encoder_norm/scale"] == 1.0)


def test_relative_position_buckets():
    # Counted by hand from Raffel et al.: 8 exact and 8 logarithmic buckets for each direction,
    # the bucket of distance n >= 8 is 8 + floor(8 ln(n/8) / ln(16)).
    bucket = relative_position_bucket(
        [0, -1, -7, -8, -11, -12, -16, -127, -500, 1, 16, 500], bidirectional=True
    )
    np.testing.assert_array_equal(bucket, [0, 1, 7, 8, 8, 9, 10, 15, 15, 17, 26, 31])
    # One direction: 16 exact, 16 logarithmic; keys of the future share bucket 0.
    bucket = relative_position_bucket([0, -1, -15, -16, -32, -127, -128, 3], bidirectional=False)
    np.testing.assert_array_equal(bucket, [0, 1, 15, 16, 21, 31, 31, 0])


def test_dtype_float16_is_refused_with_the_reason():
    with pytest.raises(UserError, match="overflow"):
        dataclasses.replace(T5_1_1, dtype="float16")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "bfloat61", "did you mean 'bfloat16'"),
        ("mlp_activations", ("gleu", "linear"), "did you mean 'gelu'"),
        ("mlp_activations", (), "empty"),
        ("num_heads", 0, "num_heads is 0"),
        ("emb_dim", 12.5, "emb_dim is 12.5"),
        ("dropout_rate", 1.0, "dropout_rate is 1.0"),
    ],
)
def test_wrong_configuration_is_named(field, value, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(T5_1_1, **{field: value})


def test_model_flops_against_a_count_by_hand():
    # One layer each, J = E = M = 1, V = 1, one activation: every matmul is one multiply-add.
    unit = T5Config(1, 1, 1, 1, 1, 1, 1, mlp_activations=("relu",))
    inputs, targets = 3, 2
    multiply_adds = 6 * inputs  # encoder: query, key, value, out, wi, wo
    multiply_adds += 2 * inputs**2  # encoder: logits and weighted values
    multiply_adds += 8 * targets + 2 * inputs  # decoder: 4 self, 2 cross, 2 mlp; cross key, value
    multiply_adds += 2 * targets**2 + 2 * targets * inputs
    multiply_adds += targets  # output logits
    assert model_flops(unit, inputs, targets) == 6 * multiply_adds


# --- forward pass -------------------------------------------------------------------------------


def test_padding_and_the_future_are_invisible():
    config, params = T5_1_1, _params(T5_1_1)
    inputs, targets = _tokens(0, 2, 9), _tokens(1, 2, 7)
    logits = _logits(config, params, inputs, _shift_right(targets))
    padded = _logits(config, params, np.pad(inputs, ((0, 0), (0, 4))), _shift_right(targets))
    np.testing.assert_allclose(padded, logits, rtol=0, atol=1e-5)
    changed = targets.copy()
    changed[:, 4] = 5  # seen by position 5 and later only
    later = _logits(config, params, inputs, _shift_right(changed))
    np.testing.assert_allclose(later[:, :5], logits[:, :5], rtol=0, atol=1e-5)
    assert np.abs(later[:, 5:] - logits[:, 5:]).max() > 1e-2


def test_a_row_of_padding_gives_no_nan(both):
    config, params = both
    zeros = np.zeros((1, 6), np.int32)

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        hidden = Transformer(config).apply({"params": params}, zeros, zeros, method="hidden")
        kernel, tied = output_kernel(config, params), config.logits_via_embedding
        return cross_entropy(hidden, kernel, zeros, zeros, tied=tied)[0]

    value, grads = loss(params)
    assert value == 0.0
    assert all(np.all(np.asarray(g) == 0.0) for g in jax.tree.leaves(grads))


def _pack(rows, length):
    """Puts (inputs, targets) pairs into one row each side; returns the model's four arrays."""
    sides = []
    for side in (0, 1):
        tokens, segments = np.zeros((1, length), np.int32), np.zeros((1, length), np.int32)
        start = 0
        for number, row in enumerate(rows, start=1):
            end = start + len(row[side])
            tokens[0, start:end], segments[0, start:end] = row[side], number
            start = end
        sides.append((tokens, segments))
    (inputs, input_segments), (targets, target_segments) = sides
    new_segment = np.diff(target_segments, prepend=0) != 0
    shifted = np.where(new_segment, 0, _shift_right(targets))
    return inputs, shifted, input_segments, target_segments


def test_a_packed_row_equals_its_separate_rows():
    config, params = T5_1_1, _params(T5_1_1)
    rows = [(_tokens(i, 5 + i), _tokens(10 + i, 7 - i)) for i in range(3)]
    inputs, shifted, input_segments, target_segments = _pack(rows, 24)
    packed = _logits(config, params, inputs, shifted, input_segments, target_segments)
    padded = [np.stack([np.pad(row[side], (0, 7 - len(row[side]))) for row in rows])
              for side in (0, 1)]  # fmt: skip
    alone = _logits(config, params, padded[0], _shift_right(padded[1]))
    for number, (_, targets) in enumerate(rows):
        np.testing.assert_allclose(
            packed[0][target_segments[0] == number + 1], alone[number, : len(targets)],
            rtol=0, atol=2e-5,
        )  # fmt: skip


def test_segment_ids_of_one_side_only_are_refused():
    tokens = _tokens(0, 1, 4)
    with pytest.raises(ValueError, match="both"):
        jax.eval_shape(
            lambda: Transformer(T5_1_1).init(jax.random.key(0), tokens, tokens, tokens, None)
        )


def test_a_parameter_of_another_shape_is_named():
    wide = Transformer(dataclasses.replace(T5_1_1, mlp_dim=64))
    wrong = r"parameter encoder/layers_0/mlp/wi_0/kernel has the shape \(32, 48\), not \(32, 64\)"
    with pytest.raises(ValueError, match=wrong):
        jax.eval_shape(wide.apply, {"params": _params(T5_1_1)}, *_rows())


def test_bfloat16_is_close_to_float32(both):
    config, params = both
    low = dataclasses.replace(config, dtype="bfloat16")
    exact, rounded = (_logits(c, params, *_rows()) for c in (config, low))
    assert rounded.dtype == jnp.float32 and not np.array_equal(rounded, exact)
    # bfloat16 keeps 8 bits: one rounding is 2^-9 = 0.002, and some ten of them follow in a row.
    error = np.sqrt(np.mean((rounded - exact) ** 2) / np.mean(np.square(exact)))
    assert error < 0.02


def test_hand_written_gradients_equal_the_derived_ones():
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        rng.normal(size=s).astype(np.float32) for s in ((3, 5, 8), (8, 6), (3, 5, 6))
    )
    hand, derived = (
        jax.jit(jax.grad(lambda x, k, f=f: jnp.sum(weight * f(x, k) ** 2), (0, 1)))(x, kernel)
        for f in (matmul, jnp.dot)
    )
    for ours, theirs in zip(hand, derived, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    bias = weight[..., 0]  # repeated over a batch of 4 and weighted differently in each row
    rows = np.arange(1.0, 5.0, dtype=np.float32)[:, None, None, None]
    hand = jax.jit(jax.grad(lambda b: jnp.sum(rows * repeat_over_batch(b[None], 4) ** 2)))(bias)
    np.testing.assert_allclose(hand, 2 * rows.sum() * bias, rtol=1e-6)


def test_kernel_gradients_of_bfloat16_are_summed_in_float32():
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(64, 100, n)), jnp.bfloat16) for n in (8, 6))
    kernel = jnp.zeros((8, 6))
    dkernel = jax.vjp(matmul, x, kernel)[1](dy)[1]
    exact = np.einsum("bti,bto->io", np.asarray(x, np.float64), np.asarray(dy, np.float64))
    assert dkernel.dtype == jnp.float32
    np.testing.assert_allclose(dkernel, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def test_dropout_depends_on_its_key_alone():
    config, params = T5_1_1, _params(T5_1_1)

    def run(seed, config=config):
        keys = jax.random.split(jax.random.key(seed), 2)
        return _logits(config, params, *_rows(), dropout_keys=keys)

    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).max() > 1e-2
    clean = _logits(config, params, *_rows())
    assert np.abs(run(0) - clean).max() > 1e-2
    without = run(0, dataclasses.replace(config, dropout_rate=0.0))
    np.testing.assert_allclose(without, clean, rtol=0, atol=1e-5)


def test_dropout_draws_one_mask_for_all_positions():
    # One token repeated: positions differ only by relative bias, so with that bias zero all
    # positions of a row stay equal exactly when every mask is shared along the length.
    config = dataclasses.replace(T5_1_1, dropout_rate=0.5)
    params = dict(_params(T5_1_1))
    for stack in ("encoder", "decoder"):
        params[stack] = {**params[stack], "relpos_bias": {"rel_embedding": jnp.zeros((4, 32))}}
    tokens = np.full((2, 6), 7, np.int32)

    @jax.jit
    def decode(variables):
        encoded = Transformer(config).apply(variables, tokens, method="encode")
        return Transformer(config).apply(
            variables,
            encoded,
            tokens,
            tokens,
            dropout_keys=jax.random.split(jax.random.key(3), 2),
            method="decode",
        )

    hidden = decode({"params": params})
    dropped = np.asarray(hidden) == 0.0
    assert dropped.any() and (dropped == dropped[:, :1]).all()
    assert (dropped[0] != dropped[1]).any()


def test_a_row_is_dropped_the_same_whatever_rows_stand_beside_it():
    config, params = T5_1_1, _params(T5_1_1)
    inputs, shifted = _rows(4)
    keys = jax.random.split(jax.random.key(0), 4)
    together = _logits(config, params, inputs, shifted, dropout_keys=keys)
    odd = _logits(config, params, inputs[1::2], shifted[1::2], dropout_keys=keys[1::2])
    np.testing.assert_allclose(odd, together[1::2], rtol=0, atol=1e-5)
    clean = _logits(config, params, inputs[:2], shifted[:2])
    assert np.abs(together[0] - clean[0]).max() > 1e-2


# --- scanned layers and rematerialisation ---------------------------------------------------------


def test_scanned_layers_start_and_drop_as_unrolled_ones_do(initialised):
    config, params = initialised
    stacked = init_params(_scan(config), jax.random.key(5))
    back, wanted = (flatten_dict(p, sep="/") for p in (unstack_layers(stacked), params))
    assert back.keys() == wanted.keys()
    assert all(np.array_equal(back[name], wanted[name]) for name in wanted)
    assert not np.array_equal(*(wanted[f"decoder/layers_{i}/mlp/wo/kernel"] for i in range(2)))
    keys = jax.random.split(jax.random.key(0), 2)
    unrolled = _logits(config, params, *_rows(), dropout_keys=keys)
    scanned = _logits(_scan(config), stacked, *_rows(), dropout_keys=keys)
    np.testing.assert_allclose(scanned, unrolled, rtol=0, atol=2e-5)


def test_remat_changes_memory_and_no_number():
    """In the decoder, whose layers hold more; the encoder's go through the same function."""
    plain = dataclasses.replace(T5_1_1, num_decoder_layers=6, scan_layers=True, dropout_rate=0.0)
    params = _params(plain)
    inputs, shifted = _tokens(0, 4, 48), _shift_right(_tokens(1, 4, 48))
    encoded = np.random.default_rng(2).normal(size=(4, 48, 32)).astype(np.float32)

    def gradients(remat):
        model = Transformer(dataclasses.replace(plain, remat=remat))

        def loss(params):
            hidden = model.apply({"params": params}, encoded, inputs, shifted, method="decode")
            return jnp.sum(hidden**2)

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes

    results = {remat: gradients(remat) for remat in ("none", "minimal", "full")}
    grads, memory = results["none"]
    assert results["full"][1] < results["minimal"][1] < memory
    for remat in ("minimal", "full"):
        for ours, theirs in zip(
            jax.tree.leaves(results[remat][0]), jax.tree.leaves(grads), strict=True
        ):
            assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_stacking_and_back():
    config = dataclasses.replace(T5_1_1, num_encoder_layers=3, num_decoder_layers=2)
    params = _params(config)
    stacked = stack_layers(params)
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract_params(_scan(config)))
    assert jax.tree.map(lambda leaf: leaf.shape, stacked) == shapes
    axes = flatten_dict(param_logical_axes(_scan(config)), sep="/")
    assert axes["encoder/layers/mlp/wo/kernel"] == ("layers", "mlp", "embed")
    assert count_parameters(_scan(config)) == count_parameters(config)
    back = flatten_dict(unstack_layers(stacked), sep="/")
    wanted = flatten_dict(params, sep="/")
    assert back.keys() == wanted.keys()
    assert all(np.array_equal(back[name], wanted[name]) for name in wanted)


def _scan(config):
    return dataclasses.replace(config, scan_layers=True)


def test_an_unknown_remat_is_named():
    with pytest.raises(UserError, match=r"remat is 'ful'; did you mean 'full'"):
        dataclasses.replace(T5_1_1, remat="ful")
