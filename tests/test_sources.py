"""Text of the user's own: what is read, what is left out and said, and what is refused."""

import dataclasses
import gzip
import json
import lzma
import os

import pytest

seqio = pytest.importorskip("seqio")
import tensorflow as tf  # noqa: E402

from t5scaling import config  # noqa: E402
from t5scaling.data import reading  # noqa: E402
from t5scaling.data.examples import DataSpec  # noqa: E402
from t5scaling.errors import UserError  # noqa: E402
from t5scaling.training import loop  # noqa: E402
from tasks import (  # noqa: E402
    definitions,
    pretraining,
    sources,
    superglue,
    translation,
    vocabularies,
)

OWN = "own_task"


def write(path, lines):
    data = b"".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wb") as file:
        file.write(data)
    return str(path)


def define(files, file_format, kind="translation", **fields):
    fields = {"vocabulary": vocabularies.TECHDOC, **fields}
    if kind == "translation":
        fields = {"prompt": "translate English to German: ", **fields}
    definitions.register({OWN: {"kind": kind, "files": files, "format": file_format, **fields}})
    return seqio.TaskRegistry.get(OWN)


def rows(task, split="train", **options):
    dataset = task.source.get_dataset(split, **options)
    return [tuple(value.decode() for value in row.values()) for row in dataset.as_numpy_iterator()]


@pytest.fixture(autouse=True)
def _clean():
    yield
    if OWN in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(OWN)


def test_slices_of_a_split_are_its_lines(tmp_path):
    """Over files of 3, 0 and 4 lines; a broken one counts."""
    for name, numbers in (("a", (0, 1, 2)), ("b", ()), ("c", (3, 4, 5, 6))):
        write(tmp_path / f"{name}.tsv", ["source\ttarget\n", *(f"s{n}\tt{n}\n" for n in numbers)])
    write(tmp_path / "c.tsv", ["source\ttarget\n", "s3\tt3\n", "broken\n", "s5\tt5\n", "s6\tt6\n"])
    task = define({"train": str(tmp_path / "*.tsv")}, "tsv", source="source", target="target")

    def numbers(split, **options):
        return [int(source[1:]) for source, _ in rows(task, split, **options)]

    for split, expected in {
        "train": [0, 1, 2, 3, 5, 6],
        "train[:3]": [0, 1, 2],
        "train[2:4]": [2, 3],
        "train[-2:]": [5, 6],
        "train[:-5]": [0, 1],
        "train[:]": [0, 1, 2, 3, 5, 6],
        "train[:50%]": [0, 1, 2, 3],  # 3.5 lines
        "train[50%:]": [5, 6],
        "train[-14%:]": [6],
        "train[5:100%]": [5, 6],
    }.items():
        assert numbers(split) == expected, split
        assert split in task.splits
    assert task.source.list_shards("train[:4]") == [
        str(tmp_path / "a.tsv"),
        str(tmp_path / "c.tsv"),
    ]
    assert numbers("train[:4]", shard_info=seqio.ShardInfo(1, 2)) == [3]
    assert task.source.files("train[:1]") == task.source.files("train")
    for split, words in {
        "train[:1.5%]": r"expected, for example, train\[:1000\], train\[:1%\] or",
        "train[1]": "not a slice", "train[:1%": "not a slice", "train[:101%]": "not a slice",
        "train[:1%]+test": "not a slice", "train[a:]": "not a slice",
        "train[:9]": "there are only 7 lines", "train[-8:]": "there are only 7 lines",
        "train[3:3]": "has no lines; the whole has 7", "train[:1%]": "has no lines",
        "train[-1%:]": "has no lines",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=words):
            numbers(split)
    with pytest.raises(UserError, match=r"has no split 'test\[:1\]'; slices are"):
        reading.find(DataSpec(OWN, "test[:1]", {"inputs": 9, "targets": 9}, modules=()))
    seqio.MixtureRegistry.add("own_mixture", [(OWN, 1)])
    try:  # which asks whether its tasks have the split
        mixture = seqio.MixtureRegistry.get("own_mixture")
        lengths = {"inputs": 9, "targets": 9}
        found = mixture.get_dataset(lengths, "train[:2]", shuffle=False, num_epochs=1)
        assert len(list(found)) == 2
    finally:
        seqio.MixtureRegistry.remove("own_mixture")


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_documents_of_json_lines(tmp_path, suffix):
    lines = [json.dumps({"text": f"Dokument {i}", "url": "x"}) + "\n" for i in range(3)]
    path = write(tmp_path / f"c4-de.json{suffix}", lines)
    task = define({"train": path}, "jsonl", "span_corruption")
    assert rows(task) == [("Dokument 0",), ("Dokument 1",), ("Dokument 2",)]
    assert task.source.take_report() == []


