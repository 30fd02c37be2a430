"""Model directories as stock T5X leaves them, read without TensorFlow or JAX.

A run is a folder with any of these (T5X's `t5x/trainer.py` and `t5x/gin_utils.py`, SeqIO's
`seqio/loggers.py`), and without a run.json, which marks a run of ours:
  config.gin                                     the configuration, every macro in it
  inference_eval/<task>-metrics.jsonl            metrics of decoded text: {"step": n, "bleu": ...}
  inference_eval/<task>/events.out.tfevents.*    the same, tagged eval/<metric>, in float32
  training_eval/<task>/events.out.tfevents.*     teacher-forced: loss, cross_ent_loss, accuracy, ...
  train/events.out.tfevents.*                    the training batches

One row per (run, task, step, metric, source):

| column | meaning |
|---|---|
| run | path of the run below the folder; "." if the folder itself is one |
| pretrain_steps | N of INITIAL_CHECKPOINT_PATH = ".../checkpoint_N" in config.gin; 0 if there is \
none, or no config.gin. Of a folder of `t5x.eval`, that of the run whose checkpoint \
CHECKPOINT_PATH names, if that run is here and was pretrained, else N of CHECKPOINT_PATH itself |
| pretrain_run | name of the folder that holds that checkpoint; empty if there is none |
| task | what was evaluated; empty for the training batches |
| step | T5X's own count, which goes on from pretraining's |
| finetune_steps | step - pretrain_steps; the step itself in a run that began at 0 again |
| metric, value | the measurement; beside T5X's own, cross_entropy: nats per target token (below) |
| source | inference_eval, training_eval or train |
| split | that the source's DatasetConfig names in config.gin; empty where it names none |

T5X's loss and cross_ent_loss are sums over a batch, averaged over batches, and divided by
LOSS_NORMALIZING_FACTOR; loss_per_nonpadding_target_token tells how many target tokens there were,
and cross_entropy follows from the three, except under AVERAGE_PER_SEQUENCE.

Of measurements made twice, as after a restart, the last one counts; the .jsonl comes before the
event file. Values that are no finite scalar and measurements without a step (SeqIO's -1) are left
out.
"""

import ast
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tensorboardX.crc32c import crc32c

# What protobuf generates has its classes at run time only, where no type checker sees them.
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from t5scaling.errors import UserError
from t5scaling.records import CONFIG, RECORD

COLUMNS = (
    "run", "pretrain_steps", "pretrain_run", "task", "step", "finetune_steps", "metric", "value",
    "source", "split",
)  # fmt: skip
SOURCES = ("inference_eval", "training_eval", "train")

_EVENTS, _LINES = "events.out.tfevents.*", "*-metrics.jsonl"
_SORTED_BY = ("run", "task", "step", "metric", "source")
_REAL_SHARE = "non_padding_fraction/loss_weights"
_FLOAT, _DOUBLE = 1, 2  # DataType of TensorFlow's types.proto

# (source, task, step, metric)
_Place = tuple[str, str, int, str]


def is_t5x_directory(folder: str | os.PathLike) -> bool:
    """Whether T5X left a run here or below, and this program none."""
    runs, ours = _find_runs(Path(folder))
    return bool(runs) and not ours


