"""Materialisation: a SeqIO task or mixture becomes a finite list of ready examples on disk.

Two phases, each of items that know nothing of each other: `reading` turns shards of text into runs
of examples, sorted by random keys; `writing` merges slices of all runs into the parts of the list.
Both keep a bounded number of examples in memory. What is finished is kept in `<directory>.work`; a
job that was killed goes on from there. Items are done in this process, or by Apache Beam's workers,
with the same bytes in the end.

`t5scaling.data.examples` documents the directory and opens it again. `dataset.json` has

- `spec`, `spec_sha256`, `fingerprint` (of the task's definition), `made_from` (the files and the
  code behind it, see `provenance`), `vocabulary` (sha256, size, extra_ids, sentinels, eos_id),
  `metrics` (dotted names of the task's), `content_sha256` (of the sha256 of each part's records,
  which no version of a compression changes), `dataset_sha256` (of all else in dataset.json);
- `num_examples` (rows), `num_segments` (examples of the task in them), `tokens` (totals of text,
  inputs, targets, and of segments), `knots` (the same counts cumulated, at every `every`-th row
  from 0), `max_lengths`, `truncated` (examples cut to the feature length, per feature);
- `empty` (examples without text, left out) and `skipped` (lines that could not be read: task,
  problem, count, first places), both of the first pass over each task;
- `components`: for each task of a mixture its rate, passes, the examples available and used; and
  `ran_out`, the task that ended the list, if the mixture has more than one;
- `shards`: name, records, bytes and sha256 of each file.

Run by hand: `python -m t5scaling.data.materialize '{"task": ..., ...}' ROOT`.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from t5scaling.data import beam as beam_engine
from t5scaling.data import examples as examples_lib
from t5scaling.data import provenance, reading, work, writer
from t5scaling.data.examples import DataSpec, sha256_of
from t5scaling.data.runs import FEATURES
from t5scaling.errors import UserError, in_one_line

POLL_SECONDS = 1.0
PLAIN_SECONDS = 60.0  # between lines of progress where there is no terminal


def materialize(
    spec: DataSpec,
    root: str | os.PathLike,
    console: Console | None = None,
    *,
    beam: str | None = None,
) -> Path:
    """Writes the examples of `spec` under `root`, unless they are there; returns the directory.

    With `beam`, options of a runner such as "--runner=DirectRunner", on Apache Beam; all workers
    must see `root`. The directory appears whole or not at all, also when several processes do
    this at once: one writes, the others wait. After a kill or a full disk the next call goes on.

    Raises UserError for an unknown task, split or module, for feature lengths that do not fit
    the task, for data that cannot be read or change while they are read, and for a full disk.
    """
    console = console or Console(stderr=True)
    started = time.monotonic()
    if beam is not None:
        beam_engine.import_beam()
    provider = reading.find(spec)
    vocabulary, known = reading.read_vocabulary(provider)
    meta = {
        "format": examples_lib.FORMAT,
        "spec": spec.to_json(),
        "spec_sha256": sha256_of(spec.to_json()),
        "fingerprint": reading.fingerprint(provider),
        "made_from": reading.made_from(provider, spec),
        "seqio": reading.import_seqio().__version__,
        "vocabulary": known,
        "metrics": reading.metrics_of(provider),
    }
    identity = {key: meta[key] for key in ("format", "spec", "fingerprint", "vocabulary")}
    identity["made_from"] = provenance.identity(meta["made_from"])
    final = Path(root) / (spec.stem + sha256_of(identity)[:12])
    if final.is_dir():
        return final

    def waiting() -> None:
        console.print(
            f"waiting for another process that writes {final}", soft_wrap=True, markup=False
        )

    at = work.path_for(final)
    with work.locked(final, waiting):
        if final.is_dir():
            return final
        try:
            meta = _write(spec, provider, meta, vocabulary, final, _Engine(at, console, beam))
        except work.DiskError:
            raise
        except UserError:
            # Something must change before the next launch: what was read may be of no use then.
            shutil.rmtree(at, ignore_errors=True)
            raise
        shutil.rmtree(at, ignore_errors=True)
    _report(console, spec, meta, final, time.monotonic() - started)
    return final


def _write(
    spec: DataSpec, provider, meta: dict, vocabulary: bytes, final: Path, engine: "_Engine"
) -> dict:
    at = engine.at
    items, files = reading.items_of(provider, spec)
    work.prepare(at, {"meta": meta, "items": [item.name for item in items], "files": files})
    names = [item.name for item in items]
    engine.run("reading", functools.partial(_read, spec, at), items, "read", names)
    manifests = {item: work.finished(at, "read", item.name) for item in items}
    components, met = _components(provider, spec, manifests)
    mixture = writer.save_mixture(at, spec, components)
    names = [writer.part_name(number, mixture.parts) for number in range(mixture.parts)]
    engine.run("writing", functools.partial(_part, at), range(mixture.parts), "written", names)
    if why := provenance.changed(meta["made_from"], spec.code_modules):
        raise UserError(f"{spec.task} {spec.split}: {why} while it was read; start again")
    return writer.finish(at, final, meta | met, mixture, vocabulary)


def _read(spec: DataSpec, at: Path, item: reading.Item, count: Callable[[int], None]) -> None:
    with _noted(at):
        reading.read_item(spec, at, item, count)


def _part(at: Path, number: int, count: Callable[[int], None]) -> None:
    with _noted(at):
        writer.write_part(at, number, count)


@contextlib.contextmanager
def _noted(at: Path):
    """Writes a user's mistake to a file that the launcher reads, whatever the runner does with the
    error."""
    try:
        yield
    except UserError as error:
        work.note_error(at, error)
        raise


class _Engine:
    """Does items, in this process or on Beam, and shows the progress."""

    def __init__(self, at: Path, console: Console, beam: str | None):
        self.at, self._console, self._beam = at, console, beam

    def run(
        self, phase: str, function: Callable, items: Sequence, folder: str, names: Sequence[str]
    ) -> None:
        """Calls `function(item, count)` for all items; each leaves `<folder>/<its name>.json`."""
        where = self.at.stem
        with _Meter(self._console, f"{phase} {where}", len(items)) as meter:
            beam = self._beam
            if beam is None:
                for done, item in enumerate(items):
                    meter.show(done)
                    function(item, meter.count)
            else:
                with meter.watching(lambda: self._finished(folder, names)):
                    self._on_beam(phase, function, items, beam)

    def _finished(self, folder: str, names: Sequence[str]) -> int:
        there = {path.name for path in (self.at / folder).glob("*.json")}
        return sum(f"{name}.json" in there for name in names)

    def _on_beam(self, phase: str, function: Callable, items: Sequence, options: str) -> None:
        try:
            beam_engine.run(phase, function, items, options)
        except Exception:
            # Runners wrap what a worker raised, some beyond recognition.
            work.raise_noted(self.at)
            raise


class _Meter:
    """Progress of one phase: a bar on a terminal, else a line now and then."""

    def __init__(self, console: Console, title: str, total: int):
        self._console, self._title, self._total = console, title, total
        self._done = self._examples = 0
        self._said = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[examples]:,} examples"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "_Meter":
        self._bar.start()
        self._task = self._bar.add_task(self._title, total=self._total, examples=0)
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def show(self, done: int) -> None:
        self._done = done
        self._update()

    def count(self, examples: int) -> None:
        self._examples += examples
        self._update()

    def _update(self) -> None:
        self._bar.update(self._task, completed=self._done, examples=self._examples)
        now = time.monotonic()
        if self._bar.disable and now - self._said > PLAIN_SECONDS:
            self._said = now
            examples = f", {self._examples:,} examples" if self._examples else ""
            self._console.print(
                f"{self._title}: {self._done:,} of {self._total:,} shards{examples}",
                highlight=False,
                soft_wrap=True,
            )

    @contextlib.contextmanager
    def watching(self, finished: Callable[[], int]):
        """Polls how many items are finished, while other processes work on them."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(POLL_SECONDS):
                self.show(finished())

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def _components(provider, spec: DataSpec, manifests: dict) -> tuple[list[dict], dict[str, Any]]:
    """The input of `writer.Mixture`, and the entries of dataset.json about lines and examples that
    were left out.

    Raises UserError for a task without examples, or whose examples all exceed the feature lengths.
    """
    components, empty, skipped = [], 0, []
    for number, task in enumerate(reading.tasks_of(provider)):
        mine = {item: m for item, m in manifests.items() if item.component == number}
        passes: dict[int, list[dict]] = {}
        for item, manifest in mine.items():
            passes.setdefault(item.number, []).extend(manifest["runs"])
        first = [manifest for item, manifest in mine.items() if item.number == 0]
        here = sum(manifest["empty"] for manifest in first)
        problems = _sum_up([entry for manifest in first for entry in manifest["skipped"]])
        if not sum(manifest["examples"] for manifest in first):
            left_out = sum(entry["count"] for entry in problems) + here
            why = f": all {left_out:,} of its lines were left out as unreadable or empty"
            for entry in problems:
                why += f"; {entry['problem']} at {', '.join(entry['first'])}"
            raise UserError(f"{task.name} {spec.split} has no examples{why if left_out else ''}")
        _refuse_if_all_truncated(first, task, spec)
        empty += here
        skipped += [{"task": task.name} | entry for entry in problems]
        components.append(
            {
                "task": task.name,
                "rate": reading.rate_of(provider, task),
                "passes": [passes[key] for key in sorted(passes)],
            }
        )
    return components, {"empty": empty, "skipped": skipped}


