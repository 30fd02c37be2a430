"""Where curves were measured: what sets one apart from another, but for the metric."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class StudyPlace(NamedTuple):
    """A place of a study, where nothing is missing; fields as of `Place`."""

    model: str
    data: str
    task: str
    pool: int


@dataclass(frozen=True)
class Place:
    """A place that curves of several metrics share; joins are by it.

    Of a study: the model, the pretraining data, the task, and the finetuning pool as its number of
    examples. Of a user's own table or of T5X's runs these are None, and `columns` holds the names
    and values of the group columns.
    """

    model: str | None = None
    data: str | None = None
    task: str | None = None
    pool: int | None = None
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def of_study(self) -> StudyPlace:
        """For what only a study has. Raises ValueError of a place that is no curve's of a study."""
        if self.model is None or self.data is None or self.task is None or self.pool is None:
            raise ValueError(f"expected a place of a study with all its columns, found {self.key}")
        return StudyPlace(self.model, self.data, self.task, self.pool)

    @property
    def key(self) -> Mapping[str, Any]:
        """The columns of a table that say this place, by name."""
        own = {
            "model": self.model, "pretrain_data": self.data, "task": self.task,
            "finetune_examples": self.pool,
        }  # fmt: skip
        return {name: value for name, value in own.items() if value is not None} | dict(
            self.columns
        )

    @property
    def label(self) -> str:
        """All its values in one line; "" where nothing sets curves apart."""
        return " · ".join(map(str, self.key.values()))

    @property
    def data_name(self) -> str | None:
        """What the data are called: of a table, the value of its only group column. None if no
        column can be taken for the data's."""
        if self.data is not None:
            return self.data
        return str(self.columns[0][1]) if len(self.columns) == 1 else None

    @property
    def beside_data(self) -> "Place":
        """The place that all pretraining data of its kind share."""
        columns = () if len(self.columns) == 1 else self.columns
        return replace(self, data=None, columns=columns)

    @property
    def beside_pool(self) -> "Place":
        """The place that all finetuning pools share."""
        return replace(self, pool=None)
