"""Evaluation of parameters on a test set: teacher-forced cross-entropy and generated text.

Cross-entropy is in nats per target token over every target token of the set. Generation writes
T5X's layout:
  inference_eval/<task>-<step:06d>.jsonl  {"input": {...}, "prediction": ..., "target": ...} a line
  inference_eval/<task>-metrics.jsonl     {"step": n, "<metric>": value, ...} a line
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
from jax.experimental import multihost_utils

from t5scaling.data import loader
from t5scaling.data.examples import DataSpec, Examples, find_examples
from t5scaling.errors import UserError
from t5scaling.model import decoding, network
from t5scaling.training import checkpoint, distributed, run_directory, sharding, step, tracker

# Rows are padded to one of these fractions of the feature lengths: short sentences cost little,
# and the number of compilations stays small.
BUCKETS = (0.125, 0.25, 0.5, 1.0)

Metric = Callable[[Sequence[str], Sequence[str]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One test set and what is measured on it.

    Attributes:
        dataset: the examples; a split for evaluation, so that they carry their text.
        examples_root: where materialised examples live.
        batch_size: rows at a time over all devices.
        metrics: functions of (targets, predictions), both lists of strings; none, no generation.
        max_decode_len: tokens to generate at most; the targets' feature length if None.
        max_examples: only the first so many examples; all if None.
    """

    dataset: DataSpec
    examples_root: str
    batch_size: int = 64
    metrics: Sequence[Metric] = ()
    max_decode_len: int | None = None
    max_examples: int | None = None

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
        if self.metrics:
            note(f"{split} generating")
            outputs = self.generate(params, config, layout, examples)
            results: dict[str, Any] = {}
            for metric in self.metrics:
                results |= metric(
                    [o["target"] for o in outputs], [o["prediction"] for o in outputs]
                )
            if distributed.is_main():
                write_outputs(model_dir, task, step, outputs, results)
            line |= results
        return line

    def cross_entropy(
        self, params: Any, config: network.T5Config, layout: sharding.Layout, examples: Examples
    ) -> dict[str, Any]:
        """-> {"cross_entropy": nats per target token, "target_tokens": their number,
        "truncated": examples whose inputs or targets did not fit the feature lengths}."""
        eval_step = step.jit_eval_step(config, layout)
        total, tokens = 0.0, 0
        for _, batch in self._batches(examples):
            loss, weight = eval_step(params, sharding.put_batch(batch, layout))
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
        self, params: Any, config: network.T5Config, layout: sharding.Layout, examples: Examples
    ) -> list[dict[str, Any]]:
        """Greedy predictions in the order of the examples, as T5X logs them."""
        vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(examples.vocabulary))
        length = self.max_decode_len or self.dataset.feature_lengths["targets"]
        transformer = network.Transformer(config)
        predictions: dict[int, str] = {}
        for indices, batch in self._batches(examples):
            inputs = sharding.put_batch(
                {"encoder_input_tokens": batch["encoder_input_tokens"]}, layout
            )
            tokens_BxT = multihost_utils.process_allgather(
                decoding.greedy(
                    transformer, params, inputs["encoder_input_tokens"], max_decode_len=length
                ),
                tiled=True,
            )
            for index, tokens in zip(indices, tokens_BxT, strict=False):  # rows of padding follow
                predictions[index] = detokenize(vocabulary, tokens)
        outputs = []
        for index in range(self._count(examples)):
            record = examples.read(index)
            if "targets_pretokenized" not in record:
                raise UserError(
                    f"{self.dataset.task} {self.dataset.split} carries no text to compare with: "
                    "generation needs a validation or test split"
                )
            text = {k: record[k] for k in ("inputs_pretokenized", "targets_pretokenized")}
            outputs.append(
                {
                    "input": text,
                    "prediction": predictions[index],
                    "target": text["targets_pretokenized"],
                }
            )
        return outputs

    def _count(self, examples: Examples) -> int:
        return min(len(examples), self.max_examples or len(examples))

    def _batches(self, examples: Examples) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """(numbers of the examples, batch): by length, padded to a bucket, none left out."""
        lengths = self.dataset.feature_lengths
        by_bucket: dict[float, list[int]] = {bucket: [] for bucket in BUCKETS}
        records = [examples.read(index) for index in range(self._count(examples))]
        for index, record in enumerate(records):
            share = max(len(record[name]) / lengths[name] for name in ("inputs", "targets"))
            by_bucket[next(b for b in BUCKETS if share <= b)].append(index)
        for bucket, indices in by_bucket.items():
            indices.sort(key=lambda i: (len(records[i]["targets"]), i))
            for first in range(0, len(indices), self.batch_size):
                chosen = indices[first : first + self.batch_size]
                rows = [records[i] for i in chosen]
                batch = loader.make_batch(examples, rows, rows=self.batch_size)
                yield chosen, {k: v[:, : math.ceil(v.shape[1] * bucket)] for k, v in batch.items()}


