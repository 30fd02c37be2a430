"""The vocabulary of the techdoc tasks: 8,000 SentencePiece pieces and T5's 100 sentinels."""

from pathlib import Path

import seqio

CORPUS = Path(__file__).parent / "corpus"


def techdoc() -> seqio.SentencePieceVocabulary:
    """8,100 tokens: padding 0, end of sequence 1, unknown 2, sentinels 8,099 down to 8,000."""
    return seqio.SentencePieceVocabulary(str(CORPUS / "spm8k.model"), extra_ids=100)


def text_to_text_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
    """The two features of a T5 task, both ending with the end-of-sequence token."""
    return {
        "inputs": seqio.Feature(vocabulary=vocabulary, add_eos=True),
        "targets": seqio.Feature(vocabulary=vocabulary, add_eos=True),
    }
