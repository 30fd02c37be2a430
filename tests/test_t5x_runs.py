"""Rows from model directories as T5X leaves them, and one clear line for each damaged file."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import tensorboardX
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.types_pb2 import DT_DOUBLE, DT_FLOAT, DT_INT64, DT_STRING
from tensorboardX.record_writer import RecordWriter

from t5scaling.analysis.results.t5x_runs import COLUMNS, is_t5x_directory, read_t5x_runs
from t5scaling.errors import UserError

ROOT = Path(__file__).parents[1]
FLOAT, DOUBLE, CONTENT = 0.25, 0.5, 0.75  # exact in float32


def events(folder, values, wall_time=100.0, name="events.out.tfevents.100.host.1.0.v2"):
    """An event file with one event for each (step, tag, TensorProto or number)."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(str(folder / name))
    writer.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
    for step, tag, value in values:
        kind = "tensor" if isinstance(value, TensorProto) else "simple_value"
        summary = Summary(value=[Summary.Value(tag=tag, **{kind: value})])
        writer.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())
    writer.close()
    return folder / name


def scalar(value):
    """The tensor that tf.summary.scalar of TensorFlow 2 writes."""
    return TensorProto(dtype=DT_FLOAT, float_val=[value])


def lines(run, task, *objects):
    path = run / "inference_eval" / f"{task}-metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in objects))
    return path


def config(run, text):
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.gin").write_text(f"# Macros:\n# {'=' * 78}\n{text}\nBATCH_SIZE = 128\n")


def table(rows, *columns):
    return [tuple(row[column] for column in columns) for row in rows]


@pytest.fixture
def finetuned(tmp_path):
    """One finetuning from step 1000 of the run "small", evaluated twice."""
    run = tmp_path / "wmt" / "from_small"
    config(run, "INITIAL_CHECKPOINT_PATH = 'gs://bucket/small/checkpoint_1000'")
    (run / "model-info.txt").write_text("Variable ...\n")
    (run / "checkpoint_1200").mkdir()
    lines(run, "wmt", {"step": 1100, "bleu": 12.3}, {"step": 1200, "bleu": 13.1})
    both = [(1100, "eval/bleu", scalar(12.3)), (1100, "eval/chrf", scalar(50.5))]
    events(run / "inference_eval" / "wmt", both)
    for task in ("wmt", "rte"):
        values = [(1100, "loss", scalar(2.5)), (1200, "cross_ent_loss", scalar(2.25))]
        events(run / "training_eval" / task, values)
    events(run / "train", [(1000, "timing/init_or_restore_seconds", scalar(3)), (1100, "loss", 4)])
    return run


def test_rows_of_a_finetuning(finetuned, tmp_path):
    rows = read_t5x_runs(tmp_path)
    assert {tuple(row) for row in rows} == {COLUMNS}
    assert {row["run"] for row in rows} == {"wmt/from_small"}
    assert {(row["pretrain_run"], row["pretrain_steps"]) for row in rows} == {("small", 1000)}
    columns = ("task", "step", "finetune_steps", "metric", "value", "source")
    assert table(rows, *columns) == [
        ("", 1000, 0, "timing/init_or_restore_seconds", 3.0, "train"),
        ("", 1100, 100, "loss", 4.0, "train"),
        ("rte", 1100, 100, "loss", 2.5, "training_eval"),
        ("rte", 1200, 200, "cross_ent_loss", 2.25, "training_eval"),
        ("wmt", 1100, 100, "bleu", 12.3, "inference_eval"),  # of the .jsonl: not float32's 12.3
        ("wmt", 1100, 100, "chrf", 50.5, "inference_eval"),
        ("wmt", 1100, 100, "loss", 2.5, "training_eval"),
        ("wmt", 1200, 200, "bleu", 13.1, "inference_eval"),
        ("wmt", 1200, 200, "cross_ent_loss", 2.25, "training_eval"),
    ]
    assert {row["run"] for row in read_t5x_runs(finetuned)} == {"."}
    assert read_t5x_runs(str(tmp_path)) == rows


