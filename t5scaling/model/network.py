"""T5 encoder-decoder (Raffel et al. 2020, arXiv 1910.10683), with T5X's parameter names.

T5 1.0 is `mlp_activations=("relu",), logits_via_embedding=True`; T5 1.1 is
`mlp_activations=("gelu", "linear"), logits_via_embedding=False`. Parameters are float32;
activations are float32 or bfloat16; attention logits, softmax, norms and output logits are float32.

Layers are unrolled, with parameters encoder/layers_0, encoder/layers_1, ... as in T5X, or scanned:
one compiled layer with parameters encoder/layers stacked along a leading axis (stacking.py).

Axes in array names: B batch, T query position, S key position, L cache length, K beam, N = L*K
cache slots, E embed, H head, D head dimension, J = H*D, M mlp, V vocabulary.
"""

import contextlib
import dataclasses
import functools
import math
import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5scaling.model import attention
from t5scaling.model.cache import DecoderCache, DecoderContext
from t5scaling.model.config import T5Config
from t5scaling.model.layers import (
    ACTIVATIONS,
    PRODUCT,
    RELPOS_BUCKETS,
    Dense,
    Noise,
    Norm,
    Placement,
    constrain,
    draw_as_unrolled,
    dropout,
    lookup,
    mask_bias,
    noting_initializers,
    placed,
    placement,
    relative_position_bucket,
)


class RelativePositionBias(nn.Module):
    """Learned attention bias by bucketed distance, shared by all layers of a stack."""

    config: T5Config
    bidirectional: bool

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        init = nn.with_logical_partitioning(init, ("heads", "relpos_buckets"))
        shape = (self.config.num_heads, RELPOS_BUCKETS)
        self.rel_embedding = self.param("rel_embedding", init, shape)

    def __call__(self, query_len, key_len):
        """(H, query_len+key_len-1) float32; column c holds distance c - (query_len-1)."""
        distance = np.arange(query_len + key_len - 1) - (query_len - 1)
        buckets = relative_position_bucket(distance, bidirectional=self.bidirectional)
        # A product, not an index: the gradient of an index adds in no fixed order on a GPU.
        one_hot = jnp.asarray(buckets == np.arange(RELPOS_BUCKETS)[:, None], jnp.float32)
        return jnp.dot(self.rel_embedding, one_hot, precision=jax.lax.Precision.HIGHEST)


class Attention(nn.Module):
    """Multi-head attention; 1/sqrt(D) is folded into the query's initialiser, as in T5."""

    config: T5Config

    def setup(self):
        cfg = self.config
        joined = cfg.num_heads * cfg.head_dim

        def projection(features, axes, scale=1.0):
            return Dense(features, axes, cfg.dtype, scale=scale, distribution="normal")

        self.query = projection(joined, ("embed", "joined_kv"), scale=1.0 / cfg.head_dim)
        self.key = projection(joined, ("embed", "joined_kv"))
        self.value = projection(joined, ("embed", "joined_kv"))
        self.out = projection(cfg.emb_dim, ("joined_kv", "embed"))

    def _split_heads(self, x_BxTxJ):
        x = x_BxTxJ.reshape(*x_BxTxJ.shape[:-1], self.config.num_heads, self.config.head_dim)
        return constrain(x, "batch", "activation_length", "activation_heads", "activation_kv")

    def keys_values(self, x_BxSxE):
        """(B, S, H, D) each."""
        return self._split_heads(self.key(x_BxSxE)), self._split_heads(self.value(x_BxSxE))

    def __call__(self, x_BxTxE, k_BxSxHxD, v_BxSxHxD, shared, noise, site):
        """Attends from x to (k, v), with the mask and bias of `shared`. -> (B, T, E)."""
        cfg = self.config
        q_BxTxHxD = self._split_heads(self.query(x_BxTxE))
        rate = cfg.dropout_rate
        if noise is not None and rate > 0.0:
            # T5 drops a key for all queries of a head at once. Dropping the value instead of the
            # weight is the same product with T/D times fewer multiplications.
            _, keys, heads, _ = v_BxSxHxD.shape
            keep = noise.mask(site, (heads, keys, 1), 1.0 - rate).swapaxes(1, 2)
            v_BxSxHxD = jnp.where(keep, v_BxSxHxD / (1.0 - rate), 0.0).astype(v_BxSxHxD.dtype)
        o_BxTxHxD = attention.attend(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, shared)
        return self.out(o_BxTxHxD.reshape(*o_BxTxHxD.shape[:-2], -1))

    def step(self, x_BxKxE, k_BxHxDxN, v_BxHxNxD, bias):
        """`__call__` for the few queries of a decoding step, `bias` (B or 1, H or 1, K or 1, N).

        Neither product then transposes an operand, which for few queries would cost far more than
        the product itself.
        """
        q_BxHxKxD = self._split_heads(self.query(x_BxKxE)).swapaxes(1, 2)
        logits_BxHxKxN = jnp.matmul(q_BxHxKxD, k_BxHxDxN, preferred_element_type=jnp.float32)
        weights_BxHxKxN = jax.nn.softmax(logits_BxHxKxN + bias).astype(self.config.dtype)
        o_BxKxHxD = jnp.matmul(weights_BxHxKxN, v_BxHxNxD).swapaxes(1, 2)
        return self.out(o_BxKxHxD.reshape(*x_BxKxE.shape[:-1], -1))


