"""What a study would cost, part by part, before anything is spent: nothing is compiled or run.

The numbers are `plan`'s: model FLOPs by formula, at a share of the devices' peak that the user
states. Only `run.py plan`, which compiles the step, can find out whether it fits into memory.

`dry_run.json` holds what `dry_run.txt` shows: `study`, `topology`, `utilization`, `rows` (one per
pretraining, and per task of a part; the fields of `Row`), `total`, `longest_chain_hours`.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from t5scaling import config, storage
from t5scaling.amounts import duration, size
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.study import ahead_of_time, plan, runner, topologies
from t5scaling.study.study import GridPoint, Study, parts_of, points, short_data
from t5scaling.training import run_directory, throughput

_WIDTH = 1000  # a table takes what it needs of it, whatever the terminal's


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs of one part and dataset.

    Attributes:
        part, model, kind, dataset: which runs.
        runs: how many; a run that two parts ask for is counted in the first.
        steps: of all of them together; `steps_from`: how they are known.
        positions: token positions that all of them compute, padding included.
        text_tokens: that a pretraining sees; None for finetunings, whose pools repeat.
        text_tokens_from: how they are known.
        parameters: of the model.
        flops_per_step, flops: by `network.model_flops`.
        device_hours: flops / (utilization x peak of a device).
        checkpoints, checkpoint_bytes: kept for good, and the size of one.
    """

    part: str
    model: str
    kind: str
    dataset: str
    runs: int
    steps: int
    steps_from: str
    positions: int
    text_tokens: int | None
    text_tokens_from: str
    parameters: int
    flops_per_step: float
    flops: float
    device_hours: float
    checkpoints: int
    checkpoint_bytes: int

    @property
    def storage_bytes(self) -> int:
        return self.checkpoints * self.checkpoint_bytes


def dry_run(
    *,
    topology: str | None = None,
    utilization: float = plan.UTILIZATION,
    output: str | None = None,
    console: Console | None = None,
) -> list[Row]:
    """Prints what the study of the loaded gin configuration would cost, and returns its rows.

    Args:
        topology: as for `plan`; None: the study's own.
        utilization: share of the devices' peak that is assumed, in (0, 1].
        output: directory for dry_run.txt and dry_run.json.

    Raises UserError if no study is configured, or for an unknown topology.
    """
    arguments = config.bindings_of(runner.run_study)
    if "study_dir" in arguments:
        storage.check_fit(arguments["study_dir"], "STUDY_DIR")
    if not arguments:
        raise UserError("--dry_run: the gin files describe no study")
    if not 0 < utilization <= 1:
        raise UserError(f"--utilization={utilization}: expected a share of the peak in (0, 1]")
    study, root = arguments["study"], arguments["examples_root"]
    if not isinstance(root, str):
        root = "runs/examples"  # not given; then nothing is materialised there either
    parts = parts_of(study)
    topology = topology or parts[0].topology
    where = topologies.parse(topology)
    peak = where.peak_flops_per_s if where else ahead_of_time.local_peak()
    grid = points(study)
    rows = [_row(group, root, utilization * peak) for group in plan.study_groups(study, root)]
    rows.sort(key=lambda row: [part.part for part in parts].index(row.part))
    devices = where.devices if where else 1
    on = f"one device of {topology}" if where else "one device here"
    if where and devices > 1:
        on = f"{topology}'s {devices} {where.unit}"
    chain = _longest_chain(rows) / devices
    out = console or Console()
    screen = Console(file=out.file, width=max(out.width, _WIDTH), markup=False, emoji=False)
    with screen.capture() as captured:
        _show(screen, parts, rows, grid, topology, on, utilization, peak, devices, chain)
    text = captured.get()
    out.file.write(text)
    if output:
        os.makedirs(output, exist_ok=True)
        result = {
            "study": parts[0].name,
            "topology": topology,
            "utilization": utilization,
            "peak_flops_per_s": peak,
            "rows": [
                {**dataclasses.asdict(row), "storage_bytes": row.storage_bytes} for row in rows
            ],
            "total": _total(rows),
            "longest_chain_hours": chain,
        }
        run_directory.write_json(os.path.join(output, "dry_run.json"), result)
        (Path(output) / "dry_run.txt").write_text(text, encoding="utf-8")
    return rows