def _sum_up(entries: Sequence[dict]) -> list[dict]:
    """One entry for each problem."""
    found: dict[str, dict] = {}
    for entry in entries:
        known = found.setdefault(
            entry["problem"], {"problem": entry["problem"], "count": 0, "first": []}
        )
        known["count"] += entry["count"]
        known["first"] = (known["first"] + list(entry["first"]))[:3]
    return [found[problem] for problem in sorted(found)]


def _refuse_if_all_truncated(manifests: Sequence[dict], task, spec: DataSpec) -> None:
    if any(manifest["fit"] for manifest in manifests):
        return
    shortest = min((m["shortest"] for m in manifests if m["shortest"]), key=sum)
    needed = ", ".join(f"{name}={n}" for name, n in zip(FEATURES, shortest, strict=True))
    given = ", ".join(f"{name}={spec.feature_lengths[name]}" for name in FEATURES)
    raise UserError(
        f"feature lengths {given} are too short for every example of {task.name} "
        f"{spec.split}: the shortest needs {needed}"
    )


def _report(console: Console, spec: DataSpec, meta: dict, path: Path, seconds: float) -> None:
    lines = [
        f"{spec.task} {spec.split}: {meta['num_examples']:,} examples, "
        f"{meta['tokens']['text']:,} text tokens in {seconds:.1f} s -> {path}"
    ]
    if meta["ran_out"]:
        unused = ", ".join(
            f"{c['available'] - c['used']:,} of {c['available']:,} examples of {c['task']}"
            for c in meta["components"]
            if c["task"] != meta["ran_out"]
        )
        lines.append(f"  {meta['ran_out']} ran out first and ends the list; unused: {unused}")
    for name, count in meta["truncated"].items():
        if count:
            lines.append(
                f"  {count:,} of {meta['num_segments']:,} examples have {name} cut to "
                f"{spec.feature_lengths[name]} tokens"
            )
    if meta["empty"]:
        lines.append(f"  {meta['empty']:,} examples without text were left out")
    for entry in meta["skipped"]:
        lines.append(
            f"  {entry['task']}: {entry['count']:,} lines were left out ({entry['problem']}; "
            f"{', '.join(entry['first'])}{', ...' if entry['count'] > len(entry['first']) else ''})"
        )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the directories on stdout, one a line; all else, as of progress, goes to stderr.

    For a mistake prints the one-line reason on stdout instead and returns 2. Whatever a task's own
    code raises is one.
    """
    parser = argparse.ArgumentParser(
        prog="python -m t5scaling.data.materialize",
        description="Write the examples of SeqIO tasks or mixtures to disk.",
    )
    parser.add_argument("spec", help="JSON of a data spec, or of a list of them; - for stdin")
    parser.add_argument("root", help="directory of the examples directories")
    parser.add_argument(
        "--beam",
        metavar="OPTIONS",
        help='work on Apache Beam, with these options, e.g. --beam="--runner=DirectRunner"',
    )
    arguments = parser.parse_args(argv)
    # A polite kill unwinds, so that the lock and half-written files go.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if examples_lib.PARENT in os.environ:
            work.end_with(int(os.environ[examples_lib.PARENT]))
        with contextlib.redirect_stdout(sys.stderr):  # which a task's module may print to
            text = sys.stdin.read() if arguments.spec == "-" else arguments.spec
            fields = json.loads(text)
            paths = [
                materialize(DataSpec.from_json(f), arguments.root, beam=arguments.beam)
                for f in (fields if isinstance(fields, list) else [fields])
            ]
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # nobody reads the progress any more
        return 128 + signal.SIGPIPE
    except json.JSONDecodeError as error:
        print(f"the spec is not JSON: {error}")
        return 2
    except UserError as error:
        print(" ".join(str(error).split("\n")))
        return 2
    except MemoryError:
        print("not enough memory to materialise: what is finished is kept")
        return 2
    except Exception as error:
        print(f"materialising failed: {in_one_line(error)}")
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    print(*paths, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
