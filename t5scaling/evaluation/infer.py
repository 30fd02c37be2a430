"""Inference: a text file in, an answer for each of its lines out, in their order.

Answers are written in blocks of lines to `<output>.partial`; killed and started again, it goes on
after the last whole block. When all are there the file gets its name, and `<output>.json` beside
it says how it was made.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from t5scaling import __version__, records, storage, values
from t5scaling.errors import UserError
from t5scaling.evaluation.generate import Decoder, Generated, Generator, check_decoder
from t5scaling.model import network
from t5scaling.training import agreement, checkpoint, distributed, run_directory, sharding, tracker
from t5scaling.training import step as step_lib

BLOCK = 4096  # lines that are sorted by length together, and written together
LINE_BYTES = 1 << 24  # of the longest line that is read


def infer(
    *,
    model_dir: values.Path,
    input_file: values.Path,
    output_file: values.Path,
    decoder: Decoder,
    model: network.T5Config | None = None,
    vocabulary_file: values.Path | None = None,
    prompt: str = "",
    step: values.NonNegative | Literal["last"] = "last",
    input_length: values.Length = 256,
    max_decode_len: values.Length = 256,
    batch_size: values.Positive = 64,
    block: values.Positive = BLOCK,
    mesh_shape: values.MeshShape | None = None,
    rules: sharding.Rules | None = None,
    progress: tracker.Progress | None = None,
) -> None:
    """Answers every line of `input_file`, UTF-8 text.

    Args:
        model_dir: the run directory; or a model directory of T5X, or one of its checkpoints.
        output_file: `.jsonl` gives {"input", "prediction", "score"} a line, any other name plain
            text. An empty line gets an empty answer.
        decoder: how text is generated.
        model: the run's architecture; None for what the run itself says, which T5X's do not.
        vocabulary_file: for a checkpoint of T5X, which has none: a SentencePiece model, or "bytes".
        prompt: the text put before each line, as in training: "translate English to German: ".
        step: of the checkpoint, or "last".
        input_length: tokens of a line and its prompt that are read; longer ones are cut, counted
            and reported.
        max_decode_len: tokens of an answer at most.
        batch_size: rows at a time over all devices.
        block: lines that are sorted by length, and written, together.
        mesh_shape, rules: as of `training.loop.train`.
        progress: called with (lines done, in all, note); a progress bar if None.

    Raises:
        UserError: no such run, step or file, a line that is not UTF-8 or too long, an input that
            cannot be read twice, as a pipe, or that changes on the way, or an output file that
            was made from something else; `decoder` is none.
    """
    check_decoder(decoder)
    with contextlib.ExitStack() as stack:
        if progress is None:
            bar = tracker.console_progress("infer", shown=distributed.is_main())
            progress = stack.enter_context(bar)
        sha256, total = _scan(input_file)
        chosen = step if isinstance(step, str) else [step]
        [(found_step, path)] = checkpoint.choose(model_dir, chosen, of_t5x=True)
        model = run_directory.model_of(model_dir, model)
        vocabulary = run_directory.vocabulary_of(model_dir, vocabulary_file, model.vocab_size)
        made_from = {
            "input_sha256": sha256,
            "lines": total,
            "model_dir": storage.absolute(model_dir),
            "step": found_step,
            "saved": storage.modified_ns(path),
            "model": model.numbers(),
            "prompt": prompt,
            "decoder": repr(decoder),
            "input_length": input_length,
            "max_decode_len": max_decode_len,
            "version": __version__,
        }
        if vocabulary_file is not None:
            made_from["vocabulary_sha256"] = vocabulary.sha256
        output = _Output(output_file, made_from)
        agreement.check({f"record of {output_file}": output.facts()})
        if output.is_finished():
            print(f"{output_file} is already done", flush=True)
            return
        done, truncated = output.resume()
        layout = sharding.make_layout(mesh_shape, rules)
        sharding.check(layout, model)
        sharding.check_batch_size(batch_size, layout)
        generator = Generator(
            model,
            checkpoint.restore_params(path, step_lib.abstract_params(model, layout)),
            layout,
            vocabulary,
            decoder,
            input_length=input_length,
            max_decode_len=max_decode_len,
            batch_size=batch_size,
        )
        progress(done, total, "")
        for lines in _blocks(input_file, done, block):
            tokens = [vocabulary.encode(prompt + line) if line.strip() else [] for line in lines]
            truncated += sum(len(row) > input_length for row in tokens)
            answers = generator(
                [row[:input_length] for row in tokens],
                first_id=done,
                progress=lambda now, before=done: progress(before + now, total, ""),
            )
            done += len(lines)
            if distributed.is_main():
                output.write(lines, answers, done, truncated)
        if done != total:
            raise UserError(
                f"{input_file} had {total:,} lines and gave {done:,}: it was changed on the way; "
                f"delete {output_file}.json and {output_file}.partial, and start again"
            )
        if distributed.is_main():
            output.finish()
            if truncated:
                print(
                    f"{truncated:,} of {total:,} lines were cut to {input_length} tokens; "
                    "INPUT_LENGTH allows more",
                    file=sys.stderr,
                )


def _scan(path: str) -> tuple[str, int]:
    """(sha256, number of lines) of a text file; raises UserError if it is no UTF-8 text."""
    digest, count = hashlib.sha256(), 0
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(
            f"{path} is not a file: it is read twice, and once more after a kill, so save what it "
            "gives to a file first"
        )
    try:
        with open(path, "rb") as file:
            while line := file.readline(LINE_BYTES):
                if b"\0" in line or (not count and line.startswith((b"\xff\xfe", b"\xfe\xff"))):
                    raise UserError(
                        f"{path}, line {count + 1}: not UTF-8, but UTF-16 or binary; iconv -f "
                        "UTF-16 -t UTF-8 makes UTF-8 of UTF-16"
                    )
                if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                    raise UserError(f"{path}, line {count + 1}: longer than {LINE_BYTES >> 20} MiB")
                line.decode()
                digest.update(line)
                count += 1
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {count + 1}: not UTF-8 ({error.reason})") from None
    if not count:
        raise UserError(f"{path} is empty: expected one text a line")
    return digest.hexdigest(), count


def _blocks(path: str, first: int, size: int) -> Iterator[list[str]]:
    """The lines from number `first` on, `size` at a time, without their ends and a byte order
    mark."""
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        lines = (line.rstrip("\r\n") for line in itertools.islice(file, first, None))
        while block := list(itertools.islice(lines, size)):
            yield block


class _Output:
    """The output file while it grows.

    `<output>.json` says how it is made and how many bytes of `<output>.partial` are whole blocks;
    what follows them was being written at a kill, and goes.
    """

    def __init__(self, path: str, made_from: Mapping[str, Any]):
        self._path, self._partial, self._record_path = path, f"{path}.partial", f"{path}.json"
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise UserError(f"no folder {folder} for {path}")
        self._record = dict(made_from) | {"done": 0, "bytes": 0, "truncated": 0}
        names = ("lines", "done", "bytes", "truncated")
        counts: records.Fields = dict.fromkeys(names, records.COUNT)
        before = records.read_object(self._record_path, counts)
        if before is not None:
            for name, value in made_from.items():
                if before.get(name) != value:
                    raise UserError(
                        f"{path} was made with {name}={before.get(name)!r}, now it is {value!r}: "
                        f"delete {self._record_path} and what is there, or choose another file"
                    )
            if before["done"] > before["lines"]:
                raise UserError(
                    f"{self._record_path} is damaged: {before['done']} of {before['lines']} lines "
                    "are done; delete it and what is there, or choose another file"
                )
            self._record = before
        elif os.path.exists(path):
            raise UserError(f"{path} is there already: delete it or choose another OUTPUT_FILE")

    def facts(self) -> list[str]:
        """What it is made from and how far it is, a line each."""
        there = f"finished: {self.is_finished()}"
        return [there, *(f"{name}: {value}" for name, value in sorted(self._record.items()))]

    def is_finished(self) -> bool:
        return os.path.exists(self._path) and self._record["done"] == self._record["lines"]

    def resume(self) -> tuple[int, int]:
        """(lines answered before a kill, those of them that were cut)."""
        size = self._record["bytes"]
        if os.path.exists(self._partial) and os.path.getsize(self._partial) >= size:
            os.truncate(self._partial, size)
        else:
            self._record |= {"done": 0, "bytes": 0, "truncated": 0}
            with open(self._partial, "w", encoding="utf-8"):
                pass
        return self._record["done"], self._record["truncated"]

    def write(
        self, lines: Sequence[str], answers: Sequence[Generated], done: int, truncated: int
    ) -> None:
        """Adds a block; `done` and `truncated` count the lines of all blocks."""
        as_json = self._path.endswith(".jsonl")
        try:
            with open(self._partial, "a", encoding="utf-8") as file:
                for line, answer in zip(lines, answers, strict=True):
                    file.write((_as_json(line, answer) if as_json else _one_line(answer)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self._partial}: {error.strerror}") from error
        size = os.path.getsize(self._partial)
        self._record |= {"done": done, "bytes": size, "truncated": truncated}
        run_directory.write_json(self._record_path, self._record)

    def finish(self) -> None:
        os.replace(self._partial, self._path)


def _as_json(line: str, answer: Generated) -> str:
    fields = {"input": line, "prediction": answer.text, "score": answer.score}
    return json.dumps(fields, ensure_ascii=False)


def _one_line(answer: Generated) -> str:
    return " ".join(answer.text.splitlines())
