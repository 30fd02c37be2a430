"""Directories of stock T5X as a study: its results.csv and runs.jsonl, so that `report` and
`export` do with them what they do with ours.

What T5X does not say is not made up. x, pretrain_tokens, is in token positions, padding included:
steps of the pretraining times its batch size and feature lengths, from its own config.gin, which
must be here. D_f is what the finetuning went through, in rows and positions, as T5X knows no pool.
Of one measurement, validation or test is whatever split config.gin names; a metric that was never
measured on the test split has its curves of the split that there is. Scores are those of
inference_eval, cross-entropy that of training_eval (`t5x_runs`). A run that has not come to its
TRAIN_STEPS is not done. A learning rate that config.gin does not name stays empty.
"""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from t5scaling import storage
from t5scaling.analysis.metrics import PARTS
from t5scaling.analysis.results import t5x_runs
from t5scaling.analysis.results.t5x_runs import Settings
from t5scaling.errors import UserError
from t5scaling.records import LOG, RESULTS

UNKNOWN_SPLIT = "unknown split"


@dataclass(frozen=True)
class T5XRun:
    """A run of T5X.

    id: its path below the study's folder. step: how far it came. steps: how far it was to come, 0
    where config.gin does not say. seconds: of training, as T5X timed it. devices: that it had.
    loss: nats per target token of the last training batches.
    """

    id: str
    folder: Path
    rows: Sequence[dict[str, Any]]
    step: int
    steps: int
    seconds: float
    devices: int
    loss: float | None

    @property
    def done(self) -> bool:
        return self.step >= self.steps


def read(folder: str | os.PathLike) -> list[T5XRun]:
    """The runs of T5X here or below, sorted by id. Raises UserError as `read_t5x_runs`."""
    rows = t5x_runs.read_t5x_runs(folder)
    found = []
    for run in t5x_runs.find_runs(folder):
        name = run.relative_to(folder).as_posix()
        own = [row for row in rows if row["run"] == name]
        train = [row for row in own if row["source"] == "train"]
        steps = Settings(run).get(
            "TRAIN_STEPS", "train_script.train.total_steps", "train.total_steps"
        )
        losses = [row for row in train if row["metric"] == "cross_entropy"]
        found.append(
            T5XRun(
                id=Path(folder).resolve().name if name == "." else name,
                folder=run,
                rows=own,
                step=max((row["step"] for row in own), default=0),
                steps=steps if isinstance(steps, int) else 0,
                seconds=sum(r["value"] for r in train if r["metric"] == "timing/seconds"),
                devices=_devices(train),
                loss=losses[-1]["value"] if losses else None,
            )
        )
    return sorted(found, key=lambda run: run.id)


def write(study_dir: str | os.PathLike, columns: Sequence[str]) -> None:
    """Writes results.csv, of these columns, and runs.jsonl into the folder of T5X's runs.

    Raises UserError if no finished run has measurements, or the config.gin of a pretraining, which
    says how many tokens its steps have, is not here.
    """
    study = Path(study_dir).resolve().name
    runs = read(study_dir)
    folders = [run.folder for run in runs]
    origins = {folder: t5x_runs.origin_of(folder, folders) for folder in folders}
    used = {origin[0] for origin in origins.values() if origin}
    pretrainings = {f for f in folders if f.name in used and not origins[f]}
    # What t5x.eval measured apart is of the run that it measured, whose validation chooses; of a
    # pretraining's checkpoint it is a run of its own.
    measured: dict[Path, list[dict[str, Any]]] = {folder: [] for folder in folders}
    apart = set()
    for run in runs:
        owner = t5x_runs.measured_run(run.folder, folders) or run.folder
        owner = run.folder if owner in pretrainings else owner
        if owner != run.folder:
            apart.add(run.folder)
        if owner not in pretrainings:
            measured[owner] += _results(run.rows)
    # (task, split, metric, step) of a run -> row; the later of two measurements counts.
    table: dict[tuple, dict[str, Any]] = {}
    log = []
    for run in runs:
        if run.folder in apart:
            continue
        record = {"study": study, "id": run.id, "kind": "pretrain", "steps": run.steps or run.step}
        record["pretrain_data"] = str(Settings(run.folder).get(*_TASK) or run.folder.name)
        if rows := measured[run.folder]:
            record |= {**_record(run, rows, folders), "kind": "finetune"}
            if run.done:
                for row in (_result(record, row) for row in rows):
                    table[tuple(row[c] for c in _KEY)] = row
        log.append(
            {
                "id": run.id, "record": record, "done": run.done, "failure": None,
                "steps": run.step, "wall_s": run.seconds, "device_s": run.seconds * run.devices,
            }
        )  # fmt: skip
    if not table:
        raise UserError(
            f"{study_dir}: no finished run of T5X has an evaluation to tabulate (inference_eval/, "
            "or training_eval/ with its losses)"
        )
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    for key in sorted(table, key=lambda key: [str(cell) for cell in key]):
        row = table[key]
        lines.writerow([repr(row[c]) if isinstance(row[c], float) else row[c] for c in columns])
    storage.write(Path(study_dir) / LOG, "".join(json.dumps(line) + "\n" for line in log))
    storage.write(Path(study_dir) / RESULTS, text.getvalue())


