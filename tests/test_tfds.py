"""The TFDS tasks, read by TFDS itself: its builders are real, their content is made up."""

import contextlib
import io
from unittest import mock

import pytest
from rich.console import Console

seqio = pytest.importorskip("seqio")
import tensorflow_datasets as tfds  # noqa: E402

from t5scaling import config  # noqa: E402
from t5scaling.data import materialize  # noqa: E402
from t5scaling.data.examples import DataSpec, Examples  # noqa: E402
from t5scaling.data.vocabulary import Vocabulary  # noqa: E402
from t5scaling.errors import UserError  # noqa: E402
from t5scaling.training import loop  # noqa: E402
from tasks import definitions, pretraining, registry, superglue, translation, vocabularies  # noqa: E402

REGISTRIES = (seqio.TaskRegistry, seqio.MixtureRegistry)
KNOWN = {**pretraining.MC4, **translation.TASKS}
LENGTHS = {"inputs": 64, "targets": 32}
WMT = sorted(name for name in translation.TASKS if name.startswith("wmt"))
SENTENCES = {
    "en": "Save the file {i} before you close the window.",
    "de": "Speichern Sie die Datei {i}, bevor Sie das Fenster schließen.",
    "fr": "Enregistrez le fichier {i} avant de fermer la fenêtre.",
    "ro": "Salvați fișierul {i} înainte de a închide fereastra.",
}


def pairs_and_documents(builder, split):
    """Examples that have the features of the real ones; text that we know."""
    features = builder.info.features
    language = split.partition("-")[0]
    for i in range(24):
        if "text" in features:
            text = " ".join(SENTENCES[language].format(i=n) for n in range(i, i + 4))
            yield i, {name: text if name == "text" else "" for name in features}
        else:
            yield i, {name: SENTENCES[name].format(i=i) for name in features}


def prepare(folder, name, splits, content):
    """TFDS's own builder, serialisation and files; only the download is left out."""
    builder = tfds.builder(name, data_dir=folder)
    made = {split: content(builder, split) for split in splits}
    with mock.patch.object(type(builder), "_split_generators", lambda *_, **__: made):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for name in translation.WMT.values():
        prepare(folder, f"{name}:1.0.0", ["train", "validation", "test"], pairs_and_documents)
    languages = [f"{x}{split}" for x in pretraining.LANGUAGES for split in ("", "-validation")]
    prepare(folder, "c4/multilingual:3.1.0", languages, pairs_and_documents)
    for benchmark in superglue.BENCHMARKS:
        prepare(folder, f"super_glue/{benchmark}:1.0.2", ["train", "validation"], one_question)
    return folder


def write(root, task, split="train", **changes):
    """Materialises a registered task as a gin file changes it: with the embedded vocabulary, as
    mC4's is not at hand everywhere."""
    bindings = {"MIXTURE_OR_TASK_NAME": "x", "TRAIN_STEPS": 1, "MODEL_DIR": "x"}
    config.load(
        ["gin/models/tiny.gin", "gin/runs/pretrain.gin", "gin/tasks/isik2024_tfds.gin"],
        {**bindings, "MC4_VOCABULARY": "techdoc"},
    )
    definitions = config.bindings_of(loop.train)["dataset"].definitions
    definitions |= {
        f"superglue_{benchmark}": {**registry.superglue_task(benchmark), "vocabulary": "techdoc"}
        for benchmark in superglue.BENCHMARKS
    }
    definitions = {name: {**value, **changes} for name, value in definitions.items()}
    spec = DataSpec(task, split, LENGTHS, definitions=definitions)
    path = materialize.materialize(spec, str(root), Console(file=io.StringIO(), width=200))
    return Examples(path)


@pytest.fixture
def registries():
    kept = [dict(kind._REGISTRY) for kind in REGISTRIES]
    yield
    for kind, found in zip(REGISTRIES, kept, strict=True):
        kind._REGISTRY.clear()
        kind._REGISTRY.update(found)


@pytest.mark.parametrize("task", WMT)
def test_wmt_in_both_directions(task, prepared, registries, tmp_path):
    source, target = task.split("_")[-2:]
    examples = write(tmp_path, task, "validation", data_dir=prepared)
    records = examples.read_many(range(24))
    prompt = translation.prompt(source, target)
    found = {(r["inputs_pretokenized"], r["targets_pretokenized"]) for r in records}
    assert found == {
        (prompt + SENTENCES[source].format(i=i), SENTENCES[target].format(i=i)) for i in range(24)
    }
    encode = Vocabulary(vocabularies.PATHS["techdoc"]).encode
    for record in records:
        assert record["targets"].tolist() == encode(record["targets_pretokenized"]).tolist()
    assert examples.meta["metrics"] == [
        "tasks.metrics.bleu",
        "tasks.metrics.bleu_intl",
        "tasks.metrics.chrf",
    ]


