"""A trained T5 between two systems: its architecture, its parameters, and what else is known of it.

Every format is read into `Weights` and written from it. Parameters are a nested dictionary of NumPy
arrays with T5X's names and one sub-tree for each layer (encoder/layers_0, encoder/layers_1, ...).
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.model.config import T5Config

Tree = dict[str, Any]
_STACKS = ("encoder", "decoder")


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a checkpoint holds.

    Attributes:
        config: the architecture. T5X's checkpoints do not name their activations: "relu" is taken
            for one branch of the MLP and ("gelu", "linear") for two, as in all public T5s.
        params: parameters, a sub-tree for each layer, float32.
        step: training steps done.
        moments: Adafactor's second moments, a tree like `params` whose leaves are {"v"} or
            {"v_row", "v_col"}, float32; None where they are not known.
        vocabulary: contents of the vocabulary's file (`data.vocabulary`); None where the source
            has none.
        left_out: sentences about what the source holds and this does not.
    """

    config: T5Config
    params: Tree
    step: int = 0
    moments: Tree | None = None
    vocabulary: bytes | None = None
    left_out: tuple[str, ...] = ()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("encoder/layers_0/mlp/wo/kernel", leaf) of every leaf that is no mapping."""
    for name, value in tree.items():
        path = f"{prefix}/{name}" if prefix else name
        if isinstance(value, Mapping):
            yield from flatten(value, path)
        else:
            yield path, value


def unflatten(leaves: Mapping[str, Any]) -> Tree:
    """The nested dictionary of the paths of `flatten`."""
    tree: Tree = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree


def architecture(shapes: Mapping[str, tuple[int, ...]], source: str, **known: Any) -> T5Config:
    """The T5 whose parameters have these paths and shapes.

    `known` are fields of T5Config that the source states itself. Raises UserError, which names
    `source` and the first difference, if they are the parameters of no T5 that this model can be.
    """

    def shape(path: str, rank: int) -> tuple[int, ...]:
        found = shapes.get(path)
        if found is None or len(found) != rank:
            what = "is missing" if found is None else f"has shape {found}"
            raise UserError(f"{source} does not hold a T5 of this kind: parameter {path} {what}")
        return found

    layers = {name: _count_layers(shapes, name, source) for name in _STACKS}
    vocab_size, emb_dim = shape("token_embedder/embedding", 2)
    num_heads, _ = shape("encoder/relpos_bias/rel_embedding", 2)
    _, joined = shape("encoder/layers_0/attention/query/kernel", 2)
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    _, mlp_dim = shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel", 2)
    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "emb_dim": emb_dim,
        "num_heads": num_heads,
        "head_dim": max(1, joined // num_heads),
        "num_encoder_layers": layers["encoder"],
        "num_decoder_layers": layers["decoder"],
        "mlp_dim": mlp_dim,
        "mlp_activations": ("gelu", "linear") if gated else ("relu",),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in shapes,
    }
    config = T5Config(**(fields | known))
    check_shapes(shapes, config, source)
    return config


def _count_layers(shapes: Mapping[str, tuple[int, ...]], stack: str, source: str) -> int:
    numbers = {
        int(found[1]) for path in shapes if (found := re.match(rf"{stack}/layers_(\d+)/", path))
    }
    if not numbers:
        raise UserError(
            f"{source} does not hold a T5 of this kind: there is no {stack}/layers_0; its "
            f"parameters are {_some(shapes)}"
        )
    return max(numbers) + 1


def check_shapes(shapes: Mapping[str, tuple[int, ...]], config: T5Config, source: str) -> None:
    """Raises UserError with the first difference between `shapes` and `config`'s parameters."""
    unrolled = dataclasses.replace(config, scan_layers=False)
    expected = {path: leaf.shape for path, leaf in flatten(network.abstract_params(unrolled))}
    for path in sorted(expected.keys() - shapes.keys()):
        raise UserError(f"{source} has no parameter {path}, which a {_named(config)} has")
    for path in sorted(shapes.keys() - expected.keys()):
        raise UserError(f"{source} has a parameter {path}, which a {_named(config)} does not have")
    for path, shape in sorted(expected.items()):
        if tuple(shapes[path]) != tuple(shape):
            raise UserError(
                f"{source}: parameter {path} has shape {tuple(shapes[path])}; expected "
                f"{tuple(shape)}"
            )


def _named(config: T5Config) -> str:
    return (
        f"T5 of width {config.emb_dim} with {config.num_encoder_layers} and "
        f"{config.num_decoder_layers} layers"
    )


def _some(names: Mapping[str, Any], count: int = 3) -> str:
    few = sorted(names)[:count]
    return ", ".join(few) + (", ..." if len(names) > count else "") if few else "none"


def shapes_of(params: Tree) -> dict[str, tuple[int, ...]]:
    return {path: tuple(np.shape(leaf)) for path, leaf in flatten(params)}


def as_float32(path: str, array: Any, source: str) -> np.ndarray:
    """Raises UserError if a parameter is not of floating-point numbers or not finite."""
    array = np.asarray(array)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise UserError(f"{source}: parameter {path} has dtype {array.dtype}; expected floats")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{source}: parameter {path} holds values that are not finite")
    return array
