"""From run directories to one table of results.

Every `<study_dir>/runs/<run id>/` with run.json, metrics.jsonl and DONE goes into results.csv:
one row per (run, step, split, metric) of every finished finetuning run. Metrics are `cross_entropy`
(nats per target token) and every number K of an evaluation line that has a sibling K_signature.
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
"""

import csv
import io
import json
import math
import os
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


@dataclass(frozen=True)
class RunRecord:
    """A run directory: `record` is run.json; `failure` the reason in FAILED, None without one."""

    path: storage.AnyPath
    record: dict[str, Any]
    done: bool
    failure: str | None

    def __getitem__(self, key: str) -> Any:
        if key not in self.record:
            raise UserError(f"{self.path / 'run.json'}: no field {key!r}")
        return self.record[key]

    @property
    def device_seconds(self) -> float:
        """From timing.jsonl; 0 without one."""
        lines = self.lines("timing.jsonl")
        return float(lines[-1].get("device_s") or lines[-1].get("wall_s") or 0) if lines else 0.0

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The JSON objects of metrics.jsonl or timing.jsonl; [] if there is no such file."""
        path = self.path / name
        if not path.exists():
            return []
        objects = []
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if text.strip():
                objects.append(_parse(text, f"{path}, line {number}"))
        return objects


def read_runs(study_dir: str | os.PathLike) -> list[RunRecord]:
    """Every run under `<study_dir>/runs`, sorted by id. Raises UserError if there is none."""
    root = storage.path(study_dir) / "runs"
    if not root.is_dir():
        raise UserError(f"{study_dir}: no study here (no folder {root})")
    names = storage.sizes(root)
    files = [root / name for name in names if name.rpartition("/")[2] == "run.json"]
    return sorted(storage.at_once(_read_run, files), key=lambda run: run["id"])


def _read_run(file: storage.AnyPath) -> RunRecord:
    failure = None
    failed = file.parent / "FAILED"
    if failed.exists():
        failure = _failure(failed.read_text(encoding="utf-8"))
    record = _parse(file.read_text(encoding="utf-8"), str(file))
    return RunRecord(file.parent, record, (file.parent / "DONE").exists(), failure)


def harvest(study_dir: str | os.PathLike) -> storage.AnyPath:
    """Writes `<study_dir>/results.csv` and returns its path.

    Raises UserError if no finetuning run has finished, or a file of a finished run is damaged.
    """
    finished = [run for run in read_runs(study_dir) if run.done and run["kind"] == "finetune"]
    rows = [
        row for found in storage.at_once(lambda run: list(_rows(run)), finished) for row in found
    ]
    if not rows:
        raise UserError(f"{study_dir}: no finished finetuning run with an evaluation to tabulate")
    rows.sort(key=_order)
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([_cell(row[column]) for column in COLUMNS] for row in rows)
    path = storage.path(study_dir) / "results.csv"
    storage.write(path, text.getvalue())
    return path


def _rows(run: RunRecord) -> Iterator[dict[str, Any]]:
    seen: dict[tuple, float] = {}
    for line in run.lines():
        if line.get("split") in (None, "train"):
            continue
        task = line.get("task", run["task"])
        for metric, signature in _metrics(line):
            where = (line["step"], line["split"], task, metric)
            value = float(line[metric])
            if where in seen:
                if not (seen[where] == value or math.isnan(value)):
                    raise UserError(
                        f"{run.path / 'metrics.jsonl'}: {metric} of {line['split']} at step "
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


def _metrics(line: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "cross_entropy" in line:
        yield "cross_entropy", ""
    for key in line:
        if f"{key}_signature" in line:
            yield key, line[f"{key}_signature"]


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