@pytest.mark.parametrize("language", pretraining.LANGUAGES)
def test_mc4_in_every_language(language, prepared, registries, tmp_path):
    examples = write(tmp_path, f"mc4_span_{language}", "validation", data_dir=prepared)
    vocabulary = Vocabulary(vocabularies.PATHS["techdoc"])
    sentence = SENTENCES[language]
    texts = [" ".join(sentence.format(i=n) for n in range(i, i + 4)) for i in range(24)]
    sentinels = range(8000, 8100)
    known = {*sentinels}.union(*(vocabulary.encode(text).tolist() for text in texts))
    for record in examples.read_many(range(len(examples))):
        inputs, targets = record["inputs"].tolist(), record["targets"].tolist()
        assert inputs[-1] == targets[-1] == vocabulary.eos_id
        assert targets[0] == sentinels[-1] and sentinels[-1] in inputs
        assert {*inputs, *targets} <= known
    assert len(examples) >= 5


def test_the_papers_mixtures(prepared, registries, tmp_path):
    def named(other, english):
        return {"mc4_span_en": english, f"mc4_span_{other}": 100 - english}

    for other in ("de", "fr", "ro"):
        for english in (30, 50, 70):
            name = f"mc4_span_en{english}_{other}{100 - english}"
            assert pretraining.MC4[name]["rates"] == named(other, english)
            mixture = seqio.get_mixture_or_task(name)
            rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
            assert rates == named(other, english)
    examples = write(tmp_path, "mc4_span_en30_ro70", data_dir=prepared)
    found = [(part["task"], part["rate"]) for part in examples.meta["components"]]
    assert found == [("mc4_span_en", 30), ("mc4_span_ro", 70)]
    assert len(examples) >= 10


QUESTION = {
    "passage": "Cats\n@highlight\nDogs ran.",
    "question": "Is it so?",
    "query": "@placeholder ran",
    "entities": ["Cats", "Dogs"],
    "answers": ["Dogs"],
    "premise": "It rained.",
    "hypothesis": "It was wet.",
    "choice1": "Wet.",
    "choice2": "Dry.",
    "paragraph": "It rained.",
    "answer": "Yes.",
    "sentence1": "A bank.",
    "sentence2": "The bank.",
    "word": "bank",
    "label": 1,
}


def one_question(builder, split):
    """An example, twice, with all features of the benchmark's; zeros where nothing is read."""

    def value(name, feature):
        if name == "idx" and hasattr(feature, "keys"):
            return dict.fromkeys(feature, 3)
        if name == "entity_spans":
            return {"text": ["Cats"], "start": [0], "end": [4]}
        return QUESTION.get(name, 0)

    for i in range(2):
        yield i, {name: value(name, feature) for name, feature in builder.info.features.items()}


@pytest.mark.parametrize(
    ("benchmark", "inputs", "target"),
    [
        ("boolq", "boolq passage: Cats\n@highlight\nDogs ran. question: Is it so?", "True"),
        ("cb", "cb hypothesis: It was wet. premise: It rained.", "contradiction"),
        (
            "copa",
            "copa choice1: Wet. choice2: Dry. premise: It rained. question: Is it so?",
            "choice2",
        ),
        ("multirc", "multirc question: Is it so? answer: Yes. paragraph: It rained.", "True"),
        (
            "record",
            "record query: @placeholder ran entities: Cats, Dogs passage: Cats. Dogs ran.",
            "Dogs",
        ),
        ("rte", "rte hypothesis: It was wet. premise: It rained.", "not_entailment"),
        ("wic", "wic sentence1: A bank. sentence2: The bank. word: bank", "True"),
    ],
)
def test_superglue(benchmark, inputs, target, prepared, registries, tmp_path):
    examples = write(tmp_path, f"superglue_{benchmark}", "validation", data_dir=prepared)
    (record,) = examples.read_many([0])
    assert record["inputs_pretokenized"] == inputs
    assert record["targets_pretokenized"] == target
    assert examples.meta["metrics"] == [f"tasks.superglue_metrics.{benchmark}"]


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("wmt17_translate_en_de", "wmt17_translate/de-en:1.0.0"),
        ("mc4_span_ro", "c4/multilingual:3.1.0"),
        ("superglue_copa", "super_glue/copa:1.0.2"),
    ],
)
def test_missing_data_say_what_to_prepare_and_where(task, name, registries, tmp_path):
    with pytest.raises(UserError) as error:
        write(tmp_path / "root", task, "validation", data_dir=str(tmp_path / "nothing"))
    message = str(error.value)
    assert message.startswith(f"{task} validation: the TFDS data set {name} is not prepared")
    assert (
        f"in {tmp_path / 'nothing'}" in message
        and f"`tfds build {name.partition(':')[0]} " in message
    )
    assert "\n" not in message
    with contextlib.suppress(FileNotFoundError):
        assert not list((tmp_path / "root").iterdir())


@pytest.mark.parametrize("task", ["wmt17_translate_de_en", "mc4_span_en50_de50"])
def test_with_tfdss_own_mocked_builders(task, prepared, registries):
    found = seqio.get_mixture_or_task(task)
    definitions.register(
        {
            t.name: {**KNOWN[t.name], "vocabulary": "techdoc"}
            for t in getattr(found, "tasks", [found])
        }
    )
    with tfds.testing.mock_data(num_examples=40, data_dir=prepared):
        dataset = seqio.get_mixture_or_task(task).get_dataset(LENGTHS, "train", shuffle=False)
        batch = list(dataset.take(3).as_numpy_iterator())
    assert len(batch) == 3
    for example in batch:
        assert example["inputs"][-1] == example["targets"][-1] == 1 and len(example["inputs"]) > 2
