"""From run directories to a table of results and a log of runs, all that the analysis reads.

Every `<study_dir>/runs/<run id>/` with run.json, metrics.jsonl and DONE goes into results.csv:
one row per (run, step, split, metric) of every finished finetuning run. Metrics are `cross_entropy`
(nats per target token) and every number K of an evaluation line that has a sibling K_signature; and
of BLEU its brevity penalty and n-gram precisions (PARTS), which carry BLEU's signature.
Training lines, unfinished and failed runs are left out. Rows are sorted and floats written in their
shortest exact form, so that the same runs give the same file, byte for byte. What a finished run
has lost is never left out in silence: there is no table until it is put back or done again.

| column | meaning |
|---|---|
| study, model, parameters | names, and the number of the model's parameters |
| pretrain_data | task or mixture of the pretraining; empty: not pretrained |
| alignment | alignment score of that data for the task; empty if the task has no two languages |
| pretrain_tokens | D_p, in text tokens; 0: not pretrained, the baseline |
| task | what was finetuned and evaluated |
| finetune_tokens, finetune_examples, finetune_positions | D_f, the finetuning POOL: real tokens, \
examples, and positions with padding; short runs do not see all of it |
| learning_rate, seed | of the finetuning; an unknown rate of stock T5X's is empty |
| steps | finetuning steps at the time of the measurement |
| split, metric, metric_signature, value | the measurement |
| run | the run's id |

runs.jsonl has one line for every run, whatever its state, sorted by id: {"id", "record": its
run.json, "done", "failure": the reason in FAILED or null, "steps": how far it came, "wall_s",
"device_s": seconds that it took, over restarts, and those times the number of devices}. Places on
the machine that ran it are cut from the reasons: the two files can be published, and `report` needs
no run directories beside them.
"""

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from t5scaling import records, storage
from t5scaling.analysis.metrics import PARTS
from t5scaling.analysis.results.alignment import alignment_score
from t5scaling.errors import UserError
from t5scaling.records import DONE, FAILED, LOG, NAME, NUMBER, RECORD, REPORT, RESULTS

COLUMNS = (
    "study", "model", "parameters", "pretrain_data", "alignment", "pretrain_tokens", "task",
    "finetune_tokens", "finetune_examples", "finetune_positions", "learning_rate", "seed",
    "steps", "split", "metric", "metric_signature", "value", "run",
)  # fmt: skip
STATE = "report.json"  # of which runs the report was made
_NAMED = 10  # runs that a message names
_RATE = re.compile(r"/lr=[^/]+/")  # in a run's id


@dataclass(frozen=True)
class RunRecord:
    """A run as the log has it: `record` is run.json; `failure` the reason in FAILED, None without
    one; `source` the file of the record. wall_seconds, device_seconds: 0 if nothing was timed."""

    record: dict[str, Any]
    done: bool
    failure: str | None
    steps: int
    wall_seconds: float
    device_seconds: float
    source: str

    def __getitem__(self, key: str) -> Any:
        if key not in self.record:
            raise UserError(f"{self.source}: no field {key!r}")
        return self.record[key]


def read_runs(study_dir: str | os.PathLike) -> list[RunRecord]:
    """The runs of `<study_dir>/runs.jsonl`. Raises UserError if there is no such file."""
    if not storage.exists(storage.path(study_dir) / LOG):
        raise UserError(
            f"{study_dir}: no log of its runs (no file {storage.path(study_dir) / LOG})"
        )
    return [
        RunRecord(
            line["record"], line["done"], line["failure"], line["steps"], line["wall_s"],
            line["device_s"], where,
        )
        for where, line in records.log(study_dir)
    ]  # fmt: skip


