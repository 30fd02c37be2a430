"""Cross-entropy of an output projection, a chunk of positions at a time.

Natural logarithms: losses are in nats. z-loss and label smoothing are T5X's. The logits of a whole
batch are never in memory at once, and never computed twice: when a chunk's logits have been
computed for the loss, their gradient is taken too and multiplied out to the gradients of the
projection's operands, which the backward pass only scales. There are no one-hot labels.

Axes in array names: B batch, T position, C position in a chunk, E embed, V vocabulary.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from t5scaling.model.layers import custom_vjp, placement

_Pair = tuple[jax.Array, jax.Array]


def positions_at_a_time(platform: str, vocab_size: int) -> int:
    """Positions whose logits a device of this platform holds at a time.

    Their logits take 4 * V * positions / (vocabulary's parts) bytes, twice while the gradient is
    taken; and with each chunk the gradient of the kernel is read and written once. A GPU's matrix
    units need more positions to be busy, and it has the memory.
    """
    if platform != "gpu":
        return 256
    return max(256, min(2048, 2**28 // vocab_size // 256 * 256))  # 1 GiB of logits at most


@dataclasses.dataclass(frozen=True)
class Split:
    """How rows and vocabulary are split over the axes of a mesh; no axis serves both.

    Over the axes `shared` of `batch` the parameters are split as well. If the rows of such a group
    have fewer positions than the vocabulary has tokens, they are brought together and the
    vocabulary is split in their stead: less travels, and no device holds the whole kernel.
    """

    mesh: Mesh
    batch: tuple[str, ...]
    vocab: tuple[str, ...]
    shared: tuple[str, ...] = ()

    def parts(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def for_sizes(self, positions: int, vocab_size: int) -> "Split":
        """The split to use, in which `shared` are those of the axes `vocab` that rows have too."""
        within = positions * self.parts(self.shared) // self.parts(self.batch)
        vocab = self.vocab + self.shared
        if within < vocab_size and vocab_size % self.parts(vocab) == 0:
            return dataclasses.replace(self, vocab=vocab)
        return dataclasses.replace(self, shared=())


@dataclasses.dataclass(frozen=True)
class _Settings:
    z_loss: float
    label_smoothing: float
    tied: bool
    chunk_positions: int
    split: Split | None


def cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 1e-4,
    label_smoothing: float = 0.0,
    tied: bool = False,
    chunk_positions: int | None = None,
    split: Split | None = None,
    gradient_weights: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums over the weighted positions of a batch.

    Only `total` has a gradient, by hidden and kernel.

    Args:
      hidden: (B, T, E), float32 or bfloat16: what the projection multiplies. The products take
        their operands in this type and sum in float32.
      kernel: (E, V) float32; (V, E) if `tied`.
      targets: (B, T) int32 labels.
      weights: (B, T) weight of each position: 1 at target tokens, 0 at padding.
      z_loss: coefficient of log(Z)^2, Z the softmax normaliser; keeps logits from drifting.
      label_smoothing: probability mass in [0, 1) spread evenly over the other tokens. The smoothed
        target's entropy is subtracted, so that a perfect prediction costs 0.
      chunk_positions: positions a device takes at a time, by default `positions_at_a_time` of the
        device; the sums do not depend on it but for rounding.
      split: how the arrays are split over a mesh; None on one device.
      gradient_weights: (B, T) weight of each position in the gradient, if it is not `weights`:
        what is learned may weigh tokens in another way than what is measured.

    Returns:
      (total, z_loss_part, weight_sum), float32 scalars: `total` includes the z-loss and is what is
      differentiated; (total - z_loss_part) / weight_sum is nats per target token.
    """
    if chunk_positions is None:
        vocab_size = kernel.shape[0 if tied else 1]
        chunk_positions = positions_at_a_time(placement().platform, vocab_size)
    settings = _Settings(z_loss, label_smoothing, tied, chunk_positions, split)
    weights = weights.astype(jnp.float32)
    both = (weights, weights if gradient_weights is None else gradient_weights)
    total, z_part = _sums(hidden, kernel, targets, both, settings)
    return total, jax.lax.stop_gradient(z_part), jnp.sum(weights)


@custom_vjp(4)
def _sums(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: _Pair, settings: _Settings
) -> _Pair:
    return _on_mesh(hidden, kernel, targets, weights, settings, with_gradients=False)[0]


def _sums_fwd(
    hidden: jax.Array, kernel: jax.Array, targets: jax.Array, weights: _Pair, settings: _Settings
) -> tuple[_Pair, Any]:
    return _on_mesh(hidden, kernel, targets, weights, settings, with_gradients=True)


def _sums_bwd(
    _: _Settings, gradients: _Pair, cotangents: _Pair
) -> tuple[jax.Array, jax.Array, None, None]:
    dhidden, dkernel = gradients
    scale = cotangents[0]
    return (dhidden * scale).astype(dhidden.dtype), dkernel * scale, None, None


_sums.defvjp(_sums_fwd, _sums_bwd)


def _on_mesh(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: _Pair,
    settings: _Settings,
    *,
    with_gradients: bool,
) -> tuple[_Pair, Any]:
    """((total, z part), (gradient by hidden, by kernel) or None); each device does its own rows and
    its own part of the vocabulary, and only sums travel."""
    split = settings.split
    if split is not None:
        split = split.for_sizes(targets.size, kernel.shape[0 if settings.tied else 1])
        settings = dataclasses.replace(settings, split=split)
    own = functools.partial(_over_chunks, settings=settings, with_gradients=with_gradients)
    if split is None:
        return own(hidden, kernel, targets, weights)
    rows = PartitionSpec(split.batch)
    vocab = PartitionSpec(*((split.vocab, None)[:: 1 if settings.tied else -1]))
    sums = (PartitionSpec(), PartitionSpec())
    return jax.shard_map(
        own,
        mesh=split.mesh,
        in_specs=(rows, vocab, rows, rows),
        out_specs=(sums, (rows, vocab) if with_gradients else None),
        check_vma=False,  # it cannot follow the sums below
    )(hidden, kernel, targets, weights)


def _over_chunks(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: _Pair,
    *,
    settings: _Settings,
    with_gradients: bool,
) -> tuple[_Pair, Any]:
    """`_on_mesh` for what one device holds."""
    kernel_dtype, kernel = kernel.dtype, kernel.astype(hidden.dtype)
    at_a_time, shared, vocab, others = settings.chunk_positions, (), (), ()
    if settings.split is not None:
        shared = settings.split.shared
        vocab = tuple(axis for axis in settings.split.vocab if axis not in shared)
        others = tuple(axis for axis in settings.split.batch if axis not in shared)
        at_a_time *= settings.split.parts(shared)  # each has so much less of the vocabulary

    def bring_together(x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, shared, axis=0, tiled=True) if shared else x

    hidden, targets, weights = jax.tree.map(bring_together, (hidden, targets, weights))
    positions = targets.size
    chunks = -(-positions // at_a_time)
    size = -(-positions // chunks)

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(positions, *x.shape[2:])
        padding = ((0, chunks * size - positions), *((0, 0),) * (x.ndim - 1))
        return jnp.pad(x, padding).reshape(chunks, size, *x.shape[1:])

    def one(sums: Any, chunk: Any) -> tuple[Any, Any]:
        totals, dkernel = sums
        hidden_CxE, targets_C, weights_C = chunk
        parts, gradients = _chunk(
            hidden_CxE, targets_C, weights_C, kernel, settings, with_gradients
        )
        totals = tuple(a + b for a, b in zip(totals, parts, strict=True))
        if not with_gradients:
            return (totals, None), None
        dhidden_CxE, dkernel_chunk = gradients
        return (totals, dkernel + dkernel_chunk), dhidden_CxE

    zero = jnp.zeros((), jnp.float32)
    start = ((zero, zero), jnp.zeros(kernel.shape, jnp.float32) if with_gradients else None)
    parts = jax.tree.map(split, (hidden, targets, weights))
    if chunks == 1:
        ((totals, dkernel), dhidden) = one(start, jax.tree.map(lambda x: x[0], parts))
    else:
        ((totals, dkernel), dhidden) = jax.lax.scan(one, start, parts)
    totals = jax.lax.psum(totals, others) if others else totals
    if not with_gradients:
        return totals, None
    dhidden = dhidden.reshape(chunks * size, -1)[:positions].reshape(hidden.shape)
    dhidden = jax.lax.psum(dhidden, vocab) if vocab else dhidden
    if shared:
        dhidden = jax.lax.psum_scatter(dhidden, shared, scatter_dimension=0, tiled=True)
    dkernel = jax.lax.psum(dkernel, others) if others else dkernel
    return totals, (dhidden.astype(hidden.dtype), dkernel.astype(kernel_dtype))


def _chunk(
    hidden_CxE: jax.Array,
    targets_C: jax.Array,
    both_weights_C: _Pair,
    kernel: jax.Array,
    settings: _Settings,
    with_gradients: bool,
) -> tuple[_Pair, Any]:
    """One chunk's ((total, z part), (gradient by hidden (C, E) float32, by kernel) or None)."""
    weights_C, gradient_weights_C = both_weights_C
    vocab_axis, embed_axis = (0, 1) if settings.tied else (1, 0)
    axes = settings.split.vocab if settings.split else ()
    local_vocab = kernel.shape[vocab_axis]
    vocab_size, first = local_vocab, 0
    for axis in axes:
        parts = jax.lax.axis_size(axis)
        first = first * parts + jax.lax.axis_index(axis)
        vocab_size *= parts
    first = first * local_vocab

    def over_vocab(x: jax.Array) -> jax.Array:
        return jax.lax.psum(x, axes) if axes else x

    def product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
        contract = (((a_axis,), (b_axis,)), ((), ()))
        return jax.lax.dot_general(a, b, contract, preferred_element_type=jnp.float32)

    logits_CxV = product(hidden_CxE, kernel, 1, embed_axis)
    highest_C = jnp.max(logits_CxV, axis=1)
    highest_C = jax.lax.pmax(highest_C, axes) if axes else highest_C
    exp_CxV = jnp.exp(logits_CxV - highest_C[:, None])
    normaliser_C = over_vocab(jnp.sum(exp_CxV, axis=1))
    log_z_C = highest_C + jnp.log(normaliser_C)

    label_C = targets_C - first
    label_C = jnp.where((label_C >= 0) & (label_C < local_vocab), label_C, -1)  # -1: not here
    label_logit_C = jnp.take_along_axis(logits_CxV, jnp.maximum(label_C, 0)[:, None], axis=1)[:, 0]
    label_logit_C = over_vocab(jnp.where(label_C >= 0, label_logit_C, 0.0))

    on, off, entropy = _smoothing(settings.label_smoothing, vocab_size)
    # -sum_v p_v log_softmax_v with p = off everywhere and on at the label, which sums to 1.
    loss_C = log_z_C - (on - off) * label_logit_C - entropy
    if off:
        loss_C -= off * over_vocab(jnp.sum(logits_CxV, axis=1))
    z_part_C = settings.z_loss * jnp.square(log_z_C)
    sums = jnp.sum((loss_C + z_part_C) * weights_C), jnp.sum(z_part_C * weights_C)
    if not with_gradients:
        return sums, None

    # The scalars of a position are combined first: one multiply-subtract per logit.
    scale_C = gradient_weights_C * (1.0 + 2.0 * settings.z_loss * log_z_C) / normaliser_C
    at_label = jax.lax.broadcasted_iota(jnp.int32, logits_CxV.shape, 1) == label_C[:, None]
    label_part = jnp.where(
        at_label, (on * gradient_weights_C)[:, None], (off * gradient_weights_C)[:, None]
    )
    dlogits_CxV = (exp_CxV * scale_C[:, None] - label_part).astype(hidden_CxE.dtype)
    dhidden_CxE = product(dlogits_CxV, kernel, 1, vocab_axis)
    operands = (dlogits_CxV, hidden_CxE) if settings.tied else (hidden_CxE, dlogits_CxV)
    return sums, (dhidden_CxE, product(*operands, 0, 0))


def _smoothing(label_smoothing: float, vocab_size: int) -> tuple[float, float, float]:
    """(label's probability, every other token's probability, the smoothed target's entropy)."""
    on = 1.0 - label_smoothing
    off = label_smoothing / (vocab_size - 1)
    entropy = -(on * math.log(on) + (vocab_size - 1) * off * math.log(off + 1e-20))
    return on, off, entropy


def shares_of_sequences(weights: jax.Array, segment_ids: jax.Array | None = None) -> jax.Array:
    """Each position's weight as a share of its sequence's, (B, T) float32: 0 where it has none.

    The shares of a sequence with targets sum to 1, however long it is. A sequence is a row or, of a
    packed row, a segment. weights (B, T); segment_ids (B, T) int32.
    """
    weights = weights.astype(jnp.float32)
    if segment_ids is None:
        sums = jnp.sum(weights, axis=1, keepdims=True)
    else:  # a comparison of all pairs, whose sum has a fixed order on every device
        same_BxTxT = segment_ids[:, :, None] == segment_ids[:, None, :]
        sums = jnp.sum(jnp.where(same_BxTxT, weights[:, None, :], 0.0), axis=2)
    return jnp.where(weights > 0, weights / jnp.where(sums > 0, sums, 1.0), 0.0)


def log_likelihood(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Log-probability of each row's targets, (B,) float32 nats.

    logits (B, T, V) float32, targets (B, T) int32, weights (B, T).
    """
    label_logit_BxT = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    log_probability_BxT = label_logit_BxT - jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(log_probability_BxT * weights.astype(jnp.float32), axis=-1)
