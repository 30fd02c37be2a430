"""Metrics of generated text: functions of (targets, predictions) -> dict of JSON values.

A score K comes with `K_signature`, a record of what makes two values of it comparable, such as
sacreBLEU's (Post 2018, arXiv 1804.08771), and `K_low` and `K_high`, its 95 % bootstrap interval
(tasks/bootstrap.py), which a test set of one segment does not have. Scores are from 0 to 100.
Nothing in a result depends on more than the two lists.

All functions take
  targets: one reference per segment,
  predictions: one output per segment, in the same order,
and raise ValueError for lists of different length, empty lists, and targets that are no text.
"""

import importlib.metadata
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tasks import bootstrap

Result = dict[str, float | str]


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> Result:
    """Corpus BLEU of detokenized text with tokenizer 13a, what papers print (Papineni et al. 2002).

    Returns bleu with signature and interval, bleu_precision_1 ... bleu_precision_4 (n-gram
    precisions, percent) and brevity_penalty (1 unless the output is shorter than the references).
    """
    return _bleu(targets, predictions, "13a", "")


def bleu_intl(targets: Sequence[str], predictions: Sequence[str]) -> Result:
    """BLEU with tokenizer intl, what T5 prints.

    Returns what `bleu` does, all keys ending in _intl (bleu_intl, bleu_intl_signature,
    brevity_penalty_intl, ...), so that both fit in one record.
    """
    return _bleu(targets, predictions, "intl", "_intl")


def chrf(targets: Sequence[str], predictions: Sequence[str]) -> Result:
    """Corpus chrF2: F-score of character 1- to 6-grams, recall weighted 2 (Popovic 2015).

    Returns chrf with signature and interval.
    """
    check("chrf", targets, predictions)
    metric = CHRF()
    score = metric.corpus_score(list(predictions), [list(targets)])
    statistics = [chrf_statistics(*pair) for pair in zip(targets, predictions, strict=True)]
    return {
        "chrf": float(score.score),
        "chrf_signature": str(metric.get_signature()),
        **bootstrap.intervals(np.array(statistics), lambda sums: {"chrf": chrf_of_sums(sums)}),
    }


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> Result:
    """ROUGE F-scores, means over segments (Lin 2004), by the package rouge_score, not stemmed.

    Words are maximal runs of Unicode letters, marks and digits in lower case: the package's own
    tokenizer knows a-z and 0-9 alone, and takes "übergroß" for the words "bergro". On plain
    English both give the same. Text without spaces between words (Chinese, Japanese, Thai) is not
    split, so that ROUGE says little of it.

    Returns rouge1, rouge2 (words and pairs of words), rougeL (longest common subsequence) and
    rougeLsum (the same by lines of the text; equal to rougeL for text of one line), each with
    signature and interval.
    """
    # Imported here: it brings nltk and scipy, which the training process has no other use for.
    from rouge_score.rouge_scorer import RougeScorer

    check("rouge", targets, predictions)
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    by_line = RougeScorer(list(names), tokenizer=UnicodeWords())
    one_line = RougeScorer(list(names[:3]), tokenizer=UnicodeWords())
    columns: dict[str, list[float]] = {name: [] for name in names}
    for target, prediction in zip(targets, predictions, strict=True):
        lines = "\n" in target or "\n" in prediction
        scored = (by_line if lines else one_line).score(target, prediction)
        for name in names:
            # The second longest common subsequence of the same words is not worth its time.
            found = scored[name if lines or name != "rougeLsum" else "rougeL"]
            columns[name].append(100.0 * found.fmeasure)
    version = importlib.metadata.version("rouge_score")
    signature = f"f1|case:lower|tok:unicode-words|stem:no|rouge_score:{version}"
    return _with_signatures(bootstrap.mean_scores(columns), dict.fromkeys(names, signature))


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> Result:
    """Percent of predictions equal to their target, both normalised as by `squad_words`.

    Returns exact_match with signature and interval.
    """
    return _squad("exact_match", squad_exact_match, targets, predictions)


def f1(targets: Sequence[str], predictions: Sequence[str]) -> Result:
    """Mean F1 of the words of prediction and target, normalised as by `squad_words`.

    Returns f1 with signature and interval.
    """
    return _squad("f1", squad_f1, targets, predictions)


def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Result:
    """Percent of predictions that are their target to the letter; white space around it is free.

    Returns accuracy with signature and interval.
    """
    check("accuracy", targets, predictions)
    right = [
        100.0 * (target.strip() == prediction.strip())
        for target, prediction in zip(targets, predictions, strict=True)
    ]
    signatures = {"accuracy": "match:text|strip:white-space"}
    return _with_signatures(bootstrap.mean_scores({"accuracy": right}), signatures)


