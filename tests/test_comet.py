"""COMET's side of the process boundary is a stub package, installed by the real set-up."""

import contextlib
import fcntl
import io
import json
import os
import sys
import time
import zipfile

import pytest

from t5scaling.errors import UserError
from t5scaling.evaluation import comet
from t5scaling.evaluation.comet import Comet, Unavailable, without_prompt
from tasks import bootstrap

# What the stub does stands in the model's file.
STUB = """
import json, os, pathlib, sys, time

def download_model(model):
    if model != "some/model":
        raise KeyError(f"Model '{model}' not supported by COMET.")
    path = pathlib.Path(os.environ["HUB"], "snapshots", "0123456789abcdef", "checkpoints")
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.ckpt").write_text("scores")
    return str(path / "model.ckpt")

def load_from_checkpoint(path):
    return Model(pathlib.Path(path))

class Model:
    def __init__(self, path):
        self.path, self.does = path, path.read_text()

    def predict(self, samples, batch_size, gpus, progress_bar):
        print("chatter of the library")
        if self.does == "fail":
            raise RuntimeError("two\\nlines")
        if self.does == "die":
            print("out of memory", file=sys.stderr)
            os._exit(9)
        if self.does == "wait":
            self.path.with_suffix(".pid").write_text(str(os.getpid()))
            time.sleep(60)
        if self.does == "echo":
            self.path.with_suffix(".json").write_text(json.dumps([samples, batch_size, gpus]))
        scores = [float("nan") if self.does == "nan" else float(s["mt"]) for s in samples]
        return type("Prediction", (), {"scores": scores})()
"""
TORCH = """
__version__ = "1.2.3"
class cuda:
    is_available = staticmethod(lambda: False)
"""
# An interpreter whose `-I -m venv --clear ENV` takes no time: ENV/bin/python is this one.
QUICK = """#!/bin/sh
mkdir -p "$5/bin"
printf '#!/bin/sh\\nexec "{python}" "$@"\\n' > "$5/bin/python"
chmod +x "$5/bin/python"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel") / "unbabel_comet-9.8.7-py3-none-any.whl"
    info = "unbabel_comet-9.8.7.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("comet/__init__.py", STUB)
        archive.writestr("torch/__init__.py", TORCH)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: unbabel-comet\nVersion: 9.8.7\n"
        )
        tag = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


@pytest.fixture(scope="module")
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        yield


@pytest.fixture(scope="module")
def repeated(tmp_path_factory, wheel, offline):
    """The folder of a set-up that failed and was repeated; what pip said, what the second said.

    All tests use this one: making an environment takes seconds.
    """
    folder, pip = tmp_path_factory.mktemp("comet"), tmp_path_factory.mktemp("said") / "pip"
    # The first environment only has to have a pip, which is this one's; the second is a true one.
    python = tmp_path_factory.mktemp("quick") / "python"
    python.write_text(QUICK.format(python=sys.executable))
    python.chmod(0o755)
    stderr = os.dup(2)
    with open(pip, "wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            with pytest.raises(UserError, match="pip could not install COMET"):
                # and no index to get it from
                comet.setup(folder, requirements=["unbabel-comet"], python=str(python))
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    with pytest.raises(Unavailable, match="is not installed"):
        Comet(folder=str(folder))(["a"], ["A"], ["1"])
    # Nor is one that says it is whole, but of which something is gone.
    (folder / "comet.json").write_text('{"state": "ready"}')
    with contextlib.redirect_stdout(io.StringIO()) as said:
        comet.setup(folder, requirements=[wheel])
    return str(folder), pip.read_text(), said.getvalue()


@pytest.fixture(scope="module")
def folder(repeated):
    return repeated[0]


@pytest.fixture
def model(tmp_path):
    def write(does):
        (tmp_path / "model.ckpt").write_text(does)
        return str(tmp_path / "model.ckpt")

    return write


SOURCES, TARGETS = ["a", "b", "c"], ["A", "B", "C"]


def test_scores_come_back_with_interval_and_signature(folder, model):
    result = Comet(folder=folder, model_file=model("scores"))(SOURCES, TARGETS, ["0.5", "1", "0"])
    signature = result.pop("comet_signature")
    assert signature.startswith("model.ckpt|sha256:") and "|unbabel-comet:9.8.7|" in signature
    assert result == bootstrap.mean_scores({"comet": [50.0, 100.0, 0.0]})
    assert result["comet"] == 50.0 and result["comet_low"] < 50.0 < result["comet_high"]


def test_another_checkpoint_has_another_signature(folder, model):
    one, other = (
        Comet(folder=folder, model_file=model(does))(["a"], ["A"], ["1"])
        for does in ("scores", "echo")
    )
    assert one["comet_signature"] != other["comet_signature"] and one["comet"] == other["comet"]
    assert "comet_low" not in one  # one segment


def test_a_model_of_the_hub_is_signed_with_its_revision(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HUB", str(tmp_path))
    result = Comet(folder=folder, model="some/model")(["a"], ["A"], ["1"])
    assert result["comet_signature"] == (
        "some/model|revision:0123456789ab|unbabel-comet:9.8.7|scale:100"
    )
    with pytest.raises(
        Unavailable, match=r"^COMET: no/such could not be downloaded.*model_file takes"
    ):
        Comet(folder=folder, model="no/such")(["a"], ["A"], ["1"])


def test_texts_arrive_as_they_are_without_their_prompt(folder, model):
    path = model("echo")
    sources = ["translate English to German: zwei: eins\n—", "translate English to German: नमस्ते"]
    Comet(folder=folder, model_file=path, batch_size=7)(sources, ["Zeile\nzwei", ""], ["1", "2"])
    with open(path.replace(".ckpt", ".json")) as file:
        samples, batch_size, gpus = json.load(file)
    assert samples == [
        {"src": "zwei: eins\n—", "mt": "1", "ref": "Zeile\nzwei"},
        {"src": "नमस्ते", "mt": "2", "ref": ""},
    ]
    assert batch_size == 7 and gpus == 0


def test_only_what_all_inputs_begin_with_is_a_prompt():
    assert without_prompt(["to German: a: b", "to German: c"]) == ["a: b", "c"]
    assert without_prompt(["a: b", "c: d"]) == ["a: b", "c: d"]
    assert without_prompt(["a", "b"]) == ["a", "b"]


def test_many_segments_keep_their_order_and_report_progress(folder, model):
    notes, numbers = [], [str(i % 7) for i in range(100)]
    result = Comet(folder=folder, model_file=model("scores"), batch_size=1)(
        numbers, numbers, numbers, note=notes.append
    )
    expected = bootstrap.mean_scores({"comet": [100.0 * int(n) for n in numbers]})
    assert {k: result[k] for k in expected} == expected  # resamples depend on the order
    assert notes == [f"COMET {done} of 100" for done in (0, 32, 64, 96)]


def test_without_an_environment_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    absent = tmp_path / "absent"
    with pytest.raises(Unavailable) as error:
        Comet(folder=str(absent))(SOURCES, TARGETS, TARGETS)
    assert f"run.py comet-setup --folder {absent}`" in str(error.value)
    assert "\n" not in str(error.value) and isinstance(error.value, UserError)
    assert not absent.exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        Unavailable, match=r"t5scaling/comet; `python run\.py comet-setup` installs"
    ):
        Comet()(SOURCES, TARGETS, TARGETS)


def test_failures_of_the_other_process_are_one_line(folder, model):
    def failure(does):
        with pytest.raises(Unavailable) as error:
            Comet(folder=folder, model_file=model(does))(["a"], ["A"], ["1"])
        return str(error.value)

    assert failure("fail") == "COMET: RuntimeError: two lines"
    assert failure("die") == "COMET's process ended with status 9: out of memory"
    assert "0 finite scores for 1 segments" in failure("nan")
    with pytest.raises(Unavailable, match="no model at /not/there"):
        Comet(folder=folder, model_file="/not/there")(["a"], ["A"], ["1"])


def test_an_interrupt_leaves_no_process_behind(folder, model):
    path = model("wait")
    pid_file = path.replace(".ckpt", ".pid")

    def interrupt(text):
        while not os.path.exists(pid_file) or not os.path.getsize(pid_file):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Comet(folder=folder, model_file=path)(["a"], ["A"], ["1"], note=interrupt)
    with open(pid_file) as file, pytest.raises(ProcessLookupError):
        os.kill(int(file.read()), 0)


def test_this_process_path_does_not_reach_the_other(folder, model, tmp_path, monkeypatch):
    (tmp_path / "comet.py").write_text("raise ImportError('the wrong one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert Comet(folder=folder, model_file=model("scores"))(["a"], ["A"], ["1"])["comet"] == 100.0


def test_lists_of_different_length_are_named():
    with pytest.raises(ValueError, match="2 sources, 3 targets and 1 predictions"):
        Comet()(SOURCES[:2], TARGETS, ["1"])
    with pytest.raises(ValueError, match="at least one sentence"):
        Comet()([], [], [])


def test_setup_again_changes_nothing(folder, wheel, capfd):
    before = os.stat(os.path.join(folder, "env", "pyvenv.cfg")).st_mtime_ns
    assert str(comet.setup(folder, requirements=[wheel])) == folder
    assert os.stat(os.path.join(folder, "env", "pyvenv.cfg")).st_mtime_ns == before
    assert (
        "is already installed" in (said := capfd.readouterr().out) and "unbabel-comet 9.8.7" in said
    )


def test_setup_refuses_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds something other"):
        comet.setup(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match=r"thesis.tex cannot be made a folder"):
        comet.setup(tmp_path / "thesis.tex")


def test_two_setups_do_not_share_a_folder(tmp_path):
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another comet-setup is at work"):
        comet.setup(tmp_path)
    os.close(lock)
    assert not list(tmp_path.iterdir())


def test_a_failed_setup_is_not_taken_for_whole_and_can_be_repeated(repeated, model):
    folder, pip_said, said = repeated
    assert "unbabel-comet" in pip_said  # pip's own words
    assert "no longer works" in said
    path = model("scores")
    assert Comet(folder=folder, model_file=path)(["a"], ["A"], ["1"])["comet"] == 100.0


def test_a_missing_interpreter_is_named(tmp_path):
    with pytest.raises(
        UserError, match=r"the virtual environment could not be made: /no/python: No such file"
    ):
        comet.setup(tmp_path / "new", python="/no/python")
