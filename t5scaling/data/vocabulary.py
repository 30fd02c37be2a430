"""The vocabulary of a run: text to tokens and back, without SeqIO."""

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from t5scaling import storage
from t5scaling.errors import UserError

# Protobuf makes the class when the module is imported: no stub knows it.
ModelProto: Any = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
SENTINELS = 100  # that come after the pieces of a model without any of its own
BYTES = b"bytes of UTF-8\n"  # the file of the vocabulary that needs no model
BYTE_SENTINELS = 125  # of ByT5's: with them its 3 + 256 tokens are 384
_FIRST_BYTE = 3  # after padding, end of sequence and the unknown token
_SENTINEL = re.compile(r"▁?<extra_id_\d+>")
_HOW_TO_MAKE_ONE = (
    "train one by `spm_train --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1 --byte_fallback "
    "--input=TEXT --model_prefix=NAME --vocab_size=32000`"
)


def check(pieces: sentencepiece.SentencePieceProcessor, name: str) -> None:
    """Raises UserError for a model that T5 cannot use, and says how to make one.

    Token 0 is padding everywhere: attention and loss leave it out. So it must not be what text
    becomes, as it does where the trainer was not asked otherwise and 0 is the unknown token.
    """
    if pieces.eos_id() < 0:
        raise UserError(f"{name} has no end-of-sequence token; {_HOW_TO_MAKE_ONE}")
    # With bytes to fall back on, no text is unknown.
    has_bytes = any(map(pieces.is_byte, range(min(pieces.get_piece_size(), 1000))))
    if not (pieces.is_control(0) or pieces.is_unused(0) or (pieces.is_unknown(0) and has_bytes)):
        raise UserError(
            f"{name} has the piece {pieces.id_to_piece(0)!r} as token 0, which is padding in T5: "
            f"such tokens would be left out of the attention and the loss; {_HOW_TO_MAKE_ONE}"
        )
    if pieces.eos_id() == 0:
        raise UserError(f"{name} ends sequences by token 0, which is padding; {_HOW_TO_MAKE_ONE}")


def text_pieces(pieces: sentencepiece.SentencePieceProcessor) -> int:
    """How many pieces there are before the sentinels, which may be the model's last ones."""
    count = pieces.get_piece_size()
    while count and _SENTINEL.fullmatch(pieces.id_to_piece(count - 1)):
        count -= 1
    return count


class Bytes:
    """ByT5's vocabulary, seqio.ByteVocabulary, by the names of SentencePieceProcessor.

    Token 3 is byte 0, token 258 byte 255. Sentinels come after them; in a text they are bytes like
    all others, and a sentinel that a model generates is no text, nor are bytes that are no UTF-8.
    """

    def __init__(self, extra_ids: int = BYTE_SENTINELS):
        self._size = _FIRST_BYTE + 256 + extra_ids

    def get_piece_size(self) -> int:
        return self._size

    def eos_id(self) -> int:
        return 1

    def unk_id(self) -> int:
        return 2

    def encode(self, text: str) -> list[int]:
        return [byte + _FIRST_BYTE for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        found = bytes(i - _FIRST_BYTE for i in ids if _FIRST_BYTE <= i < _FIRST_BYTE + 256)
        return found.decode(errors="ignore")


class Vocabulary:
    """A SentencePiece model, or the bytes of UTF-8, as SeqIO uses them.

    Sentinels, <extra_id_0> and so on, may be pieces of the model, its last ones, as in mC4's, or
    come after them. In a text each is one token either way, and a sentinel that a model generates
    is text again. A file whose content is `BYTES` is the vocabulary `Bytes`.

    Attributes:
        path: the model's file.
        sha256: of the file.
        eos_id: of the end-of-sequence token.

    Raises UserError if there is no such model, or one that T5 cannot use (`check`).
    """

    def __init__(self, path: str | os.PathLike, extra_ids: int | None = None):
        """`path`: of a SentencePiece model; or "bytes".
        `extra_ids`: how many sentinels come after the pieces; None for SENTINELS of them, or
        none where the model has its own, or BYTE_SENTINELS after bytes."""
        self.path = storage.path(path)
        try:
            content = BYTES if path == "bytes" else storage.content_of(self.path)
        except OSError as error:
            raise UserError(f"cannot read the vocabulary {path}: {error.strerror}") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        if content == BYTES:
            self._pieces = Bytes(BYTE_SENTINELS if extra_ids is None else extra_ids)
        else:
            self._pieces = _sentencepiece(content, extra_ids, path)
        self.eos_id = self._pieces.eos_id()

    def size(self) -> int:
        """How many pieces the model has: tokens of text, and sentinels that are pieces of it."""
        return self._pieces.get_piece_size()

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text` and the end-of-sequence token, int32."""
        return np.array([*self._pieces.encode(text), self.eos_id], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of the tokens before the first end-of-sequence token.

        Padding is left out. As in SeqIO, tokens beyond the vocabulary, which a model rounded up
        to a larger size can generate, are unknown ones.
        """
        ids = [int(token) for token in tokens]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        size, unknown = self._pieces.get_piece_size(), self._pieces.unk_id()
        return self._pieces.decode([i if i < size else unknown for i in ids if i > 0])


def _sentencepiece(
    content: bytes, extra_ids: int | None, path: str | os.PathLike
) -> sentencepiece.SentencePieceProcessor:
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError:
        raise UserError(f"{path} is not a SentencePiece model") from None
    check(pieces, f"the vocabulary {path}")
    if extra_ids is None:
        extra_ids = 0 if text_pieces(pieces) < pieces.get_piece_size() else SENTINELS
    return _with_sentinels(content, extra_ids)


@functools.lru_cache(maxsize=4)
def _with_sentinels(content: bytes, extra_ids: int) -> sentencepiece.SentencePieceProcessor:
    model = ModelProto.FromString(content)
    for number in reversed(range(extra_ids)):
        model.pieces.add(
            piece=f"▁<extra_id_{number}>",
            score=0.0,
            type=ModelProto.SentencePiece.USER_DEFINED,
        )
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