def test_lines_that_cannot_be_read_are_counted_with_their_places(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [
            '{"text": "good"}\n',
            '{"text": "cut off\n',
            b'{"text": "\xff\xfe"}\n',
            '{"text": "   "}\n',
            '{"body": "other key"}\n',
            "[1, 2]\n",
            '{"text": "half a pair \\ud800"}\n',
            '{"text": "last"}',
        ],
    )
    task = define({"train": path}, "jsonl", "span_corruption")
    assert rows(task) == [("good",), ("last",)]
    assert task.source.take_report() == [
        {"problem": "broken JSON line", "count": 2, "first": [f"{path}:2", f"{path}:6"]},
        {"problem": "empty document", "count": 1, "first": [f"{path}:4"]},
        {"problem": "invalid UTF-8", "count": 2, "first": [f"{path}:3", f"{path}:7"]},
        {"problem": "missing key", "count": 1, "first": [f"{path}:5"]},
    ]
    assert task.source.take_report() == []


def test_strict_stops_at_the_first_bad_line(tmp_path):
    path = write(tmp_path / "a.jsonl", ['{"text": "good"}\n', "{\n", "{\n"])
    task = define({"train": path}, "jsonl", "span_corruption", strict=True)
    with pytest.raises(tf.errors.OpError):
        rows(task)
    assert str(task.source.error) == f"{path}, line 2: broken JSON line"


def test_only_the_first_places_are_named(tmp_path):
    path = write(tmp_path / "a.txt", ["x\n"] + ["\n"] * 10)
    task = define({"train": path}, "text", "span_corruption")
    assert rows(task) == [("x",)]
    (report,) = task.source.take_report()
    assert report["count"] == 10 and report["first"] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_pairs_of_two_files(tmp_path):
    source = write(tmp_path / "train.en.gz", ["One.\n", "Two.\n", "\n", "Four.\n"])
    target = write(tmp_path / "train.de", ["Eins.\r\n", " \n", "Drei.\n", "Vier.\n"])
    task = define({"train": [[source, target]]}, "parallel")
    assert rows(task) == [("One.", "Eins."), ("Four.", "Vier.")]
    assert task.source.take_report() == [
        {"problem": "empty source or target", "count": 2, "first": [f"{source}:2", f"{source}:3"]}
    ]


def test_parallel_files_of_different_length_are_refused(tmp_path):
    source = write(tmp_path / "a.en", ["1\n", "2\n", "3\n", "4\n"])
    target = write(tmp_path / "a.de", ["1\n", "2\n"])
    task = define({"train": [[source, target]]}, "parallel")
    with pytest.raises(tf.errors.OpError):
        rows(task)
    expected = f"differ in length: {source} has 4 lines but {target} has 2 lines"
    assert expected in str(task.source.error)


