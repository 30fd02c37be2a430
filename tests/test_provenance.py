"""Examples answer to what they were made of: changed text, vocabularies and code make new ones."""

import io
import os
import shutil
import sys

import pytest
from rich.console import Console

from t5scaling.data import examples, materialize, provenance
from t5scaling.data.examples import DataSpec, Examples
from t5scaling.errors import UserError
from t5scaling.training import run_directory
from tests.conftest import REPOSITORY

SENTENCES = [f"Press the key {number} twice and hold it for a while." for number in range(40)]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with text, a vocabulary and a module of tasks, in which the user works."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "a.txt").write_text("\n".join(SENTENCES))
    shutil.copy(os.path.join(REPOSITORY, "tasks/corpus/spm8k.model"), folder / "own.model")
    (folder / "own_tasks.py").write_text("import own_steps\n")
    (folder / "own_steps.py").write_text("CASE = 'as it is'\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("own_tasks", "own_steps"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def spec():
    definition = {
        "kind": "span_corruption",
        "files": {"train": "data/*.txt"},
        "format": "text",
        "vocabulary": "own.model",
    }
    lengths = {"inputs": 32, "targets": 16}
    return DataSpec(
        "own", "train", lengths, modules=("own_tasks",), definitions={"own": definition}
    )


def make(root):
    return materialize.materialize(spec(), root, Console(file=io.StringIO()))


def described(folder):
    files = [str(path) for path in (folder / "data").iterdir()]
    return provenance.describe(
        ["own_tasks"], [f"{folder}/data/*.txt"], files, f"{folder}/own.model"
    )


def replace_text(folder):
    path = folder / "data" / "a.txt"
    path.write_text(path.read_text().replace("key", "kez"))


def add_a_file(folder):
    (folder / "data" / "b.txt").write_text("One more file.\n")


def replace_vocabulary(folder):
    path = folder / "own.model"
    path.write_bytes(path.read_bytes() + b"\x22\x00")  # an empty part of the protocol buffer


def change_code(folder):
    (folder / "own_steps.py").write_text("CASE = 'changed'\n")


def remove_one_of_two(folder):
    (folder / "data" / "z.txt").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replace_text, "a.txt was changed"),
        (add_a_file, "b.txt was added"),
        (remove_one_of_two, "z.txt is gone"),
        (replace_vocabulary, "the vocabulary "),
        (change_code, "own_steps.py was changed"),
    ],
)
def test_what_changed_is_named(project, change, words):
    (project / "data" / "z.txt").write_text("The last file.\n")
    modules, before = ("own_tasks",), described(project)
    assert provenance.changed(before, modules) is None
    time_ns = os.stat(project / "own_steps.py").st_mtime_ns
    change(project)
    os.utime(project / "own_steps.py", ns=(0, time_ns + 1))
    assert words in provenance.changed(before, modules)
    assert provenance.identity(described(project)) != provenance.identity(before) or (
        change is replace_vocabulary  # whose sha256 is part of the directory's name by itself
    )


def test_a_copy_and_another_checkout_are_the_same_text(project):
    before = described(project)
    os.utime(project / "data" / "a.txt")
    assert provenance.changed(before, ("own_tasks",)) is None
    assert provenance.identity(described(project)) == provenance.identity(before)


def test_where_the_text_is_not_the_examples_are_enough(project, monkeypatch):
    before = described(project)
    monkeypatch.chdir(project.parent)
    shutil.rmtree(project)
    assert provenance.changed(before, ("own_tasks",)) is None


def test_large_files_are_known_by_size_and_time(project, monkeypatch):
    monkeypatch.setattr(provenance, "HASHED_BYTES", 10)
    before = described(project)
    assert provenance.changed(before, ("own_tasks",)) is None
    os.utime(project / "data" / "a.txt", ns=(1, 1))
    assert "a.txt was changed" in provenance.changed(before, ("own_tasks",))


def test_changed_text_makes_new_examples_and_says_so(project, tmp_path, capsys):
    before = make(tmp_path)
    assert examples.finished(spec(), tmp_path, explain=True) == before == make(tmp_path)
    assert capsys.readouterr().err == ""
    first = Examples(before)
    replace_text(project)
    assert examples.finished(spec(), tmp_path, explain=True) is None
    said = capsys.readouterr().err
    assert f"{before} is not taken: " in said and "making own train anew" in said
    after = make(tmp_path)
    assert after != before and before.is_dir()
    assert examples.finished(spec(), tmp_path) == after

    run = str(tmp_path / "run")  # which would go on with other examples
    run_directory.keep_examples(run, first, has_trained=False)
    run_directory.keep_examples(run, first, has_trained=True)
    with pytest.raises(UserError, match="was trained so far on other examples of own"):
        run_directory.keep_examples(run, Examples(after), has_trained=True)
    run_directory.keep_examples(run, Examples(after), has_trained=False)  # nothing is lost by it
    run_directory.keep_examples(run, Examples(after), has_trained=True)


def test_another_project_with_the_same_names_has_examples_of_its_own(
    project, tmp_path, monkeypatch
):
    spec_here = spec()
    other = shutil.copytree(project, tmp_path / "other")
    monkeypatch.chdir(other)
    assert spec_here != spec()
    assert spec().to_json()["definitions"]["own"]["files"]["train"] == f"{other}/data/*.txt"
    assert spec().to_json()["definitions"]["own"]["vocabulary"] == f"{other}/own.model"


def test_text_that_changes_while_it_is_read_is_refused(project, tmp_path, monkeypatch):
    finish = materialize.writer.write_part
    monkeypatch.setattr(
        materialize.writer, "write_part", lambda *args: (add_a_file(project), finish(*args))
    )
    with pytest.raises(UserError, match=r"b\.txt was added while it was read"):
        make(tmp_path)
    assert not list(tmp_path.glob("own-train-*"))


def test_code_is_followed_through_imports_without_importing(project):
    found = provenance.code(["own_tasks", "tasks.registry"])
    assert {"own_tasks", "own_steps", "tasks.sources", "tasks.preprocessors"} <= set(found)
    assert not {"seqio", "tasks.metrics", "json"} & set(found)
    assert "own_steps" not in sys.modules
    # The repository lies elsewhere on another machine.
    assert found["tasks.sources"][0] == "{repository}/tasks/sources.py"


@pytest.mark.parametrize("name", ["queue.py", "tasks.py", "tasks/__init__.py", "t5scaling.py"])
def test_modules_beside_the_user_do_not_replace_ours(project, tmp_path, name):
    """The child that materialises is started where the user works."""
    path = project / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise RuntimeError('not this one')\n")
    entries = provenance.search_path()
    assert entries.index(str(project)) == len(entries) - 1
    here = provenance.code(["tasks.registry"])
    assert here["tasks.registry"][0] == "{repository}/tasks/registry.py"
    assert "queue" not in here