def left_out(study_dir: str | os.PathLike, runs: Sequence[RunRecord]) -> str:
    """Sentences on the runs of a study that its results do not hold; "" if they hold all."""
    listed = records.study_list(study_dir) or {"runs": []}
    state = {run["id"]: "done" if run.done else "failed" if run.failure else "not finished"
             for run in runs}  # fmt: skip
    state = {run_id: "not begun" for run_id in listed["runs"]} | state
    absent = [f"{run_id} ({word})" for run_id, word in sorted(state.items()) if word != "done"]
    if not absent:
        return ""
    said = (
        f"{len(absent)} of the study's {len(state)} runs are not done and not in these results: "
        f"{_named(absent)}."
    )
    tried = {_RATE.sub("/", run_id) for run_id, word in state.items() if word == "done"}
    open_rates = [i for i, word in state.items() if word != "done" and _RATE.sub("/", i) in tried]
    if open_rates:
        said += (
            f" Of these, {len(open_rates)} would be a further learning rate of a point that is "
            "shown: the best of its rates may still be another one, and its results better."
        )
    return said


def check_agree(rows: Sequence[dict[str, Any]], study_dir: str | os.PathLike) -> None:
    """Raises UserError if a study's results.csv and runs.jsonl are not of the same runs: one of
    them is of another study, was cut, or was changed by hand."""
    folder = storage.path(study_dir)
    finished = {r["id"]: r for r in read_runs(study_dir) if r.done and r["kind"] == "finetune"}
    for row in rows:
        run = finished.get(row["run"])
        if run is None:
            raise UserError(
                f"{folder / RESULTS} has results of the run {row['run']}, but {folder / LOG} no "
                "finished finetuning of that name"
            )
        for column in sorted(_FROM_RECORD | {"pretrain_data"}):
            said = run[column] if run[column] is not None else ""
            found = row[column] if row[column] is not None else ""
            if found != said:
                raise UserError(
                    f"{run['id']}: {column} is {found!r} in {folder / RESULTS}, but "
                    f"{said!r} in {folder / LOG}"
                )
    lost = sorted(finished.keys() - {row["run"] for row in rows})
    if lost:
        raise UserError(
            f"{folder / RESULTS} has no results of {len(lost)} runs that {folder / LOG} says are "
            f"done: {_named(lost)}"
        )


def results_of(study_dir: str | os.PathLike) -> storage.AnyPath:
    """`<study_dir>/results.csv`: written anew if there are run directories, ours or T5X's, else as
    it is.

    Raises UserError if there is neither, and as `harvest`.
    """
    folder = storage.path(study_dir)
    if is_of_t5x(folder):
        from t5scaling.analysis.results import t5x_study

        t5x_study.write(folder, COLUMNS)
        return folder / RESULTS
    if storage.exists(folder / "runs"):
        return harvest(folder)
    for name in (RESULTS, LOG):
        if not storage.exists(folder / name):
            raise UserError(f"{folder}: no study here (neither runs/ nor {name})")
    return folder / RESULTS


def is_of_t5x(study_dir: str | os.PathLike) -> bool:
    """Whether the folder holds runs of stock T5X, and none of ours."""
    if storage.in_bucket(study_dir) or not os.path.isdir(study_dir):
        return False
    from t5scaling.analysis.results import t5x_runs

    return t5x_runs.is_t5x_directory(study_dir)


def is_reported(study_dir: str | os.PathLike) -> bool:
    """Whether the study's report was made from its runs as they are (`note_reported`)."""
    folder = storage.path(study_dir)
    if not storage.exists(folder / REPORT):
        return False
    try:
        found = records.read_object(folder / STATE, {"made_from": NAME})
    except UserError:  # damaged: made again
        return False
    return found is not None and found["made_from"] == state_of(folder)


def note_reported(study_dir: str | os.PathLike, state: str) -> None:
    """Writes down that the report is made from the runs as `state_of` knew them."""
    storage.write(storage.path(study_dir) / STATE, json.dumps({"made_from": state}) + "\n")


def state_of(study_dir: str | os.PathLike) -> str:
    """A digest that is another one when a run of the study was begun, has failed or is done.

    Times of files are compared for being the same, never for being earlier: clocks differ.
    """
    root = storage.path(study_dir) / "runs"
    said = {RECORD, DONE, FAILED}
    names = sorted(n for n in storage.sizes(root) if n.rpartition("/")[2] in said)
    times = storage.at_once(lambda name: storage.modified_ns(root / name), names)
    seen = json.dumps(list(zip(names, times, strict=True)))
    return hashlib.sha256(seen.encode()).hexdigest()


