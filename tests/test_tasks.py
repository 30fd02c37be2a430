"""The SeqIO tasks, read as anybody reads SeqIO tasks: with nothing of ours around them."""

import importlib.util
import itertools
import lzma

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")
import tensorflow as tf  # noqa: E402

import tasks.registry  # noqa: E402
from tasks import preprocessors, vocabularies  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402

LENGTHS = {"inputs": 128, "targets": 64}
EOS, FIRST_SENTINEL = 1, 8099


def read(name, count, split="train", lengths=LENGTHS, **kwargs):
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=lengths, split=split, shuffle=False, **{"seed": 0, **kwargs}
    )
    return list(dataset.take(count).as_numpy_iterator())


def restore(inputs, targets):
    """The text tokens that were corrupted into `inputs` and `targets` (both without EOS)."""
    spans = {}
    for token in targets.tolist():
        if token > FIRST_SENTINEL - 100:
            spans[token] = current = []
        else:
            current.append(token)
    return flat(spans.get(t, [t]) for t in inputs.tolist())


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def test_registering_twice_is_harmless():
    names = set(seqio.TaskRegistry.names())
    importlib.reload(tasks.registry)
    assert set(seqio.TaskRegistry.names()) == names


def test_every_language_has_its_tasks_and_mixtures():
    assert {f"techdoc_span_{x}" for x in ("en", "de", "fr", "ro")} <= set(
        seqio.TaskRegistry.names()
    )
    for other in ("de", "fr", "ro"):
        for english in (30, 50, 70):
            mixture = seqio.get_mixture_or_task(f"techdoc_span_en{english}_{other}{100 - english}")
            rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
            assert rates == {"techdoc_span_en": english, f"techdoc_span_{other}": 100 - english}


