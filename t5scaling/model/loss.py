"""Cross-entropy over integer labels, with z-loss and label smoothing as T5X defines them.

Natural logarithms: losses are in nats. No one-hot labels: the label's logit is gathered, and the
gradient is written by hand so that it needs only the logits and one number per position.
"""

import functools
import math

import jax
import jax.numpy as jnp


def _smoothing(label_smoothing, vocab_size):
    """(label's probability, every other token's probability, the smoothed target's entropy)."""
    on = 1.0 - label_smoothing
    off = label_smoothing / (vocab_size - 1)
    entropy = -(on * math.log(on) + (vocab_size - 1) * off * math.log(off + 1e-20))
    return on, off, entropy


def _forward(logits, targets, z_loss, label_smoothing):
    on, off, entropy = _smoothing(label_smoothing, logits.shape[-1])
    log_z = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    # -sum_v p_v log_softmax_v with p = off everywhere and on at the label, which sums to 1.
    loss = log_z - (on - off) * label_logit - entropy
    if off:
        loss -= off * jnp.sum(logits, axis=-1)
    z_part = z_loss * jnp.square(log_z)
    return loss + z_part, z_part, log_z


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _token_losses(logits, targets, z_loss, label_smoothing):
    """(..., V) float32, (...) int32 -> total and z-loss per position (...), float32."""
    total, z_part, _ = _forward(logits, targets, z_loss, label_smoothing)
    return total, z_part


def _token_losses_fwd(logits, targets, z_loss, label_smoothing):
    total, z_part, log_z = _forward(logits, targets, z_loss, label_smoothing)
    return (total, z_part), (logits, targets, log_z)


def _token_losses_bwd(z_loss, label_smoothing, residuals, cotangents):
    logits, targets, log_z = residuals
    on, off, _ = _smoothing(label_smoothing, logits.shape[-1])
    total_bar, z_bar = (c[..., None] for c in cotangents)
    z_slope = 2.0 * z_loss * log_z[..., None]
    softmax = jnp.exp(logits - log_z[..., None])
    label = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == targets[..., None]
    # The scalars of a position are combined first: one multiply-subtract per logit.
    scale = total_bar + (total_bar + z_bar) * z_slope
    return softmax * scale - jnp.where(label, on, off) * total_bar, None


_token_losses.defvjp(_token_losses_fwd, _token_losses_bwd)


def cross_entropy(logits, targets, weights, *, z_loss=1e-4, label_smoothing=0.0):
    """Sums over the weighted positions of a batch.

    Args:
      logits: (B, T, V) float32.
      targets: (B, T) int32 labels.
      weights: (B, T) weight of each position: 1 at target tokens, 0 at padding.
      z_loss: coefficient of log(Z)^2, Z the softmax normaliser; keeps logits from drifting.
      label_smoothing: probability mass in [0, 1) spread evenly over the other tokens. The smoothed
        target's entropy is subtracted, so that a perfect prediction costs 0.

    Returns:
      (total, z_loss_part, weight_sum), float32 scalars: `total` includes the z-loss and is what is
      differentiated; (total - z_loss_part) / weight_sum is nats per target token.
    """
    total, z_part = _token_losses(logits, targets, z_loss, label_smoothing)
    weights = weights.astype(jnp.float32)
    return jnp.sum(total * weights), jnp.sum(z_part * weights), jnp.sum(weights)


def log_likelihood(logits, targets, weights):
    """Log-probability of each row's targets, (B,) float32 nats; arguments as `cross_entropy`."""
    total, _ = _token_losses(logits, targets, 0.0, 0.0)
    return -jnp.sum(total * weights.astype(jnp.float32), axis=-1)
