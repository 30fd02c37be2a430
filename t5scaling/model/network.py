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
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5scaling.model import attention, drawing
from t5scaling.model.blocks import Attention, Mlp, RelativePositionBias
from t5scaling.model.cache import DecoderCache, DecoderContext
from t5scaling.model.config import T5Config
from t5scaling.model.layers import (
    PRODUCT,
    Noise,
    Norm,
    Placement,
    constrain,
    dropout,
    keys_of_sites,
    lookup,
    mask_bias,
    normal,
    noting_initializers,
    parameter,
    placed,
    placement,
    variance_scaling,
)


def _constrain_residual(x_BxTxE: jax.Array) -> jax.Array:
    return constrain(x_BxTxE, "batch", "activation_length", "activation_embed")


def _make_layers(layer_class: type[nn.Module], config: T5Config, count: int) -> Any:
    """One layer whose parameters will be stacked, or `count` layers."""
    if config.scan_layers:
        return layer_class(config)
    return [layer_class(config) for _ in range(count)]


def _through_layers(
    config: T5Config,
    layers: Any,
    count: int,
    call: Callable[[Any, Any, jax.Array], jax.Array],
    x_BxTxE: jax.Array,
) -> jax.Array:
    """x after all layers; `call(layer, number, x)` is one layer, its number from 0 on."""

    def one(layer: nn.Module, x_BxTxE: jax.Array, number: Any) -> tuple[jax.Array, None]:
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


def _layer_keys(keys_B: jax.Array | None, stack: int, first: int, count: int) -> jax.Array | None:
    """Dropout's keys of a stack, which has a number as a layer has, then of its `count` layers,
    numbered from `first` on."""
    if keys_B is None:
        return None
    return keys_of_sites(keys_B, (stack, *range(first, first + count)))


def _noise(keys_LxSxB: jax.Array | None, index: int | jax.Array) -> Noise | None:
    return None if keys_LxSxB is None else Noise(keys_LxSxB[index])


class EncoderLayer(nn.Module):
    config: T5Config

    def setup(self) -> None:
        self.pre_attention_layer_norm = Norm(self.config.dtype)
        self.attention = Attention(self.config)
        self.pre_mlp_layer_norm = Norm(self.config.dtype)
        self.mlp = Mlp(self.config)

    def __call__(
        self, x_BxTxE: jax.Array, shared: attention.Shared, noise: Noise | None
    ) -> jax.Array:
        rate = self.config.dropout_rate
        h = self.pre_attention_layer_norm(x_BxTxE)
        k, v = self.attention.keys_values(h)
        h = self.attention(h, k, v, shared, noise, 0)
        x_BxTxE = x_BxTxE + dropout(h, rate, noise, 1)
        h = self.mlp(self.pre_mlp_layer_norm(x_BxTxE), noise, 2)
        return x_BxTxE + dropout(h, rate, noise, 3)


