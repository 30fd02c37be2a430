"""Stock T5X as a trainer, as far as it goes without T5X; and a study by it, where T5X is here."""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from gin import config_parser
from t5scaling import config
from t5scaling.data import loader
from t5scaling.data.examples import find_examples
from t5scaling.errors import Stopped, UserError
from t5scaling.interop import t5x as t5x_format
from t5scaling.interop import t5x_environment, t5x_gin, weights
from t5scaling.model import network
from t5scaling.study import t5x
from t5scaling.training import optimizer, step
from tests import made_up, mini
from tests.conftest import REPOSITORY
from tests.test_t5x_gin import _Delegate

TRAINING = t5x_gin.Training(
    model_dir="/runs/it's/checkpoints", model=mini.CONFIG, examples="/examples",
    feature_lengths={"inputs": 64, "targets": 24}, packed=True, batch_size=8, rows=100,
    shuffle=True, seed=3, first_step=20, last_step=40, factors="constant", rate=0.01,
    warmup_steps=0, z_loss=1e-4, label_smoothing=0.0, loss_normalizing_factor=None, microbatches=1,
    mesh_shape={}, initial_checkpoint=None, checkpoint_steps=(10, 30), checkpoint_every=4,
    log_every=5,
)  # fmt: skip


def bindings(training):
    """Parameter -> value as T5X's gin reads it, references and all."""
    found = {}
    for statement in config_parser.ConfigParser(t5x_gin.text(training), _Delegate()):
        if isinstance(statement, config_parser.BindingStatement):
            found[f"{statement.selector}.{statement.arg_name}"] = statement.value
        elif isinstance(statement, config_parser.BlockDeclaration):
            assert not statement.scope
    return found


def test_the_gin_text_is_what_was_asked_for():
    found = bindings(TRAINING)
    assert found["train_script.train.model_dir"] == "/runs/it's/checkpoints"
    assert found["train_script.train.total_steps"] == 40
    assert found["utils.SaveCheckpointConfig.checkpoint_steps"] == [10, 30]
    assert found["as_seqio.register.first_step"] == 20
    assert found["utils.RestoreCheckpointConfig.path"] == []
    lengths = found["utils.DatasetConfig.task_feature_lengths"]
    assert lengths["inputs_positions"] == lengths["inputs"] == 64 and len(lengths) == 6
    assert found["models.EncoderDecoderModel.feature_converter_cls"] == (
        "@seqio.PrePackedEncDecFeatureConverter"
    )
    assert found["network.T5Config.mlp_activations"] == ("gelu", "linear")


def test_a_finetuning_takes_parameters_alone():
    found = bindings(dataclasses.replace(TRAINING, initial_checkpoint="/a/checkpoint_9"))
    assert found["utils.RestoreCheckpointConfig.path"] == "/a/checkpoint_9"
    assert found["utils.RestoreCheckpointConfig.assignment_map"] == (("state.*", None),)
    assert found["utils.RestoreCheckpointConfig.fallback_to_scratch"] is True


