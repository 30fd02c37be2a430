"""What the layers of the network are made of: attention, its bias by distance, and the MLP.

Axes in array names are those of network.py.
"""

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from t5scaling.model import attention
from t5scaling.model.config import T5Config
from t5scaling.model.layers import (
    ACTIVATIONS,
    RELPOS_BUCKETS,
    Dense,
    Noise,
    constrain,
    dropout,
    parameter,
    placement,
    relative_position_bucket,
    variance_scaling,
)


class RelativePositionBias(nn.Module):
    """Learned attention bias by bucketed distance, shared by all layers of a stack."""

    config: T5Config
    bidirectional: bool

    def setup(self) -> None:
        init = variance_scaling(1.0, "fan_avg", "uniform")
        axes, shape = ("heads", "relpos_buckets"), (self.config.num_heads, RELPOS_BUCKETS)
        self.rel_embedding = parameter(self, "rel_embedding", init, axes, shape)

    def __call__(self, query_len: int, key_len: int) -> jax.Array:
        """(H, query_len+key_len-1) float32; column c holds distance c - (query_len-1)."""
        distance = np.arange(query_len + key_len - 1) - (query_len - 1)
        buckets = relative_position_bucket(distance, bidirectional=self.bidirectional)
        # A product, not an index: the gradient of an index adds in no fixed order on a GPU.
        one_hot = jnp.asarray(buckets == np.arange(RELPOS_BUCKETS)[:, None], jnp.float32)
        return jnp.dot(self.rel_embedding, one_hot, precision=jax.lax.Precision.HIGHEST)


class Attention(nn.Module):
    """Multi-head attention; 1/sqrt(D) is folded into the query's initialiser, as in T5."""

    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        joined = cfg.num_heads * cfg.head_dim

        def projection(features: int, axes: tuple[str, str], scale: float = 1.0) -> Dense:
            return Dense(features, axes, cfg.dtype, scale=scale, distribution="normal")

        self.query = projection(joined, ("embed", "joined_kv"), scale=1.0 / cfg.head_dim)
        self.key = projection(joined, ("embed", "joined_kv"))
        self.value = projection(joined, ("embed", "joined_kv"))
        self.out = projection(cfg.emb_dim, ("joined_kv", "embed"))

    def _split_heads(self, x_BxTxJ: jax.Array) -> jax.Array:
        x = x_BxTxJ.reshape(*x_BxTxJ.shape[:-1], self.config.num_heads, self.config.head_dim)
        return constrain(x, "batch", "activation_length", "activation_heads", "activation_kv")

    def keys_values(self, x_BxSxE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(B, S, H, D) each."""
        return self._split_heads(self.key(x_BxSxE)), self._split_heads(self.value(x_BxSxE))

    def __call__(
        self,
        x_BxTxE: jax.Array,
        k_BxSxHxD: jax.Array,
        v_BxSxHxD: jax.Array,
        shared: attention.Shared,
        noise: Noise | None,
        site: int,
    ) -> jax.Array:
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

    def step(
        self, x_BxKxE: jax.Array, k_BxHxDxN: jax.Array, v_BxHxNxD: jax.Array, bias: jax.Array
    ) -> jax.Array:
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
    def __call__(self, x_BxTxE: jax.Array, noise: Noise | None, site: int) -> jax.Array:
        cfg = self.config

        def dense(features: int, axes: tuple[str, str], name: str) -> Dense:
            return Dense(features, axes, cfg.dtype, name=name)

        branches = []
        for i in range(len(cfg.mlp_activations)):
            name = "wi" if len(cfg.mlp_activations) == 1 else f"wi_{i}"
            h_BxTxM = dense(cfg.mlp_dim, ("embed", "mlp"), name)(x_BxTxE)
            branches.append(constrain(h_BxTxM, "batch", "activation_length", "activation_mlp"))

        def product(*branches: jax.Array) -> jax.Array:
            pairs = zip(cfg.mlp_activations, branches, strict=True)
            return functools.reduce(operator.mul, (ACTIVATIONS[name](h) for name, h in pairs))

        if placement().platform == "gpu":
            # Its intermediate values are bound by memory: cheaper to compute again than to keep.
            product = jax.checkpoint(product)
        h_BxTxM = product(*branches)
        h_BxTxM = dropout(h_BxTxM, cfg.dropout_rate, noise, site)
        return dense(cfg.emb_dim, ("mlp", "embed"), "wo")(h_BxTxM)
