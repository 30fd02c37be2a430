"""What of a large study its page shows first: two metrics of each task, and one of its pools.

Everything measured is in results.csv and fits.json; `run.py figures` and `run.py advise` take all
curves. The report draws and advises on

- cross-entropy and one score of each task and pool (`representatives`);
- one finetuning pool of each task, the fullest: that with the most measurements, of equals the
  largest, which is what somebody with the data would use; and all pools of the data that match the
  task best, to tell what a pool is worth.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from t5scaling.analysis.conclusions.curve_fit import CurveFit
from t5scaling.analysis.conclusions.representatives import Score, models_by_curves, speaking_score
from t5scaling.analysis.metrics import LOSS
from t5scaling.analysis.results.curves import Curve
from t5scaling.analysis.results.roles import BALANCED, MIXED, Roles
from t5scaling.analysis.wording import listed

PREFERRED = (BALANCED, MIXED)  # of the data that match a task, in this order


class Selection:
    """Of the curves of a study."""

    def __init__(self, curve_fits: Sequence[CurveFit], roles: Roles):
        self.roles = roles
        self.curve_fits = curve_fits
        self.model = models_by_curves(curve_fits)[0]
        self.tasks = sorted(
            {
                curve_fit.curve.place.of_study.task
                for curve_fit in curve_fits
                if self._own(curve_fit)
            },
            key=lambda task: (roles.pairs.get(task, task), task),
        )
        self.pools = {task: self._pool(task) for task in self.tasks}

    def _own(self, curve_fit: CurveFit) -> bool:
        return curve_fit.curve.place.model == self.model

    def of(self, task: str, metric: str | None, pool: int | None = None) -> list[CurveFit]:
        """The main model's curves of a task and metric, in one pool or all."""
        return [
            curve_fit
            for curve_fit in self.curve_fits
            if self._own(curve_fit)
            and curve_fit.curve.place.task == task
            and curve_fit.curve.metric == metric
            and pool in (None, curve_fit.curve.place.pool)
        ]

    def score(self, task: str, pool: int | None = None) -> str | None:
        """The score to show for a task in a pool, the fullest by default."""
        return self._score(task, pool or self.pools[task]).name

    def metric(self, task: str) -> str:
        """The one metric that answers for a task: its score if that decides something in its
        pool, else cross-entropy."""
        return self._score(task, self.pools[task]).deciding or LOSS

    def _score(self, task: str, pool: int) -> Score:
        return speaking_score(
            [
                curve_fit
                for curve_fit in self.curve_fits
                if self._own(curve_fit)
                and curve_fit.curve.place.task == task
                and curve_fit.curve.place.pool == pool
            ]
        )

    def headline(self, task: str) -> list[CurveFit]:
        """The curves of that metric in the fullest pool, of data that match the task first."""
        kinds = {kind: rank for rank, kind in enumerate(PREFERRED)}
        return sorted(
            self.of(task, self.metric(task), self.pools[task]),
            key=lambda curve_fit: (
                kinds.get(self.roles.kind(curve_fit.curve.place), 9),
                curve_fit.curve.label,
            ),
        )

    def other_pools(self) -> list[dict[str, int]]:
        """The pools beside the fullest ones, by task: the smallest of each, then the next."""
        sizes = {
            task: sorted({c.curve.place.of_study.pool for c in self.of(task, LOSS)} - {pool})
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
        place = curve.place.of_study
        if place.task not in self.pools:
            return curve.metric == LOSS
        if curve.metric not in (LOSS, self.score(place.task, place.pool)):
            return False
        best = self.headline(place.task)[:1]
        return self.in_main_pool(curve) or any(
            curve_fit.curve.place.data == place.data for curve_fit in best
        )

    def in_main_pool(self, curve: Curve) -> bool:
        place = curve.place.of_study
        return place.pool == self.pools.get(place.task)

    def _pool(self, task: str) -> int:
        counts: Counter[int] = Counter()
        for curve_fit in self.curve_fits:
            if self._own(curve_fit) and curve_fit.curve.place.task == task:
                counts[curve_fit.curve.place.of_study.pool] += len(curve_fit.curve.points)
        return max(counts, key=lambda pool: (counts[pool], pool))