def read_t5x_runs(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of every run here or below, sorted; the module describes the columns.

    Raises UserError if there is no measurement, or a file is damaged. A record that ends with its
    event file is no damage: the job may still be writing it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {found}; expected a folder of T5X runs")
    runs, _ = _find_runs(folder)
    rows = [row for run in runs for row in _rows(run, run.relative_to(folder).as_posix(), runs)]
    if not rows:
        found = f"no measurement in {len(runs)} T5X run(s)" if runs else "no T5X run"
        raise UserError(
            f"{folder}: {found}; expected <run>/inference_eval/<task>{_LINES[1:]}, or {_EVENTS} "
            "in <run>/inference_eval/<task>, <run>/training_eval/<task> or <run>/train"
        )
    return sorted(rows, key=lambda row: tuple(row[column] for column in _SORTED_BY))


def _find_runs(folder: Path) -> tuple[list[Path], bool]:
    """T5X's runs, and whether there are runs of ours."""
    runs, ours = [], False
    for name, below, files in os.walk(folder):
        place = Path(name)
        if RECORD in files:
            ours = True
            below.clear()
            continue
        # A checkpoint is a tree of thousands of files.
        below[:] = [child for child in below if not child.startswith(("checkpoint_", "."))]
        if next(_files(place), None):
            runs.append(place)
            below[:] = [child for child in below if child not in SOURCES]
    return runs, ours


def _files(run: Path) -> Iterator[tuple[str, str, Path]]:
    """(source, task, file) of each event file and, after all of them, of each .jsonl."""
    for source in SOURCES:
        # A task's name may hold a slash; "train" may be a folder of runs.
        pattern = _EVENTS if source == "train" else f"**/{_EVENTS}"
        for file in sorted((run / source).glob(pattern)):
            task = file.parent.relative_to(run / source).as_posix()
            yield source, "" if task == "." else task, file
    root = run / "inference_eval"
    for file in sorted(root.rglob(_LINES)):
        yield root.name, file.relative_to(root).as_posix().removesuffix(_LINES[1:]), file


def find_runs(folder: str | os.PathLike) -> list[Path]:
    """The folders of T5X's runs here or below."""
    return _find_runs(Path(folder))[0]


class Settings:
    """What a run's config.gin binds: macros, and parameters as "scope/module.name.parameter"."""

    def __init__(self, run: Path):
        self.path = run / CONFIG
        there = self.path.exists()
        text = self.path.read_text(encoding="utf-8", errors="replace") if there else ""
        # gin breaks a long binding after a backslash, and indents all lines but the first.
        text = re.sub(r"\\?\r?\n[ \t]+", " ", text)
        self._bound = dict(re.findall(r"^([\w/.]+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))

    def is_none(self, parameter: str) -> bool:
        """Whether a parameter is bound to None, in whatever scope and however T5X imports it."""
        ours = [v for name, v in self._bound.items() if re.search(rf"\b{parameter}$", name)]
        return "None" in ours

    def get(self, *names: str) -> Any:
        """The value of the first of these names that has one; None if none has. What is no plain
        value, such as a reference, is given as text."""
        for name in names:
            value, seen = self._bound.get(name), {name}
            while value is not None and (macro := re.match(r"%([\w.]+)", value)):
                # (a circle of names has no value)
                value = None if macro[1] in seen else self._bound.get(macro[1])
                seen.add(macro[1])
            try:
                found = None if value is None else ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found = value
            if found is not None:
                return found
        return None


def _rows(run: Path, name: str, runs: Sequence[Path]) -> list[dict[str, Any]]:
    measured: dict[_Place, float] = {}
    written: dict[_Place, float] = {}  # when; event files of one task overlap after a restart
    for source, task, file in _files(run):
        if file.suffix == ".jsonl":
            for step, metric, value in _read_lines(file):
                measured[source, task, step, metric] = value
            continue
        for wall_time, step, tag, value in _read_events(file):
            metric = tag.removeprefix("eval/") if source == "inference_eval" else tag
            place = (source, task, step, metric)
            if wall_time >= written.get(place, -math.inf):
                measured[place], written[place] = value, wall_time
    measured = {place: value for place, value in measured.items() if place[2] >= 0}
    settings = Settings(run)
    _add_cross_entropy(measured, settings)
    pretrain_run, pretrain_steps = origin_of(run, runs) or ("", 0)
    splits = {source: split_of(source, settings) for source in SOURCES}
    # T5X restores the step with the weights, unless its settings drop it.
    goes_on = all(step >= pretrain_steps for _, _, step, _ in measured)
    return [
        {
            "run": name,
            "pretrain_steps": pretrain_steps,
            "pretrain_run": pretrain_run,
            "task": task,
            "step": step,
            "finetune_steps": step - pretrain_steps if goes_on else step,
            "metric": metric,
            "value": value,
            "source": source,
            "split": splits[source],
        }
        for (source, task, step, metric), value in measured.items()
        if math.isfinite(value)
    ]


def split_of(source: str, settings: Settings) -> str:
    """Of the data that a source of measurements is on; "" where config.gin does not say."""
    scope = {"inference_eval": "infer_eval", "training_eval": "train_eval", "train": "train"}
    names = [f"{scope[source]}/utils.DatasetConfig.split"]
    if source == "inference_eval":  # t5x.eval has one data set, without a scope
        names.append("utils.DatasetConfig.split")
    found = settings.get(*names)
    return found if isinstance(found, str) else ""


def _add_cross_entropy(measured: dict[_Place, float], settings: Settings) -> None:
    """Adds nats per target token wherever T5X's three losses are there."""
    factor = settings.get(
        "LOSS_NORMALIZING_FACTOR", "models.EncoderDecoderModel.loss_normalizing_factor"
    )
    for source, task, step, metric in list(measured):
        if metric != "cross_ent_loss":
            continue
        cross_entropy = measured[source, task, step, metric]
        per_token, loss, real = (
            measured.get((source, task, step, name))
            for name in ("loss_per_nonpadding_target_token", "loss", _REAL_SHARE)
        )
        if isinstance(factor, str) and factor.upper() == "NUM_REAL_TARGET_TOKENS":
            nats = cross_entropy
        elif isinstance(factor, str) and factor.upper() == "NUM_TOTAL_TARGET_TOKENS":
            nats = cross_entropy / real if real else math.nan
        elif isinstance(factor, str) or not loss or per_token is None:
            nats = math.nan
        else:
            nats = cross_entropy * per_token / loss * (1 if factor is None else factor)
        measured[source, task, step, "cross_entropy"] = nats  # left out where it is not finite


def origin_of(run: Path, runs: Sequence[Path]) -> tuple[str, int] | None:
    """(name of the folder of its pretraining, steps of that); None if the run began with random
    weights. `runs`: all that are there."""
    settings = Settings(run)
    if settings.is_none("CheckpointConfig.restore"):
        return None
    initial = _checkpoint(settings, "INITIAL_CHECKPOINT_PATH")
    if initial is not None:
        return initial[0].rpartition("/")[2], initial[1]
    measured = measured_run(run, runs)
    if measured is not None:
        own = origin_of(measured, ()) if measured != run else None
        if own is not None:
            return own
    evaluated = _checkpoint(settings, "CHECKPOINT_PATH")
    return evaluated and (evaluated[0].rpartition("/")[2], evaluated[1])


def measured_run(run: Path, runs: Sequence[Path]) -> Path | None:
    """Of a folder of `t5x.eval`, the run whose checkpoint it measured, if that is one of `runs`."""
    evaluated = _checkpoint(Settings(run), "CHECKPOINT_PATH")
    return evaluated and run_at(evaluated[0], runs)


def run_at(folder: str, runs: Sequence[Path]) -> Path | None:
    """The one of `runs` that a folder of some machine is, by as many of its last names as agree;
    None if none is, or two may be."""
    wanted = folder.split("/")[::-1]

    def agree(run: Path) -> int:
        names = run.resolve().parts[::-1]
        pairs = zip(wanted, names, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(names)))

    best = max(map(agree, runs), default=0)
    found = [run for run in runs if best and agree(run) == best]
    return found[0] if len(found) == 1 else None


def _checkpoint(settings: Settings, macro: str) -> tuple[str, int] | None:
    """(folder, step) of the checkpoint that a macro names; None if it names none."""
    path = settings.get(macro)
    if isinstance(path, list | tuple) and len(path) == 1:
        path = path[0]
    if not path:
        return None
    # The second is Mesh TensorFlow's name for the checkpoints of T5, which T5X restores too.
    match = re.search(r"(.*?)/+(?:checkpoint_|model\.ckpt-)(\d+)/*$", str(path))
    if not match:
        raise UserError(
            f"{settings.path}: {macro} = {path!r} does not tell the steps of pretraining; "
            "expected '<pretraining run>/checkpoint_<steps>'"
        )
    return match[1], int(match[2])


def _read_lines(path: Path) -> Iterator[tuple[int, str, float]]:
    """(step, metric, value) of each number in a .jsonl; texts and lists are no scalars."""
    for number, text in enumerate(path.read_bytes().splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError:  # neither JSON nor UTF-8
            line = None
        step = line.get("step") if isinstance(line, dict) else None
        if not isinstance(line, dict) or type(step) is not int:
            found = text.decode(errors="replace").strip()[:60]
            raise UserError(
                f"{path}, line {number}: found {found!r}; "
                'expected a JSON object such as {"step": 1000, "bleu": 12.3}'
            )
        for metric, value in line.items():
            if metric != "step" and type(value) in (int, float):
                yield step, metric, float(value)


def _read_events(path: Path) -> Iterator[tuple[float, int, str, float]]:
    """(wall time in seconds, step, tag, value) of each scalar in an event file."""
    for record in _records(path):
        event = Event.FromString(record)
        for value in event.summary.value:
            scalar = _scalar(value)
            if scalar is not None:
                yield event.wall_time, event.step, value.tag, scalar


def _records(path: Path) -> Iterator[bytes]:
    """The data of each whole record: uint64 length, its checksum, data, its checksum."""
    with open(path, "rb") as file:
        while len(header := file.read(12)) == 12:
            if _checksum(header[:8]) != header[8:]:
                raise _damaged(path, file.tell() - 12)
            (length,) = struct.unpack("<Q", header[:8])
            body = file.read(length + 4)
            if len(body) < length + 4:
                return
            if _checksum(body[:length]) != body[length:]:
                raise _damaged(path, file.tell() - len(body))
            yield body[:length]


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as TFRecord does, in bytes."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _damaged(path: Path, offset: int) -> UserError:
    return UserError(
        f"{path}, byte {offset}: wrong checksum; expected a TensorBoard event file: copy it again, "
        "or remove it to do without"
    )


def _scalar(value: Summary.Value) -> float | None:
    """The number of a summary, of TensorFlow 1's kind or 2's; None for an image, a text, ..."""
    if value.WhichOneof("value") == "simple_value":
        return value.simple_value
    tensor = value.tensor
    if tensor.dtype not in (_FLOAT, _DOUBLE) or tensor.tensor_shape.dim:
        return None
    if tensor.tensor_content:
        return struct.unpack("<f" if tensor.dtype == _FLOAT else "<d", tensor.tensor_content)[0]
    numbers = tensor.float_val if tensor.dtype == _FLOAT else tensor.double_val
    return numbers[0] if numbers else 0.0  # TensorFlow writes no list for a zero
