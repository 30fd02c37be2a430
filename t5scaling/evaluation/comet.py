"""COMET, a learned metric of translations (Rei et al. 2020), in a process of its own.

Its package wants an old numpy and PyTorch, so it lives in a virtual environment that `setup` makes
and that nothing else sees: texts go there and scores come back in files (comet_worker.py). Its
folder, by default `$XDG_CACHE_HOME/t5scaling/comet`, is as `environments` makes them.
The models come from the Hugging Face hub on first use, into the hub's own cache.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from t5scaling import environments, values
from t5scaling.errors import UserError
from t5scaling.evaluation import comet_worker
from tasks import bootstrap

# 2.2.7 was run with torch 2.15, transformers 4.57 and numpy 1.26. One of its requirements imports
# pkg_resources, which setuptools has no more from version 82 on.
REQUIREMENTS = ("unbabel-comet==2.2.7", "setuptools<81")
SCALE = 100.0  # COMET's own scores of good text are about 1


class Unavailable(UserError):
    """COMET cannot score here; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Comet:
    """COMET as a metric that needs the source texts too.

    Attributes:
        model: name on the Hugging Face hub of a model that scores with sources and references.
        folder: of the environment, if not the default one.
        batch_size: segments at a time.
        model_file: a local checkpoint (`.../checkpoints/model.ckpt` with `hparams.yaml` beside its
            folder, or the folder of both) in place of `model`. The encoder's tokenizer and
            configuration still come from the hub or its cache.
    """

    model: str = "Unbabel/wmt22-comet-da"
    folder: values.Path | None = None
    batch_size: values.Positive = 16
    model_file: values.Path | None = None

    needs_sources: ClassVar[bool] = True

    def __call__(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        predictions: Sequence[str],
        *,
        note: Callable[[str], None] = lambda text: None,
    ) -> dict[str, float | str]:
        """Scores predictions.

        Args:
            sources: the inputs as the model gets them; `without_prompt` takes off the prompt.
            targets: references.
            predictions: outputs, in the same order.
            note: called now and then with a text about the progress.

        Returns:
            comet (mean of the segments' scores, times 100), comet_signature, and the bootstrap
            interval comet_low and comet_high if there are two segments or more.

        Raises:
            Unavailable: there is no environment, no model, or the other process failed.
            ValueError: lists of different length, or empty ones.
        """
        if not len(sources) == len(targets) == len(predictions):
            raise ValueError(
                f"comet: {len(sources)} sources, {len(targets)} targets and {len(predictions)} "
                "predictions; expected as many of each"
            )
        if not len(targets):
            raise ValueError("comet: no targets; a corpus metric needs at least one sentence")
        try:
            python = ENVIRONMENT.python(self.folder)
        except UserError as error:
            raise Unavailable(str(error)) from None
        if self.model_file and not os.path.exists(self.model_file):
            raise Unavailable(f"COMET: no model at {self.model_file}")
        request = {
            "model": self.model,
            "model_file": self.model_file and os.path.abspath(self.model_file),
            "batch_size": self.batch_size,
            "samples": [
                {"src": source, "mt": prediction, "ref": target}
                for source, target, prediction in zip(
                    without_prompt(sources), targets, predictions, strict=True
                )
            ],
        }
        answer = _ask(python, request, note)
        scores = SCALE * np.array(answer["scores"], np.float64)
        if len(scores) != len(targets) or not np.isfinite(scores).all():
            raise Unavailable(
                f"COMET: {self.model_file or self.model} gave {int(np.isfinite(scores).sum())} "
                f"finite scores for {len(targets)} segments"
            )
        signature = f"{answer['model']}|unbabel-comet:{answer['version']}|scale:{SCALE:g}"
        return {**bootstrap.mean_scores({"comet": scores}), "comet_signature": signature}


def without_prompt(inputs: Sequence[str]) -> list[str]:
    """The inputs without the task's prompt: what all begin with, up to the first ": " in it.

    Inputs that do not all begin alike have no prompt, and stay as they are.
    """
    prompt, colon, _ = inputs[0].partition(": ")
    if colon and all(text.startswith(prompt + colon) for text in inputs):
        return [text[len(prompt + colon) :] for text in inputs]
    return list(inputs)


def setup(
    folder: str | os.PathLike | None = None,
    *,
    python: str = sys.executable,
    requirements: Sequence[str] = REQUIREMENTS,
) -> Path:
    """Makes COMET's environment, as `environments.Environment.setup` does.

    Args:
        folder: where; the default one if None.
        python: the interpreter to make it of.
        requirements: what pip installs.
    """
    what = f"installing {', '.join(requirements)}: with PyTorch, up to 6 GB"
    step = environments.Step(what, requirements, "pip could not install COMET")
    done = "; its model comes on first use"
    return ENVIRONMENT.setup(folder, [step], python=python, afterwards=done)


def _versions(python: Path) -> dict[str, str] | None:
    done = subprocess.run(_worker(python), stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        return None
    return json.loads(done.stdout.splitlines()[-1])


ENVIRONMENT = environments.Environment("COMET", "comet", _versions)


def _ask(python: Path, request: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Runs the worker; its answer. What it says goes to a file and is shown if it fails."""
    total = len(request["samples"])
    with (
        tempfile.TemporaryDirectory(prefix="comet-") as folder,
        open(os.path.join(folder, "log"), "w+", encoding="utf-8", errors="replace") as log,
    ):
        asked, answered = (os.path.join(folder, name) for name in ("request", "answer"))
        with open(asked, "w", encoding="utf-8") as file:
            json.dump(request, file)
        process = subprocess.Popen(
            [*_worker(python), asked, answered],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        assert process.stdout is not None  # it is a pipe
        try:
            for line in process.stdout:
                if line.startswith(comet_worker.PROGRESS):
                    done = int(line.removeprefix(comet_worker.PROGRESS))
                    note(f"COMET {done:,} of {total:,}")
            code = process.wait()
        finally:
            # Of no effect after its end; an interrupt must not leave it at work.
            process.kill()
            process.wait()
            process.stdout.close()
        if code or not os.path.exists(answered):
            log.seek(0)
            last = [line.strip() for line in log if line.strip()][-1:] or ["it printed nothing"]
            raise Unavailable(f"COMET's process ended with status {code}: {last[0]}")
        with open(answered, encoding="utf-8") as file:
            answer = json.load(file)
    if "error" in answer:
        raise Unavailable(f"COMET: {answer['error']}")
    return answer


def _worker(python: Path) -> list[str]:
    # -I: the package named comet is the environment's own, whatever this process's path says.
    return [str(python), "-I", "-W", "ignore", comet_worker.__file__]
