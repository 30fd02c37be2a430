"""Evaluation of parameters on a test set: teacher-forced cross-entropy and generated text.

Cross-entropy is in nats per target token over every target token of the set. Generation writes
T5X's layout:
  inference_eval/<task>-<step:06d>.jsonl  {"input": {...}, "prediction": ..., "target": ...} a line
  inference_eval/<task>-metrics.jsonl     {"step": n, "<metric>": value, ...} a line
"""

import dataclasses
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from t5scaling import __version__, storage, values
from t5scaling.data import loader
from t5scaling.data.examples import DataSpec, Examples, find_examples
from t5scaling.data.vocabulary import Vocabulary
from t5scaling.errors import UserError
from t5scaling.evaluation.comet import Comet, Unavailable
from t5scaling.evaluation.generate import (
    Decoder,
    Generator,
    batches_by_length,
    check_decoder,
    one_ahead,
)
from t5scaling.model import decoding, network
from t5scaling.training import checkpoint, distributed, run_directory, sharding, step, tracker

Metric = Callable[[Sequence[Any], Sequence[str]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One test set and what is measured on it.

    Attributes:
        dataset: the examples; a split for evaluation, so that they carry their text.
        examples_root: where materialised examples live.
        batch_size: rows at a time over all devices.
        metrics: functions of (targets, predictions), targets being text or, for tasks whose
            targets are more than that, what the task calls `reference`; a `Comet`; "task" for
            those that the task itself names; none, no generation.
        decoder: how text is generated.
        max_decode_len: tokens to generate at most; the targets' feature length if None.
        max_examples: only the first so many examples; all if None.
    """

    dataset: DataSpec
    examples_root: values.Path
    batch_size: values.Positive = 64
    metrics: Sequence[Metric | Comet] | Literal["task"] = ()
    decoder: Decoder = dataclasses.field(default_factory=decoding.Greedy)
    max_decode_len: values.Length | None = None
    max_examples: values.Positive | None = None

    def __post_init__(self):
        check_decoder(self.decoder)
        if isinstance(self.metrics, str) and self.metrics != "task":
            raise UserError(
                f'metrics are {self.metrics!r}; expected "task" or a tuple of functions, such as '
                "(@metrics.bleu, @metrics.chrf)"
            )

    def __call__(
        self,
        params: Any,
        *,
        config: network.T5Config,
        layout: sharding.Layout,
        model_dir: str,
        step: int,
        note: Callable[[str], None],
    ) -> dict[str, Any]:
        """Measures `params`; returns {"split", "task", "cross_entropy", "target_tokens", ...}."""
        examples = find_examples(self.dataset, self.examples_root)
        sharding.check_batch_size(self.batch_size, layout)
        task, split = self.dataset.task, self.dataset.split
        note(f"{split} cross-entropy")
        line = {
            "split": split,
            "task": task,
            **self.cross_entropy(params, config, layout, examples),
        }
        metrics = self._metrics(examples)
        if metrics:
            line["decoder"] = self.decoder.name
            note(f"{split} generating")
            outputs = self.generate(params, config, layout, examples, note)
            results, missing = _score(metrics, outputs, note)
            if distributed.is_main():
                write_outputs(model_dir, task, step, outputs, results)
            line |= results
            if missing:
                line["missing"] = missing
        return line

    def _metrics(self, examples: Examples) -> list[Metric | Comet]:
        if self.metrics != "task":
            return list(self.metrics)
        found = []
        for name in examples.meta["metrics"]:
            module, _, function = name.rpartition(".")
            found.append(getattr(importlib.import_module(module), function))
        return found

    def cross_entropy(
        self, params: Any, config: network.T5Config, layout: sharding.Layout, examples: Examples
    ) -> dict[str, Any]:
        """-> {"cross_entropy": nats per target token, "target_tokens": their number,
        "truncated": examples whose inputs or targets did not fit the feature lengths}."""
        eval_step = step.jit_eval_step(config, layout)
        total, tokens = 0.0, 0
        dispatched = (
            eval_step(params, sharding.put_batch(batch, layout))
            for batch in self._batches(examples)
        )
        for loss, weight in one_ahead(dispatched):
            total += float(loss)  # float64 on the host: thousands of batches lose nothing
            tokens += int(weight)
        if not tokens:
            raise UserError(f"{self.dataset.task} {self.dataset.split} has no target tokens")
        return {
            "cross_entropy": total / tokens,
            "target_tokens": tokens,
            "truncated": truncated(examples),
        }

    def generate(
        self,
        params: Any,
        config: network.T5Config,
        layout: sharding.Layout,
        examples: Examples,
        note: Callable[[str], None] = lambda text: None,
    ) -> list[dict[str, Any]]:
        """Predictions in the order of the examples, as T5X logs them."""
        records = examples.read_many(range(self._count(examples)))
        if "targets_pretokenized" not in records[0]:
            raise UserError(
                f"{self.dataset.task} {self.dataset.split} carries no text to compare with: "
                "generation needs a validation or test split"
            )
        generator = Generator(
            config,
            params,
            layout,
            Vocabulary(examples.vocabulary, examples.meta["vocabulary"]["extra_ids"]),
            self.decoder,
            input_length=self.dataset.feature_lengths["inputs"],
            max_decode_len=self.max_decode_len or self.dataset.feature_lengths["targets"],
            batch_size=self.batch_size,
        )
        answers = generator(
            [record["inputs"] for record in records],
            progress=lambda done: note(
                f"{self.dataset.split} generating {done:,} of {len(records):,}"
            ),
        )
        outputs = []
        for record, answer in zip(records, answers, strict=True):
            text = {k: record[k] for k in ("inputs_pretokenized", "targets_pretokenized")}
            target = text["targets_pretokenized"]
            if "reference" in record:
                target = json.loads(record["reference"])
            outputs.append({"input": text, "prediction": answer.text, "target": target})
        return outputs

    def _count(self, examples: Examples) -> int:
        return min(len(examples), self.max_examples or len(examples))

    def _batches(self, examples: Examples) -> Iterator[dict[str, np.ndarray]]:
        """All examples: by length, padded to a bucket, none left out."""
        lengths = self.dataset.feature_lengths
        records = examples.read_many(range(self._count(examples)))
        shares = [max(len(r[name]) / lengths[name] for name in lengths) for r in records]
        for chosen, bucket in batches_by_length(shares, self.batch_size):
            rows = [records[i] for i in chosen]
            batch = loader.make_batch(examples, rows, rows=self.batch_size)
            yield {k: v[:, : math.ceil(v.shape[1] * bucket)] for k, v in batch.items()}

    def identity(self) -> str:
        """Equal for evaluations that measure the same in the same way."""
        metrics = self.metrics
        if metrics != "task":
            metrics = [getattr(metric, "__qualname__", repr(metric)) for metric in metrics]
        settings = {
            "dataset": self.dataset.to_json(),
            "metrics": metrics,
            "decoder": repr(self.decoder),
            "max_decode_len": self.max_decode_len,
            "max_examples": self.max_examples,
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def for_tasks(
    tasks: values.Name | Sequence[values.Name], evaluation: Evaluation
) -> tuple[Evaluation, ...]:
    """`evaluation`, whose own task does not matter, once for each of `tasks`."""
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    return tuple(
        dataclasses.replace(evaluation, dataset=dataclasses.replace(evaluation.dataset, task=name))
        for name in names
    )


def _score(
    metrics: Sequence[Metric | Comet], outputs: Sequence[dict], note: Callable[[str], None]
) -> tuple[dict[str, Any], list[str]]:
    """All metrics of the outputs, and the names of those that cannot be had here.

    Raises UserError for a metric that does not go with the task's targets.
    """
    targets, predictions = ([o[key] for o in outputs] for key in ("target", "prediction"))
    results: dict[str, Any] = {}
    missing = []
    for metric in metrics:
        if not isinstance(metric, Comet):
            note(getattr(metric, "__name__", "metric"))
            try:
                results |= metric(targets, predictions)
            except ValueError as error:
                raise UserError(str(error)) from error
        elif distributed.is_main():
            sources = [o["input"]["inputs_pretokenized"] for o in outputs]
            try:
                results |= metric(sources, targets, predictions, note=note)
            except Unavailable as error:
                missing.append("comet")
                print(error, file=sys.stderr, flush=True)
    return results, missing


def evaluate_checkpoints(
    *,
    model_dir: values.Path,
    model: network.T5Config,
    evaluators: Sequence[Evaluation],
    steps: Sequence[values.NonNegative] | Literal["last", "all"] = "last",
    mesh_shape: values.MeshShape | None = None,
    rules: sharding.Rules | None = None,
    progress: tracker.Progress | None = None,
) -> None:
    """Evaluates checkpoints of a run, finished or not; the results go to `<model_dir>/eval.jsonl`.

    Args:
        model_dir: the run directory.
        model: its architecture.
        evaluators: what to measure.
        steps: "last", "all", or a list of steps.
        mesh_shape, rules: as of `training.loop.train`.
        progress: called with (evaluations done, in all, note); a progress bar if None.

    Raises:
        UserError: no such run or step, or a vocabulary other than the run's.
    """
    if progress is None:
        with tracker.console_progress("eval", shown=distributed.is_main()) as bar:
            evaluate_checkpoints(
                model_dir=model_dir,
                model=model,
                evaluators=evaluators,
                steps=steps,
                mesh_shape=mesh_shape,
                rules=rules,
                progress=bar,
            )
        return
    wanted = checkpoint.choose(model_dir, steps)
    layout = sharding.make_layout(mesh_shape, rules)
    sharding.check(layout, model)
    contents = []
    for evaluator in evaluators:
        distributed.ready_examples([evaluator.dataset], evaluator.examples_root)
        examples = find_examples(evaluator.dataset, evaluator.examples_root)
        run_directory.check_vocabulary(model_dir, examples, model.vocab_size)
        contents.append(examples.meta["content_sha256"])
    abstract = step.abstract_params(model, layout)
    log = _Lines(model_dir)
    lines, total = [], len(wanted) * len(evaluators)
    for wanted_step, path in wanted:
        saved, params = storage.modified_ns(path), None
        for evaluator, content in zip(evaluators, contents, strict=True):
            key = {
                "step": wanted_step,
                "saved": saved,
                "evaluation": evaluator.identity(),
                "examples": content,
            }
            line = log.find(key)
            if line is None:
                if params is None:
                    params = checkpoint.restore_params(path, abstract)
                line = evaluator(
                    params,
                    config=model,
                    layout=layout,
                    model_dir=model_dir,
                    step=wanted_step,
                    note=lambda text: progress(len(lines), total, text),
                )
                line = key | line
                log.add(line)
            lines.append(line)
            progress(len(lines), total, "")
    if distributed.is_main():
        _print_table(lines)


class _Lines:
    """`<model_dir>/eval.jsonl`: a line for each checkpoint, test set and way to measure.

    What is there is not measured again, so that a long evaluation can be killed and started
    again. Lines without one of their metrics, and those of a checkpoint that was saved anew, are.
    """

    def __init__(self, model_dir: str):
        self._path = storage.path(model_dir) / "eval.jsonl"
        self._lines = _read_lines(self._path)

    def find(self, key: Mapping[str, Any]) -> dict | None:
        """The line that holds all of `key`."""
        for line in self._lines:
            if all(line.get(k) == value for k, value in key.items()) and "missing" not in line:
                return line
        return None

    def add(self, line: dict) -> None:
        """Writes the file with `line`, and without those that it replaces."""

        def replaced(old: dict) -> bool:
            same_way = old["evaluation"] == line["evaluation"]
            return old["step"] == line["step"] and (same_way or old["saved"] != line["saved"])

        kept = [old for old in self._lines if not replaced(old)]
        self._lines = sorted([*kept, line], key=lambda entry: entry["step"])
        if distributed.is_main():
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._lines)
            storage.write(self._path, text)


def _print_table(lines: Sequence[dict]) -> None:
    """The lines' main numbers, with intervals where there are any; all of them are in the file."""
    for line in lines:
        shown = []
        for name, value in line.items():
            if name == "cross_entropy" or f"{name}_signature" in line:
                low, high = line.get(f"{name}_low"), line.get(f"{name}_high")
                interval = "" if low is None else f" [{low:.4g}, {high:.4g}]"
                shown.append(f"{name} {value:.4g}{interval}")
        print(f"step {line['step']} {line['task']} {line['split']}: {', '.join(shown)}", flush=True)


def truncated(examples: Examples) -> int:
    """How many examples were cut to the feature lengths when they were materialised."""
    return sum(examples.meta["truncated"].values())


def write_outputs(
    model_dir: str, task: str, step_now: int, outputs: list[dict], results: dict[str, Any]
) -> None:
    """Predictions and metrics as T5X logs them; a step evaluated again replaces its line."""
    folder = storage.path(model_dir) / "inference_eval"
    folder.mkdir(parents=True, exist_ok=True)
    storage.write(
        folder / f"{task}-{step_now:06d}.jsonl",
        "".join(json.dumps(output, ensure_ascii=False) + "\n" for output in outputs),
    )
    path = folder / f"{task}-metrics.jsonl"
    lines = [line for line in _read_lines(path) if line["step"] != step_now]
    lines = sorted([*lines, {"step": step_now, **results}], key=lambda line: line["step"])
    storage.write(path, "".join(json.dumps(line) + "\n" for line in lines))


def _read_lines(path: storage.AnyPath) -> list[dict]:
    """The objects of a JSON-lines file; [] if there is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
