"""What decoding keeps from one step to the next. Axes in array names are those of network.py."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class DecoderCache(NamedTuple):
    """What grows while decoding, in the activation dtype.

    Slot n holds what beam n % K computed at position n // K. Nothing in it ever moves: which slots
    a beam may see is for the caller to say.
    """

    keys: tuple[jax.Array, ...]  # per decoder layer, (B, H, D, N)
    values: tuple[jax.Array, ...]  # per decoder layer, (B, H, N, D)

    @property
    def slots(self) -> int:
        """N."""
        return self.values[0].shape[2]

    def grown(self, slots: int) -> "DecoderCache":
        """The same content with room for `slots` slots."""

        def grow(x: jax.Array, axis: int) -> jax.Array:
            padding = [(0, 0)] * x.ndim
            padding[axis] = (0, slots - x.shape[axis])
            return jnp.pad(x, padding)

        return DecoderCache(
            tuple(grow(k_BxHxDxN, 3) for k_BxHxDxN in self.keys),
            tuple(grow(v_BxHxNxD, 2) for v_BxHxNxD in self.values),
        )


class DecoderContext(NamedTuple):
    """What stays fixed while decoding a batch; computed once, shared by the beams of an example."""

    cross_keys: tuple[jax.Array, ...]  # per decoder layer, (B, H, D, S)
    cross_values: tuple[jax.Array, ...]  # per decoder layer, (B, H, S, D)
    cross_bias: jax.Array  # (B, 1, 1, S) float32: 0 at real inputs, MASKED at padding
    relpos_diagonals: jax.Array  # (H, 2L-1) float32

    def rows(self, pick: Callable[[jax.Array], jax.Array]) -> "DecoderContext":
        """The context of some rows: `pick` takes them from an array (B, ...)."""
        per_row = (self.cross_keys, self.cross_values, self.cross_bias)
        keys, values, bias = jax.tree.map(pick, per_row)
        return DecoderContext(keys, values, bias, self.relpos_diagonals)