@pytest.mark.parametrize("language", ["en", "de", "fr", "ro"])
def test_pretraining_is_validated_on_the_validation_pairs(language):
    """The validation split of span corruption is a copy of the cells that translation has; the
    training split is the text that it was before there was one."""
    path = f"{REPOSITORY}/tasks/corpus/build/validation_texts.py"
    spec = importlib.util.spec_from_file_location("validation_texts", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with lzma.open(vocabularies.CORPUS / f"valid.{language}.jsonl.xz", "rt") as file:
        assert file.read() == script.documents(language)
    source = seqio.get_mixture_or_task(f"techdoc_span_{language}").source
    (path,) = source.list_shards("train")
    assert path == str(vocabularies.CORPUS / f"pretrain.{language}.jsonl.xz")
    mixture = seqio.get_mixture_or_task("techdoc_span_en50_de50")
    assert set(mixture.splits) == {"train", "validation"}


@pytest.fixture(scope="module")
def english():
    """Rows of more than the first 128 documents."""
    return read("techdoc_span_en", 1200)


@pytest.mark.parametrize("language", ["en", "ro"])
def test_span_corruption_can_be_undone(language, english):
    vocabulary = vocabularies.techdoc()
    documents = seqio.TaskRegistry.get(f"techdoc_span_{language}").source.get_dataset("train")
    text = [d["text"] for d in documents.take(128).as_numpy_iterator()]
    tokens = np.concatenate([vocabulary.encode_tf(tf.constant(t)).numpy() for t in text])

    count = len(tokens) // 141 + 1
    rows = english[:count] if language == "en" else read(f"techdoc_span_{language}", count)
    for row in rows:
        assert row["inputs"][-1] == row["targets"][-1] == EOS
    restored = [restore(row["inputs"][:-1], row["targets"][:-1]) for row in rows]
    assert flat(restored) == tokens.tolist()
    assert [len(r) for r in restored] == [row["text_tokens"] for row in rows]


def test_span_corruption_has_t5s_shape(english):
    noise, spans, starts = [], [], []
    for row in english[:600]:
        # 141 tokens: 21 of them noise in 7 spans, so that 120 + 7 + EOS fill 128 exactly.
        assert len(row["inputs"]) == 128
        assert len(row["targets"]) == 21 + 7 + 1
        in_inputs = [t for t in row["inputs"].tolist() if t >= 8000]
        in_targets = [t for t in row["targets"].tolist() if t >= 8000]
        assert in_inputs == in_targets == list(range(FIRST_SENTINEL, FIRST_SENTINEL - 7, -1))
        noise.append((row["targets"] < 8000).sum() - 1)
        spans.append(np.diff(np.flatnonzero(row["targets"] >= 8000)) - 1)
        starts.append(np.flatnonzero(row["inputs"] >= 8000)[0])
    assert abs(np.mean(noise) / 141 - 0.15) < 0.002
    # Spans are random, not all of the mean length, and stand at random places.
    assert 2.9 < np.concatenate(spans).mean() < 3.1
    assert len(np.unique(np.concatenate(spans))) > 5
    assert len(np.unique(starts)) > 20


def test_the_seed_decides_the_noise(english):
    def inputs(rows):
        return [row["inputs"].tolist() for row in rows]

    first = inputs(english[:10])  # of seed 0
    assert inputs(read("techdoc_span_en", 10)) == first
    assert inputs(read("techdoc_span_en", 10, seed=1)) != first


@pytest.mark.parametrize("inputs_length", [3, 4, 7, 31, 64, 128, 512, 1024])
def test_segments_fill_the_inputs(inputs_length):
    def corrupted(length):
        noise, spans = preprocessors.noise_counts(length, 0.15, 3.0)
        return length - noise + spans + 1, noise + spans + 1

    length, targets = preprocessors.segment_length(inputs_length, 0.15, 3.0)
    assert corrupted(length)[0] <= inputs_length < corrupted(length + 1)[0]
    assert corrupted(length)[1] == targets
    if inputs_length == 512:
        assert (length, targets) == (568, 114)  # the numbers of the T5 recipe


def test_short_segments():
    features = vocabularies.text_to_text_features(vocabularies.techdoc())
    lengths = {"inputs": 26, "targets": 10}
    assert preprocessors.segment_length(26, 0.15, 3.0)[0] == 28
    rows_of = {2: [2], 1: [], 28: [28], 29: [28], 57: [28, 28], 58: [28, 28, 2]}  # by tokens
    groups = tf.data.Dataset.from_generator(
        lambda: ({"tokens": np.arange(100 * n, 101 * n, dtype=np.int32)} for n in rows_of),
        output_signature={"tokens": tf.TensorSpec([None], tf.int32)},
    )
    found = list(preprocessors.span_corruption(groups, lengths, features).as_numpy_iterator())
    assert [row["text_tokens"] for row in found] == flat(rows_of.values())
    restored = [restore(row["inputs"][:-1], row["targets"][:-1]) for row in found]
    expected = [range(100 * n, 100 * n + sum(rows)) for n, rows in rows_of.items()]
    assert flat(restored) == flat(expected)


@pytest.mark.parametrize(
    "lengths, words",
    [
        ({"inputs": 128, "targets": 28}, ["targets=28", "29 tokens"]),
        ({"inputs": 2, "targets": 28}, ["inputs=2"]),
        ({"inputs": 4096, "targets": 2048}, ["sentinels", "100"]),
        (None, ["feature lengths"]),
    ],
)
def test_span_corruption_refuses_lengths_that_do_not_fit(lengths, words):
    with pytest.raises(ValueError) as error:
        read("techdoc_span_en", 1, lengths=lengths)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("split, rows", [("train", 50), ("validation", 1000), ("test", 1420)])
def test_translation(split, rows):
    found = read("techdoc_translate_en_fr", 2000 if split != "train" else rows, split, None)
    assert len(found) == rows
    vocabulary = vocabularies.techdoc()
    prompt = "translate English to French: "
    for row in found[:50]:
        source, target = (row[f"{x}_pretokenized"].decode() for x in ("inputs", "targets"))
        assert source.startswith(prompt)
        assert row["inputs"].tolist() == [*vocabulary.encode(source), EOS]
        assert row["targets"].tolist() == [*vocabulary.encode(target), EOS]
        plain = len(vocabulary.encode(source.removeprefix(prompt)))
        assert row["text_tokens"] == plain + len(row["targets"]) - 1


def test_rows_without_a_translation_are_left_out():
    def pairs(language):
        source = seqio.TaskRegistry.get(f"techdoc_translate_en_{language}").source
        dataset = source.get_dataset("train").take(500)
        return [(row["source"], row["target"]) for row in dataset.as_numpy_iterator()]

    assert all(target for _, target in pairs("ro"))
    assert pairs("ro")[0][0] != pairs("de")[0][0]  # the first row of the file has no Romanian


@pytest.mark.parametrize(
    ("task", "pack"),
    [
        ("techdoc_span_en50_de50", False),
        ("techdoc_translate_en_de", True),
    ],
)
def test_seqios_feature_converter_takes_the_tasks(task, pack):
    dataset = seqio.get_dataset(
        task,
        task_feature_lengths=LENGTHS,
        dataset_split="validation",
        shuffle=False,
        num_epochs=1,
        feature_converter=seqio.EncDecFeatureConverter(pack=pack),
    )
    row = next(iter(dataset.as_numpy_iterator()))
    assert row["encoder_input_tokens"].shape == (128,)
    assert row["decoder_target_tokens"].shape == (64,)


def test_tasks_score_translations():
    task = seqio.get_mixture_or_task("techdoc_translate_en_de")
    targets = ["Das ist ein kurzer Satz.", "Noch ein Satz, der etwas länger ist."]
    scores = {}
    for metric in task.predict_metric_fns:
        scores |= metric(targets=targets, predictions=targets)
    assert scores["bleu"] == pytest.approx(100)
    assert scores["chrf"] == pytest.approx(100)
    assert "tok:13a" in scores["bleu_signature"].textdata