@pytest.mark.parametrize("columns", [("en", "de"), (0, 2)])
def test_pairs_of_a_table(tmp_path, columns):
    lines = ["One.\tx\tEins.\n", "Two.\n", "Three.\tx\tDrei.\n"]
    header = ["en\tnote\tde\n"] if isinstance(columns[0], str) else []
    path = write(tmp_path / "a.tsv", header + lines)
    task = define({"train": path}, "tsv", source=columns[0], target=columns[1])
    assert rows(task) == [("One.", "Eins."), ("Three.", "Drei.")]
    place = f"{path}:{3 if header else 2}"
    assert task.source.take_report() == [
        {"problem": "wrong number of columns", "count": 1, "first": [place]}
    ]


def test_a_column_that_is_not_there(tmp_path):
    path = write(tmp_path / "a.tsv", ["en\tde\n", "One.\tEins.\n"])
    task = define({"train": path}, "tsv", source="en", target="fr")
    with pytest.raises(tf.errors.OpError):
        rows(task)
    assert "has no column 'fr'; its header: en, de" in str(task.source.error)


def test_the_examples_of_an_own_task(tmp_path):
    path = write(tmp_path / "a.jsonl", ['{"en": "Print.", "de": "Drucken."}\n'])
    task = define({"train": path}, "jsonl", source="de", target="en", prompt="de-en: ")
    lengths = {"inputs": 32, "targets": 32}
    (row,) = task.get_dataset(sequence_length=lengths, split="train").as_numpy_iterator()
    vocabulary = vocabularies.techdoc()
    assert row["inputs"].tolist() == [*vocabulary.encode("de-en: Drucken."), 1]
    assert row["targets"].tolist() == [*vocabulary.encode("Print."), 1]
    assert row["text_tokens"] == len(vocabulary.encode("Drucken.")) + len(row["targets"]) - 1


def test_files_are_shards_in_sorted_order(tmp_path):
    for number in (2, 0, 1):
        write(tmp_path / f"part-{number}.txt", [f"{number}a\n", f"{number}b\n"])
    task = define({"train": str(tmp_path / "part-*.txt")}, "text", "span_corruption")
    source = task.source
    assert source.list_shards("train") == [str(tmp_path / f"part-{n}.txt") for n in range(3)]
    assert [text for (text,) in rows(task)] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    parts = [rows(task, shard_info=seqio.ShardInfo(index, 3)) for index in range(3)]
    assert parts[1] == [("1a",), ("1b",)] and [row for part in parts for row in part] == rows(task)


def test_each_file_is_read_once(tmp_path):
    """`**` follows links, and links may go round."""
    write(tmp_path / "a/b/part.txt", ["x\n"])
    (tmp_path / "a/b/round").symlink_to(tmp_path / "a")
    (tmp_path / "a/again.txt").symlink_to(tmp_path / "a/b/part.txt")
    task = define({"train": str(tmp_path / "**/*.txt")}, "text", "span_corruption")
    assert task.source.list_shards("train") == [str(tmp_path / "a/again.txt")]


@pytest.mark.parametrize("name", ["set[1]", "a[", "b]", "[!c]", "d*", "e?"])
def test_a_folder_is_taken_by_its_name(tmp_path, name):
    write(tmp_path / name / "part-0.txt", ["x\n"])
    write(tmp_path / name / "one[1].txt", ["x\n"])
    for pattern in ("part-*.txt", "one[1].txt"):
        task = define({"train": str(tmp_path / name / pattern)}, "text", "span_corruption")
        (shard,) = task.source.list_shards("train")
        assert shard.startswith(str(tmp_path / name))


def test_a_pattern_that_matches_nothing(tmp_path):
    task = define({"train": str(tmp_path / "*.gz")}, "text", "span_corruption")
    with pytest.raises(ValueError, match=r"no file matches '.*\*\.gz' \(split train\)"):
        task.source.list_shards("train")


