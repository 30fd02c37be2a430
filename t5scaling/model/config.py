"""The architecture of a T5, as numbers."""

import dataclasses
from dataclasses import dataclass, fields
from typing import Any

from t5scaling.errors import UserError, nearest
from t5scaling.model.layers import ACTIVATIONS

# What the backward pass finds in memory and what it computes again, per layer.
REMAT = {
    "none": "all activations are kept",
    "minimal": "matrix products are kept, what lies between them is computed again",
    "full": "only each layer's input is kept",
}

# The backends of model/attention.py.
ATTENTION = {
    "auto": "the one that suits the device",
    "plain": "matrix products and a softmax",
    "fused": "kernels of our own",
    "cudnn": "NVIDIA's, for rows that are not packed",
}


# How a model is trained and computed, not which function of its parameters it is.
NOT_THE_FUNCTION = ("dropout_rate", "dtype", "scan_layers", "remat", "attention")


@dataclass(frozen=True)
class T5Config:
    """The architecture. Sizes are counts; `dtype` is that of the activations.

    `scan_layers` compiles one layer of each stack instead of all, for models of many layers;
    `remat` ("none", "minimal", "full") trades computation for memory; `attention` ("auto", "plain",
    "fused", "cudnn") is the backend of model/attention.py. None of them changes a number beyond
    rounding.

    Raises UserError for a size below 1, an unknown activation, a dropout rate outside [0, 1), an
    unknown `remat` or `attention`, or a dtype other than float32 and bfloat16.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_dim: int
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    dtype: str = "float32"
    scan_layers: bool = False
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        # A list would make the configuration, and so the module, unhashable.
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for name in (f.name for f in fields(self) if f.type is int):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UserError(f"T5Config.{name} is {size!r}; expected a whole number >= 1")
        if not self.mlp_activations:
            raise UserError("T5Config.mlp_activations is empty; expected ('gelu', 'linear')")
        for name in self.mlp_activations:
            if name not in ACTIVATIONS:
                choice = nearest(str(name), ACTIVATIONS)
                raise UserError(f"T5Config.mlp_activations has unknown {name!r}{choice}")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(f"T5Config.dropout_rate is {self.dropout_rate!r}; expected [0, 1)")
        if self.remat not in REMAT:
            raise UserError(f"T5Config.remat is {self.remat!r}{nearest(str(self.remat), REMAT)}")
        if self.attention not in ATTENTION:
            choice = nearest(str(self.attention), ATTENTION)
            raise UserError(f"T5Config.attention is {self.attention!r}{choice}")
        if self.dtype in ("float16", "fp16", "half"):
            raise UserError(
                f"T5Config.dtype is {self.dtype!r}: T5's activations overflow float16's range "
                "(65504); expected 'float32' or 'bfloat16'"
            )
        if self.dtype not in ("float32", "bfloat16"):
            choice = nearest(str(self.dtype), ("float32", "bfloat16"))
            raise UserError(f"T5Config.dtype is {self.dtype!r}{choice}")

    def function(self) -> dict[str, Any]:
        """The settings that decide which function of its parameters the model is, as JSON has them.

        A checkpoint is of this model if these are equal; equal shapes alone are not enough.
        """
        values = dataclasses.asdict(self) | {"mlp_activations": list(self.mlp_activations)}
        return {name: value for name, value in values.items() if name not in NOT_THE_FUNCTION}

    def numbers(self) -> dict[str, Any]:
        """`function` and the dtype: equal for models that compute the same but for rounding in the
        last digits."""
        return self.function() | {"dtype": self.dtype}
