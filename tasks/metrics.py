"""Metrics of generated text: functions of (targets, predictions) -> dict of JSON values.

A score stands beside its signature (`bleu`, `bleu_signature`): sacreBLEU's record of tokenizer,
smoothing and version (Post 2018, arXiv 1804.08771), without which two scores cannot be compared.
Nothing else in the result depends on more than the two lists.
"""

from collections.abc import Sequence

from sacrebleu.metrics import BLEU, CHRF

BLEU_TOKENIZERS = ("13a", "intl")


def _check(metric: str, targets: Sequence[str], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(
            f"{metric}: {len(targets)} targets but {len(predictions)} predictions; "
            "expected one prediction for every target"
        )
    if not targets:
        raise ValueError(f"{metric}: no targets; a corpus metric needs at least one sentence")


def bleu(
    targets: Sequence[str], predictions: Sequence[str], *, tokenize: str = "13a"
) -> dict[str, float | str]:
    """Corpus BLEU, 0 to 100, of detokenized text (Papineni et al. 2002).

    Args:
      targets: one reference per sentence.
      predictions: one hypothesis per sentence, in the same order.
      tokenize: "13a", what papers print, or "intl", what T5 prints.

    Returns:
      bleu, bleu_signature, bleu_precision_1 ... bleu_precision_4 (n-gram precisions, percent) and
      brevity_penalty (1 unless the output is shorter than the references). For "intl" all keys end
      in _intl (bleu_intl, bleu_intl_signature, ...), so that both fit in one record.

    Raises:
      ValueError: lists of different length, empty lists, or an unknown tokenizer.
    """
    if tokenize not in BLEU_TOKENIZERS:
        raise ValueError(f"bleu: tokenize is {tokenize!r}; expected one of {BLEU_TOKENIZERS}")
    _check("bleu", targets, predictions)
    # force: sacreBLEU would otherwise warn whenever a weak model's output looks tokenized.
    metric = BLEU(tokenize=tokenize, force=True)
    score = metric.corpus_score(list(predictions), [list(targets)])
    suffix = "" if tokenize == "13a" else f"_{tokenize}"
    result = {
        f"bleu{suffix}": float(score.score),
        f"bleu{suffix}_signature": str(metric.get_signature()),
        f"brevity_penalty{suffix}": float(score.bp),
    }
    for n, precision in enumerate(score.precisions, start=1):
        result[f"bleu_precision_{n}{suffix}"] = float(precision)
    return result


def chrf(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float | str]:
    """Corpus chrF2, 0 to 100: F-score of character 1- to 6-grams, recall weighted 2 (Popovic 2015).

    Returns chrf and chrf_signature; arguments and errors as `bleu`.
    """
    _check("chrf", targets, predictions)
    metric = CHRF()
    score = metric.corpus_score(list(predictions), [list(targets)])
    return {"chrf": float(score.score), "chrf_signature": str(metric.get_signature())}
