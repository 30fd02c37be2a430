"""Whether a run or a study fits on given devices, and what it would cost.

The train step is really compiled (`ahead_of_time`), so memory is what the compiler needs. Time is
not measured: it is the model's FLOPs, by formula, at a share of the chips' peak that the user
states. Neither examples nor an accelerator are needed.

`plan.json` holds what `plan.txt` shows, and more:

- `topology`, `utilization` (the assumption), `gin_files`, `overrides`, `versions`;
- `programs`: one entry for all runs that share a compiled step, with `kind`, `runs`, `steps` (of
  all runs together), `steps_estimated` (why they are not exact, or null), `program` and `compiled`
  (the fields of `ahead_of_time.Program` and `Compiled`), `fits`, `total_bytes`,
  `positions_per_step`, `flops_per_step`, `flops`, `step_seconds`, `device_hours`, `checkpoints`
  (kept for good), `suggestion` (null if it fits or nothing does);
- `fits`, `device_hours`, `checkpoint_bytes`: of everything together.
"""

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from t5scaling import __version__, config, storage
from t5scaling.amounts import duration, size
from t5scaling.data.examples import DataSpec, Examples, finished
from t5scaling.data.pool import pool_rows
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.study import ahead_of_time, expand, gpus, runner, suggest, topologies
from t5scaling.study.study import GridPoint, Study, points
from t5scaling.training import loop, run_directory

