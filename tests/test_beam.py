"""Materialisation on Beam's DirectRunner: the same bytes as in this process."""

import importlib.util
import io
import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from t5scaling.data import beam, materialize, reading, runs, work, writer
from t5scaling.data.examples import DataSpec
from t5scaling.errors import UserError

# Not imported to find out: each of the processes that share the tests collects this file.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="Apache Beam is not installed"
)

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LENGTHS = {"inputs": 24, "targets": 12}
DIRECT = "--runner=DirectRunner"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Limits so small that little text makes several items, runs and parts."""
    monkeypatch.setattr(reading, "ITEM_BYTES", 4000)
    monkeypatch.setattr(reading, "BATCH", 64)
    monkeypatch.setattr(runs, "RUN_BYTES", 4000)
    monkeypatch.setattr(writer, "PART_BYTES", 8000)


def own_tasks(folder, bad_line=False):
    """Documents in two languages, in several files, and their mixture; its definitions."""
    definitions = {}
    for language, word in (("en", "Document"), ("de", "Dokument")):
        for number in range(2):
            path = folder / f"{language}-{number}.jsonl"
            lines = [{"text": f"{word} {number}, {i}: " + "x y z " * 5} for i in range(100)]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            path.write_text(text + "{\n" * bad_line, encoding="utf-8")
        definitions[f"beam_{language}"] = {
            "kind": "span_corruption",
            "files": {"train": str(folder / f"{language}-*.jsonl")},
            "format": "jsonl",
            "vocabulary": "techdoc",
        }
    rates = {"beam_en": 3, "beam_de": 1}
    return {**definitions, "beam_mix": {"kind": "mixture", "rates": rates}}


def write(root, definitions, *, options=None, pack=False):
    spec = DataSpec("beam_mix", "train", LENGTHS, pack=pack, definitions=definitions)
    return materialize.materialize(
        spec, str(root), Console(file=io.StringIO(), width=200), beam=options
    )


def content(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_the_direct_runner_writes_what_this_process_writes(tmp_path):
    """Counting what its workers skipped, too. (Without packing, and where nothing is skipped: the
    test after this one.)"""
    definitions = own_tasks(tmp_path, bad_line=True)
    here = write(tmp_path / "here", definitions, pack=True)
    there = write(tmp_path / "there", definitions, pack=True, options=DIRECT)
    assert content(here) == content(there)
    assert len([name for name in content(here) if "array_record" in name]) >= 3
    assert here.name == there.name and not work.path_for(there).exists()
    found = json.loads((there / "dataset.json").read_text())["skipped"]
    assert {entry["task"]: entry["count"] for entry in found} == {"beam_en": 2, "beam_de": 2}


def test_a_killed_pipeline_goes_on_with_what_is_finished(tmp_path, monkeypatch):
    definitions = own_tasks(tmp_path)
    whole = write(tmp_path / "whole", definitions)
    read, done = reading.read_item, []

    def dies_at_the_third(spec, at, item, count):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(item.name)
        read(spec, at, item, count)

    monkeypatch.setattr(reading, "read_item", dies_at_the_third)
    with pytest.raises(BaseException):  # noqa: B017 (what the runner makes of it)
        write(tmp_path / "root", definitions, options=DIRECT)
    (at,) = (tmp_path / "root").glob("*.work")
    finished = {path.name: path.stat().st_mtime_ns for path in (at / "read").glob("*.json")}
    assert len(finished) == 2
    again = []

    def counts(spec, at, item, count):
        if f"{item.name}.json" in finished:
            path = at / "read" / f"{item.name}.json"
            again.append(path.stat().st_mtime_ns == finished[path.name])
        read(spec, at, item, count)

    monkeypatch.setattr(reading, "read_item", counts)
    resumed = write(tmp_path / "root", definitions, options=DIRECT)
    assert content(resumed) == content(whole)
    assert resumed.name == whole.name and not work.path_for(resumed).exists()
    assert json.loads((resumed / "dataset.json").read_text())["skipped"] == []
    assert again == [True, True]


def test_a_mistake_in_a_worker_is_one_clear_line(tmp_path):
    definitions = own_tasks(tmp_path, bad_line=True)
    definitions["beam_de"]["strict"] = True
    with pytest.raises(UserError) as error:
        write(tmp_path / "root", definitions, options=DIRECT)
    assert str(error.value) == (
        f"beam_de train: {tmp_path / 'de-0.jsonl'}, line 101: broken JSON line"
    )
    assert not list((tmp_path / "root").iterdir())


def test_options_that_beam_does_not_know_are_named(tmp_path):
    definitions = own_tasks(tmp_path)
    with pytest.raises(UserError, match=r"does not accept the options .*NoSuchRunner"):
        write(tmp_path / "root", definitions, options="--runner=NoSuchRunner")
    with pytest.raises(UserError, match=r"no option --runer; did you mean --runner\?"):
        write(tmp_path / "root", definitions, options="--runer=DirectRunner")


def test_without_beam_the_install_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"Apache Beam is not installed: pip install .*\[beam\]"):
        write(tmp_path / "root", own_tasks(tmp_path), options=DIRECT)


def test_the_command_says_nothing_but_its_own(tmp_path):
    definitions = {"beam_en": own_tasks(tmp_path)["beam_en"]}
    spec = DataSpec("beam_en", "train", LENGTHS, definitions=definitions)
    command = [sys.executable, "-m", "t5scaling.data.materialize", json.dumps(spec.to_json())]
    done = subprocess.run(
        [*command, str(tmp_path / "root"), f"--beam={DIRECT}"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    (found,) = (tmp_path / "root").iterdir()
    assert done.returncode == 0 and done.stdout.split() == [str(found)]
    lines = done.stderr.splitlines()
    assert lines[0].startswith("beam_en train: ") and all(
        line.startswith("  ") for line in lines[1:]
    )


def test_every_item_is_done_once(tmp_path):
    beam.run("marking", _mark, [str(tmp_path / str(i)) for i in range(20)], DIRECT)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(20))
    assert all(path.read_text() == "x" for path in tmp_path.iterdir())


def _mark(path, count):
    with open(path, "a", encoding="utf-8") as file:
        file.write("x")
    count(1)
