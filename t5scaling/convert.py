"""`run.py convert`: a trained model from one system's files to another's."""

import dataclasses
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5scaling import __version__, records, storage
from t5scaling.data.vocabulary import BYTES, Vocabulary
from t5scaling.errors import UserError, nearest
from t5scaling.interop import huggingface, t5x
from t5scaling.interop.weights import Weights, flatten, shapes_of, unflatten
from t5scaling.model import stacking
from t5scaling.training import checkpoint, optimizer, run_directory, sharding
from t5scaling.training import state as state_lib
from t5scaling.training import step as step_lib

FORMATS = {
    "t5scaling": "a run directory, from which to finetune, evaluate and infer",
    "t5x": "a model directory of T5X with checkpoint_<step>",
    "huggingface": "a folder that transformers loads: config.json, safetensors, the tokenizer",
}
ORIGIN = "converted.json"  # where a converted run directory came from


def convert(
    source: str,
    target: str,
    *,
    to: str,
    step: int | None = None,
    vocabulary: str | None = None,
) -> None:
    """Writes the model in `source` to the new directory `target`, and prints a summary.

    Args:
        source: a run directory of t5scaling or one of its checkpoint_<step>; a checkpoint or a
            model directory of T5X; a folder of Hugging Face. The kind is recognised.
        target: must not exist yet; appears when it is whole.
        to: a key of FORMATS.
        step: which checkpoint of a run or a model directory (default: the last).
        vocabulary: a SentencePiece model or "bytes", where the source has none.

    Raises UserError if the source is nothing of that kind, is damaged or holds another model, or if
    the target exists.
    """
    if to not in FORMATS:
        raise UserError(f"--to is {to!r}{nearest(to, FORMATS)}")
    if storage.in_bucket(target):
        raise UserError(f"{target} is in a bucket; convert to a local directory and copy it there")
    if os.path.lexists(target):
        raise UserError(f"{target} exists; convert does not overwrite: choose another directory")
    if to != "huggingface":
        storage.check_fit(target, "target")
    model_of_text = BYTES if vocabulary == "bytes" else None
    if vocabulary not in (None, "bytes"):
        model_of_text = storage.read_bytes(vocabulary)
        if model_of_text is None:
            raise UserError(f'there is no {vocabulary}; expected a SentencePiece model, or "bytes"')
    kind, weights = read(source, step)
    if model_of_text is not None:
        weights = dataclasses.replace(weights, vocabulary=model_of_text)
    if weights.vocabulary is not None:
        _check_vocabulary(weights, vocabulary or source)
    writers: dict[str, Callable[[str], None]] = {
        "t5scaling": lambda folder: _write_run(folder, weights, source, kind),
        "t5x": lambda folder: _write_t5x(folder, weights),
        "huggingface": lambda folder: huggingface.write(folder, weights),
    }
    temporary = f"{os.path.normpath(target)}.{secrets.token_hex(4)}.tmp"
    try:
        os.makedirs(temporary)
        writers[to](temporary)
        os.rename(temporary, target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for line in summary(weights, source, kind, target, to):
        print(line)


def summary(weights: Weights, source: str, kind: str, target: str, to: str) -> list[str]:
    """What was converted, line by line."""
    config = weights.config
    count = sum(np.size(leaf) for _, leaf in flatten(weights.params))
    moved = weights.moments is not None and to != "huggingface"
    lines = [
        f"{source} ({kind}) -> {target} ({to})",
        f"  architecture   {config.num_encoder_layers} + {config.num_decoder_layers} layers, width "
        f"{config.emb_dim}, {config.num_heads} heads of {config.head_dim}, MLP {config.mlp_dim} "
        f"({', '.join(config.mlp_activations)})",
        f"  parameters     {count:,}, float32",
        f"  step           {weights.step:,}",
        f"  vocabulary     {config.vocab_size:,} rows of the embedding; "
        + ("the vocabulary is copied" if _takes_vocabulary(weights, to) else "no vocabulary"),
        f"  optimizer      {'moments are copied' if moved else 'starts anew'}",
    ]
    return lines + [f"  left out       {sentence}" for sentence in weights.left_out]


def _takes_vocabulary(weights: Weights, to: str) -> bool:
    return weights.vocabulary is not None and to != "t5x"


def read(source: str, step: int | None = None) -> tuple[str, Weights]:
    """(format, model) of a source, whose format is recognised. Raises UserError for any other
    source."""
    folder = storage.path(source)
    if not folder.exists():
        raise UserError(f"there is no {source}")
    if (folder / records.CHECKPOINTS).is_dir():
        [(_, path)] = checkpoint.choose(source, "last" if step is None else [step])
        return "t5scaling", _read_run(path)
    if (folder / "default").is_dir():
        return "t5scaling", _read_run(source)
    if t5x.is_checkpoint(source):
        return "t5x", _with_fitting_moments(t5x.read(source))
    if huggingface.is_checkpoint(source):
        return "huggingface", huggingface.read(source)
    if there := t5x.checkpoints(source):
        wanted = max(there) if step is None else step
        if wanted not in there:
            steps_there = ", ".join(map(str, sorted(there)))
            raise UserError(f"{source} has no checkpoint of step {step}; there: {steps_there}")
        weights = t5x.read(there[wanted])
        return "t5x", _with_fitting_moments(weights)
    names = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else ["a file"]
    raise UserError(
        f"{source} holds no model that can be converted: expected a run directory of t5scaling, a "
        f"checkpoint of T5X or a folder of Hugging Face; it has {', '.join(names) or 'nothing'}"
    )


def _with_fitting_moments(weights: Weights) -> Weights:
    """The weights, without second moments that are not those of this Adafactor."""
    if weights.moments is None:
        return weights
    there = shapes_of(weights.moments)
    for path, shape in _fresh_moments(weights).items():
        if there.get(path) != shape:
            found = f"the shape {there[path]}" if path in there else "none"
            sentence = f"the optimizer's moments: {path} has {found}, expected {shape}"
            left_out = (*weights.left_out, sentence)
            return dataclasses.replace(weights, moments=None, left_out=left_out)
    return weights


def _fresh_moments(weights: Weights) -> dict[str, tuple[int, ...]]:
    """Path and shape of the second moments that Adafactor keeps of these parameters."""
    moments = jax.eval_shape(optimizer.adafactor().init, weights.params)
    return {path: tuple(leaf.shape) for path, leaf in flatten(moments)}


def _write_t5x(folder: str, weights: Weights) -> None:
    """The weights with second moments, which T5X needs to restore parameters: unknown ones are
    zero, as in a run that has not begun."""
    if weights.moments is None:
        shapes = _fresh_moments(weights)
        zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
        weights = dataclasses.replace(weights, moments=unflatten(zeros))
    t5x.write(os.path.join(folder, f"checkpoint_{weights.step}"), weights)


def _read_run(path: str) -> Weights:
    """The weights of one of our own checkpoints, `<run
    directory>/checkpoints/checkpoint_<step>`."""
    storage.check_fit(path, "source")
    run = os.path.dirname(os.path.dirname(os.path.normpath(path)))
    if not (storage.path(run) / records.MODEL).is_file():
        raise UserError(
            f"{run} has no {records.MODEL}, which says which model it is; a run of this "
            "version has one as soon as it starts"
        )
    config = run_directory.model_of(run, None)
    layout = sharding.make_layout(devices=jax.devices("cpu")[:1])
    restored = checkpoint.restore_state(path, step_lib.abstract_state(config, layout))
    params, moments = restored.params, restored.opt_state
    if config.scan_layers:
        params, moments = map(stacking.unstack_layers, (params, moments))
    kept = storage.path(run) / records.VOCABULARY
    return Weights(
        dataclasses.replace(config, scan_layers=False),
        jax.tree.map(np.asarray, params),
        int(restored.step),
        jax.tree.map(np.asarray, moments),
        vocabulary=kept.read_bytes() if kept.is_file() else None,
    )


def _write_run(folder: str, weights: Weights, source: str, kind: str) -> None:
    """model.json, vocabulary.model and checkpoints/checkpoint_<step>, as a run leaves them."""
    train_state = state_lib.create(weights.params, weights.config)
    step = jnp.asarray(weights.step, jnp.int32)
    train_state = dataclasses.replace(train_state, step=step)
    if weights.moments is not None:
        train_state = dataclasses.replace(train_state, opt_state=weights.moments)
    checkpoints = checkpoint.Checkpoints(folder)
    try:
        checkpoints.save(weights.step, train_state)
        checkpoints.wait()
    finally:
        checkpoints.close()
    run_directory.write_json(
        os.path.join(folder, records.MODEL), dataclasses.asdict(weights.config)
    )
    if weights.vocabulary is not None:
        storage.path(os.path.join(folder, records.VOCABULARY)).write_bytes(weights.vocabulary)
    else:
        print(
            f"warning: {source} has no vocabulary, without which nothing can be evaluated or "
            "answered; give one by --vocabulary",
            file=sys.stderr,
        )
    origin: dict[str, Any] = {
        "from": storage.absolute(source), "format": kind, "version": __version__,
    }  # fmt: skip
    storage.write(os.path.join(folder, ORIGIN), json.dumps(origin, indent=1, sort_keys=True) + "\n")


def _check_vocabulary(weights: Weights, where: str) -> None:
    """Raises UserError if the vocabulary has more pieces than the embedding has rows."""
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(weights.vocabulary or b"")
        file.flush()
        try:
            size = Vocabulary(file.name, 0).size()
        except UserError:
            raise UserError(f"the vocabulary of {where} is not a SentencePiece model") from None
    if size > weights.config.vocab_size:
        raise UserError(
            f"the vocabulary of {where} has {size:,} pieces, more than the embedding's "
            f"{weights.config.vocab_size:,} rows: it belongs to another model"
        )