def evaluate_checkpoints(
    *,
    model_dir: str,
    model: network.T5Config,
    evaluators: Sequence[Evaluation],
    steps: Sequence[int] | str = "last",
    mesh_shape: Mapping[str, int] | None = None,
    rules: sharding.Rules | None = None,
    progress: tracker.Progress | None = None,
) -> None:
    """Evaluates checkpoints of a finished or unfinished run and adds to `<model_dir>/eval.jsonl`.

    Args:
        model_dir: the run directory.
        model: its architecture.
        evaluators: what to measure.
        steps: "last", "all", or a list of steps.
        mesh_shape, rules: as of `training.loop.train`.
        progress: called with (evaluations done, in all, note); a progress bar if None.

    Raises:
        UserError: no such run or step.
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
    if not os.path.isdir(os.path.join(model_dir, "checkpoints")):
        raise UserError(f"{model_dir} is no run directory: it has no checkpoints")
    with_steps = checkpoint.Checkpoints(model_dir)
    there = with_steps.steps()
    with_steps.close()
    wanted = there[-1:] if steps == "last" else there if steps == "all" else list(steps)
    for wanted_step in wanted:
        if wanted_step not in there:
            raise UserError(
                f"{model_dir} has no checkpoint of step {wanted_step}; there: "
                f"{', '.join(map(str, there)) or 'none'}"
            )
    layout = sharding.make_layout(mesh_shape, rules)
    sharding.check(layout, model)
    for evaluator in evaluators:
        distributed.ready_examples([evaluator.dataset], evaluator.examples_root)
    abstract = step.abstract_params(model, layout)
    lines, total = [], len(wanted) * len(evaluators)
    for wanted_step in wanted:
        path = os.path.join(model_dir, "checkpoints", f"{checkpoint.PREFIX}_{wanted_step}")
        params = checkpoint.restore_params(path, abstract)
        for evaluator in evaluators:
            line = evaluator(
                params,
                config=model,
                layout=layout,
                model_dir=model_dir,
                step=wanted_step,
                note=lambda text: progress(len(lines), total, text),
            )
            lines.append({"step": wanted_step, **line})
            progress(len(lines), total, "")
    if not distributed.is_main():
        return
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run_directory.write_atomically(os.path.join(model_dir, "eval.jsonl"), text)
    for line in lines:
        shown = {k: v for k, v in line.items() if isinstance(v, int | float | str)}
        print(json.dumps(shown), flush=True)


def truncated(examples: Examples) -> int:
    """How many examples were cut to the feature lengths when they were materialised."""
    return sum(examples.meta["truncated"].values())


def detokenize(vocabulary: sentencepiece.SentencePieceProcessor, tokens: np.ndarray) -> str:
    """Text of the tokens before the first end-of-sequence token, sentinels left out."""
    ids = [int(token) for token in tokens]
    if vocabulary.eos_id() in ids:
        ids = ids[: ids.index(vocabulary.eos_id())]
    return vocabulary.decode([i for i in ids if 0 < i < vocabulary.get_piece_size()])


def write_outputs(
    model_dir: str, task: str, step_now: int, outputs: list[dict], results: dict[str, Any]
) -> None:
    """Predictions and metrics as T5X logs them; a step evaluated again replaces its line."""
    folder = os.path.join(model_dir, "inference_eval")
    os.makedirs(folder, exist_ok=True)
    run_directory.write_atomically(
        os.path.join(folder, f"{task}-{step_now:06d}.jsonl"),
        "".join(json.dumps(output, ensure_ascii=False) + "\n" for output in outputs),
    )
    path = os.path.join(folder, f"{task}-metrics.jsonl")
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            lines = [line for line in map(json.loads, file) if line["step"] != step_now]
    lines = sorted([*lines, {"step": step_now, **results}], key=lambda line: line["step"])
    run_directory.write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