def harvest(study_dir: str | os.PathLike) -> storage.AnyPath:
    """Writes `<study_dir>/results.csv`, whose path it returns, and runs.jsonl.

    Raises UserError as `tabulate`.
    """
    folder = storage.path(study_dir)
    table, log = tabulate(folder)
    storage.write(folder / LOG, log)
    storage.write(folder / RESULTS, table)
    return folder / RESULTS


def tabulate(study_dir: str | os.PathLike) -> tuple[str, str]:
    """(text of results.csv, text of runs.jsonl) from the run directories; writes nothing.

    Raises UserError if no finetuning run has finished, or what a finished run left is damaged or
    gone: a table of the others would look whole.
    """
    folder, log = storage.path(study_dir), []
    found = read_directories(folder)
    for _, run in found:
        log.append(
            {
                "id": run["id"], "record": run.record, "done": run.done, "failure": run.failure,
                "steps": run.steps, "wall_s": run.wall_seconds, "device_s": run.device_seconds,
            }
        )  # fmt: skip
    finished = finished_finetunings(folder, found)
    tables = storage.at_once(lambda pair: list(_rows(*pair)), finished)
    rows = [row for table in tables for row in table]
    if not rows:
        raise UserError(f"{study_dir}: no finished finetuning run with an evaluation to tabulate")
    rows.sort(key=_order)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([_cell(row[column]) for column in COLUMNS] for row in rows)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in log)
    return text.getvalue(), lines


def runs_of(address: str | os.PathLike) -> list[RunRecord]:
    """The runs of a study: of their directories, where those are there, else of its runs.jsonl;
    [] for what is no study's directory. Writes nothing."""
    folder = storage.path(address)
    if storage.exists(folder / "runs"):
        return [run for _, run in read_directories(folder)]
    return read_runs(folder) if storage.exists(folder / LOG) else []


def finished_finetunings(
    study_dir: str | os.PathLike, runs: Sequence[tuple[storage.AnyPath, RunRecord]]
) -> list[tuple[storage.AnyPath, RunRecord]]:
    """Those of `read_directories` with results. Raises UserError if one has lost measurements."""
    finished = [(path, run) for path, run in runs if run.done and run["kind"] == "finetune"]
    lost = [reason for reason in storage.at_once(lambda pair: _lost(*pair), finished) if reason]
    if lost:
        raise UserError(
            f"{len(lost)} of {len(finished)} finished finetunings of {study_dir} have lost "
            f"measurements: {_named(lost)}. Put them back, or delete their directories: the study "
            "does those runs again"
        )
    return finished


def read_directories(study_dir: str | os.PathLike) -> list[tuple[storage.AnyPath, RunRecord]]:
    """Every run under `<study_dir>/runs` with its directory, sorted by id.

    Raises UserError if there is no such folder, if a folder in it or a file of a run cannot be
    read, or if a run is done but does not say which it was.
    """
    root = storage.path(study_dir) / "runs"
    if not root.is_dir():
        raise UserError(f"{study_dir}: no study here (no folder {root})")
    names = storage.sizes(root)
    ids = {name.rpartition("/")[0] for name in names if name.rpartition("/")[2] == RECORD}
    nameless = sorted(
        name.rpartition("/")[0]
        for name in names
        if name.rpartition("/")[2] == DONE and name.rpartition("/")[0] not in ids
    )
    if nameless:
        raise UserError(
            f"{len(nameless)} finished runs in {root} have lost their run.json: "
            f"{_named(nameless)}. Put it back, or delete their directories: the study does those "
            "runs again"
        )
    found = storage.at_once(lambda run_id: _read_directory(root, run_id), sorted(ids))
    return sorted(found, key=lambda pair: pair[1]["id"])


def _read_directory(root: storage.AnyPath, run_id: str) -> tuple[storage.AnyPath, RunRecord]:
    folder = root / run_id
    record = records.run_record(folder)
    if record is None:
        raise UserError(f"{folder / records.RECORD} has just been removed; try again")
    if record["id"] != run_id:  # a copy would count as a second seed
        raise UserError(
            f"{folder / records.RECORD} says that it is the run {record['id']!r}: a copy of a run, "
            "or one that was moved, does not belong in the study's runs/"
        )
    failed, done = records.failure(folder), storage.exists(folder / DONE)
    last = (records.timing(folder, growing=not done) or [{}])[-1]
    wall = float(last.get("wall_s") or 0)
    run = RunRecord(
        record, done, without_places(failed["reason"]) if failed else None,
        int(last.get("step") or 0), wall, float(last.get("device_s") or wall),
        str(folder / records.RECORD),
    )  # fmt: skip
    return folder, run


