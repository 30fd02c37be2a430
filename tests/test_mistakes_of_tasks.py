"""Whatever is wrong with a task, the process that materialises it says so in one line."""

import gzip
import json
import os
import sys

import pytest

from t5scaling.data import examples, materialize
from t5scaling.data.examples import DataSpec
from t5scaling.errors import UserError

TEXT = "\n".join(f"Press the key {number} twice and hold it." for number in range(50)) + "\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def said(folder, capsys, lengths=None, modules=(), task="own", split="train", **fields):
    """The one line of the child for a mistake."""
    definition = {
        "kind": "span_corruption",
        "files": {"train": "text.txt"},
        "format": "text",
        "vocabulary": "techdoc",
        **fields,
    }
    spec = {
        "task": task,
        "split": split,
        "feature_lengths": lengths or {"inputs": 32, "targets": 16},
        "modules": list(modules),
        "definitions": {"own": definition},
    }
    assert materialize.main([json.dumps(spec), str(folder / "examples")]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, lines
    assert not list((folder / "examples").glob("own-*"))  # nothing is left of it
    return lines[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import no_such_thing\n", "No module named 'no_such_thing'"),
        ("x = (\n", "SyntaxError: '(' was never closed (module_of_mine.py, line 1)"),
        ("x = 1\nx.y\n", "AttributeError: 'int' object has no attribute 'y'"),
        ("raise KeyError('en')\n", "KeyError: 'en'"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("open('/no/such')\n", "FileNotFoundError"),
        (None, "no module 'module_of_mine' to register tasks from"),
        (b"\xff\xfe", "cannot be imported: SyntaxError"),
    ],
)
def test_modules_that_cannot_be_imported(folder, capsys, monkeypatch, content, words):
    monkeypatch.delitem(sys.modules, "module_of_mine", raising=False)
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / "module_of_mine.py").write_bytes(data)
    line = said(folder, capsys, modules=["module_of_mine"])
    assert words.replace("(module", f"({folder}/module") in line and "module_of_mine" in line


def test_a_module_hidden_behind_ours_is_named(folder, capsys):
    (folder / "tasks").mkdir()
    (folder / "tasks" / "mine.py").write_text("")
    line = said(folder, capsys, modules=["tasks.mine"])
    assert f"rename {folder}/tasks, or it is not found" in line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"vocabulary": "none.model"}, "cannot read the vocabulary"),
        ({"vocabulary": "text.txt"}, "text.txt is not a SentencePiece model"),
        ({"vocabulary": "empty.model"}, "empty.model"),
        ({"vocabulary": "/"}, "vocabulary"),
        ({"files": {"train": "broken.gz"}}, "broken.gz, after line"),
        ({"files": {"train": "short.gz"}}, "short.gz, after line"),
        ({"files": {"train": "no-gz.gz"}}, "no-gz.gz, after line 0"),
        ({"files": {"train": "none.txt"}}, "no file matches"),
        ({"files": {"train": "."}}, "no file matches"),
        ({"files": {}}, "expected {split: pattern}"),
        ({"files": {"train": 3}}, "own"),
        ({"files": {"train": [3]}}, "own"),
        ({"split": "tset"}, "task own has no split 'tset'"),
        ({"lengths": {"inputs": 2, "targets": 2}}, "is too short"),
        ({"lengths": {"inputs": 32, "targets": 3}}, "feature length targets=3 is too short"),
        ({"lengths": {"inputs": 32}}, "feature lengths of own are inputs and targets"),
        ({"lengths": {"inputs": 1 << 22, "targets": 8}}, "must be 1 to 65,536 tokens"),
        ({"lengths": {"inputs": 4000, "targets": 4000}}, "sentinels, the vocabulary has 100"),
        ({"kind": "span"}, "kind has 'span'; expected one of"),
        ({"task": "won"}, "unknown task or mixture 'won'"),
    ],
)
def test_definitions_that_cannot_be_read(folder, capsys, fields, words):
    (folder / "empty.model").write_bytes(b"")
    (folder / "no-gz.gz").write_text("no archive\n")
    packed = bytearray(gzip.compress(TEXT.encode()))
    (folder / "short.gz").write_bytes(packed[:100])
    packed[60] ^= 0xFF
    (folder / "broken.gz").write_bytes(packed)
    assert words in said(folder, capsys, **fields)


def test_a_preprocessor_that_fails_is_named_with_its_line(folder, capsys):
    seqio = pytest.importorskip("seqio")
    from tasks import vocabularies

    def broken(dataset):
        return dataset.map(lambda row: row["no such field"])

    seqio.TaskRegistry.add(
        "own_broken",
        source=seqio.TextLineDataSource({"train": str(folder / "text.txt")}),
        preprocessors=[broken],
        output_features=vocabularies.text_to_text_features(vocabularies.techdoc()),
    )
    try:
        line = said(folder, capsys, task="own_broken")
    finally:
        seqio.TaskRegistry.remove("own_broken")
    assert "own_broken train: " in line and "no such field" in line


def test_what_the_child_says_is_raised_and_prints_are_not(folder, monkeypatch):
    """Its standard output holds nothing else, whatever a task's module prints."""
    spec = DataSpec("own", "train", {"inputs": 32, "targets": 16}, modules=("talks",))
    (folder / "talks.py").write_text("print('hello')\nraise ValueError('not today')\n")
    (folder / "queue.py").write_text("raise RuntimeError('not this one')\n")
    with pytest.raises(UserError, match=r"^module 'talks' cannot be imported: ValueError: not to"):
        examples.find_examples(spec, folder / "examples")
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(examples.provenance, "child", lambda *_: killed)
    with pytest.raises(UserError, match="was killed, as happens when memory runs out"):
        examples.find_examples(spec, folder / "examples")
    monkeypatch.setattr(
        examples.provenance, "child", lambda *_: [sys.executable, "-c", "raise SystemExit(7)"]
    )
    with pytest.raises(UserError, match="materialising own train ended with status 7"):
        examples.find_examples(spec, folder / "examples")
    assert os.listdir(folder / "examples") == [] if (folder / "examples").exists() else True
