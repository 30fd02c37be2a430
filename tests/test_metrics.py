import functools
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from tasks import bootstrap, metrics
from tasks.metrics import accuracy, bleu, bleu_intl, chrf, exact_match, f1, rouge

TARGETS = ["the cat sat on the mat .", "there is a dog in the big garden ."]
PREDICTIONS = ["the cat sat on a mat .", "there is a dog in the garden ."]
ALL = (bleu, bleu_intl, chrf, rouge, exact_match, f1, accuracy)

# Short words of several scripts, so that n-grams match now and then.
WORDS = st.sampled_from(["the", "cat", "Übergröße", "ș", "été", "नमस्ते", "猫", "—", ".", "a&b"])
SEGMENTS = st.lists(WORDS, max_size=9).map(" ".join)
CORPORA = st.lists(st.tuples(SEGMENTS, SEGMENTS), min_size=1, max_size=8)


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


@pytest.mark.parametrize(("metric", "names"), [
    (bleu, ["bleu"]), (bleu_intl, ["bleu_intl"]), (chrf, ["chrf"]), (f1, ["f1"]),
    (rouge, ["rouge1", "rouge2", "rougeL", "rougeLsum"]), (exact_match, ["exact_match"]),
    (accuracy, ["accuracy"]),
])  # fmt: skip
def test_identical_text_scores_one_hundred(metric, names):
    result = metric(TARGETS, TARGETS)
    for name in names:
        assert result[name] == pytest.approx(100.0)
        assert result[f"{name}_low"] == pytest.approx(100.0) == result[f"{name}_high"]
        assert isinstance(result[f"{name}_signature"], str)
    signatures = {key for key in result if key.endswith("_signature")}
    assert signatures == {f"{name}_signature" for name in names}


def test_order_of_the_arguments_is_targets_first():
    # A prediction shorter than its target is penalised; a longer one is not.
    assert bleu(["a b c d e f"], ["a b c d e"])["brevity_penalty"] < 1.0
    assert bleu(["a b c d e"], ["a b c d e f"])["brevity_penalty"] == 1.0


def test_tokenizers_differ_and_say_so():
    # 13a keeps "Œuvre—là" as one token, intl splits at the dash (any Unicode punctuation).
    targets, predictions = (
        ["une œuvre—là bas et un jour"] * 2,
        ["une œuvre — là bas et un jour"] * 2,
    )
    default, intl = bleu(targets, predictions), bleu_intl(targets, predictions)
    assert default["bleu"] < 99.0 and intl["bleu_intl"] == pytest.approx(100.0)
    assert "tok:13a" in default["bleu_signature"]
    assert "tok:intl" in intl["bleu_intl_signature"]
    assert default.keys().isdisjoint(intl) and len(default) == len(intl)


def test_chrf_against_the_definition():
    # "abc" and "abd": 2 of 3 characters, 1 of 2 pairs, 0 of 1 triple, and none longer.
    assert chrf(["a bc"], ["ab d"])["chrf"] == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    # Precision and recall differ: "ab" against "abc" over the two orders that both have.
    precision, recall = (1 + 1) / 2, (2 / 3 + 1 / 2) / 2
    expected = 5 * precision * recall / (4 * precision + recall)
    assert chrf(["abc"], ["ab"])["chrf"] == pytest.approx(100 * expected)


def test_chrf_prefers_the_closer_inflection():
    near, far = chrf(["die Häuser"], ["die Häusern"]), chrf(["die Häuser"], ["das Auto"])
    assert 100.0 > near["chrf"] > far["chrf"] > 0.0
    assert "nc:6" in near["chrf_signature"] and "nw:0" in near["chrf_signature"]


def test_rouge_against_the_definition():
    # 3 of 4 and of 5 words, 1 of 3 and of 4 pairs; "a b d" in order.
    result = rouge(["a b c d"], ["a b x d y"])
    assert result["rouge1"] == pytest.approx(100 * 2 * 3 / 9)
    assert result["rouge2"] == pytest.approx(100 * 2 * 1 / 7)
    assert result["rougeL"] == result["rougeLsum"] == pytest.approx(100 * 2 * 3 / 9)
    # The mean over segments, and order matters to the subsequence alone.
    result = rouge(["a b c d", "a b"], ["a b x d y", "b a"])
    assert result["rouge1"] == pytest.approx((100 * 2 * 3 / 9 + 100) / 2)
    assert result["rougeL"] == pytest.approx((100 * 2 * 3 / 9 + 50) / 2)
    assert "tok:unicode-words" in result["rougeL_signature"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.text("ab cD\n.1", max_size=30)] * 2), min_size=1, max_size=4))
