"""The command line: what a user types, and what a user gets wrong."""

import errno
import os
import re
import shutil
import subprocess
import sys

import pytest

import run
from t5scaling import config, verbs
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError
from t5scaling.verb import GIN, JOB, Verb
from tests.conftest import REPOSITORY

PRETRAIN = ["--gin_file=tests/mini/model.gin", "--gin_file=gin/runs/pretrain.gin"]
FINETUNE = ["--gin_file=tests/mini/model.gin", "--gin_file=gin/runs/finetune.gin"]
MODULES = "--gin.TASK_MODULES=('tests.mini_tasks',)"


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def mini(root, folder, task="mini_span_en50_de50", **settings):
    settings = {
        "MIXTURE_OR_TASK_NAME": task,
        "EXAMPLES_ROOT": root,
        "MODEL_DIR": folder,
        "BATCH_SIZE": 8,
        "TASK_FEATURE_LENGTHS": {"inputs": 64, "targets": 24},
        **settings,
    }
    return [MODULES, *(f"--gin.{name}={value}" for name, value in settings.items())]


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as end:
        run.main([verb, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "Example: python run.py " + verb in " ".join(shown.split())


def error_of(capsys, *argv):
    """The one line that a mistake prints."""
    assert run.main(list(argv)) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(err) == 1 and err[0].startswith("error: "), err
    return err[0]


def test_train_then_eval(mini_root, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run.main(["train", *PRETRAIN, *mini(mini_root, folder, TRAIN_STEPS=4)]) == 0
    assert (folder / "DONE").exists() and (folder / "config.gin").exists()
    # The run's own config.gin repeats it: nothing left to do.
    assert run.main(["train", f"--gin_file={folder}/config.gin"]) == 0
    assert "already done" in capsys.readouterr().out
    settings = {
        "MIXTURE_OR_TASK_NAME": "mini_translate_en_de",
        "EXAMPLES_ROOT": mini_root,
        "MODEL_DIR": folder,
        "EVAL_FEATURE_LENGTHS": {"inputs": 160, "targets": 160},
        "EVAL_BATCH_SIZE": 8,
        "MAX_DECODE_LENGTH": 8,
    }
    flags = [MODULES, *(f"--gin.{name}={value}" for name, value in settings.items())]
    files = ["--gin_file=gin/runs/eval.gin"]  # the run says which model it is of
    assert run.main(["eval", *files, *flags]) == 0
    other = ["--gin_file=gin/models/tiny.gin", *files]
    assert "holds another model: its " in error_of(capsys, "eval", *other, *flags)
    assert '"cross_entropy"' in (folder / "eval.jsonl").read_text()
    assert (folder / "inference_eval/mini_translate_en_de-000004.jsonl").exists()
    line = error_of(capsys, "eval", *files, *flags, "--gin.STEPS=[7]")
    assert "no checkpoint of step 7; there: 4" in line


def test_materialize(mini_root, capsys):
    assert run.main(["materialize", *PRETRAIN, *mini(mini_root, "x", TRAIN_STEPS=1)]) == 0
    assert "examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--gin.TRAIN_STEP=4"], "no such parameter; did you mean 'TRAIN_STEPS'?"),
        (["--gin.loop.train.batchsize=4"], "no parameter 'batchsize'; did you mean 'batch_size'?"),
        (["--gin.lop.train.seed=4"], "did you mean 'loop.train'?"),
        (["--gin_file=gin/runs/pretrian.gin"], "did you mean 'gin/runs/pretrain.gin'?"),
    ],
)
def test_wrong_gin_names_get_the_nearest_one(flags, expected, capsys):
    files = ["--gin_file=gin/models/tiny.gin", "--gin_file=gin/runs/pretrain.gin"]
    assert expected in error_of(capsys, "train", *files, *flags)


@pytest.mark.parametrize("verb", ["report", "status", "export", "fit", "advise", "figures", "work"])
def test_gin_settings_where_nothing_reads_them(verb, tmp_path, capsys):
    more = ["run"] if verb == "work" else []
    line = error_of(capsys, verb, str(tmp_path), *more, "--gin.X=1", "--gin.Y='a'")
    assert f"{verb} takes no --gin settings, but --gin.X --gin.Y is given" in line


