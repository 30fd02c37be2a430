"""From the grid of a study to its runs, on the data that is there.

A run is gin files plus values of their macros, so `run.py train` with the same files and values
is the same run on any machine.
"""

import dataclasses
import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5scaling import __version__, config, records
from t5scaling.data import budget
from t5scaling.data.examples import DataSpec, Examples, find_all_examples
from t5scaling.data.pool import pool_rows
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.study.study import GridPoint, Kind, Study, points, pool_label
from t5scaling.training import checkpoint, loop, run_directory


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        id: readable and unique; also its path under `<study_dir>/runs`.
        gin_files, bindings: what `run.py train` needs to do it.
        needs: ids of the runs whose checkpoints it starts from.
        record: what run.json holds: the run's place in the grid.
        positions: token positions that it computes, the measure of its share of the work.
    """

    id: str
    gin_files: tuple[str, ...]
    bindings: Mapping[str, Any]
    needs: tuple[str, ...]
    record: Mapping[str, Any]
    positions: int

    @property
    def directory(self) -> str:
        return self.bindings["MODEL_DIR"]


def expand(
    study: Study | Sequence[Study], study_dir: str, examples_root: str, beam: str | None = None
) -> list[Run]:
    """All runs of the study, each after the runs that it needs; materialises missing examples.

    `beam`: pipeline options, to materialise on Apache Beam.
    Raises UserError for a D_p or D_f larger than the data and for two D_p that are one step.
    """
    grid = points(study)
    kinds: dict[str, _Family] = {}
    for point in grid:
        key = _key(point)
        if key not in kinds:
            kinds[key] = _Family(point, examples_root)
    # All examples at once and first: one child process, and every mistake before the first step.
    specs = {repr(spec.to_json()): spec for kind in kinds.values() for spec in kind.specs}
    opened = find_all_examples(list(specs.values()), examples_root, beam)
    examples = dict(zip(specs, opened, strict=True))
    for kind in kinds.values():
        kind.examples = examples[repr(kind.specs[0].to_json())]

    runs: dict[str, Run] = {}
    for point in grid:
        kind = kinds[_key(point)]
        make = _pretrain if point.kind == "pretrain" else _finetune
        runs[point.id] = make(point, kind, study_dir, runs)
    return list(runs.values())


def data_specs(arguments: Mapping[str, Any]) -> list[DataSpec]:
    """What a call of `loop.train` with these arguments reads: its dataset and its test sets."""
    return [
        arguments["dataset"],
        *(evaluator.dataset for evaluator in arguments.get("evaluators", ())),
    ]


def train_arguments(
    study: Study, kind: Kind, dataset: str, examples_root: str
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """What runs of one kind on one dataset share: macros, arguments of `loop.train`, gin text."""
    bindings = {
        **study.settings(kind),
        "MIXTURE_OR_TASK_NAME": dataset,
        "EXAMPLES_ROOT": examples_root,
    }
    text = config.load(study.gin_files(kind), bindings)
    return bindings, config.bindings_of(loop.train), text


def _key(point: GridPoint) -> str:
    study, kind = point.study, point.kind
    settings = sorted(study.settings(kind).items(), key=lambda item: item[0])
    return repr((kind, point.dataset, study.gin_files(kind), settings))


class _Family:
    """What runs of one kind on one dataset have in common. `examples` is set once they are open."""

    examples: Examples

    def __init__(self, point: GridPoint, examples_root: str):
        self.gin_files = point.study.gin_files(point.kind)
        self.bindings, self.arguments, text = train_arguments(
            point.study, point.kind, point.dataset, examples_root
        )
        self.settings = "\n".join(run_directory.settings_of(text))
        self.trainer = config.macro("TRAINER")  # None: ours
        self.specs = data_specs(self.arguments)
        self.batch_size: int = self.arguments["batch_size"]
        self.parameters = network.count_parameters(self.arguments["model"])
        self.step_positions = self.batch_size * sum(self.specs[0].feature_lengths.values())
        self._pools: dict[int | str | None, tuple[int, int, int]] = {}

    def pool(self, size: int | str | None) -> tuple[int, int, int]:
        """A D_f -> its (rows, text tokens, examples): the first of the finetuning set."""
        if size not in self._pools:
            rows = pool_rows(self.examples, size)
            tokens, segments = (self.examples.tokens(rows, f) for f in ("text", "segments"))
            self._pools[size] = rows, tokens, segments
        return self._pools[size]


def text_stream(examples: Examples, arguments: Mapping[str, Any]) -> budget.Stream:
    """The text that a run of `loop.train` with these arguments reads from these examples."""
    defaults = inspect.signature(loop.train).parameters

    def value(name: str) -> Any:
        return arguments.get(name, defaults[name].default)

    return budget.Stream(
        examples, passes=value("max_epochs"), seed=value("seed"), shuffle=value("shuffle")
    )


def checkpoint_steps(
    point: GridPoint, stream: budget.Stream | None, batch_size: int
) -> dict[int, int]:
    """D_p asked for -> the first step after which at least so much text was seen.

    `stream`: None if the examples are not there, which D_p in steps does not need. Raises UserError
    for more than may be read and for two D_p that are one step.
    """
    study = point.study
    steps: dict[int, int] = {}
    for size in point.sizes:
        asked = f"D_p={size:,}{' steps' if study.pretrain_steps else ''}"
        if study.pretrain_steps or stream is None:
            step = size
        else:
            step = -(-stream.examples_for(size) // batch_size)
        if stream is not None and step * batch_size > stream.length:
            raise UserError(
                f"study {study.name}: {asked} needs {step} whole batches of "
                f"{batch_size}, more than the {stream.length:,} examples that may be read of "
                f"{stream.examples.spec.task}, which holds {stream.in_one_pass:,} text tokens; "
                "MAX_EPOCHS allows more passes"
            )
        for other, other_step in steps.items():
            if other_step == step:
                raise UserError(
                    f"study {study.name}: D_p={other:,} and {asked} are both step {step} "
                    f"at batch size {batch_size}; choose values further apart"
                )
        steps[size] = step
    return steps


def _pretrain(point: GridPoint, family: _Family, study_dir: str, _: Mapping[str, Run]) -> Run:
    study = point.study
    assert point.data is not None  # only a baseline is without, and it is not pretrained
    stream = text_stream(family.examples, family.arguments)
    steps = checkpoint_steps(point, stream, family.batch_size)
    last = max(steps.values())
    record = {
        **_common(point, family),
        "pretrain_data": point.data,
        "pretrain_languages": dict(study.pretrain_data[point.data]),
        "checkpoints": {
            str(step): stream.tokens(step * family.batch_size) for step in steps.values()
        },
        "steps_of": {str(size): step for size, step in steps.items()},
        "unique_tokens": stream.in_one_pass,
        "seed": family.arguments.get("seed", 0),
        "steps": last,
    }
    bindings = {
        **family.bindings,
        "MODEL_DIR": records.run_folder(study_dir, point.id),
        "TRAIN_STEPS": last,
        "CHECKPOINT_STEPS": list(steps.values()),
    }
    if point.learning_rate:
        record["base_rate"] = bindings["BASE_LEARNING_RATE"] = point.learning_rate
        record["base_rates"] = list(study.base_rates)
    record["settings"] = _digest(family, bindings)
    positions = last * family.step_positions
    return Run(point.id, family.gin_files, bindings, (), record, positions)


def _finetune(point: GridPoint, family: _Family, study_dir: str, runs: Mapping[str, Run]) -> Run:
    study, initial, step, tokens, repeated = point.study, None, 0, 0, {}
    if point.needs:
        pretrain = runs[point.needs[0]]
        step = pretrain.record["steps_of"][str(point.sizes[0])]
        tokens = pretrain.record["checkpoints"][str(step)]
        if tokens > pretrain.record["unique_tokens"]:
            repeated = {"pretrain_unique_tokens": pretrain.record["unique_tokens"]}
        initial = os.path.join(
            pretrain.directory, records.CHECKPOINTS, f"{checkpoint.PREFIX}_{step}"
        )
    rows, pool_tokens, pool_examples = family.pool(point.pool)
    record = {
        **_common(point, family),
        "pretrain_data": point.data,
        "pretrain_languages": dict(study.pretrain_data[point.data]) if point.data else {},
        "pretrain_tokens": tokens,
        "pretrain_steps": step,
        **repeated,
        "task": point.task,
        "languages": list(study.tasks[point.task]),
        "finetune_pool": pool_label(point.pool),
        "finetune_tokens": pool_tokens,
        "finetune_examples": pool_examples,
        "finetune_rows": rows,
        "finetune_positions": rows * sum(family.specs[0].feature_lengths.values()),
        "learning_rate": point.learning_rate,
        "seed": point.seed,
        "batch_size": family.batch_size,
        "steps": family.arguments["train_steps"],
    }
    bindings = {
        **family.bindings,
        "MODEL_DIR": records.run_folder(study_dir, point.id),
        "INITIAL_CHECKPOINT_PATH": initial,
        "POOL": point.pool,
        "LEARNING_RATE": point.learning_rate,
        "SEED": point.seed,
    }
    record["settings"] = _digest(family, bindings)
    positions = record["steps"] * family.step_positions
    return Run(point.id, family.gin_files, bindings, point.needs, record, positions)


def _digest(family: _Family, bindings: Mapping[str, Any]) -> str:
    """A hash of all settings that decide what the run computes; cheaper to compare than its gin
    text."""
    own = [f"{k} = {bindings[k]!r}" for k in sorted(bindings) if k not in run_directory.FREE_MACROS]
    return hashlib.sha256("\n".join([family.settings, *own]).encode()).hexdigest()


def _common(point: GridPoint, family: _Family) -> dict[str, Any]:
    return {
        "study": point.study.name,
        "id": point.id,
        "kind": point.kind,
        "needs": list(point.needs),
        "version": __version__,
        "model": point.study.model,
        "parameters": family.parameters,
        **({"trainer": family.trainer} if family.trainer else {}),
    }
