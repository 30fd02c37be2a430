"""Parts of the network that know no configuration: linear maps, norm, buckets, masks.

Gradients are written by hand where the ones that JAX derives are slow; the values are the same.
Axes in array names are those of network.py.
"""

import contextlib
import contextvars
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

RELPOS_BUCKETS = 32
RELPOS_MAX_DISTANCE = 128  # tokens; further keys share the last bucket
PRODUCT = "product"  # name of what remat "minimal" keeps
MASKED = -1e10  # finite, so a row whose keys are all masked stays free of NaN

ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": nn.relu,
    "gelu": nn.gelu,  # the tanh approximation
    "silu": nn.silu,
    "swish": nn.swish,
}


# What holds activations to a mesh while the model is traced: (array, logical axis names) -> array.
_constraint = contextvars.ContextVar("constraint", default=lambda x, axes: x)


@contextlib.contextmanager
def constraints(function):
    """Inside, the model's activations pass through `function`. For use while tracing."""
    token = _constraint.set(function)
    try:
        yield
    finally:
        _constraint.reset(token)


def constrain(x, *axes):
    """Holds an activation, whose axes have these logical names, to the mesh, if there is one."""
    return _constraint.get()(x, axes)


def mask_bias(allowed):
    """(B, T or 1, S) bool -> (B, 1, T or 1, S) float32: 0 where allowed, MASKED elsewhere."""
    return jnp.where(allowed, 0.0, MASKED)[:, None].astype(jnp.float32)


def relative_position_bucket(distance, *, bidirectional):
    """Bucket of each `distance` = key position - query position (tokens), Raffel et al. sec. 2.1.

    Half of the buckets hold one distance each, the others grow logarithmically up to
    RELPOS_MAX_DISTANCE. Computed by NumPy: an accelerator's logarithm may round a distance at a
    bucket's edge (16, 32, ...) into the neighbouring bucket.
    """
    distance = np.asarray(distance, np.int32)
    buckets, offset = RELPOS_BUCKETS, np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = np.where(distance > 0, buckets, 0)
        steps = np.abs(distance)
    else:
        steps = np.maximum(-distance, 0)
    exact = buckets // 2
    ratio = np.maximum(steps, 1).astype(np.float32) / exact + np.finfo(np.float32).eps
    growth = np.log(ratio) / math.log(RELPOS_MAX_DISTANCE / exact) * (buckets - exact)
    coarse = np.minimum(exact + growth.astype(np.int32), buckets - 1)
    return (offset + np.where(steps < exact, steps, coarse)).astype(np.int32)


@jax.custom_vjp
def matmul(x, kernel):
    """(..., I), (I, O) float32 -> (..., O) in x's dtype.

    The gradient of the kernel is written by hand. The transposed one that JAX derives,
    (dy^T x)^T, makes the CPU compiler copy dy transposed, a copy of all logits for the output
    matrix; and in bfloat16 it would round the sum over positions.
    """
    return jnp.dot(x, kernel.astype(x.dtype))


def _matmul_fwd(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _matmul_bwd(residuals, dy):
    x, kernel = residuals
    dx = jax.lax.dot_general(dy, kernel.astype(dy.dtype), (((dy.ndim - 1,), (1,)), ((), ())))
    positions = tuple(range(x.ndim - 1))
    contract = ((positions, positions), ((), ()))
    return dx, jax.lax.dot_general(x, dy, contract, preferred_element_type=jnp.float32)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


class Dense(nn.Module):
    """Linear map without bias; `axes` are the kernel's logical axis names.

    The kernel is drawn with variance `scale` / fan_in.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    scale: float = 1.0
    distribution: str = "truncated_normal"

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(self.scale, "fan_in", self.distribution)
        init = nn.with_logical_partitioning(init, self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        return checkpoint_name(matmul(x.astype(self.dtype), kernel), PRODUCT)


class Norm(nn.Module):
    """Root mean square norm without mean or bias, in float32, returned in the activation dtype."""

    dtype: str

    @nn.compact
    def __call__(self, x_BxTxE):
        init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        scale_E = self.param("scale", init, x_BxTxE.shape[-1:])
        x_BxTxE = x_BxTxE.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x_BxTxE), axis=-1, keepdims=True)
        return (x_BxTxE * jax.lax.rsqrt(mean_square + 1e-6) * scale_E).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def repeat_over_batch(bias_HxTxS, batch):
    """Repeats a bias along a new batch axis.

    Its gradient, a sum over the batch, is taken as a product with ones: the CPU compiler's
    reduction over a leading axis is six times slower.
    """
    return jnp.broadcast_to(bias_HxTxS, (batch, *bias_HxTxS.shape))


def _repeat_fwd(bias_HxTxS, batch):
    return repeat_over_batch(bias_HxTxS, batch), None


def _repeat_bwd(batch, _, grad_BxHxTxS):
    ones = jnp.ones(batch, grad_BxHxTxS.dtype)
    return (jnp.tensordot(ones, grad_BxHxTxS, 1, precision=jax.lax.Precision.HIGHEST),)


repeat_over_batch.defvjp(_repeat_fwd, _repeat_bwd)