@pytest.mark.parametrize("option", ["--at", "--budget", "--cost_per_unit", "--cost_per_run"])
@pytest.mark.parametrize("value", ["inf", "nan", "0", "-1", "1e300"])
def test_sizes_and_costs_that_cannot_be(option, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "t.csv"
    table.write_text("x,y\n" + "".join(f"{10**i},{5 - i / 2}\n" for i in range(4)))
    if option != "--at" and value == "1e300":
        return
    line = error_of(capsys, "advise", str(table), f"{option}={value}")
    assert option in line and "expected a positive" in line
    if option == "--at":
        assert "expected a positive" in error_of(capsys, "figures", str(table), f"--at={value}")
    assert list(tmp_path.iterdir()) == [table]  # no figures either


def test_a_file_where_a_folder_belongs(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for verb in ("report", "status", "export"):
        assert "file" in error_of(capsys, verb, str(tmp_path / "file" / "study"))
    files = ["--gin_file=gin/models/tiny.gin", "--gin_file=gin/studies/quick.gin"]
    line = error_of(capsys, "study", files[1], f"--gin.STUDY_DIR={tmp_path / 'file/x'}")
    assert "cannot make the folder" in line and "Not a directory" in line
    table = tmp_path / "t.csv"
    table.write_text("x,y\n" + "".join(f"{10**i},{5 - i / 2}\n" for i in range(4)))
    line = error_of(capsys, "figures", str(table), f"--output={table}")
    assert line == f"error: {table}: File exists"


def test_a_device_is_no_file(capsys):
    """Some never end, and all that they give would be read first."""
    for argv in (
        ("fit", "/dev/zero"),
        ("report", "/dev/zero"),
        ("train", "--gin_file=/dev/zero"),
        ("convert", f"{REPOSITORY}/tests/golden/huggingface/mt5", "x", "--to=t5x",
         "--vocabulary=/dev/zero"),
    ):  # fmt: skip
        assert "/dev/zero" in error_of(capsys, *argv)
    with pytest.raises(UserError, match="cannot read the vocabulary /dev/zero: it is a device"):
        Vocabulary("/dev/zero")


def test_what_is_missing_is_named(capsys):
    line = error_of(capsys, "train", "--gin_file=gin/models/tiny.gin", PRETRAIN[1])
    assert "MIXTURE_OR_TASK_NAME" in line and "TRAIN_STEPS" in line
    assert "MODEL is read but not set" in error_of(capsys, "train", PRETRAIN[1])
    assert "no --gin_file given" in error_of(capsys, "train")


def test_a_typing_error_in_a_gin_file(tmp_path, capsys):
    path = tmp_path / "mine.gin"
    path.write_text("include 'gin/runs/pretrain.gin'\nTRAIN_STEP = 3\n")
    line = error_of(capsys, "train", "--gin_file=gin/models/tiny.gin", f"--gin_file={path}")
    assert "TRAIN_STEP is set but nothing reads it; did you mean 'TRAIN_STEPS'?" in line
    path.write_text("TRAIN_STEPS = = 3\n")
    assert str(path) in error_of(capsys, "train", f"--gin_file={path}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"MIXTURE_OR_TASK_NAME": "mini_span_en50_fr50"}, "did you mean 'mini_span_en50_de50'?"),
        ({"TASK_FEATURE_LENGTHS": {"inputs": 2, "targets": 2}}, "inputs"),
        ({"TRAIN_STEPS": 100_000}, "lower TRAIN_STEPS or allow repetition"),
        ({"TASK_MODULES": ("tests.no_tasks",)}, "no module 'tests.no_tasks'"),
    ],
)
def test_mistakes_about_the_data(materialised_here, mini_root, tmp_path, capfd, settings, expected):
    folder = tmp_path / "run"
    flags = mini(mini_root, folder, **{"TRAIN_STEPS": 2, **settings})
    assert expected in error_of(capfd, "train", *PRETRAIN, *flags)
    assert not (folder / "checkpoints").exists()


def test_a_corrupt_shard(mini_root, tmp_path, capsys):
    import shutil

    root = tmp_path / "examples"
    shutil.copytree(mini_root, root)
    (shard,) = root.glob("mini_span_en50_de50-*/part-*")
    os.truncate(shard, shard.stat().st_size // 2)
    line = error_of(capsys, "train", *PRETRAIN, *mini(root, tmp_path / "run", TRAIN_STEPS=2))
    assert str(shard) in line and "materialise it again" in line


def test_sigterm_exits_with_its_own_status(mini_root, tmp_path):
    """143, as schedulers expect, with the work saved."""
    import signal
    import time

    folder = tmp_path / "run"
    flags = mini(mini_root, folder, TRAIN_STEPS=5000, MAX_EPOCHS=1000, LOG_EVERY=2)
    process = subprocess.Popen(
        [sys.executable, "run.py", "train", *PRETRAIN, *flags], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "run the same command to go on" in err and "Traceback" not in err
    assert list((folder / "checkpoints").glob("checkpoint_*"))
    assert not (folder / "FAILED").exists()


def test_plain_strings_need_no_quotes():
    from t5scaling import config

    assert config.gin_literal("runs/a-b c") == "'runs/a-b c'"
    assert config.gin_literal("'quoted'") == "'quoted'"
    assert config.gin_literal("1e-3") == "1e-3"
    assert config.gin_literal("(1, 2)") == "(1, 2)"
    assert config.gin_literal("None") == "None"
    assert config.gin_literal("%MODEL") == "%MODEL"
    assert config.gin_literal("0.2%") == "'0.2%'"
    assert config.gin_literal("me@home") == "'me@home'"
    assert config.gin_literal("@decoding.Greedy()") == "@decoding.Greedy()"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("@decoding.BemSearch()", "did you mean 'BeamSearch'"),
        ("@decodng.BeamSearch()", "nothing is called 'decodng.BeamSearch'"),
        ("BeamSearch", "DECODER is 'BeamSearch'; expected @decoding.Greedy() or @decoding.Beam"),
    ],
)
def test_a_decoder_is_named_by_gins_reference(value, words, tmp_path, capsys):
    files = ["--gin_file=tests/mini/model.gin", "--gin_file=gin/runs/eval.gin"]
    settings = [f"--gin.MODEL_DIR={tmp_path}", "--gin.MIXTURE_OR_TASK_NAME=x"]
    assert words in error_of(capsys, "eval", *files, *settings, f"--gin.DECODER={value}")
    infer = ["--gin_file=tests/mini/model.gin", "--gin_file=gin/runs/infer.gin"]
    settings = [f"--gin.{name}={tmp_path}/x" for name in ("MODEL_DIR", "INPUT_FILE", "OUTPUT_FILE")]
    assert words in error_of(capsys, "infer", *infer, *settings, f"--gin.DECODER={value}")


def test_work_on_runs_that_are_not_there(tmp_path, capsys):
    (tmp_path / "study.json").write_text('{"study": "s", "runs": ["pretrain/en"]}')
    assert "pretrain/en is not prepared" in error_of(capsys, "work", str(tmp_path), "pretrain/en")
    line = error_of(capsys, "work", str(tmp_path), "pretrain/n")
    assert "no run 'pretrain/n' here; did you mean 'pretrain/en'?" in line


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (MemoryError(), 1, "error: this machine's memory does not suffice"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), 1, "error: no space is left on "
                                                                    "the disk for x/y"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 1, "MICROBATCHES"),
        (BrokenPipeError(), 128 + 13, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_the_last_line(monkeypatch, capfd, error, status, words):
    def fails(*_):
        try:
            raise error
        except (MemoryError, OSError, RuntimeError) as cause:
            if isinstance(cause, BrokenPipeError):
                raise
            raise ValueError("what another library makes of it") from cause

    monkeypatch.setattr(Verb, "call", fails)
    stdout = os.dup(1)
    try:
        assert run.main(["doctor"]) == status
    finally:
        os.dup2(stdout, 1)
    err = capfd.readouterr().err
    assert words in err and "Traceback" not in err and err.count("\n") <= 1


def test_other_errors_keep_their_traceback(monkeypatch):
    def fails(*_):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(Verb, "call", fails)
    with pytest.raises(ValueError, match="a mistake of ours"):
        run.main(["doctor"])


def test_a_tilde_on_the_command_line_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    found = []
    monkeypatch.setattr(Verb, "call", lambda _, given, settings: found.append(given) or 0)
    assert run.main(["export", "~/study", "--output=~/a.tar.gz"]) == 0
    assert run.main(["train", "--gin_file=~/a.gin", "--gin_file=b.gin"]) == 0
    assert found[0]["study_dir"] == "/home/somebody/study"
    assert found[0]["output"] == "/home/somebody/a.tar.gz"
    assert found[1]["gin_file"] == ["/home/somebody/a.gin", "b.gin"]


def test_flags_are_of_one_style():
    """T5X's --gin_file has an underscore, so all have."""
    for verb in verbs.VERBS.values():
        for argument in (*verb.arguments, *GIN, *JOB):
            assert re.fullmatch(r"(--)?[a-z_]+(\.NAME)?", argument.flag), argument.flag


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch, capsys):
    def lacks(name):
        def call(*_):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return call

    monkeypatch.setattr(Verb, "call", lacks("flax.linen"))
    line = error_of(capsys, "convert", "a", "b", "--to=t5x")
    assert "convert needs the Python package flax" in line and "'t5scaling[train]'" in line
    monkeypatch.setattr(Verb, "call", lacks("t5scaling.no_such_module"))
    with pytest.raises(ModuleNotFoundError):
        run.main(["doctor"])


def test_gin_files_that_come_with_the_package_are_found_from_any_folder(monkeypatch, tmp_path):
    """Where it is installed without a clone they are in the package's own folder `files`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site/files").mkdir(parents=True)
    shutil.copytree(os.path.join(REPOSITORY, "gin"), tmp_path / "site/files/gin")
    monkeypatch.setattr(config, "SHIPPED", str(tmp_path / "site/files"))
    settings = {"STUDY_DIR": "runs/mine"}
    text = config.load(["gin/studies/techdoc.gin"], settings)  # which includes another
    assert "STUDY_DIR = 'runs/mine'" in text
    with pytest.raises(UserError, match="did you mean 'gin/studies/quick"):
        config.load(["gin/studies/quik.gin"], {})
