"""Materialisation: what SeqIO says the data is, written down once."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from t5scaling.data import materialize, reading, runs, work, writer
from t5scaling.data.examples import DataSpec, Examples, find_examples
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LENGTHS = {"inputs": 24, "targets": 12}
PAIRS = [(f"Press the key {i} twice.", f"Drücken Sie die Taste {i} zweimal.") for i in range(60)]
PAIRS[7] = ("long " * 30, "lang")
PAIRS[9] = ("short", "kurz " * 40)


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Tasks with content that the tests know: documents in two languages, and pairs."""
    seqio = reading.import_seqio()
    import tensorflow as tf

    from tasks import preprocessors, vocabularies

    features = vocabularies.text_to_text_features(vocabularies.techdoc())

    def documents(count):
        def dataset(split, shuffle_files, seed=None):
            text = [f"Document {i} explains option {i * 7} of {count}." for i in range(count)]
            return tf.data.Dataset.from_tensor_slices({"text": tf.constant(text, tf.string)})

        return dataset

    def pairs(split, shuffle_files, seed=None):
        source, target = zip(*(PAIRS if split == "train" else PAIRS[:20]), strict=True)
        return tf.data.Dataset.from_tensor_slices({"source": list(source), "target": list(target)})

    def add(name, source, splits, steps):
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(source, splits=splits),
            preprocessors=steps,
            output_features=features,
        )

    span = [preprocessors.concatenate_documents, preprocessors.span_corruption]
    add("data_span_a", documents(80), ["train"], span)
    add("data_span_b", documents(30), ["train"], span)
    add("data_none", documents(0), ["train"], span)
    seqio.MixtureRegistry.add("data_a30_b70", [("data_span_a", 0.3), ("data_span_b", 0.7)])

    def translate(dataset, output_features):
        return preprocessors.translation(dataset, output_features, "translate: ")

    def gaps(split, shuffle_files, seed=None):
        rows = {"source": ["a", " ", "b", "c", "d"], "target": ["1", "2", "3", "", "5"]}
        return tf.data.Dataset.from_tensor_slices(rows)

    add("data_pairs", pairs, ["train", "validation"], [translate])
    add("data_gaps", gaps, ["train"], [translate])
    yield seqio
    for name in ("data_span_a", "data_span_b", "data_none", "data_pairs", "data_gaps"):
        seqio.TaskRegistry.remove(name)
    seqio.MixtureRegistry.remove("data_a30_b70")


