"""Which learning rate, and which evaluated step, of the runs at one place count.

Both are decided by validation cross-entropy alone. Cross-entropy and other losses count at the step
where a run's validation cross-entropy is lowest. Scores count at the last step of all runs, as in
the paper, which finetunes for 300: they often rise long after cross-entropy has turned, which after
more pretraining is earlier, so that at that step a score would fall with D_p for being finetuned
less.

At each place, a (pretraining data, D_p) of one model, task and pool, the rate counts with the
lowest mean, at these steps, over the seeds that all rates were tried with (Isik et al., arXiv
2402.04177, take the best of 5 rates). Places are compared with each other, so only rates that more
than half of them tried are chosen among: a rate that a few were tried with in addition would make
those better for no other reason. It still says whether the others were the best (`Uneven`).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from t5scaling.analysis.metrics import LOSS, better
from t5scaling.errors import UserError

Row = Mapping[str, Any]
Rate = float | None  # unknown, as stock T5X's may be
AT_EDGE = (
    "the smallest or largest learning rate tried there, or one that does not count was better: "
    "possibly under-tuned"
)


@dataclass(frozen=True)
class Chosen:
    """A row that counts. at_edge: its rate is the smallest or largest of several tried at its
    place, or one of those that are not compared was better: it may be under-tuned."""

    row: Row
    at_edge: bool


@dataclass(frozen=True)
class Further:
    """A rate that was tried at a few places, beside those that are compared. better: at how many of
    them it is better than those, and most: by how many nats of validation cross-entropy at most."""

    rate: float
    places: int
    better: int
    most: float


@dataclass(frozen=True)
class Uneven:
    """A pool whose places were not all tried with the same rates.

    Attributes:
        model, task, pool: which.
        places: how many there are.
        compared: the rates that are chosen among; a place where none of them was tried has the best
            of its own.
        lacking: rate of these -> (places without pretraining, places with it) that were not tried
            with it.
        further: rates that are left out.
    """

    model: str
    task: str
    pool: int
    places: int
    compared: tuple[float, ...]
    lacking: Mapping[float, tuple[int, int]]
    further: tuple[Further, ...]


def by_place(rows: Iterable[Row]) -> dict[tuple, dict[tuple, list[Row]]]:
    """(model, task, finetuning examples) -> (pretraining data, D_p) -> rows."""
    groups: dict[tuple, dict[tuple, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        pool = (row["model"], row["task"], row["finetune_examples"])
        groups[pool][row["pretrain_data"], row["pretrain_tokens"]].append(row)
    return groups


def compared(places: Mapping[tuple, Sequence[Row]]) -> set[Rate]:
    """The rates that more than half of the places of a pool were tried with; may be empty."""
    counts = Counter(rate for rows in places.values() for rate in _tried(rows))
    return {rate for rate, count in counts.items() if 2 * count > len(places)}


def chosen(rows: Sequence[Row], split_of: Mapping[str, str], rates: Set[Rate]) -> list[Chosen]:
    """Of all rows at one place those that count, of each metric those of its split.

    rates: to choose among; if none of them was tried here, any that was.

    Raises UserError if the rates cannot be compared for want of a validation cross-entropy.
    """
    validation = _validation(rows)
    tried = sorted(_known(rows))
    shown = [row for row in rows if row["split"] == split_of[row["metric"]]]
    found = []
    for at_last in (False, True):
        own = [row for row in shown if (better(row["metric"]) > 0) == at_last]
        if not own:
            continue
        among = [row for row in own if row["learning_rate"] in rates] or own
        steps, losses = _losses(own, validation, at_last)
        rate = _best(_means(losses, _tried(among)), among)
        of_all = _best(_means(losses, _tried(own)), own)
        at_edge = len(tried) > 1 and (rate in (tried[0], tried[-1]) or of_all != rate)
        found += [
            Chosen(row, at_edge)
            for row in among
            if row["learning_rate"] == rate and row["steps"] == steps[row["run"]]
        ]
    return found


def uneven(rows: Iterable[Row]) -> list[Uneven]:
    """The pools whose places were tried with different rates, sorted."""
    found = []
    for (model, task, pool), places in sorted(by_place(rows).items()):
        among = {rate for rate in compared(places) if rate is not None}
        tried = {place: _known(here) for place, here in places.items()}
        lacking = {}
        for rate in sorted(among):
            sides = [tokens > 0 for (_, tokens), own in tried.items() if own and rate not in own]
            if sides:
                lacking[rate] = sides.count(False), sides.count(True)
        further = []
        everything: set[float] = set().union(*tried.values())
        for rate in sorted(everything - among):
            beside = [
                here
                for place, here in places.items()
                if rate in tried[place] and tried[place] & among
            ]
            if beside:
                further.append(_further(rate, beside, among))
        mixed = not among and len({frozenset(own) for own in tried.values()}) > 1
        if lacking or further or mixed:
            found.append(
                Uneven(model, task, pool, len(places), tuple(sorted(among)), lacking,
                       tuple(further))
            )  # fmt: skip
    return found


def _further(rate: float, places: Sequence[Sequence[Row]], among: Set[float]) -> Further:
    """`places`: those where it was tried beside rates that are compared."""
    gains = []
    for rows in places:
        _, losses = _losses(rows, _validation(rows), at_last=False)
        against = [_means(losses, (rate, other)) for other in _tried(rows) & among]
        gain = min(max(mean.values()) - mean[rate] for mean in against)
        gains.append(gain if math.isfinite(gain) else 0.0)
    return Further(rate, len(places), sum(gain > 0 for gain in gains), max(gains))


def whole(split: str) -> str:
    """The split that a slice such as "test[:1000]" is of."""
    return split.partition("[")[0]


def _tried(rows: Iterable[Row]) -> set[Rate]:
    return {row["learning_rate"] for row in rows}


def _known(rows: Iterable[Row]) -> set[float]:
    return {rate for rate in _tried(rows) if rate is not None}


def _validation(rows: Iterable[Row]) -> dict[tuple[str, int], float]:
    """(run, step) -> cross-entropy."""
    return {
        (row["run"], row["steps"]): row["value"]
        for row in rows
        if whole(row["split"]) == "validation" and row["metric"] == LOSS
    }


def _losses(
    rows: Iterable[Row], validation: Mapping[tuple[str, int], float], at_last: bool
) -> tuple[dict[str, int], dict[Rate, list[tuple[Any, float]]]]:
    """The step of each run with the lowest validation cross-entropy, or its last step if `at_last`;
    and (seed, that cross-entropy) of each rate, NaN if unknown."""
    evaluated: dict[str, set[int]] = defaultdict(set)
    about = {}
    for row in rows:
        evaluated[row["run"]].add(row["steps"])
        about[row["run"]] = row["learning_rate"], row["seed"]
    steps: dict[str, int] = {}
    losses: dict[Rate, list[tuple[Any, float]]] = defaultdict(list)
    for run, candidates in evaluated.items():
        counted = [max(candidates)] if at_last else sorted(candidates)
        known = [(validation.get((run, step), math.nan), step) for step in counted]
        finite = [pair for pair in known if math.isfinite(pair[0])]
        loss, steps[run] = min(finite) if finite else (math.nan, max(candidates))
        rate, seed = about[run]
        losses[rate].append((seed, loss))
    return steps, losses


def _means(
    losses: Mapping[Rate, Sequence[tuple[Any, float]]], rates: Iterable[Rate]
) -> dict[Rate, float]:
    """The mean of each of these rates: over the seeds that all of them were tried with, so that no
    rate wins by the luck of its seeds; over its own, where they share none."""
    own = {rate: losses[rate] for rate in rates}
    shared = set.intersection(*({seed for seed, _ in tried} for tried in own.values()))
    means = {}
    for rate, tried in own.items():
        counted = [loss for seed, loss in tried if seed in shared or not shared]
        means[rate] = math.fsum(counted) / len(counted)
    return means


def _best(means: Mapping[Rate, float], rows: Sequence[Row]) -> Rate:
    finite = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
    if len(means) > 1 and not finite:
        raise UserError(
            f"{rows[0]['run']}: {len(means)} learning rates and no validation cross-entropy to "
            "choose between them; evaluate on the validation split too"
        )
    return min(finite or means, key=lambda rate: (means[rate], rate or 0.0))
