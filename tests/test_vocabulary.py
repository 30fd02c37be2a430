"""Vocabularies of the user's own: other special tokens, sentinels in text, what T5 cannot use."""

import io

import numpy as np
import pytest
import sentencepiece

from t5scaling.data import vocabulary as vocabularies
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError

TEXT = [f"Press the key {number} twice, or open file {number * 7} again." for number in range(200)]


def train(path, **ids):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_writer=model, hard_vocab_limit=False, minloglevel=2,
        **{"vocab_size": 80} | ids,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def test_the_vocabulary_says_which_token_ends(tmp_path):
    path = train(tmp_path / "m", pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    vocabulary = Vocabulary(path)
    tokens = vocabulary.encode("open file")
    assert vocabulary.eos_id == 3 == tokens[-1] and 1 not in tokens
    assert vocabulary.decode(np.array([*tokens, 5, 6])) == "open file"


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({}, "has the piece '<unk>' as token 0, which is padding"),  # the trainer's own
        ({"pad_id": 0, "unk_id": 1, "eos_id": -1, "bos_id": -1}, "no end-of-sequence token"),
        ({"unk_id": 2, "bos_id": -1, "eos_id": 0}, "token 0"),
        ({"unk_id": 5, "bos_id": -1, "eos_id": 1}, "as token 0"),  # text itself
    ],
)
def test_what_t5_cannot_use_is_refused_and_how_to_make_one_said(tmp_path, ids, words):
    path = train(tmp_path / "m", **ids)
    with pytest.raises(UserError) as error:
        Vocabulary(path)
    assert words in str(error.value) and "spm_train --pad_id=0" in str(error.value)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    with pytest.raises(UserError, match="spm_train"):
        vocabularies.check(pieces, "it")  # as materialising does


def test_an_unknown_token_that_no_text_becomes_may_be_0(tmp_path):
    Vocabulary(train(tmp_path / "m", byte_fallback=True, vocab_size=400))


@pytest.mark.parametrize("extra_ids", [0, 3, 100])
def test_sentinels_in_text_are_what_seqio_makes_of_them(tmp_path, extra_ids):
    seqio = pytest.importorskip("seqio")
    path = train(tmp_path / "m", pad_id=0, unk_id=2, bos_id=-1, eos_id=1)
    ours = Vocabulary(path, extra_ids)
    theirs = seqio.SentencePieceVocabulary(str(path), extra_ids=extra_ids)
    for text in ("press <extra_id_0> key <extra_id_2>", "<extra_id_1>", "a<extra_id_0>b", ""):
        tokens = ours.encode(text)[:-1].tolist()
        assert tokens == theirs.encode(text)
        assert ours.decode(np.array(tokens)) == theirs.decode(tokens)
    beyond = np.array([*ours.encode("key")[:-1], theirs.vocab_size + 20])
    assert ours.decode(beyond) == theirs.decode(beyond.tolist())
    if extra_ids:
        assert len(ours.encode("<extra_id_0>")) == 2
        assert ours.decode(ours.encode("press <extra_id_0> key")) == "press <extra_id_0> key"
