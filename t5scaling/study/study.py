"""A study: the grid of pretraining data, D_p, tasks, D_f, learning rates and seeds -> runs.

Each mixture is pretrained once, with a checkpoint at every D_p; every point of the grid is one
finetuning from such a checkpoint. D_p = 0 is the baseline that was never pretrained.

A run is gin files plus values of their macros, so `run.py train` with the same files and values
is the same run on any machine.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5scaling import __version__, config
from t5scaling.data import budget
from t5scaling.data.examples import DataSpec, Examples, find_all_examples
from t5scaling.data.pool import pool_rows
from t5scaling.errors import UserError
from t5scaling.model import network
from t5scaling.training import checkpoint, loop


@dataclasses.dataclass(frozen=True)
class Study:
    """The grid.

    Attributes:
        name: of the study, as in the results table.
        model_gin: gin file of the architecture; its file name is the model's name.
        pretrain_gin, finetune_gin: gin files of the two kinds of run.
        tasks_gin: gin files that define tasks, such as gin/tasks/own.gin; for all runs.
        pretrain_data: task or mixture -> its languages' shares, {"en": 0.5, "de": 0.5}.
        pretrain_tokens: D_p, text tokens of pretraining; 0 for the baseline without any.
        tasks: translation task -> (source, target) language.
        finetune_pools: D_f, sizes of the pools in text tokens (source and target together), or
            shares of the task's examples such as "1%"; None: all of them. A pool is a prefix of
            the examples, so the pools are nested.
        learning_rates: of finetuning; the analysis selects by validation cross-entropy.
        seeds: of finetuning: initialisation (at D_p = 0), dropout and the order of examples.
        pretrain_settings, finetune_settings: values of further macros of the two gin files.
    """

    name: str
    model_gin: str
    pretrain_gin: str
    finetune_gin: str
    pretrain_data: Mapping[str, Mapping[str, float]]
    pretrain_tokens: Sequence[int]
    tasks: Mapping[str, Sequence[str]]
    finetune_pools: Sequence[int | str | None]
    learning_rates: Sequence[float]
    seeds: Sequence[int] = (0,)
    tasks_gin: Sequence[str] = ()
    pretrain_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for field in ("pretrain_data", "pretrain_tokens", "tasks", "finetune_pools"):
            if not getattr(self, field):
                raise UserError(f"study {self.name}: {field} is empty")
        for field in ("learning_rates", "seeds"):
            values = list(getattr(self, field))
            if not values or len(set(values)) != len(values):
                raise UserError(f"study {self.name}: {field}={values} is empty or repeats a value")
        for data, shares in self.pretrain_data.items():
            if abs(sum(shares.values()) - 1) > 1e-6:
                raise UserError(
                    f"study {self.name}: the languages of {data} sum to {sum(shares.values())}, "
                    "expected 1"
                )

    @property
    def model(self) -> str:
        """Name of the model: its file's path below `models/`, e.g. t5_1_1/small."""
        name = os.path.splitext(self.model_gin)[0].replace(os.sep, "/")
        return name.rpartition("models/")[2] if "models/" in name else os.path.basename(name)


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


def expand(study: Study, study_dir: str, examples_root: str, beam: str | None = None) -> list[Run]:
    """All runs of the study, each after the runs that it needs; materialises missing examples.

    `beam`: pipeline options, to materialise on Apache Beam.
    Raises UserError for a D_p or D_f larger than the data and for two D_p that are one step.
    """
    plans = [(_Kind(study, "pretrain", data, examples_root), data) for data in study.pretrain_data]
    finetunes = [(_Kind(study, "finetune", task, examples_root), task) for task in study.tasks]
    # All examples at once and first: one child process, and every mistake before the first step.
    specs = {_key(spec): spec for kind, _ in plans + finetunes for spec in kind.specs}
    opened = find_all_examples(list(specs.values()), examples_root, beam)
    examples = dict(zip(specs, opened, strict=True))

    pretrains, points = [], []
    for kind, data in plans:
        found = examples[_key(kind.arguments["dataset"])]
        steps = _checkpoint_steps(study, kind, found)
        run = _pretrain(study, kind, data, steps, found, study_dir)
        if run:
            pretrains.append(run)
        points += [(data, tokens, step, run) for tokens, step in steps.items()]
    runs = []
    for kind, task in finetunes:
        found = examples[_key(kind.arguments["dataset"])]
        baseline_made = False
        for data, tokens, step, pretrain in points:
            if not tokens and baseline_made:
                continue  # without pretraining every mixture is the same baseline
            baseline_made |= not tokens
            for size in study.finetune_pools:
                pool = _Pool(found, size)
                for learning_rate in study.learning_rates:
                    for seed in study.seeds:
                        start = (data, tokens, step, pretrain) if tokens else None
                        runs.append(
                            _finetune(
                                study, kind, task, start, pool, learning_rate, seed, study_dir
                            )
                        )
    return pretrains + runs


def data_specs(arguments: Mapping[str, Any]) -> list[DataSpec]:
    """What a call of `loop.train` with these arguments reads: its dataset and its test sets."""
    return [
        arguments["dataset"],
        *(evaluator.dataset for evaluator in arguments.get("evaluators", ())),
    ]


class _Kind:
    """The gin files and macros of one kind of run on one dataset, and what they amount to."""

    def __init__(self, study: Study, kind: str, dataset: str, examples_root: str):
        gin_file = study.pretrain_gin if kind == "pretrain" else study.finetune_gin
        chosen = study.pretrain_settings if kind == "pretrain" else study.finetune_settings
        self.gin_files = (study.model_gin, gin_file, *study.tasks_gin)
        self.bindings = {
            **chosen,
            "MIXTURE_OR_TASK_NAME": dataset,
            "EXAMPLES_ROOT": examples_root,
        }
        config.load(self.gin_files, self.bindings)
        self.arguments = config.bindings_of(loop.train)
        self.specs = data_specs(self.arguments)
        self.batch_size: int = self.arguments["batch_size"]
        self.parameters = network.count_parameters(self.arguments["model"])
        self.step_positions = self.batch_size * sum(self.specs[0].feature_lengths.values())


