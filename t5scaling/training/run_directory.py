"""The run directory as a record: config.gin, run.json, vocabulary.model, DONE or FAILED.

config.gin        every gin binding of the run; `run.py train --gin_file=.../config.gin` repeats it
run.json          its place in a study, if it has one
vocabulary.model  the SentencePiece model that its tokens come from
examples.json     which examples it is trained on: {"task", "split", "content_sha256", "path",
                  "extra_ids": sentinels after the vocabulary's pieces}
DONE              {"step": n}, written last of all
FAILED            {"reason", "failures": how many so far, "traceback" unless it is the user's
                  mistake}; gone when the run is done
JOB               {"job": "..."}: the job of an engine that was asked to do the run
claims/           who is at work on it (`claim`)
"""

import json
import os
import re
import traceback
from collections.abc import Mapping
from typing import Any

from t5scaling import storage
from t5scaling.data.examples import Examples
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError

VOCABULARY = "vocabulary.model"
EXAMPLES = "examples.json"
CONFIG, RECORD, DONE, FAILED, JOB = "config.gin", "run.json", "DONE", "FAILED", "JOB"
MOST_FAILURES = 3  # then a study leaves the run alone
# Where a run lives, how often it saves and on what it runs, not what it computes: these may change.
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
    "ATTENTION",
)


def begin(model_dir: str, config_text: str, record: Mapping[str, Any] | None = None) -> None:
    """Makes the directory ready for a start, or for going on after a stop.

    `record` becomes run.json: the run's place in a study. Raises UserError as `refuse_changed`.
    """
    refuse_changed(model_dir, config_text)
    storage.path(model_dir).mkdir(parents=True, exist_ok=True)
    storage.write(os.path.join(model_dir, CONFIG), config_text)
    if record is not None:
        write_json(os.path.join(model_dir, RECORD), record)


def refuse_changed(model_dir: str, config_text: str) -> None:
    """Raises UserError if the directory holds a run with other settings."""
    path = storage.path(model_dir) / CONFIG
    if not path.exists():
        return
    texts = path.read_text(encoding="utf-8"), config_text
    before, after = map(settings_of, texts)
    if before != after:
        was = next((line for line in before if line not in after), "nothing")
        now = next((line for line in after if line not in before), "nothing")
        raise UserError(
            f"{model_dir} holds a run with other settings ({was} there, {now} now); "
            "delete it or choose another directory"
        )


def settings_of(config_text: str) -> list[str]:
    """The lines of gin text that decide what a run computes."""
    joined = re.sub(r"\\\n\s*", "", config_text)  # gin wraps long values after a backslash
    free = (*(f"{name} =" for name in FREE_MACROS), "from ", "import ", "#")
    # Nor does what they set: a run made before there was a free macro can go on with it.
    set_by_them = tuple(f" = %{name}" for name in FREE_MACROS)
    return [
        line
        for line in joined.splitlines()
        if line and not line.startswith(free) and not line.endswith(set_by_them)
    ]


def keep_examples(model_dir: str, examples: Examples, has_trained: bool) -> None:
    """Leaves in the directory which examples it is trained on, and their vocabulary.

    Raises UserError if it `has_trained` on others, made of text that was changed since.
    """
    folder = storage.path(model_dir)
    path = os.path.join(model_dir, EXAMPLES)
    record = {
        "task": examples.spec.task,
        "split": examples.spec.split,
        "content_sha256": examples.meta["content_sha256"],
        "path": str(examples.path),
        "extra_ids": examples.meta.get("vocabulary", {}).get("extra_ids"),
    }
    before = read_json(path)
    if has_trained and before and before["content_sha256"] != record["content_sha256"]:
        raise UserError(
            f"{model_dir} was trained so far on other examples of {record['task']} "
            f"({before['path']}) than there are now ({record['path']}): its text, vocabulary or "
            "code was changed; undo that, or choose another MODEL_DIR"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not (has_trained and (folder / VOCABULARY).exists()):
        storage.write(folder / VOCABULARY, examples.vocabulary.read_bytes())
    if before != record:
        write_json(path, record)


def vocabulary_of(model_dir: str) -> Vocabulary:
    """The vocabulary of a run's model. Raises UserError if there is none."""
    record = read_json(os.path.join(model_dir, EXAMPLES)) or {}
    return Vocabulary(os.path.join(model_dir, VOCABULARY), record.get("extra_ids"))


def check_vocabulary(model_dir: str, examples: Examples, vocab_size: int) -> None:
    """Raises UserError if the examples were made with another vocabulary than the run's, or with
    one of more tokens than the model has (`vocab_size`)."""
    what = f"the examples of {examples.spec.task} in {examples.path}"
    vocabulary = examples.meta["vocabulary"]
    if vocabulary["size"] > vocab_size:
        raise UserError(
            f"{what} have a vocabulary of {vocabulary['size']:,} tokens, more than the model's "
            f"{vocab_size:,}; set its vocab_size or choose another model"
        )
    path = storage.path(model_dir) / VOCABULARY
    if path.exists() and Vocabulary(path, 0).sha256 != vocabulary["sha256"]:
        raise UserError(
            f"{what} were made with another vocabulary ({vocabulary['sha256'][:12]}...) than the "
            f"model in {model_dir} ({Vocabulary(path, 0).sha256[:12]}...); its tokens would mean "
            "nothing to the model"
        )


def is_done(model_dir: str) -> bool:
    return (storage.path(model_dir) / DONE).exists()


def finish(model_dir: str, step: int) -> None:
    write_json(os.path.join(model_dir, DONE), {"step": step})
    (storage.path(model_dir) / FAILED).unlink(missing_ok=True)


def fail(model_dir: str, error: Exception) -> None:
    """Writes FAILED: the reason, and the traceback too unless it is the user's mistake."""
    before = failure(model_dir)
    record = {
        "reason": str(error) or type(error).__name__,
        "failures": 1 + (before["failures"] if before else 0),
    }
    if not isinstance(error, UserError):
        record["traceback"] = "".join(traceback.format_exception(error))
    write_json(os.path.join(model_dir, FAILED), record)


def failure(model_dir: str) -> dict[str, Any] | None:
    """What FAILED holds; None if the run has not failed."""
    found = read_json(os.path.join(model_dir, FAILED))
    return found and {"failures": 1, **found}


def is_parked(failed: Mapping[str, Any] | None) -> bool:
    """Whether a study leaves a run with this `failure` alone."""
    return failed is not None and failed["failures"] >= MOST_FAILURES


def read_json(path: str) -> Any:
    """None if there is no such file."""
    try:
        return json.loads(storage.path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def write_json(path: str, value: Any) -> None:
    storage.write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