def test_rouge_of_ascii_is_stock_rouge(pairs):
    result = rouge(*zip(*pairs, strict=True))
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        stock = [RougeScorer([name]).score(*pair)[name].fmeasure for pair in pairs]
        assert result[name] == pytest.approx(100 * sum(stock) / len(stock))


def test_rouge_counts_words_of_every_script():
    words = metrics.UnicodeWords().tokenize
    assert words("Übergroße Œuvre—là, naïve!") == ["übergroße", "œuvre", "là", "naïve"]
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("cafe\u0301") == words("caf\u00e9") == ["café"]
    assert rouge(["größer"], ["großer"])["rouge1"] == 0.0  # both "gr er" to the stock tokenizer
    assert rouge(["мир и война"], ["война и мир"])["rouge1"] == 100.0


def test_squad_scores_against_the_definition():
    targets = ["The Treaty of Versailles", "Rhine", "1066"]
    predictions = ["treaty of versailles!", "the river Rhine", "in 1067"]
    assert exact_match(targets, predictions)["exact_match"] == pytest.approx(100 / 3)
    # Without articles: all words; 1 of 2 and of 1 words; none.
    assert f1(targets, predictions)["f1"] == pytest.approx((100 + 200 * 1 / 3 + 0) / 3)
    assert f1(["b b c"], ["b b b"])["f1"] == pytest.approx(200 * 2 / 6)  # words count as often
    assert exact_match(["Straße"], ["straße."])["exact_match"] == 100.0
    assert "squad1.1" in f1(["x"], ["x"])["f1_signature"]


def test_accuracy_takes_text_to_the_letter():
    result = accuracy(["True", "False", "a", "b"], ["True", " False\n", "A", ""])
    assert result["accuracy"] == 50.0 and "accuracy_signature" in result


@pytest.mark.parametrize("metric", ALL)
def test_empty_output_scores_zero(metric):
    result = metric(TARGETS, ["", ""])
    name = next(key for key in result if f"{key}_signature" in result)
    assert result[name] == result[f"{name}_low"] == result[f"{name}_high"] == 0.0


@pytest.mark.parametrize("metric", ALL)
def test_mistakes_are_named(metric):
    with pytest.raises(ValueError, match="2 targets but 1 predictions"):
        metric(TARGETS, PREDICTIONS[:1])
    with pytest.raises(ValueError, match="at least one sentence"):
        metric([], [])
    with pytest.raises(ValueError, match=r"target 1 is of type dict; expected text.*task's metric"):
        metric(["x", {"target": "True"}], ["x", "True"])
    with pytest.raises(ValueError, match="prediction 0 is of type bytes"):
        metric(["x"], [b"x"])


@settings(deadline=None, max_examples=25)
@given(CORPORA, st.randoms())
def test_order_of_the_segments_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    for metric in ALL:
        one, other = (metric(*zip(*corpus, strict=True)) for corpus in (pairs, shuffled))
        for key, value in one.items():
            if not key.endswith(("_low", "_high")):
                assert other[key] == (pytest.approx(value) if isinstance(value, float) else value)


@settings(deadline=None, max_examples=60)
@given(CORPORA, st.data())
def test_resampled_formulas_are_sacrebleus_own(pairs, data):
    """Of the corpus itself, and of any corpus drawn from it."""
    number = st.integers(0, len(pairs) - 1)
    drawn = data.draw(st.lists(number, min_size=1, max_size=12))
    for chosen in (range(len(pairs)), drawn):
        targets, predictions = ([pairs[i][side] for i in chosen] for side in (0, 1))
        for tokenize in ("13a", "intl"):
            by_sentence = BLEU(tokenize=tokenize, effective_order=True)
            rows = [metrics.bleu_statistics(*pairs[i], by_sentence) for i in chosen]
            stock = BLEU(tokenize=tokenize, force=True).corpus_score(predictions, [targets])
            assert metrics.bleu_of_sums(np.sum(rows, axis=0, keepdims=True)) == [stock.score]
        rows = [metrics.chrf_statistics(*pairs[i]) for i in chosen]
        stock = CHRF().corpus_score(predictions, [targets])
        ours = metrics.chrf_of_sums(np.sum(rows, axis=0, keepdims=True).astype(float))
        assert ours == [pytest.approx(stock.score, rel=1e-12)]