class DecoderLayer(nn.Module):
    config: T5Config

    def setup(self) -> None:
        self.pre_self_attention_layer_norm = Norm(self.config.dtype)
        self.self_attention = Attention(self.config)
        self.pre_cross_attention_layer_norm = Norm(self.config.dtype)
        self.encoder_decoder_attention = Attention(self.config)
        self.pre_mlp_layer_norm = Norm(self.config.dtype)
        self.mlp = Mlp(self.config)

    def __call__(
        self,
        x_BxTxE: jax.Array,
        encoded_BxSxE: jax.Array,
        shared: attention.Shared,
        cross_shared: attention.Shared,
        noise: Noise | None,
    ) -> jax.Array:
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

    def step(
        self,
        x_BxKxE: jax.Array,
        cache: tuple[jax.Array, jax.Array],
        index: jax.Array,
        self_bias: jax.Array,
        cross: tuple[jax.Array, jax.Array],
        cross_bias: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
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

    def cross_keys_values(self, encoded_BxSxE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, H, D, S), (B, H, S, D): as the products of `step` want them."""
        k_BxSxHxD, v_BxSxHxD = self.encoder_decoder_attention.keys_values(encoded_BxSxE)
        return k_BxSxHxD.transpose(0, 2, 3, 1), v_BxSxHxD.swapaxes(1, 2)


class Encoder(nn.Module):
    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        self.relpos_bias = RelativePositionBias(cfg, bidirectional=True)
        self.layers = _make_layers(EncoderLayer, cfg, cfg.num_encoder_layers)
        self.encoder_norm = Norm(cfg.dtype)

    def __call__(
        self, x_BxTxE: jax.Array, mask: attention.Mask, keys_B: jax.Array | None
    ) -> jax.Array:
        length = x_BxTxE.shape[1]
        cfg = self.config
        shared = attention.share(cfg, mask, self.relpos_bias(length, length))
        keys_LxSxB = _layer_keys(keys_B, 0, 2, cfg.num_encoder_layers)
        x_BxTxE = dropout(x_BxTxE, cfg.dropout_rate, _noise(keys_LxSxB, 0), 0)

        def call(layer: EncoderLayer, number: Any, x_BxTxE: jax.Array) -> jax.Array:
            return layer(x_BxTxE, shared, _noise(keys_LxSxB, 1 + number))

        x_BxTxE = _through_layers(cfg, self.layers, cfg.num_encoder_layers, call, x_BxTxE)
        # T5X draws this one mask per position, unlike all others.
        x_BxTxE = self.encoder_norm(x_BxTxE)
        return dropout(x_BxTxE, cfg.dropout_rate, _noise(keys_LxSxB, 0), 1, per_position=True)


class Decoder(nn.Module):
    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        self.relpos_bias = RelativePositionBias(cfg, bidirectional=False)
        self.layers = _make_layers(DecoderLayer, cfg, cfg.num_decoder_layers)
        self.decoder_norm = Norm(cfg.dtype)
        if not cfg.logits_via_embedding:
            self.logits_dense = OutputKernel(cfg)

    def __call__(
        self,
        x_BxTxE: jax.Array,
        encoded_BxSxE: jax.Array,
        mask: attention.Mask,
        cross_mask: attention.Mask,
        keys_B: jax.Array | None,
    ) -> jax.Array:
        cfg = self.config
        length = x_BxTxE.shape[1]
        shared = attention.share(cfg, mask, self.relpos_bias(length, length))
        cross_shared = attention.share(cfg, cross_mask)
        first = 2 + cfg.num_encoder_layers
        keys_LxSxB = _layer_keys(keys_B, 1, first, cfg.num_decoder_layers)
        x_BxTxE = dropout(x_BxTxE, cfg.dropout_rate, _noise(keys_LxSxB, 0), 0)

        def call(layer: DecoderLayer, number: Any, x_BxTxE: jax.Array) -> jax.Array:
            return layer(
                x_BxTxE, encoded_BxSxE, shared, cross_shared, _noise(keys_LxSxB, 1 + number)
            )

        x_BxTxE = _through_layers(cfg, self.layers, cfg.num_decoder_layers, call, x_BxTxE)
        return dropout(self.decoder_norm(x_BxTxE), cfg.dropout_rate, _noise(keys_LxSxB, 0), 1)

    def context(
        self, encoded_BxSxE: jax.Array, cross_bias: jax.Array, max_decode_len: int
    ) -> DecoderContext:
        keys, values = zip(*(a.cross_keys_values(encoded_BxSxE) for a in self.layers), strict=True)
        diagonals = self.relpos_bias(max_decode_len, max_decode_len)
        return DecoderContext(keys, values, cross_bias, diagonals)

    def step(
        self,
        x_BxKxE: jax.Array,
        cache: DecoderCache,
        index: jax.Array,
        visible_BxKxN: jax.Array,
        context: DecoderContext,
    ) -> tuple[jax.Array, DecoderCache]:
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

    def setup(self) -> None:
        init = variance_scaling(1.0, "fan_in", "truncated_normal")
        shape = (self.config.emb_dim, self.config.vocab_size)
        self.kernel = parameter(self, "kernel", init, ("embed", "vocab"), shape)


class TokenEmbedder(nn.Module):
    """Token embeddings by gather."""

    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        init, shape = normal(1.0), (cfg.vocab_size, cfg.emb_dim)
        self.embedding = parameter(self, "embedding", init, ("vocab", "embed"), shape)

    def __call__(self, tokens_BxT: jax.Array) -> jax.Array:
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

    def setup(self) -> None:
        self.token_embedder = TokenEmbedder(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
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
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
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

    def encode(
        self,
        encoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
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
        encoded_BxSxE: jax.Array,
        encoder_input_tokens: jax.Array,
        decoder_input_tokens: jax.Array,
        encoder_segment_ids: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        *,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Teacher-forced decoder: `hidden` from the encoder's output on."""
        if encoder_segment_ids is None and decoder_segment_ids is None:
            mask = attention.Mask.unpacked(decoder_input_tokens, decoder_input_tokens, causal=True)
            cross_mask = attention.Mask.unpacked(decoder_input_tokens, encoder_input_tokens)
        elif encoder_segment_ids is not None and decoder_segment_ids is not None:
            segments = decoder_segment_ids
            mask = attention.Mask(segments, segments, causal=True, packed=True)
            cross_mask = attention.Mask(segments, encoder_segment_ids, causal=False, packed=True)
        else:
            raise ValueError("segment ids are needed for both the encoder and the decoder")
        x_BxTxE = self.decoder(
            self.token_embedder(decoder_input_tokens),
            encoded_BxSxE,
            mask,
            cross_mask,
            dropout_keys,
        )
        return self._scaled(x_BxTxE)

    def _scaled(self, x_BxTxE: jax.Array) -> jax.Array:
        """Tied logits are divided by sqrt(E)."""
        tied = self.config.logits_via_embedding
        return x_BxTxE / math.sqrt(self.config.emb_dim) if tied else x_BxTxE

    def logits(self, hidden_BxTxE: jax.Array) -> jax.Array:
        """Output projection, (B, T, V) float32, its operands in the activation dtype."""
        if self.config.logits_via_embedding:
            kernel, product = self.token_embedder.embedding, "...E,VE->...V"
        else:
            kernel, product = self.decoder.logits_dense.kernel, "...E,EV->...V"
        kernel = kernel.astype(self.config.dtype)
        return jnp.einsum(product, hidden_BxTxE, kernel, preferred_element_type=jnp.float32)

    def start_decoding(
        self, encoder_input_tokens: jax.Array, max_decode_len: int
    ) -> tuple[DecoderContext, DecoderCache]:
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

    def decode_step(
        self,
        tokens_BxK: jax.Array,
        cache: DecoderCache,
        index: jax.Array,
        visible_BxKxN: jax.Array,
        context: DecoderContext,
    ) -> tuple[jax.Array, DecoderCache]:
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


def _declared(config: T5Config) -> tuple[Any, dict[tuple[str, ...], Callable]]:
    """-> (the tree of the parameters' shapes with axis names, their initialisers by path)."""
    # Models that differ in what no parameter depends on are traced once.
    return _declared_by(
        dataclasses.replace(
            config, dtype="float32", dropout_rate=0.0, attention="plain", remat="none"
        )
    )


@functools.cache
def _declared_by(config: T5Config) -> tuple[Any, dict[tuple[str, ...], Callable]]:
    tokens = jnp.ones((1, 1), jnp.int32)
    initializers = {}
    with placed(Placement("cpu")), noting_initializers(initializers):
        variables = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens, tokens)
    return variables["params"], initializers


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: T5Config, rng: jax.Array) -> dict[str, Any]:
    """Random float32 parameters as a nested dict with T5X's names, e.g. encoder/layers_0/mlp/wo.

    Those that `Transformer.init` draws; stacked layers start as unrolled ones do.
    """
    boxed, initializers = _declared(config)
    return drawing.draw(nn.unbox(boxed), initializers, rng)


def abstract_params(config: T5Config) -> dict[str, Any]:
    """The tree of `init_params` with, for leaves, jax.ShapeDtypeStruct."""
    return nn.unbox(_declared(config)[0])


def param_logical_axes(config: T5Config) -> dict[str, Any]:
    """The tree of `init_params` with, for leaves, tuples of axis names, e.g. ("embed", "mlp").

    Stacked parameters have "layers" first.
    """
    boxed = _declared(config)[0]
    return jax.tree.map(lambda p: p.names, boxed, is_leaf=lambda p: isinstance(p, nn.Partitioned))


def output_kernel(config: T5Config, params: Any) -> jax.Array:
    """The output projection's parameter: (V, E) if it is the embedding, else (E, V)."""
    if config.logits_via_embedding:
        return params["token_embedder"]["embedding"]
    return params["decoder"]["logits_dense"]["kernel"]


def count_parameters(config: T5Config) -> int:
    """Number of parameters, without allocating any."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(abstract_params(config)))


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
