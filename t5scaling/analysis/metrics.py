"""The metrics that we know: how each is called, in which unit, and what a difference means.

A metric that is not in `METRICS` is shown under its own name, counts as one of which more is
better, and every difference of it has a meaning.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

LOSS, BLEU, CHRF, COMET = "cross_entropy", "bleu", "chrf", "comet"


@dataclass(frozen=True)
class Metric:
    """title: in tables and figures. axis: the words at a figure's axis. unit: after a value in a
    sentence, "" for a score. resolution: the smallest difference that means anything, in the
    metric's unit; highest: the end of its scale; both also of metrics whose names begin with this
    one's, such as bleu_intl."""

    name: str
    title: str
    axis: str
    unit: str = ""
    lower_is_better: bool = False
    resolution: float = 0.0
    highest: float = math.inf


# Words in the names of metrics that are shares: their scale ends at 1, or at 100 for percentages.
SHARES = frozenset(
    ("acc", "accuracy", "em", "exact", "f1", "precision", "recall", "rouge", "rouge1", "rouge2",
     "rougel", "rougelsum")
)  # fmt: skip

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            LOSS, "Cross-entropy", "test cross-entropy (nats per target token)",
            unit="nats per target token", lower_is_better=True, resolution=0.01,
        ),
        Metric(BLEU, "BLEU", "test BLEU", resolution=0.5, highest=100.0),
        Metric(CHRF, "chrF", "test chrF", resolution=0.5, highest=100.0),
        Metric(COMET, "COMET", "test COMET"),
        *(
            Metric(name, name, f"test {name}", lower_is_better=True)
            for name in ("loss", "perplexity", "ter", "wer")
        ),
    )
}  # fmt: skip

LOWER_IS_BETTER = frozenset(name for name, metric in METRICS.items() if metric.lower_is_better)

# What BLEU is made of: name in the table -> (name in an evaluation line, the score).
PARTS = {
    f"{score}_{part}": (f"{name}{score.removeprefix('bleu')}", score)
    for score in ("bleu", "bleu_intl")
    for part, name in (
        ("brevity_penalty", "brevity_penalty"),
        *((f"precision_{n}", f"bleu_precision_{n}") for n in (1, 2, 3, 4)),
    )
}


def metric_of(name: str) -> Metric:
    """What we know of a metric."""
    return METRICS.get(name) or Metric(name, name, f"test {name}", resolution=resolution_of(name))


def metric_name(name: str) -> str:
    """Its title in tables and figures."""
    return metric_of(name).title


def resolution_of(name: str) -> float:
    """The smallest difference that means anything; 0 for a metric that we know nothing about."""
    lowered = name.lower()
    return max(
        (metric.resolution for known, metric in METRICS.items() if lowered.startswith(known)),
        default=0.0,
    )


def highest_of(name: str, measured: Iterable[float]) -> float:
    """The end of the metric's scale: inf for one without an end, or that we know nothing about.

    measured: values of it, which say whether a share is one of 1 or of 100, and which no end of a
    scale lies below.
    """
    lowered, largest = name.lower(), max(measured, default=0.0)
    end = min(
        (metric.highest for known, metric in METRICS.items() if lowered.startswith(known)),
        default=math.inf,
    )
    if SHARES & set(re.split(r"[^a-z0-9]+", lowered)):
        end = 1.0 if largest <= 1 else 100.0
    return end if largest <= end else math.inf


def is_bleu(name: str) -> bool:
    """Whether it is a BLEU, in whatever variant: near 0 those are noise."""
    return name.startswith(BLEU)


def better(name: str) -> float:
    """+1 if more is better, else -1."""
    return -1.0 if name in LOWER_IS_BETTER else 1.0
