"""A study: the grid of pretraining data, D_p, tasks, D_f, learning rates and seeds.

Each mixture is pretrained once, with a checkpoint at every D_p; every point of the grid is one
finetuning from such a checkpoint. D_p = 0 is the baseline that was never pretrained. What the grid
becomes on given data: `expand`.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard

from t5scaling import storage, values
from t5scaling.errors import UserError

Kind = Literal["pretrain", "finetune"]
LONGEST_NAME = 180  # bytes: a file system takes 255, and names of files have endings


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pool(value: object) -> bool:
    if isinstance(value, str):
        share = value.removesuffix("%").strip()
        plain = value.endswith("%") and re.fullmatch(r"\d+(\.\d+)?", share)
        return bool(plain) and 0 < float(share) <= 100
    return value is None or (_is_whole(value) and value > 0)


_SIZES = ("pretrain_tokens", "pretrain_steps")
_RATE = ("a positive number", lambda v: _is_number(v) and 0 < v < math.inf)
_SIZE = ("a whole number, 0 for no pretraining", lambda v: _is_whole(v) and v >= 0)
# field -> what each of its values must be
_VALUES = (
    ("learning_rates", *_RATE),
    ("base_rates", *_RATE),
    ("pretrain_tokens", *_SIZE),
    ("pretrain_steps", *_SIZE),
    ("seeds", "a whole number from 0 to 2**32 - 1", lambda v: _is_whole(v) and 0 <= v < 2**32),
    ("finetune_pools", "a number of text tokens, a share such as '1%', or None", _is_pool),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid; or one part of a study that is several grids.

    Attributes:
        name: of the study, as in the results table; its parts share it.
        model_gin: gin file of the architecture; its file name is the model's name.
        pretrain_gin, finetune_gin: gin files of the two kinds of run.
        tasks_gin: gin files that define tasks, such as gin/tasks/own.gin; for all runs.
        pretrain_data: task or mixture -> its languages' shares, {"en": 0.5, "de": 0.5}.
        base_rates: base learning rates of pretraining to choose among, by the cross-entropy of the
            pretraining itself; then no task is finetuned. The best becomes BASE_LEARNING_RATE.
        pretrain_tokens: D_p, text tokens of pretraining; 0 for the baseline without any.
        pretrain_steps: D_p by the steps of pretraining, in the place of `pretrain_tokens`; the
            results tell of them in text tokens all the same.
        tasks: task -> (source, target) language of a translation, or one language.
        finetune_pools: D_f, sizes of the pools in text tokens (source and target together), or
            shares of the task's examples such as "1%"; None: all of them. A pool is a prefix of
            the examples, so the pools are nested.
        learning_rates: of finetuning; the analysis selects by validation cross-entropy.
        seeds: of finetuning: initialisation (at D_p = 0), dropout and the order of examples.
        pretrain_settings, finetune_settings: values of further macros of the two gin files.
        trainer_gin, trainer_settings: gin file of another trainer than ours, for all runs, and
            values of its macros; gin/executors/t5x.gin sets them.
        part: name of this part, if there are several.
        prefix: what the ids of its runs begin with; parts of different models need different ones.
        topology: devices that a dry run counts with, as for `plan`.
    """

    name: values.Name
    model_gin: values.Path
    pretrain_gin: values.Path
    pretrain_data: Mapping[str, Mapping[str, Annotated[float, values.Bounds(0, 1)]]]
    finetune_gin: str = ""
    tasks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    finetune_pools: Sequence[values.Positive | values.Name | None] = ()
    learning_rates: Sequence[values.PositiveNumber] = ()
    base_rates: Sequence[values.PositiveNumber] = ()
    pretrain_tokens: Sequence[values.NonNegative] = ()
    pretrain_steps: Sequence[values.NonNegative] = ()
    seeds: Sequence[values.Seed] = (0,)
    tasks_gin: Sequence[str] = ()
    pretrain_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trainer_gin: str = ""
    trainer_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: str = ""
    prefix: str = ""
    topology: str = "local"

    def __post_init__(self) -> None:
        name = f"study {self.name}{self.part and ' (' + self.part + ')'}"
        finetuning = ("finetune_gin", "tasks", "finetune_pools", "learning_rates")
        if self.base_rates and self.tasks:
            raise UserError(
                f"{name}: base_rates are compared without finetuning; leave out tasks, and give "
                "the best rate to another study as BASE_LEARNING_RATE"
            )
        for field in ("pretrain_data", *(() if self.base_rates else finetuning)):
            if not getattr(self, field):
                raise UserError(f"{name}: {field} is empty")
        if bool(self.pretrain_tokens) == bool(self.pretrain_steps):
            raise UserError(f"{name}: expected either pretrain_tokens or pretrain_steps")
        for field, wanted, holds in _VALUES:
            for value in getattr(self, field):
                if not holds(value):
                    raise UserError(f"{name}: {field} holds {value!r}; expected {wanted}")
        for field in ("learning_rates", "base_rates", "seeds", "finetune_pools", *_SIZES):
            values = list(getattr(self, field))
            if len(set(values)) != len(values) or (field == "seeds" and not values):
                raise UserError(f"{name}: {field}={values} is empty or repeats a value")
        for data, shares in self.pretrain_data.items():
            for language, share in shares.items():
                if not (_is_number(share) and 0 <= share <= 1):
                    raise UserError(
                        f"{name}: the share of {language} in {data} is {share!r}; expected a "
                        "number from 0 to 1"
                    )
            if abs(sum(shares.values()) - 1) > 1e-6:
                raise UserError(
                    f"{name}: the languages of {data} sum to {sum(shares.values())}, expected 1"
                )

    @property
    def model(self) -> str:
        """Name of the model: its file's path below `models/`, e.g. t5_1_1/small."""
        name = os.path.splitext(self.model_gin)[0].replace(os.sep, "/")
        return name.rpartition("models/")[2] if "models/" in name else os.path.basename(name)

    @property
    def sizes(self) -> Sequence[int]:
        """D_p as asked for, in text tokens or in steps."""
        return self.pretrain_tokens or self.pretrain_steps

    def gin_files(self, kind: Kind) -> tuple[str, ...]:
        own = self.pretrain_gin if kind == "pretrain" else self.finetune_gin
        trainer = (self.trainer_gin,) if self.trainer_gin else ()
        return (self.model_gin, own, *self.tasks_gin, *trainer)

    def settings(self, kind: Kind) -> Mapping[str, Any]:
        own = self.pretrain_settings if kind == "pretrain" else self.finetune_settings
        return {**self.trainer_settings, **own}

    def size_label(self, size: int) -> str:
        return short(size) if self.pretrain_tokens or not size else f"{short(size)}steps"