class _Pool:
    """The first examples of a finetuning set: one D_f."""

    def __init__(self, examples: Examples, size: int | str | None):
        self.asked = size
        self.label = "all" if size is None else short(size)
        self.rows = pool_rows(examples, size)
        self.tokens = examples.tokens(self.rows)
        self.examples = examples.tokens(self.rows, "segments")


def _checkpoint_steps(study: Study, kind: _Kind, examples: Examples) -> dict[int, int]:
    """D_p asked for -> the first step after which at least so many text tokens were seen."""
    steps: dict[int, int] = {}
    for tokens in study.pretrain_tokens:
        needed = budget.examples_for_tokens(examples, tokens)
        step = -(-needed // kind.batch_size)
        if step * kind.batch_size > len(examples):
            raise UserError(
                f"study {study.name}: D_p={tokens:,} needs {step} whole batches of "
                f"{kind.batch_size}, more than the {len(examples):,} examples of "
                f"{examples.spec.task}; it holds {examples.tokens(len(examples)):,} text tokens"
            )
        for other, other_step in steps.items():
            if other_step == step:
                raise UserError(
                    f"study {study.name}: D_p={other:,} and D_p={tokens:,} are both step {step} "
                    f"at batch size {kind.batch_size}; choose values further apart"
                )
        steps[tokens] = step
    return steps


def _pretrain(
    study: Study,
    kind: _Kind,
    data: str,
    steps: Mapping[int, int],
    examples: Examples,
    study_dir: str,
) -> Run | None:
    last = max(steps.values())
    if not last:
        return None
    run_id = f"pretrain/{short_data(data)}"
    record = {
        "study": study.name,
        "id": run_id,
        "kind": "pretrain",
        "version": __version__,
        "model": study.model,
        "parameters": kind.parameters,
        "pretrain_data": data,
        "pretrain_languages": dict(study.pretrain_data[data]),
        "checkpoints": {
            str(step): examples.tokens(step * kind.batch_size) for step in steps.values() if step
        },
        "seed": kind.arguments.get("seed", 0),
        "steps": last,
    }
    bindings = {
        **kind.bindings,
        "MODEL_DIR": run_directory_of(study_dir, run_id),
        "TRAIN_STEPS": last,
        "CHECKPOINT_STEPS": [step for step in steps.values() if step],
    }
    return Run(run_id, kind.gin_files, bindings, (), record, last * kind.step_positions)


def _finetune(
    study: Study,
    kind: _Kind,
    task: str,
    start: tuple[str, int, int, Run] | None,
    pool: _Pool,
    learning_rate: float,
    seed: int,
    study_dir: str,
) -> Run:
    data, asked, step, pretrain = start or (None, 0, 0, None)
    initial, needs, tokens = None, (), 0
    if pretrain is not None:
        needs = (pretrain.id,)
        tokens = pretrain.record["checkpoints"][str(step)]
        initial = os.path.join(
            pretrain.bindings["MODEL_DIR"], "checkpoints", f"{checkpoint.PREFIX}_{step}"
        )
    run_id = "/".join(
        [
            "finetune",
            short_data(data) if data else "none",
            f"dp={short(asked)}",
            task,
            f"df={pool.label}",
            f"lr={learning_rate:g}",
            f"seed={seed}",
        ]
    )
    steps = kind.arguments["train_steps"]
    lengths = kind.specs[0].feature_lengths
    record = {
        "study": study.name,
        "id": run_id,
        "kind": "finetune",
        "version": __version__,
        "model": study.model,
        "parameters": kind.parameters,
        "pretrain_data": data,
        "pretrain_languages": dict(study.pretrain_data[data]) if data else {},
        "pretrain_tokens": tokens,
        "pretrain_steps": step,
        "task": task,
        "languages": list(study.tasks[task]),
        "finetune_pool": pool.label,
        "finetune_tokens": pool.tokens,
        "finetune_examples": pool.examples,
        "finetune_rows": pool.rows,
        "finetune_positions": pool.rows * sum(lengths.values()),
        "learning_rate": learning_rate,
        "learning_rates": list(study.learning_rates),
        "seed": seed,
        "batch_size": kind.batch_size,
        "steps": steps,
    }
    bindings = {
        **kind.bindings,
        "MODEL_DIR": run_directory_of(study_dir, run_id),
        "INITIAL_CHECKPOINT_PATH": initial,
        "POOL": pool.asked,
        "LEARNING_RATE": learning_rate,
        "SEED": seed,
    }
    return Run(run_id, kind.gin_files, bindings, needs, record, steps * kind.step_positions)


def run_directory_of(study_dir: str, run_id: str) -> str:
    return os.path.join(study_dir, "runs", *run_id.split("/"))


def short(tokens: int | str) -> str:
    """1600000 -> "1.6M", "0.2%" -> "0.2pct"."""
    if isinstance(tokens, str):
        return tokens.replace("%", "pct").replace(" ", "")
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= size:
            return f"{tokens / size:.4g}{unit}"
    return str(tokens)


def short_data(task: str) -> str:
    """techdoc_span_en50_de50 -> en50_de50; other names stay whole."""
    return task.removeprefix("techdoc_span_")


def _key(spec: DataSpec) -> str:
    return repr(spec.to_json())
