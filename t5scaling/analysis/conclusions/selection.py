"""What of a large study its page shows first: two metrics of each task, and one of its pools.

Everything measured is in results.csv and fits.json; `run.py figures` and `run.py advise` take all
curves. The report draws and advises on

- cross-entropy and one score of each task and pool: BLEU where its models translate, else chrF,
  else BLEU, else the task's first score;
- one finetuning pool of each task, the fullest: that with the most measurements, of equals the
  largest, which is what somebody with the data would use; and all pools of the data that match the
  task best, to tell what a pool is worth.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.evidence import translates
from t5scaling.analysis.metrics import BLEU, CHRF, LOSS, LOWER_IS_BETTER
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.roles import BALANCED, MIXED, Roles
from t5scaling.analysis.wording import listed

PREFERRED = (BALANCED, MIXED)  # of the data that match a task, in this order


class Selection:
    """Of the curves of a study."""

    def __init__(self, curve_fits: Sequence[CurveFit], roles: Roles):
        self.roles = roles
        self.curve_fits = curve_fits
        names = Counter(this.curve.key["model"] for this in curve_fits)
        self.model = min(names, key=lambda name: (-names[name], name))
        self.tasks = sorted(
            {this.curve.key["task"] for this in curve_fits if self._own(this)},
            key=lambda task: (roles.pairs.get(task, task), task),
        )
        self.pools = {task: self._pool(task) for task in self.tasks}

    def _own(self, this: CurveFit) -> bool:
        return this.curve.key["model"] == self.model

    def of(self, task: str, metric: str | None, pool: int | None = None) -> list[CurveFit]:
        """The main model's curves of a task and metric, in one pool or all."""
        return [
            this
            for this in self.curve_fits
            if self._own(this)
            and this.curve.key["task"] == task
            and this.curve.metric == metric
            and pool in (None, this.curve.key["finetune_examples"])
        ]

    def score(self, task: str, pool: int | None = None) -> str | None:
        """The score that speaks for a task in a pool, the fullest by default."""
        pool = pool or self.pools[task]
        scores = sorted(
            {this.curve.metric for this in self.curve_fits
             if self._own(this) and this.curve.key["task"] == task
             and this.curve.key["finetune_examples"] == pool} - LOWER_IS_BETTER
        )  # fmt: skip
        if any(translates(this) for this in self.of(task, BLEU, pool)):
            return BLEU
        return next((name for name in (CHRF, BLEU, *scores) if name in scores), None)

    def metric(self, task: str) -> str:
        """The one metric that answers for a task: its score if that says something in its pool."""
        score = self.score(task)
        silent = score == CHRF and self.of(task, BLEU)  # beside a BLEU that is no translation
        shown = self.of(task, score, self.pools[task])
        if score and not silent and any(translates(this) for this in shown):
            return score
        return LOSS

    def headline(self, task: str) -> list[CurveFit]:
        """The curves of that metric in the fullest pool, of data that match the task first."""
        kinds = {kind: rank for rank, kind in enumerate(PREFERRED)}
        return sorted(
            self.of(task, self.metric(task), self.pools[task]),
            key=lambda this: (kinds.get(self.roles.kind(this.curve), 9), this.curve.label),
        )

    def other_pools(self) -> list[dict[str, int]]:
        """The pools beside the fullest ones, by task: the smallest of each, then the next."""
        sizes = {
            task: sorted({c.curve.key["finetune_examples"] for c in self.of(task, LOSS)} - {pool})
            for task, pool in self.pools.items()
        }
        return [
            {task: found[rank] for task, found in sizes.items() if rank < len(found)}
            for rank in range(max(map(len, sizes.values()), default=0))
        ]

    def pool_words(self, pools: Mapping[str, int]) -> str:
        """ "pool of 613 examples", or "pools of 599 (en-de) and 613 (en-fr) examples"."""
        if len(set(pools.values())) == 1:
            return f"pool of {next(iter(pools.values())):,} examples"
        each = [f"{pool:,} ({self.roles.pairs.get(task, task)})" for task, pool in pools.items()]
        return f"pools of {listed(each)} examples"

    def shows(self, curve: Curve) -> bool:
        """Whether a figure of the report shows it."""
        key = curve.key
        if key["task"] not in self.pools:
            return curve.metric == LOSS
        if curve.metric not in (LOSS, self.score(key["task"], key["finetune_examples"])):
            return False
        best = self.headline(key["task"])[:1]
        return self.in_main_pool(curve) or any(
            this.curve.key["pretrain_data"] == key["pretrain_data"] for this in best
        )

    def in_main_pool(self, curve: Curve) -> bool:
        return curve.key["finetune_examples"] == self.pools.get(curve.key["task"])

    def _pool(self, task: str) -> int:
        counts: Counter[int] = Counter()
        for this in self.curve_fits:
            if self._own(this) and this.curve.key["task"] == task:
                counts[this.curve.key["finetune_examples"]] += len(this.curve.points)
        return max(counts, key=lambda pool: (counts[pool], pool))