def test_resamples_have_the_size_of_the_test_set_and_its_mean():
    times = bootstrap.resampled_sums(np.eye(50), resamples=4000)
    assert times.shape == (4000, 50) and (times.sum(axis=1) == 50).all() and times.min() == 0
    # Each segment is drawn Binomial(50, 1/50) times; four standard errors of mean and variance.
    assert np.abs(times.mean(axis=0) - 1).max() < 4 * math.sqrt(0.98 / 4000)
    assert times.var() == pytest.approx(0.98, abs=0.02)


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    statistics = np.arange(39).reshape(13, 3)
    together = bootstrap.resampled_sums(statistics, resamples=100)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 13 * 7)
    assert (bootstrap.resampled_sums(statistics, resamples=100) == together).all()


def test_intervals_are_the_same_every_time_and_hold_the_score():
    targets, predictions = TARGETS * 20, (PREDICTIONS + TARGETS) * 10
    for metric in ALL:
        result = metric(targets, predictions)
        assert metric(list(targets), list(predictions)) == result
        for name in [key for key in result if f"{key}_signature" in result]:
            assert result[f"{name}_low"] < result[name] < result[f"{name}_high"]


@pytest.mark.parametrize("metric", ALL)
def test_one_segment_has_no_interval(metric):
    assert not [key for key in metric(TARGETS[:1], PREDICTIONS[:1]) if key.endswith("_low")]


def test_more_segments_narrow_the_interval():
    def width(times):
        result = accuracy(["x"] * 10 * times, ["x"] * 7 * times + ["y"] * 3 * times)
        return result["accuracy_high"] - result["accuracy_low"]

    assert width(100) == pytest.approx(width(4) / 5, rel=0.15)  # as one over the square root


def test_intervals_of_a_mean_cover_the_truth():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        result = bootstrap.mean_scores({"x": 100.0 * (random.random(150) < 0.7)})
        covered += result["x_low"] <= 70.0 <= result["x_high"]
    # 95 % but for 2.5 standard errors of 400 trials, and a percentile interval's small shortfall.
    assert 0.92 < covered / 400 < 0.98


def test_intervals_of_bleu_cover_the_truth(monkeypatch):
    """The truth is the BLEU of a large population; test sets are drawn from it."""
    fewer = functools.partial(bootstrap.resampled_sums, resamples=400)
    monkeypatch.setattr(bootstrap, "resampled_sums", fewer)
    random = np.random.default_rng(2)
    lengths = random.integers(8, 40, size=20_000)
    totals = lengths[:, None] - np.arange(4)
    skill = random.beta(6, 3, size=(len(lengths), 1)) ** np.arange(1, 5)
    population = np.column_stack(
        [lengths, lengths + random.integers(-3, 5, size=len(lengths)),
         random.binomial(totals, skill), totals]
    )  # fmt: skip
    (truth,) = metrics.bleu_of_sums(population.sum(axis=0, keepdims=True))
    covered = 0
    for _ in range(200):
        test_set = population[random.integers(len(population), size=200)]
        result = bootstrap.intervals(test_set, lambda sums: {"bleu": metrics.bleu_of_sums(sums)})
        covered += result["bleu_low"] <= truth <= result["bleu_high"]
    assert 0.91 < covered / 200 < 0.99


def test_stock_seqio_takes_the_functions_as_they_are():
    import seqio
    import tensorflow as tf

    vocabulary = seqio.ByteVocabulary()
    texts = ["das Haus", "die Straße"]

    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": texts, "inputs": texts})

    task = seqio.Task(
        "metrics_of_text",
        source=seqio.FunctionDataSource(read, splits=["test"]),
        preprocessors=[seqio.preprocessors.tokenize],
        output_features={"targets": seqio.Feature(vocabulary), "inputs": seqio.Feature(vocabulary)},
        metric_fns=list(ALL),
    )
    assert list(task.predict_metric_fns) == list(ALL) and not task.score_metric_fns
    data = list(task.get_dataset(None, "test", shuffle=False).as_numpy_iterator())
    outputs = np.zeros((2, 16), np.int32)
    for row, text in zip(outputs, ("das Haus", "die Strasse"), strict=True):
        tokens = vocabulary.encode(text)
        row[: len(tokens)] = tokens
    expected = [metric(texts, ["das Haus", "die Strasse"]) for metric in ALL]
    for metric, wanted in zip(task.metric_objs, expected, strict=True):
        collected = metric.from_model_output(data, outputs, task.output_features)
        found, _ = collected.actual_compute(data, task.output_features)
        assert found == wanted


def test_neither_seqio_nor_tensorflow_nor_scipy_is_imported():
    code = (
        "import sys, tasks.metrics, tasks.superglue_metrics\n"
        "print([m for m in ('seqio', 'tensorflow', 'scipy', 'nltk') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