@pytest.mark.parametrize(
    "shape, expected",
    [
        ({}, (1, 1, None)),
        ({"data": 4, "model": 2}, (2, 1, 8)),
        ({"data": 1, "fsdp": 4, "model": 2}, (2, 2, 8)),
        ({"data": 1, "fsdp": -1}, (1, 2, None)),
        ({"data": 2, "fsdp": 2}, "one axis for rows"),
        ({"fsdp": 2}, "one axis for rows"),
        ({"model": -1}, "needs the number of devices"),
    ],
)
def test_meshes(shape, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            t5x_gin.partition(shape)
    else:
        assert dataclasses.astuple(t5x_gin.partition(shape)) == expected


def test_what_t5x_cannot_do_is_refused():
    with pytest.raises(UserError, match="REMAT_POLICY='full'"):
        t5x_gin.check(dataclasses.replace(mini.CONFIG, remat="full"), {}, None)
    with pytest.raises(UserError, match="loss_normalizing_factor is 'median'"):
        t5x_gin.check(mini.CONFIG, {}, "median")
    with pytest.raises(UserError, match="learning_rate_schedule"):
        t5x._factors(lambda step: 0.1)
    assert t5x._factors(optimizer.inverse_square_root(2.0, 50)) == (
        "constant * rsqrt_decay", 2.0, 50
    )  # fmt: skip


LINE = (
    "I1127 03:00:00.1 139 logging_writer.py:48] [20] collection=train accuracy=0.25, "
    "cross_ent_loss={cross}, learning_rate=0.01, loss={loss}, "
    "loss_per_nonpadding_target_token={each}, timing/seconds=2.0, timing/seqs_per_second=8.0, "
    "timing/seqs_per_second_per_core=4.0, z_loss={z}"
)


@pytest.mark.parametrize(
    "normalizer, divisor",
    [(None, 1.0), (233.0, 233.0), ("target_tokens", 100.0), ("NUM_TOTAL_TARGET_TOKENS", 160.0)],
)
def test_metrics_are_per_target_token(normalizer, divisor):
    """Five steps of 100 tokens in 160 positions, at 3 nats of cross-entropy and 0.5 of z-loss a
    token."""
    cross, z = 300.0 / divisor, 50.0 / divisor
    line = LINE.format(cross=cross, z=z, loss=cross + z, each=(cross + z) / 100)
    scalars = t5x.metrics_of(line)
    assert scalars["step"] == 20
    found = t5x.train_line(scalars, 5, 500, 800, normalizer)
    assert found["target_tokens"] == 500 and found["learning_rate"] == 0.01
    assert math.isclose(found["loss"], 3.0) and math.isclose(found["z_loss"], 0.5)
    assert t5x._devices(scalars) == 2
    with pytest.raises(UserError, match="trained on 500 target tokens in the 5 steps"):
        t5x.train_line(scalars, 5, 502, 800, normalizer)


def test_target_tokens_are_counted_in_the_runs_order(tmp_path):
    rows = [([5], [7] * (i % 4 + 1)) for i in range(20)]
    examples = made_up.write(tmp_path / "x-train-0", rows, lengths={"inputs": 4, "targets": 4})
    for shuffle, places in ((False, range(4, 12)), (False, range(12, 20)), (True, range(4, 12))):
        batches = loader.train_batches(
            examples, batch_size=4, last=17, start_step=places.start // 4,
            num_steps=len(places) // 4, seed=3, shuffle=shuffle,
        )  # fmt: skip
        expected = sum(int(batch["decoder_loss_weights"].sum()) for batch in batches)
        assert t5x.target_tokens(examples, places, 17, 3, shuffle) == expected


def test_other_lines_are_no_metrics():
    assert t5x.metrics_of("] [20] collection=train timing/compilation_seconds=3") is None
    assert t5x.metrics_of("Training: step 20") is None


def say(tmp_path, code):
    command = [sys.executable, "-c", code]
    return list(t5x._output_of(command, os.environ, str(tmp_path / "log"), "T5X"))


def test_a_child_that_fails_says_why_in_one_line(tmp_path):
    with pytest.raises(
        UserError, match=r"T5X ended with status 1: KeyError: 'en' \(its whole output"
    ):
        say(tmp_path, "print('hello'); {}['en']")
    assert "hello" in (tmp_path / "log").read_text()
    with pytest.raises(UserError, match="status 3: no such mesh "):
        say(tmp_path, "print('t5scaling.errors.UserError: no such mesh\\nmore'); exit(3)")
    with pytest.raises(UserError, match="memory runs out"):
        say(tmp_path, "import os; os.kill(os.getpid(), 9)")


def test_a_signal_ends_the_child(tmp_path):
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="goes on from T5X's last checkpoint"):
        say(tmp_path, code)
    assert signal.getsignal(signal.SIGTERM) is before


def test_without_t5x_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(t5x_environment, "is_here", lambda: False)
    with pytest.raises(UserError, match=r"T5X is not installed .* `python run.py t5x-setup`"):
        t5x_environment.command(None)
    with pytest.raises(UserError, match="t5x-setup --folder elsewhere`"):
        t5x_environment.command("elsewhere")


def test_a_source_without_clones_is_named(tmp_path):
    with pytest.raises(UserError, match="no folder jestimator in it"):
        t5x_environment.setup(tmp_path / "new", source=str(tmp_path))
    for name in t5x_environment.SOURCES:
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="jestimator is not a clone of https"):
        t5x_environment.setup(tmp_path / "new", source=str(tmp_path))
    with pytest.raises(UserError, match="--extra is 'gpus'; did you mean 'gpu'"):
        t5x_environment.setup(tmp_path / "new", extra="gpus")


def test_a_study_names_its_trainer(tmp_path, mini_root):
    """Its runs carry it: in their settings, so that no run is gone on with by another."""
    from t5scaling.study import expand, runner

    overrides = {"STUDY_DIR": str(tmp_path), "EXAMPLES_ROOT": mini_root}
    digests = []
    for files in ([], ["gin/executors/t5x.gin"]):
        config.load(["tests/mini/study.gin", *files], overrides)
        study = config.bindings_of(runner.run_study)["study"]
        runs = expand.expand(study, str(tmp_path), mini_root)
        digests.append([run.record["settings"] for run in runs])
        assert {run.record.get("trainer") for run in runs} == ({"t5x"} if files else {None})
    assert not set(digests[0]) & set(digests[1])
    config.load(runs[0].gin_files, runs[0].bindings)
    assert t5x.asked_for() == t5x.T5X()


