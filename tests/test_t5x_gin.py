"""gin/t5x: what stock T5X is given, read by gin's parser; and run, where T5X can be imported."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from gin import config_parser
from tests.conftest import REPOSITORY

FOLDER = pathlib.Path(REPOSITORY) / "gin" / "t5x"
FILES = sorted(path.name for path in FOLDER.glob("*.gin"))


class _Delegate(config_parser.ParserDelegate):
    def configurable_reference(self, scoped_configurable_name, evaluate):
        return f"@{scoped_configurable_name}{'()' if evaluate else ''}"

    def macro(self, scoped_name):
        return f"%{scoped_name}"


def statements(name):
    text = (FOLDER / name).read_text()
    return list(config_parser.ConfigParser(text, _Delegate()))


def bindings(name):
    """Macro or parameter -> value."""
    found = {}
    for statement in statements(name):
        if isinstance(statement, config_parser.BindingStatement):
            scope = f"{statement.scope}/" if statement.scope else ""
            selector = f"{scope}{statement.selector}"
            key = f"{selector}.{statement.arg_name}" if statement.arg_name else selector
            found[key] = statement.value
    return found


def test_every_file_parses_and_says_how_it_is_run():
    assert FILES == ["eval.gin", "finetune.gin", "infer.gin", "pretrain.gin", "tiny.gin"]
    for name in FILES:
        assert statements(name)
        head = (FOLDER / name).read_text().split("from __gin__")[0]
        assert "Command:" in head and "Expected:" in head
        if name != "tiny.gin":
            script = "train" if name in ("pretrain.gin", "finetune.gin") else name[:-4]
            assert f"python -m t5x.{script} --gin_file=gin/t5x/{name}" in head


def test_every_name_is_imported_by_its_file():
    for name in FILES:
        text = re.sub(r"#.*|'[^']*'", "", (FOLDER / name).read_text())
        imported = set(re.findall(r"^(?:from \S+ )?import (?:\S+ as )?(\w+)", text, re.MULTILINE))
        used = set(re.findall(r"[@/ ^]([a-z_]\w*)\.\w+", text)) | set(
            re.findall(r"^(?:\w+/)?(\w+)\.", text, re.MULTILINE)
        )
        used -= {"t5x", "gin", "tasks"}
        assert used <= imported | {"registry"}, (name, used - imported)


def test_the_model_is_ours():
    """The numbers of gin/models/tiny.gin."""
    ours = (pathlib.Path(REPOSITORY) / "gin" / "models" / "tiny.gin").read_text()
    theirs = bindings("tiny.gin")
    for field in ("vocab_size", "emb_dim", "num_heads", "head_dim", "num_encoder_layers",
                  "num_decoder_layers", "mlp_dim"):  # fmt: skip
        (number,) = re.findall(rf"^  {field} = (\d+)$", ours, re.MULTILINE)
        assert theirs[f"network.T5Config.{field}"] == int(number)


def test_tasks_are_ours():
    import seqio

    from tasks import registry  # noqa: F401 (registers them)

    there = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    for name in FILES:
        task = bindings(name).get("MIXTURE_OR_TASK_NAME")
        assert task is None or task in there
        if task:
            assert bindings(name)["MIXTURE_OR_TASK_MODULE"] == "tasks.registry"


@pytest.mark.t5x
@pytest.mark.skipif(importlib.util.find_spec("t5x") is None, reason="T5X is not installed")
def test_stock_t5x_trains_on_our_tasks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "t5x.train", "--gin_file=gin/t5x/pretrain.gin",
         f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.TRAIN_STEPS=20"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "checkpoint_20").is_dir()
    # It was measured on the validation split.
    assert list((tmp_path / "run" / "training_eval").rglob("events.out.tfevents.*"))
    from t5scaling import convert

    convert.convert(str(tmp_path / "run"), str(tmp_path / "ours"), to="t5scaling")
