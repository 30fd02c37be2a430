"""Parts of the network that know no configuration: linear maps, norm, buckets, masks.

Gradients are written by hand where the ones that JAX derives are slow; the values are the same.
Axes in array names are those of network.py.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

RELPOS_BUCKETS = 32
RELPOS_MAX_DISTANCE = 128  # tokens; further keys share the last bucket
PRODUCT = "product"  # name of what remat "minimal" keeps
SITES = 6  # where a layer drops, at most
MASKED = -1e10  # finite, so a row whose keys are all masked stays free of NaN

Result = TypeVar("Result")

ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": nn.relu,
    "gelu": nn.gelu,  # the tanh approximation
    "silu": nn.silu,
    "swish": nn.swish,
}


class Placement(NamedTuple):
    """Where a model is traced for. Without a mesh: JAX's own default device.

    platform: of the devices, "cpu", "gpu" or "tpu".
    capability: see `compute_capability`.
    constrain: holds an activation to the mesh; (array, logical axis names) -> array.
    on_each_device: (function of arrays, logical axis names of each argument or None for an argument
        that is None, names of the result) -> function of global arrays, in which each device calls
        it on what it holds. None if there are several devices and no mesh to split arrays over.
    """

    platform: str
    capability: float | None = None
    constrain: Callable = lambda x, axes: x
    on_each_device: Callable | None = lambda function, in_axes, out_axes: function


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement")


@contextlib.contextmanager
def placed(there: Placement) -> Iterator[None]:
    """Inside the block, the model is traced for devices of this placement."""
    token = _placement.set(there)
    try:
        yield
    finally:
        _placement.reset(token)


def placement() -> Placement:
    there = _placement.get(None)
    if there is None:
        there = Placement(jax.default_backend(), compute_capability(jax.local_devices()[0]))
        if jax.device_count() > 1:
            there = there._replace(on_each_device=None)
    return there


def compute_capability(device: Any) -> float | None:
    """CUDA's compute capability, such as 9.0; 0 for a GPU of another vendor, None for a device that
    is not a GPU."""
    capability = getattr(device, "compute_capability", None)
    try:
        return capability and float(capability)
    except ValueError:  # AMD's say gfx90a
        return 0.0


_initializers: contextvars.ContextVar[dict | None] = contextvars.ContextVar("initializers")


@contextlib.contextmanager
def noting_initializers(noted: dict[tuple[str, ...], Callable]) -> Iterator[None]:
    """Inside the block, each parameter that a traced model declares stores its initialiser under
    its path."""
    token = _initializers.set(noted)
    try:
        yield
    finally:
        _initializers.reset(token)


# One object for each distribution: by it, equal initialisers are known to be equal.
variance_scaling = functools.cache(nn.initializers.variance_scaling)
normal = functools.cache(nn.initializers.normal)


def keys_of_sites(keys_B: jax.Array, layers: Sequence[int]) -> jax.Array:
    """(L, S, B) typed keys of all sites in `layers`, whose numbers are unique in the model.

    They are folded together, as each call is a loop of its own to compile.
    """
    sites_S = np.arange(SITES, dtype=np.uint32)
    numbers_LxS = np.asarray(layers, np.uint32)[:, None] * 16 + sites_S
    of_rows = jax.vmap(jax.random.fold_in, (0, None))
    return jax.vmap(jax.vmap(of_rows, (None, 0)), (None, 0))(keys_B, numbers_LxS)


class Noise(NamedTuple):
    """Where the masks of one layer's dropout come from: a key for each site in it and each row.

    A mask depends on its row's key, its layer and the site in it, and on nothing else: not on the
    rows that are computed together, nor on how layers are compiled.
    """

    keys_SxB: jax.Array  # typed keys

    def mask(self, site: int, shape: tuple[int, ...], keep: float) -> jax.Array:
        """(B, *shape) bool, true with the probability `keep`; `site` is below SITES."""
        if site >= SITES:  # JAX would take the last key in silence
            raise ValueError(f"dropout's site {site} in a layer; there are {SITES} of them")
        draw = functools.partial(jax.random.bits, shape=shape, dtype=jnp.uint32)
        bits = jax.vmap(draw)(self.keys_SxB[site])
        # As `jax.random.bernoulli` decides, which first makes numbers in [0, 1) of these 23 bits.
        return bits >> 9 < math.ceil(float(np.float32(keep)) * 2**23)


def dropout(
    x_BxTxE: jax.Array, rate: float, noise: Noise | None, site: int, per_position: bool = False
) -> jax.Array:
    """Dropout with one mask for all positions of a row, as T5 trains, or with one for each.

    Nothing is dropped where `noise` is None.
    """
    if noise is None or rate == 0.0:
        return x_BxTxE
    length, features = x_BxTxE.shape[1:]
    keep = noise.mask(site, (length if per_position else 1, features), 1.0 - rate)
    return jnp.where(keep, x_BxTxE / (1.0 - rate), 0.0).astype(x_BxTxE.dtype)


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Constrains an activation, whose axes have these logical names, to the mesh, if there is
    one."""
    return placement().constrain(x, axes)