UTILIZATION = 0.4
# What a plan does not need to know; gin wants a value.
_NOT_NEEDED = ("MIXTURE_OR_TASK_NAME", "MODEL_DIR", "STUDY_DIR", "EXAMPLES_ROOT")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that share a compiled step.

    Attributes:
        kind: "train", "pretrain" or "finetune".
        program: what they compile.
        runs: the number of processes.
        steps: of all of them together.
        checkpoints: kept for good, of all of them together.
        steps_estimated: how `steps` was estimated; None if it is exact.
        part: of the study, the first that asks for these runs.
        model: its name.
        dataset, spec: what they train on.
    """

    kind: str
    program: ahead_of_time.Program
    runs: int
    steps: int
    checkpoints: int
    steps_estimated: str | None = None
    part: str = ""
    model: str = ""
    dataset: str = ""
    spec: DataSpec | None = None


def plan(
    gin_files: Sequence[str],
    overrides: Mapping[str, str],
    *,
    topology: str,
    utilization: float = UTILIZATION,
    output: str | None = None,
) -> bool:
    """Prints what the run or study of these gin files would cost, and returns whether it fits.

    Args:
        gin_files, overrides: as for `config.load`; they bind `loop.train` or `runner.run_study`.
        topology: a TPU slice such as "v4:4x4x4", GPUs such as "h100:8" (`gpus`), or "local" for
            the devices that JAX finds here.
        utilization: share of the chips' peak FLOP/s that the runs are assumed to reach, in (0, 1].
        output: directory for plan.txt and plan.json.

    Raises UserError for an unknown topology, missing settings, a model or batch that cannot be
    split over the devices, or a missing libtpu or CUDA plugin.
    """
    where = topologies.parse(topology)
    if not 0 < utilization <= 1:
        raise UserError(f"--utilization={utilization}: expected a share of the peak in (0, 1]")
    if output and os.path.exists(output) and not os.path.isdir(output):
        raise UserError(f"--output={output} is a file; expected a directory")
    groups = [_planned(group, where, utilization) for group in groups_of(gin_files, overrides)]
    result = {
        "topology": topology,
        "utilization": utilization,
        "gin_files": list(gin_files),
        "overrides": dict(overrides),
        "versions": _versions(),
        "programs": groups,
        "fits": all(group["fits"] for group in groups),
        "device_hours": sum(group["device_hours"] for group in groups),
        "checkpoint_bytes": sum(
            group["compiled"]["checkpoint_bytes"] * group["checkpoints"] for group in groups
        ),
    }
    text = render(result)
    print(text, end="", flush=True)
    if output:
        os.makedirs(output, exist_ok=True)
        run_directory.write_json(os.path.join(output, "plan.json"), result)
        (Path(output) / "plan.txt").write_text(text, encoding="utf-8")
    return result["fits"]


def groups_of(gin_files: Sequence[str], overrides: Mapping[str, str]) -> list[Group]:
    """The runs that these gin files describe, those of one program together.

    Raises UserError if they describe neither a run nor a study, or leave a setting open.
    """
    config.load(gin_files, overrides)
    open_names = [name for name in _NOT_NEEDED if config.macro(name) is config.REQUIRED]
    if open_names:
        config.load(gin_files, {**overrides, **dict.fromkeys(open_names, "not_needed")})
    arguments = config.bindings_of(runner.run_study)
    if arguments:
        config.require(runner.run_study)
        groups = study_groups(arguments["study"], arguments["examples_root"])
    else:
        config.require(loop.train)
        arguments = config.bindings_of(loop.train)
        steps = arguments["train_steps"]
        kept = {*arguments.get("checkpoint_steps", ()), steps}
        groups = [Group("train", _program(arguments), 1, steps, len(kept))]
    return _merged(groups)


def study_groups(study: Study | Sequence[Study], examples_root: str) -> list[Group]:
    """A group per pretraining, whatever its base rates, and per part and task."""
    families: dict[tuple, list[GridPoint]] = {}
    for point in points(study):
        pretraining = point.study.prefix, point.data
        key = pretraining if point.kind == "pretrain" else (id(point.study), point.task)
        families.setdefault((point.kind, key), []).append(point)
    groups = []
    for found in families.values():
        first = found[0]
        _, arguments, _ = expand.train_arguments(
            first.study, first.kind, first.dataset, examples_root
        )
        runs, estimated = len(found), None
        if first.kind == "pretrain":
            steps, estimated = _checkpoint_steps(first, arguments)
            total, checkpoints = runs * max(steps), runs * len(steps)
        else:
            total = runs * arguments["train_steps"]
            examples = materialized(arguments["dataset"], arguments["examples_root"])
            if examples is not None:
                for pool in first.study.finetune_pools:
                    pool_rows(examples, pool)  # one that the data cannot serve is refused here too
            checkpoints = runs * arguments.get("keep_checkpoint", True)
        data = first.study.part, first.study.model, first.dataset, arguments["dataset"]
        groups.append(
            Group(first.kind, _program(arguments), runs, total, checkpoints, estimated, *data)
        )
    return groups


def _checkpoint_steps(
    point: GridPoint, arguments: Mapping[str, Any]
) -> tuple[list[int], str | None]:
    """The step of each D_p > 0, and how they were estimated.

    They are exact where the examples are materialised, or D_p is given by steps. Otherwise a row
    is taken to hold `tokens_per_row`.
    """
    dataset, batch_size = arguments["dataset"], arguments["batch_size"]
    examples = materialized(dataset, arguments["examples_root"])
    if examples is not None or point.study.pretrain_steps:
        stream = None if examples is None else expand.text_stream(examples, arguments)
        return list(expand.checkpoint_steps(point, stream, batch_size).values()), None
    text = tokens_per_row(dataset.feature_lengths["inputs"])
    note = f"from D_p, at {text} text tokens a row as in T5's span corruption"
    return [math.ceil(tokens / (batch_size * text)) for tokens in point.sizes], note


def tokens_per_row(input_length: int) -> int:
    """Text tokens in a row of span corruption at T5's settings (15 % of the tokens in spans of 3):
    L input positions cover (L - 1) / 0.9 of them, 512 positions 567."""
    return int((input_length - 1) / 0.9)


def materialized(spec: DataSpec, root: str) -> Examples | None:
    """The examples of `spec`, if they are there already."""
    path = finished(spec, storage.path(root))
    return None if path is None else Examples(path)


def _program(arguments: Mapping[str, Any]) -> ahead_of_time.Program:
    dataset = arguments["dataset"]
    return ahead_of_time.Program(
        config=arguments["model"],
        objective=arguments["objective"],
        batch_size=arguments["batch_size"],
        input_length=dataset.feature_lengths["inputs"],
        target_length=dataset.feature_lengths["targets"],
        packed=dataset.pack,
        microbatches=arguments.get("microbatches", 1),
        mesh_shape=arguments.get("mesh_shape"),
        rules=arguments.get("rules"),
    )


def _merged(groups: list[Group]) -> list[Group]:
    """One group for all runs of a kind that compile the same program."""
    merged: dict[str, Group] = {}
    for group in groups:
        key = json.dumps([group.kind, group.program.to_json()], sort_keys=True)
        if key in merged:
            other = merged[key]
            group = dataclasses.replace(
                other,
                runs=other.runs + group.runs,
                steps=other.steps + group.steps,
                checkpoints=other.checkpoints + group.checkpoints,
                steps_estimated=other.steps_estimated or group.steps_estimated,
            )
        merged[key] = group
    return list(merged.values())


def _planned(group: Group, where: topologies.Topology | None, utilization: float) -> dict[str, Any]:
    """A group's entry in plan.json."""
    program = group.program
    compiled = ahead_of_time.compile_program(program, where)
    flops = program.batch_size * network.model_flops(
        program.config, program.input_length, program.target_length
    )
    seconds = flops / (utilization * compiled.peak_flops_per_s * compiled.devices)
    suggestion = None
    if not compiled.fits:
        found = suggest.search(program, where, compiled, ahead_of_time.compile_program)
        suggestion = found and {
            "changes": found.changes,
            "estimated_bytes": found.estimated_bytes,
            "compiled": found.compiled and dataclasses.asdict(found.compiled),
            "total_bytes": found.compiled and found.compiled.total_bytes,
        }
    return {
        "kind": group.kind,
        "runs": group.runs,
        "steps": group.steps,
        "steps_estimated": group.steps_estimated,
        "program": program.to_json(),
        "compiled": dataclasses.asdict(compiled),
        "fits": compiled.fits,
        "total_bytes": compiled.total_bytes,
        "positions_per_step": program.batch_size * (program.input_length + program.target_length),
        "flops_per_step": flops,
        "flops": flops * group.steps,
        "step_seconds": seconds,
        "device_hours": seconds * group.steps * compiled.devices / 3600,
        "checkpoints": group.checkpoints,
        "suggestion": suggestion,
    }