def _lost(path: storage.AnyPath, run: RunRecord) -> str:
    """Which run it is and what of its measurements is gone; "" if nothing is.

    A finished run must have an evaluation at its last step. DONE holds a digest of its metrics.
    """
    text = storage.read_text(path / records.METRICS)
    if text is None:
        return f"{run['id']} (no {records.METRICS})"
    done = records.read_object(path / DONE, {"metrics_sha256?": NAME}) or {}
    measured = [line["step"] for line in records.metrics(path) if line["split"] != "train"]
    if not measured:
        return f"{run['id']} (no evaluation in its {records.METRICS})"
    if max(measured) < run["steps"]:
        return f"{run['id']} (evaluated at step {max(measured)}, not at its last, {run['steps']})"
    found = hashlib.sha256(text.encode()).hexdigest()
    if done.get("metrics_sha256", found) != found:
        return f"{run['id']} ({records.METRICS} is not what it was when the run ended)"
    return ""


def _named(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return ", ".join(texts[:_NAMED]) + more


def without_places(reason: str) -> str:
    """Of every absolute path and gs:// address the last name: the rest tells of a machine."""
    return re.sub(r"(?<![\w.~-])(?:\w+:/)?/(?:[^\s/'\"]+/)+(?=[^\s/'\"])", "", reason)


def _rows(path: storage.AnyPath, run: RunRecord) -> Iterator[dict[str, Any]]:
    seen: dict[tuple, float] = {}
    for line in records.metrics(path):
        if line["split"] == "train":
            continue
        parts = {f"{key}?": NUMBER for key, _ in PARTS.values()}
        records.check(line, parts, str(path / records.METRICS))
        task = line.get("task", run["task"])
        for metric, signature, value in _metrics(line):
            where = (line["step"], line["split"], task, metric)
            if where in seen:
                if not (seen[where] == value or math.isnan(value)):
                    raise UserError(
                        f"{path / records.METRICS}: {metric} of {line['split']} at step "
                        f"{line['step']} is there twice, as {seen[where]!r} and {value!r}"
                    )
                continue
            seen[where] = value
            yield {
                **{column: run[column] for column in COLUMNS if column in _FROM_RECORD},
                "pretrain_data": run["pretrain_data"] or "",
                "alignment": _alignment(run),
                "task": task,
                "steps": line["step"],
                "split": line["split"],
                "metric": metric,
                "metric_signature": signature,
                "value": value,
                "run": run["id"],
            }


_FROM_RECORD = frozenset(
    (
        "study",
        "model",
        "parameters",
        "pretrain_tokens",
        "finetune_tokens",
        "finetune_examples",
        "finetune_positions",
        "learning_rate",
        "seed",
    )
)


def _metrics(line: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(name, signature, value) of each."""
    if "cross_entropy" in line:
        yield "cross_entropy", "", float(line["cross_entropy"])
    for key in line:
        if f"{key}_signature" in line:
            yield key, line[f"{key}_signature"], float(line[key])
    for part, (key, score) in PARTS.items():
        if key in line and f"{score}_signature" in line:
            yield part, line[f"{score}_signature"], float(line[key])


def _alignment(run: RunRecord) -> float | str:
    shares, languages = run.record.get("pretrain_languages"), run.record.get("languages") or ()
    if not run["pretrain_tokens"] or not shares or len(languages) != 2:
        return ""
    return alignment_score(shares, languages)


def _order(row: dict[str, Any]) -> tuple:
    return tuple(
        row[c] for c in (
            "study", "model", "pretrain_data", "pretrain_tokens", "task", "finetune_examples",
            "learning_rate", "seed", "run", "steps", "split", "metric",
        )
    )  # fmt: skip


def _cell(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