def _row(group: plan.Group, examples_root: str, flops_per_s: float) -> Row:
    program = group.program
    flops_per_step = program.batch_size * network.model_flops(
        program.config, program.input_length, program.target_length
    )
    tokens, how = None, "pools repeat"
    if group.kind == "pretrain":
        rows = group.steps // group.runs * program.batch_size
        spec = group.spec
        examples = spec and plan.materialized(spec, examples_root)
        if examples is not None and rows <= len(examples):
            tokens, how = group.runs * examples.tokens(rows), "counted in the examples"
        else:
            each = plan.tokens_per_row(program.input_length)
            tokens, how = group.runs * rows * each, f"{each} a row, as in T5's span corruption"
    flops = flops_per_step * group.steps
    return Row(
        part=group.part,
        model=group.model,
        kind=group.kind,
        dataset=group.dataset,
        runs=group.runs,
        steps=group.steps,
        steps_from=group.steps_estimated or "exact",
        positions=group.steps * program.batch_size * (program.input_length + program.target_length),
        text_tokens=tokens,
        text_tokens_from=how,
        parameters=network.count_parameters(program.config),
        flops_per_step=flops_per_step,
        flops=flops,
        device_hours=flops / flops_per_s / 3600,
        checkpoints=group.checkpoints,
        checkpoint_bytes=ahead_of_time.checkpoint_bytes(program.config),
    )


def _longest_chain(rows: Sequence[Row]) -> float:
    """Device-hours of the longest pretraining and the longest finetuning after it."""
    longest = {"pretrain": 0.0, "finetune": 0.0}
    for row in rows:
        longest[row.kind] = max(longest[row.kind], row.device_hours / row.runs)
    return sum(longest.values())


def _total(rows: Sequence[Row]) -> dict[str, Any]:
    names = ("runs", "steps", "positions", "flops", "device_hours", "checkpoints", "storage_bytes")
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def _show(
    screen: Console,
    parts: Sequence[Study],
    rows: Sequence[Row],
    grid: Sequence[GridPoint],
    topology: str,
    on: str,
    utilization: float,
    peak: float,
    devices: int,
    chain: float,
) -> None:
    def say(text: str = "") -> None:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)

    total = _total(rows)
    say(f"study {parts[0].name}: {total['runs']:,} runs; nothing is run or compiled")
    say()
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("part", "runs of"):
        table.add_column(name, no_wrap=True)
    for name in ("runs", "steps", "positions", "text tokens", "FLOPs", "device-h", "storage"):
        table.add_column(name, justify="right", no_wrap=True)
    for part, found in _by_part(rows).items():
        for row in found:
            table.add_row(part, f"{row.kind} {short_data(row.dataset)}", *_cells(row))
            part = ""
    for kind in sorted({row.kind for row in rows}, reverse=True):
        table.add_row("", f"every {kind}", *_sums([row for row in rows if row.kind == kind]))
    table.add_row("everything", "", *_sums(rows))
    screen.print(table)
    say("Where the numbers come from:")
    say("  steps          " + "; ".join(_origins(rows, "steps_from")))
    say("  positions      steps x BATCH_SIZE x (inputs + targets of TASK_FEATURE_LENGTHS)")
    pretrain = [row for row in rows if row.kind == "pretrain"]
    say("  text tokens    " + "; ".join(_origins(pretrain, "text_tokens_from")))
    say("  FLOPs          steps x BATCH_SIZE x model FLOPs of a row (6 x parameters x positions + "
        "attention):")  # fmt: skip
    for name, row in _programs(rows).items():
        say(f"                 {name}: {row.flops_per_step:.4g} a step, {row.parameters:,} "
            f"parameters, checkpoint of {size(row.checkpoint_bytes)}")  # fmt: skip
    say(f"  device-hours   FLOPs / ({utilization:.0%} ASSUMED utilisation x {peak / 1e12:,.4g} "
        f"TFLOP/s of a device of {topology}) / 3600")  # fmt: skip
    say("  storage        kept checkpoints x checkpoint: every D_p of a pretraining, the last step "
        "of a finetuning if KEEP_CHECKPOINT")  # fmt: skip
    say("Not counted: evaluation and decoding, input, saving, examples, starts after preemption. "
        "Whether a step fits: run.py plan.")  # fmt: skip
    if any(part.trainer_gin for part in parts):
        say("Another trainer does the runs. The FLOPs are the model's; T5X's products with one-hot "
            "vectors come on top, and its memory is not what run.py plan says.")  # fmt: skip
    one_by_one = duration(3600 * total["device_hours"] / devices)
    say(f"On {on}: the longest chain, a pretraining and a finetuning after it, "
        f"{duration(3600 * chain)}; everything one after the other {one_by_one}")  # fmt: skip
    others = [
        f"{kind} {total['flops'] / (utilization * tera * 1e12) / 3600:,.3g}"
        for kind, tera in throughput.PEAK_TFLOPS.items()
    ]
    say("Device-hours of everything on other devices: " + ", ".join(others))
    say()
    say("What waits for what:")
    for line in graph(grid):
        say("  " + line)


