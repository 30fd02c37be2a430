"""The vocabulary of a run: text to tokens and back, without SeqIO."""

import hashlib
import os
import re

import numpy as np
import sentencepiece

from t5scaling import storage
from t5scaling.errors import UserError

_SENTINEL = re.compile(r"▁?<extra_id_\d+>")


def text_pieces(pieces: sentencepiece.SentencePieceProcessor) -> int:
    """How many pieces there are before the sentinels, which may be the model's last ones."""
    count = pieces.get_piece_size()
    while _SENTINEL.fullmatch(pieces.id_to_piece(count - 1)):
        count -= 1
    return count


class Vocabulary:
    """A SentencePiece model as SeqIO uses it.

    Sentinels may be pieces of the model, its last ones, as in mC4's, or come after them: neither
    is text.

    Attributes:
        path: the model's file.
        sha256: of the file.
        eos_id: of the end-of-sequence token.

    Raises UserError if there is no such model.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = storage.path(path)
        try:
            content = self.path.read_bytes()
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
        except OSError as error:
            raise UserError(f"cannot read the vocabulary {path}: {error.strerror}") from None
        except RuntimeError:
            raise UserError(f"{path} is no SentencePiece model") from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.eos_id = self._pieces.eos_id()
        self._text_pieces = text_pieces(self._pieces)

    def size(self) -> int:
        """How many pieces the model has: tokens of text, and sentinels that are pieces of it."""
        return self._pieces.get_piece_size()

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text` and the end-of-sequence token, int32."""
        return np.array([*self._pieces.encode(text), self.eos_id], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """The text of the tokens before the first end-of-sequence token, sentinels left out."""
        ids = [int(token) for token in tokens]
        if self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self._pieces.decode([i for i in ids if 0 < i < self._text_pieces])