def write(root, task, split="train", lengths=None, **fields):
    """Materialises in this process. Returns (examples, what the terminal said)."""
    spec = DataSpec(task, split, lengths or LENGTHS, modules=(), **fields)
    terminal = io.StringIO()
    path = materialize.materialize(spec, root, Console(file=terminal, width=200))
    return Examples(path), terminal.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Task and split -> (examples, what the terminal said), for tests that only read them."""
    root, found = tmp_path_factory.mktemp("made"), {}

    def get(task, split="train"):
        if (task, split) not in found:
            found[task, split] = write(root, task, split)
        return found[task, split]

    return get


def segments(examples):
    """All (inputs, targets) of a directory, packed or not."""
    found = []
    for record in examples.read_many(range(len(examples))):
        ends = [np.cumsum(record[f"{name}_lengths"])[:-1] for name in ("inputs", "targets")]
        inputs, targets = np.split(record["inputs"], ends[0]), np.split(record["targets"], ends[1])
        found += [
            (tuple(i.tolist()), tuple(t.tolist())) for i, t in zip(inputs, targets, strict=True)
        ]
    return found


def from_seqio(seqio, task, split, seed=0):
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        sequence_length=LENGTHS, split=split, shuffle=False, seed=seed
    )
    return [
        (tuple(row["inputs"].tolist()), tuple(row["targets"].tolist()))
        for row in dataset.as_numpy_iterator()
    ]


# What is written


def test_a_training_split_is_seqios_examples_in_the_seeds_order(registered, made, tmp_path):
    expected = from_seqio(registered, "data_pairs", "train")
    first, _ = made("data_pairs")
    second, _ = write(tmp_path, "data_pairs", seed=1)
    assert Counter(segments(first)) == Counter(segments(second)) == Counter(expected)
    assert segments(first) != expected
    assert segments(first) != segments(second)
    assert "inputs_pretokenized" not in first.read(0)


def test_an_evaluation_split_keeps_order_and_full_text(registered, made):
    examples, _ = made("data_pairs", "validation")
    assert segments(examples) == from_seqio(registered, "data_pairs", "validation")
    records = examples.read_many(range(20))
    assert [r["targets_pretokenized"] for r in records] == [target for _, target in PAIRS[:20]]
    assert records[7]["inputs_pretokenized"] == "translate: " + PAIRS[7][0]


def test_truncation_is_counted_and_said(made):
    examples, said = made("data_pairs")
    assert examples.meta["truncated"] == {"inputs": 1, "targets": 1}
    assert "1 of 60 examples have inputs cut to 24 tokens" in said
    assert "1 of 60 examples have targets cut to 12 tokens" in said
    assert examples.meta["max_lengths"] == {"inputs": 24, "targets": 12}


def test_text_tokens_are_those_of_the_corpus_that_are_there(made):
    from tasks import vocabularies

    vocabulary = vocabularies.techdoc()
    examples, _ = made("data_pairs", "validation")
    prompt = len(vocabulary.encode("translate: "))
    expected = []
    for source, target in PAIRS[:20]:
        inputs = min(prompt + len(vocabulary.encode(source)), 24)
        expected.append(inputs - prompt + min(len(vocabulary.encode(target)), 12))
    assert examples.row_tokens(range(20)) == expected
    assert examples.tokens(20) == examples.meta["tokens"]["text"] == sum(expected)


def test_packing_keeps_every_example_whole(made, tmp_path):
    plain, _ = made("data_pairs")
    packed, _ = write(tmp_path, "data_pairs", pack=True)
    longer, _ = write(tmp_path, "data_pairs", pack=True, lengths={"inputs": 96, "targets": 96})
    assert Counter(segments(packed)) == Counter(segments(plain))
    assert packed.meta["tokens"] == plain.meta["tokens"]
    assert len(longer) < len(plain) / 3
    assert longer.meta["num_segments"] == 60
    for record in longer.read_many(range(len(longer))):
        assert len(record["inputs"]) <= 96 and len(record["targets"]) <= 96


def test_the_same_spec_gives_the_same_bytes(made, tmp_path):
    one, _ = made("data_span_b")
    two, _ = write(tmp_path / "2", "data_span_b")
    assert one.path.name == two.path.name
    assert one.meta["content_sha256"] == two.meta["content_sha256"]
    other, _ = write(tmp_path / "2", "data_span_b", seed=1)
    assert other.meta["content_sha256"] != two.meta["content_sha256"]
    assert one.vocabulary.read_bytes() == two.vocabulary.read_bytes()
    assert one.meta["vocabulary"]["size"] == 8100


def test_what_is_there_is_not_written_again(tmp_path):
    examples, said = write(tmp_path, "data_pairs")
    assert str(examples.path) in said
    stamp = os.stat(examples.path / "dataset.json").st_mtime_ns
    _, said = write(tmp_path, "data_pairs")
    assert said == ""
    assert os.stat(examples.path / "dataset.json").st_mtime_ns == stamp


# Mixtures


def test_a_mixture_holds_its_rates_and_says_who_ran_out(made):
    examples, said = made("data_a30_b70")
    alone = {name: made(f"data_span_{name}")[0] for name in "ab"}
    components = {c["task"]: c for c in examples.meta["components"]}
    assert examples.meta["ran_out"] == "data_span_b"
    assert components["data_span_b"]["used"] == components["data_span_b"]["available"]
    assert components["data_span_b"]["available"] == len(alone["b"])
    unused = components["data_span_a"]["available"] - components["data_span_a"]["used"]
    assert unused > 0
    assert "data_span_b ran out first" in said
    assert f"unused: {unused:,} of {len(alone['a']):,} examples of data_span_a" in said

    # A component gives the mixture the examples that it gives alone, in the same order.
    mixed, order = segments(examples), {name: segments(alone[name]) for name in "ab"}
    assert not set(order["a"]) & set(order["b"])
    given = {"a": 0, "b": 0}
    for n, example in enumerate(mixed, start=1):
        name = "b" if given["b"] < len(order["b"]) and order["b"][given["b"]] == example else "a"
        assert order[name][given[name]] == example
        given[name] += 1
        assert abs(given["a"] - 0.3 * n) < 1 and abs(given["b"] - 0.7 * n) < 1
    assert given["b"] == len(order["b"])


def test_repetition_is_allowed_only_where_it_is_asked_for(made, tmp_path):
    once, _ = made("data_a30_b70")
    twice, _ = write(tmp_path, "data_a30_b70", passes={"data_span_b": 2})
    # Segments long enough for several spans: a single one always stands at the end.
    long = {"inputs": 64, "targets": 24}
    pass_twice, _ = write(tmp_path, "data_span_b", passes={"data_span_b": 2}, lengths=long)
    pass_once, _ = write(tmp_path, "data_span_b", lengths=long)
    (b,) = (c for c in twice.meta["components"] if c["task"] == "data_span_b")
    assert b["passes"] == 2
    assert len(twice) > 1.9 * len(once)
    assert len(pass_twice) == 2 * len(pass_once)
    # The second pass is over the same text, with other noise.
    rows = segments(pass_twice)
    first, second = rows[: len(pass_once)], rows[len(pass_once) :]
    assert first == segments(pass_once)
    assert len(set(first) & set(second)) <= 1  # the short last segment may be hit alike
    assert pass_twice.meta["tokens"]["text"] == 2 * pass_once.meta["tokens"]["text"]


# Mistakes


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"task": "data_pears"}, ["'data_pears'", "'data_pairs'"]),
        ({"split": "validatoin"}, ["data_pairs", "'validatoin'", "'validation'"]),
        ({"task": "data_a30_b70", "split": "test"}, ["data_span_a", "'test'", "train"]),
        ({"passes": {"data_pars": 2}}, ["'data_pars'", "'data_pairs'"]),
        ({"passes": {"data_pairs": 0}}, ["passes of data_pairs", "0"]),
        ({"lengths": {"inputs": 24}}, ["inputs and targets"]),
        ({"lengths": {"inputs": 24, "targets": 0}}, ["targets", "1 to 65,536", "0"]),
        (
            {"lengths": {"inputs": 24, "targets": 2}},
            ["inputs=24, targets=2", "data_pairs train", "the shortest needs inputs="],
        ),
        (
            {"task": "data_span_a", "lengths": {"inputs": 24, "targets": 3}},
            ["data_span_a train", "targets=3", "too short", "inputs=24"],
        ),
        ({"task": "data_none"}, ["data_none train has no examples"]),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, fields, words):
    arguments = {"task": "data_pairs"} | fields
    with pytest.raises(UserError) as error:
        write(tmp_path, **arguments)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_module_is_named(tmp_path):
    spec = DataSpec("data_pairs", "train", LENGTHS, modules=("tasks.regestry",))
    with pytest.raises(UserError, match=r"tasks\.regestry"):
        materialize.materialize(spec, tmp_path)


def test_the_command_answers_on_stdout(tmp_path, capsys):
    spec = {"task": "data_pairs", "split": "train", "feature_lengths": LENGTHS, "modules": []}
    before = signal.getsignal(signal.SIGTERM)
    assert materialize.main([json.dumps([spec, spec | {"seed": 1}]), str(tmp_path)]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert [Examples(path).spec.seed for path in paths] == [0, 1]
    assert materialize.main([json.dumps(spec | {"task": "data_pears"}), str(tmp_path)]) == 2
    assert capsys.readouterr().out.startswith("unknown task or mixture 'data_pears'")
    assert materialize.main(["{", str(tmp_path)]) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    assert "not JSON" in capsys.readouterr().out


def test_examples_made_by_a_child_are_found(mini_root):
    from tests import mini

    examples = find_examples(mini.SPAN, mini_root)
    assert examples.spec.to_json() == mini.SPAN.to_json()
    assert len(examples) > 100


# Work directories: shards, kills, disks and races


def set_small(monkeypatch):
    """Limits so small that little text makes several items, runs and parts."""
    monkeypatch.setattr(reading, "ITEM_BYTES", 2000)
    monkeypatch.setattr(reading, "BATCH", 16)
    monkeypatch.setattr(runs, "RUN_BYTES", 2000)
    monkeypatch.setattr(writer, "PART_BYTES", 4000)


@pytest.fixture
def small(monkeypatch):
    set_small(monkeypatch)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Definitions of a task in 4 files, and its training examples in several parts."""
    folder = tmp_path_factory.mktemp("several")
    definitions = own_pairs(folder / "text")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_small(monkeypatch)
        examples, _ = write(folder / "root", "data_own", definitions=definitions)
    return definitions, examples