def graph(grid: Sequence[GridPoint]) -> list[str]:
    """Each pretraining and the finetunings that need it, and the baselines, as lines of a tree."""
    lines = []
    for start in [point for point in grid if point.kind == "pretrain"] + [None]:
        needs = (start.id,) if start else ()
        after = [p for p in grid if p.kind == "finetune" and p.needs == needs]
        if start:
            unit = "steps" if start.study.pretrain_steps else "text tokens"
            sizes = ", ".join(f"{size:,}" for size in start.sizes)
            lines.append(f"{start.id}  (checkpoints at {sizes} {unit})")
        elif after:
            lines.append("no pretraining  (D_p = 0, the baselines)")
        families: dict[tuple[str, str], list[GridPoint]] = {}
        for point in after:
            families.setdefault((point.study.prefix, point.task), []).append(point)
        for number, ((prefix, task), found) in enumerate(families.items(), 1):
            counts = [
                (len({getattr(p, name) for p in found}), word)
                for name, word in (
                    ("sizes", "D_p"), ("pool", "pools"), ("learning_rate", "rates"),
                    ("seed", "seeds"),
                )
            ]  # fmt: skip
            branch = "└─" if number == len(families) else "├─"
            each = [f"{count} {word}" for count, word in counts]
            whole = math.prod(count for count, _ in counts) == len(found)
            axes = " x ".join(each) if whole else "some of " + ", ".join(each)
            where = f"{prefix}/{task}" if prefix and not start else task
            lines.append(f"{branch} finetune {where}: {len(found):,} runs ({axes})")
    return lines


def _by_part(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.part, []).append(row)
    return found


def _cells(row: Row) -> list[str]:
    tokens = f"{row.text_tokens:.4g}" if row.text_tokens is not None else ""
    return [
        f"{row.runs:,}", f"{row.steps:,}", f"{row.positions:.4g}", tokens, f"{row.flops:.3e}",
        f"{row.device_hours:,.4g}", size(row.storage_bytes),
    ]  # fmt: skip


def _sums(rows: Sequence[Row]) -> list[str]:
    total = _total(rows)
    return [
        f"{total['runs']:,}", f"{total['steps']:,}", f"{total['positions']:.4g}", "",
        f"{total['flops']:.3e}", f"{total['device_hours']:,.4g}", size(total["storage_bytes"]),
    ]  # fmt: skip


def _origins(rows: Sequence[Row], field: str) -> list[str]:
    return sorted({getattr(row, field) for row in rows})


def _programs(rows: Sequence[Row]) -> Mapping[str, Row]:
    """One row for each kind of step."""
    found: dict[tuple, tuple[str, Row]] = {}
    for row in rows:
        key = (row.kind, row.flops_per_step, row.checkpoint_bytes)
        found.setdefault(key, (f"{row.kind} {row.model} {row.dataset}", row))
    return dict(found.values())