SQUAD_SIGNATURE = "norm:squad1.1|case:lower|punct:no|articles:no|tok:white-space"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad_words(text: str) -> list[str]:
    """The words of an answer as SQuAD 1.1 compares them (Rajpurkar et al. 2016).

    Lower case, then without ASCII punctuation, then without the English articles, split at white
    space. Other languages keep their articles and punctuation, as in the benchmark's own script.
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def squad_exact_match(target: str, prediction: str) -> float:
    """100 if the words of both are the same in the same order, else 0."""
    return 100.0 * (squad_words(target) == squad_words(prediction))


def squad_f1(target: str, prediction: str) -> float:
    """F1 in percent of the two bags of words; 0 where they share none, also if both are empty."""
    expected, found = squad_words(target), squad_words(prediction)
    shared = (Counter(expected) & Counter(found)).total()
    return 200.0 * shared / (len(expected) + len(found)) if shared else 0.0


def check(
    metric: str, targets: Sequence[Any], predictions: Sequence[str], target_type: type = str
) -> None:
    """Raises ValueError unless there is one prediction for every target, of that type."""
    if len(targets) != len(predictions):
        raise ValueError(
            f"{metric}: {len(targets)} targets but {len(predictions)} predictions; "
            "expected one prediction for every target"
        )
    if not len(targets):
        raise ValueError(f"{metric}: no targets; a corpus metric needs at least one sentence")
    for number, (target, prediction) in enumerate(zip(targets, predictions, strict=True)):
        for what, value, kind in (("target", target, target_type), ("prediction", prediction, str)):
            if not isinstance(value, kind):
                raise ValueError(
                    f"{metric}: {what} {number} is of type {type(value).__name__}; expected "
                    f"{'text' if kind is str else kind.__name__}: is this the task's metric?"
                )


class UnicodeWords:
    """Tokenizer for rouge_score: runs of letters, marks and digits of any script, in lower case."""

    def tokenize(self, text: str) -> list[str]:
        # Composed, so that two spellings of one letter are one word; marks are parts of words in
        # the scripts of India, for instance.
        text = unicodedata.normalize("NFC", text.lower())
        return "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text).split()


def bleu_statistics(target: str, prediction: str, metric: BLEU) -> list[int]:
    """(10,) lengths of prediction and target, matched 1- to 4-grams, 1- to 4-grams of predictions.

    `metric` needs effective_order, which touches no count, or sacreBLEU warns of each sentence.
    """
    score = metric.sentence_score(prediction, [target])
    return [score.sys_len, score.ref_len, *score.counts, *score.totals]


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """(R,) corpus BLEU of sums of `bleu_statistics` (R, 10), by sacreBLEU's own formula."""
    return np.array([
        BLEU.compute_bleu(
            correct=row[2:6], total=row[6:], sys_len=row[0], ref_len=row[1], smooth_method="exp"
        ).score
        for row in sums.astype(np.int64).tolist()
    ])  # fmt: skip


def chrf_statistics(target: str, prediction: str) -> list[int]:
    """(18,) for n of 1 to 6: character n-grams of the prediction, of the target, of both.

    White space does not count. A prediction's n-grams count only where the target has some too.
    """
    target, prediction = "".join(target.split()), "".join(prediction.split())
    row = []
    for n in range(1, CHRF.CHAR_ORDER + 1):
        of_target, of_prediction = (
            Counter([text[i : i + n] for i in range(len(text) - n + 1)])
            for text in (target, prediction)
        )
        matched = sum(min(k, of_target[g]) for g, k in of_prediction.items() if g in of_target)
        expected = of_target.total()
        row += [of_prediction.total() if expected else 0, expected, matched]
    return row


def chrf_of_sums(sums: np.ndarray) -> np.ndarray:
    """(R,) corpus chrF2 of sums of `chrf_statistics` (R, 18).

    F-score of the means, over the orders that both texts have, of precision and of recall.
    """
    found, expected, matched = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)
    orders = (found > 0) & (expected > 0)
    count = np.maximum(orders.sum(axis=1), 1)
    precision = (matched / np.where(orders, found, 1) * orders).sum(axis=1) / count
    recall = (matched / np.where(orders, expected, 1) * orders).sum(axis=1) / count
    weight = CHRF.BETA**2
    both = weight * precision + recall
    return 100.0 * (1 + weight) * precision * recall / np.where(both > 0, both, 1)


def _bleu(targets: Sequence[str], predictions: Sequence[str], tokenize: str, suffix: str) -> Result:
    name = f"bleu{suffix}"
    check(name, targets, predictions)
    # force: sacreBLEU would otherwise warn whenever a weak model's output looks tokenized.
    metric = BLEU(tokenize=tokenize, force=True)
    score = metric.corpus_score(list(predictions), [list(targets)])
    result = {
        name: float(score.score),
        f"{name}_signature": str(metric.get_signature()),
        f"brevity_penalty{suffix}": float(score.bp),
    }
    for n, precision in enumerate(score.precisions, start=1):
        result[f"bleu_precision_{n}{suffix}"] = float(precision)
    by_sentence = BLEU(tokenize=tokenize, effective_order=True)
    statistics = [
        bleu_statistics(*pair, by_sentence) for pair in zip(targets, predictions, strict=True)
    ]
    interval = bootstrap.intervals(np.array(statistics), lambda sums: {name: bleu_of_sums(sums)})
    return result | interval


def _squad(
    name: str,
    score: Callable[[str, str], float],
    targets: Sequence[str],
    predictions: Sequence[str],
) -> Result:
    check(name, targets, predictions)
    values = [score(*pair) for pair in zip(targets, predictions, strict=True)]
    return _with_signatures(bootstrap.mean_scores({name: values}), {name: SQUAD_SIGNATURE})


def _with_signatures(values: dict[str, float], signatures: dict[str, str]) -> Result:
    return values | {f"{name}_signature": text for name, text in signatures.items()}