def own_pairs(folder, files=4, lines=40):
    """A task of the user's own: pairs in several files. Returns its definitions."""
    folder.mkdir(exist_ok=True)
    for number in range(files):
        rows = [
            {"en": f"Open file {number}, line {i}.", "de": f"Zeile {i} der Datei {number} öffnen."}
            for i in range(lines)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"pairs-{number}.jsonl").write_text(text, encoding="utf-8")
    definition = {
        "kind": "translation",
        "files": {
            "train": str(folder / "pairs-*.jsonl"),
            "validation": [str(folder / "pairs-0.jsonl"), str(folder / "pairs-1.jsonl")],
        },
        "format": "jsonl",
        "source": "en",
        "target": "de",
        "prompt": "translate English to German: ",
        "vocabulary": "tasks/corpus/spm8k.model",
    }
    return {"data_own": definition}


def content(examples):
    return examples.meta["content_sha256"], (examples.path / "dataset.json").read_text()


def test_a_task_in_many_files_is_every_line_once(tmp_path, small, several):
    definitions, examples = several
    assert len(examples.meta["shards"]) > 3
    assert len(examples) == len(set(segments(examples))) == 160
    records = examples.read_many(range(160))
    assert examples.tokens(77) == sum(record["text_tokens"] for record in records[:77])
    held_out, _ = write(tmp_path / "root", "data_own", "validation", definitions=definitions)
    wanted = [f"Zeile {i} der Datei {number} öffnen." for number in (0, 1) for i in range(40)]
    found = [r["targets_pretokenized"] for r in held_out.read_many(range(80))]
    assert found == wanted
    assert held_out.meta["metrics"][:2] == ["tasks.metrics.bleu", "tasks.metrics.bleu_intl"]