# In T5X's place: says what T5X would of two steps at a time, and leaves the checkpoint that the
# test has prepared where T5X would leave its own.
STAND_IN = """
import os, re, shutil, sys
here = os.path.dirname(__file__)
text = open(next(a for a in sys.argv if a.startswith("--gin_file=")).partition("=")[2]).read()
def number(name):
    return int(re.search(rf"^  {name} = (\\d+)$", text, re.M)[1])
folder = re.search(r"^  model_dir = '(.*)'$", text, re.M)[1]
for line in open(os.path.join(here, "lines")):
    if int(re.search(r"\\[(\\d+)\\]", line)[1]) > number("first_step"):
        print(line, end="", flush=True)
for step in (2, number("last_step")):
    place = os.path.join(folder, f"checkpoint_{step}")
    shutil.copytree(os.path.join(here, "checkpoint"), place, dirs_exist_ok=True)
sys.exit(os.path.exists(os.path.join(here, "fail")))
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch, mini_root):
    """The folder of a package `t5x` for a run of four steps of two lines, and that run's
    arguments."""
    package = tmp_path / "modules" / "t5x"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(STAND_IN)
    params = network.init_params(mini.CONFIG, jax.random.key(0))
    params = weights.unflatten({k: np.asarray(v) for k, v in weights.flatten(params)})
    t5x_format.write(str(package / "checkpoint"), weights.Weights(mini.CONFIG, params, 4))
    command = ([sys.executable], str(package.parent))
    monkeypatch.setattr(t5x_environment, "command", lambda folder: command)
    arguments = {
        "model_dir": str(tmp_path / "run"), "model": mini.CONFIG, "dataset": mini.SPAN,
        "examples_root": mini_root, "batch_size": 8, "train_steps": 4,
        "learning_rate_schedule": optimizer.constant(0.01), "objective": step.Objective(),
        "log_every": 2, "progress": lambda *_: None,
    }  # fmt: skip
    examples = find_examples(mini.SPAN, mini_root)
    lines = []
    for last in (2, 4):
        tokens = t5x.target_tokens(examples, range(8 * (last - 2), 8 * last), 10**6, 0, False)
        loss = 3.0 * tokens / 2
        line = LINE.format(cross=loss, z=0.0, loss=loss, each=3.0).replace("[20]", f"[{last}]")
        lines.append(line + "\n")
    (package / "lines").write_text("".join(lines))
    return package, arguments


def test_a_run_from_its_start_to_its_end(stand_in):
    package, arguments = stand_in
    run = pathlib.Path(arguments["model_dir"])
    (package / "fail").touch()
    with pytest.raises(UserError, match="T5X ended with status 1"):
        t5x.train(t5x.T5X(), **arguments)
    (package / "fail").unlink()
    shutil.rmtree(run / "checkpoints" / "checkpoint_4")
    t5x.train(t5x.T5X(), **arguments)  # from step 2 on
    assert "first_step = 2" in (run / "t5x.gin").read_text()
    found = mini.lines(run)
    assert [line["step"] for line in found] == [2, 4]
    assert all(math.isclose(line["loss"], 3.0) for line in found)
    assert json.loads((run / "DONE").read_text())["step"] == 4
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint_4"]
    assert (run / "checkpoints" / "checkpoint_4" / "digests.json").exists()
    assert mini.parameters(run, 4)  # as eval reads them
    t5x.train(t5x.T5X(), **arguments)  # and is done


def test_a_loss_that_is_not_finite_leaves_no_checkpoint_after_it(stand_in):
    package, arguments = stand_in
    lines = (package / "lines").read_text().splitlines()
    lines[1] = re.sub(r" loss=[\d.]+", " loss=nan", lines[1])
    (package / "lines").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match="not finite between steps 2 and 4"):
        t5x.train(t5x.T5X(), **arguments)
    run = pathlib.Path(arguments["model_dir"])
    assert not (run / "checkpoints" / "checkpoint_4").exists()
    assert [line["step"] for line in mini.lines(run)] == [2]


@pytest.mark.t5x
@pytest.mark.skipif(not t5x_environment.is_here(), reason="T5X is not installed")
def test_a_study_by_stock_t5x(tmp_path, mini_root):
    """Pretraining and finetuning from one command, and the report on them."""
    command = [
        sys.executable, "run.py", "study", "--gin_file=tests/mini/study.gin",
        "--gin_file=gin/executors/t5x.gin", f"--gin.STUDY_DIR={tmp_path}",
        f"--gin.EXAMPLES_ROOT={mini_root}", "--gin.study.Study.pretrain_tokens=(3_000,)",
    ]  # fmt: skip
    subprocess.run(command, cwd=REPOSITORY, check=True)
    (results,) = tmp_path.glob("results.csv")
    assert "cross_entropy" in results.read_text()
    (record,) = tmp_path.glob("runs/finetune/**/run.json")
    assert json.loads(record.read_text())["trainer"] == "t5x"
    lines = mini.lines(record.parent)
    assert lines[0]["split"] == "train" and lines[-1]["split"] == "test"