def test_a_damaged_archive_is_named(tmp_path):
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress(b"text\n" * 10_000)
    path.write_bytes(whole[: len(whole) // 2])
    task = define({"train": str(path)}, "text", "span_corruption")
    with pytest.raises(tf.errors.OpError):
        rows(task)
    assert str(task.source.error).startswith(f"{path}, after line ")


def test_chunks_are_bounded():
    texts = ({"text": "x" * 1000} for _ in range(5000))
    sizes = [len(chunk) for chunk in sources._chunks(texts)]
    assert sum(sizes) == 5000
    assert max(sizes) <= sources.CHUNK_ROWS
    long = ({"text": "x" * (1 << 19)} for _ in range(8))
    assert [len(chunk) for chunk in sources._chunks(long)] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "translaton"}, "kind has 'translaton'.*did you mean 'translation'"),
        ({"fiels": {}}, "definition has 'fiels'.*did you mean 'files'"),
        ({"format": "csv"}, "format has 'csv'; expected one of jsonl, tsv, parallel"),
        ({"metrics": ["blue"]}, "metrics has 'blue'.*did you mean 'bleu'"),
        ({"files": {}}, "expected {split: pattern}"),
        ({"files": {"train": [["a", "b"]]}}, "expected a pattern or a list of them"),
        ({"tfds": "x:1.0.0"}, "either 'tfds' or 'files'"),
        ({"prompt": None}, None),
    ],
)
def test_wrong_definitions_are_named(change, message):
    definition = {
        "kind": "translation",
        "files": {"train": "x.tsv"},
        "format": "tsv",
        "prompt": "",
        "vocabulary": vocabularies.TECHDOC,
        **change,
    }
    if message is None:
        del definition["prompt"]
        message = "own_task: its definition needs 'prompt'"
    with pytest.raises(ValueError, match=message):
        definitions.register({OWN: definition})


@pytest.fixture
def registries():
    """Registers what it likes; afterwards everything is as it was."""
    import tasks.registry  # noqa: F401

    kept = [dict(registry._REGISTRY) for registry in (seqio.TaskRegistry, seqio.MixtureRegistry)]
    yield
    for registry, content in zip((seqio.TaskRegistry, seqio.MixtureRegistry), kept, strict=True):
        registry._REGISTRY.clear()
        registry._REGISTRY.update(content)


def test_mixtures_follow_a_task_that_is_defined_anew(tmp_path, registries):
    path = write(tmp_path / "a.txt", ["one\n"])
    new = {
        "kind": "span_corruption", "files": {"train": path}, "format": "text",
        "vocabulary": vocabularies.TECHDOC,
    }  # fmt: skip
    definitions.register({"mc4_span_en": new})
    mixture = seqio.MixtureRegistry.get("mc4_span_en30_fr70")
    found = {task.name: task for task in mixture.tasks}
    assert rows(found["mc4_span_en"]) == [("one",)]
    assert mixture.get_rate(found["mc4_span_en"]) == 30
    with pytest.raises(ValueError, match=r"rates has 'mc4_span_it'.*did you mean 'mc4_span_"):
        definitions.register({"own_mix": {"kind": "mixture", "rates": {"mc4_span_it": 1}}})


def of_gin_file(name, **bindings):
    config.load(
        ["gin/models/tiny.gin", "gin/runs/pretrain.gin", f"gin/tasks/{name}.gin"],
        {"MIXTURE_OR_TASK_NAME": "x", "TRAIN_STEPS": 1, "MODEL_DIR": "x", **bindings},
    )
    return config.bindings_of(loop.train)["dataset"].definitions


