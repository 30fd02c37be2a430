"""Metrics to Weights & Biases or trackio as well, for those who watch their runs there.

metrics.jsonl stays the record; a mirror's failure is reported once and stops nothing.
"""

import importlib
import os
import posixpath
import sys
from collections.abc import Callable, Mapping
from typing import Any

from t5scaling import storage
from t5scaling.errors import UserError, first_line, nearest

PACKAGES = ("trackio", "wandb")
PROJECT = "t5scaling"  # unless $TRACKIO_PROJECT or $WANDB_PROJECT says otherwise


def open_mirror(package: str, model_dir: str, config: Mapping[str, Any]) -> "Mirror":
    """Goes on with the run of this directory's name there, or begins it. `config` is sent once.

    Everything else is set by the package's own environment variables. Raises UserError if the
    package is missing or unknown.
    """
    if package not in PACKAGES:
        raise UserError(f"MIRRORS: no tracker {package!r}{nearest(package, PACKAGES)}")
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UserError(
            f"{package} is not installed; pip install {package}, or take it out of MIRRORS"
        ) from None
    name = _name(model_dir)
    arguments = {
        "project": os.environ.get(f"{package.upper()}_PROJECT", PROJECT),
        "name": name,
        "config": dict(config),
        "resume": "allow",
    }
    if package == "wandb":  # knows a run by its id, which may not hold any character
        arguments["id"] = name.replace("/", "-").replace("=", "-")
    return Mirror(package, lambda: module.init(**arguments))


class Mirror:
    """One run's scalars. Nothing that fails here is allowed to fail the training."""

    def __init__(self, package: str, start: Callable[[], Any]):
        self._package = package
        self._run: Any = None  # the package's own object; None once something failed
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
            reason = first_line(error)
            print(f"{self._package} no longer follows this run: {reason}", file=sys.stderr)
            self._run = None
            return None


def _name(model_dir: str) -> str:
    """A study's run by the study and its id, another one by its directory."""
    path = storage.absolute(model_dir).replace(os.sep, "/")
    study, found, run_id = path.rpartition("/runs/")
    if found and {"pretrain", "finetune"} & set(run_id.split("/")[:-1]):
        return f"{posixpath.basename(study)}/{run_id}"
    return posixpath.basename(path)