class Mlp(nn.Module):
    """Feed-forward block: the product of one branch per activation, then a projection to E."""

    config: T5Config

    @nn.compact
    def __call__(self, x_BxTxE, noise, site):
        cfg = self.config

        def dense(features, axes, name):
            return Dense(features, axes, cfg.dtype, name=name)

        branches = []
        for i in range(len(cfg.mlp_activations)):
            name = "wi" if len(cfg.mlp_activations) == 1 else f"wi_{i}"
            h_BxTxM = dense(cfg.mlp_dim, ("embed", "mlp"), name)(x_BxTxE)
            branches.append(constrain(h_BxTxM, "batch", "activation_length", "activation_mlp"))

        def product(*branches):
            pairs = zip(cfg.mlp_activations, branches, strict=True)
            return functools.reduce(operator.mul, (ACTIVATIONS[name](h) for name, h in pairs))

        if placement().platform == "gpu":
            # Its intermediate values are bound by memory: cheaper to compute again than to keep.
            product = jax.checkpoint(product)
        h_BxTxM = product(*branches)
        h_BxTxM = dropout(h_BxTxM, cfg.dropout_rate, noise, site)
        return dense(cfg.emb_dim, ("mlp", "embed"), "wo")(h_BxTxM)


def _constrain_residual(x_BxTxE):
    return constrain(x_BxTxE, "batch", "activation_length", "activation_embed")


def _make_layers(layer_class, config, count):
    """One layer whose parameters will be stacked, or `count` layers."""
    if config.scan_layers:
        return layer_class(config)
    return [layer_class(config) for _ in range(count)]


