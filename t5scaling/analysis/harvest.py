"""From run directories to a table of results and a log of runs, all that the analysis reads.

Every `<study_dir>/runs/<run id>/` with run.json, metrics.jsonl and DONE goes into results.csv:
one row per (run, step, split, metric) of every finished finetuning run. Metrics are `cross_entropy`
(nats per target token) and every number K of an evaluation line that has a sibling K_signature; and
of BLEU its brevity penalty and n-gram precisions (PARTS), which carry BLEU's signature.
Training lines, unfinished and failed runs are left out. Rows are sorted and floats written in their
shortest exact form, so that the same runs give the same file, byte for byte.

| column | meaning |
|---|---|
| study, model, parameters | names, and the number of the model's parameters |
| pretrain_data | task or mixture of the pretraining; empty: not pretrained |
| alignment | alignment score of that data for the task; empty if the task has no two languages |
| pretrain_tokens | D_p, in text tokens; 0: not pretrained, the baseline |
| task | what was finetuned and evaluated |
| finetune_tokens, finetune_examples, finetune_positions | D_f, the finetuning POOL: real tokens, \
examples, and positions with padding; short runs do not see all of it |
| learning_rate, seed | of the finetuning |
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
import io
import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from t5scaling import storage
from t5scaling.analysis.alignment import alignment_score
from t5scaling.errors import UserError

COLUMNS = (
    "study", "model", "parameters", "pretrain_data", "alignment", "pretrain_tokens", "task",
    "finetune_tokens", "finetune_examples", "finetune_positions", "learning_rate", "seed",
    "steps", "split", "metric", "metric_signature", "value", "run",
)  # fmt: skip
RESULTS, LOG = "results.csv", "runs.jsonl"

# What BLEU is made of: name in the table -> (name in an evaluation line, the score).
PARTS = {
    f"{score}_{part}": (f"{name}{score.removeprefix('bleu')}", score)
    for score in ("bleu", "bleu_intl")
    for part, name in (
        ("brevity_penalty", "brevity_penalty"),
        *((f"precision_{n}", f"bleu_precision_{n}") for n in (1, 2, 3, 4)),
    )
}


@dataclass(frozen=True)
class RunRecord:
    """A run as the log has it: `record` is run.json; `failure` the reason in FAILED, None without
    one; `source` where the record stands. wall_seconds, device_seconds: 0 if nothing was timed."""

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
    path = storage.path(study_dir) / LOG
    if not path.exists():
        raise UserError(f"{study_dir}: no log of its runs (no file {path})")
    runs = []
    for number, line in enumerate(lines_of(path), 1):
        try:
            runs.append(
                RunRecord(
                    line["record"], line["done"], line["failure"], line["steps"], line["wall_s"],
                    line["device_s"], f"{path}, line {number}",
                )
            )  # fmt: skip
        except KeyError as error:
            raise UserError(f"{path}, line {number}: no field {error}") from None
    return runs


def results_of(study_dir: str | os.PathLike) -> storage.AnyPath:
    """`<study_dir>/results.csv`: written anew if there are run directories, else as it is.

    Raises UserError if there is neither, and as `harvest`.
    """
    folder = storage.path(study_dir)
    if (folder / "runs").is_dir():
        return harvest(folder)
    for name in (RESULTS, LOG):
        if not (folder / name).exists():
            raise UserError(f"{folder}: no study here (neither runs/ nor {name})")
    return folder / RESULTS


def is_reported(study_dir: str | os.PathLike) -> bool:
    """Whether the study's report.html is newer than all that it reports on."""
    folder = storage.path(study_dir)
    if not (folder / "report.html").exists():
        return False
    written = storage.modified_ns(folder / "report.html")
    said = {"run.json", "DONE", "FAILED"}
    names = [n for n in storage.sizes(folder / "runs") if n.rpartition("/")[2] in said]
    changed = storage.at_once(lambda name: storage.modified_ns(folder / "runs" / name), names)
    return all(one <= written for one in changed)


def harvest(study_dir: str | os.PathLike) -> storage.AnyPath:
    """Writes `<study_dir>/results.csv`, whose path it returns, and runs.jsonl.

    Raises UserError if no finetuning run has finished, or a file of a finished run is damaged.
    """
    folder, log = storage.path(study_dir), []
    finished = []
    for path, run in read_directories(folder):
        log.append(
            {
                "id": run["id"], "record": run.record, "done": run.done, "failure": run.failure,
                "steps": run.steps, "wall_s": run.wall_seconds, "device_s": run.device_seconds,
            }
        )  # fmt: skip
        if run.done and run["kind"] == "finetune":
            finished.append((path, run))
    rows = [
        row for found in storage.at_once(lambda pair: list(_rows(*pair)), finished) for row in found
    ]
    if not rows:
        raise UserError(f"{study_dir}: no finished finetuning run with an evaluation to tabulate")
    rows.sort(key=_order)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([_cell(row[column]) for column in COLUMNS] for row in rows)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in log)
    storage.write(folder / LOG, lines)
    storage.write(folder / RESULTS, text.getvalue())
    return folder / RESULTS


def read_directories(study_dir: str | os.PathLike) -> list[tuple[storage.AnyPath, RunRecord]]:
    """Every run under `<study_dir>/runs` with its directory, sorted by id.

    Raises UserError if there is no such folder.
    """
    root = storage.path(study_dir) / "runs"
    if not root.is_dir():
        raise UserError(f"{study_dir}: no study here (no folder {root})")
    names = storage.sizes(root)
    files = [root / name for name in names if name.rpartition("/")[2] == "run.json"]
    return sorted(storage.at_once(_read_directory, files), key=lambda found: found[1]["id"])


def _read_directory(file: storage.AnyPath) -> tuple[storage.AnyPath, RunRecord]:
    folder = file.parent
    failure, failed = None, folder / "FAILED"
    if failed.exists():
        failure = _without_places(_failure(failed.read_text(encoding="utf-8")))
    last = (lines_of(folder / "timing.jsonl") or [{}])[-1]
    wall = float(last.get("wall_s") or 0)
    run = RunRecord(
        _parse(file.read_text(encoding="utf-8"), str(file)),
        (folder / "DONE").exists(), failure, int(last.get("step") or 0),
        wall, float(last.get("device_s") or wall), str(file),
    )  # fmt: skip
    return folder, run


def lines_of(path: storage.AnyPath) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines; [] if there is no such file."""
    if not path.exists():
        return []
    return [
        _parse(text, f"{path}, line {number}")
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if text.strip()
    ]


def _without_places(reason: str) -> str:
    """Of every absolute path and gs:// address the last name: the rest tells of a machine."""
    return re.sub(r"(?<![\w.~-])(?:\w+:/)?/(?:[^\s/'\"]+/)+(?=[^\s/'\"])", "", reason)


def _rows(path: storage.AnyPath, run: RunRecord) -> Iterator[dict[str, Any]]:
    seen: dict[tuple, float] = {}
    for line in lines_of(path / "metrics.jsonl"):
        if line.get("split") in (None, "train"):
            continue
        task = line.get("task", run["task"])
        for metric, signature, value in _metrics(line):
            where = (line["step"], line["split"], task, metric)
            if where in seen:
                if not (seen[where] == value or math.isnan(value)):
                    raise UserError(
                        f"{path / 'metrics.jsonl'}: {metric} of {line['split']} at step "
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


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected a JSON object, found {text.strip()[:40]!r}")
    return value


def _failure(text: str) -> str:
    try:
        return str(json.loads(text)["reason"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return text.strip() or "no reason given"