def show(study_dir: str | os.PathLike, console: Console | None = None) -> None:
    """Prints how far each run is."""
    console = console or Console(markup=False, emoji=False)
    table = Table("run", "state", "step", "loss", "hours", box=None, pad_edge=False)
    runs = read(study_dir)
    folders = [run.folder for run in runs]
    ids = {run.folder: run.id for run in runs}
    for run in runs:
        measured = t5x_runs.measured_run(run.folder, folders)
        state = "not done" if not run.done else "done" if run.steps else "no TRAIN_STEPS known"
        if measured and measured != run.folder:
            state = f"evaluation of {ids[measured]}"
        step = f"{run.step}/{run.steps}" if run.steps else str(run.step)
        loss = "" if run.loss is None else f"{run.loss:.3f}"
        table.add_row(run.id, state, step, loss, f"{run.seconds / 3600:.2f}")
    console.print(table)
    console.print(f"{len(runs)} runs of T5X: {sum(run.done for run in runs)} done")


_KEY = ("run", "task", "split", "metric", "steps")


def _results(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are results, by our names: without the ends of a score's interval, and with what
    BLEU is made of under the names of `metrics.PARTS`."""
    found = [row for row in rows if _is_result(row)]
    names = {row["metric"] for row in found}
    parts = {key: part for part, (key, score) in PARTS.items() if score in names}
    return [
        {**row, "metric": parts.get(row["metric"], row["metric"])}
        for row in found
        if re.sub("_(low|high)$", "", row["metric"]) not in names - {row["metric"]}
    ]


def _is_result(row: dict[str, Any]) -> bool:
    if row["source"] == "inference_eval":
        return not row["metric"].startswith("timing/")
    return row["source"] == "training_eval" and row["metric"] == "cross_entropy"


def _record(run: T5XRun, rows: Sequence[dict[str, Any]], folders: Sequence[Path]) -> dict[str, Any]:
    """The place in the study of a run with these results, as a run.json of ours has it."""
    measured = t5x_runs.measured_run(run.folder, folders) or run.folder
    origin = t5x_runs.origin_of(run.folder, folders)
    settings = Settings(measured)
    name, pretrain_steps = origin or ("", 0)
    data, tokens = None, 0
    if origin:
        data, tokens = _pretraining(run, name, pretrain_steps, folders)
    steps = max(row["finetune_steps"] for row in run.rows)
    examples = steps * (_batch_size(settings) or 0)
    if steps and not examples * _row_tokens(settings):
        raise UserError(
            f"{settings.path} does not say how many tokens a step of {run.id} has: it needs "
            "BATCH_SIZE and TASK_FEATURE_LENGTHS, inputs and targets, as T5X wrote them"
        )
    return {
        "model": _model(settings),
        "parameters": _parameters(measured),
        "pretrain_data": data,
        "pretrain_tokens": tokens,
        "pretrain_steps": pretrain_steps,
        "task": rows[0]["task"] or str(settings.get(*_TASK) or ""),
        "finetune_tokens": examples * _row_tokens(settings),
        "finetune_examples": examples,
        "finetune_positions": examples * _row_tokens(settings),
        "learning_rate": _learning_rate(settings),
        "seed": int(settings.get("RANDOM_SEED", "train_script.train.random_seed") or 0),
        "steps": steps,
    }


def _pretraining(run: T5XRun, name: str, steps: int, folders: Sequence[Path]) -> tuple[str, int]:
    """(data, token positions) of the pretraining `name` of a run at a step."""
    there = t5x_runs.run_at(name, folders)
    settings = Settings(there) if there else None
    batch = _batch_size(settings) if settings else None
    row = _row_tokens(settings) if settings else 0
    if settings is None or not batch or not row:
        where = f"{settings.path} does not say" if settings else f"there is no run {name} here"
        raise UserError(
            f"{run.folder} was pretrained for {steps:,} steps of {name}, and {where} how many "
            "tokens a step has: put its config.gin, with BATCH_SIZE and TASK_FEATURE_LENGTHS, and "
            "its train/ folder beside the others"
        )
    return str(settings.get(*_TASK) or name), steps * batch * row


_TASK = (
    "MIXTURE_OR_TASK_NAME", "train/utils.DatasetConfig.mixture_or_task_name",
    "utils.DatasetConfig.mixture_or_task_name",
)  # fmt: skip
_RATE = (
    "BASE_LEARNING_RATE", "LEARNING_RATE",
    "utils.create_learning_rate_scheduler.base_learning_rate",
)  # fmt: skip


def _learning_rate(settings: Settings) -> float | None:
    """None where config.gin names none, as under a schedule of one's own."""
    found = settings.get(*_RATE)
    return float(found) if isinstance(found, int | float) else None


def _batch_size(settings: Settings) -> int | None:
    found = settings.get(
        "train/utils.DatasetConfig.batch_size", "utils.DatasetConfig.batch_size", "BATCH_SIZE"
    )
    return found if isinstance(found, int) else None


def _row_tokens(settings: Settings) -> int:
    """Positions of a row, inputs and targets together; 0 where config.gin does not say."""
    found = settings.get(
        "train/utils.DatasetConfig.task_feature_lengths",
        "utils.DatasetConfig.task_feature_lengths",
        "TASK_FEATURE_LENGTHS",
    )
    if not isinstance(found, dict):
        return 0
    lengths = [n for n in (found.get("inputs"), found.get("targets")) if isinstance(n, int)]
    return sum(lengths) if len(lengths) == 2 else 0


def _model(settings: Settings) -> str:
    width, encoder, decoder = (
        settings.get(f"network.T5Config.{name}")
        for name in ("emb_dim", "num_encoder_layers", "num_decoder_layers")
    )
    return f"T5 of width {width}, {encoder} + {decoder} layers" if width else "T5"


def _parameters(run: Path) -> int:
    """As model-info.txt counts them; 0 where there is none."""
    text = storage.read_text(run / "model-info.txt") or ""
    found = re.search(r"Total number of parameters:\s*(\d+)", text)
    return int(found[1]) if found else 0


def _devices(train: Sequence[dict[str, Any]]) -> int:
    rates = {row["metric"]: row["value"] for row in train}
    each = rates.get("timing/seqs_per_second_per_core", 0.0)
    return round(rates.get("timing/seqs_per_second", 0.0) / each) if each else 1


def _result(record: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A row of results.csv."""
    return {
        **record,
        "pretrain_data": record["pretrain_data"] or "",
        "alignment": "",
        "task": row["task"] or record["task"],
        "steps": row["finetune_steps"],
        "split": row["split"] or UNKNOWN_SPLIT,
        "metric": row["metric"],
        "metric_signature": f"T5X {row['source']}",
        "value": float(row["value"]),
        "run": record["id"],
    }
