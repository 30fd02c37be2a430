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
from t5scaling.records import COUNT, EVALUATIONS, INFERENCE, NAME, NUMBER, Fields, read_lines
from t5scaling.training import agreement, checkpoint, distributed, run_directory, sharding, tracker
from t5scaling.training import step as step_lib

TRIED_EXAMPLES = 8  # with which metrics are tried before a run begins

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
        if not isinstance(self.metrics, str):
            _check_metrics(self.metrics)
        for name in ("batch_size", "max_decode_len", "max_examples"):
            value = getattr(self, name)
            if value is None and name != "batch_size":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"Evaluation.{name} is {value!r}; expected a whole number >= 1")

    def check_settings(self, layout: sharding.Layout) -> None:
        """Raises UserError unless the devices can share the rows of a batch."""
        sharding.check_batch_size(self.batch_size, layout, name="EVAL_BATCH_SIZE")

    def check_data(self, training: Examples, model: network.T5Config) -> None:
        """Raises UserError unless the examples are of the vocabulary of `training`, carry the text
        to compare with, and the metrics can be had of their targets."""
        examples = find_examples(self.dataset, self.examples_root)
        run_directory.check_same_vocabulary(examples, training, model.vocab_size)
        metrics = self._metrics(examples)
        if metrics:
            records = self._texts(examples, min(self._count(examples), TRIED_EXAMPLES))
            perfect = [record["targets_pretokenized"] for record in records]
            outputs = _outputs(records, perfect)
            _score([m for m in metrics if not isinstance(m, Comet)], outputs, lambda text: None)

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
            try:
                found.append(getattr(importlib.import_module(module), function))
            except (ImportError, AttributeError, ValueError) as error:
                raise UserError(
                    f"{self.dataset.task} names the metric {name}, which cannot be imported "
                    f"({error}); METRICS sets others"
                ) from error
        return found

    def cross_entropy(
        self, params: Any, config: network.T5Config, layout: sharding.Layout, examples: Examples
    ) -> dict[str, Any]:
        """-> {"cross_entropy": nats per target token, "target_tokens": their number,
        "truncated": examples whose inputs or targets did not fit the feature lengths}."""
        eval_step = step_lib.jit_eval_step(config, layout)
        total, tokens = 0.0, 0
        dispatched = (
            eval_step(params, sharding.put_batch(batch, layout))
            for batch in self._batches(examples)
        )
        for loss, weight in one_ahead(dispatched):
            total += float(loss)  # float64 on the host: thousands of batches lose nothing
            tokens += int(weight)
            distributed.going_on("a batch of cross-entropy")
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
        records = self._texts(examples, self._count(examples))
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
        return _outputs(records, [answer.text for answer in answers])

    def _texts(self, examples: Examples, count: int) -> list[dict[str, Any]]:
        """The first records; raises UserError if they carry no text."""
        records = examples.read_many(range(count))
        if "targets_pretokenized" not in records[0]:
            raise UserError(
                f"{self.dataset.task} {self.dataset.split} carries no text to compare with: "
                "generation needs a validation or test split"
            )
        return records

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

    def identity(self, model: network.T5Config) -> str:
        """Equal for evaluations that measure the same in the same way, of the same model in the
        same dtype."""
        metrics = self.metrics
        if metrics != "task":
            metrics = [getattr(metric, "__qualname__", repr(metric)) for metric in metrics]
        settings = {
            "dataset": self.dataset.to_json(),
            "metrics": metrics,
            "decoder": repr(self.decoder),
            "max_decode_len": self.max_decode_len,
            "max_examples": self.max_examples,
            "model": model.numbers(),
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


def _check_metrics(metrics: Any) -> None:
    """Raises UserError unless these are functions, or COMET, in a list or tuple."""
    several = isinstance(metrics, list | tuple)
    for metric in metrics if several else [metrics]:
        if not (several and (callable(metric) or isinstance(metric, Comet))):
            name = getattr(metric, "__name__", None)
            raise UserError(
                f'metrics are {f"@metrics.{name}" if name else repr(metrics)}; expected "task" or '
                "a tuple of functions, such as (@metrics.bleu, @metrics.chrf)"
            )


def _outputs(records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Inputs, predictions and targets as T5X logs them."""
    outputs = []
    for record, answer in zip(records, answers, strict=True):
        text = {k: record[k] for k in ("inputs_pretokenized", "targets_pretokenized")}
        target = text["targets_pretokenized"]
        if "reference" in record:
            target = json.loads(record["reference"])
        outputs.append({"input": text, "prediction": answer, "target": target})
    return outputs


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
            except (ValueError, TypeError, KeyError) as error:
                name = getattr(metric, "__name__", repr(metric))
                raise UserError(f"metric {name}: {error}") from error
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
    evaluators: Sequence[Evaluation],
    model: network.T5Config | None = None,
    steps: Sequence[values.NonNegative] | Literal["last", "all"] = "last",
    output_dir: values.Path | None = None,
    mesh_shape: values.MeshShape | None = None,
    rules: sharding.Rules | None = None,
    progress: tracker.Progress | None = None,
) -> None:
    """Evaluates checkpoints of a run, finished or not; the results go to `<output_dir>/eval.jsonl`.

    Args:
        model_dir: the run directory; or a model directory of T5X, or one of its checkpoints.
        evaluators: what to measure.
        model: its architecture; None for what the run itself says, which T5X's do not.
        steps: "last", "all", or a list of steps.
        output_dir: where the results go; None for the run directory. Nothing is written in T5X's.
        mesh_shape, rules: as of `training.loop.train`.
        progress: called with (evaluations done, in all, note); a progress bar if None.

    Raises:
        UserError: no such run or step, a model or a vocabulary other than the run's, a damaged
            checkpoint, or an evaluation that cannot be done.
    """
    if progress is None:
        with tracker.console_progress("eval", shown=distributed.is_main()) as bar:
            evaluate_checkpoints(
                model_dir=model_dir,
                model=model,
                evaluators=evaluators,
                steps=steps,
                output_dir=output_dir,
                mesh_shape=mesh_shape,
                rules=rules,
                progress=bar,
            )
        return
    wanted = checkpoint.choose(model_dir, steps, of_t5x=True)
    if output_dir is None:
        if not checkpoint.is_run(model_dir):
            raise UserError(
                f"{model_dir} is of T5X, and nothing is written there: set EVAL_OUTPUT_DIR to the "
                "directory for the results"
            )
        output_dir = model_dir
    model = run_directory.model_of(model_dir, model)
    layout = sharding.make_layout(mesh_shape, rules)
    sharding.check(layout, model)
    abstract = step_lib.abstract_params(model, layout)
    for _, path in wanted:
        checkpoint.check_params(path, abstract)
    if distributed.is_main():  # another user's run: better now than after all is measured
        storage.check_writable(output_dir)
        storage.check_writable(storage.path(output_dir) / INFERENCE)
    contents = []
    for evaluator in evaluators:
        evaluator.check_settings(layout)
        agreement.ready_examples([evaluator.dataset], evaluator.examples_root)
        examples = find_examples(evaluator.dataset, evaluator.examples_root)
        run_directory.check_vocabulary(model_dir, examples, model.vocab_size)
        evaluator.check_data(examples, model)
        contents.append(examples.meta["content_sha256"])
    log = _Lines(output_dir)
    agreement.check(
        {
            f"checkpoint of {model_dir} to evaluate": [
                f"step {at}, saved at {storage.modified_ns(path)}" for at, path in wanted
            ],
            "content of examples": contents,
            f"line in {output_dir}/eval.jsonl": list(map(json.dumps, log.lines)),
        }
    )
    lines, total = [], len(wanted) * len(evaluators)
    for wanted_step, path in wanted:
        saved, params = storage.modified_ns(path), None
        for evaluator, content in zip(evaluators, contents, strict=True):
            key = {
                "step": wanted_step,
                "saved": saved,
                "evaluation": evaluator.identity(model),
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
                    model_dir=output_dir,
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
    """`<output_dir>/eval.jsonl`: a line for each checkpoint, test set and way to measure.

    What is there is not measured again, so that a long evaluation can be killed and started
    again. Lines without one of their metrics, and those of a checkpoint that was saved anew, are.
    """

    def __init__(self, output_dir: str):
        self._path = storage.path(output_dir) / EVALUATIONS
        fields = {"step": COUNT, "saved": NUMBER, "evaluation": NAME, "task": NAME, "split": NAME}
        self.lines = _read_lines(self._path, fields)

    def find(self, key: Mapping[str, Any]) -> dict | None:
        """The line that holds all of `key`."""
        for line in self.lines:
            if all(line.get(k) == value for k, value in key.items()) and "missing" not in line:
                return line
        return None

    def add(self, line: dict) -> None:
        """Writes the file with `line`, and without those that it replaces."""

        def replaced(old: dict) -> bool:
            same_way = old["evaluation"] == line["evaluation"]
            return old["step"] == line["step"] and (same_way or old["saved"] != line["saved"])

        kept = [old for old in self.lines if not replaced(old)]
        self.lines = sorted([*kept, line], key=lambda entry: entry["step"])
        if distributed.is_main():
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in self.lines)
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
    folder = storage.path(model_dir) / INFERENCE
    folder.mkdir(parents=True, exist_ok=True)
    storage.write(
        folder / f"{task}-{step_now:06d}.jsonl",
        "".join(json.dumps(output, ensure_ascii=False) + "\n" for output in outputs),
    )
    path = folder / f"{task}-metrics.jsonl"
    lines = [line for line in _read_lines(path, {"step": COUNT}) if line["step"] != step_now]
    lines = sorted([*lines, {"step": step_now, **results}], key=lambda line: line["step"])
    storage.write(path, "".join(json.dumps(line) + "\n" for line in lines))


def _read_lines(path: storage.AnyPath, fields: Fields) -> list[dict]:
    """The objects of a JSON-lines file with these fields; [] if there is none."""
    return [line for _, line in read_lines(path, fields)]