def test_shuffling_is_global(tmp_path, small):
    definitions = own_pairs(tmp_path / "text", lines=100)
    examples, _ = write(tmp_path / "root", "data_own", definitions=definitions)
    decode = Vocabulary(examples.vocabulary).decode
    files = [
        int(re.search(r"Open file (\d)", decode(record["inputs"])).group(1))
        for record in examples.read_many(range(len(examples)))
    ]
    # Of 100 neighbours each file gives some 25; 12 is 3 deviations away.
    for start in range(0, 400, 100):
        assert min(Counter(files[start : start + 100])[number] for number in range(4)) > 10


@pytest.mark.parametrize("phase", ["read", "written"])
def test_a_killed_job_goes_on_with_what_is_finished(tmp_path, monkeypatch, several, phase):
    set_small(monkeypatch)
    definitions, whole = several

    class Killed(BaseException):
        pass

    finished, new_file = [], work.new_file

    @contextlib.contextmanager
    def dies(at, path):
        """Kills the job in the middle of its third file of the phase."""
        if path.suffix == ".json" and path.parent.name == phase:
            if len(finished) == 2:
                raise Killed
            finished.append(path.name)
        with new_file(at, path) as temporary:
            yield temporary

    monkeypatch.setattr(work, "new_file", dies)
    with pytest.raises(Killed):
        write(tmp_path / "root", "data_own", definitions=definitions)
    (left,) = (path for path in (tmp_path / "root").iterdir() if path.suffix == ".work")
    stamps = {name: os.stat(left / phase / name).st_mtime_ns for name in finished}
    again = []

    @contextlib.contextmanager
    def watched(at, path):
        again.append(path.name)
        if path.name == "dataset.json":  # the last file: what was finished is still the old
            for name, stamp in stamps.items():
                assert os.stat(left / phase / name).st_mtime_ns == stamp
        with new_file(at, path) as temporary:
            yield temporary

    monkeypatch.setattr(work, "new_file", watched)
    examples, _ = write(tmp_path / "root", "data_own", definitions=definitions)
    assert not set(finished) & set(again)
    assert content(examples) == content(whole)
    assert list((tmp_path / "root").iterdir()) == [examples.path]