def _versions() -> dict[str, str]:
    versions = {"t5scaling": __version__}
    for package in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "jax-cuda12-plugin"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def render(result: Mapping[str, Any]) -> str:
    """plan.txt from what plan.json holds."""
    first = result["programs"][0]["compiled"]
    devices = math.prod(first["mesh"].values())
    whole = first.get("whole_memory_bytes")  # older plans have none
    share = (
        f" ({first['memory_bytes'] / whole:.0%} of its {size(whole)}, as JAX takes unless "
        f"{gpus.FRACTION_VARIABLES[0]} says otherwise)"
        if whole
        else ""
    )
    lines = [
        f"plan for {result['topology']}: {devices} x {first['device_kind']}, "
        f"{first['hosts']} host{'s' if first['hosts'] > 1 else ''}; a device has "
        f"{size(first['memory_bytes'])} of memory for programs{share} and a peak of "
        f"{first['peak_flops_per_s'] / 1e12:,.4g} TFLOP/s"
        + (" (a float32 matrix product, just now)" if first["device_kind"] == "cpu" else ""),
        f"ASSUMED, not measured: {result['utilization']:.0%} of that peak is reached "
        "(--utilization); step times and device-hours follow from it and from the model's FLOPs",
    ]
    for group in result["programs"]:
        lines += ["", *_render_group(group, result["utilization"])]
    if len(result["programs"]) > 1:
        lines += [
            "",
            f"everything together: {result['device_hours']:,.4g} device-hours (assumed "
            f"utilisation), {size(result['checkpoint_bytes'])} of checkpoints, "
            + ("all of it fits" if result["fits"] else "NOT all of it fits"),
        ]
    lines += ["", "Not counted: evaluation and decoding, input, saving, starts after preemption."]
    return "\n".join(lines) + "\n"


