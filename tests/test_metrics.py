import math
import subprocess
import sys
from collections import Counter

import pytest

from tasks.metrics import bleu, chrf

TARGETS = ["the cat sat on the mat .", "there is a dog in the big garden ."]
PREDICTIONS = ["the cat sat on a mat .", "there is a dog in the garden ."]


def _ngrams(words, n):
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _bleu_by_hand(targets, predictions):
    matched, total = [0] * 4, [0] * 4
    for target, prediction in zip(targets, predictions, strict=True):
        for n in range(4):
            reference = _ngrams(target.split(), n + 1)
            hypothesis = _ngrams(prediction.split(), n + 1)
            matched[n] += sum((reference & hypothesis).values())
            total[n] += sum(hypothesis.values())
    precisions = [100.0 * m / t for m, t in zip(matched, total, strict=True)]
    lengths = [sum(len(line.split()) for line in lines) for lines in (targets, predictions)]
    penalty = min(1.0, math.exp(1.0 - lengths[0] / lengths[1]))
    geometric_mean = math.exp(sum(math.log(p) for p in precisions) / 4)
    return penalty * geometric_mean, precisions, penalty


def test_bleu_against_the_definition():
    result = bleu(TARGETS, PREDICTIONS)
    score, precisions, penalty = _bleu_by_hand(TARGETS, PREDICTIONS)
    assert result["bleu"] == pytest.approx(score, rel=1e-9)
    assert result["brevity_penalty"] == pytest.approx(penalty, rel=1e-9) and penalty < 1.0
    assert [result[f"bleu_precision_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(precisions)


def test_identical_text_scores_one_hundred():
    assert bleu(TARGETS, TARGETS)["bleu"] == pytest.approx(100.0)
    assert bleu(TARGETS, TARGETS)["brevity_penalty"] == 1.0
    assert chrf(TARGETS, TARGETS)["chrf"] == pytest.approx(100.0)


def test_order_of_the_arguments_is_targets_first():
    # A prediction shorter than its target is penalised; a longer one is not.
    assert bleu(["a b c d e f"], ["a b c d e"])["brevity_penalty"] < 1.0
    assert bleu(["a b c d e"], ["a b c d e f"])["brevity_penalty"] == 1.0


def test_tokenizers_differ_and_say_so():
    # 13a keeps "Œuvre—là" as one token, intl splits at the dash (any Unicode punctuation).
    targets, predictions = ["une œuvre—là bas et un jour"], ["une œuvre — là bas et un jour"]
    default, intl = bleu(targets, predictions), bleu(targets, predictions, tokenize="intl")
    assert default["bleu"] < 99.0 and intl["bleu_intl"] == pytest.approx(100.0)
    assert "tok:13a" in default["bleu_signature"]
    assert "tok:intl" in intl["bleu_intl_signature"]
    assert default.keys().isdisjoint(intl)
    assert all(key.endswith(("_intl", "_intl_signature")) for key in intl)


def test_chrf_prefers_the_closer_inflection():
    near, far = chrf(["die Häuser"], ["die Häusern"]), chrf(["die Häuser"], ["das Auto"])
    assert 100.0 > near["chrf"] > far["chrf"] > 0.0
    assert "nc:6" in near["chrf_signature"] and "nw:0" in near["chrf_signature"]


def test_empty_output_scores_zero():
    assert bleu(TARGETS, ["", ""])["bleu"] == 0.0
    assert chrf(TARGETS, ["", ""])["chrf"] == 0.0


@pytest.mark.parametrize("metric", [bleu, chrf])
def test_mistakes_are_named(metric):
    with pytest.raises(ValueError, match="2 targets but 1 predictions"):
        metric(TARGETS, PREDICTIONS[:1])
    with pytest.raises(ValueError, match="at least one sentence"):
        metric([], [])


def test_unknown_tokenizer_is_named():
    with pytest.raises(ValueError, match=r"'klingon'.*13a"):
        bleu(TARGETS, PREDICTIONS, tokenize="klingon")


def test_neither_seqio_nor_tensorflow_is_imported():
    code = (
        "import sys, tasks.metrics; print([m for m in ('seqio','tensorflow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
