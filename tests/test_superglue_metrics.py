import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import superglue_metrics as superglue
from tasks.superglue_metrics import LABELS, cb, multirc, record

ACCURACY = (superglue.boolq, superglue.copa, superglue.rte, superglue.wic)
ALL = (*ACCURACY, cb, multirc, record)


def labels(texts):
    return [{"target": text} for text in texts]


def answers(*rows):
    """(group, target, prediction) of every answer -> what multirc takes."""
    targets = [{"group": group, "target": target} for group, target, _ in rows]
    return targets, [prediction for *_, prediction in rows]


def queries(*rows):
    """(group, answers, prediction) -> what record takes."""
    targets = [{"group": group, "answers": choices} for group, choices, _ in rows]
    return targets, [prediction for *_, prediction in rows]


def macro_f1(targets, predictions, classes):
    """By the definition, counting one class at a time."""
    total = 0.0
    for label in classes:
        pairs = [(t == label, p == label) for t, p in zip(targets, predictions, strict=True)]
        right = sum(t and p for t, p in pairs)
        wrong = sum(t != p for t, p in pairs)
        total += 2 * right / (2 * right + wrong) if right else 0.0
    return 100 * total / len(classes)


@pytest.mark.parametrize("metric", ACCURACY)
def test_accuracy_is_the_share_of_right_labels(metric):
    first, second = LABELS[metric.__name__]
    targets = labels([first, second, first, second])
    result = metric(targets, [first, first, f" {first} ", second])
    assert result["accuracy"] == 75.0 and result["no_label"] == 0.0
    assert result["accuracy_low"] < 75.0 < result["accuracy_high"]
    assert result["accuracy_signature"].startswith(f"superglue:{metric.__name__}|")


@pytest.mark.parametrize("metric", ACCURACY)
def test_what_is_no_label_is_wrong_and_counted(metric):
    first, second = LABELS[metric.__name__]
    result = metric(labels([first, second]), ["", second.upper()])
    assert result["accuracy"] == 0.0 and result["no_label"] == 100.0


def test_cb_by_hand():
    e, c, n = LABELS["cb"]
    result = cb(labels([e, e, c, c, n]), [e, c, c, c, e])
    # entailment: 1 right, 1 missed, 1 too many; contradiction: 2, 0, 1; neutral: none right.
    assert result["accuracy"] == pytest.approx(60)
    assert result["f1_macro"] == pytest.approx(100 * (1 / 2 + 4 / 5 + 0) / 3)
    assert result["mean"] == pytest.approx((60 + 100 * (1 / 2 + 4 / 5) / 3) / 2)
    assert {k for k in result if k.endswith("_signature")} == {
        "accuracy_signature", "f1_macro_signature", "mean_signature"
    }  # fmt: skip


def test_cb_counts_a_label_that_is_missing_as_zero():
    e, c, _ = LABELS["cb"]
    assert cb(labels([e, c]), [e, c])["f1_macro"] == pytest.approx(200 / 3)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.sampled_from([*LABELS["cb"], "noise"])] * 2), min_size=1))
def test_cb_against_the_definition(pairs):
    pairs = [(t if t != "noise" else LABELS["cb"][0], p) for t, p in pairs]
    targets, predictions = zip(*pairs, strict=True)
    result = cb(labels(targets), predictions)
    assert result["f1_macro"] == pytest.approx(macro_f1(targets, predictions, LABELS["cb"]))
    right = sum(t == p for t, p in pairs)
    assert result["accuracy"] == pytest.approx(100 * right / len(pairs))


def test_multirc_by_hand():
    result = multirc(*answers(
        ("1-0", "True", "True"), ("1-0", "False", "False"), ("1-0", "False", "False"),
        ("1-1", "True", "False"), ("1-1", "True", "True"),
        ("2-0", "False", "True"), ("2-0", "False", "False"), ("2-1", "False", "False"),
    ))  # fmt: skip
    # Of all answers: 2 true ones found, 1 missed, 1 too many; 2 of 4 questions without a mistake.
    assert result["f1_a"] == pytest.approx(100 * 4 / 6)
    assert result["exact_match"] == 50.0
    assert result["mean"] == pytest.approx((100 * 4 / 6 + 50) / 2)