def test_event_files_of_tensorboardx(tmp_path):
    writer = tensorboardX.SummaryWriter(str(tmp_path / "train"))
    for step in range(3):
        writer.add_scalar("loss", 2.0**-step, step)
    writer.add_text("config", "BATCH_SIZE = 128", 0)
    writer.close()
    found = table(read_t5x_runs(tmp_path), "step", "metric", "value", "source")
    assert found == [(0, "loss", 1.0, "train"), (1, "loss", 0.5, "train"),
                     (2, "loss", 0.25, "train")]  # fmt: skip


def test_tensors(tmp_path):
    vector = TensorProto(dtype=DT_FLOAT, float_val=[1.0, 2.0])
    vector.tensor_shape.dim.add(size=2)
    values = {
        "float": scalar(FLOAT),
        "double": TensorProto(dtype=DT_DOUBLE, double_val=[DOUBLE]),
        "content": TensorProto(dtype=DT_FLOAT, tensor_content=struct.pack("<f", CONTENT)),
        "zero": TensorProto(dtype=DT_FLOAT),
        "nan": scalar(math.nan),
        "text": TensorProto(dtype=DT_STRING, string_val=[b"a text"]),
        "count": TensorProto(dtype=DT_INT64, int64_val=[1]),
        "vector": vector,
    }
    events(tmp_path / "train", [(7, tag, value) for tag, value in values.items()])
    found = dict(table(read_t5x_runs(tmp_path), "metric", "value"))
    assert found == {"float": FLOAT, "double": DOUBLE, "content": CONTENT, "zero": 0.0}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ("", 0)),
        ("INITIAL_CHECKPOINT_PATH = None", ("", 0)),
        ("INITIAL_CHECKPOINT_PATH = ''", ("", 0)),
        ("INITIAL_CHECKPOINT_PATH = %gin.REQUIRED", ("", 0)),
        ('INITIAL_CHECKPOINT_PATH = "/a/base/checkpoint_500/"  # best', ("base", 500)),
        ("INITIAL_CHECKPOINT_PATH = \\\n    'gs://long/base/checkpoint_500'", ("base", 500)),
        ("INITIAL_CHECKPOINT_PATH = \\\n    ('gs://a b/'\n     'c/checkpoint_500')", ("c", 500)),
        ("CKPT = 'x/base/checkpoint_500'\nINITIAL_CHECKPOINT_PATH = %CKPT", ("base", 500)),
        ("INITIAL_CHECKPOINT_PATH = 'gs://t5/small/model.ckpt-500'", ("small", 500)),
        (
            "INITIAL_CHECKPOINT_PATH = 'b/checkpoint_500'\nutils.CheckpointConfig.restore = None",
            ("", 0),
        ),
    ],
)
def test_initial_checkpoint(tmp_path, text, expected):
    config(tmp_path, text)
    lines(tmp_path, "wmt", {"step": 600, "bleu": 1.0})
    (row,) = read_t5x_runs(tmp_path)
    assert (row["pretrain_run"], row["pretrain_steps"]) == expected
    assert row["finetune_steps"] == 600 - expected[1]


def test_initial_checkpoint_without_step(tmp_path):
    config(tmp_path, "INITIAL_CHECKPOINT_PATH = 'gs://bucket/base'")
    lines(tmp_path, "wmt", {"step": 600, "bleu": 1.0})
    with pytest.raises(UserError, match=r"config\.gin: .*'gs://bucket/base'.*/checkpoint_<steps>'"):
        read_t5x_runs(tmp_path)


def test_steps_that_begin_at_zero_again(tmp_path):
    config(tmp_path, "INITIAL_CHECKPOINT_PATH = 'base/checkpoint_500'")
    lines(tmp_path, "wmt", {"step": 400, "bleu": 1.0}, {"step": 800, "bleu": 2.0})
    rows = read_t5x_runs(tmp_path)
    assert table(rows, "pretrain_steps", "finetune_steps") == [(500, 400), (500, 800)]


def test_the_last_measurement_stands(tmp_path):
    lines(tmp_path, "a", {"step": 1, "bleu": 1.0}, {"step": 2, "bleu": 2}, {"step": 1, "bleu": 3.0})
    train = tmp_path / "train"
    # By the clock in the events: names do not sort as times do when their lengths differ.
    events(train, [(1, "loss", 5.0), (2, "loss", 6.0)], 200.0, "events.out.tfevents.1000.host")
    events(train, [(1, "loss", 7.0)], 100.0, "events.out.tfevents.999.host")
    found = table(read_t5x_runs(tmp_path), "metric", "step", "value")
    assert found == [("loss", 1, 5.0), ("loss", 2, 6.0), ("bleu", 1, 3.0), ("bleu", 2, 2.0)]


