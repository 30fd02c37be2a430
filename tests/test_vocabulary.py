"""Vocabularies of the user's own: other special tokens, sentinels in text, what T5 cannot use."""

import io

import numpy as np
import pytest
import sentencepiece
import seqio
from rich.console import Console

from t5scaling.data import vocabulary as vocabularies
from t5scaling.data.examples import DataSpec, Examples
from t5scaling.data.materialize import materialize
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


def test_bytes_are_tokens_as_in_seqio(tmp_path):
    (tmp_path / "v").write_bytes(vocabularies.BYTES)
    ours, theirs = Vocabulary(tmp_path / "v"), seqio.ByteVocabulary(extra_ids=125)
    assert ours.size() == theirs.vocab_size == 384 and ours.eos_id == theirs.eos_id
    assert ours.encode("a\u00e9").tolist() == [100, 198, 172, 1]
    for text in (
        "open file",
        "H\u00e4user \u2013 \u65e5\u672c \U0001f600",
        "<extra_id_0>",
        "\t ",
        "",
    ):
        tokens = ours.encode(text)
        assert tokens[:-1].tolist() == theirs.encode(text)
        assert ours.decode(tokens) == text
    for tokens in ([100, 198, 1, 101], [383, 100, 0, 2, 500, 101], [258, 3, 130]):
        assert ours.decode(np.array(tokens)) == theirs.decode(tokens)


def test_examples_over_bytes(tmp_path):
    """Texts of several lengths in one batch; sentinels from 383 down."""
    texts = ["The file is open.", "Zwei H\u00e4user", "\u65e5\u672c"] * 20
    (tmp_path / "train.txt").write_text("\n".join(texts), encoding="utf-8")
    (tmp_path / "train.tsv").write_text("".join(f"{t}\t{t}!\n" for t in texts), encoding="utf-8")
    names = {"span_corruption": ("text", "txt"), "translation": ("tsv", "tsv")}
    definitions = {
        kind: {"kind": kind, "vocabulary": "bytes", "format": name,
               "files": {"train": str(tmp_path / f"train.{ending}")}}
        for kind, (name, ending) in names.items()
    }  # fmt: skip
    definitions["translation"] |= {"prompt": "x ", "source": 0, "target": 1}
    found = {}
    for kind in names:
        lengths = {"inputs": 40, "targets": 40}
        spec = DataSpec(kind, "train", lengths, definitions=definitions)
        found[kind] = Examples(materialize(spec, tmp_path, Console(quiet=True)))
    assert found["translation"].meta["vocabulary"]["size"] == 384
    vocabulary = Vocabulary(found["translation"].vocabulary)
    for example in found["translation"].read_many(range(60)):
        text = vocabulary.decode(example["inputs"]).removeprefix("x ")
        assert text in texts and vocabulary.decode(example["targets"]) == f"{text}!"
        assert example["text_tokens"] == 2 * len(text.encode()) + 1
    spans = found["span_corruption"]
    assert spans.tokens(len(spans)) == len("".join(texts).encode())
    assert all(383 in example["inputs"] for example in spans.read_many(range(len(spans))))


@pytest.mark.parametrize("extra_ids", [0, 3, 100])
def test_sentinels_in_text_are_what_seqio_makes_of_them(tmp_path, extra_ids):
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
