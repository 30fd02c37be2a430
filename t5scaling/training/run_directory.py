"""The run directory as a record: config.gin, run.json, vocabulary.model, DONE or FAILED.

config.gin        every gin binding of the run; `run.py train --gin_file=.../config.gin` repeats it
run.json          its place in a study, if it has one
model.json        the architecture (`T5Config`), which eval, infer and finetuning go by
start.json        what it started from: the checkpoint's path, and what its parameters were
vocabulary.model  the SentencePiece model of its tokens, or what says that they are bytes
examples.json     which examples it is trained on: {"task", "split", "content_sha256", "path",
                  "extra_ids": sentinels after the vocabulary's pieces}
DONE              {"step": n, "metrics_sha256": of metrics.jsonl}, written last of all
FAILED            {"reason", "failures": how many so far, "traceback" unless it is the user's
                  mistake}; gone when the run is done
JOB               {"job": "..."}: the job of an engine that was asked to do the run
claims/           who is at work on it (`claim`)
"""

import dataclasses
import hashlib
import json
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from t5scaling import records, storage
from t5scaling.data.examples import Examples
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError, file_mistake
from t5scaling.model.config import T5Config
from t5scaling.training import checkpoint

SPARE_ROWS = 1024  # of an embedding, which is rounded up to what devices share; in T5s to 128
_EXAMPLES_FIELDS: records.Fields = {
    "task": records.NAME, "split": records.NAME, "content_sha256": records.NAME,
    "path": records.TEXT, "extra_ids?": records.COUNT_OR_NULL,
}  # fmt: skip
# Where a run lives, how often it saves, on what and in which parts it runs, not what it computes:
# these may change. (What the checkpoint of INITIAL_CHECKPOINT_PATH holds may not: see `origin`.)
FREE_MACROS = (
    "MODEL_DIR",
    "INITIAL_CHECKPOINT_PATH",
    "EXAMPLES_ROOT",
    "CHECKPOINT_MINUTES",
    "KEEP_CHECKPOINT",
    "MIRRORS",
    "MESH_SHAPE",
    "REMAT_POLICY",
    "STEPS_PER_CALL",
    "MICROBATCHES",
    "EVAL_BATCH_SIZE",
    "MAX_EPOCHS",
    "ATTENTION",
    "T5X_FOLDER",
    "T5X_CHECKPOINT_EVERY",
)
# What is measured when the run is trained: these may change until then.
MEASURED_AT_THE_END = (
    "METRICS",
    "DECODER",
    "MAX_DECODE_LENGTH",
    "EVAL_FEATURE_LENGTHS",
    "TEST_SPLIT",
)
STEPS = "TRAIN_STEPS"  # may grow, if the learning rate does not depend on it


def begin(model_dir: str, config_text: str, record: Mapping[str, Any] | None = None) -> None:
    """Makes the directory ready for a start, or for going on after a stop.

    `record` becomes run.json: the run's place in a study, which says how many steps it has.
    Raises UserError as `refuse_changed`.
    """
    refuse_changed(model_dir, config_text, may_grow=record is None)
    storage.make_folder(model_dir)
    storage.write(os.path.join(model_dir, records.CONFIG), config_text)
    if record is not None:
        write_json(os.path.join(model_dir, records.RECORD), record)


def refuse_changed(model_dir: str, config_text: str, may_grow: bool = False) -> None:
    """Raises UserError if the directory holds a run with other settings, and something to lose: a
    checkpoint, or results.

    `may_grow`: whether it may be asked for more steps than it was.
    """
    text = storage.read_text(storage.path(model_dir) / records.CONFIG)
    done = records.is_done(model_dir)
    if text is None or not (done or checkpoint.newest_step(model_dir)):
        return
    free = FREE_MACROS if done else FREE_MACROS + MEASURED_AT_THE_END
    before, after = (settings_of(each, free) for each in (text, config_text))
    if may_grow and _is_longer(before, after):
        before, after = ([s for s in lines if not _steps(s)] for lines in (before, after))
    if before != after:
        was = next((line for line in before if line not in after), "nothing")
        now = next((line for line in after if line not in before), "nothing")
        advice = "delete it or choose another directory"
        if done and was.startswith(tuple(f"{name} =" for name in MEASURED_AT_THE_END)):
            advice = "it is done; `run.py eval` can evaluate it with other settings"
        elif _steps(was):
            advice = (
                "only `run.py train` can change the number of steps, to a larger one that no other "
                "setting depends on: " + advice
            )
        raise UserError(
            f"{model_dir} holds a run with other settings ({was} there, {now} now); {advice}"
        )