def test_multirc_takes_what_is_no_label_for_the_other_one():
    rows = [("1-0", "True", "True"), ("1-0", "True", "?"), ("1-1", "False", "?")]
    flipped = [("1-0", "True", "True"), ("1-0", "True", "False"), ("1-1", "False", "True")]
    result, expected = multirc(*answers(*rows)), multirc(*answers(*flipped))
    assert result["no_label"] == pytest.approx(200 / 3) and expected["no_label"] == 0.0
    assert {**result, "no_label": 0.0} == expected
    assert result["f1_a"] == pytest.approx(50) and result["exact_match"] == 0.0


def test_multirc_without_a_true_answer_anywhere_has_no_f1():
    result = multirc(*answers(("1", "False", "False"), ("2", "False", "False")))
    assert result["f1_a"] == 0.0 and result["exact_match"] == 100.0


def test_record_takes_the_best_answer_of_each_query():
    result = record(*queries(
        ("0-0", ["Barack Obama", "The President"], "president"),
        ("0-1", ["New York City", "NYC"], "New York"),
        ("1-0", ["Zürich"], "Bern"),
    ))  # fmt: skip
    assert result["exact_match"] == pytest.approx(100 / 3)
    assert result["f1"] == pytest.approx((100 + 200 * 2 / 5 + 0) / 3)
    assert result["mean"] == pytest.approx((result["exact_match"] + result["f1"]) / 2)
    assert "squad1.1" in result["f1_signature"]


def test_record_counts_the_examples_of_one_query_as_one():
    once = queries(("0-0", ["a1", "b1"], "a1"), ("0-1", ["c1"], "x"))
    twice = queries(("0-0", ["a1", "b1"], "a1"), ("0-0", ["a1", "b1"], "a1"), ("0-1", ["c1"], "x"))
    assert record(*twice) == record(*once)
    assert record(*once)["exact_match"] == 50.0


def test_intervals_resample_questions_and_not_answers():
    """Eight answers a question, all right or all wrong: as wide as with one answer a question."""
    one = [(str(i), "True", "True" if i % 3 else "False") for i in range(30)]
    many = [row for row in one for _ in range(8)]
    few, eight = multirc(*answers(*one)), multirc(*answers(*many))
    for key in ("f1_a_low", "f1_a_high", "exact_match_low", "exact_match_high"):
        assert eight[key] == pytest.approx(few[key])
    assert few["exact_match_low"] < few["exact_match"] < few["exact_match_high"]


def test_one_question_has_no_interval():
    result = multirc(*answers(("1", "True", "True"), ("1", "False", "True")))
    assert not [key for key in result if key.endswith(("_low", "_high"))]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(*[st.sampled_from(["0", "1", "2"]), *[st.booleans()] * 2],), min_size=1),
       st.randoms())  # fmt: skip
def test_order_of_the_examples_does_not_matter(rows, random):
    rows = [(group, str(target), str(found)) for group, target, found in rows]
    shuffled = random.sample(rows, len(rows))
    one, other = (multirc(*answers(*r)) for r in (rows, shuffled))
    for key in ("f1_a", "exact_match", "mean", "no_label"):
        assert one[key] == pytest.approx(other[key])


def test_the_same_input_gives_the_same_result():
    rows = answers(*((str(i // 3), str(i % 2 == 0), str(i % 5 == 0)) for i in range(60)))
    assert multirc(*rows) == multirc(*rows)


@pytest.mark.parametrize("metric", ALL)
def test_mistakes_are_named(metric):
    name = metric.__name__
    with pytest.raises(ValueError, match=f"{name}: 1 targets but 0 predictions"):
        metric([{"target": "True"}], [])
    with pytest.raises(ValueError, match=f"{name}: no targets"):
        metric([], [])
    with pytest.raises(ValueError, match=f"{name}: target 0 is of type str; expected Mapping"):
        metric(["True"], ["True"])
    with pytest.raises(ValueError, match=f"{name}: target 0 has no '(target|group)', but 'x'"):
        metric([{"x": 1}], ["True"])


def test_unknown_targets_are_named():
    with pytest.raises(ValueError, match="boolq: target 1 is 'yes'; expected one of False, True"):
        superglue.boolq(labels(["True", "yes"]), ["True", "True"])
    with pytest.raises(ValueError, match="record: target 0 has no answers"):
        record(*queries(("0", [], "x")))


def test_stock_seqio_would_call_them():
    """SeqIO takes functions by the names of their arguments."""
    import inspect

    for metric in ALL:
        assert list(inspect.signature(metric).parameters) == ["targets", "predictions"]