def test_what_was_read_of_other_files_is_read_again(tmp_path, monkeypatch, small):
    definitions = own_pairs(tmp_path / "text", files=2)
    monkeypatch.setattr(writer, "write_part", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "root", "data_own", definitions=definitions)
    monkeypatch.undo()
    own_pairs(tmp_path / "text", files=2, lines=50)
    examples, _ = write(tmp_path / "root", "data_own", definitions=definitions)
    assert len(examples) == 100


class FullDisk:
    """An ArrayRecordWriter on a disk without space."""

    def __init__(self, path, options):
        self.path = path

    def write(self, data):
        with open(self.path, "ab") as file:
            file.write(data)

    def close(self):
        raise RuntimeError(f"write() failed: No space left on device; writing {self.path}")


def test_a_full_disk_keeps_what_is_finished(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writer, "ArrayRecordWriter", FullDisk)
        with pytest.raises(UserError, match=r"no space left.*what is finished is kept") as error:
            write(tmp_path, "data_pairs")
    assert str(tmp_path) in str(error.value)
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert left.suffix == ".work"
    assert not list((left / "tmp").iterdir()) and not list((left / "final").iterdir())
    monkeypatch.setattr(reading, "_read", lambda *_: 1 / 0)  # nothing is read again
    examples, _ = write(tmp_path, "data_pairs")
    assert len(segments(examples)) == 60
    assert list(tmp_path.iterdir()) == [examples.path]


