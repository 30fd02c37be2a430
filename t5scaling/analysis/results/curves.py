"""Curves: the points of one metric against D_p, everything else held fixed.

In a study's table a curve is one (model, pretraining data, task, finetuning pool, metric), measured
on the test split, with pretrain_tokens > 0 as x. Runs without pretraining are its baseline. Several
seeds are several points at the same x.

Which learning rate and which evaluated step count, `results.rates` decides; all of them stay in the
table.

How much seeds differ is a property of the finetuning: `seed_noise` among a curve's facts is the
spread among seeds at one place (of the same data and D_p), pooled over all data and the baseline of
its task, pool and metric.
"""

import csv
import io
import math
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from t5scaling import storage
from t5scaling.analysis.metrics import PARTS
from t5scaling.analysis.results import rates
from t5scaling.analysis.results.harvest import COLUMNS
from t5scaling.analysis.results.places import Place
from t5scaling.errors import UserError

_INTEGERS = frozenset(
    (
        "parameters",
        "pretrain_tokens",
        "finetune_tokens",
        "finetune_examples",
        "finetune_positions",
        "seed",
        "steps",
    )
)

T5X_UNIT = "token positions"  # of D_p where stock T5X's own directories are the study


@dataclass(frozen=True)
class Point:
    """One measurement. at_edge: its learning rate may not be the best (`rates.Chosen`). x2: a
    second size. error: the value's standard error. parts: tokens of each source, x being their sum,
    and then unique tokens of each, where the table has them. held_out: laws are to be checked on
    it, not fitted to it."""

    x: float
    value: float
    learning_rate: float | None = None
    seed: int | str | None = None
    step: int | None = None
    at_edge: bool = False
    run: str = ""
    x2: float | None = None
    error: float | None = None
    parts: tuple[float, ...] = ()
    held_out: bool = False


