"""Separate virtual environments, for programs whose packages conflict with ours.

Each lies in a folder, by default `$XDG_CACHE_HOME/t5scaling/<key>`:
  env/        the virtual environment
  <key>.json  {"state": "installing" | "ready", "versions": {...}}; written last as "ready"
pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) choose where packages come from.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from t5scaling import records, storage
from t5scaling.errors import UserError


@dataclass(frozen=True)
class Step:
    """One call of pip. what: a description for the progress line; arguments: those of `pip
    install`; failure: the message if it fails."""

    what: str
    arguments: Sequence[str]
    failure: str


@dataclass(frozen=True)
class Environment:
    """A program's environment.

    Attributes:
        title: the program's name in messages.
        key: its name in paths, `<key>-setup` being the verb that makes it.
        versions: its Python -> versions of what it holds; None if that cannot be imported, which
            is shown.
    """

    title: str
    key: str
    versions: Callable[[Path], dict[str, str] | None]

    @property
    def verb(self) -> str:
        return f"{self.key}-setup"

    def default_folder(self) -> Path:
        """`$XDG_CACHE_HOME/t5scaling/<key>`, or below `~/.cache` where that is not set."""
        return storage.cache_folder(self.key)

    def folder_of(self, folder: str | os.PathLike | None) -> Path:
        """The environment's folder: the one given, or the default one."""
        return self.default_folder() if folder is None else Path(folder).expanduser()

    def is_ready(self, folder: str | os.PathLike | None = None) -> bool:
        root = self.folder_of(folder)
        return self._state(root).get("state") == "ready" and _python(root).exists()

    def python(self, folder: str | os.PathLike | None = None) -> Path:
        """The environment's interpreter. Raises UserError, with the command to run, if it is not
        installed."""
        root = self.folder_of(folder)
        if not self.is_ready(folder):
            where = "" if root == self.default_folder() else f" --folder {root}"
            raise UserError(
                f"{self.title} is not installed in {root}; `python run.py {self.verb}{where}` "
                "installs it"
            )
        return _python(root)

    def setup(
        self,
        folder: str | os.PathLike | None,
        steps: Sequence[Step],
        *,
        python: str = sys.executable,
        afterwards: str = "",
    ) -> Path:
        """Makes the environment with pip, whose progress is shown; does nothing if it is there.

        An installation that was interrupted, or that does not work any more, is made anew.

        Args:
            folder: where; `default_folder()` if None.
            steps: what pip does.
            python: the interpreter to make it of.
            afterwards: the end of the last sentence.

        Returns:
            The folder.

        Raises:
            UserError: the folder holds something else, another set-up is at work there, or a step
                failed, whose output is on the terminal.
        """
        root = self.folder_of(folder)
        state = root / f"{self.key}.json"
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{root} cannot be made a folder: {error.strerror}") from None

        def refuse() -> None:
            raise UserError(f"another {self.verb} is at work in {root}")

        with storage.locked(root, refuse):
            if any(root.iterdir()) and not state.exists():
                raise UserError(
                    f"{root} holds something other than {self.title}'s environment; give a new or "
                    "empty folder"
                )
            if self._state(root).get("state") == "ready":
                versions = self._check(root)
                if versions:
                    _say(f"{self.title} is already installed: {root} ({in_words(versions)})")
                    return root
                _say(f"{self.title} in {root} no longer works and is installed again")
            storage.write(state, json.dumps({"state": "installing"}))
            total = len(steps) + 2
            _say(f"1/{total} a new environment in {root}")
            made = [python, "-I", "-m", "venv", "--clear", str(root / "env")]
            _run(made, "the virtual environment could not be made")
            pip = [str(_python(root)), "-I", "-m", "pip", "install"]
            for number, step in enumerate(steps, 2):
                _say(f"{number}/{total} {step.what}")
                _run([*pip, *step.arguments], step.failure)
            _say(f"{total}/{total} importing it")
            versions = self._check(root)
            if not versions:
                raise UserError(
                    f"{self.title} was installed in {root} but cannot be imported; see above"
                )
            storage.write(state, json.dumps({"state": "ready", "versions": versions}))
        _say(f"{self.title} is ready: {in_words(versions)}{afterwards}")
        return root

    def _check(self, root: Path) -> dict[str, str] | None:
        return self.versions(_python(root)) if _python(root).exists() else None

    def _state(self, root: Path) -> dict[str, Any]:
        try:
            return records.read_object(root / f"{self.key}.json", {}) or {}
        except UserError:  # damaged: set up again
            return {}


def in_words(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _python(root: Path) -> Path:
    return root / "env" / "bin" / "python"


def _run(command: list[str], failure: str) -> None:
    try:
        code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    except OSError as error:
        raise UserError(f"{failure}: {command[0]}: {error.strerror}") from None
    if code:
        raise UserError(
            f"{failure} (status {code}): see above; the command was: {' '.join(command)}"
        )


def _say(text: str) -> None:
    print(text, flush=True)
