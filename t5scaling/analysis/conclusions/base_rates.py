"""Which base learning rate of pretraining is best: a study with `base_rates`.

Upstream cross-entropy, in nats per target token, is that of the training batches of the last LAST
of a run, before each is learned from: no example is seen twice, so none was known. All rates see
the same examples in the same order. Isik et al. (arXiv 2402.04177) choose by upstream cross-entropy
too; on which examples is not published.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from t5scaling import records, storage
from t5scaling.analysis.results.harvest import RunRecord, read_directories
from t5scaling.errors import UserError
from t5scaling.records import COUNT, NUMBER

LAST = 0.1  # of the steps
FILE = "base_rates.csv"


@dataclass(frozen=True)
class BaseRates:
    """The rates of one model and data set. losses: rate -> upstream cross-entropy, of the finished
    runs. left: rates whose runs are not finished."""

    model: str
    data: str
    losses: dict[float, float]
    left: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.losses, key=lambda rate: (self.losses[rate], rate))

    @property
    def sentence(self) -> str:
        if self.left:
            return f"not finished: {', '.join(f'{rate:g}' for rate in self.left)}"
        said = f"BASE_LEARNING_RATE = {self.best:g}"
        if len(self.losses) > 1 and self.best in (min(self.losses), max(self.losses)):
            said += ", at the edge of the grid: a rate beyond it may be better"
        return said


def is_sweep(study_dir: str | os.PathLike) -> bool:
    """Whether a study compares base rates."""
    if not storage.exists(storage.path(study_dir) / "runs"):
        return storage.exists(storage.path(study_dir) / FILE)
    runs = [run for _, run in read_directories(study_dir)]
    return bool(runs) and all("base_rate" in run.record for run in runs)


def base_rates_of(runs: Sequence[tuple[storage.AnyPath, RunRecord]]) -> list[BaseRates]:
    """Of every model and data set with a finished run. Raises UserError if there is none, or a file
    of a finished run is damaged."""
    losses: dict[tuple[str, str], dict[float, float]] = {}
    left: dict[tuple[str, str], list[float]] = {}
    for path, run in runs:
        place = run["model"], run["pretrain_data"]
        if run.done:
            losses.setdefault(place, {})[run["base_rate"]] = _upstream(path, run)
        else:
            left.setdefault(place, []).append(run["base_rate"])
    if not losses:
        raise UserError("no pretraining has finished yet, so there is no rate to choose")
    return [
        BaseRates(*place, found, tuple(sorted(left.get(place, ()))))
        for place, found in sorted(losses.items())
    ]


def _upstream(path: storage.AnyPath, run: RunRecord) -> float:
    """Over the lines of metrics that end within the last tenth of the steps."""
    file = str(path / records.METRICS)
    lines = [line for line in records.metrics(path) if line["split"] == "train"]
    last = [
        records.check(line, {"loss": NUMBER, "target_tokens": COUNT}, file)
        for line in lines
        if line["step"] > (1 - LAST) * run["steps"]
    ]
    tokens = sum(line["target_tokens"] for line in last)
    if not tokens:
        raise UserError(f"{file}: no training loss in the last {LAST:.0%}")
    return sum(line["loss"] * line["target_tokens"] for line in last) / tokens
