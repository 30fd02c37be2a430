"""Metrics to Weights & Biases or trackio as well, for those who watch their runs there.

metrics.jsonl stays the record; what goes wrong with a mirror is said once and stops nothing.
"""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

from t5scaling.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A run of a project there. Both packages are spoken to alike: init, log, finish.

    Attributes:
        package: which one; it has to be installed.
        project: its name there.
        options: further arguments of the package's `init`, such as {"entity": "team"}.
    """

    package: Literal["wandb", "trackio"]
    project: str = "t5scaling"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def open(self, model_dir: str, config: Mapping[str, Any]) -> "Writer":
        """Goes on with the run of this directory's name, or begins it.

        Raises UserError if the package is missing or unknown.
        """
        if self.package not in ("wandb", "trackio"):
            raise UserError(f"Mirror.package={self.package!r}: expected 'wandb' or 'trackio'")
        try:
            module = importlib.import_module(self.package)
        except ImportError:
            raise UserError(
                f"{self.package} is not installed; pip install {self.package}, or take it out of "
                "MIRRORS"
            ) from None
        name = _name(model_dir)
        arguments = {"project": self.project, "name": name, "config": dict(config),
                     "resume": "allow", **self.options}  # fmt: skip
        if self.package == "wandb":
            arguments.setdefault("id", name.replace("/", "-").replace("=", "-"))
        return Writer(self.package, lambda: module.init(**arguments))


class Writer:
    """One run's scalars. Nothing that fails here is allowed to fail the training."""

    def __init__(self, package: str, start: Callable[[], Any]):
        self._package, self._run = package, None
        self._run = self._try(start)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._run is not None:
            self._try(lambda: self._run.log(dict(values), step=step))

    def close(self) -> None:
        if self._run is not None:
            self._try(lambda: self._run.finish())
            self._run = None

    def _try(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # whatever their servers and packages may raise
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            print(f"{self._package} no longer follows this run: {first[0]}", file=sys.stderr)
            self._run = None
            return None


def _name(model_dir: str) -> str:
    """A study's run by its id, another one by its directory."""
    path = os.path.normpath(os.path.abspath(model_dir)).replace(os.sep, "/")
    head, found, run_id = path.rpartition("/runs/")
    kinds = ("pretrain/", "finetune/")
    if found and any(f"/{run_id}".find(f"/{kind}") >= 0 for kind in kinds):
        return f"{os.path.basename(head)}/{run_id}"
    return os.path.basename(path)