@dataclasses.dataclass(frozen=True)
class GridPoint:
    """One run as the grid names it, before anything is known of the data.

    Attributes:
        id: readable and unique; also its path under `<study_dir>/runs`.
        study: the part that asks for it, the first one if several do.
        data: of the pretraining; None for the baseline.
        sizes: D_p as asked for: of a pretraining all above 0, of a finetuning the one it starts at.
        needs: ids of the runs whose checkpoints it starts from.
        task, pool, seed: of a finetuning.
        learning_rate: of a finetuning, or the base rate of a pretraining where several are
            compared; 0 for that of its settings.
    """

    id: str
    kind: Kind
    study: Study
    data: str | None
    sizes: tuple[int, ...]
    needs: tuple[str, ...] = ()
    task: str = ""
    pool: int | str | None = None
    learning_rate: float = 0.0
    seed: int = 0

    @property
    def dataset(self) -> str:
        """The task or mixture that it trains on."""
        return self.task or self.data or ""


def parts_of(study: Study | Sequence[Study]) -> tuple[Study, ...]:
    """The parts of a study, which may be one grid. Raises UserError if their names differ."""
    parts = (study,) if isinstance(study, Study) else tuple(study)
    if not parts:
        raise UserError("a study without parts")
    names = sorted({part.name for part in parts})
    if len(names) > 1:
        raise UserError(f"the parts of a study share its name, but these are {', '.join(names)}")
    return parts


