"""A run's records: metrics.jsonl, timing.jsonl, TensorBoard, a progress bar.

metrics.jsonl holds one JSON object a line and only what the computation determines, so that a run
killed and resumed leaves the same bytes as one never killed:
  {"step", "split": "train", "task", "loss", "z_loss", "grad_norm", "learning_rate",
   "target_tokens", "tokens_seen", "examples_seen"}  loss in nats per target token over the steps
                                                      since the line before
  {"step", "split": "validation" | "test" | ..., "task", "cross_entropy", "target_tokens", ...}
timing.jsonl holds the clock: {"step", "wall_s", "device_s", "tokens_per_s", "positions_per_s",
"model_tflops_per_s", "mfu" if the device's peak is known}; wall_s and device_s go on counting over
restarts. Of devices that several processes share (`study --processes`) each counts its part.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from t5scaling import records, storage
from t5scaling.errors import UserError
from t5scaling.training.mirrors import Mirror, open_mirror

SHARED_BY = "T5SCALING_SHARED_BY"  # environment variable: how many processes share the devices

# (steps done, steps in all, what is going on, or "" for no news) -> None
Progress = Callable[[int, int, str], None]


class Tracker:
    """The writers of one run directory. On a resume at `step` it first drops what came later.

    Without `writes` nothing is written: another process of the job does it.
    """

    def __init__(
        self,
        model_dir: str,
        step: int,
        writes: bool = True,
        mirrors: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        is_logged: Callable[[int], bool] = lambda step: True,
        log_every: int = 0,
    ):
        """`mirrors`, packages of `open_mirror`, get the same scalars, and `config` once.

        `is_logged`: whether a step has a line of its training. `log_every`: steps between those
        lines. Raises UserError if lines before `step` are damaged or gone: a run that went on
        without them would seem complete.
        """
        self._writes = writes
        self._mirrors: list[Mirror] = []
        self._wall_before, self._device_before, self._start = 0.0, 0.0, time.monotonic()
        if not writes:
            return
        folder = storage.make_folder(model_dir)
        # Evaluation at the resumed step is done again: the kill may have hit in its middle.
        self._metrics, metrics = _resume(
            folder / records.METRICS,
            records.METRICS_LINE,
            lambda line: (
                line["step"] <= step and is_logged(line["step"])
                if line["split"] == "train"
                else line["step"] < step
            ),
        )
        logged = {line["step"] for line in metrics if line["split"] == "train"}
        lost = [s for s in range(log_every, step + 1, log_every or 1) if s not in logged]
        if log_every and lost:
            raise UserError(
                f"{folder / records.METRICS} has lost the metrics of {len(lost)} of the steps "
                f"before {step}, where the run would go on ({lost[0]} is the first): put the file "
                f"back, or delete {folder} to start the run again"
            )
        self._timing, timing = _resume(
            folder / records.TIMING, records.TIMING_LINE, lambda line: line["step"] <= step
        )
        if timing:
            self._wall_before = timing[-1]["wall_s"]
            self._device_before = timing[-1].get("device_s", self._wall_before)
        import tensorboardX  # 0.4 s, and a study that is finished writes nothing

        self._events = storage.Folder(folder / "tensorboard")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(self._events.local), purge_step=step + 1 if step else None
        )
        self._mirrors = [open_mirror(name, model_dir, config or {}) for name in mirrors]

    def spent(self, devices: int) -> dict[str, float]:
        """wall_s and device_s of this run so far, earlier launches included, in seconds; this
        launch is on so many devices."""
        here = time.monotonic() - self._start
        share = devices / int(os.environ.get(SHARED_BY, 1))
        return {
            "wall_s": self._wall_before + here,
            "device_s": self._device_before + here * share,
        }

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Appends one line of metrics: at least step, split and task."""
        if not self._writes:
            return
        self._metrics.append(json.dumps(line) + "\n")
        self._scalars(f"{line['split']}/{line['task']}", line)

    def timing(self, line: Mapping[str, Any]) -> None:
        if not self._writes:
            return
        self._timing.append(json.dumps(line) + "\n")
        self._scalars("timing", line)

    def _scalars(self, prefix: str, line: Mapping[str, Any]) -> None:
        scalars = {
            f"{prefix}/{key}": value
            for key, value in line.items()
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, line["step"])
        for mirror in self._mirrors:
            mirror.log(line["step"], scalars)

    def flush(self) -> None:
        """Writes the lines so far, which then outlast a kill. To be called before a checkpoint,
        from which a resumed run goes on, and before DONE, after which none does."""
        if self._writes:
            self._metrics.flush()
            self._timing.flush()
            self._tensorboard.flush()
            self._events.upload()

    def close(self) -> None:
        if self._writes:
            self.flush()
            self._tensorboard.close()
            self._events.close()
        for mirror in self._mirrors:
            mirror.close()


@contextmanager
def console_progress(title: str, shown: bool = True) -> Iterator[Progress]:
    """A progress bar with the time left on the terminal; none unless `shown`."""
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    )
    with rich_progress.Progress(*columns, disable=not shown) as bar:
        task = bar.add_task(title, total=None, note="")

        def progress(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total)
            if note:  # else the last one stays
                bar.update(task, note=note)

        yield progress


def summary(line: Mapping[str, Any]) -> str:
    """An evaluation in a few words: its cross-entropy, and the metrics that have a signature."""
    shown = [k for k in line if k == "cross_entropy" or f"{k}_signature" in line]
    return f"{line['split']}: " + ", ".join(f"{k} {line[k]:.4g}" for k in shown)


def _resume(
    path: storage.AnyPath, fields: records.Fields, keep: Callable[[dict], bool]
) -> tuple[storage.GrowingFile, list[dict]]:
    """A JSON-lines file with the lines to keep, and these; a half-written last line goes."""
    lines = records.read_lines(path, fields, growing=True)
    kept = [(text, line) for text, line in lines if keep(line)]
    whole = "".join(text + "\n" for text, _ in kept)
    if lines or storage.exists(path):
        storage.write(path, whole)
    return storage.GrowingFile(path, whole), [line for _, line in kept]
