"""Finetuning pools: how many examples a run may draw from, and how much of them it draws."""

from collections.abc import Sequence

from t5scaling.analysis.results.harvest import RunRecord


class Pool:
    """A finetuning pool (D_f), how much of it a run draws, and the learning rates tried in it."""

    def __init__(self, record: dict, rates: set[float]):
        self.rates = rates
        self.task = record["task"]
        self.label = record.get("finetune_pool") or f"{record['finetune_examples']:,}"
        self.examples = record["finetune_examples"]
        self.tokens = record["finetune_tokens"]
        self.positions = record["finetune_positions"]
        rows = record.get("finetune_rows", self.examples)
        self.share = None
        if record.get("batch_size"):
            self.share = record["steps"] * record["batch_size"] / rows
        self.steps, self.batch_size = record["steps"], record.get("batch_size")

    @property
    def sentence(self) -> str:
        """Says so if the runs never see the pool whole; else empty."""
        if self.share is None or self.share >= 1:
            return ""
        return (
            f"The pool {self.label} of {self.task} is a pool, not an amount of training: "
            f"{self.steps} steps of {self.batch_size} rows draw {self.share:.0%} of it, so its "
            "examples beyond that are never seen."
        )

    @property
    def seen(self) -> str:
        if self.share is None:
            return "–"
        return f"{self.share:.0%} of it" if self.share < 1 else f"{self.share:.3g} times"


def pools(runs: Sequence[RunRecord]) -> list[Pool]:
    """The pools of the finished finetuning runs, by task and size."""
    found: dict[tuple, tuple[dict, set[float]]] = {}
    for run in runs:
        if run.done and run["kind"] == "finetune":
            place = run["task"], run["finetune_examples"]
            rates = found.setdefault(place, (run.record, set()))[1]
            if run["learning_rate"]:  # stock T5X's may be unknown
                rates.add(run["learning_rate"])
    return [Pool(record, rates) for _, (record, rates) in sorted(found.items())]