def _render_group(group: Mapping[str, Any], utilization: float) -> list[str]:
    program, compiled = group["program"], group["compiled"]
    model, mesh = program["config"], compiled["mesh"]
    runs = f"{group['runs']} runs" if group["runs"] > 1 else "1 run"
    estimated = f" (estimated {group['steps_estimated']})" if group["steps_estimated"] else ""
    layers = "scanned" if model["scan_layers"] else "unrolled"
    packed = ", packed" if program["packed"] else ""
    hours = group["device_hours"] / math.prod(mesh.values())
    kept = group["checkpoints"]
    rows = [
        (group["kind"], f"{runs}, {group['steps']:,} steps{estimated}"),
        (
            "model",
            f"{compiled['parameters']:,} parameters, activations {model['dtype']}, layers "
            f"{layers}, remat {model['remat']}",
        ),
        (
            "batch",
            f"{program['batch_size']} rows of {program['input_length']} + "
            f"{program['target_length']} positions{packed} = {group['positions_per_step']:,} a "
            f"step, in {program['microbatches']} part{'s' if program['microbatches'] > 1 else ''}",
        ),
        ("mesh", " x ".join(f"{axis} {size}" for axis, size in mesh.items())),
        *_memory_rows(group),
        (
            "model FLOPs",
            f"{group['flops_per_step']:.3e} a step, {group['flops']:.3e} in all (by formula: "
            "6 x parameters x positions + attention)",
        ),
        (
            "step time",
            f"{duration(group['step_seconds'])} at the assumed {utilization:.0%} of the peak",
        ),
        (
            "cost",
            f"{group['device_hours']:,.4g} device-hours, {duration(3600 * hours)} on all devices, "
            "at the same assumption",
        ),
        (
            "checkpoint",
            f"{size(compiled['checkpoint_bytes'])} (parameters, optimizer, counters) x {kept:,} "
            f"kept = {size(kept * compiled['checkpoint_bytes'])}; a run at work may hold 2 more",
        ),
        ("compiled in", duration(compiled["seconds"])),
    ]
    return [f"{name:15}{value}" for name, value in rows]


def _memory_rows(group: Mapping[str, Any]) -> list[tuple[str, str]]:
    compiled = group["compiled"]
    parts = [compiled[f"{name}_bytes"] for name in ("parameter", "optimizer", "batch")]
    rows = [
        ("memory", "of one device"),
        ("  parameters", size(parts[0])),
        ("  optimizer", size(parts[1])),
        ("  batch", size(parts[2])),
    ]
    memory = compiled["memory_bytes"]
    if compiled["refused"]:
        rows.append(("  total", f"DOES NOT FIT: {compiled['refused']}"))
    else:
        total = group["total_bytes"]
        free = memory - total
        verdict = (
            f"fits, {size(free)} ({free / memory:.0%}) to spare"
            if free >= 0
            else f"DOES NOT FIT, {size(-free)} too much"
        )
        rows += [
            ("  padding", f"{size(compiled['argument_bytes'] - sum(parts))} and counters"),
            ("  temporaries", size(compiled["temporary_bytes"])),
            ("  outputs", f"{size(compiled['output_bytes'])} that do not replace arguments"),
            *([("  program", size(compiled["code_bytes"]))] if compiled["code_bytes"] else []),
            ("  total", f"{size(total)} of {size(memory)}: {verdict}"),
        ]
        if compiled["device_kind"].startswith("TPU"):  # others count differently, or not all
            alive = f"{size(compiled['peak_bytes'])} alive at a time, on-chip buffers included"
            rows.append(("  at the peak", alive))
    return rows + _suggestion_rows(group)


def _suggestion_rows(group: Mapping[str, Any]) -> list[tuple[str, str]]:
    suggestion = group["suggestion"]
    if suggestion is None:
        return [] if group["fits"] else [("suggestion", "none: no change was found that would fit")]
    changes, environment = [], []
    for name, value in suggestion["changes"].items():
        if name in gpus.FRACTION_VARIABLES:
            environment.append(f"{name}={value} in the environment")
            continue
        value = value if isinstance(value, str) else json.dumps(value)  # no quotes within quotes
        changes.append(
            shlex.quote(f"--topology={value}" if name == "topology" else f"--gin.{name}={value}")
        )
    found = suggestion["compiled"]
    if found:
        compiled_in = f", compiled in {duration(found['seconds'])}" if changes else ""
        says = (
            f"fits when compiled: {size(suggestion['total_bytes'])} of "
            f"{size(found['memory_bytes'])}{compiled_in}"
        )
    else:
        says = f"ONLY AN ESTIMATE: about {size(suggestion['estimated_bytes'])}; not compiled"
    where = f"in the study's {group['kind']}_settings:"
    named = [where] if changes and group["kind"] != "train" else []
    return [("suggestion", " ".join([*environment, *named, *changes])), ("", says)]
