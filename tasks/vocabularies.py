"""Vocabularies of the tasks: the embedded one, mC4's, bytes, and those of the user."""

import functools
import os
import re
from pathlib import Path
from typing import Any

import sentencepiece
import seqio
import tensorflow as tf
from seqio.utils import Feature

CORPUS = Path(__file__).parent / "corpus"
TECHDOC, MC4, BYTES = "techdoc", "mc4", "bytes"
PATHS = {
    TECHDOC: str(CORPUS / "spm8k.model"),
    # 250,000 pieces and 100 sentinels; models round up to 250,112.
    MC4: "gs://t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
}
SENTINELS = 100
BYTE_SENTINELS = 125  # so that ByT5's vocabulary has its 384 tokens
_SENTINEL = re.compile(r"\u2581?<extra_id_\d+>")


@functools.cache
def load(name: str) -> seqio.Vocabulary:
    """The vocabulary of a SentencePiece model, by its path or as "techdoc" or "mc4"; or "bytes".

    It has 100 sentinels after its pieces unless they are its last pieces already, as in mC4's.
    Nothing is read from afar before it is needed.
    """
    if name == BYTES:
        return seqio.ByteVocabulary(extra_ids=BYTE_SENTINELS)
    path = PATHS.get(name, name)
    inside = name == MC4
    if os.path.isfile(path):
        try:
            model = sentencepiece.SentencePieceProcessor(model_file=path)
        except (OSError, RuntimeError):
            raise ValueError(f"the vocabulary {path} is not a SentencePiece model") from None
        inside = _is_sentinel(model.id_to_piece(model.get_piece_size() - 1))
    return seqio.SentencePieceVocabulary(path, extra_ids=0 if inside else SENTINELS)


def techdoc() -> seqio.Vocabulary:
    """8,100 tokens: padding 0, end of sequence 1, unknown 2, sentinels 8,099 down to 8,000."""
    return load(TECHDOC)


def encode_batch(vocabulary: seqio.Vocabulary, strings: tf.Tensor) -> tf.RaggedTensor:
    """The tokens of each of `strings`, (n,)."""
    if not isinstance(vocabulary, seqio.ByteVocabulary):
        return vocabulary.encode_tf(strings)
    tokens = vocabulary.encode_tf(tf.strings.reduce_join(strings))  # it takes one at a time
    ragged: Any = tf.RaggedTensor  # whose stub has none of its constructors
    return ragged.from_row_lengths(tokens, tf.strings.length(strings))


def count_sentinels(vocabulary: seqio.Vocabulary) -> int:
    """How many sentinels there are; the first has the highest id of all tokens."""
    if vocabulary.extra_ids or not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return vocabulary.extra_ids
    count, pieces = 0, vocabulary.tokenizer
    while _is_sentinel(pieces.id_to_piece(pieces.get_piece_size() - 1 - count)):
        count += 1
    return count


def _is_sentinel(piece: str) -> bool:
    return _SENTINEL.fullmatch(piece) is not None


def text_to_text_features(vocabulary: seqio.Vocabulary) -> dict[str, Feature]:
    """The two features of a T5 task, both ending with the end-of-sequence token."""
    return {
        "inputs": Feature(vocabulary=vocabulary, add_eos=True),
        "targets": Feature(vocabulary=vocabulary, add_eos=True),
    }