def mask_bias(allowed: jax.Array) -> jax.Array:
    """(B, T or 1, S) bool -> (B, 1, T or 1, S) float32: 0 where allowed, MASKED elsewhere."""
    return jnp.where(allowed, 0.0, MASKED)[:, None].astype(jnp.float32)


def relative_position_bucket(distance: np.ndarray, *, bidirectional: bool) -> np.ndarray:
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


def custom_vjp(
    *constants: int,
) -> Callable[[Callable[..., Result]], jax.custom_vjp[Result]]:
    """`jax.custom_vjp` as a decorator; the arguments at the places `constants` are no arrays.

    It keeps the type of what the function returns, which `functools.partial` loses.
    """

    def decorate(function: Callable[..., Result]) -> jax.custom_vjp[Result]:
        return cast("jax.custom_vjp[Result]", jax.custom_vjp(function, nondiff_argnums=constants))

    return decorate


@custom_vjp()
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., I), (I, O) float32 -> (..., O) in x's dtype.

    The gradient of the kernel is written by hand. The transposed one that JAX derives,
    (dy^T x)^T, makes the CPU compiler copy dy transposed, a copy of all logits for the output
    matrix; and in bfloat16 it would round the sum over positions.
    """
    return jnp.dot(x, kernel.astype(x.dtype))


def _matmul_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return matmul(x, kernel), (x, kernel)


def _matmul_bwd(residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    dx = jax.lax.dot_general(dy, kernel.astype(dy.dtype), (((dy.ndim - 1,), (1,)), ((), ())))
    positions = tuple(range(x.ndim - 1))
    contract = ((positions, positions), ((), ()))
    return dx, jax.lax.dot_general(x, dy, contract, preferred_element_type=jnp.float32)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def parameter(
    module: nn.Module, name: str, init: Callable, axes: tuple[str, ...], shape: tuple[int, ...]
) -> jax.Array:
    """A module's parameter with these logical axis names; `init` draws it where it is not given.

    A given one is taken without Flax, which would trace the initialiser each time to know its
    shape: a fifth of the time in which a model is traced.
    """
    if not module.has_variable("params", name):
        noted = _initializers.get(None)
        if noted is not None:
            noted[*module.path, name] = init
        boxed: Any = nn.with_logical_partitioning(init, axes)  # a module gets the array itself
        return module.param(name, boxed, shape)
    given: Any = nn.unbox(module.get_variable("params", name))
    if jnp.shape(given) != shape:
        path = "/".join((*module.path, name))
        raise ValueError(f"the parameter {path} has the shape {jnp.shape(given)}, not {shape}")
    return given


class Dense(nn.Module):
    """Linear map without bias; `axes` are the kernel's logical axis names.

    The kernel is drawn with variance `scale` / fan_in.
    """

    features: int
    axes: tuple[str, str]
    dtype: str
    scale: float = 1.0
    distribution: Literal["truncated_normal", "normal"] = "truncated_normal"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = variance_scaling(self.scale, "fan_in", self.distribution)
        kernel = parameter(self, "kernel", init, self.axes, (x.shape[-1], self.features))
        return checkpoint_name(matmul(x.astype(self.dtype), kernel), PRODUCT)


@custom_vjp(2)
def rms_norm(x: jax.Array, scale_E: jax.Array, dtype: str) -> jax.Array:
    """x (..., E) over the root of its mean square, times scale: in float32, returned as `dtype`.

    Its gradient is written by hand to keep x in its own dtype for the backward pass, where the one
    that JAX derives keeps float32 copies.
    """
    x = x.astype(jnp.float32)
    return (x * _inverse_rms(x) * scale_E).astype(dtype)


def _inverse_rms(x: jax.Array) -> jax.Array:
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _rms_norm_fwd(x: jax.Array, scale_E: jax.Array, dtype: str) -> tuple[jax.Array, Any]:
    return rms_norm(x, scale_E, dtype), (x, scale_E)


def _rms_norm_bwd(dtype: str, residuals: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, scale_E = residuals
    dtype, x, dy = x.dtype, x.astype(jnp.float32), dy.astype(jnp.float32)
    inverse = _inverse_rms(x)
    normed = x * inverse
    dscale_E = jnp.sum(dy * normed, axis=tuple(range(x.ndim - 1)))
    dnormed = dy * scale_E
    dx = (dnormed - normed * jnp.mean(dnormed * normed, axis=-1, keepdims=True)) * inverse
    return dx.astype(dtype), dscale_E


rms_norm.defvjp(_rms_norm_fwd, _rms_norm_bwd)


class Norm(nn.Module):
    """Root mean square norm without mean or bias; see `rms_norm`."""

    dtype: str

    @nn.compact
    def __call__(self, x_BxTxE: jax.Array) -> jax.Array:
        scale_E = parameter(self, "scale", nn.initializers.ones, ("embed",), x_BxTxE.shape[-1:])
        return rms_norm(x_BxTxE, scale_E, self.dtype)


@custom_vjp(1)
def repeat_over_batch(bias_HxTxS: jax.Array, batch: int) -> jax.Array:
    """Repeats a bias along a new batch axis.

    Its gradient, a sum over the batch, is taken as a product with ones: the CPU compiler's
    reduction over a leading axis is six times slower.
    """
    return jnp.broadcast_to(bias_HxTxS, (batch, *bias_HxTxS.shape))


def _repeat_fwd(bias_HxTxS: jax.Array, batch: int) -> tuple[jax.Array, None]:
    return repeat_over_batch(bias_HxTxS, batch), None


def _repeat_bwd(batch: int, _: None, grad_BxHxTxS: jax.Array) -> tuple[jax.Array]:
    ones = jnp.ones(batch, grad_BxHxTxS.dtype)
    return (jnp.tensordot(ones, grad_BxHxTxS, 1, precision=jax.lax.Precision.HIGHEST),)


repeat_over_batch.defvjp(_repeat_fwd, _repeat_bwd)


@custom_vjp(1, 2)
def diagonals_to_matrix(diagonals_HxC: jax.Array, queries: int, keys: int) -> jax.Array:
    """(H, queries+keys-1), by distance from key to query -> (H, queries, keys).

    Its gradient, sums along diagonals, shifts each row and adds the rows up: the scatter that JAX
    derives has a GPU's threads add in the order in which they come.
    """
    column_TxS = np.arange(keys)[None] - np.arange(queries)[:, None] + queries - 1
    return diagonals_HxC[:, column_TxS]


def _diagonals_fwd(diagonals_HxC: jax.Array, queries: int, keys: int) -> tuple[jax.Array, None]:
    return diagonals_to_matrix(diagonals_HxC, queries, keys), None


def _diagonals_bwd(queries: int, keys: int, _: None, grad_HxTxS: jax.Array) -> tuple[jax.Array]:
    return (sums_of_diagonals(grad_HxTxS),)


diagonals_to_matrix.defvjp(_diagonals_fwd, _diagonals_bwd)


def sums_of_diagonals(x_HxTxS: jax.Array) -> jax.Array:
    """(H, T, S) -> (H, T+S-1): column c is the sum of where key - query = c - (T-1)."""
    heads, queries, keys = x_HxTxS.shape
    columns = queries + keys - 1
    # Rows upside down and one column too wide: read as rows of the right width, each begins one
    # further to the right than the one above it.
    wide = jnp.pad(x_HxTxS[:, ::-1], ((0, 0), (0, 0), (0, queries)))
    shifted = wide.reshape(heads, -1)[:, : queries * columns].reshape(heads, queries, columns)
    return jnp.sum(shifted, axis=1)


def lookup(embedding_VxE: jax.Array, tokens_BxT: jax.Array) -> jax.Array:
    """Rows of the table, (B, T, E) in its dtype.

    On a GPU its gradient is written by hand: the one that JAX derives has threads add to a row in
    the order in which they come, so that no two runs would be equal.
    """
    if placement().platform != "gpu":
        return embedding_VxE[tokens_BxT]
    return _lookup(embedding_VxE, tokens_BxT)


@custom_vjp()
def _lookup(embedding_VxE: jax.Array, tokens_BxT: jax.Array) -> jax.Array:
    return embedding_VxE[tokens_BxT]


def _lookup_fwd(embedding_VxE: jax.Array, tokens_BxT: jax.Array) -> tuple[jax.Array, Any]:
    return _lookup(embedding_VxE, tokens_BxT), (tokens_BxT, len(embedding_VxE))


def _lookup_bwd(residuals: Any, dy_BxTxE: jax.Array) -> tuple[jax.Array, None]:
    tokens_BxT, vocab_size = residuals

    def own_rows(tokens_BxT: jax.Array, dy_BxTxE: jax.Array) -> jax.Array:
        return sums_by_token(
            tokens_BxT.reshape(-1), dy_BxTxE.reshape(tokens_BxT.size, -1), vocab_size
        )[None]

    rows = ("lookup_batch", None)
    on_each_device = placement().on_each_device
    if on_each_device is None:  # the compiler splits the sums, in an order of its own
        return own_rows(tokens_BxT, dy_BxTxE)[0], None
    sums_PxVxE = on_each_device(
        own_rows, (rows, (*rows, "embed")), ("lookup_batch", None, "embed")
    )(tokens_BxT, dy_BxTxE)
    return jnp.sum(sums_PxVxE, axis=0), None


_lookup.defvjp(_lookup_fwd, _lookup_bwd)


def sums_by_token(
    tokens_N: jax.Array, rows_NxE: jax.Array, vocab_size: int, at_a_time: int = 128
) -> jax.Array:
    """(V, E) float32: for each token the sum of its rows, without two threads that add to one.

    Rows are sorted by token and summed in chunks by a product with a 0/1 matrix, which adds the
    rows of equal tokens up to each position; where a token's rows fill several chunks, what the
    earlier ones hold is added.
    """
    count, E = rows_NxE.shape
    padding = -count % at_a_time
    tokens_N = jnp.pad(tokens_N, (0, padding), constant_values=vocab_size)  # sorted to the end
    order_N = jnp.argsort(tokens_N)
    sorted_N = tokens_N[order_N]
    rows_NxE = jnp.pad(rows_NxE, ((0, padding), (0, 0)))[order_N]

    tokens_KxC = sorted_N.reshape(-1, at_a_time)
    same_KxCxC = tokens_KxC[:, :, None] == tokens_KxC[:, None, :]
    up_to_KxCxC = (same_KxCxC & jnp.tril(jnp.ones((at_a_time, at_a_time), bool))).astype(
        rows_NxE.dtype
    )
    sums_KxCxE = jnp.einsum(
        "KCD,KDE->KCE", up_to_KxCxC, rows_NxE.reshape(-1, at_a_time, E),
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip

    def join(before: tuple[jax.Array, ...], after: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Joins two runs of chunks, for each of which are given: the sum of the last token's rows,
        whether all rows are of one token, and the last token."""
        (sum_before, one_before, last_before), (sum_after, one_after, last_after) = before, after
        goes_on = one_after & (last_before == last_after)
        return (
            sum_after + jnp.where(goes_on[:, None], sum_before, 0.0),
            one_before & goes_on,
            last_after,
        )

    first_K, last_K = tokens_KxC[:, 0], tokens_KxC[:, -1]
    carried_KxE, _, _ = jax.lax.associative_scan(
        join, (sums_KxCxE[:, -1], first_K == last_K, last_K)
    )

    ends_V = jnp.searchsorted(sorted_N, jnp.arange(vocab_size), side="right")
    last_V = jnp.maximum(ends_V - 1, 0)
    chunk_V = last_V // at_a_time
    sums_VxE = sums_KxCxE.reshape(-1, E)[last_V]
    before_V = jnp.maximum(chunk_V - 1, 0)
    goes_on_V = (chunk_V > 0) & (last_K[before_V] == jnp.arange(vocab_size))
    sums_VxE += jnp.where(goes_on_V[:, None], carried_KxE[before_V], 0.0)
    seen_V = sorted_N[last_V] == jnp.arange(vocab_size)
    return jnp.where(seen_V[:, None], sums_VxE, 0.0)