def _through_layers(config, layers, count, call, x_BxTxE):
    """x after all layers; `call(layer, number, x)` is one layer, its number from 0 on."""

    def one(layer, x_BxTxE, number):
        return call(layer, number, _constrain_residual(x_BxTxE)), None

    # On a GPU the trips of a loop cost more than compiling them all: what the backward pass needs
    # would be copied into stacks, and no kernel would reach across two layers.
    unrolled = not config.scan_layers or placement().platform == "gpu"
    if config.remat != "none":
        policy = None
        if config.remat == "minimal":
            policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
        # Inside a loop nothing can be merged with the forward pass: the barrier is not needed.
        one = nn.remat(one, policy=policy, prevent_cse=unrolled)
    if config.scan_layers:
        scan = nn.scan(
            one,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=count,
            unroll=count if unrolled else 1,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(layers, x_BxTxE, jnp.arange(count, dtype=jnp.uint32))[0]
    for number, layer in enumerate(layers):
        x_BxTxE, _ = one(layer, x_BxTxE, np.uint32(number))
    return x_BxTxE


def _noise(keys_B, layer):
    return None if keys_B is None else Noise(keys_B, layer)


class EncoderLayer(nn.Module):
    config: T5Config

    def setup(self):
        self.pre_attention_layer_norm = Norm(self.config.dtype)
        self.attention = Attention(self.config)
        self.pre_mlp_layer_norm = Norm(self.config.dtype)
        self.mlp = Mlp(self.config)

    def __call__(self, x_BxTxE, shared, noise):
        rate = self.config.dropout_rate
        h = self.pre_attention_layer_norm(x_BxTxE)
        k, v = self.attention.keys_values(h)
        h = self.attention(h, k, v, shared, noise, 0)
        x_BxTxE = x_BxTxE + dropout(h, rate, noise, 1)
        h = self.mlp(self.pre_mlp_layer_norm(x_BxTxE), noise, 2)
        return x_BxTxE + dropout(h, rate, noise, 3)


class DecoderLayer(nn.Module):
    config: T5Config

    def setup(self):
        self.pre_self_attention_layer_norm = Norm(self.config.dtype)
        self.self_attention = Attention(self.config)
        self.pre_cross_attention_layer_norm = Norm(self.config.dtype)
        self.encoder_decoder_attention = Attention(self.config)
        self.pre_mlp_layer_norm = Norm(self.config.dtype)
        self.mlp = Mlp(self.config)

    def __call__(self, x_BxTxE, encoded_BxSxE, shared, cross_shared, noise):
        rate = self.config.dropout_rate
        h = self.pre_self_attention_layer_norm(x_BxTxE)
        k, v = self.self_attention.keys_values(h)
        h = self.self_attention(h, k, v, shared, noise, 0)
        x_BxTxE = x_BxTxE + dropout(h, rate, noise, 1)
        h = self.pre_cross_attention_layer_norm(x_BxTxE)
        cross = self.encoder_decoder_attention
        k, v = cross.keys_values(encoded_BxSxE)
        h = cross(h, k, v, cross_shared, noise, 2)
        x_BxTxE = x_BxTxE + dropout(h, rate, noise, 3)
        h = self.mlp(self.pre_mlp_layer_norm(x_BxTxE), noise, 4)
        return x_BxTxE + dropout(h, rate, noise, 5)

    def step(self, x_BxKxE, cache, index, self_bias, cross, cross_bias):
        """One position of K beams per example; returns (x, cache with position `index` written).

        In both attentions the beams of an example are its queries.
        """
        h_BxKxE = self.pre_self_attention_layer_norm(x_BxKxE)
        k_BxKxHxD, v_BxKxHxD = self.self_attention.keys_values(h_BxKxE)
        slot = index * x_BxKxE.shape[1]
        write = jax.lax.dynamic_update_slice
        keys = write(cache[0], k_BxKxHxD.transpose(0, 2, 3, 1), (0, 0, 0, slot))
        values = write(cache[1], v_BxKxHxD.swapaxes(1, 2), (0, 0, slot, 0))
        x_BxKxE = x_BxKxE + self.self_attention.step(h_BxKxE, keys, values, self_bias)
        h_BxKxE = self.pre_cross_attention_layer_norm(x_BxKxE)
        x_BxKxE = x_BxKxE + self.encoder_decoder_attention.step(h_BxKxE, *cross, cross_bias)
        h_BxKxE = self.mlp(self.pre_mlp_layer_norm(x_BxKxE), None, 0)
        return x_BxKxE + h_BxKxE, (keys, values)

    def cross_keys_values(self, encoded_BxSxE):
        """(B, H, D, S), (B, H, S, D): as the products of `step` want them."""
        k_BxSxHxD, v_BxSxHxD = self.encoder_decoder_attention.keys_values(encoded_BxSxE)
        return k_BxSxHxD.transpose(0, 2, 3, 1), v_BxSxHxD.swapaxes(1, 2)


class Encoder(nn.Module):
    config: T5Config

    def setup(self):
        cfg = self.config
        self.relpos_bias = RelativePositionBias(cfg, bidirectional=True)
        self.layers = _make_layers(EncoderLayer, cfg, cfg.num_encoder_layers)
        self.encoder_norm = Norm(cfg.dtype)

    def __call__(self, x_BxTxE, mask, keys_B):
        length = x_BxTxE.shape[1]
        cfg = self.config
        shared = attention.share(cfg, mask, self.relpos_bias(length, length))
        noise = _noise(keys_B, 0)
        x_BxTxE = dropout(x_BxTxE, cfg.dropout_rate, noise, 0)

        def call(layer, number, x_BxTxE):
            return layer(x_BxTxE, shared, _noise(keys_B, 2 + number))

        x_BxTxE = _through_layers(cfg, self.layers, cfg.num_encoder_layers, call, x_BxTxE)
        # T5X draws this one mask per position, unlike all others.
        return dropout(self.encoder_norm(x_BxTxE), cfg.dropout_rate, noise, 1, per_position=True)


class Decoder(nn.Module):
    config: T5Config

    def setup(self):
        cfg = self.config
        self.relpos_bias = RelativePositionBias(cfg, bidirectional=False)
        self.layers = _make_layers(DecoderLayer, cfg, cfg.num_decoder_layers)
        self.decoder_norm = Norm(cfg.dtype)
        if not cfg.logits_via_embedding:
            self.logits_dense = OutputKernel(cfg)

    def __call__(self, x_BxTxE, encoded_BxSxE, mask, cross_mask, keys_B):
        cfg = self.config
        length = x_BxTxE.shape[1]
        shared = attention.share(cfg, mask, self.relpos_bias(length, length))
        cross_shared = attention.share(cfg, cross_mask)
        noise = _noise(keys_B, 1)
        x_BxTxE = dropout(x_BxTxE, cfg.dropout_rate, noise, 0)

        def call(layer, number, x_BxTxE):
            noise = _noise(keys_B, 2 + cfg.num_encoder_layers + number)
            return layer(x_BxTxE, encoded_BxSxE, shared, cross_shared, noise)

        x_BxTxE = _through_layers(cfg, self.layers, cfg.num_decoder_layers, call, x_BxTxE)
        return dropout(self.decoder_norm(x_BxTxE), cfg.dropout_rate, noise, 1)

    def context(self, encoded_BxSxE, cross_bias, max_decode_len):
        keys, values = zip(*(a.cross_keys_values(encoded_BxSxE) for a in self.layers), strict=True)
        diagonals = self.relpos_bias(max_decode_len, max_decode_len)
        return DecoderContext(keys, values, cross_bias, diagonals)

    def step(self, x_BxKxE, cache, index, visible_BxKxN, context):
        beams, slots = x_BxKxE.shape[1], visible_BxKxN.shape[2]
        length, diagonals = slots // beams, context.relpos_diagonals
        # Row `index` of the bias between positions: distances -index ... L-1-index.
        zero = diagonals.shape[1] // 2
        row_HxL = jax.lax.dynamic_slice_in_dim(diagonals, zero - index, length, axis=1)
        row_HxN = jnp.repeat(row_HxL, beams, axis=1)
        self_bias = row_HxN[None, :, None] + mask_bias(visible_BxKxN)
        written = []
        for i, layer in enumerate(self.layers):
            x_BxKxE, layer_cache = layer.step(
                x_BxKxE,
                (cache.keys[i], cache.values[i]),
                index,
                self_bias,
                (context.cross_keys[i], context.cross_values[i]),
                context.cross_bias,
            )
            written.append(layer_cache)
        return self.decoder_norm(x_BxKxE), DecoderCache(*zip(*written, strict=True))


class OutputKernel(nn.Module):
    """The output projection's parameter, T5X's decoder/logits_dense/kernel (E, V)."""

    config: T5Config

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        init = nn.with_logical_partitioning(init, ("embed", "vocab"))
        self.kernel = self.param("kernel", init, (self.config.emb_dim, self.config.vocab_size))


class TokenEmbedder(nn.Module):
    """Token embeddings by gather."""

    config: T5Config

    def setup(self):
        cfg = self.config
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
        self.embedding = self.param("embedding", init, (cfg.vocab_size, cfg.emb_dim))

    def __call__(self, tokens_BxT):
        x_BxTxE = lookup(self.embedding, tokens_BxT).astype(self.config.dtype)
        # Each device looks up its part of E for all rows: tokens travel, the table does not.
        x_BxTxE = constrain(x_BxTxE, "lookup_batch", "activation_length", "embed")
        return _constrain_residual(x_BxTxE)


class Transformer(nn.Module):
    """The encoder-decoder. Tokens and segment ids are int32; token 0 is padding.

    A packed row holds several examples; segment ids 1, 2, ... name them and 0 is padding. Pass
    segment ids for both sides or for neither. Logits at padded target positions are finite and
    mean nothing: the loss gives them no weight.
    """

    config: T5Config

    def setup(self):
        self.token_embedder = TokenEmbedder(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        encoder_input_tokens,
        decoder_input_tokens,
        encoder_segment_ids=None,
        decoder_segment_ids=None,
        *,
        dropout_keys=None,
    ):
        """(B, S), (B, T) -> logits (B, T, V) float32. `dropout_keys` (B,): a typed key for
        each row; without them nothing is dropped."""
        hidden_BxTxE = self.hidden(
            encoder_input_tokens,
            decoder_input_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            dropout_keys=dropout_keys,
        )
        return self.logits(hidden_BxTxE)

    def hidden(
        self,
        encoder_input_tokens,
        decoder_input_tokens,
        encoder_segment_ids=None,
        decoder_segment_ids=None,
        *,
        dropout_keys=None,
    ):
        """(B, S), (B, T) -> what the output projection multiplies, (B, T, E) activation dtype."""
        encoded_BxSxE = self.encode(
            encoder_input_tokens, encoder_segment_ids, dropout_keys=dropout_keys
        )
        return self.decode(
            encoded_BxSxE,
            encoder_input_tokens,
            decoder_input_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            dropout_keys=dropout_keys,
        )

    def encode(self, encoder_input_tokens, encoder_segment_ids=None, *, dropout_keys=None):
        """(B, S) -> (B, S, E) in the activation dtype."""
        if encoder_segment_ids is None:
            mask = attention.Mask.unpacked(encoder_input_tokens, encoder_input_tokens)
        else:
            segments = encoder_segment_ids
            mask = attention.Mask(segments, segments, causal=False, packed=True)
        x_BxSxE = self.token_embedder(encoder_input_tokens)
        return self.encoder(x_BxSxE, mask, dropout_keys)

    def decode(
        self,
        encoded_BxSxE,
        encoder_input_tokens,
        decoder_input_tokens,
        encoder_segment_ids=None,
        decoder_segment_ids=None,
        *,
        dropout_keys=None,
    ):
        """Teacher-forced decoder: `hidden` from the encoder's output on."""
        if (encoder_segment_ids is None) != (decoder_segment_ids is None):
            raise ValueError("segment ids are needed for both the encoder and the decoder")
        if encoder_segment_ids is None:
            mask = attention.Mask.unpacked(decoder_input_tokens, decoder_input_tokens, causal=True)
            cross_mask = attention.Mask.unpacked(decoder_input_tokens, encoder_input_tokens)
        else:
            segments = decoder_segment_ids
            mask = attention.Mask(segments, segments, causal=True, packed=True)
            cross_mask = attention.Mask(segments, encoder_segment_ids, causal=False, packed=True)
        x_BxTxE = self.decoder(
            self.token_embedder(decoder_input_tokens),
            encoded_BxSxE,
            mask,
            cross_mask,
            dropout_keys,
        )
        return self._scaled(x_BxTxE)

    def _scaled(self, x_BxTxE):
        """Tied logits are divided by sqrt(E)."""
        tied = self.config.logits_via_embedding
        return x_BxTxE / math.sqrt(self.config.emb_dim) if tied else x_BxTxE

    def logits(self, hidden_BxTxE):
        """Output projection, (B, T, V) float32, its operands in the activation dtype."""
        if self.config.logits_via_embedding:
            kernel, product = self.token_embedder.embedding, "...E,VE->...V"
        else:
            kernel, product = self.decoder.logits_dense.kernel, "...E,EV->...V"
        kernel = kernel.astype(self.config.dtype)
        return jnp.einsum(product, hidden_BxTxE, kernel, preferred_element_type=jnp.float32)

    def start_decoding(self, encoder_input_tokens, max_decode_len):
        """Encodes (B, S) and returns (DecoderContext, DecoderCache that has no slots yet).

        Decoding steps through unrolled layers: see `stacking.unrolled`.
        """
        cfg = self.config
        encoded_BxSxE = self.encode(encoder_input_tokens)
        cross_bias = mask_bias((encoder_input_tokens > 0)[:, None])
        context = self.decoder.context(encoded_BxSxE, cross_bias, max_decode_len)
        batch_heads = (len(encoder_input_tokens), cfg.num_heads)
        keys = jnp.zeros((*batch_heads, cfg.head_dim, 0), cfg.dtype)
        values = jnp.zeros((*batch_heads, 0, cfg.head_dim), cfg.dtype)
        layers = cfg.num_decoder_layers
        return context, DecoderCache((keys,) * layers, (values,) * layers)

    def decode_step(self, tokens_BxK, cache, index, visible_BxKxN, context):
        """Feeds the tokens at decoder position `index` (int32 scalar, < L) of every beam.

        `visible_BxKxN` (B or 1 rows, bool) are the slots of the cache that a beam attends to, the
        one that it now writes among them. Returns (logits (B, K, V) float32 of the next token,
        cache).
        """
        x_BxKxE, cache = self.decoder.step(
            self.token_embedder(tokens_BxK), cache, index, visible_BxKxN, context
        )
        return self.logits(self._scaled(x_BxKxE)), cache


def exact_products(config: T5Config) -> contextlib.AbstractContextManager[None]:
    """Inside, matrix products of a float32 model are traced as float32 products.

    By default GPUs round float32 operands to TF32 and TPUs to bfloat16, and a float32 model would
    differ from a CPU's in the third digit.
    """
    if config.dtype == "float32":
        return jax.default_matmul_precision("highest")
    return contextlib.nullcontext()


def _init_boxed(config, rng):
    tokens = jnp.ones((1, 1), jnp.int32)
    initializers = {}
    # What the layers compute is thrown away: traced for a CPU, it is the least to compile.
    with placed(Placement("cpu")), noting_initializers(initializers):
        plain = dataclasses.replace(config, attention="plain", remat="none")
        params = Transformer(plain).init(rng, tokens, tokens)["params"]
    if config.scan_layers:
        draw_as_unrolled(params, initializers, rng)
    return params


@functools.cache
def _boxed_shapes(config):
    return jax.eval_shape(functools.partial(_init_boxed, config), jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: T5Config, rng: jax.Array) -> dict[str, Any]:
    """Random float32 parameters as a nested dict with T5X's names, e.g. encoder/layers_0/mlp/wo."""
    return nn.unbox(_init_boxed(config, rng))


def abstract_params(config: T5Config) -> dict[str, Any]:
    """The tree of `init_params` with, for leaves, jax.ShapeDtypeStruct."""
    return nn.unbox(_boxed_shapes(config))


def param_logical_axes(config: T5Config) -> dict[str, Any]:
    """The tree of `init_params` with, for leaves, tuples of axis names, e.g. ("embed", "mlp").

    Stacked parameters have "layers" first.
    """
    boxed = _boxed_shapes(config)
    return jax.tree.map(lambda p: p.names, boxed, is_leaf=lambda p: isinstance(p, nn.Partitioned))


def output_kernel(config: T5Config, params: Any) -> jax.Array:
    """The output projection's parameter: (V, E) if it is the embedding, else (E, V)."""
    if config.logits_via_embedding:
        return params["token_embedder"]["embedding"]
    return params["decoder"]["logits_dense"]["kernel"]


def count_parameters(config: T5Config) -> int:
    """Number of parameters, without allocating any."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(_boxed_shapes(config)))


def model_flops(config: T5Config, input_len: int, target_len: int) -> float:
    """Model floating-point operations of one training step for one example (multiply-add = 2).

    6 x (matmul parameters) x (positions they act on), forward and backward, plus 12 x T x S x J per
    attention (two products of 2 x T x S x J forward, twice that backward). The embedding gather,
    softmax and norms are not counted; the output logits are. Causal attention is counted in full,
    and nothing is counted twice for rematerialisation (Chowdhery et al. 2022, appendix B).
    """
    joined = config.num_heads * config.head_dim
    projection = config.emb_dim * joined
    mlp = (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim
    encoder_layer = 6 * (4 * projection + mlp) * input_len + 12 * input_len**2 * joined
    decoder_layer = (
        6 * (4 * projection + 2 * projection + mlp) * target_len
        + 6 * 2 * projection * input_len  # cross-attention keys and values
        + 12 * (target_len**2 + target_len * input_len) * joined
    )
    logits = 6 * config.emb_dim * config.vocab_size * target_len
    return float(
        config.num_encoder_layers * encoder_layer
        + config.num_decoder_layers * decoder_layer
        + logits
    )