def _is_longer(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether `after` asks for more steps, and for nothing else that follows from their number."""
    readers = [line for line in after if re.search(rf"%{STEPS}\b", line)]
    numbers = [next(filter(None, map(_steps, lines)), 0) for lines in (before, after)]
    return len(readers) == 1 and 0 < numbers[0] < numbers[1]


def _steps(line: str) -> int:
    """The number that a line of settings gives to TRAIN_STEPS; 0 if it does not."""
    found = re.fullmatch(rf"{STEPS} = ([\d_]+)", line)
    return int(found[1]) if found else 0


def settings_of(config_text: str, free_macros: Sequence[str] = FREE_MACROS) -> list[str]:
    """The lines of gin text that decide what a run computes, without those of `free_macros`."""
    joined = re.sub(r"\\\n\s*", "", config_text)  # gin wraps long values after a backslash
    free = (*(f"{name} =" for name in free_macros), "from ", "import ", "#")
    # Nor does what they set: a run made before there was a free macro can go on with it.
    set_by_them = tuple(f" = %{name}" for name in free_macros)
    return [
        line
        for line in joined.splitlines()
        if line and not line.startswith(free) and not line.endswith(set_by_them)
    ]


def start(model_dir: str, examples: Examples, model: T5Config) -> None:
    """Writes to the directory what the model is, which examples it is trained on, and their
    vocabulary; a run that was done and is made longer is no longer marked as done.

    Raises UserError if it has trained on other examples, made of text that was changed since.
    """
    storage.make_folder(model_dir)
    keep_examples(model_dir, examples, has_trained=checkpoint.newest_step(model_dir) > 0)
    (storage.path(model_dir) / records.DONE).unlink(missing_ok=True)
    write_json(os.path.join(model_dir, records.MODEL), dataclasses.asdict(model))


def keep_examples(model_dir: str, examples: Examples, has_trained: bool) -> None:
    """Writes to the directory which examples it is trained on, and their vocabulary.

    Raises UserError if it `has_trained` on others, made of text that was changed since.
    """
    folder = storage.path(model_dir)
    path = os.path.join(model_dir, records.EXAMPLES)
    record = {
        "task": examples.spec.task,
        "split": examples.spec.split,
        "content_sha256": examples.meta["content_sha256"],
        "path": str(examples.path),
        "extra_ids": examples.meta.get("vocabulary", {}).get("extra_ids"),
    }
    before = records.read_object(path, _EXAMPLES_FIELDS)
    if has_trained and before and before["content_sha256"] != record["content_sha256"]:
        raise UserError(
            f"{model_dir} was trained so far on other examples of {record['task']} "
            f"({before['path']}) than there are now ({record['path']}): its text, vocabulary or "
            "code was changed; undo that, or choose another MODEL_DIR"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not (has_trained and (folder / records.VOCABULARY).exists()):
        storage.write(folder / records.VOCABULARY, examples.vocabulary.read_bytes())
    if before != record:
        write_json(path, record)


def vocabulary_of(model_dir: str, given: str | None, vocab_size: int) -> Vocabulary:
    """The vocabulary of a run's model; `given` for a model of T5X, which has none: a file, or
    "bytes".

    Raises UserError if there is none, or if `given` is not that of the model.
    """
    there = storage.exists(storage.path(model_dir) / records.VOCABULARY)
    if given is None and not there:
        raise UserError(
            f"{model_dir} has no {records.VOCABULARY}; VOCABULARY_FILE names that of its model"
        )
    if given is not None:
        vocabulary = Vocabulary(given)
        if not there:
            check_own_vocabulary(f"{given} is", vocabulary.size(), vocab_size, model_dir)
            return vocabulary
        if Vocabulary(os.path.join(model_dir, records.VOCABULARY), 0).sha256 != vocabulary.sha256:
            raise UserError(
                f"VOCABULARY_FILE is {given}, but the model in {model_dir} has another vocabulary "
                "of its own; leave it out"
            )
    path = os.path.join(model_dir, records.EXAMPLES)
    record = records.read_object(path, _EXAMPLES_FIELDS) or {}
    return Vocabulary(os.path.join(model_dir, records.VOCABULARY), record.get("extra_ids"))


def model_of(model_dir: str | os.PathLike, given: T5Config | None) -> T5Config:
    """The model to compute with: `given`, or that of the run in the form that any device can
    compute.

    Raises UserError if there is neither, or if the two are different functions of their parameters.
    """
    own = _read_model(model_dir)
    if given is None:
        if own is None:
            raise UserError(
                f"{model_dir} has no {records.MODEL} that says which model it is; name its gin "
                "file of gin/models with --gin_file"
            )
        return dataclasses.replace(own, remat="none", attention="auto")
    if own is not None:
        _refuse_other_model(model_dir, own, given)
    return given


def check_model(model_dir: str | os.PathLike, model: T5Config) -> None:
    """Raises UserError if the run in the directory has another model."""
    own = _read_model(model_dir)
    if own is not None:
        _refuse_other_model(model_dir, own, model)


def _refuse_other_model(model_dir: str | os.PathLike, own: T5Config, given: T5Config) -> None:
    there, here = own.function(), given.function()
    for name, value in there.items():
        if value != here[name]:
            raise UserError(
                f"{model_dir} holds another model: its {name} is {_gin(value)}, now it is "
                f"{_gin(here[name])}"
            )


def _gin(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)


def _read_model(model_dir: str | os.PathLike) -> T5Config | None:
    """The model of model.json; None if there is no such file. Raises UserError if it is damaged."""
    path = storage.path(model_dir) / records.MODEL
    try:
        return T5Config(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, RecursionError, UserError) as error:
        raise UserError(
            f"{path} does not hold a model's settings; delete it, and name the model's gin file"
        ) from error


def check_vocabulary(
    model_dir: str | os.PathLike | None, examples: Examples, vocab_size: int
) -> None:
    """Raises UserError if the examples were made with another vocabulary than the run's, if there
    is a run, or with one of more tokens than the model has (`vocab_size`)."""
    what = f"the examples of {examples.spec.task} in {examples.path}"
    vocabulary = examples.meta["vocabulary"]
    if vocabulary["size"] > vocab_size:
        raise UserError(
            f"{what} have a vocabulary of {vocabulary['size']:,} tokens, more than the model's "
            f"{vocab_size:,}; set its vocab_size or choose another model"
        )
    path = storage.path(model_dir) / records.VOCABULARY if model_dir is not None else None
    if path is not None and not path.exists():
        check_own_vocabulary(f"{what} have", vocabulary["size"], vocab_size, str(model_dir))
    elif path is not None and Vocabulary(path, 0).sha256 != vocabulary["sha256"]:
        raise UserError(
            f"{what} were made with another vocabulary ({vocabulary['sha256'][:12]}...) than the "
            f"model in {model_dir} ({Vocabulary(path, 0).sha256[:12]}...); its tokens would mean "
            "nothing to the model"
        )


def check_own_vocabulary(what: str, size: int, vocab_size: int, model_dir: str) -> None:
    """Raises UserError if a vocabulary of `size` tokens cannot be that of a model of T5X, which
    keeps none beside it: the rows of an embedding are no more than a vocabulary rounded up."""
    if not 0 <= vocab_size - size < SPARE_ROWS:
        raise UserError(
            f"{what} a vocabulary of {size:,} tokens, but the model in {model_dir} was trained "
            f"with another one: its embedding has {vocab_size:,} rows"
        )


def check_same_vocabulary(examples: Examples, training: Examples, vocab_size: int) -> None:
    """Raises UserError if a test set was made with another vocabulary than the `training` set."""
    check_vocabulary(None, examples, vocab_size)
    one, other = examples.meta["vocabulary"]["sha256"], training.meta["vocabulary"]["sha256"]
    if one != other:
        raise UserError(
            f"the examples of {examples.spec.task} in {examples.path} were made with another "
            f"vocabulary ({one[:12]}...) than those of {training.spec.task} in {training.path} "
            f"({other[:12]}...); its tokens would mean nothing to the model"
        )


def finish(model_dir: str, step: int) -> None:
    """Writes DONE. Its digest lets later readers check that the metrics are the same."""
    metrics = storage.read_text(storage.path(model_dir) / records.METRICS) or ""
    digest = hashlib.sha256(metrics.encode()).hexdigest()
    write_json(os.path.join(model_dir, records.DONE), {"step": step, "metrics_sha256": digest})
    (storage.path(model_dir) / records.FAILED).unlink(missing_ok=True)


def fail(model_dir: str, error: Exception) -> None:
    """Writes FAILED: the reason, and the traceback too unless it is the user's mistake."""
    before = records.failure(model_dir)
    record = {
        "reason": str(error) or type(error).__name__,
        "failures": 1 + (before["failures"] if before else 0),
    }
    mistake = isinstance(error, UserError) or (isinstance(error, OSError) and file_mistake(error))
    if not mistake:
        record["traceback"] = "".join(traceback.format_exception(error))
    write_json(os.path.join(model_dir, records.FAILED), record)


def write_json(path: str, value: Any) -> None:
    storage.write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