def test_the_papers_data_from_local_files(tmp_path, registries, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = of_gin_file("isik2024_local", MC4_VOCABULARY="techdoc")
    definitions.register(found)
    for name in ("c4-ro.tfrecord-00000-of-00002", "c4-ro.tfrecord-00001-of-00002",
                 "c4-ro-validation.tfrecord-00000-of-00001"):  # fmt: skip
        path = tmp_path / "data/c4/multilingual" / f"{name}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [json.dumps({"text": name, "timestamp": "t", "url": "u"}) + "\n"])
    task = seqio.TaskRegistry.get("mc4_span_ro")
    assert [row for (row,) in rows(task)] == [
        "c4-ro.tfrecord-00000-of-00002", "c4-ro.tfrecord-00001-of-00002",
    ]  # fmt: skip
    assert rows(task, "validation") == [("c4-ro-validation.tfrecord-00000-of-00001",)]
    (tmp_path / "data/wmt").mkdir()
    write(tmp_path / "data/wmt/wmt16.test.ro", ["Deschide.\n"])
    write(tmp_path / "data/wmt/wmt16.test.en", ["Open.\n"])
    for direction, pair in (("ro_en", ("Deschide.", "Open.")), ("en_ro", ("Open.", "Deschide."))):
        task = seqio.TaskRegistry.get(f"wmt16_translate_{direction}")
        assert rows(task, "test") == [pair]
        (example,) = task.get_dataset({"inputs": 64, "targets": 64}, "test").as_numpy_iterator()
        names = {"ro_en": "Romanian to English", "en_ro": "English to Romanian"}
        told = f"translate {names[direction]}: {pair[0]}"
        assert example["inputs_pretokenized"].decode() == told


@pytest.mark.parametrize(
    ("name", "tasks_of_it"),
    [
        ("isik2024_tfds", {*pretraining.MC4, *(n for n in translation.TASKS if "wmt" in n)}),
        ("isik2024_local", {*pretraining.MC4, *(n for n in translation.TASKS if "wmt" in n)}),
        ("superglue_local", {f"superglue_{name}" for name in superglue.BENCHMARKS}),
    ],
)
def test_gin_files_define_the_registered_tasks_anew(name, tasks_of_it, registries):
    before = {task: seqio.get_mixture_or_task(task) for task in tasks_of_it}
    found = of_gin_file(name, MC4_VOCABULARY="techdoc")
    definitions.register(found)
    for task, old in before.items():
        new = seqio.get_mixture_or_task(task)
        assert new is not old and set(found) <= tasks_of_it
        assert new.output_features["inputs"].vocabulary == vocabularies.techdoc()
        if task in found:
            assert set(new.splits) == set(old.splits)
            assert _steps(new) == _steps(old)


def _steps(task):
    """The preprocessors and their arguments, but for what only TFDS's names of keys need."""
    steps = [reading._describe(step) for step in task.preprocessors]
    return [step for step in steps if "rename" not in step[0]]


def test_the_template_for_own_tasks(registries):
    found = of_gin_file("own")
    definitions.register(found)
    mixture = seqio.MixtureRegistry.get("own_span_en50_de50")
    assert {task.name for task in mixture.tasks} == {"own_span_en", "own_span_de"}
    spec = DataSpec("own_translate_en_de", "train", {"inputs": 8, "targets": 8}, definitions=found)
    assert set(spec.to_json()["definitions"]) == {"own_translate_en_de"}
    mixed = dataclasses.replace(spec, task="own_span_en50_de50").to_json()["definitions"]
    assert set(mixed) == {"own_span_en50_de50", "own_span_en", "own_span_de"}
    built_in = dataclasses.replace(spec, task="mc4_span_en50_de50").to_json()["definitions"]
    assert set(built_in) == set(found)


def test_the_embedded_corpus_is_described_the_same_wherever_it_lies(registries):
    for name in ("techdoc_span_en", "techdoc_translate_en_de"):
        assert os.path.dirname(sources.__file__) not in repr(seqio.TaskRegistry.get(name).source)


# Bytes that are no plain UTF-8, and lines and files that are no text


BOM = b"\xef\xbb\xbf"


def test_byte_order_marks_are_no_text(tmp_path):
    sides = [write(tmp_path / f"a.{side}", [BOM, f"{side}\n", "x\n"]) for side in ("en", "de")]
    assert rows(define({"train": [sides]}, "parallel"))[0] == ("en", "de")
    table = write(tmp_path / "a.tsv", [BOM, "en\tde\n", "one\teins\n"])
    task = define({"train": table}, "tsv", source="en", target="de")
    assert rows(task) == [("one", "eins")]
    lines = write(tmp_path / "a.jsonl.gz", [BOM, '{"text": "first"}\n', '{"text": "second"}\n'])
    task = define({"train": lines}, "jsonl", kind="span_corruption")
    assert rows(task) == [("first",), ("second",)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_refused_whole(tmp_path, encoding):
    file = write(tmp_path / "a.txt", ["one\ntwo\n".encode(encoding)])
    task = define({"train": file}, "text", kind="span_corruption")
    with pytest.raises(Exception):  # noqa: B017 (TensorFlow's, about the source's own)
        rows(task)
    assert f"{file} is not UTF-8 text, but UTF-16 or binary" in str(task.source.error)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("[" * 100_000, "broken JSON line"),
        ('{"text": 1' + "0" * 5000 + "}", "broken JSON line"),
        ('{"text": "nul \\u0000"}', None),
        (b'{"text": "nul \0"}', "NUL character"),
        ('{"text": "' + "x" * 300 + '"}', "line of more than 0 MiB"),
    ],
)
def test_lines_that_break_a_reader_are_counted(tmp_path, monkeypatch, line, problem):
    if problem and "MiB" in problem:
        monkeypatch.setattr(sources, "LINE_BYTES", 100)
    good = json.dumps({"text": "good"}) + "\n"
    file = write(tmp_path / "a.jsonl", [good, line, "\n", good])
    task = define({"train": file}, "jsonl", kind="span_corruption")
    found = rows(task)
    report = task.source.take_report()
    if problem is None:
        assert len(found) == 3 and not report
    else:
        assert found == [("good",), ("good",)]
        assert report == [{"problem": problem, "count": 1, "first": [f"{file}:2"]}]


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("place", [20, 60, -30])
def test_a_flipped_byte_of_an_archive_names_the_file(tmp_path, suffix, place):
    path = tmp_path / f"a.txt{suffix}"
    write(path, [f"line {number * 7919 % 1000}\n" for number in range(2000)])
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.txt"):
        list(sources.open_lines(str(path)))


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_only_files_are_text(tmp_path, kind):
    path = "/dev/zero"
    if kind == "pipe":
        path = str(tmp_path / "pipe")
        os.mkfifo(path)
    task = define({"train": path}, "text", kind="span_corruption")
    with pytest.raises(ValueError, match="is not a file, but a device or a pipe"):
        task.source.list_shards("train")