def points(study: Study | Sequence[Study]) -> list[GridPoint]:
    """Every run of the study once, each after the runs that it needs.

    Raises UserError if two parts describe a run of one id differently, or if an id is none that
    can be a path below the study's folder.
    """
    pretrains: dict[str, GridPoint] = {}
    finetunes: dict[str, GridPoint] = {}
    for part in parts_of(study):
        for data in part.pretrain_data:
            pretrain = _id(part, "pretrain", short_data(data))
            for rate in part.base_rates or (0.0,):
                _add_pretrain(
                    pretrains, part, data, f"{pretrain}/base={rate:g}" if rate else pretrain, rate
                )
            for point in _finetunes(part, data, pretrain):
                _refuse_other(finetunes.setdefault(point.id, point), point)
    for run_id in (*pretrains, *finetunes):
        _check_id(run_id, parts_of(study)[0].name)
    return [*pretrains.values(), *finetunes.values()]


def _add_pretrain(
    pretrains: dict[str, GridPoint], part: Study, data: str, name: str, base_rate: float
) -> None:
    """Adds a part's sizes to those of the parts that share its pretraining."""
    sizes = {size for size in part.sizes if size}
    if not sizes:
        return
    point = GridPoint(name, "pretrain", part, data, tuple(sorted(sizes)), learning_rate=base_rate)
    if name in pretrains:
        _refuse_other(pretrains[name], point)
        sizes.update(pretrains[name].sizes)
        point = dataclasses.replace(pretrains[name], sizes=tuple(sorted(sizes)))
    pretrains[name] = point


def _finetunes(part: Study, data: str, pretrain: str) -> list[GridPoint]:
    found = []
    for task in part.tasks:
        for size in part.sizes:
            # Without pretraining every mixture is the same baseline.
            start = (data, short_data(data), (pretrain,)) if size else (None, "none", ())
            for pool in part.finetune_pools:
                for learning_rate in part.learning_rates:
                    for seed in part.seeds:
                        name = _id(
                            part,
                            "finetune",
                            start[1],
                            f"dp={part.size_label(size)}",
                            task,
                            f"df={pool_label(pool)}",
                            f"lr={learning_rate:g}",
                            f"seed={seed}",
                        )
                        found.append(
                            GridPoint(
                                name, "finetune", part, start[0], (size,), start[2],
                                task, pool, learning_rate, seed,
                            )
                        )  # fmt: skip
    return found


def _id(part: Study, *names: str) -> str:
    return "/".join([part.prefix, *names] if part.prefix else names)


def _check_id(run_id: str, study: str) -> None:
    """Raises UserError for an id that would lie outside the study or that cannot be the name of a
    folder."""
    for name in run_id.split("/"):
        wrong = (
            "it would lie outside the study's folder" if name in ("", ".", "..") else
            f"{len(name.encode())} bytes, more than the {LONGEST_NAME} that a folder's name can "
            "have here" if len(name.encode()) > LONGEST_NAME else
            "not text on one line" if not name.isprintable() else
            storage.unfit(name)
        )  # fmt: skip
        if wrong:
            shown = name if len(name) < 60 else f"{name[:60]}..."
            raise UserError(
                f"study {study}: {shown!r} in the id of a run: {wrong}; choose another prefix, or "
                "another name of the task or data"
            )


def _refuse_other(one: GridPoint, other: GridPoint) -> None:
    """Raises UserError if two parts mean different runs by one id."""
    kind = one.kind
    for what, a, b in (
        ("gin files", one.study.gin_files(kind), other.study.gin_files(kind)),
        ("settings", dict(one.study.settings(kind)), dict(other.study.settings(kind))),
        ("data", one.data, other.data),
        ("learning rates", one.learning_rate, other.learning_rate),
        ("units of D_p", bool(one.study.pretrain_steps), bool(other.study.pretrain_steps)),
    ):
        if a != b:
            raise UserError(
                f"study {one.study.name}: parts {one.study.part!r} and {other.study.part!r} both "
                f"have the run {one.id}, with different {what} ({a} and {b}); give one a prefix"
            )


def short(tokens: int | str) -> str:
    """1600000 -> "1.6M", "0.2%" -> "0.2pct"."""
    if isinstance(tokens, str):
        return tokens.replace("%", "pct").replace(" ", "")
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        text = f"{tokens / size:.4g}"
        if tokens >= size and round(float(text) * size) == tokens:  # ids tell sizes apart
            return text + unit
    return str(tokens)


def pool_label(pool: int | str | None) -> str:
    return "all" if pool is None else short(pool)


def short_data(task: str) -> str:
    """techdoc_span_en50_de50 -> en50_de50; other names stay whole."""
    return task.removeprefix("techdoc_span_").removeprefix("mc4_span_")
