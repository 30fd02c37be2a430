"""SuperGLUE from its released files: T5's text, and what its metrics need."""

import json

import pytest

seqio = pytest.importorskip("seqio")

from tasks import definitions, superglue, superglue_metrics, vocabularies  # noqa: E402

TASK = "own_superglue"
LENGTHS = {"inputs": 256, "targets": 32}

# Lines as the benchmark's files have them, and the examples that T5 makes of them.
RELEASED = {
    "boolq": {
        "question": "do cats fly", "passage": "Cats -- They walk.", "idx": 0, "label": False,
    },
    "cb": {"premise": "B: And I did.", "hypothesis": "it is so", "label": "neutral", "idx": 1},
    "copa": {
        "premise": "The light went out.", "choice1": "It was night.", "choice2": "The bulb broke.",
        "question": "cause", "label": 1, "idx": 0,
    },
    "rte": {"premise": "It rained.", "hypothesis": "It is dry.", "label": "entailment", "idx": 4},
    "wic": {
        "word": "place", "sentence1": "Do you want to come over to my place later?",
        "sentence2": "A political system with no place for the less prominent groups.", "idx": 0,
        "label": False, "start1": 31, "start2": 27, "end1": 36, "end2": 32, "version": 1.1,
    },
    "multirc": {
        "idx": 5, "version": 1.1,
        "passage": {
            "text": "<b>Sent 1: </b>It rained.<br><b>Sent 2: </b>We stayed.<br>",
            "questions": [
                {
                    "question": "What did we do?", "idx": 2,
                    "answers": [
                        {"text": "Stay", "idx": 7, "label": 1},
                        {"text": "Go", "idx": 8, "label": 0},
                    ],
                },
            ],
        },
    },
    "record": {
        "source": "x", "idx": 9,
        "passage": {
            "text": "Ann met Bob\n@highlight\nBob left.\n@highlight\nAnn stayed",
            "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 23, "end": 25}],
        },
        "qas": [
            {
                "query": "@placeholder saw Bob", "idx": 3,
                "answers": [{"start": 0, "end": 2, "text": "Ann"}, {"text": "Anne"}],
            }
        ],
    },
}  # fmt: skip
_RECORD = (
    "record query: @placeholder saw Bob entities: Ann, Bob "
    "passage: Ann met Bob. Bob left. Ann stayed"
)
TEXT = {
    "boolq": [("boolq passage: Cats -- They walk. question: do cats fly", "False")],
    "cb": [("cb hypothesis: it is so premise: B: And I did.", "neutral")],
    "copa": [
        (
            "copa choice1: It was night. choice2: The bulb broke. premise: The light went out. "
            "question: cause",
            "choice2",
        )
    ],
    "rte": [("rte hypothesis: It is dry. premise: It rained.", "entailment")],
    "wic": [
        (
            "wic sentence1: Do you want to come over to my place later? sentence2: A political "
            "system with no place for the less prominent groups. word: place",
            "False",
        )
    ],
    "multirc": [
        (
            f"multirc question: What did we do? answer: {answer} "
            "paragraph: Sent 1: It rained. Sent 2: We stayed. ",
            label,
        )
        for answer, label in (("Stay", "True"), ("Go", "False"))
    ],
    "record": [(_RECORD, "Ann"), (_RECORD, "Anne")],
}
REFERENCES = {
    **{name: [{"target": text[0][1]}] for name, text in TEXT.items()},
    "multirc": [{"group": "5-2", "target": "True"}, {"group": "5-2", "target": "False"}],
    "record": [{"group": "9-3", "answers": ["Ann", "Anne"]}],
}


@pytest.fixture
def define(tmp_path):
    def call(benchmark, lines, **fields):
        path = tmp_path / "data.jsonl"
        path.write_text("".join(lines), encoding="utf-8")
        files = {"train": str(path), "validation": str(path)}
        definition = {
            "kind": "superglue", "benchmark": benchmark, "files": files, "format": "jsonl",
            "vocabulary": vocabularies.TECHDOC, **fields,
        }  # fmt: skip
        definitions.register({TASK: definition})
        return seqio.TaskRegistry.get(TASK)

    yield call
    seqio.TaskRegistry.remove(TASK)


def released(benchmark):
    return json.dumps(RELEASED[benchmark]) + "\n"


def examples(task, split):
    return list(task.get_dataset(LENGTHS, split, shuffle=False).as_numpy_iterator())


def texts(found):
    return [
        (row["inputs_pretokenized"].decode(), row["targets_pretokenized"].decode()) for row in found
    ]


@pytest.mark.parametrize("benchmark", superglue.BENCHMARKS)
def test_the_text_is_t5s_and_the_references_what_the_metrics_take(benchmark, define):
    task = define(benchmark, [released(benchmark)])
    found = examples(task, "validation")
    expected = TEXT[benchmark][:1] if benchmark == "record" else TEXT[benchmark]
    assert texts(found) == expected
    vocabulary = vocabularies.techdoc()
    for row, (inputs, target) in zip(found, expected, strict=True):
        assert row["inputs"].tolist() == [*vocabulary.encode(inputs), 1]
        assert row["targets"].tolist() == [*vocabulary.encode(target), 1]
    references = [json.loads(row["reference"]) for row in found]
    assert references == REFERENCES[benchmark]
    # As stock SeqIO's evaluator calls them: the task's own postprocessing, then its metrics.
    right = [text for _, text in expected]
    targets = [
        task.postprocess_fn(text, example=row, is_target=True)
        for text, row in zip(right, found, strict=True)
    ]
    predictions = [
        task.postprocess_fn(text, example=row) for text, row in zip(right, found, strict=True)
    ]
    (metric,) = task.metric_fns
    scores = metric(targets, predictions)
    plain = getattr(superglue_metrics, benchmark)(targets, predictions)
    main = [name for name in plain if f"{name}_signature" in plain]
    assert main and all(scores[name] == plain[name] for name in main)
    # CB's F1 is a mean over labels, of which only one is there.
    assert all(plain[name] == 100 for name in main if benchmark != "cb" or name == "accuracy")
    wrong = metric(targets, ["no such answer"] * len(targets))
    assert all(wrong[name] < 100 for name in main)


@pytest.mark.parametrize("benchmark", ["record", "multirc"])
def test_training_has_an_example_for_each_answer(benchmark, define):
    """Of a query of ReCoRD, too, for which evaluation has one example."""
    task = define(benchmark, [released(benchmark)])
    assert texts(examples(task, "train")) == TEXT[benchmark]


def test_lines_that_are_no_example_are_counted(define):
    unlabelled = {k: v for k, v in RELEASED["boolq"].items() if k != "label"}
    other = {**RELEASED["cb"], "label": "perhaps"}
    task = define("boolq", [json.dumps(unlabelled) + "\n", released("boolq"), "{\n"])
    assert len(examples(task, "train")) == 1
    problems = [(r["problem"], r["count"]) for r in task.source.take_report()]
    assert problems == [("broken JSON line", 1), ("missing key", 1)]
    task = define("cb", [json.dumps(other) + "\n", released("cb")])
    assert len(examples(task, "train")) == 1
    ((problem, line),) = [(r["problem"], r["first"][0]) for r in task.source.take_report()]
    assert problem == "unknown label" and line.endswith("data.jsonl:1")


def test_an_unknown_benchmark_is_named(define, tmp_path):
    with pytest.raises(ValueError, match=r"benchmark has 'bolq'.*did you mean 'boolq'"):
        define("bolq", [])
    define("boolq", [released("boolq")])
