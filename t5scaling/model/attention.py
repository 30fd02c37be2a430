"""Attention between queries and keys, by the backend that suits the device and the rows.

plain   matrix products and a softmax, by XLA: any device, all weights (B, H, T, S) in memory
fused   kernels of our own, without any such array: attention_gpu.py, attention_tpu.py
cudnn   NVIDIA's kernels, for rows that are not packed

Axes in array names: B batch, T query position, S key position, H head, D head dimension,
C = T+S-1 distances from key to query: column c is that of distance c - (T-1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5scaling.errors import UserError
from t5scaling.model.config import T5Config
from t5scaling.model.layers import diagonals_to_matrix, mask_bias, placement, repeat_over_batch

FUSED_HEAD_DIMS = (64, 128)
LEAST_CAPABILITY = 8.0  # CUDA's compute capability that the fused kernels need


class Mask(NamedTuple):
    """Which keys a query sees: those of its own segment, and no later ones if `causal`.

    query_segments_BxT, key_segments_BxS: int32 >= 0. Rows that are not `packed` have queries of
    segment 1, keys of segment 1 and, after them, padding of segment 0.
    """

    query_segments_BxT: jax.Array
    key_segments_BxS: jax.Array
    causal: bool
    packed: bool

    @classmethod
    def unpacked(
        cls, queries_BxT: jax.Array, keys_BxS: jax.Array, *, causal: bool = False
    ) -> "Mask":
        """For rows that are not packed: keys are visible where their token is not 0.

        With `causal`, padding needs no mask of its own: it comes after all tokens.
        """
        keys = jnp.ones_like(keys_BxS) if causal else (keys_BxS > 0).astype(jnp.int32)
        return cls(jnp.ones(queries_BxT.shape, jnp.int32), keys, causal, packed=False)

    def visible(self) -> jax.Array:
        """(B or 1, T or 1, S) bool."""
        if self.packed:
            seen = self.query_segments_BxT[:, :, None] == self.key_segments_BxS[:, None]
        elif self.causal:
            seen = jnp.ones((1, 1, self.key_segments_BxS.shape[1]), bool)
        else:
            seen = (self.key_segments_BxS > 0)[:, None]
        if self.causal:
            queries, keys = self.query_segments_BxT.shape[1], self.key_segments_BxS.shape[1]
            seen &= jnp.tril(jnp.ones((1, queries, keys), bool))
        return seen


class Implementation(NamedTuple):
    """A backend, and a sentence with the reason for it."""

    backend: str
    reason: str


def choose(
    config: T5Config, *, platform: str, packed: bool, capability: float | None = None
) -> Implementation:
    """The backend that a model takes on a device of this platform, for packed rows or others.

    platform, capability: as in layers.Placement; None if it is not known. Raises UserError for a
    backend that `config.attention` names and that cannot run there.
    """
    setting, head_dim, dtype = config.attention, config.head_dim, config.dtype
    if setting != "auto":
        _refuse_impossible(config, platform, packed, capability)
        return Implementation(setting, f"ATTENTION={setting!r} asks for it")
    if platform == "tpu":
        return Implementation(
            "plain",
            "the fused kernels are compiled for TPUs and tested, but their speed there has not "
            "been measured; ATTENTION='fused' takes them, for less memory",
        )
    if platform != "gpu":
        return Implementation("plain", f"there is no fused kernel for this platform, {platform}")
    if capability is not None and capability < LEAST_CAPABILITY:
        return Implementation("plain", _too_old(capability))
    if dtype != "bfloat16":
        return Implementation(
            "plain", f"{dtype} is for exact numbers; the fused kernels are for bfloat16"
        )
    if head_dim not in FUSED_HEAD_DIMS:
        return Implementation(
            "plain", f"the fused kernels are for heads of 64 or 128, not {head_dim}"
        )
    rows = "packed rows" if packed else "rows that are not packed"
    return Implementation("fused", f"bfloat16 and heads of {head_dim} on a GPU, for {rows}")


def _too_old(capability: float) -> str:
    return (
        f"the fused kernels need an NVIDIA GPU of compute capability {LEAST_CAPABILITY} or more; "
        f"this GPU has {capability or 'none'}"
    )


def _refuse_impossible(
    config: T5Config, platform: str, packed: bool, capability: float | None
) -> None:
    """Raises UserError unless the backend that is asked for by name can run."""
    setting, head_dim, problem = config.attention, config.head_dim, None
    if setting == "cudnn":
        if platform != "gpu" or capability == 0:
            problem = "it runs on NVIDIA's GPUs alone"
        elif config.dtype != "bfloat16":
            problem = f"it needs bfloat16, and the model is {config.dtype}"
        elif packed:
            problem = "it has no segments, which packed rows need"
    if setting == "fused":
        if platform == "gpu" and capability is not None and capability < LEAST_CAPABILITY:
            problem = _too_old(capability)
        elif platform == "gpu" and (head_dim < 16 or head_dim & (head_dim - 1)):
            problem = f"on a GPU heads are a power of 2, 16 or more; they are {head_dim}"
        elif platform == "tpu" and head_dim not in FUSED_HEAD_DIMS:
            problem = f"on a TPU heads are 64 or 128; they are {head_dim}"
    if problem:
        raise UserError(f"ATTENTION={setting!r} cannot be used: {problem}; expected 'auto'")


class Shared(NamedTuple):
    """What the attentions of all layers of a stack have in common; see `share`."""

    mask: Mask
    backend: str
    bias: jax.Array | None  # (H, C) for "fused", else (H, T, S); float32


def share(config: T5Config, mask: Mask, bias_HxC: jax.Array | None = None) -> Shared:
    """Chooses the backend and brings the bias by distance into the form that it takes."""
    there = placement()
    if there.on_each_device is None:  # no device could run a kernel on its own rows
        backend = "plain"
    else:
        backend, _ = choose(
            config, platform=there.platform, packed=mask.packed, capability=there.capability
        )
    if bias_HxC is None or backend == "fused":
        return Shared(mask, backend, bias_HxC)
    queries, keys = mask.query_segments_BxT.shape[1], mask.key_segments_BxS.shape[1]
    return Shared(mask, backend, diagonals_to_matrix(bias_HxC, queries, keys))


def attend(
    q_BxTxHxD: jax.Array, k_BxSxHxD: jax.Array, v_BxSxHxD: jax.Array, shared: Shared
) -> jax.Array:
    """softmax(q k + bias) v over the keys that the mask lets each query see: (B, T, H, D).

    q, k and v are float32 or bfloat16; scores and softmax are float32. There is no factor
    1/sqrt(D): T5 has it in the initial queries. The output of a query that sees no key means
    nothing: it is the mean of all values if the backend is "plain", and 0 if it is "fused".
    Differentiable by q, k, v and the bias.
    """
    mask, backend, bias = shared
    if backend == "plain":
        return _plain(q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, bias, mask)
    run = {"fused": _fused, "cudnn": _cudnn}[backend]

    def on_one_device(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        bias: jax.Array | None,
        query_segments: jax.Array,
        key_segments: jax.Array,
    ) -> jax.Array:
        own = mask._replace(query_segments_BxT=query_segments, key_segments_BxS=key_segments)
        return run(q, k, v, bias, own)

    rows = ("batch", None, "activation_heads", None)
    heads = None if bias is None else ("activation_heads", *(None,) * (bias.ndim - 1))
    segments = ("batch", None)
    on_each_device = placement().on_each_device
    assert on_each_device is not None  # else `share` has chosen "plain"
    return on_each_device(on_one_device, (rows, rows, rows, heads, segments, segments), rows)(
        q_BxTxHxD, k_BxSxHxD, v_BxSxHxD, bias, mask.query_segments_BxT, mask.key_segments_BxS
    )


def _plain(
    q_BxTxHxD: jax.Array,
    k_BxSxHxD: jax.Array,
    v_BxSxHxD: jax.Array,
    bias_HxTxS: jax.Array | None,
    mask: Mask,
) -> jax.Array:
    # A head's positions side by side, as the products over them want.
    k_BxHxSxD, v_BxHxSxD = k_BxSxHxD.swapaxes(1, 2), v_BxSxHxD.swapaxes(1, 2)
    scores_BxHxTxS = jnp.einsum(
        "BTHD,BHSD->BHTS", q_BxTxHxD, k_BxHxSxD, preferred_element_type=jnp.float32
    )
    bias = mask_bias(mask.visible())
    if bias_HxTxS is not None:
        bias = repeat_over_batch(bias_HxTxS, len(q_BxTxHxD)) + bias
    weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS + bias).astype(q_BxTxHxD.dtype)
    return jnp.einsum("BHTS,BHSD->BTHD", weights_BxHxTxS, v_BxHxSxD)


def _fused(
    q: jax.Array, k: jax.Array, v: jax.Array, bias_HxC: jax.Array | None, mask: Mask
) -> jax.Array:
    platform = placement().platform
    if platform == "tpu":  # Pallas takes a while to import
        from t5scaling.model import attention_tpu as kernels
    else:
        from t5scaling.model import attention_gpu as kernels
    return kernels.attend(
        q, k, v, bias_HxC, mask.query_segments_BxT, mask.key_segments_BxS,
        causal=mask.causal, packed=mask.packed, interpret=platform == "cpu",
    )  # fmt: skip


def _cudnn(
    q: jax.Array, k: jax.Array, v: jax.Array, bias_HxTxS: jax.Array | None, mask: Mask
) -> jax.Array:
    """cuDNN's flash attention, whose bias is bfloat16 and whose padding is a length."""
    lengths = [
        jnp.sum(segments, axis=1, dtype=jnp.int32)
        for segments in (mask.query_segments_BxT, mask.key_segments_BxS)
    ]
    return jax.nn.dot_product_attention(
        q, k, v,
        None if bias_HxTxS is None else bias_HxTxS[None].astype(q.dtype),
        scale=1.0,
        is_causal=mask.causal,
        query_seq_lengths=lengths[0],
        key_value_seq_lengths=lengths[1],
        implementation="cudnn",
    )  # fmt: skip
