"""What is wrong with a run is said before its first step, and locks nobody out of its directory."""

import dataclasses
import json
import shutil

import pytest

from t5scaling import config
from t5scaling.errors import UserError
from t5scaling.evaluation import evaluate
from t5scaling.model import decoding
from t5scaling.study import expand
from t5scaling.study.executors import local
from t5scaling.training import checks, run_directory
from tasks import metrics
from tests import mini

FILES = ["tests/mini/model.gin", "gin/runs/finetune.gin"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_steps": 0}, "TRAIN_STEPS is 0; expected a whole number >= 1"),
        ({"train_steps": 2.5}, "TRAIN_STEPS is 2.5; expected a whole number"),
        ({"batch_size": 0}, "BATCH_SIZE is 0; expected a whole number >= 1"),
        ({"batch_size": True}, "BATCH_SIZE is True"),
        ({"log_every": 0}, "LOG_EVERY is 0"),
        ({"eval_every": 0}, "eval_every is 0"),
        ({"seed": -1}, "SEED is -1; expected a whole number >= 0"),
        ({"microbatches": 0}, "MICROBATCHES=0"),
        ({"microbatches": 3}, "BATCH_SIZE=8 cannot be split"),
        ({"checkpoint_steps": (13,)}, "CHECKPOINT_STEPS has 13; expected whole numbers from 1 to"),
        ({"initial_checkpoint_path": "/nowhere/checkpoints/checkpoint_1"}, "no checkpoint at"),
    ],
)
def test_settings_that_cannot_be(tmp_path, changes, words):
    settings = {"model_dir": str(tmp_path), "model": mini.CONFIG, "batch_size": 8} | {
        "train_steps": 12,
        **changes,
    }
    with pytest.raises(UserError, match=words):
        checks.check_settings(**settings)
    with pytest.raises(UserError, match=words):  # the loop asks the same
        mini.train(tmp_path / "run", "/nowhere", **changes)
    assert not (tmp_path / "run").exists()


