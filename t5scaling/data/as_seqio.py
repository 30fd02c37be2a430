"""Examples as a SeqIO task, in the order in which our loop reads them: what stock T5X is given.

T5X, a process of its own, imports this module by its gin file (`interop.t5x_gin`). With
`feature_converter(packed)` and no shuffling, the batches of the task are those of
`loader.train_batches`, token for token, but for what no T5 here looks at: SeqIO adds positions, and
shifts the end of a row into the decoder's inputs of the padding after it.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import seqio
import tensorflow as tf

from t5scaling.data import loader, work
from t5scaling.data.examples import PARENT, Examples
from t5scaling.errors import UserError

SPLIT = "train"
FEATURES = ("inputs", "targets")


def vocabulary(examples: str) -> seqio.Vocabulary:
    """A vocabulary of as many tokens as that of the examples in this directory. It has no pieces:
    T5X reads tokens and writes no text, since the evaluation is ours."""
    return seqio.PassThroughVocabulary(Examples(examples).meta["vocabulary"]["size"])


def feature_lengths(lengths: Mapping[str, int], packed: bool) -> dict[str, int]:
    """What SeqIO calls the feature lengths of a task whose rows may be packed already."""
    if not packed:
        return dict(lengths)
    kinds = ("", "_segment_ids", "_positions")
    return {f"{name}{kind}": lengths[name] for name in FEATURES for kind in kinds}


def register(
    examples: str,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    rows: int,
    seed: int = 0,
    shuffle: bool = False,
    devices: int | None = None,
) -> str:
    """Registers batches [first_step, last_step) of a run, one example after the other, as a task
    and returns its name.

    Args:
        examples: their directory.
        batch_size: rows of a step.
        first_step: of the run, 0 or that of the checkpoint from which it goes on.
        last_step: the run's last.
        rows: only the first so many examples are used: D_f.
        seed, shuffle: as of `loader.train_batches`.
        devices: how many the run's MESH_SHAPE is for; None for any number.

    Raises UserError for damaged examples and for another number of devices. In a process that was
    started for another one, ends with it.
    """
    if PARENT in os.environ:
        work.end_with(int(os.environ[PARENT]))
    _check_devices(devices)
    opened = Examples(examples)
    packed = opened.spec.pack
    example_at = loader.order(opened, last=rows, seed=seed, shuffle=shuffle)

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for step in range(first_step, last_step):
            positions = range(step * batch_size, (step + 1) * batch_size)
            for record in opened.read_many([example_at(position) for position in positions]):
                yield _features(record, packed)

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
        del split, shuffle_files, seed  # the order is given
        names = feature_lengths(opened.spec.feature_lengths, packed)
        signature = {name: tf.TensorSpec([None], tf.int32) for name in names}
        return tf.data.Dataset.from_generator(generate, output_signature=signature)

    shared = vocabulary(examples)
    plain = seqio.PassThroughVocabulary(shared.vocab_size)
    name = re.sub(r"\W+", "_", f"{opened.spec.task}_in_order")
    seqio.TaskRegistry.remove(name)  # of an earlier call
    seqio.TaskRegistry.add(
        name,
        # (SeqIO's own sources do not fit its own protocol: they may not know their size.)
        source=cast(Any, seqio.FunctionDataSource(dataset, splits=(SPLIT,))),
        # The end of each sequence is a token of the examples.
        output_features={
            name: seqio.Feature(shared if name in FEATURES else plain, add_eos=False)
            for name in feature_lengths(opened.spec.feature_lengths, packed)
        },
        preprocessors=[],
    )
    return name


def feature_converter(packed: bool) -> type[seqio.FeatureConverter]:
    """The converter from features of the task to features of the model. It is made with pack=False:
    rows are already packed, or not to be packed."""
    return seqio.PrePackedEncDecFeatureConverter if packed else seqio.EncDecFeatureConverter


def _features(record: Mapping[str, Any], packed: bool) -> dict[str, np.ndarray]:
    features = {name: record[name] for name in FEATURES}
    if packed:
        for name in FEATURES:
            lengths = record[f"{name}_lengths"]
            ids = np.repeat(np.arange(1, len(lengths) + 1, dtype=np.int32), lengths)
            features[f"{name}_segment_ids"] = ids
            features[f"{name}_positions"] = np.concatenate(
                [np.arange(length, dtype=np.int32) for length in lengths]
            )
    return features


def _check_devices(wanted: int | None) -> None:
    import jax

    if wanted is not None and jax.device_count() != wanted:
        raise UserError(
            f"MESH_SHAPE is for {wanted} devices, and there are {jax.device_count()} for T5X"
        )