def test_a_disk_that_fails_for_real_is_one_clear_line(tmp_path):
    # A limit on file sizes stands in for a full disk: the error comes from the system.
    program = f"""
import resource, signal
from t5scaling.errors import UserError
from tests import made_up
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rows = [(list(range(i, i + 90)), [i]) for i in range(1000)]
try:
    made_up.write({str(tmp_path / "x")!r}, rows, lengths={{"inputs": 90, "targets": 1}})
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert re.match(r"cannot write .*File too large", done.stdout), done
    assert [path.name for path in tmp_path.iterdir()] == ["x.work"]
    assert not list((tmp_path / "x.work" / "tmp").iterdir())


def test_a_mistake_leaves_no_work_directory(tmp_path, monkeypatch):
    definitions = own_pairs(tmp_path / "text")
    definitions["data_own"]["strict"] = True
    with open(tmp_path / "text" / "pairs-2.jsonl", "a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"data_own train: .*pairs-2\.jsonl, line 41: broken JSON"):
        write(tmp_path / "root", "data_own", definitions=definitions)
    assert list((tmp_path / "root").iterdir()) == []


def test_two_may_write_the_same_at_once(tmp_path):
    # One writes; the other says that it waits, and finds the directory.
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(write(tmp_path, "data_pairs")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert sum("data_pairs train: 60 examples" in said for _, said in found) == 1
    assert list(tmp_path.iterdir()) == [found[0][0].path]
    assert len(segments(found[1][0])) == 60


# Lines that cannot be read, and examples without text


def test_broken_lines_are_counted_and_said(tmp_path):
    definitions = own_pairs(tmp_path / "text")
    with open(tmp_path / "text" / "pairs-1.jsonl", "ab") as file:
        file.write(b"{broken\n" + b'{"en": "no German"}\n' + b"\xff\xfe\n" * 5)
        file.write(b'{"en": "  ", "de": "leer"}\n')
    examples, said = write(tmp_path / "root", "data_own", definitions=definitions)
    assert len(examples) == 160
    skipped = {entry["problem"]: entry for entry in examples.meta["skipped"]}
    assert {problem: entry["count"] for problem, entry in skipped.items()} == {
        "broken JSON line": 1,
        "missing key": 1,
        "invalid UTF-8": 5,
        "empty source or target": 1,
    }
    places = [f"{tmp_path}/text/pairs-1.jsonl:{line}" for line in (43, 44, 45)]
    assert skipped["invalid UTF-8"]["first"] == places
    assert f"data_own: 5 lines were left out (invalid UTF-8; {', '.join(places)}, ...)" in said


def test_a_task_of_broken_lines_alone_says_so(tmp_path):
    definitions = own_pairs(tmp_path / "text", files=2, lines=1)
    for number in range(2):
        (tmp_path / "text" / f"pairs-{number}.jsonl").write_text("no JSON\n")
    with pytest.raises(UserError, match=r"data_own train has no examples: all 2 .*-0\.jsonl:1"):
        write(tmp_path / "root", "data_own", definitions=definitions)


def test_examples_without_text_are_left_out_and_counted(tmp_path):
    examples, said = write(tmp_path, "data_gaps")
    assert len(examples) == 3
    assert examples.meta["empty"] == 2
    assert "2 examples without text were left out" in said


def test_missing_files_and_unknown_keys_are_one_clear_line(tmp_path):
    definitions = own_pairs(tmp_path / "text")
    definitions["data_own"]["files"] = {"train": str(tmp_path / "nowhere" / "*.jsonl")}
    with pytest.raises(UserError, match=r"data_own train: no file matches .*nowhere/\*\.jsonl"):
        write(tmp_path / "root", "data_own", definitions=definitions)
    definitions["data_own"]["promt"] = "x"
    with pytest.raises(UserError, match=r"'promt'.*'prompt'"):
        write(tmp_path / "root", "data_own", definitions=definitions)


def test_a_vocabulary_that_cannot_be_read_is_named(tmp_path):
    definitions = own_pairs(tmp_path / "text")
    definitions["data_own"]["vocabulary"] = str(tmp_path / "no.model")
    with pytest.raises(UserError, match=r"no\.model.*'vocabulary'"):
        write(tmp_path / "root", "data_own", definitions=definitions)


def test_definitions_are_part_of_what_is_asked_for(tmp_path):
    definitions = own_pairs(tmp_path / "text")
    spec = DataSpec("data_own", "train", LENGTHS, definitions=definitions)
    assert DataSpec.from_json(json.loads(json.dumps(spec.to_json()))).to_json() == spec.to_json()
    other = own_pairs(tmp_path / "text")
    other["data_own"]["prompt"] = "in German: "
    changed = DataSpec("data_own", "train", LENGTHS, definitions=other)
    assert changed.to_json() != spec.to_json()
    assert "definitions" not in DataSpec("data_own", "train", LENGTHS).to_json()
