"""Hugging Face's T5 folders: config.json and safetensors, both ways, without PyTorch.

Read are T5 1.0, T5 1.1, mT5, FLAN-T5 and ByT5, as transformers writes them ("t5" and "mt5").
transformers 5 writes `tie_word_embeddings: true` whatever the model does: whether the output
projection is the embedding is decided by whether the file has lm_head.weight.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5scaling import storage
from t5scaling.data.vocabulary import BYTES
from t5scaling.errors import UserError, first_line
from t5scaling.interop import tokenizer
from t5scaling.interop.weights import (
    Tree,
    Weights,
    architecture,
    as_float32,
    flatten,
    shapes_of,
    unflatten,
)
from t5scaling.model.config import T5Config
from t5scaling.model.layers import RELPOS_BUCKETS, RELPOS_MAX_DISTANCE

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
VOCABULARY = "spiece.model"
_OTHERS = ("pytorch_model.bin", "flax_model.msgpack", "tf_model.h5")
MODEL_TYPES = ("t5", "mt5")
# transformers' names of `feed_forward_proj`; "gelu_new" is the tanh approximation, as ours.
ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-gelu_new": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
    "gated-relu": ("relu", "linear"),
}
# Copies of the embedding that older files hold.
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_ATTENTION = {"q": "query", "k": "key", "v": "value", "o": "out"}


def is_checkpoint(path: str) -> bool:
    """Whether a directory is a model as transformers writes them."""
    folder = storage.path(path)
    return (folder / CONFIG).is_file() and not (folder / "_METADATA").exists()


def read(path: str) -> Weights:
    """The model in directory `path`.

    Raises UserError if it is damaged or no T5 of the kinds above.
    """
    folder = storage.path(path)
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/{CONFIG} cannot be read: {first_line(error)}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path}/{CONFIG} holds no settings of a model")
    activations = _check_settings(settings, path)
    leaves: dict[str, np.ndarray] = {}
    tensors = dict(_tensors(path))
    for name in ("lm_head.weight", *_COPIES):
        if name in tensors and _is_embedding(tensors[name], tensors):
            del tensors[name]
    for name, tensor in tensors.items():
        ours = _our_name(name)
        if ours is None:
            raise UserError(f"{path} has a parameter {name}, which no T5 of this kind has")
        array = as_float32(name, tensor, path)
        leaves[ours] = array.T if _is_transposed(ours) else array
    params = unflatten({p: np.ascontiguousarray(leaf) for p, leaf in leaves.items()})
    config = architecture(shapes_of(params), path, mlp_activations=activations)
    _check_sizes(settings, config, path)
    content = _read_vocabulary(path)
    left_out = () if content else (f"the tokenizer: the folder has no {VOCABULARY}",)
    return Weights(config, params, vocabulary=content, left_out=left_out)


def _read_vocabulary(path: str) -> bytes | None:
    """The SentencePiece model, or BYTES for ByT5's tokenizer; None if there is neither."""
    folder = storage.path(path)
    if (folder / VOCABULARY).is_file():
        return (folder / VOCABULARY).read_bytes()
    try:
        settings = json.loads((folder / tokenizer.SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    named = settings.get("tokenizer_class") if isinstance(settings, dict) else None
    return BYTES if named == tokenizer.BYTE_TOKENIZER else None


def _check_settings(settings: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """The activations. Raises UserError for a model that ours cannot be."""
    kind = settings.get("model_type")
    if kind == "umt5":
        raise UserError(
            f"{path} is a umT5, which has relative position biases of its own in every layer; this "
            f"model shares one in a stack; expected one of: {', '.join(MODEL_TYPES)}"
        )
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{path} has model_type {kind!r}; expected one of: {', '.join(MODEL_TYPES)}"
        )
    name = settings.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    if name not in ACTIVATIONS:
        raise UserError(
            f"{path} has feed_forward_proj {name!r}; expected one of: {', '.join(ACTIVATIONS)}"
        )
    for field, expected in (
        ("relative_attention_num_buckets", RELPOS_BUCKETS),
        ("relative_attention_max_distance", RELPOS_MAX_DISTANCE),
        ("layer_norm_epsilon", 1e-6),
    ):
        if settings.get(field, expected) != expected:
            raise UserError(f"{path} has {field} {settings[field]!r}; this model's is {expected}")
    return ACTIVATIONS[name]


def _check_sizes(settings: Mapping[str, Any], config: T5Config, path: str) -> None:
    """Raises UserError if config.json contradicts the parameters."""
    for field, found in (
        ("d_model", config.emb_dim),
        ("d_kv", config.head_dim),
        ("d_ff", config.mlp_dim),
        ("num_heads", config.num_heads),
        ("num_layers", config.num_encoder_layers),
        ("num_decoder_layers", config.num_decoder_layers),
        ("vocab_size", config.vocab_size),
    ):
        if settings.get(field, found) not in (found, None):
            raise UserError(
                f"{path}/{CONFIG} has {field} {settings[field]!r}, and the parameters {found}"
            )


def _tensors(path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every parameter, from one file or several."""
    import safetensors

    folder = storage.absolute(path)
    files = [WEIGHTS]
    if os.path.isfile(os.path.join(folder, INDEX)):
        try:
            index = json.loads(storage.path(os.path.join(folder, INDEX)).read_text())
            files = sorted(set(index["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path}/{INDEX} cannot be read: {first_line(error)}") from None
    elif not os.path.isfile(os.path.join(folder, WEIGHTS)):
        there = [name for name in _OTHERS if os.path.isfile(os.path.join(folder, name))]
        what = f", only {there[0]}: save it as safetensors with transformers" if there else ""
        raise UserError(f"{path} has no {WEIGHTS}{what}")
    for name in files:
        if os.path.basename(name) != name:
            raise UserError(f"{path}/{INDEX} names {name!r}, which is not a file of that folder")
        try:
            # JAX's arrays, as NumPy knows no bfloat16; they are views of host memory.
            with safetensors.safe_open(os.path.join(folder, name), framework="flax") as file:
                for key in file.keys():  # noqa: SIM118 (it is no dictionary)
                    yield key, file.get_tensor(key)
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}/{name} cannot be read: {first_line(error)}") from None


def _is_embedding(tensor: np.ndarray, tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether a tensor is a copy of the embedding."""
    shared = tensors.get("shared.weight")
    return (
        shared is not None
        and tensor.shape == shared.shape
        and bool(np.array_equal(np.asarray(tensor), np.asarray(shared)))
    )


def _our_name(name: str) -> str | None:
    """T5X's path of a parameter of transformers; None if no T5 of this kind has it."""
    fixed = {
        "shared.weight": "token_embedder/embedding",
        "lm_head.weight": "decoder/logits_dense/kernel",
    }
    if name in fixed:
        return fixed[name]
    if found := re.fullmatch(r"(encoder|decoder)\.final_layer_norm\.weight", name):
        return f"{found[1]}/{found[1]}_norm/scale"
    found = re.fullmatch(r"(encoder|decoder)\.block\.(\d+)\.layer\.(\d)\.(.+)\.weight", name)
    if not found:
        return None
    stack, block, part, rest = found.groups()
    if rest == "SelfAttention.relative_attention_bias":
        return f"{stack}/relpos_bias/rel_embedding" if (block, part) == ("0", "0") else None
    kinds = _SUBLAYERS[stack]
    if int(part) >= len(kinds):
        return None
    norm, module, theirs = kinds[int(part)]
    layer = f"{stack}/layers_{block}"
    if rest == "layer_norm":
        return f"{layer}/{norm}/scale"
    if found := re.fullmatch(rf"{theirs}\.(q|k|v|o)", rest):
        return f"{layer}/{module}/{_ATTENTION[found[1]]}/kernel"
    if module == "mlp" and (found := re.fullmatch(rf"{theirs}\.(wi|wi_0|wi_1|wo)", rest)):
        return f"{layer}/mlp/{found[1]}/kernel"
    return None


# Of each sub-layer: our norm, our module, transformers' module.
_SUBLAYERS = {
    "encoder": (
        ("pre_attention_layer_norm", "attention", "SelfAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
    "decoder": (
        ("pre_self_attention_layer_norm", "self_attention", "SelfAttention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention", "EncDecAttention"),
        ("pre_mlp_layer_norm", "mlp", "DenseReluDense"),
    ),
}


def _is_transposed(path: str) -> bool:
    """PyTorch's kernels are (out, in), and its position biases (buckets, heads)."""
    return path.endswith(("/kernel", "/rel_embedding"))


def _their_name(path: str) -> str:
    """transformers' name of one of our parameters."""
    if path == "token_embedder/embedding":
        return "shared.weight"
    if path == "decoder/logits_dense/kernel":
        return "lm_head.weight"
    stack, rest = path.split("/", 1)
    if rest == f"{stack}_norm/scale":
        return f"{stack}.final_layer_norm.weight"
    if rest == "relpos_bias/rel_embedding":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    layer, module, *names = rest.split("/")
    block = layer.removeprefix("layers_")
    for part, (norm, ours, theirs) in enumerate(_SUBLAYERS[stack]):
        prefix = f"{stack}.block.{block}.layer.{part}"
        if module == norm:
            return f"{prefix}.layer_norm.weight"
        if module == ours:
            name = names[0] if ours == "mlp" else {v: k for k, v in _ATTENTION.items()}[names[0]]
            return f"{prefix}.{theirs}.{name}.weight"
    raise ValueError(f"no name for {path}")


def write(path: str, weights: Weights) -> None:
    """Writes config.json, model.safetensors (float32) and the tokenizer into directory `path`.

    Raises UserError for activations that transformers has no name for.
    """
    import safetensors.numpy

    config = weights.config
    settings = _settings_of(config, path)
    tensors: Tree = {}
    for name, leaf in flatten(weights.params):
        array = np.asarray(leaf, np.float32)
        array = array.T if _is_transposed(name) else array
        tensors[_their_name(name)] = np.ascontiguousarray(array)
    folder = storage.path(path)
    folder.mkdir(parents=True, exist_ok=True)
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / WEIGHTS).write_bytes(content)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if weights.vocabulary is not None:
        if weights.vocabulary != BYTES:
            (folder / VOCABULARY).write_bytes(weights.vocabulary)
        for name, text in tokenizer.files(weights.vocabulary).items():
            (folder / name).write_text(text, encoding="utf-8")


def _settings_of(config: T5Config, path: str) -> dict[str, Any]:
    names = {activations: name for name, activations in reversed(ACTIVATIONS.items())}
    if config.mlp_activations not in names:
        raise UserError(
            f"{path}: transformers' T5 has no name for the activations "
            f"{config.mlp_activations}; it has {', '.join(ACTIVATIONS)}"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "feed_forward_proj": names[config.mlp_activations],
        "relative_attention_num_buckets": RELPOS_BUCKETS,
        "relative_attention_max_distance": RELPOS_MAX_DISTANCE,
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": config.dropout_rate,
        "tie_word_embeddings": config.logits_via_embedding,
        "scale_decoder_outputs": config.logits_via_embedding,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "torch_dtype": "float32",
    }