def no_good(targets, predictions):
    raise ValueError("expected labels")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 7}, "EVAL_BATCH_SIZE=7 cannot be split"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number >= 1"),
        ({"max_decode_len": 0}, "max_decode_len is 0; expected a whole number >= 1"),
        ({"metrics": metrics.bleu}, "metrics are @metrics.bleu; expected .* a tuple of functions"),
        ({"metrics": ("bleu",)}, r"metrics are \('bleu',\); expected"),
        ({"metrics": (no_good,)}, "metric no_good: expected labels"),
        ({"decoder": "beam"}, "'beam' is not a decoder"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_training(
    mini_root, tmp_path, changes, words
):
    with pytest.raises(UserError, match=words):
        evaluation = evaluate.Evaluation(mini.TEST, mini_root, **{"batch_size": 8, **changes})
        mini.train(tmp_path / "run", mini_root, evaluators=(evaluation,))
    assert not (tmp_path / "run").exists()


def test_a_metric_that_the_task_names_must_be_there(mini_root):
    evaluation = evaluate.Evaluation(mini.TEST, mini_root, metrics="task")

    class Named:
        meta = {"metrics": ["tasks.metrics.blue"]}  # noqa: RUF012

    with pytest.raises(UserError, match=r"names the metric tasks.metrics.blue, which cannot be"):
        evaluation._metrics(Named())


# What may change in a directory


def text(**settings):
    values = {"MIXTURE_OR_TASK_NAME": "a", "MODEL_DIR": "b", "TRAIN_STEPS": 300}
    return config.load(FILES, values | settings)


@pytest.fixture
def begun(tmp_path):
    run_directory.begin(str(tmp_path), text())
    return tmp_path


def saved(folder):
    (folder / "checkpoints/checkpoint_1").mkdir(parents=True)
    return folder


def test_a_directory_without_a_checkpoint_begins_anew(begun):
    run_directory.begin(str(begun), text(SEED=1, BATCH_SIZE=4))
    saved(begun)
    with pytest.raises(UserError, match=r"\(BATCH_SIZE = 4 there, BATCH_SIZE = 32 now\)"):
        run_directory.begin(str(begun), text(SEED=1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EVAL_BATCH_SIZE", 2), ("MICROBATCHES", 4), ("MAX_EPOCHS", 3), ("METRICS", ()),
        ("DECODER", "@decoding.BeamSearch()"), ("MAX_DECODE_LENGTH", 64), ("TEST_SPLIT", "new"),
    ],
)  # fmt: skip
def test_what_changes_no_number_of_the_training_may_change(begun, name, value):
    changed = text(**{name: value})
    run_directory.refuse_changed(str(saved(begun)), changed)
    run_directory.write_json(str(begun / "DONE"), {"step": 300})
    if name in run_directory.MEASURED_AT_THE_END:
        with pytest.raises(UserError, match=r"it is done; `run.py eval` can evaluate it"):
            run_directory.refuse_changed(str(begun), changed)
    else:
        run_directory.refuse_changed(str(begun), changed)


@pytest.mark.parametrize(
    ("settings", "may_grow", "refused"),
    [
        ({"TRAIN_STEPS": 400}, True, ""),
        ({"TRAIN_STEPS": 400}, False, "only `run.py train` can change the number of steps"),
        ({"TRAIN_STEPS": 200}, True, "TRAIN_STEPS = 300 there, TRAIN_STEPS = 200 now"),
        ({"TRAIN_STEPS": 400, "SEED": 1}, True, "SEED = 0 there, SEED = 1 now"),
        ({"TRAIN_STEPS": 400, "EVAL_EVERY": "%TRAIN_STEPS"}, True, "there"),
    ],
)
def test_a_run_may_grow_where_nothing_depends_on_its_length(begun, settings, may_grow, refused):
    saved(begun)
    if not refused:
        run_directory.refuse_changed(str(begun), text(**settings), may_grow)
        return
    with pytest.raises(UserError, match=refused):
        run_directory.refuse_changed(str(begun), text(**settings), may_grow)


def test_what_depends_on_the_steps_keeps_them(tmp_path):
    def text_of(steps):
        return text(**{"TRAIN_STEPS": steps, "EVAL_EVERY": "%TRAIN_STEPS"})

    run_directory.begin(str(saved(tmp_path)), text_of(300))
    with pytest.raises(UserError, match="to a larger one that no other setting depends on"):
        run_directory.refuse_changed(str(tmp_path), text_of(400), may_grow=True)


def test_a_run_made_longer_is_one_that_was_that_long(mini_root, tmp_path):
    """Done at step 7, between two lines of metrics."""
    evaluation = evaluate.Evaluation(mini.VALIDATION, mini_root, batch_size=8, max_examples=8)
    mini.train(tmp_path / "long", mini_root, evaluators=(evaluation,))
    mini.train(tmp_path / "short", mini_root, evaluators=(evaluation,), train_steps=7)
    assert [line["step"] for line in mini.lines(tmp_path / "short")] == [5, 7, 7]
    unkept = shutil.copytree(tmp_path / "short", tmp_path / "unkept")
    shutil.rmtree(unkept / "checkpoints")
    with pytest.raises(UserError, match=r"did not keep its last checkpoint"):
        mini.train(unkept, mini_root, evaluators=(evaluation,))
    mini.train(tmp_path / "short", mini_root, evaluators=(evaluation,))
    one, other = ((tmp_path / n / "metrics.jsonl").read_bytes() for n in ("long", "short"))
    assert one == other
    assert json.loads((tmp_path / "short/DONE").read_text())["step"] == 12
    parameters = (mini.parameters(tmp_path / n, 12) for n in ("long", "short"))
    assert mini.same(*parameters)


def test_a_model_of_another_vocabulary_size_than_the_test_set_is_refused(mini_root):
    small = dataclasses.replace(mini.CONFIG, vocab_size=8000)
    evaluation = evaluate.Evaluation(mini.TEST, mini_root, batch_size=8, decoder=decoding.Greedy())
    from t5scaling.data.examples import find_examples

    with pytest.raises(UserError, match="more than the model's 8,000"):
        evaluation.check_data(find_examples(mini.SPAN, mini_root), small)


def test_a_lost_checkpoint_of_a_finished_pretraining_is_said(tmp_path):
    """And is no failure of the finetuning, which goes on when it is there again."""
    path = tmp_path / "pretrain/en/checkpoints/checkpoint_7"
    bindings = {"MODEL_DIR": str(tmp_path / "run"), "INITIAL_CHECKPOINT_PATH": str(path)}
    run = expand.Run("finetune/x", (), bindings, ("pretrain/en",), {}, 0)
    said = local.lost_checkpoint(run)
    assert f"{path} is gone" in said and f"delete the folder {tmp_path / 'pretrain/en'}" in said
    (tmp_path / "pretrain/en/DONE").parent.mkdir(parents=True)
    (tmp_path / "pretrain/en/DONE").touch()
    assert not local._is_ready(run, str(tmp_path))
    assert not (tmp_path / "run").exists()
    saved(tmp_path / "run")  # its own to go on from
    assert not local.lost_checkpoint(run)
    shutil.rmtree(tmp_path / "run")
    path.mkdir(parents=True)
    assert not local.lost_checkpoint(run)
