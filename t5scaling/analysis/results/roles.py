"""What pretraining data are to a task: balanced, target only, source only, unrelated, mixed.

Decided by the shares of the task's two languages in the data, as the runs' records give them:

- balanced: both, and nothing else, in shares that differ by less than 0.1;
- mixed: both, and nothing else, in other shares (source:target in percent);
- source only, target only: that language alone;
- unrelated: neither;
- other: everything else, such as a task's language beside a third one, or shares not known.

Names of languages are as in the records ("en"); a pair is "en-de", from source to target.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t5scaling.analysis.results.harvest import RunRecord
from t5scaling.analysis.results.places import Place

BALANCED, MIXED, TARGET, SOURCE, UNRELATED, OTHER = (
    "balanced", "mixed", "target only", "source only", "unrelated", "other",
)  # fmt: skip
ROLES = (BALANCED, MIXED, TARGET, SOURCE, UNRELATED, OTHER)
ALIGNED = frozenset({BALANCED, MIXED})  # both languages: alignment scores of 0.9 and more


@dataclass(frozen=True)
class Role:
    """kind: one of ROLES. label: the data in few letters, "en+de" or "30:70"."""

    kind: str
    label: str


@dataclass(frozen=True)
class Roles:
    """pairs: task -> "en-de", or its own name. of: (task, pretraining data) -> its role."""

    pairs: Mapping[str, str]
    of: Mapping[tuple[str, str], Role]

    def pair(self, place: Place) -> str:
        """The language pair of a place's task, or the task's own name."""
        task = place.task or ""
        return self.pairs.get(task, task)

    def role(self, place: Place) -> Role:
        """What the data of a place are to its task."""
        task, data = place.task or "", place.data or ""
        return self.of.get((task, data), Role(OTHER, data))

    def kind(self, place: Place) -> str:
        return self.role(place).kind

    def rank(self, place: Place) -> int:
        """Its place among the task's data of the same role: they share a family of colours."""
        own = self.role(place)
        here = {data: role for (task, data), role in self.of.items() if task == place.task}
        same = {(role.label, data) for data, role in here.items() if role.kind == own.kind}
        label = (own.label, place.data or "")
        return sorted(same).index(label) if label in same else 0

    def words(self, place: Place) -> str:
        """ "balanced (en+de)"; the name of the data where their role is not known."""
        role = self.role(place)
        if role.kind == OTHER:
            return role.label
        return f"{role.kind} ({role.label})"


def role_of(shares: Mapping[str, float], languages: Sequence[str], name: str) -> Role:
    """Of data with these shares of languages for a task; `name`: the data's own."""
    present = {language: share for language, share in shares.items() if share > 0}
    if not present or len(languages) != 2:
        return Role(OTHER, name)
    source, target = (present.get(language, 0.0) for language in languages)
    if not source and not target:
        return Role(UNRELATED, "+".join(sorted(present)))
    if len(present) == 1:
        return Role(SOURCE if source else TARGET, next(iter(present)))
    if source and target and len(present) == 2:
        if abs(source - target) < 0.1:
            return Role(BALANCED, "+".join(languages))
        return Role(MIXED, f"{100 * source:.0f}:{100 * target:.0f}")
    return Role(OTHER, name)


def roles_of(runs: Iterable[RunRecord]) -> Roles:
    """From the records of the finetuning runs, finished or not."""
    pairs: dict[str, str] = {}
    languages: dict[str, Sequence[str]] = {}
    shares: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        if run["kind"] != "finetune":
            continue
        languages[run["task"]] = run.record.get("languages") or ()
        if run["pretrain_data"]:
            shares[run["pretrain_data"]] = run.record.get("pretrain_languages") or {}
    for task, two in languages.items():
        pairs[task] = "-".join(two) if len(two) == 2 else task
    names = list(pairs.values())
    for task, pair in list(pairs.items()):  # two tasks of one pair go by their own names
        if names.count(pair) > 1:
            pairs[task] = task
    of = {
        (task, data): role_of(mix, two, data)
        for task, two in languages.items()
        for data, mix in shares.items()
    }
    return Roles(pairs, of)