@dataclass(frozen=True)
class Curve:
    """place: what sets the curve apart from others of its metric. facts: what else is known.
    sources: names of the sources that `Point.parts` has, the target's first."""

    place: Place
    metric: str
    x_name: str
    points: tuple[Point, ...]
    baseline: tuple[Point, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    x2_name: str | None = None
    sources: tuple[str, ...] = ()

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(x (N,), or (2, N) with a second size, or (k, N) of several sources; values (N,)) of the
        points."""
        x = np.array([p.x for p in self.points], float)
        if self.sources:
            x = np.array([p.parts for p in self.points], float).T
        elif self.x2_name:
            x = np.array([x, [p.x2 for p in self.points]], float)
        return x, np.array([p.value for p in self.points], float)

    @property
    def errors(self) -> np.ndarray | None:
        """Standard errors of the points' values, (N,); None unless each point has one."""
        return _all_known([p.error for p in self.points])

    @property
    def seeds(self) -> np.ndarray | None:
        """The points' seeds, (N,); None unless each point has one."""
        return _all_known([p.seed for p in self.points])

    @property
    def measured(self) -> tuple[np.ndarray, ...]:
        """(x, values) as in `arrays`, with the values' standard errors where all are known."""
        return self.arrays if self.errors is None else (*self.arrays, self.errors)

    @property
    def unit(self) -> str:
        """Of D_p."""
        return self.facts.get("unit", "text tokens")

    @property
    def label(self) -> str:
        return self.place.label or self.metric

    @property
    def baseline_value(self) -> float | None:
        """Mean over seeds; None if there is no run without pretraining."""
        if not self.baseline:
            return None
        return math.fsum(p.value for p in self.baseline) / len(self.baseline)


def _all_known(values: Sequence[Any]) -> np.ndarray | None:
    return None if None in values else np.array(values)


def read_results(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a results.csv with numbers as numbers; alignment "" stays "".

    Raises UserError if a column is missing, a number is none, a cell is one too many or too few, or
    two rows contradict each other. A row that is there twice counts once.
    """
    text = storage.read_text(path)
    if text is None:
        raise UserError(f"{path}: no such file")
    return parse_results(text, path)


def parse_results(text: str, path: str | os.PathLike) -> list[dict[str, Any]]:
    """The same of a text; `path`: the file that errors name."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[dict[str, Any]] = []
    seen: dict[tuple, tuple[int, dict]] = {}
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path}: no column {missing[0]!r}; not a table of results")
        for number, row in enumerate(reader, 2):
            _numbers_of(row, f"{path}, line {number}")
            place = tuple(row[c] for c in ("run", "steps", "split", "task", "metric"))
            first, before = seen.setdefault(place, (number, row))
            if first == number:
                rows.append(row)
            elif repr(before) != repr(row):
                column = next(c for c in row if repr(before[c]) != repr(row[c]))
                raise UserError(
                    f"{path}: lines {first} and {number} are both {row['metric']} of "
                    f"{row['split']} of {row['run']} at step {row['steps']}, with {column} = "
                    f"{before[column]!r} and {row[column]!r}"
                )
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not CSV ({error})") from None
    return rows


def _numbers_of(row: dict[str, Any], where: str) -> None:
    """Makes numbers of a row's texts."""
    if None in row or None in row.values():
        raise UserError(f"{where}: expected {len(COLUMNS)} cells, as the header has")
    for column in (*_INTEGERS, "learning_rate", "value"):
        if column == "learning_rate" and not row[column]:
            row[column] = None  # unknown, as stock T5X's may be
            continue
        convert = int if column in _INTEGERS else float
        try:
            row[column] = convert(row[column])
        except ValueError:
            raise UserError(f"{where}: {column} = {row[column][:40]!r} is not a number") from None
    try:
        float(row["alignment"] or 0)
    except ValueError:
        raise UserError(f"{where}: alignment = {row['alignment'][:40]!r} is not a number") from None


def curves_of(
    rows: Sequence[Mapping[str, Any]], split: str | None = None, *, parts: bool = False
) -> list[Curve]:
    """The curves of a table of results, sorted. Metrics that are not finite are left out.

    split: None for "test", or, of a metric that stock T5X never measured there, for where it did.
    parts: whether what BLEU is made of (metrics.PARTS) has curves too; no law is for those.

    Raises UserError if the rates of a point cannot be compared for want of a validation
    cross-entropy.
    """
    split_of, of_t5x = _splits(rows, split), _is_of_t5x(rows)
    curves = []
    for (model, task, examples), places in sorted(rates.by_place(rows).items()):
        among = rates.compared(places)
        counted = {
            place: rates.chosen(here, split_of, among) for place, here in sorted(places.items())
        }
        metrics = {one.row["metric"] for here in counted.values() for one in here}
        metrics = sorted(metrics if parts else metrics - PARTS.keys())
        for data in sorted({data for data, tokens in places if tokens}):
            for metric in metrics:
                on_curve = _pick(counted, metric, lambda d, tokens, data=data: tokens and d == data)
                if not on_curve:
                    continue
                first = on_curve[0].row
                curves.append(
                    Curve(
                        place=Place(model, data, task, examples),
                        metric=metric,
                        x_name="pretrain_tokens",
                        points=tuple(map(_point, on_curve)),
                        baseline=tuple(
                            map(_point, _pick(counted, metric, lambda d, tokens: not tokens))
                        ),
                        facts={
                            "study": first["study"],
                            "split": first["split"],
                            **({"unit": T5X_UNIT} if of_t5x else {}),
                            "parameters": first["parameters"],
                            "alignment": float(first["alignment"]) if first["alignment"] else None,
                            "finetune_tokens": first["finetune_tokens"],
                            "finetune_positions": first["finetune_positions"],
                            "metric_signature": first["metric_signature"],
                            "learning_rates": sorted(rate for rate in among if rate is not None),
                        },
                    )
                )
    return _with_seed_noise(curves)


def _splits(rows: Sequence[Mapping[str, Any]], split: str | None) -> dict[str, str]:
    """Metric -> the split whose values are shown."""
    measured: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        measured[row["metric"]][row["split"]] += 1
    if split or not _is_of_t5x(rows):
        return dict.fromkeys(measured, split or "test")
    return {
        metric: max(splits, key=lambda name: (rates.whole(name) == "test", splits[name], name))
        for metric, splits in measured.items()
    }


def _is_of_t5x(rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(row["metric_signature"].startswith("T5X ") for row in rows)


def _with_seed_noise(curves: Sequence[Curve]) -> list[Curve]:
    """Adds (standard deviation, degrees of freedom) to the facts of curves with seeds to tell."""
    places: dict[tuple, dict[tuple, list[float]]] = defaultdict(lambda: defaultdict(list))

    def group(curve: Curve) -> tuple:
        return curve.place.beside_data, curve.metric

    for curve in curves:
        here = places[group(curve)]
        for p in curve.points:
            here[curve.place.data, p.x].append(p.value)
        here["", 0] = [p.value for p in curve.baseline]  # the same for all data
    found = []
    for curve in curves:
        repeated = [v for v in places[group(curve)].values() if len(v) > 1]
        df = sum(len(v) - 1 for v in repeated)
        if df:
            squares = math.fsum(float(np.var(v)) * len(v) for v in repeated)
            noise = (float(f"{math.sqrt(squares / df):.10g}"), df)
            curve = replace(curve, facts={**curve.facts, "seed_noise": noise})
        found.append(curve)
    return found


def _pick(counted: Mapping[tuple, list[rates.Chosen]], metric: str, wanted) -> list[rates.Chosen]:
    return [
        one
        for (data, tokens), here in counted.items()
        if wanted(data, tokens)
        for one in here
        if one.row["metric"] == metric and math.isfinite(one.row["value"])
    ]


def _point(one: rates.Chosen) -> Point:
    row = one.row
    return Point(
        x=row["pretrain_tokens"],
        value=row["value"],
        learning_rate=row["learning_rate"],
        seed=row["seed"],
        step=row["steps"],
        at_edge=one.at_edge,
        run=row["run"],
    )


def size_name(curve: Curve) -> str:
    """What the sizes are called in sentences: D_p in a study, else their column."""
    return "D_p" if curve.x_name == "pretrain_tokens" else curve.x_name
