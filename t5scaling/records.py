"""Readers of the JSON files of runs and studies: one for each file, which checks its fields.

Training, `status`, `report` and `export` all read them here, so that they accept and refuse the
same: a file that is binary, empty, a folder, unreadable or without the expected fields is reported
in one line with its name. The kind of each field is one of those below; the name of an optional
field ends in "?" in a table of fields. Fields that a table does not name may hold anything.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from t5scaling import storage
from t5scaling.errors import UserError

# What is in a run's directory (training.run_directory says what they hold), and in a study's.
CONFIG, METRICS, TIMING, RECORD = "config.gin", "metrics.jsonl", "timing.jsonl", "run.json"
MODEL, START, VOCABULARY, EXAMPLES = (
    "model.json", "start.json", "vocabulary.model", "examples.json",
)  # fmt: skip
EVALUATIONS, INFERENCE = "eval.jsonl", "inference_eval"
CHECKPOINTS, CLAIMS = "checkpoints", "claims"
REPORTING = "reporting"  # in a study: the claim of the process that writes its report
DONE, FAILED, JOB = "DONE", "FAILED", "JOB"
LOG, STUDY, STUDY_CONFIG = "runs.jsonl", "study.json", "study.gin"
RESULTS, REPORT = "results.csv", "report.html"
RUNS, JOBS = "runs", "jobs"
MOST_FAILURES = 3  # of a run: then a study leaves it alone
_SHOWN = 40  # characters of what was found


@dataclass(frozen=True)
class Kind:
    """What a field holds: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


Fields = Mapping[str, Kind]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and (value.isprintable() or not value)