def test_what_is_left_out(tmp_path):
    first = {"step": 5, "bleu": math.nan, "note": "text", "counts": [1, 2], "ok": True, "chrf": 1}
    lines(tmp_path, "wmt", first, {"step": -1, "bleu": 2.0})
    events(tmp_path / "inference_eval" / "wmt", [(5, "eval/bleu", 9.0)])  # the .jsonl says NaN
    assert table(read_t5x_runs(tmp_path), "step", "metric", "value") == [(5, "chrf", 1.0)]


def test_an_event_file_still_being_written(tmp_path):
    values = [(1, "loss", 1.0), (2, "loss", 2.0)]
    finished = events(tmp_path / "train", values[:1]).stat().st_size
    path = events(tmp_path / "train", values)
    data = path.read_bytes()
    for size in range(finished, len(data)):
        path.write_bytes(data[:size])
        assert table(read_t5x_runs(tmp_path), "step", "value") == [(1, 1.0)]


@pytest.mark.parametrize("where", [3, 14, -20])
def test_a_damaged_event_file(tmp_path, where):
    path = events(tmp_path / "train", [(1, "loss", 1.0)])
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"tfevents.*, byte \d+: wrong checksum; expected"):
        read_t5x_runs(tmp_path)


@pytest.mark.parametrize(
    "text", [b'{"step": 2, "bl', b'{"step": 1.5}', b"[1]", b'{"bleu": 1.0}', b'{"step": "\xff"}']
)
def test_a_damaged_line(tmp_path, text):
    path = lines(tmp_path, "wmt", {"step": 1, "bleu": 1.0})
    path.write_bytes(path.read_bytes() + b"\n" + text)
    with pytest.raises(UserError) as error:
        read_t5x_runs(tmp_path)
    assert f"{path}, line 3: found " in str(error.value)
    assert text.decode(errors="replace") in str(error.value)
    assert "expected a JSON object such as" in str(error.value)


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match=r"no T5X run; expected <run>/inference_eval/"):
        read_t5x_runs(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read_t5x_runs(tmp_path / "absent")
    events(tmp_path / "train", [])
    with pytest.raises(UserError, match=r"no measurement in 1 T5X run"):
        read_t5x_runs(tmp_path)


def test_which_folders_hold_runs(finetuned, tmp_path):
    assert is_t5x_directory(tmp_path) and is_t5x_directory(finetuned)
    assert not is_t5x_directory(finetuned / "checkpoint_1200")
    assert not is_t5x_directory(tmp_path / "absent")
    # Runs below a folder named as one of T5X's, a run below a run, and a task with a slash.
    events(tmp_path / "train" / "a" / "train", [(1, "loss", 1.0)])
    lines(finetuned / "train_longer", "glue/rte", {"step": 1, "accuracy": 1.0})
    found = set(table(read_t5x_runs(tmp_path), "run", "task"))
    assert {("train/a", ""), ("wmt/from_small/train_longer", "glue/rte")} <= found
    assert len(found) == 5
    # A study of ours holds inference_eval too.
    ours = tmp_path / "study" / "runs" / "x"
    lines(ours, "wmt", {"step": 1, "bleu": 1.0})
    (ours / "run.json").write_text("{}")
    assert not is_t5x_directory(tmp_path)
    assert set(table(read_t5x_runs(tmp_path), "run", "task")) == found


def test_needs_neither_tensorflow_nor_jax(finetuned):
    code = (
        "import sys\n"
        "from t5scaling.analysis.results.t5x_runs import read_t5x_runs\n"
        "rows = read_t5x_runs(sys.argv[1])\n"
        "heavy = {'tensorflow', 'jax', 'torch', 'seqio', 'gin'} & set(sys.modules)\n"
        "print(len(rows), sorted(heavy))"
    )
    command = [sys.executable, "-c", code, str(finetuned)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "9 []\n"