# Parallel files belong together by their names


def shards(folder, names, *patterns):
    for name in names:
        write(folder / name, ["x\n"])
    patterns = [[f"{folder}/{part}" for part in pair] for pair in patterns]
    found = define({"train": patterns}, "parallel").source.shards("train")
    return [tuple(os.path.relpath(file, folder) for file in shard) for shard in found]


def test_files_are_paired_by_what_the_pattern_leaves_open(tmp_path):
    names = ["s1.en", "s10.en", "s2.en", "t-s2-x.de", "t-s10-x.de", "t-s1-x.de"]
    pairs = [("s1.en", "t-s1-x.de"), ("s10.en", "t-s10-x.de"), ("s2.en", "t-s2-x.de")]
    assert shards(tmp_path, names, ("*.en", "t-*-x.de")) == pairs
    assert shards(tmp_path, names, ("[!t]*.en", "t-[!t]*-x.de")) == pairs
    one = [("s10.en", "t-s10-x.de")]
    assert shards(tmp_path, names, ("s10.en", "t-s10-x.de")) == one
    assert shards(tmp_path, names, ("s10.en", "t-s1?-x.de")) == one  # one of each


@pytest.mark.parametrize(
    ("names", "pair", "words"),
    [
        (["s1.en", "s2.en", "s2.de", "s3.de"], ("*.en", "*.de"), r"s1\.en has no partner"),
        (["s1.en", "s2.en", "s2.de"], ("*.en", "*.de"), r"s1\.en has no partner"),
        (["s2.en", "s2.de", "s3.de"], ("*.en", "*.de"), r"s3\.de has no partner"),
        (["s1.en", "s2.de"], ("*.en", "*.de"), r"s1\.en has no partner"),
    ],
)
def test_files_without_a_partner_are_refused(tmp_path, names, pair, words):
    with pytest.raises(ValueError, match=words):
        shards(tmp_path, names, pair)


