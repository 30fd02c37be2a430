"""A vocabulary as the files that Hugging Face's `AutoTokenizer` loads, with the same ids.

From `spiece.model` alone transformers builds a tokenizer without byte fallback, which splits rare
characters otherwise. `tokenizer.json` states everything: pieces and scores, the normaliser's
compiled table, byte fallback, sentinels after the pieces, and the end of sequence.
"""

import base64
import json
import re
from typing import Any

from t5scaling.data.vocabulary import BYTE_SENTINELS, BYTES, ModelProto
from t5scaling.errors import UserError

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
BYTE_TOKENIZER = "ByT5Tokenizer"
SENTINELS = 100  # after the pieces, of a model that has none of its own; SeqIO's number
_SPACE = "▁"
_UNIGRAM, _BPE = 1, 2
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4


def files(vocabulary: bytes) -> dict[str, str]:
    """{name of a file: its text} for a SentencePiece model's bytes, or `BYTES`.

    Of bytes, text and the end of sequence have the same ids; transformers numbers the sentinels the
    other way round, <extra_id_0> being 259.

    Raises UserError for a model that is neither of the unigram kind nor escapes spaces as all T5s'
    do: those can only be loaded from `spiece.model`.
    """
    if vocabulary == BYTES:
        settings = {"tokenizer_class": BYTE_TOKENIZER, "extra_ids": BYTE_SENTINELS}
        return {SETTINGS: json.dumps(settings, indent=2) + "\n"}
    model = ModelProto.FromString(vocabulary)
    trained, normalised = model.trainer_spec, model.normalizer_spec
    if trained.model_type != _UNIGRAM:
        raise UserError(
            "the vocabulary is not a unigram model of SentencePiece, as those of T5 are"
        )
    if not normalised.escape_whitespaces or trained.treat_whitespace_as_suffix:
        raise UserError("the vocabulary does not mark spaces before words, as those of T5 do")
    special = {
        "eos_token": model.pieces[trained.eos_id].piece,
        "unk_token": model.pieces[trained.unk_id].piece,
        "pad_token": model.pieces[0].piece,
    }
    sentinels = _sentinels(model)
    added = [
        (number, piece.piece)
        for number, piece in enumerate(model.pieces)
        if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        and not re.fullmatch(rf"{_SPACE}?<extra_id_\d+>", piece.piece)
    ]
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, text) for number, text in added + sentinels],
        "normalizer": _normalizer(normalised),
        "pre_tokenizer": _metaspace(normalised),
        "post_processor": _ends_with(trained.eos_id, special["eos_token"]),
        "decoder": _decoder(normalised),
        "model": {
            "type": "Unigram",
            "unk_id": trained.unk_id,
            "vocab": [[piece.piece, piece.score] for piece in model.pieces],
            "byte_fallback": trained.byte_fallback,
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 10**30,  # none: relative positions have no end
        "clean_up_tokenization_spaces": False,
        "additional_special_tokens": [text for _, text in sentinels],
        **special,
    }
    return {
        TOKENIZER: json.dumps(tokenizer, ensure_ascii=False) + "\n",
        SETTINGS: json.dumps(settings, ensure_ascii=False, indent=2) + "\n",
    }


def _sentinels(model: Any) -> list[tuple[int, str]]:
    """(id, "<extra_id_n>") of each; their numbers fall while the ids grow."""
    own = [
        (number, piece.piece.removeprefix(_SPACE))
        for number, piece in enumerate(model.pieces)
        if re.fullmatch(rf"{_SPACE}?<extra_id_\d+>", piece.piece)
    ]
    count = len(model.pieces)
    after = [(count + SENTINELS - 1 - n, f"<extra_id_{n}>") for n in reversed(range(SENTINELS))]
    return own or after


def _added(number: int, text: str) -> dict[str, Any]:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _normalizer(normalised: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if normalised.precompiled_charsmap:
        table = base64.b64encode(normalised.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if normalised.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return {"type": "Sequence", "normalizers": steps}


def _metaspace(normalised: Any) -> dict[str, Any]:
    scheme = "always" if normalised.add_dummy_prefix else "never"
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": scheme, "split": True}


def _decoder(normalised: Any) -> dict[str, Any]:
    """Bytes become characters again, and marks of spaces spaces, but for the first one."""
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if normalised.add_dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _ends_with(eos_id: int, eos: str) -> dict[str, Any]:
    """Every text is followed by the end of sequence."""
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    end = {"SpecialToken": {"id": eos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, end],
        "pair": [first, end, second, end],
        "special_tokens": {eos: {"id": eos, "ids": [eos_id], "tokens": [eos]}},
    }