def _lists(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _maps(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(_is_name(k) and holds(v) for k, v in value.items())
    )


TEXT = Kind("a text", lambda value: isinstance(value, str))
NAME = Kind("a text on one line", _is_name)
NAME_OR_NULL = Kind("a text on one line or null", lambda v: v is None or _is_name(v))
TEXT_OR_NULL = Kind("a text or null", lambda v: v is None or isinstance(v, str))
NUMBER = Kind("a number", _is_number)
NUMBER_OR_NULL = Kind("a number or null", lambda v: v is None or _is_number(v))
COUNT = Kind("a whole number from 0 on", _is_count)
COUNT_OR_NULL = Kind("a whole number from 0 on or null", lambda v: v is None or _is_count(v))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
NAMES = Kind("a list of texts", _lists(_is_name))
NUMBERS = Kind("a list of numbers", _lists(_is_number))
COUNTS = Kind("a list of whole numbers from 0 on", _lists(_is_count))
NUMBER_OF = Kind("an object of numbers", _maps(_is_number))
COUNT_OF = Kind("an object of whole numbers from 0 on", _maps(_is_count))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
OBJECTS = Kind("a list of objects", _lists(lambda value: isinstance(value, dict)))

RUN: Fields = {
    "id": NAME, "steps": COUNT, "study?": NAME, "kind?": NAME, "model?": NAME, "parameters?": COUNT,
    "pretrain_data?": NAME_OR_NULL, "pretrain_languages?": NUMBER_OF, "pretrain_tokens?": COUNT,
    "pretrain_steps?": COUNT, "pretrain_unique_tokens?": COUNT,
    "unique_tokens?": COUNT, "task?": NAME, "languages?": NAMES, "finetune_pool?": NAME,
    "finetune_tokens?": COUNT, "finetune_examples?": COUNT, "finetune_rows?": COUNT,
    "finetune_positions?": COUNT, "learning_rate?": NUMBER_OR_NULL, "seed?": COUNT,
    "batch_size?": COUNT,
    "checkpoints?": COUNT_OF, "steps_of?": COUNT_OF, "needs?": NAMES, "settings?": NAME,
    "base_rate?": NUMBER, "base_rates?": NUMBERS, "trainer?": NAME,
}  # fmt: skip
METRICS_LINE: Fields = {
    "step": COUNT, "split": NAME, "task?": NAME, "loss?": NUMBER, "cross_entropy?": NUMBER,
    "target_tokens?": COUNT,
}  # fmt: skip
TIMING_LINE: Fields = {
    "step": COUNT, "wall_s": NUMBER, "device_s?": NUMBER, "target_tokens_per_s?": NUMBER,
}  # fmt: skip
LOG_LINE: Fields = {
    "record": OBJECT, "done": FLAG, "failure": TEXT_OR_NULL, "steps": COUNT, "wall_s": NUMBER,
    "device_s": NUMBER,
}  # fmt: skip


def check(value: Any, fields: Fields, where: str) -> dict[str, Any]:
    """`value`, which must be an object with these fields. Raises UserError naming the first that
    it lacks or that holds something else; `where`: the file, and the line if it has several."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {_shown(value)}")
    for key, kind in fields.items():
        name = key.removesuffix("?")
        if name not in value:
            if key == name:
                raise UserError(f"{where}: no field {name!r}")
        elif not kind.holds(value[name]):
            raise UserError(
                f"{where}: field {name!r} is {_shown(value[name])}; expected {kind.words}"
            )
    return value


def parse(text: str, where: str) -> Any:
    """A JSON value. Raises UserError for a text that is not JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; a deep nest
        kind = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{where}: not JSON that can be read ({kind[:80]})") from None


def read_object(address: str | os.PathLike, fields: Fields) -> dict[str, Any] | None:
    """The object of a JSON file; None if there is no such file. Raises UserError as `check`."""
    text = storage.read_text(address)
    return None if text is None else check(parse(text, str(address)), fields, str(address))


def read_lines(
    address: str | os.PathLike, fields: Fields, *, growing: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """(its text, the object) of each line of a JSON-lines file; [] if there is no such file.

    A line ends with "\\n" alone: a text in it may hold any other end of line. growing: of a file
    that is being written, or was when its writer died: a last line without its end is left out.
    Raises UserError as `check`.
    """
    text = storage.read_text(address)
    found = []
    lines = (text or "").split("\n")
    for number, line in enumerate(lines[:-1] if growing else lines, 1):
        if line.strip():
            where = f"{address}, line {number}"
            found.append((line, check(parse(line, where), fields, where)))
    return found


def run_record(folder: str | os.PathLike) -> dict[str, Any] | None:
    """A run's place in its study, its run.json; None if it has none."""
    return read_object(storage.path(folder) / RECORD, RUN)


def metrics(folder: str | os.PathLike, *, growing: bool = False) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; [] if there is none.

    Every K that has a sibling K_signature, and that text, are checked too.
    """
    path = storage.path(folder) / METRICS
    lines = [line for _, line in read_lines(path, METRICS_LINE, growing=growing)]
    for number, line in enumerate(lines, 1):
        measured = {name: NUMBER for name in line if f"{name}_signature" in line}
        signatures = {f"{name}_signature": TEXT for name in measured}
        check(line, {**measured, **signatures}, f"{path}, measurement {number}")
    return lines


def timing(folder: str | os.PathLike, *, growing: bool = False) -> list[dict[str, Any]]:
    """The lines of a run's timing.jsonl; [] if there is none."""
    path = storage.path(folder) / TIMING
    return [line for _, line in read_lines(path, TIMING_LINE, growing=growing)]


def failure(folder: str | os.PathLike) -> dict[str, Any] | None:
    """{"reason", "failures", ...} of a run's FAILED; None if the run has not failed.

    A damaged file still means that the run failed, without a reason, and does not keep the run from
    being tried again.
    """
    path = storage.path(folder) / FAILED
    try:
        found = read_object(path, {"reason": TEXT, "failures?": COUNT, "traceback?": TEXT})
    except UserError as error:
        return {"reason": f"the reason cannot be read: {error}", "failures": 1}
    return found and {"failures": 1, **found}


def is_parked(failed: Mapping[str, Any] | None) -> bool:
    """Whether a study no longer tries a run with this record of its failures (`failure`)."""
    return failed is not None and failed["failures"] >= MOST_FAILURES


def is_done(folder: str | os.PathLike, train_steps: int | None = None) -> bool:
    """Whether the run is done, with so many steps at least where `train_steps` is given."""
    if not storage.exists(storage.path(folder) / DONE):
        return False
    return train_steps is None or steps_done(folder) >= train_steps


def steps_done(folder: str | os.PathLike) -> int:
    """The steps of a run that is done. Raises UserError if DONE does not say how many."""
    try:
        done = read_object(storage.path(folder) / DONE, {"step": COUNT})
    except UserError as error:
        raise UserError(
            f"{error}; delete it, and the same command goes on from the last checkpoint"
        ) from None
    return 0 if done is None else done["step"]


def job(folder: str | os.PathLike) -> str | None:
    """The engine's job that was asked to do the run, from its JOB; None if there is none."""
    found = read_object(storage.path(folder) / JOB, {"job": NAME})
    return found["job"] if found else None


def run_folder(study_dir: str, run_id: str) -> str:
    """Where a study keeps the run of that id."""
    return os.path.join(study_dir, RUNS, *run_id.split("/"))


def study_list(study_dir: str | os.PathLike) -> dict[str, Any] | None:
    """{"study": its name, "runs": ids} of a study's study.json; None if there is none.

    Raises UserError also for an id that would lie outside the study.
    """
    path = storage.path(study_dir) / STUDY
    found = read_object(path, {"study": NAME, "runs": NAMES})
    for run_id in found["runs"] if found else ():
        if not all(part not in ("", ".", "..") for part in run_id.split("/")):
            raise UserError(f"{path}: {run_id!r} is not the id of a run")
    return found


def log(study_dir: str | os.PathLike) -> list[tuple[str, dict[str, Any]]]:
    """(its place, the line) of each run in a study's runs.jsonl; [] if there is no such file."""
    path = storage.path(study_dir) / LOG
    found = []
    for number, (_, line) in enumerate(read_lines(path, LOG_LINE), 1):
        where = f"{path}, line {number}"
        check(line["record"], RUN, where)
        found.append((where, line))
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