def test_a_folder_with_brackets_is_a_folder(tmp_path):
    folder = tmp_path / "data[1]"
    folder.mkdir()
    names = ["a1.en", "a2.en", "a1.de", "a2.de"]
    assert shards(folder, names, ("*.en", "*.de")) == [("a1.en", "a1.de"), ("a2.en", "a2.de")]
    assert shards(folder, names, ("a1.en", "a1.de")) == [("a1.en", "a1.de")]


def test_a_link_in_a_circle_is_followed_once(tmp_path):
    write(tmp_path / "a.txt", ["x\n"])
    (tmp_path / "round").symlink_to(tmp_path)
    task = define({"train": f"{tmp_path}/**/*.txt"}, "text", kind="span_corruption")
    assert task.source.list_shards("train") == [f"{tmp_path}/a.txt"]


def test_a_file_that_two_patterns_match_is_refused(tmp_path):
    write(tmp_path / "a.txt", ["x\n"])
    files = {"train": [f"{tmp_path}/*.txt", f"{tmp_path}/a.*"]}
    with pytest.raises(ValueError, match="matched by two patterns"):
        define(files, "text", kind="span_corruption").source.list_shards("train")


def test_lines_of_a_table_without_a_header_are_as_wide_as_the_first(tmp_path):
    table = write(tmp_path / "a.tsv", ["a\tb\n", "c\td\te\n", "f\n", "g\th\n"])
    task = define({"train": table}, "tsv", source=0, target=1)
    assert rows(task) == [("a", "b"), ("g", "h")]
    (report,) = task.source.take_report()
    assert report["problem"] == "wrong number of columns" and report["count"] == 2


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = write(tmp_path / "a.tsv", ["en\ten\tde\n", "a\tb\tc\n"])
    task = define({"train": table}, "tsv", source="en", target="de")
    with pytest.raises(Exception):  # noqa: B017 (TensorFlow's, about the source's own)
        rows(task)
    assert "has 2 columns 'en'" in str(task.source.error)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": -1}, "source is -1; expected the name"),
        ({"target": True}, "target is True; expected the name"),
        ({"source": 1.5}, "source is 1.5; expected"),
        ({"metrics": "bleu"}, "metrics is 'bleu'; expected a list"),
        ({"prompt": 3}, "prompt is 3; expected text"),
        ({"strict": "no"}, "strict is 'no'; expected True or False"),
        ({"vocabulary": None}, "vocabulary is None; expected text"),
        ({"kind": "span_corruption", "noise_density": 1.0}, "noise_density is 1.0; expected a"),
        (
            {"kind": "span_corruption", "noise_density": 0.999999},
            "expected a number above 0 to 0.9",
        ),
        ({"kind": "span_corruption", "noise_density": 0}, "noise_density is 0; expected a"),
        ({"kind": "span_corruption", "mean_noise_span_length": 0.5}, "mean_noise_span_length is"),
        ({"kind": "span_corruption", "mean_noise_span_length": "3"}, "mean_noise_span_length is"),
        ({"kind": "span_corruption", "mean_noise_span_length": float("nan")}, "expected a number"),
    ],
)
def test_values_of_a_definition(fields, words):
    kind = fields.pop("kind", "translation")
    form = "tsv" if kind == "translation" else "text"
    with pytest.raises(ValueError) as error:
        define({"train": "x"}, form, kind=kind, **fields)
    assert words in str(error.value)


def test_a_vocabulary_that_is_none(tmp_path):
    path = write(tmp_path / "v.model", ["no model\n"])
    with pytest.raises(ValueError, match=r"v\.model is not a SentencePiece model"):
        define({"train": "x"}, "text", kind="span_corruption", vocabulary=path)
