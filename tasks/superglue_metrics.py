"""SuperGLUE's metrics (Wang et al. 2019, arXiv 1905.00537) of text-to-text models.

Functions of (targets, predictions), as those of tasks/metrics.py: with signatures, intervals, and
percent. The targets are what SuperGLUE's tasks call `reference`, decoded:
  boolq, rte, wic, cb, copa  {"target": label}
  multirc                    {"group": id of the question, "target": label}, one per answer
  record                     {"group": id of the query, "answers": [text, ...]}
A prediction is a label if it is its text, white space around it apart. One that is no label is
wrong whatever the target; `no_label` says how many percent those are. Intervals resample examples,
and questions or queries where those are what is counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks import bootstrap, metrics

Targets = Sequence[Mapping[str, Any]]

LABELS = {
    "boolq": ("False", "True"),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
    "multirc": ("False", "True"),
    "rte": ("entailment", "not_entailment"),
    "wic": ("False", "True"),
}
_NO_LABEL = -1


def boolq(targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    """Returns accuracy, with signature and interval, and no_label."""
    return _accuracy("boolq", targets, predictions)


def copa(targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    """Returns accuracy, with signature and interval, and no_label."""
    return _accuracy("copa", targets, predictions)


def rte(targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    """Returns accuracy, with signature and interval, and no_label."""
    return _accuracy("rte", targets, predictions)


def wic(targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    """Returns accuracy, with signature and interval, and no_label."""
    return _accuracy("wic", targets, predictions)


def cb(targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    """CommitmentBank.

    Returns accuracy, f1_macro (mean of the F1 of the three labels; 0 for a label that is neither
    expected nor predicted) and mean (of the two), with signatures and intervals, and no_label.
    """
    expected, found = _labels("cb", targets, predictions)
    classes = np.arange(len(LABELS["cb"]))
    is_target, is_prediction = expected[:, None] == classes, found[:, None] == classes

    def score(sums: np.ndarray) -> dict[str, np.ndarray]:
        right, both = sums.reshape(len(sums), 2, len(classes)).transpose(1, 0, 2)
        accuracy = 100.0 * right.sum(axis=1) / len(expected)
        f1_macro = 100.0 * (2 * right / np.maximum(both, 1)).mean(axis=1)
        return {"accuracy": accuracy, "f1_macro": f1_macro, "mean": (accuracy + f1_macro) / 2}

    statistics = np.concatenate(
        [is_target & is_prediction, is_target.astype(int) + is_prediction], axis=1
    )
    return _with_signatures("cb", bootstrap.scores(statistics, score)) | _no_label(found)


def multirc(targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    """MultiRC (Khashabi et al. 2018).

    Returns f1_a (F1 of "True" over the answers of all questions), exact_match (percent of
    questions with every answer right) and mean (of the two), with signatures and intervals, and
    no_label. For an answer that is no label the other one than the target is taken.
    """
    expected, found = _labels("multirc", targets, predictions)
    wrong = 1 - expected
    decided = np.where(found == _NO_LABEL, wrong, found)
    groups, questions = _groups("multirc", targets)
    statistics = np.stack(
        [
            np.bincount(groups, expected & decided, questions),
            np.bincount(groups, expected + decided, questions),
            np.bincount(groups, expected != decided, questions) == 0,
        ],
        axis=1,
    )

    def score(sums: np.ndarray) -> dict[str, np.ndarray]:
        right, both, whole = sums.T
        f1_a = 100.0 * 2 * right / np.maximum(both, 1)
        exact_match = 100.0 * whole / questions
        return {"f1_a": f1_a, "exact_match": exact_match, "mean": (f1_a + exact_match) / 2}

    return _with_signatures("multirc", bootstrap.scores(statistics, score)) | _no_label(found)


def record(targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    """ReCoRD (Zhang et al. 2018): the best of a query's answers, normalised as SQuAD's.

    Returns f1, exact_match and mean (of the two), with signatures and intervals. Examples of one
    query, of which a training split has as many as answers, count together as one.
    """
    metrics.check("record", targets, predictions, target_type=Mapping)
    groups, queries = _groups("record", targets)
    answers = [_field("record", i, target, "answers") for i, target in enumerate(targets)]
    for i, choices in enumerate(answers):
        if not choices:
            raise ValueError(f"record: target {i} has no answers; expected at least one")
    examples = np.bincount(groups, minlength=queries)
    values = {}
    for name, score in (("f1", metrics.squad_f1), ("exact_match", metrics.squad_exact_match)):
        best = [
            max(score(answer, prediction) for answer in choices)
            for choices, prediction in zip(answers, predictions, strict=True)
        ]
        values[name] = np.bincount(groups, best, queries) / examples
    values["mean"] = (values["f1"] + values["exact_match"]) / 2
    return _with_signatures("record", bootstrap.mean_scores(values), metrics.SQUAD_SIGNATURE)


def _accuracy(name: str, targets: Targets, predictions: Sequence[str]) -> metrics.Result:
    expected, found = _labels(name, targets, predictions)
    values = bootstrap.mean_scores({"accuracy": 100.0 * (expected == found)})
    return _with_signatures(name, values) | _no_label(found)


def _labels(
    name: str, targets: Targets, predictions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(S,) int64 each: numbers of the targets' labels and of the predictions', or _NO_LABEL."""
    metrics.check(name, targets, predictions, target_type=Mapping)
    numbers = {label: number for number, label in enumerate(LABELS[name])}
    expected = []
    for i, target in enumerate(targets):
        label = _field(name, i, target, "target")
        if label not in numbers:
            raise ValueError(
                f"{name}: target {i} is {label!r}; expected one of {', '.join(LABELS[name])}"
            )
        expected.append(numbers[label])
    found = [numbers.get(prediction.strip(), _NO_LABEL) for prediction in predictions]
    return np.array(expected), np.array(found)


def _groups(name: str, targets: Targets) -> tuple[np.ndarray, int]:
    """(S,) number of each example's group, in order of first sight, and how many groups."""
    numbers: dict[str, int] = {}
    groups = [
        numbers.setdefault(_field(name, i, target, "group"), len(numbers))
        for i, target in enumerate(targets)
    ]
    return np.array(groups), len(numbers)


def _field(name: str, number: int, target: Mapping[str, Any], key: str) -> Any:
    if key not in target:
        there = ", ".join(map(repr, target)) or "nothing"
        raise ValueError(
            f"{name}: target {number} has no {key!r}, but {there}: is this the task's metric?"
        )
    return target[key]


def _no_label(found: np.ndarray) -> dict[str, float]:
    return {"no_label": float(100.0 * (found == _NO_LABEL).mean())}


def _with_signatures(
    name: str, values: dict[str, float], matching: str = "match:label|no-label:wrong"
) -> metrics.Result:
    signatures = {
        f"{key}_signature": f"superglue:{name}|{matching}"
        for key in values
        if not key.endswith(("_low", "_high"))
    }
    return values | signatures
